//! One IKE SA: its state, its windows, its CHILD SAs.

mod end;
mod receive;
mod send;
mod timers;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator};
use towpath_base::ids::{IkeSpi, MessageId, Spi};
use towpath_base::profile::IkeId;
use towpath_base::sa::{Mode, UdpEncap};
use towpath_base::selector::TrafficSelector;

use crate::command::{IkeSaInfo, IkeState, Role};
use crate::config::{BudgetId, IkeSaId, Policy, Timer};
use crate::fragment::Fragments;
use crate::keys::IkeKeys;
use crate::tasks::{Awaited, Task};

pub(crate) use receive::{Path, receive};
pub(crate) use send::{answer, pump, release, say_once};
pub(crate) use timers::{delete_replaced, fire, retry_rekey_at};

/// An IKE SA under a given key generator.
pub(crate) type Sa<K> = IkeSa<<K as KeyGenerator>::Private>;

/// How far an IKE SA is. Only [`Established`](Self::Established) has CHILD SAs, and only a proven AUTH leads there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Responder: the owner was asked for the policy.
    WaitPolicy,
    /// Initiator: IKE_SA_INIT is on its way, or answered and IKE_AUTH not sent yet.
    InitSent,
    /// Responder: IKE_SA_INIT is answered.
    InitAnswered,
    /// Initiator: IKE_AUTH is on its way.
    AuthSent,
    /// Both sides authenticated.
    Established,
    /// Established once; our Delete is on its way, or a newer IKE SA took over.
    Deleting,
    /// Over. Answers retransmissions of the last request until then.
    Closed(Instant),
}

/// What lives from IKE_SA_INIT to the end of IKE_AUTH.
pub(crate) struct Init<P> {
    /// Initiator's private value, until the response uses it up.
    pub(crate) private: Option<P>,
    pub(crate) group: DhGroup,
    /// Initiator's public value.
    pub(crate) public: Vec<u8>,
    pub(crate) ni: Vec<u8>,
    pub(crate) nr: Vec<u8>,
    /// IKE_SA_INIT request as sent or received: AUTH covers it.
    pub(crate) message_i: Vec<u8>,
    /// IKE_SA_INIT response.
    pub(crate) message_r: Vec<u8>,
    /// Cookie the responder wants back.
    pub(crate) cookie: Vec<u8>,
    /// IKE_SA_INIT requests so far; cookies and other groups are answered a bounded number of times.
    pub(crate) attempts: u8,
    pub(crate) extra: Extra<P>,
}

/// What IKE_SA_INIT agreed on beyond the suite, and what becomes of it until AUTH.
pub(crate) struct Extra<P> {
    /// Hashes the peer can check signatures with (RFC 7427).
    pub(crate) hashes: Vec<u16>,
    /// Both sides know how to use a post-quantum preshared key (RFC 8784).
    pub(crate) ppk: bool,
    /// The additional key exchange that is still to be done: no IKE_AUTH before it.
    pub(crate) pending: Option<DhGroup>,
    /// Our private value of it, as initiator.
    pub(crate) private: Option<P>,
    /// IKE_INTERMEDIATE exchanges done.
    pub(crate) exchanges: u32,
    /// IntAuth of what the initiator sent (RFC 9242 §3.3.2).
    pub(crate) int_auth_i: Vec<u8>,
    /// IntAuth of what the responder sent.
    pub(crate) int_auth_r: Vec<u8>,
    /// Solution of the puzzle the responder set (RFC 8019).
    pub(crate) solution: Vec<u8>,
    /// Keys before the additional key exchange: its request may come again under them.
    pub(crate) previous: Option<Box<IkeKeys>>,
}

impl<P> Default for Extra<P> {
    fn default() -> Self {
        Self {
            hashes: Vec::new(),
            ppk: false,
            pending: None,
            private: None,
            exchanges: 0,
            int_auth_i: Vec::new(),
            int_auth_r: Vec::new(),
            solution: Vec::new(),
            previous: None,
        }
    }
}

/// Where NATs were found (RFC 7296 §2.23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Nat {
    pub(crate) local: bool,
    pub(crate) remote: bool,
}

