//! The roles of this process and the messages between them.
//!
//! The types are those of `towpath-fabric`; with everything in one process they are passed as values.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;
use towpath_base::crypto::Rng;
use towpath_base::profile::Subscriber;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_bpf::{CompiledProfile, Dataplane};
use towpath_channel::{Event as LinkEvent, Part};
use towpath_common::wire::PORT_IKE;
use towpath_crypto::SystemRng;
use towpath_fabric::{Datagram, FromKeyserver, FromRegistry, GatewaySa, NodeName, ToKeyserver, ToRegistry};
use towpath_gateway::control::{Control, Limits, Output};
use towpath_gateway::datagram;
use towpath_gateway::datapath::SaKey;
use towpath_gateway::keyservers::Keyservers;
use towpath_gateway::stored::{Installation, Stored};
use towpath_gateway::windows::Windows;
use towpath_gateway::worker::{FromWorker, Worker};
use towpath_ipsec::shared::Wanted;
use towpath_kernel::{RawIpSender, SendError};
use towpath_keyx::ReservedSpi;
use towpath_keyx::message;
use towpath_store::{RedbStore, Store};
use towpath_telemetry::admin::{EventBus, Request, Responder};

use super::Process;
use super::manual::{Capture, KeptKeys, sa_key};
use super::roles::{FromRoles, Roles};
use crate::config::Config;

/// How often what stored SAs have used up goes to the disk.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Everything that runs here.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) dataplane: Dataplane,
    pub(super) worker: Worker,
    pub(super) control: Control,
    /// Keyserver and registry, here or elsewhere.
    pub(super) roles: Roles,
    /// Which keyserver serves whom.
    pub(super) keyservers: Keyservers,
    pub(super) started: Instant,
    /// Messages of the control path that were refused, by reason.
    pub(super) refused: [u64; DropReason::COUNT],
    /// What the classifier's maps hold of each subscriber, so that a change touches its entries alone.
    compiled: HashMap<SubscriberHandle, CompiledProfile>,
    kernel: RawIpSender,
    events: EventBus,
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
    /// When replay windows were last written to the disk.
    synced: Instant,
}

/// What tests of nonces ask for.
#[cfg(debug_assertions)]
fn watched(mut stored: Stored, debug: &crate::config::Debug) -> Result<Stored> {
    if let Some(path) = &debug.nonce_log {
        towpath_crypto::esp::recorder::record_nonces(path).context("debug.nonce_log")?;
    }
    if debug.danger_start_over {
        stored.danger_start_over();
    }
    Ok(stored)
}

