//! Registrations, credentials, and what follows from them for gateways and keyservers.

mod registrations;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use towpath_base::credentials::Credentials;
use towpath_base::crypto::Rng;
use towpath_base::profile::{Attachment, PeerPolicy, Subscriber};
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_fabric::{Event, FromRegistry, NodeName, ToRegistry};
use towpath_store::{Store, StoreError};
use towpath_telemetry::admin::{self, AdminError, Reply, SubscriberRequest};

use crate::admin::{Change, apply};
use crate::limiter::Limiter;
use crate::locations::{Locations, Registered};

use self::registrations::Held;

/// Limits and terms of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Seconds a registration lasts.
    pub lifetime_seconds: u32,
    /// Seconds between signs of life of a silent terminal; 0 for none.
    pub keepalive_seconds: u32,
    /// Registrations of one terminal per minute, on average.
    pub registrations_per_minute: u32,
    /// Registrations of one terminal at once.
    pub registrations_burst: u32,
    /// Registrations stored by one disk flush. With more than one they wait for the next
    /// [`Registry::handle_timeout`], which whoever runs the registry then calls after each turn.
    pub registrations_per_flush: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lifetime_seconds: 3600,
            keepalive_seconds: 20,
            registrations_per_minute: 20,
            registrations_burst: 10,
            registrations_per_flush: 1,
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To gateways.
    Gateway(Whom),
    /// To keyservers.
    Keyserver(Whom),
}

/// Which of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// All that are connected.
    All,
    /// This one.
    One(NodeName),
    /// All but this one.
    Except(NodeName),
}

impl Whom {
    /// Whether `name` is one of them.
    pub fn includes(&self, name: &NodeName) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == name,
            Self::Except(one) => one != name,
        }
    }

    fn at(gateway: Option<&NodeName>) -> Self {
        gateway.map_or(Self::All, |gateway| Self::One(gateway.clone()))
    }
}

/// A registry.
pub struct Registry<R: Rng> {
    config: Config,
    store: Box<dyn Store>,
    rng: R,
    /// Changes with every start: sessions do not survive one, and terminals learn it from this.
    epoch: u64,
    /// Point in time that corresponds to `unix` seconds since 1970.
    origin: (Instant, u64),
    locations: Locations,
    limiter: Limiter,
    sessions: u32,
    /// Registrations to be stored, of different subscribers at different addresses.
    held: Vec<Held>,
    messages: VecDeque<(Destination, FromRegistry)>,
}

/// A store that fails is logged; the message is not answered, and the terminal tries again.
fn failed(error: &StoreError) {
    tracing::error!(%error, "registry: the store failed");
}

impl<R: Rng> Registry<R> {
    /// A registry over `store`. `unix_now`: seconds since 1970 at `now`. Grants for fixed attachments and for
    /// registrations that still last are ready to be polled.
    pub fn new(
        store: Box<dyn Store>,
        config: Config,
        rng: R,
        now: Instant,
        unix_now: u64,
    ) -> Result<Self, StoreError> {
        let epoch = store.next_epoch()?;
        let limiter = Limiter::new(config.registrations_per_minute, config.registrations_burst);
        let mut registry = Self {
            config,
            store,
            rng,
            epoch,
            origin: (now, unix_now),
            locations: Locations::default(),
            limiter,
            sessions: 0,
            held: Vec::new(),
            messages: VecDeque::new(),
        };
        for subscriber in registry.store.fixed()? {
            registry.grant(Whom::All, subscriber, Vec::new());
        }
        for (handle, location) in registry.store.locations()? {
            let left = location.expires_unix.saturating_sub(unix_now);
            let subscriber = registry.store.get(handle)?.filter(|_| left > 0);
            let Some(subscriber) = subscriber else {
                registry.store.forget_location(handle)?;
                continue;
            };
            // A clock that was wrong must not make a registration last longer than it may.
            let left = left.min(registry.config.lifetime_seconds.into());
            let registered = Registered {
                addresses: location.addresses.clone(),
                expires: now + Duration::from_secs(left),
                gateway: None,
                session: None,
            };
            registry.locations.insert(handle, registered);
            if subscriber.attachment == Attachment::Registered {
                registry.grant(Whom::All, subscriber, location.addresses);
            }
        }
        Ok(registry)
    }

