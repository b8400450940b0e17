//! Keyserver and registry of this process, and the channels to those of other machines.
//!
//! ```text
//!   gateway ◄── FromRoles ── [Roles] ◄── channel ──► keyservers and registry elsewhere
//!           ── ask_* ──────►    │
//!                       keyserver, registry here
//! ```
//!
//! Which node may say what follows from what its certificate lets it be: a gateway gets no credentials, a keyserver
//! registers nobody.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use towpath_base::Instant;
use towpath_channel::{Event as LinkEvent, Hub, Identity, LinkId, Part, Peer, Settings};
use towpath_crypto::{IkeCrypto, SystemRng};
use towpath_fabric::{FromKeyserver, FromRegistry, NodeName, ToKeyserver, ToRegistry, decode, encode};
use towpath_keyserver::Keyserver;
use towpath_keyx::transfer::Backoff;
use towpath_registry::{Destination, Registry};
use towpath_store::RedbStore;
use towpath_telemetry::admin::{AdminError, ErrorKind, Reply, SubscriberRequest};

use super::keylog::KeyLog;
use crate::config::{Config, Role};

/// What the gateway of this process is told; where there is none, what people are.
#[expect(
    clippy::large_enum_variant,
    reason = "moved once or twice, a few per exchange"
)]
pub(super) enum FromRoles {
    /// By the keyserver of this name.
    Keyserver(NodeName, FromKeyserver),
    /// By the registry.
    Registry(FromRegistry),
    /// A keyserver is reached.
    KeyserverUp(NodeName),
    /// It is not any more.
    KeyserverDown(NodeName),
    /// The registry is reached, and tells from the start whom to serve.
    RegistryUp,
}

/// Keyserver and registry, wherever they are.
pub(super) struct Roles {
    /// The one of this process.
    pub(super) keyserver: Option<Keyserver<IkeCrypto, SystemRng>>,
    /// The one of this process.
    pub(super) registry: Option<Registry<SystemRng>>,
    pub(super) keylog: Option<KeyLog>,
    name: NodeName,
    gateway_here: bool,
    hub: Option<Hub>,
    links: HashMap<(Part, Peer), LinkId>,
    peers: HashMap<LinkId, (Part, Peer)>,
    to_gateway: VecDeque<FromRoles>,
}

impl Roles {
    /// The roles `config` wants here, and channels to the others. `store` where a registry runs.
    pub(super) async fn new(config: &Config, store: Option<RedbStore>) -> Result<Self> {
        let now = super::now();
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let registry = match store.filter(|_| config.runs(Role::Registry)) {
            Some(store) => {
                let settings = registry_config(config);
                Some(Registry::new(
                    Box::new(store),
                    settings,
                    SystemRng,
                    now,
                    unix_now,
                )?)
            }
            None => None,
        };
        let keyserver = config
            .runs(Role::Keyserver)
            .then(|| Keyserver::new(keyserver_config(config), IkeCrypto, SystemRng));
        let name = NodeName(config.channel.name.clone());
        let mut roles = Self {
            keyserver,
            registry,
            keylog: config.debug.key_log.as_deref().map(KeyLog::create).transpose()?,
            gateway_here: config.runs(Role::Gateway),
            hub: hub(config).await?,
            name: name.clone(),
            links: HashMap::new(),
            peers: HashMap::new(),
            to_gateway: VecDeque::new(),
        };
        if roles.keyserver.is_some() {
            roles.to_gateway.push_back(FromRoles::KeyserverUp(name));
        }
        Ok(roles)
    }

    /// This node's name.
    pub(super) fn name(&self) -> &NodeName {
        &self.name
    }

    /// The next thing that happens on a channel.
    pub(super) async fn channel_event(&mut self) -> LinkEvent {
        match &mut self.hub {
            Some(hub) => hub.event().await,
            None => std::future::pending().await,
        }
    }

    /// The same, if there is one now.
    pub(super) fn try_channel_event(&mut self) -> Option<LinkEvent> {
        self.hub.as_mut()?.try_event()
    }

