//! The keyserver: runs IKEv2 with peers in the terminals' names and hands the terminals the finished SAs
//! (spec rows K5 to K7, K10, K13).
//!
//! ```text
//!                 ┌──────────────────────── keyserver ─────────────────────────┐
//!  ToKeyserver ──►│ message receiver ─► protocol controller ─► key generator   │
//!  (gateway)      │  sessions, policy     IKE engine, pairs      adapters      │──► FromKeyserver (gateway)
//!  FromRegistry ─►│                                                            │──► ToRegistry
//!                 └─────────────────────────────────────────────────────────────┘
//! ```
//!
//! **Architecture invariant:** a synchronous state machine. Messages and time go in through `handle_*`,
//! messages come out of `poll_*`. It holds session keys, never a subscriber key; a credential lives here
//! for the length of one IKE SA, and a minute for the next one; ESP keys only until the gateway and the terminal have theirs.
#![forbid(unsafe_code)]

mod children;
mod credentials;
mod lingering;
mod mobility;
mod operate;
mod operators;
pub mod pairs;
mod policy;
mod requests;
mod sessions;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::sa::{Class, Lifetime};
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_fabric::{
    Datagram, Event, FromKeyserver, FromRegistry, NodeName, SessionGrant, ToKeyserver, ToRegistry,
};
use towpath_ike::{Budget, Endpoint, IkeSaId, IkeSaInfo};
use towpath_keyx::transfer::Backoff;

pub use crate::operate::StartError;
pub use crate::operators::OperatorLimits;

use crate::credentials::AtHand;
use crate::lingering::Lingering;
use crate::operators::{NOTHING, Operators};
use crate::pairs::{Child, Lane, PairKey, Pairs};
use crate::sessions::Sessions;

/// How long our answer to a peer waits for the terminal to have the keys, at set-up and in rekeyings. Peers repeat their
/// request after two seconds or more, and give it up after minutes.
pub const READY_WITHIN: Duration = Duration::from_secs(3);

/// How long the registry may take to answer: then the exchange has failed, and is tried again.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Limits of a keyserver.
#[derive(Debug, Clone)]
pub struct Config {
    /// IKE engine: ports, retransmission, half-open limits.
    pub ike: towpath_ike::Config,
    /// Pairs (terminal, peer) one subscriber may have at a time.
    pub pairs_per_subscriber: usize,
    /// Wait after a failed exchange before the next attempt; doubled with each failure in a row.
    pub retry_after: Duration,
    /// Longest such wait.
    pub retry_after_max: Duration,
    /// Retransmission of key transfers.
    pub transfers: Backoff,
    /// Limits of a connection's own SA: it wants a replacement after the first of these if it was used, and ends after the
    /// second.
    pub connection: Lifetime,
    /// How long a gateway still serves an SA that was replaced and deleted: packets on their way under its keys.
    pub linger: Duration,
    /// How long the registry's answer about a terminal and a peer serves exchanges that follow; zero: one.
    pub credentials_for: Duration,
    /// Limits of each operator.
    pub operators: OperatorLimits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ike: towpath_ike::Config {
                ready_within: READY_WITHIN,
                mobike: true,
                ..towpath_ike::Config::default()
            },
            pairs_per_subscriber: 64,
            retry_after: Duration::from_secs(1),
            retry_after_max: Duration::from_secs(60),
            transfers: Backoff::default(),
            connection: Lifetime {
                soft_seconds: 300,
                hard_seconds: 420,
                ..Lifetime::default()
            },
            linger: Duration::from_secs(5),
            credentials_for: Duration::from_secs(60),
            operators: OperatorLimits::default(),
        }
    }
}

/// Who waits for a credential.
#[derive(Debug, Clone, Copy)]
enum Waiting {
    /// We are to start the exchange of this pair.
    Initiate(PairKey),
    /// The peer started it.
    Respond(PairKey, IkeSaId),
}

/// What an IKE SA was negotiated for.
#[derive(Debug, Clone, Copy)]
struct Terms {
    class: Class,
    lane: Lane,
}

/// A keyserver. `K` is the key generator (K6), `R` the source of randomness for keys.
pub struct Keyserver<K: KeyGenerator, R: Rng> {
    config: Config,
    endpoint: Endpoint<K, R>,
    rng: R,
    sessions: Sessions,
    pairs: Pairs,
    /// Questions to the registry, and until when each waits for its answer.
    waiting: BTreeMap<u64, (Instant, Waiting)>,
    next_request: u64,
    at_hand: AtHand,
    operators: Operators,
    initiations: HashMap<u64, PairKey>,
    /// What each IKE SA was negotiated for.
    terms: HashMap<IkeSaId, Terms>,
    next_tag: u64,
    lingering: Lingering,
    to_gateway: VecDeque<FromKeyserver>,
    /// The same, with the gateway each is for.
    addressed: VecDeque<(Option<NodeName>, FromKeyserver)>,
    /// The gateway whose message is being handled.
    from: Option<NodeName>,
    /// The IKE SA whose command is being carried out.
    about: Option<IkeSaId>,
    to_registry: VecDeque<ToRegistry>,
}

