//! Sealed conversations with terminals: sessions the registry granted, and what is under way in them.
//!
//! A new session is *pending* until the terminal first uses it: a replayed or forged registration gets the
//! registry's attention, never the terminal's place. Until then the older one stays in force.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_fabric::{FromKeyserver, NodeName, SessionGrant, SessionId};
use towpath_ike::BudgetId;
use towpath_keyx::message::{
    FromTerminal, Operation, Outcome, ProxyReply, RefuseReason, SaName, ToTerminal, TransferAck,
    TransferResult,
};
use towpath_keyx::transfer::{Backoff, Done, Sender};
use towpath_keyx::{NetworkSession, SessionKeys};

/// Key transfers one terminal may leave unacknowledged.
const MAX_TRANSFERS: usize = 64;

/// A sealed datagram that waits to be sent.
pub(crate) struct Sealed {
    subscriber: SubscriberHandle,
    terminal: IpAddr,
    datagram: Vec<u8>,
}

impl From<Sealed> for FromKeyserver {
    fn from(sealed: Sealed) -> Self {
        let Sealed {
            subscriber,
            terminal,
            datagram,
        } = sealed;
        Self::KeyToTerminal {
            subscriber,
            terminal,
            sealed: datagram,
        }
    }
}

/// A message of a terminal that was authentic and new.
pub(crate) struct Opened {
    /// What it says.
    pub(crate) message: FromTerminal,
    /// Set when it was the first under its session, which is the one in force from now on.
    pub(crate) confirmed: Option<SessionId>,
    /// Installations the older session leaves behind that may not be sent again: negotiate afresh.
    pub(crate) lost: Vec<Transferred>,
    /// Addresses of the older session that the one in force does not have.
    pub(crate) left: Vec<IpAddr>,
}

/// A key transfer that is over, one way or the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transferred {
    /// The SA it was about.
    pub(crate) name: SaName,
    /// True for an installation, false for a deletion.
    pub(crate) installed: bool,
    /// What the terminal said; `None` if it never answered.
    pub(crate) result: Option<TransferResult>,
}

impl From<Done> for Transferred {
    fn from(done: Done) -> Self {
        let operation = &done.transfer.operation;
        let installed = matches!(operation, Operation::Install { .. });
        Self {
            name: operation.name(),
            installed,
            result: done.result,
        }
    }
}

struct Conversation {
    session: SessionId,
    sealing: NetworkSession,
    transfers: Sender,
    addresses: Vec<IpAddr>,
}

struct Terminal {
    name: String,
    operator: BudgetId,
    /// Where it registered last.
    gateway: NodeName,
    active: Option<Conversation>,
    pending: Option<Conversation>,
}

impl Terminal {
    /// The conversation to speak in: the one in force, or the one that may become it.
    fn speaking(&mut self) -> Option<&mut Conversation> {
        self.active.as_mut().or(self.pending.as_mut())
    }

    fn both(&self) -> impl Iterator<Item = &Conversation> {
        self.active.iter().chain(&self.pending)
    }
}

/// Every terminal's conversations.
pub(crate) struct Sessions {
    terminals: HashMap<SubscriberHandle, Terminal>,
    by_address: HashMap<IpAddr, SubscriberHandle>,
    /// Terminals with unacknowledged transfers.
    waiting: BTreeSet<SubscriberHandle>,
    given_up: Vec<(SubscriberHandle, Transferred)>,
    backoff: Backoff,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sessions({} terminals)", self.terminals.len())
    }
}