impl Daemon {
    /// Opens the store and makes the roles; nothing is served before [`Self::start`].
    pub(super) async fn new(
        config: Config,
        store: RedbStore,
        windows: Windows,
        dataplane: Dataplane,
        worker: Worker,
        events: EventBus,
    ) -> Result<Self> {
        let find = |operator: &str, name: &str| match store.find(operator, name) {
            Ok(found) => found.map(|subscriber| subscriber.handle),
            Err(_) => None,
        };
        let stored = Stored::open(Box::new(store.clone()), seed(), find).context("stored SAs")?;
        let stored = stored.with_windows(windows);
        #[cfg(debug_assertions)]
        let stored = watched(stored, &config.debug)?;
        let roles = Roles::new(&config, Some(store)).await?;
        let keyservers = match config.gateway.keyserver.as_slice() {
            [] => vec![roles.name().clone()],
            list => list.iter().map(|node| NodeName(node.name.clone())).collect(),
        };
        let limits = Limits {
            sealed_per_second: config.gateway.requests_per_second,
            sealed_burst: config.gateway.requests_burst,
        };
        Ok(Self {
            control: Control::new(ReservedSpi(config.gateway.reserved_spi), limits),
            roles,
            keyservers: Keyservers::new(keyservers),
            started: super::now(),
            refused: [0; DropReason::COUNT],
            compiled: HashMap::new(),
            kernel: RawIpSender::new(None).context("raw sockets")?,
            config,
            dataplane,
            worker,
            events,
            stored,
            kept: KeptKeys::new(),
            capture: None,
            captures: 0,
            degraded_sas: 0,
            synced: super::now(),
        })
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
        if let Some(keylog) = &mut self.roles.keylog {
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

    /// Up to a second of what stored SAs accepted is lost in a power failure.
    fn sync_windows(&mut self, now: Instant) {
        if now.saturating_since(self.synced) < SYNC_EVERY {
            return;
        }
        self.synced = now;
        if let Err(error) = self.stored.sync() {
            tracing::error!(%error, "replay windows do not reach the disk");
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

    /// Passes messages between the roles until nobody has anything to say.
    fn settle(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some(output) = self.control.poll_output() {
                quiet = false;
                self.carry_out(now, output);
            }
            self.roles.settle(now);
            while let Some(message) = self.roles.poll_gateway() {
                quiet = false;
                self.handle_roles(now, message);
            }
            while let Some(subscriber) = self.keyservers.poll_ask(now) {
                quiet = false;
                self.control.ask_to_register(subscriber);
            }
            while let Some(key) = self.keyservers.poll_remove(now) {
                quiet = false;
                self.carry_out(now, Output::Remove(key));
            }
            if quiet {
                return;
            }
        }
    }

    /// A message of the keyserver or the registry, wherever it is.
    fn handle_roles(&mut self, now: Instant, message: FromRoles) {
        match message {
            FromRoles::Keyserver(from, message) => {
                self.log_keys(&message);
                self.keyservers.observe(now, &from, &message);
                self.control.handle_keyserver(message);
            }
            FromRoles::Registry(message) => {
                if let FromRegistry::Answer { terminal, .. } = &message
                    && let Some(subscriber) = self.control.subscriber_at(terminal.ip())
                {
                    self.keyservers.registered(subscriber);
                }
                self.control.handle_registry(message);
            }
            FromRoles::KeyserverUp(name) => self.keyservers.went_up(now, &name),
            FromRoles::KeyserverDown(name) => self.keyservers.went_down(now, &name),
            FromRoles::RegistryUp => self.control.registry_connected(),
        }
    }

    fn log_keys(&mut self, message: &FromKeyserver) {
        if let (Some(keylog), FromKeyserver::Install(sa)) = (&mut self.roles.keylog, message) {
            keylog.sa(sa);
        }
    }

    /// To the keyserver of the subscriber the message is about. While none is up it is lost: whoever sent it repeats.
    fn ask_keyserver(&mut self, now: Instant, message: ToKeyserver) {
        let subscriber = match &message {
            ToKeyserver::FromTerminal { subscriber, .. }
            | ToKeyserver::IkeFromPeer { subscriber, .. }
            | ToKeyserver::Expiring { subscriber, .. } => *subscriber,
        };
        let Some(keyserver) = self.keyservers.of(subscriber) else {
            return self.count(DropReason::NoKeyserver);
        };
        if matches!(message, ToKeyserver::IkeFromPeer { .. }) {
            self.keyservers.active(now, subscriber);
        }
        self.roles.ask_keyserver(now, &keyserver, message);
    }

    /// A registration says which keyserver is to have the session.
    fn ask_registry(&mut self, now: Instant, mut message: ToRegistry) {
        if let ToRegistry::Register { datagram, keyserver } = &mut message
            && let Ok(header) = message::peek(&datagram.payload)
        {
            *keyserver = self.keyservers.of(header.subscriber);
        }
        self.roles.ask_registry(now, Part::Gateway, message);
    }

    fn carry_out(&mut self, now: Instant, output: Output) {
        match output {
            Output::ToKeyserver(message) => {
                if !self.manual_expired(&message) {
                    self.ask_keyserver(now, message);
                }
            }
            Output::ToRegistry(message) => self.ask_registry(now, message),
            Output::Transmit(packet) => self.transmit(&packet),
            Output::TransmitToTerminal { terminal, payload } => self.send_to_terminal(terminal, payload),
            Output::Serve {
                subscriber,
                addresses,
            } => {
                self.keyservers.serve(subscriber.handle);
                self.serve(&subscriber, &addresses);
            }
            Output::Unserve(handle) => {
                self.keyservers.forget(handle);
                self.unserve(handle);
            }
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
        let clear = super::relay::wants_clear(&self.config.relay, rules.as_deref());
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
        let compiled = compiled.map(|compiled| {
            if clear {
                compiled.with_clear_tcp()
            } else {
                compiled
            }
        });
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
        super::publish(&self.events, event);
    }
}

impl Process for Daemon {
    /// Serves the fixed attachments and the registrations that outlived the former process.
    fn start(&mut self, now: Instant) {
        self.forget_stale_profiles();
        self.install_stored();
        self.settle(now);
    }

    fn roles(&mut self) -> &mut Roles {
        &mut self.roles
    }

    fn handle_worker(&mut self, now: Instant, message: FromWorker) {
        match message {
            FromWorker::Packet { subscriber, packet } => self.control.handle_packet(now, subscriber, &packet),
            FromWorker::Notice(notice) => self.control.handle_notice(now, notice),
            FromWorker::InstallFailed(key) => {
                tracing::error!(terminal = %key.local, peer = %key.remote, "the worker refused an SA");
            }
        }
        self.settle(now);
    }

    async fn handle_admin(&mut self, now: Instant, request: Request, responder: Responder) {
        let answer = self.answer(now, request).await;
        self.settle(now);
        responder.respond(answer);
    }

    fn handle_channel(&mut self, now: Instant, event: LinkEvent) {
        self.roles.handle_channel(now, event);
        self.settle(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.roles.handle_timeout(now);
        self.keyservers.handle_timeout(now);
        self.end_idle_capture(now);
        self.sync_windows(now);
        self.settle(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let roles = self.roles.poll_timeout();
        roles.into_iter().chain(self.keyservers.poll_timeout()).min()
    }

    fn shutdown(&mut self, now: Instant) {
        self.roles.shutdown(now);
        self.settle(now);
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