    /// A gateway is connected, for the first time or again: what it is to serve.
    ///
    /// # Errors
    /// The store failed; the gateway is told nothing.
    pub fn gateway_connected(&mut self, gateway: &NodeName) -> Result<(), StoreError> {
        self.store_held();
        let here = || Whom::One(gateway.clone());
        for subscriber in self.store.fixed()? {
            self.grant(here(), subscriber, Vec::new());
        }
        for (handle, addresses) in self.locations.at(gateway) {
            if let Some(subscriber) = self.store.get(handle)?
                && subscriber.attachment == Attachment::Registered
            {
                self.grant(here(), subscriber, addresses);
            }
        }
        self.send(Destination::Gateway(here()), FromRegistry::Complete);
        Ok(())
    }

    /// A keyserver is connected, for the first time or again: who is gone it may not have heard.
    pub fn keyserver_connected(&mut self, keyserver: &NodeName) {
        self.store_held();
        let subscribers = self.locations.subscribers();
        let to = Destination::Keyserver(Whom::One(keyserver.clone()));
        self.send(to, FromRegistry::Registered { subscribers });
    }

    /// A message of the gateway or the keyserver called `from`.
    pub fn handle(&mut self, now: Instant, from: &NodeName, message: ToRegistry) {
        if !matches!(message, ToRegistry::Register { .. }) {
            // What was registered before this message is registered when it is handled.
            self.store_held();
        }
        match message {
            ToRegistry::Register { datagram, keyserver } => {
                if let Err(reason) = self.register(now, from, keyserver, &datagram) {
                    self.refuse(from, reason);
                }
            }
            // A terminal has one keyserver: any other learns now that it is not the one any more. What says so of
            // an older session comes late.
            ToRegistry::SessionConfirmed { subscriber, session } => {
                let registered = self.locations.get(subscriber);
                if registered.is_some_and(|registered| registered.session == Some(session)) {
                    let others = Destination::Keyserver(Whom::Except(from.clone()));
                    self.send(others, FromRegistry::SessionEnded { subscriber });
                }
            }
            ToRegistry::Credential {
                request,
                subscriber,
                peer,
                level,
            } => {
                let credential = self.credential(subscriber, peer, level);
                let answer = FromRegistry::Credential {
                    request,
                    subscriber,
                    credential,
                };
                self.send(Destination::Keyserver(Whom::One(from.clone())), answer);
            }
            ToRegistry::LocationExpired { subscriber } => self.end(subscriber, "was not heard of"),
        }
    }