impl<K: KeyGenerator, R: Rng + Clone> Keyserver<K, R> {
    /// A keyserver without subscribers.
    pub fn new(config: Config, keygen: K, rng: R) -> Self {
        let mut endpoint = Endpoint::new(config.ike.clone(), keygen, rng.clone());
        let none = Budget {
            ike_sas: 0,
            half_open: 0,
        };
        endpoint.limit(NOTHING, none);
        Self {
            endpoint,
            rng,
            sessions: Sessions::new(config.transfers),
            at_hand: AtHand::new(config.credentials_for),
            operators: Operators::default(),
            pairs: Pairs::default(),
            config,
            waiting: BTreeMap::new(),
            next_request: 1,
            initiations: HashMap::new(),
            terms: HashMap::new(),
            next_tag: 1,
            lingering: Lingering::default(),
            to_gateway: VecDeque::new(),
            addressed: VecDeque::new(),
            from: None,
            about: None,
            to_registry: VecDeque::new(),
        }
    }

    /// A message of the gateway called `from`.
    pub fn handle_gateway_of(&mut self, now: Instant, from: &NodeName, message: ToKeyserver) {
        self.from = Some(from.clone());
        self.handle_gateway(now, message);
        self.from = None;
    }

    /// A message of the only gateway there is.
    pub fn handle_gateway(&mut self, now: Instant, message: ToKeyserver) {
        let outcome = match message {
            ToKeyserver::FromTerminal { subscriber, datagram } => {
                self.handle_sealed(now, subscriber, &datagram)
            }
            ToKeyserver::IkeFromPeer { subscriber, datagram } => self.handle_ike(now, subscriber, &datagram),
            ToKeyserver::Expiring {
                subscriber,
                spi_in,
                hard,
            } => {
                self.handle_expiring(now, subscriber, spi_in, hard);
                Ok(())
            }
        };
        if let Err(reason) = outcome {
            self.refuse(reason);
        }
        self.settle(now);
    }

    /// A message of the registry that is meant for keyservers.
    pub fn handle_registry(&mut self, now: Instant, message: FromRegistry) {
        match message {
            FromRegistry::Session(grant) => self.begin_session(grant),
            FromRegistry::SessionEnded { subscriber } => self.end_subscriber(now, subscriber),
            FromRegistry::Credential {
                request,
                subscriber,
                credential,
            } => {
                self.handle_credential(now, request, subscriber, credential);
            }
            FromRegistry::Registered { subscribers } => {
                // What changed while there was no channel was not told.
                self.at_hand.forget_all();
                self.end_others(now, &subscribers);
            }
            // Meant for gateways.
            FromRegistry::Complete
            | FromRegistry::Grant { .. }
            | FromRegistry::Withdraw { .. }
            | FromRegistry::Answer { .. }
            | FromRegistry::Refused(_)
            | FromRegistry::Event(_) => {}
        }
        self.settle(now);
    }