    /// The next message for the gateway.
    pub(super) fn poll_gateway(&mut self) -> Option<FromRoles> {
        self.to_gateway.pop_front()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(keyserver) = &mut self.keyserver {
            keyserver.handle_timeout(now);
        }
        if let Some(registry) = &mut self.registry {
            registry.handle_timeout(now);
        }
        self.settle(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let keyserver = self.keyserver.as_ref().and_then(Keyserver::poll_timeout);
        let registry = self.registry.as_ref().and_then(Registry::poll_timeout);
        keyserver.into_iter().chain(registry).min()
    }

    /// Tells the peers that their SAs end.
    pub(super) fn shutdown(&mut self, now: Instant) {
        if let Some(keyserver) = &mut self.keyserver {
            keyserver.shutdown(now);
        }
        self.settle(now);
    }

    /// A message of this process's gateway to the keyserver called `name`.
    pub(super) fn ask_keyserver(&mut self, now: Instant, name: &NodeName, message: ToKeyserver) {
        match &mut self.keyserver {
            Some(keyserver) if *name == self.name => keyserver.handle_gateway_of(now, name, message),
            _ => self.send(Part::Gateway, name, Part::Keyserver, &message),
        }
    }

    /// A message of this process's gateway or keyserver, which `own` is, to the registry.
    pub(super) fn ask_registry(&mut self, now: Instant, own: Part, message: ToRegistry) {
        if let Some(registry) = &mut self.registry {
            registry.handle(now, &self.name, message);
            return;
        }
        let registry = self
            .links
            .keys()
            .find(|(part, peer)| *part == own && peer.part == Part::Registry);
        if let Some(name) = registry.map(|(_, peer)| NodeName(peer.name.clone())) {
            self.send(own, &name, Part::Registry, &message);
        }
    }

    /// What does not arrive its sender asks again: terminals, peers and the IKE engine all do.
    fn send<T: serde::Serialize>(&mut self, own: Part, name: &NodeName, part: Part, message: &T) {
        let peer = Peer {
            name: name.0.clone(),
            part,
        };
        if let (Some(link), Some(hub)) = (self.links.get(&(own, peer)), &mut self.hub) {
            hub.send(*link, encode(message));
        }
    }

    /// Passes messages between the roles until nobody has anything to say.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some((gateway, message)) = self.keyserver.as_mut().and_then(Keyserver::poll_gateway_of)
            {
                quiet = false;
                self.of_keyserver(gateway, message);
            }
            while let Some(message) = self.keyserver.as_mut().and_then(Keyserver::poll_registry) {
                quiet = false;
                self.ask_registry(now, Part::Keyserver, message);
            }
            while let Some((destination, message)) = self.registry.as_mut().and_then(Registry::poll) {
                quiet = false;
                self.of_registry(now, &destination, message);
            }
            if quiet {
                return;
            }
        }
    }

    /// What the keyserver of this process says.
    fn of_keyserver(&mut self, gateway: Option<NodeName>, message: FromKeyserver) {
        let here = self.gateway_here && gateway.as_ref().is_none_or(|gateway| *gateway == self.name);
        if let Some(gateway) = gateway.filter(|_| !here) {
            self.send(Part::Keyserver, &gateway, Part::Gateway, &message);
        }
        // Events are shown where the keyserver is, too.
        if here || matches!(message, FromKeyserver::Event(_) | FromKeyserver::Refused(_)) {
            let from = self.name.clone();
            self.to_gateway.push_back(FromRoles::Keyserver(from, message));
        }
    }

    /// What the registry of this process says.
    fn of_registry(&mut self, now: Instant, destination: &Destination, message: FromRegistry) {
        let (whom, own, part) = match destination {
            Destination::Gateway(whom) => (whom, self.gateway_here, Part::Gateway),
            Destination::Keyserver(whom) => (whom, self.keyserver.is_some(), Part::Keyserver),
        };
        let elsewhere: Vec<NodeName> = self
            .links
            .keys()
            .filter(|(own, peer)| *own == Part::Registry && peer.part == part)
            .map(|(_, peer)| NodeName(peer.name.clone()))
            .filter(|name| whom.includes(name))
            .collect();
        for name in elsewhere {
            self.send(Part::Registry, &name, part, &message);
        }
        let shown = !self.gateway_here && matches!(message, FromRegistry::Event(_));
        if own && whom.includes(&self.name) || shown {
            self.tell_of_registry(now, part, message);
        }
    }

    /// A message of the registry, wherever it is, to the role `part` of this process.
    fn tell_of_registry(&mut self, now: Instant, part: Part, message: FromRegistry) {
        match (&mut self.keyserver, part) {
            (Some(keyserver), Part::Keyserver) => {
                if let (Some(keylog), FromRegistry::Session(grant)) = (&mut self.keylog, &message) {
                    keylog.session(grant);
                }
                keyserver.handle_registry(now, message);
            }
            _ => self.to_gateway.push_back(FromRoles::Registry(message)),
        }
    }

    /// Something happened on a channel.
    pub(super) fn handle_channel(&mut self, now: Instant, event: LinkEvent) {
        match event {
            LinkEvent::Up { link, own, peer } => {
                if let Some(older) = self.links.get(&(own, peer.clone())).copied() {
                    // It came back before we saw it go.
                    self.down(older, "connects anew");
                    if let Some(hub) = &mut self.hub {
                        hub.close(older);
                    }
                }
                self.up(link, own, peer);
            }
            LinkEvent::Down { link, reason } => self.down(link, &reason),
            LinkEvent::Message { link, bytes } => {
                if let Some((own, peer)) = self.peers.get(&link).cloned()
                    && self.receive(now, own, &peer, &bytes).is_none()
                {
                    tracing::warn!(
                        node = peer.name,
                        "a message that is not understood, or not this node's to send"
                    );
                }
            }
        }
        self.settle(now);
    }

    fn up(&mut self, link: LinkId, own: Part, peer: Peer) {
        tracing::info!(node = peer.name, "channel to the {} is up", peer.part.name());
        self.links.insert((own, peer.clone()), link);
        self.peers.insert(link, (own, peer.clone()));
        let name = NodeName(peer.name);
        match (own, peer.part, &mut self.registry) {
            (Part::Gateway, Part::Keyserver, _) => self.to_gateway.push_back(FromRoles::KeyserverUp(name)),
            (Part::Gateway, Part::Registry, _) => self.to_gateway.push_back(FromRoles::RegistryUp),
            (Part::Registry, Part::Gateway, Some(registry)) => {
                if let Err(error) = registry.gateway_connected(&name) {
                    tracing::error!(%error, gateway = %name, "the store failed: the gateway is not told whom to serve");
                }
            }
            (Part::Registry, Part::Keyserver, Some(registry)) => registry.keyserver_connected(&name),
            _ => {}
        }
    }

    fn down(&mut self, link: LinkId, reason: &str) {
        let Some((own, peer)) = self.peers.remove(&link) else {
            return;
        };
        tracing::warn!(
            node = peer.name,
            "channel to the {} is down: {reason}",
            peer.part.name()
        );
        self.links.remove(&(own, peer.clone()));
        if (own, peer.part) == (Part::Gateway, Part::Keyserver) {
            let name = NodeName(peer.name);
            self.to_gateway.push_back(FromRoles::KeyserverDown(name));
        }
    }

    /// `None`: undecodable, or nothing such a node may say.
    fn receive(&mut self, now: Instant, own: Part, peer: &Peer, bytes: &[u8]) -> Option<()> {
        let name = NodeName(peer.name.clone());
        match (own, peer.part) {
            (Part::Keyserver, Part::Gateway) => {
                let message: ToKeyserver = decode(bytes).ok()?;
                self.keyserver.as_mut()?.handle_gateway_of(now, &name, message);
            }
            (Part::Registry, part) => {
                let message: ToRegistry = decode(bytes).ok()?;
                let allowed = match &message {
                    ToRegistry::Register { .. } | ToRegistry::LocationExpired { .. } => part == Part::Gateway,
                    ToRegistry::SessionConfirmed { .. } | ToRegistry::Credential { .. } => {
                        part == Part::Keyserver
                    }
                };
                if !allowed {
                    return None;
                }
                self.registry.as_mut()?.handle(now, &name, message);
            }
            (Part::Gateway, Part::Keyserver) => {
                let message: FromKeyserver = decode(bytes).ok()?;
                self.to_gateway.push_back(FromRoles::Keyserver(name, message));
            }
            (own, Part::Registry) => {
                let message: FromRegistry = decode(bytes).ok()?;
                self.tell_of_registry(now, own, message);
            }
            _ => return None,
        }
        Some(())
    }

    /// The keyserver here, or where it is.
    pub(super) fn keyserver(&self) -> Result<&Keyserver<IkeCrypto, SystemRng>, AdminError> {
        self.keyserver.as_ref().ok_or_else(|| elsewhere("keyserver"))
    }

    pub(super) fn keyserver_mut(&mut self) -> Result<&mut Keyserver<IkeCrypto, SystemRng>, AdminError> {
        self.keyserver.as_mut().ok_or_else(|| elsewhere("keyserver"))
    }

    /// A request about subscribers.
    pub(super) fn subscriber(
        &mut self,
        now: Instant,
        request: SubscriberRequest,
    ) -> Result<Reply, AdminError> {
        match &mut self.registry {
            Some(registry) => registry.handle_admin(now, request),
            None => Err(elsewhere("registry")),
        }
    }
}