    /// Ends registrations whose time has come, and stores those that wait for it.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.store_held();
        while let Some(subscriber) = self.locations.expired(now) {
            self.end(subscriber, "registration ended");
        }
    }

    /// When [`Registry::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let held = self.held.first().map(|held| held.at);
        held.into_iter().chain(self.locations.next_expiry()).min()
    }

    /// The next message to send.
    pub fn poll(&mut self) -> Option<(Destination, FromRegistry)> {
        self.messages.pop_front()
    }

    /// A command about subscribers.
    pub fn handle_admin(&mut self, now: Instant, request: SubscriberRequest) -> Result<Reply, AdminError> {
        self.store_held();
        let (mut reply, changes) = apply(&*self.store, request)?;
        for change in changes {
            self.follow(change);
        }
        match &mut reply {
            Reply::Subscriber(shown) => shown.location = self.location(now, shown.subscriber.handle),
            Reply::Subscribers(page) => {
                let locations = page
                    .records
                    .iter()
                    .map(|record| self.location(now, record.subscriber.handle));
                page.locations = locations.collect();
            }
            _ => {}
        }
        Ok(reply)
    }

    /// Terminals registered now.
    pub fn registered(&self) -> u64 {
        self.locations.len() as u64
    }

    /// Subscribers in the store; 0 if it fails.
    pub fn subscribers(&self) -> u64 {
        self.store.count().unwrap_or_else(|error| {
            failed(&error);
            0
        })
    }

    /// The subscriber with this handle.
    pub fn subscriber(&self, handle: SubscriberHandle) -> Option<Subscriber> {
        self.store.get(handle).unwrap_or_else(|error| {
            failed(&error);
            None
        })
    }

    fn refuse(&mut self, gateway: &NodeName, reason: DropReason) {
        let to = Destination::Gateway(Whom::One(gateway.clone()));
        self.send(to, FromRegistry::Refused(reason.into()));
    }

    fn send(&mut self, destination: Destination, message: FromRegistry) {
        self.messages.push_back((destination, message));
    }

    fn grant(&mut self, gateways: Whom, subscriber: Subscriber, addresses: Vec<IpAddr>) {
        let grant = FromRegistry::Grant {
            subscriber,
            addresses,
        };
        self.send(Destination::Gateway(gateways), grant);
    }

    fn event(&mut self, gateways: Whom, name: &str, terminal: Option<IpAddr>, kind: &str, text: String) {
        let event = Event {
            subscriber: name.into(),
            terminal,
            peer: None,
            ike: None,
            kind: kind.into(),
            text,
        };
        self.send(Destination::Gateway(gateways), FromRegistry::Event(event));
    }

    fn location(&self, now: Instant, handle: SubscriberHandle) -> Option<admin::Location> {
        self.locations.get(handle).map(|registered| admin::Location {
            addresses: registered.addresses.clone(),
            expires_in_seconds: registered.expires.saturating_since(now).as_secs(),
        })
    }

    // -- credentials --------------------------------------------------------------------------------------

    /// Policy and credentials for one peer, if the subscriber may talk to it at this level.
    fn credential(
        &self,
        handle: SubscriberHandle,
        peer: IpAddr,
        level: u8,
    ) -> Option<(PeerPolicy, Credentials)> {
        let (subscriber, secrets) = self.known(handle).ok()?;
        let matches = |policy: &PeerPolicy| policy.level == level && policy.peer.contains(peer);
        let index = subscriber.peers.iter().position(matches)?;
        let credentials = secrets.credentials.get(index)?.clone();
        Some((subscriber.peers.into_iter().nth(index)?, credentials))
    }

    // -- administration -----------------------------------------------------------------------------------

    /// Tells gateway and keyserver what an operator changed.
    fn follow(&mut self, change: Change) {
        match change {
            Change::Added(new) => self.attach(new),
            Change::Replaced { old, new } => {
                self.detach(&old, "was replaced");
                self.attach(new);
            }
            Change::Removed(old) => self.detach(&old, "was removed"),
            Change::Profile(new) if new.attachment == Attachment::Fixed => {
                self.grant(Whom::All, new, Vec::new())
            }
            Change::Profile(new) => {
                let registered = self.locations.get(new.handle);
                if let Some(registered) = registered {
                    let there = Whom::at(registered.gateway.as_ref());
                    let addresses = registered.addresses.clone();
                    self.grant(there, new, addresses);
                }
            }
        }
    }

    /// Serves a fixed attachment; whoever is registered at its addresses has to give way.
    fn attach(&mut self, new: Subscriber) {
        if new.attachment != Attachment::Fixed {
            return;
        }
        for prefix in &new.addresses {
            for other in self.locations.inside(*prefix) {
                if other != new.handle {
                    self.end(other, "address was given to another");
                }
            }
        }
        self.grant(Whom::All, new, Vec::new());
    }

    /// Everything of a subscriber ends, registered or not.
    fn detach(&mut self, old: &Subscriber, why: &str) {
        let subscriber = old.handle;
        let gone = self.locations.remove(subscriber);
        self.send(
            Destination::Keyserver(Whom::All),
            FromRegistry::SessionEnded { subscriber },
        );
        self.send(
            Destination::Gateway(Whom::All),
            FromRegistry::Withdraw { subscriber },
        );
        let terminal = gone.and_then(|gone| gone.addresses.first().copied());
        self.event(Whom::All, &old.name, terminal, "unregistered", why.into());
    }
}

/// The store failed: nothing is known about the subscriber now.
fn internal(error: StoreError) -> DropReason {
    failed(&error);
    DropReason::KeyxUnknownSubscriber
}
