//! The roles of this process and the messages between them.
//!
//! The types are those of `towpath-fabric`; with everything in one process they are passed as values.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use towpath_base::crypto::Rng;
use towpath_base::profile::Subscriber;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_bpf::{CompiledProfile, Dataplane};
use towpath_common::wire::PORT_IKE;
use towpath_crypto::{IkeCrypto, SystemRng};
use towpath_fabric::{Datagram, FromKeyserver, FromRegistry, GatewaySa, NodeName, ToRegistry};
use towpath_gateway::control::{Control, Limits, Output};
use towpath_gateway::datagram;
use towpath_gateway::datapath::SaKey;
use towpath_gateway::stored::{Installation, Stored};
use towpath_gateway::worker::{FromWorker, Worker};
use towpath_ipsec::shared::Wanted;
use towpath_kernel::{RawIpSender, SendError};
use towpath_keyserver::Keyserver;
use towpath_keyx::ReservedSpi;
use towpath_keyx::transfer::Backoff;
use towpath_registry::{Destination, Registry};
use towpath_store::{Kek, RedbStore, Store};
use towpath_telemetry::admin::{Event, EventBus, Request, Responder};

use super::keylog::KeyLog;
use super::manual::{Capture, KeptKeys, sa_key};
use crate::config::Config;

/// Everything that runs here.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) dataplane: Dataplane,
    pub(super) worker: Worker,
    pub(super) control: Control,
    pub(super) keyserver: Keyserver<IkeCrypto, SystemRng>,
    pub(super) registry: Registry<SystemRng>,
    pub(super) started: Instant,
    /// Messages of the control path that were refused, by reason.
    pub(super) refused: [u64; DropReason::COUNT],
    /// What the classifier's maps hold of each subscriber, so that a change touches its entries alone.
    compiled: HashMap<SubscriberHandle, CompiledProfile>,
    kernel: RawIpSender,
    events: EventBus,
    keylog: Option<KeyLog>,
    /// SAs and policies that people brought.
    pub(super) stored: Stored,
    /// For `sa export-wireshark`, with the permission.
    pub(super) kept: KeptKeys,
    /// The capture that is running, if any.
    pub(super) capture: Option<Capture>,
    /// Captures so far.
    pub(super) captures: u64,
    /// Directions of shared-key SAs that fell to class `none`.
    pub(super) degraded_sas: u64,
}

impl Daemon {
    /// Opens the store and makes the roles; nothing is served before [`Self::start`].
    pub(super) fn new(
        config: Config,
        dataplane: Dataplane,
        worker: Worker,
        events: EventBus,
    ) -> Result<Self> {
        let kek = Kek::load(&config.store.kek_file)?;
        let store = RedbStore::open(&config.store.path, &kek)?;
        let now = super::now();
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let find = |operator: &str, name: &str| match store.find(operator, name) {
            Ok(found) => found.map(|subscriber| subscriber.handle),
            Err(_) => None,
        };
        let stored = Stored::open(Box::new(store.clone()), seed(), find).context("stored SAs")?;
        let registry = Registry::new(
            Box::new(store),
            registry_config(&config),
            SystemRng,
            now,
            unix_now,
        )?;
        let limits = Limits {
            sealed_per_second: config.gateway.requests_per_second,
            sealed_burst: config.gateway.requests_burst,
        };
        let keylog = config.debug.key_log.as_deref().map(KeyLog::create).transpose()?;
        Ok(Self {
            control: Control::new(ReservedSpi(config.gateway.reserved_spi), limits),
            keyserver: Keyserver::new(keyserver_config(&config), IkeCrypto, SystemRng),
            registry,
            started: now,
            refused: [0; DropReason::COUNT],
            compiled: HashMap::new(),
            kernel: RawIpSender::new(None).context("raw sockets")?,
            config,
            dataplane,
            worker,
            events,
            keylog,
            stored,
            kept: KeptKeys::new(),
            capture: None,
            captures: 0,
            degraded_sas: 0,
        })
    }

    /// Serves the fixed attachments and the registrations that outlived the former process.
    pub(super) fn start(&mut self, now: Instant) {
        self.forget_stale_profiles();
        self.install_stored();
        self.settle(now);
    }

    /// Manual SAs go on where the former process can have been at most.
    fn install_stored(&mut self) {
        self.give_policies();
        match self.stored.installations() {
            Ok(installations) => {
                for installation in installations {
                    self.give(installation);
                }
            }
            Err(error) => tracing::error!(%error, "manual SAs not served"),
        }
    }

    /// Keeps the keys if they may be shown.
    fn keep(&mut self, sa: &GatewaySa) {
        if self.config.permissions.show_keys {
            self.kept.insert(sa_key(sa), sa.clone());
        }
    }