fn elsewhere(role: &str) -> AdminError {
    let message = format!("the {role} does not run in this process: ask on the machine where it does");
    AdminError::new(ErrorKind::NotFound, message)
}

/// The channels `config` names; `None` if none.
async fn hub(config: &Config) -> Result<Option<Hub>> {
    let channel = &config.channel;
    let (Some(certificate), Some(key), Some(authority)) =
        (&channel.certificate, &channel.private_key, &channel.authority)
    else {
        return Ok(None);
    };
    let identity = Identity::load(&channel.name, certificate, key, authority).context("channel")?;
    let settings = Settings {
        heartbeat: Duration::from_millis(channel.heartbeat_ms.into()),
        dead_after: Duration::from_millis(channel.dead_after_ms.into()),
        ..Settings::default()
    };
    let mut hub = Hub::new(identity, settings);
    let offered: Vec<Part> = [
        (Role::Keyserver, Part::Keyserver),
        (Role::Registry, Part::Registry),
    ]
    .into_iter()
    .filter(|(role, _)| config.runs(*role))
    .map(|(_, part)| part)
    .collect();
    for address in &channel.listen {
        hub.listen(*address, offered.clone())
            .await
            .with_context(|| format!("channel.listen {address}"))?;
        tracing::info!("channels are accepted at {address}");
    }
    let mut dial = |own: Part, part: Part, node: &crate::config::Remote| {
        let peer = Peer {
            name: node.name.clone(),
            part,
        };
        if let Some(address) = node.address.clone() {
            hub.dial(own, peer, address);
        }
    };
    if config.runs(Role::Gateway) {
        for keyserver in &config.gateway.keyserver {
            dial(Part::Gateway, Part::Keyserver, keyserver);
        }
    }
    if let Some(registry) = &channel.registry {
        for (role, part) in [(Role::Gateway, Part::Gateway), (Role::Keyserver, Part::Keyserver)] {
            if config.runs(role) {
                dial(part, Part::Registry, registry);
            }
        }
    }
    Ok(Some(hub))
}