/// A CHILD SA, without its keys: those left with the command that announced it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) spi_in: Spi,
    pub(crate) spi_out: Spi,
    pub(crate) soft_at: Option<Instant>,
    pub(crate) hard_at: Option<Instant>,
    /// A Delete for it is on its way or queued.
    pub(crate) deleting: bool,
    /// A rekeying of ours is on its way or queued.
    pub(crate) rekeying: bool,
    pub(crate) local_ts: Vec<TrafficSelector>,
    pub(crate) remote_ts: Vec<TrafficSelector>,
    /// A newer one took over; its Delete is to come.
    pub(crate) replaced: bool,
    /// Replaced by a rekeying of ours: when its Delete goes out at the latest.
    pub(crate) delete_at: Option<Instant>,
    /// SPI of packets to us of the one it replaces.
    pub(crate) replaces: Option<Spi>,
    /// Lost a collision before the owner was told of it (RFC 7296 §2.8.1).
    pub(crate) silent: bool,
    pub(crate) mode: Mode,
}

/// A response that waits until the owner is ready with what it announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Withheld {
    /// SPI of packets to us of the CHILD SA in it.
    pub(crate) spi_in: Spi,
    /// When it is sent at the latest.
    pub(crate) due: Instant,
}

/// The peer's rekeying of this IKE SA, answered while ours was on its way (RFC 7296 §2.25.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rival {
    /// The IKE SA it made; none yet while an additional key exchange is to come.
    pub(crate) heir: Option<IkeSaId>,
    /// The lower of its two nonces.
    pub(crate) lowest: Vec<u8>,
}

/// A request of ours that is not answered yet; the window is one (RFC 7296 §2.3).
pub(crate) struct Outstanding<P> {
    pub(crate) task: Task<P>,
    pub(crate) id: MessageId,
    pub(crate) packet: Vec<u8>,
    pub(crate) count: u8,
    pub(crate) due: Instant,
}

/// One IKE SA.
pub(crate) struct IkeSa<P> {
    pub(crate) id: IkeSaId,
    pub(crate) role: Role,
    pub(crate) state: State,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) spi_i: IkeSpi,
    pub(crate) spi_r: IkeSpi,
    pub(crate) policy: Option<Box<Policy>>,
    /// Number of the wish this SA is to fulfil.
    pub(crate) tag: Option<u64>,
    pub(crate) remote_id: Option<IkeId>,
    /// No other IKE SA of the pair existed when this one was started (INITIAL_CONTACT).
    pub(crate) first_contact: bool,
    /// Which of several relations between the same two addresses it serves: see [`Endpoint::initiate_beside`].
    ///
    /// [`Endpoint::initiate_beside`]: crate::Endpoint::initiate_beside
    pub(crate) lane: u64,
    pub(crate) nat: Nat,
    pub(crate) init: Option<Box<Init<P>>>,
    /// Initiator's nonce, which decides between simultaneous starts.
    pub(crate) ni: Vec<u8>,
    pub(crate) keys: Option<Box<IkeKeys>>,
    /// Next IV of an AEAD: a counter never repeats under one key.
    pub(crate) next_iv: u64,
    pub(crate) next_request: MessageId,
    pub(crate) outstanding: Option<Outstanding<P>>,
    pub(crate) queue: VecDeque<Task<P>>,
    pub(crate) expected: MessageId,
    pub(crate) last_response: Option<(MessageId, Vec<u8>)>,
    pub(crate) children: Vec<Child>,
    pub(crate) created_at: Instant,
    pub(crate) established_at: Option<Instant>,
    pub(crate) last_heard: Instant,
    pub(crate) rekey_at: Option<Instant>,
    pub(crate) redundant_at: Option<Instant>,
    /// IKE_AUTH waits until then for the other of two simultaneous starts.
    pub(crate) hold_until: Option<Instant>,
    /// It has waited already.
    pub(crate) held: bool,
    /// A rekeyed SA that the peer should have deleted by then.
    pub(crate) expire_at: Option<Instant>,
    /// The deadline the endpoint's timer table has for it.
    pub(crate) scheduled: Option<(Instant, Timer)>,
    /// Counted among the half-open ones.
    pub(crate) half_open: bool,
    /// The last response is held back.
    pub(crate) withheld: Option<Withheld>,
    pub(crate) rival: Option<Rival>,
    /// The CHILD SAs are about to move to another IKE SA: nothing new starts here.
    pub(crate) moving: bool,
    /// When it is authenticated anew.
    pub(crate) reauth_at: Option<Instant>,
    /// The IKE SA this one is to take over from, and the CHILD SA its first one replaces.
    pub(crate) succeeds: Option<(IkeSaId, Option<Spi>)>,
    /// Both sides know MOBIKE; our role in the first IKE SA of the series.
    pub(crate) mobike: Option<Role>,
    /// How the last authentic message came.
    pub(crate) path: Option<Path>,
    /// Whose share it counts against.
    pub(crate) budget: BudgetId,
    /// Made by a rekeying that has not won: the owner does not know of it.
    pub(crate) silent: bool,
    pub(crate) fragments: Fragments,
    /// Rekeyings of the peer's whose additional key exchange is to come.
    pub(crate) followups: Vec<Awaited>,
    /// Rekeyings of ours in a row that the peer forgot before theirs.
    pub(crate) forgotten: u8,
}