    /// Lets every due timer act.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.endpoint.handle_timeout(now);
        self.pairs.release_idle(now);
        self.give_up_questions(now);
        self.at_hand.handle_timeout(now);
        while let Some(remove) = self.lingering.poll(now) {
            self.to_gateway.push_back(remove);
        }
        self.settle(now);
    }

    /// When [`Self::handle_timeout`] is next wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let engine = self.endpoint.poll_timeout().map(|(at, _)| at);
        [
            engine,
            self.sessions.poll_timeout(),
            self.lingering.poll_timeout(),
            self.at_hand.poll_timeout(),
            // All wait equally long: the oldest is the first.
            self.waiting.values().next().map(|(until, _)| *until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next message for the only gateway there is.
    pub fn poll_gateway(&mut self) -> Option<FromKeyserver> {
        self.poll_gateway_of().map(|(_, message)| message)
    }

    /// The next message for a gateway, and which: the one where the terminal registered. `None`: not known, the message
    /// being about nobody who is here.
    pub fn poll_gateway_of(&mut self) -> Option<(Option<NodeName>, FromKeyserver)> {
        self.address();
        self.addressed.pop_front()
    }

    /// Decides for every message where it goes; before sessions end, which say it.
    fn address(&mut self) {
        while let Some(message) = self.to_gateway.pop_front() {
            let subscriber = match &message {
                FromKeyserver::IkeToPeer(datagram) => self.owner_of(datagram.source.ip()),
                FromKeyserver::KeyToTerminal { subscriber, .. }
                | FromKeyserver::Remove { subscriber, .. } => Some(*subscriber),
                FromKeyserver::Install(sa) => Some(sa.subscriber),
                FromKeyserver::Event(event) => event.terminal.and_then(|local| self.owner_of(local)),
                FromKeyserver::Refused(_) => None,
            };
            let gateway = subscriber.and_then(|subscriber| self.sessions.gateway(subscriber));
            let gateway = gateway.or_else(|| self.from.clone());
            self.addressed.push_back((gateway, message));
        }
    }

    /// The next message for the registry.
    pub fn poll_registry(&mut self) -> Option<ToRegistry> {
        self.to_registry.pop_front()
    }

    /// The IKE SAs, for people.
    pub fn ike_sas(&self, now: Instant) -> impl Iterator<Item = IkeSaInfo> + '_ {
        self.endpoint.list(now)
    }

    /// The CHILD SAs, for people.
    pub fn child_sas(&self) -> impl Iterator<Item = (PairKey, SubscriberHandle, &Child)> + '_ {
        self.pairs
            .iter()
            .flat_map(|(key, pair)| pair.children.iter().map(|child| (*key, pair.subscriber, child)))
    }

    /// Name of the subscriber that registered with `address`; the address itself if none did.
    pub fn subscriber_at(&self, address: IpAddr) -> String {
        match self.owner_of(address) {
            Some(subscriber) => self.sessions.name(subscriber),
            None => address.to_string(),
        }
    }

    /// What an IKE SA is for.
    pub fn lane(&self, ike: IkeSaId) -> Lane {
        self.terms.get(&ike).map_or(Lane::default(), |terms| terms.lane)
    }

    /// Ends every IKE SA with a Delete: the peers learn at once that this keyserver goes away.
    pub fn shutdown(&mut self, now: Instant) {
        let ids: Vec<IkeSaId> = self.endpoint.list(now).map(|info| info.id).collect();
        for id in ids {
            // Only unknown SAs are an error, and these were just listed.
            let _ = self.endpoint.delete_ike(now, id);
        }
        self.settle(now);
    }

    fn handle_ike(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        datagram: &Datagram,
    ) -> Result<(), DropReason> {
        // Only for a terminal that is here, at an address its subscriber registered.
        if !self.sessions.owns(subscriber, datagram.destination.ip()) {
            return Err(DropReason::NotServed);
        }
        self.endpoint
            .handle_datagram(now, datagram.source, datagram.destination, &datagram.payload)
    }

    fn begin_session(&mut self, grant: SessionGrant) {
        self.at_hand.forget(grant.subscriber);
        let (operator, new) = self.operators.number(&grant.operator);
        if new {
            self.endpoint.limit(operator, self.config.operators.share);
        }
        self.sessions.grant(grant, operator);
    }

    /// The subscriber left, or was removed: its SAs end.
    fn end_subscriber(&mut self, now: Instant, subscriber: SubscriberHandle) {
        self.at_hand.forget(subscriber);
        let ids: Vec<IkeSaId> = self
            .pairs
            .of(subscriber)
            .flat_map(|(_, pair)| pair.children.iter().map(|child| child.ike))
            .collect();
        for id in ids {
            let _ = self.endpoint.delete_ike(now, id);
        }
        self.settle(now);
        self.to_gateway.extend(self.lingering.end(subscriber));
        self.address();
        self.sessions.end(subscriber);
    }

    /// Ends what subscribers have here that are registered no more.
    fn end_others(&mut self, now: Instant, registered: &[SubscriberHandle]) {
        for subscriber in self.sessions.all_but(registered) {
            self.end_subscriber(now, subscriber);
        }
    }

    /// Carries what the engine wants into our own queues.
    fn settle(&mut self, now: Instant) {
        while let Some(command) = self.endpoint.poll_command() {
            self.about = Some(command.ike());
            self.handle_command(now, command);
            self.about = None;
        }
        self.give_up_transfers(now);
        while let Some(sealed) = self.sessions.poll_transmit(now) {
            self.to_gateway.push_back(sealed.into());
        }
        while let Some(transmit) = self.endpoint.poll_transmit() {
            self.to_gateway.push_back(FromKeyserver::IkeToPeer(Datagram {
                source: transmit.source,
                destination: transmit.destination,
                payload: transmit.payload,
            }));
        }
        self.address();
    }

    fn refuse(&mut self, reason: DropReason) {
        self.to_gateway.push_back(FromKeyserver::Refused(reason.into()));
    }

    fn event(&mut self, pair: Option<PairKey>, subscriber: SubscriberHandle, kind: &str, text: String) {
        let name = self.sessions.name(subscriber);
        self.to_gateway.push_back(FromKeyserver::Event(Event {
            subscriber: name,
            terminal: pair.map(|pair| pair.local),
            peer: pair.map(|pair| pair.remote),
            ike: self.about.map(|ike| ike.0.0),
            kind: kind.into(),
            text,
        }));
    }

    fn owner_of(&self, local: IpAddr) -> Option<SubscriberHandle> {
        self.sessions.owner_of(local)
    }
}