fn registry_config(config: &Config) -> towpath_registry::Config {
    let registry = &config.registry;
    towpath_registry::Config {
        lifetime_seconds: registry.lifetime_seconds,
        keepalive_seconds: registry.keepalive_seconds,
        registrations_per_minute: registry.registrations_per_minute,
        registrations_burst: registry.registrations_burst,
        registrations_per_flush: super::TURN,
    }
}

fn keyserver_config(config: &Config) -> towpath_keyserver::Config {
    let keyserver = &config.keyserver;
    let size = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    // Of a percentage and a number in their limits: 100 × 10,000,000 fits.
    let share = |of: u32| (of * keyserver.operator_share_percent).div_ceil(100);
    towpath_keyserver::Config {
        ike: towpath_ike::Config {
            retransmit: towpath_ike::Retransmit {
                first: Duration::from_millis(keyserver.retransmit_initial_ms.into()),
                transmissions: u8::try_from(keyserver.retransmit_tries).unwrap_or(u8::MAX),
                ..towpath_ike::Config::default().retransmit
            },
            half_open_total: size(keyserver.max_half_open),
            cookie_threshold: size(keyserver.cookie_threshold),
            ike_sas_total: size(keyserver.max_ike_sas),
            ready_within: towpath_keyserver::READY_WITHIN,
            danger_export_keys: config.debug.key_log.is_some(),
            mobike: keyserver.mobike,
            dpd_after: (keyserver.dpd_seconds > 0).then(|| Duration::from_secs(keyserver.dpd_seconds.into())),
            reauth_after: (keyserver.reauth_seconds > 0)
                .then(|| Duration::from_secs(keyserver.reauth_seconds.into())),
            ..towpath_ike::Config::default()
        },
        transfers: Backoff {
            first: Duration::from_millis(keyserver.transfer_initial_ms.into()),
            transmissions: keyserver.transfer_tries,
            ..Backoff::default()
        },
        credentials_for: Duration::from_secs(keyserver.credential_seconds.into()),
        operators: towpath_keyserver::OperatorLimits {
            share: towpath_ike::Budget {
                ike_sas: size(share(keyserver.max_ike_sas)),
                half_open: size(share(keyserver.max_half_open)),
            },
            exchanges_per_second: keyserver.operator_exchanges_per_second,
        },
        ..towpath_keyserver::Config::default()
    }
}