impl<P> IkeSa<P> {
    /// An SA without keys, in `state`.
    pub(crate) fn new(
        id: IkeSaId,
        role: Role,
        state: State,
        local: SocketAddr,
        remote: SocketAddr,
        other_spi: IkeSpi,
        now: Instant,
    ) -> Self {
        let (spi_i, spi_r) = match role {
            Role::Initiator => (id.0, other_spi),
            Role::Responder => (other_spi, id.0),
        };
        Self {
            id,
            role,
            state,
            local,
            remote,
            spi_i,
            spi_r,
            policy: None,
            tag: None,
            remote_id: None,
            first_contact: false,
            lane: 0,
            nat: Nat::default(),
            init: None,
            ni: Vec::new(),
            keys: None,
            next_iv: 0,
            next_request: MessageId(0),
            outstanding: None,
            queue: VecDeque::new(),
            expected: MessageId(0),
            last_response: None,
            children: Vec::new(),
            created_at: now,
            established_at: None,
            last_heard: now,
            rekey_at: None,
            redundant_at: None,
            hold_until: None,
            held: false,
            expire_at: None,
            scheduled: None,
            half_open: false,
            withheld: None,
            rival: None,
            moving: false,
            reauth_at: None,
            succeeds: None,
            mobike: None,
            path: None,
            budget: BudgetId::default(),
            silent: false,
            fragments: Fragments::default(),
            followups: Vec::new(),
            forgotten: 0,
        }
    }

    /// SPI the peer chose.
    pub(crate) const fn peer_spi(&self) -> IkeSpi {
        match self.role {
            Role::Initiator => self.spi_r,
            Role::Responder => self.spi_i,
        }
    }

    pub(crate) const fn is_half_open(&self) -> bool {
        matches!(self.state, State::WaitPolicy | State::InitAnswered)
    }

    /// Counts against the limits: half-open, or failed and not forgotten yet.
    pub(crate) const fn is_unproven(&self) -> bool {
        let failed = self.is_closed() && self.established_at.is_none();
        self.is_half_open() || failed && matches!(self.role, Role::Responder)
    }

    pub(crate) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// Encapsulation of ESP, ports as they are now.
    pub(crate) const fn encap(&self) -> Option<UdpEncap> {
        if !self.nat.local && !self.nat.remote {
            return None;
        }
        Some(UdpEncap {
            local_port: self.local.port(),
            remote_port: self.remote.port(),
        })
    }

    pub(crate) fn child(&self, spi_in: Spi) -> Option<&Child> {
        self.children.iter().find(|child| child.spi_in == spi_in)
    }

    pub(crate) fn child_mut(&mut self, spi_in: Spi) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.spi_in == spi_in)
    }

    /// For people. `None` once it is over.
    pub(crate) fn info(&self, now: Instant) -> Option<IkeSaInfo> {
        let state = match self.state {
            State::WaitPolicy | State::InitSent | State::InitAnswered => IkeState::Connecting,
            State::AuthSent => IkeState::Authenticating,
            State::Established => IkeState::Established,
            State::Deleting => IkeState::Deleting,
            State::Closed(_) => return None,
        };
        Some(IkeSaInfo {
            id: self.id,
            role: self.role,
            state,
            local: self.local,
            remote: self.remote,
            spi_i: self.spi_i,
            spi_r: self.spi_r,
            local_id: self.policy.as_ref().map(|policy| policy.local_id.clone()),
            remote_id: self.remote_id.clone(),
            suite: self.keys.as_ref().map(|keys| keys.suite),
            age_seconds: self.established_at.map(|at| now.saturating_since(at).as_secs()),
            children: self
                .children
                .iter()
                .map(|child| (child.spi_in, child.spi_out))
                .collect(),
            rekey_in_seconds: self.rekey_at.map(|at| at.saturating_since(now).as_secs()),
        })
    }
}