impl Sessions {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            terminals: HashMap::new(),
            by_address: HashMap::new(),
            waiting: BTreeSet::new(),
            given_up: Vec::new(),
            backoff,
        }
    }

    /// The registry granted a session; it is in force when the terminal first uses it.
    pub(crate) fn grant(&mut self, grant: SessionGrant, operator: BudgetId) {
        let keys = SessionKeys {
            t2n: grant.t2n,
            n2t: grant.n2t,
        };
        let conversation = Conversation {
            session: grant.session,
            sealing: NetworkSession::new(grant.subscriber, &keys),
            transfers: Sender::new(self.backoff, MAX_TRANSFERS),
            addresses: grant.addresses,
        };
        let terminal = self
            .terminals
            .entry(grant.subscriber)
            .or_insert_with(|| Terminal {
                name: String::new(),
                operator,
                gateway: NodeName::default(),
                active: None,
                pending: None,
            });
        terminal.name = grant.name;
        terminal.operator = operator;
        terminal.gateway = grant.gateway;
        terminal.pending = Some(conversation);
        self.index(grant.subscriber);
    }

    /// The subscriber is gone.
    pub(crate) fn end(&mut self, subscriber: SubscriberHandle) {
        self.terminals.remove(&subscriber);
        self.by_address.retain(|_, owner| *owner != subscriber);
    }

    fn index(&mut self, subscriber: SubscriberHandle) {
        self.by_address.retain(|_, owner| *owner != subscriber);
        if let Some(terminal) = self.terminals.get(&subscriber) {
            for conversation in terminal.both() {
                self.by_address.extend(
                    conversation
                        .addresses
                        .iter()
                        .map(|address| (*address, subscriber)),
                );
            }
        }
    }

    /// Who registered with `address`.
    pub(crate) fn owner_of(&self, address: IpAddr) -> Option<SubscriberHandle> {
        self.by_address.get(&address).copied()
    }

    /// Whether `address` is one `subscriber` registered with.
    pub(crate) fn owns(&self, subscriber: SubscriberHandle, address: IpAddr) -> bool {
        self.owner_of(address) == Some(subscriber)
    }

    /// Where the subscriber of this name is registered.
    pub(crate) fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        let named = |subscriber: &SubscriberHandle| {
            let terminal = self.terminals.get(subscriber);
            terminal.is_some_and(|terminal| terminal.name == name)
        };
        let of = self.by_address.iter().filter(|(_, subscriber)| named(subscriber));
        let mut addresses: Vec<IpAddr> = of.map(|(address, _)| *address).collect();
        addresses.sort();
        addresses
    }

    /// Where `subscriber` is, in the order it named its addresses.
    pub(crate) fn all_addresses(&self, subscriber: SubscriberHandle) -> Vec<IpAddr> {
        let active = self
            .terminals
            .get(&subscriber)
            .and_then(|terminal| terminal.active.as_ref());
        active.map(|active| active.addresses.clone()).unwrap_or_default()
    }

    /// The gateway of the subscriber.
    pub(crate) fn gateway(&self, subscriber: SubscriberHandle) -> Option<NodeName> {
        let terminal = self.terminals.get(&subscriber);
        terminal.map(|terminal| terminal.gateway.clone())
    }

    /// Whose share of the keyserver the subscriber's exchanges are.
    pub(crate) fn operator(&self, subscriber: SubscriberHandle) -> BudgetId {
        let terminal = self.terminals.get(&subscriber);
        terminal.map_or(BudgetId::default(), |terminal| terminal.operator)
    }

    /// Everybody with a session here who is not in `registered`.
    pub(crate) fn all_but(&self, registered: &[SubscriberHandle]) -> Vec<SubscriberHandle> {
        let registered: BTreeSet<&SubscriberHandle> = registered.iter().collect();
        let here = self.terminals.keys();
        here.filter(|subscriber| !registered.contains(subscriber))
            .copied()
            .collect()
    }

    /// A name for people.
    pub(crate) fn name(&self, subscriber: SubscriberHandle) -> String {
        match self.terminals.get(&subscriber) {
            Some(terminal) => terminal.name.clone(),
            None => subscriber.to_string(),
        }
    }

    /// Opens a sealed message that came from `source`.
    pub(crate) fn open(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        source: IpAddr,
        sealed: &[u8],
    ) -> Result<Opened, DropReason> {
        let terminal = self
            .terminals
            .get_mut(&subscriber)
            .ok_or(DropReason::KeyxUnknownSession)?;
        let active = terminal
            .active
            .as_mut()
            .map(|active| (active.sealing.open(sealed), &active.addresses));
        let refused = match active {
            Some((Ok(message), addresses)) => {
                check_source(addresses, source)?;
                return Ok(Opened {
                    message,
                    confirmed: None,
                    lost: Vec::new(),
                    left: Vec::new(),
                });
            }
            Some((Err(reason), _)) => reason,
            None => DropReason::KeyxUnknownSession,
        };
        let Some(pending) = &mut terminal.pending else {
            return Err(refused);
        };
        // Under two sessions counters overlap: only when neither takes the message does the reason matter,
        // and then the pending one's is about the newer keys.
        let message = pending.sealing.open(sealed)?;
        check_source(&pending.addresses, source)?;
        let confirmed = Some(pending.session);
        let before = terminal.active.as_ref().map(|active| active.addresses.clone());
        let lost = terminal.promote(now);
        self.index(subscriber);
        let left = before.unwrap_or_default().into_iter();
        let left = left.filter(|address| !self.owns(subscriber, *address)).collect();
        Ok(Opened {
            message,
            confirmed,
            lost,
            left,
        })
    }

    /// Queues a key transfer, due at once. False if the terminal has no session or leaves too many unanswered.
    pub(crate) fn transfer(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        request_id: Option<u32>,
        operation: Operation,
    ) -> bool {
        let Some(conversation) = self.terminals.get_mut(&subscriber).and_then(Terminal::speaking) else {
            return false;
        };
        self.waiting.insert(subscriber);
        conversation.transfers.push(now, request_id, operation).is_ok()
    }

    /// An acknowledgement. `None`: of nothing that was outstanding.
    pub(crate) fn acknowledge(
        &mut self,
        subscriber: SubscriberHandle,
        ack: &TransferAck,
    ) -> Option<Transferred> {
        let conversation = self.terminals.get_mut(&subscriber)?.speaking()?;
        conversation.transfers.handle_ack(ack).map(Transferred::from)
    }

    /// Answers a request that leads to nothing.
    pub(crate) fn refuse(
        &mut self,
        subscriber: SubscriberHandle,
        terminal: IpAddr,
        request_id: u32,
        reason: RefuseReason,
        retry_after: u16,
    ) -> Option<Sealed> {
        let outcome = Outcome::Refused { reason, retry_after };
        self.reply(subscriber, terminal, ProxyReply { request_id, outcome })
    }

    /// Answers a request whose exchange is on its way.
    pub(crate) fn accept(
        &mut self,
        subscriber: SubscriberHandle,
        terminal: IpAddr,
        request_id: u32,
    ) -> Option<Sealed> {
        self.reply(
            subscriber,
            terminal,
            ProxyReply {
                request_id,
                outcome: Outcome::Accepted,
            },
        )
    }

    fn reply(&mut self, subscriber: SubscriberHandle, terminal: IpAddr, reply: ProxyReply) -> Option<Sealed> {
        let conversation = self.terminals.get_mut(&subscriber)?.speaking()?;
        let datagram = conversation.sealing.seal(&ToTerminal::ProxyReply(reply)).ok()?;
        Some(Sealed {
            subscriber,
            terminal,
            datagram: datagram.as_bytes().to_vec(),
        })
    }

    /// A transfer that is due to be sent (again).
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Sealed> {
        let Self {
            terminals,
            waiting,
            given_up,
            ..
        } = self;
        waiting.retain(|subscriber| {
            let conversation = terminals.get_mut(subscriber).and_then(Terminal::speaking);
            conversation.is_some_and(|conversation| {
                while let Some(done) = conversation.transfers.poll_failed(now) {
                    given_up.push((*subscriber, done.into()));
                }
                conversation.transfers.poll_timeout().is_some()
            })
        });
        waiting.iter().find_map(|subscriber| {
            terminals
                .get_mut(subscriber)
                .and_then(Terminal::speaking)?
                .transmit(*subscriber, now)
        })
    }

    /// A transfer that was never acknowledged.
    pub(crate) fn poll_given_up(&mut self) -> Option<(SubscriberHandle, Transferred)> {
        self.given_up.pop()
    }

    /// When [`Self::poll_transmit`] will next have something.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self
            .waiting
            .iter()
            .filter_map(|subscriber| self.terminals.get(subscriber));
        waiting
            .filter_map(|terminal| terminal.both().next())
            .filter_map(|conversation| conversation.transfers.poll_timeout())
            .min()
    }
}

/// The terminal of a session speaks from an address it registered: anything else was moved there by somebody.
fn check_source(addresses: &[IpAddr], source: IpAddr) -> Result<(), DropReason> {
    if addresses.contains(&source) {
        Ok(())
    } else {
        Err(DropReason::KeyxWrongAddress)
    }
}

impl Terminal {
    /// The pending session is in force from now on, and takes over what the older one left.
    fn promote(&mut self, now: Instant) -> Vec<Transferred> {
        let Some(mut next) = self.pending.take() else {
            return Vec::new();
        };
        let lost = match &mut self.active {
            Some(older) => next.transfers.adopt(now, &mut older.transfers),
            None => Vec::new(),
        };
        self.active = Some(next);
        lost.into_iter().map(Transferred::from).collect()
    }
}

impl Conversation {
    fn transmit(&mut self, subscriber: SubscriberHandle, now: Instant) -> Option<Sealed> {
        let transfer = self.transfers.poll_transmit(now)?.clone();
        let terminal = transfer.operation.name().local;
        let datagram = self.sealing.seal(&ToTerminal::KeyTransfer(transfer)).ok()?;
        Some(Sealed {
            subscriber,
            terminal,
            datagram: datagram.as_bytes().to_vec(),
        })
    }
}