    /// Hands a stored SA to the worker.
    pub(super) fn give(&mut self, installation: Installation) {
        if let Some(keylog) = &mut self.keylog {
            keylog.sa(&installation.sa);
        }
        self.keep(&installation.sa);
        self.worker.install_stored(Box::new(installation));
    }

    /// A sender wants numbers: on the disk first. A failure leaves it with what it has, and it asks again.
    fn reserve(&mut self, key: &SaKey, to_peer: bool, wanted: Wanted) {
        match self.stored.reserve(key, to_peer, wanted) {
            Ok(Some(granted)) => self.worker.grant(*key, to_peer, granted),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, terminal = %key.local, peer = %key.remote, "numbers not reserved")
            }
        }
    }

    fn degraded(&mut self, key: &SaKey, to_peer: bool) {
        self.degraded_sas += 1;
        if let Err(error) = self.stored.degraded(key, to_peer) {
            tracing::error!(%error, terminal = %key.local, peer = %key.remote, "degradation not stored");
        }
    }

    /// Entries in the pinned maps that a former process left: the grants that follow write what holds now.
    fn forget_stale_profiles(&mut self) {
        let maps = self.dataplane.profiles();
        let outcome = maps
            .list()
            .and_then(|profiles| profiles.iter().try_for_each(|profile| maps.remove(profile)));
        if let Err(error) = outcome {
            tracing::error!(%error, "stale profiles not removed");
        }
    }

    /// A message of a worker.
    pub(super) fn handle_worker(&mut self, now: Instant, message: FromWorker) {
        match message {
            FromWorker::Packet { subscriber, packet } => self.control.handle_packet(now, subscriber, &packet),
            FromWorker::Notice(notice) => self.control.handle_notice(now, notice),
            FromWorker::InstallFailed(key) => {
                tracing::error!(terminal = %key.local, peer = %key.remote, "the worker refused an SA");
            }
        }
        self.settle(now);
    }

    /// A request of the command line.
    pub(super) async fn handle_admin(&mut self, now: Instant, request: Request, responder: Responder) {
        let answer = self.answer(now, request).await;
        self.settle(now);
        responder.respond(answer);
    }

    /// Lets every due timer act.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.keyserver.handle_timeout(now);
        self.registry.handle_timeout(now);
        self.end_idle_capture(now);
        self.settle(now);
    }

    /// When [`Self::handle_timeout`] is next wanted.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.keyserver.poll_timeout(), self.registry.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Tells the peers that their SAs end.
    pub(super) fn shutdown(&mut self, now: Instant) {
        self.keyserver.shutdown(now);
        self.settle(now);
    }

    /// Passes messages between the roles until nobody has anything to say.
    fn settle(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some(output) = self.control.poll_output() {
                quiet = false;
                self.carry_out(now, output);
            }
            while let Some(message) = self.keyserver.poll_gateway() {
                quiet = false;
                self.log_keys(&message);
                self.control.handle_keyserver(message);
            }
            while let Some(message) = self.keyserver.poll_registry() {
                quiet = false;
                self.registry.handle(now, &NodeName::default(), message);
            }
            while let Some((destination, message)) = self.registry.poll() {
                quiet = false;
                self.deliver(now, destination, message);
            }
            if quiet {
                return;
            }
        }
    }

    fn deliver(&mut self, now: Instant, destination: Destination, message: FromRegistry) {
        match destination {
            Destination::Gateway(_) => self.control.handle_registry(message),
            Destination::Keyserver(_) => {
                if let (Some(keylog), FromRegistry::Session(grant)) = (&mut self.keylog, &message) {
                    keylog.session(grant);
                }
                self.keyserver.handle_registry(now, message);
            }
        }
    }

    fn log_keys(&mut self, message: &FromKeyserver) {
        if let (Some(keylog), FromKeyserver::Install(sa)) = (&mut self.keylog, message) {
            keylog.sa(sa);
        }
    }

    fn carry_out(&mut self, now: Instant, output: Output) {
        match output {
            Output::ToKeyserver(message) => {
                if !self.manual_expired(&message) {
                    self.keyserver.handle_gateway(now, message);
                }
            }
            Output::ToRegistry(message) => {
                let message = match message {
                    ToRegistry::Register { datagram, .. } => ToRegistry::Register {
                        datagram,
                        keyserver: Some(NodeName::default()),
                    },
                    other => other,
                };
                self.registry.handle(now, &NodeName::default(), message);
            }
            Output::Transmit(packet) => self.transmit(&packet),
            Output::TransmitToTerminal { terminal, payload } => self.send_to_terminal(terminal, payload),
            Output::Serve {
                subscriber,
                addresses,
            } => self.serve(&subscriber, &addresses),
            Output::Unserve(handle) => self.unserve(handle),
            Output::Install(sa) => {
                self.keep(&sa);
                self.worker.install(sa);
            }
            Output::Remove(key) => {
                self.kept.remove(&key);
                self.worker.remove(key);
            }
            Output::Reserve { key, to_peer, wanted } => self.reserve(&key, to_peer, wanted),
            Output::Degraded { key, to_peer } => self.degraded(&key, to_peer),
            Output::Count(reason) => self.count(reason),
            Output::Event(event) => self.publish(event),
        }
    }

    /// Brings the classifier's maps in line with the subscriber's profile and addresses.
    fn serve(&mut self, subscriber: &Subscriber, addresses: &[IpAddr]) {
        let rules = super::relay::rules_of(&self.config.relay, subscriber);
        self.worker.set_rules(subscriber.handle, rules);
        let compiled = if addresses.is_empty() {
            towpath_bpf::compile(
                subscriber.handle,
                &subscriber.profile.at(&subscriber.addresses),
                &[],
            )
        } else {
            towpath_bpf::compile(subscriber.handle, &subscriber.profile, addresses)
        };
        let maps = self.dataplane.profiles();
        let written = compiled.map_err(|error| error.to_string()).and_then(|new| {
            match self.compiled.get(&subscriber.handle) {
                Some(old) => maps.replace(old, &new),
                None => maps.insert(&new),
            }
            .map_err(|error| error.to_string())?;
            self.compiled.insert(subscriber.handle, new);
            Ok(())
        });
        if let Err(error) = written {
            tracing::error!(%error, subscriber = subscriber.name, "profile not written to the classifier");
        }
    }

    fn unserve(&mut self, handle: SubscriberHandle) {
        let Some(old) = self.compiled.remove(&handle) else {
            return;
        };
        if let Err(error) = self.dataplane.profiles().remove(&old) {
            tracing::error!(%error, subscriber = %handle, "profile not removed from the classifier");
        }
    }

    /// From the gateway's own address: the one the kernel would use towards the terminal.
    fn send_to_terminal(&mut self, terminal: SocketAddr, payload: Vec<u8>) {
        let source = match own_address(terminal) {
            Ok(source) => SocketAddr::new(source, PORT_IKE),
            Err(error) => {
                tracing::warn!(%error, %terminal, "no route to the terminal");
                return self.count(DropReason::NoRoute);
            }
        };
        let datagram = Datagram {
            source,
            destination: terminal,
            payload,
        };
        match datagram::build(&datagram) {
            Some(packet) => self.transmit(&packet),
            None => self.count(DropReason::TooBig),
        }
    }

    fn transmit(&mut self, packet: &[u8]) {
        if let Err(error) = self.kernel.send(packet) {
            self.count(match error {
                SendError::TooBig => DropReason::TooBig,
                SendError::WouldBlock => DropReason::TransmitQueueFull,
                SendError::Malformed | SendError::NoRoute | SendError::Io(_) => DropReason::NoRoute,
            });
        }
    }

    fn count(&mut self, reason: DropReason) {
        if let Some(count) = self.refused.get_mut(reason as usize) {
            *count += 1;
        }
    }

    pub(super) fn publish(&self, event: towpath_fabric::Event) {
        let towpath_fabric::Event {
            subscriber,
            terminal,
            peer,
            kind,
            text,
        } = event;
        let who = terminal.map_or(String::new(), |terminal| format!(" {terminal}"));
        let whom = peer.map_or(String::new(), |peer| format!(" with {peer}"));
        tracing::info!(target: "towpath::events", "{subscriber}{who}{whom}: {kind}: {text}");
        self.events.publish(Event {
            subscriber,
            terminal,
            peer,
            kind,
            text,
            ..Event::default()
        });
    }
}

/// Random, so that nobody can choose packets that push each other out of a cache.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    SystemRng.fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// The source address the kernel's routing chooses for `destination`. Nothing is sent.
fn own_address(destination: SocketAddr) -> std::io::Result<IpAddr> {
    let any: SocketAddr = if destination.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(destination)?;
    Ok(socket.local_addr()?.ip())
}

fn registry_config(config: &Config) -> towpath_registry::Config {
    let registry = &config.registry;
    towpath_registry::Config {
        lifetime_seconds: registry.lifetime_seconds,
        keepalive_seconds: registry.keepalive_seconds,
        registrations_per_minute: registry.registrations_per_minute,
        registrations_burst: registry.registrations_burst,
    }
}

fn keyserver_config(config: &Config) -> towpath_keyserver::Config {
    let keyserver = &config.keyserver;
    let size = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
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
            ..towpath_ike::Config::default()
        },
        transfers: Backoff {
            first: Duration::from_millis(keyserver.transfer_initial_ms.into()),
            transmissions: keyserver.transfer_tries,
            ..Backoff::default()
        },
        ..towpath_keyserver::Config::default()
    }
}
