//! Messages between core and network: what comes in changes the tables, what goes out is sealed when it is sent.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use towpath_base::crypto::{EspProvider, Rng};
use towpath_base::sa::ChildSa;
use towpath_base::{DropReason, Instant};
use towpath_common::wire::PORT_IKE;
use towpath_keyx::SealedDatagram;
use towpath_keyx::frame::{self, FRAME_LEN};
use towpath_keyx::message::{
    self, FromTerminal, KeyTransfer, MessageType, Operation, Outcome, ProxyReply, SaName, ToTerminal,
    TransferAck, TransferResult,
};

use crate::command::Event;
use crate::enrolment::{Granted, Which};
use crate::face::{Core, Secret};
use crate::policy::Towards;
use crate::request::Due;
use crate::sad::{Handed, NotInstalled};

/// Acknowledgements waiting to be sent; one that finds no room is lost, and the network sends the transfer again.
const ACKS: usize = 8;

/// A framed message in the caller's buffer, and where it goes.
pub(crate) struct Outgoing {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Ack {
    which: Which,
    ack: TransferAck,
    name: SaName,
}

#[derive(Debug, Default)]
pub(crate) struct Acks([Option<Ack>; ACKS]);

impl Acks {
    fn push(&mut self, ack: Ack) {
        if let Some(slot) = self.0.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(ack);
        }
    }

    fn pop(&mut self) -> Option<Ack> {
        self.0.iter_mut().find_map(Option::take)
    }

    /// The current session became the previous one.
    fn rotate(&mut self) {
        for slot in &mut self.0 {
            *slot = slot.take().filter(|ack| ack.which == Which::Current);
            if let Some(ack) = slot {
                ack.which = Which::Previous;
            }
        }
    }
}

impl<P: EspProvider, const POLICIES: usize, const SAS: usize, const HOLD: usize>
    Core<P, POLICIES, SAS, HOLD>
{
    // -- in ---------------------------------------------------------------------------------------------

    /// The payload of a datagram to port 500. Its source is not looked at: the seal says who wrote it.
    pub(crate) fn message(
        &mut self,
        now: Instant,
        _source: IpAddr,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let sealed = frame::unwrap(self.reserved, payload).ok_or(DropReason::IkeUnexpected)?;
        let header = message::peek(sealed)?;
        match header.message_type {
            MessageType::RegisterAck => {
                let granted = self.enrolment.handle_ack(now, sealed)?;
                self.granted(now, &granted);
                Ok(())
            }
            MessageType::ReRegister => self.enrolment.handle_hint(now, &header),
            MessageType::ProxyReply | MessageType::KeyTransfer => {
                let (which, message) = self.enrolment.open(sealed)?;
                match &message {
                    ToTerminal::ProxyReply(reply) => self.reply(now, reply),
                    ToTerminal::KeyTransfer(transfer) => self.transfer(now, which, transfer),
                }
                Ok(())
            }
            _ => Err(DropReason::KeyxMalformed),
        }
    }

    fn granted(&mut self, now: Instant, granted: &Granted) {
        if let Some(tap) = self.tap {
            tap(&Secret::Session(&granted.keys));
        }
        self.acks.rotate();
        if granted.network_restarted {
            while self.sad.pop().is_some() {}
            self.events.push(Event::NetworkRestarted);
        }
        self.events.push(Event::Registered {
            lifetime_seconds: granted.terms.lifetime_seconds,
        });
        self.requests.restart(now);
    }

    fn reply(&mut self, now: Instant, reply: &ProxyReply) {
        self.enrolment.heard(now);
        match reply.outcome {
            Outcome::Accepted => {
                self.requests
                    .accepted(now, reply.request_id, self.timing.request_accepted);
            }
            Outcome::Refused { reason, retry_after } => {
                let hold_off = match retry_after {
                    0 => self.timing.hold_off,
                    seconds => Duration::from_secs(seconds.into()),
                };
                if let Some(request) = self.requests.refused(now, reply.request_id, hold_off) {
                    let dropped = self.hold.drop_waiting(Towards {
                        peer: request.peer,
                        level: request.level,
                    });
                    self.count_many(DropReason::SaRefused, dropped);
                    self.events.push(Event::Refused {
                        peer: request.peer,
                        reason: Some(reason),
                    });
                }
            }
        }
    }

    /// Carries a transfer out once, and acknowledges it each time it comes.
    fn transfer(&mut self, now: Instant, which: Which, transfer: &KeyTransfer) {
        self.enrolment.heard(now);
        let name = transfer.operation.name();
        let Some(link) = self.enrolment.link(which) else {
            return;
        };
        let seen = link.transfers.seen(transfer.transfer_id);
        let was_deleted = link.transfers.was_deleted(&name);
        let result = seen.unwrap_or_else(|| match &transfer.operation {
            Operation::Delete(_) => {
                self.delete(now, &name);
                TransferResult::Done
            }
            // A late copy of what has ended since, or of what is there already: its counters must not start over.
            Operation::Install { .. } if was_deleted || self.sad.contains(&name) => TransferResult::Done,
            Operation::Install {
                class,
                level,
                replaces,
                standby,
                sa,
            } => {
                let what = Handed {
                    class: *class,
                    level: *level,
                    replaces: *replaces,
                    standby: *standby,
                    answers: transfer.request_id,
                };
                self.install(now, &what, sa)
            }
        });
        if let Some(link) = self.enrolment.link(which) {
            link.transfers.record(transfer.transfer_id, result);
        }
        if matches!(transfer.operation, Operation::Delete(_)) && seen.is_none() {
            for which in [Which::Current, Which::Previous] {
                if let Some(link) = self.enrolment.link(which) {
                    link.transfers.record_deleted(&name);
                }
            }
        }
        self.acks.push(Ack {
            which,
            ack: TransferAck {
                transfer_id: transfer.transfer_id,
                result,
            },
            name,
        });
    }

    /// What was replaced receives a little longer: packets of the peer may be on their way.
    fn delete(&mut self, now: Instant, name: &SaName) {
        if self.sad.retire(now, name, self.timing.linger) {
            return;
        }
        if self.sad.remove(name) {
            self.events.push(Event::Deleted(*name));
        }
    }

    fn install(&mut self, now: Instant, what: &Handed, sa: &ChildSa) -> TransferResult {
        let Handed {
            class,
            level,
            replaces,
            answers,
            ..
        } = *what;
        if !self.enrolment.addresses().contains(sa.local) {
            return TransferResult::Unusable;
        }
        let name = SaName::of(sa);
        if self.provider.adopt(level, sa).is_err() {
            return TransferResult::Unusable;
        }
        match self
            .sad
            .install(&self.provider, now, what, sa, self.timing.linger)
        {
            Ok(()) => {}
            Err(NotInstalled::Full) => return TransferResult::NoRoom,
            Err(NotInstalled::Key) => return TransferResult::Unusable,
        }
        if let Some(tap) = self.tap {
            tap(&Secret::Sa(sa));
        }
        let towards = Towards {
            peer: name.remote,
            level,
        };
        self.requests.satisfied(name.local, towards, answers);
        self.events.push(Event::Installed {
            name,
            class,
            level,
            suite: sa.suite,
            mode: sa.mode,
            encap: sa.encap.is_some(),
            rekey: replaces.is_some(),
        });
        TransferResult::Done
    }

    // -- out --------------------------------------------------------------------------------------------

    /// Writes the next message to send now, framed, to the front of `out`.
    pub(crate) fn poll_control(
        &mut self,
        now: Instant,
        out: &mut [u8],
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<Outgoing> {
        let (frame, room) = out.split_first_chunk_mut::<FRAME_LEN>()?;
        let (source, destination, len) = self.seal_next(now, room, rng)?;
        *frame = frame::header(self.reserved, len);
        Some(Outgoing {
            source,
            destination,
            len: FRAME_LEN + len,
        })
    }

    /// Seals the next message to the front of `out`; returns its addresses and length.
    fn seal_next(
        &mut self,
        now: Instant,
        out: &mut [u8],
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<(IpAddr, IpAddr, usize)> {
        if let Some((sealed, before)) = self.enrolment.poll_register(now, &self.timing, rng) {
            // The network may be reachable in one family only: take turns.
            let addresses = self.enrolment.addresses();
            let turn = before as usize % addresses.iter().count().max(1);
            let source = addresses.iter().nth(turn)?;
            return Some((source, self.towards_network(source), copy(&sealed, out)?));
        }
        if let Some(len) = self.enrolment.poll_hello(now, out) {
            let source = self.enrolment.addresses().iter().next()?;
            return Some((source, self.towards_network(source), len));
        }
        while let Some(Ack { which, ack, name }) = self.acks.pop() {
            if let Some(len) = self
                .enrolment
                .seal(now, which, &FromTerminal::TransferAck(ack), out)
            {
                return Some((name.local, name.remote, len));
            }
        }
        if !self.enrolment.is_registered() {
            return None;
        }
        let Due { request, attempt } = self.requests.poll(now, &self.timing)?;
        self.events.push(Event::Requesting {
            peer: request.peer,
            attempt,
        });
        let message = FromTerminal::ProxyRequest(request);
        let len = self.enrolment.seal(now, Which::Current, &message, out)?;
        Some((request.terminal, request.peer, len))
    }

    /// The terminal leaves the network: writes the UDP payload of the message that says so to `out`; returns its
    /// addresses and length. `None` if there is nothing to say it with. SAs stay as they are.
    pub fn leave(
        &mut self,
        out: &mut [u8],
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<(SocketAddr, SocketAddr, usize)> {
        let sealed = self.enrolment.deregister(rng)?;
        let source = self.enrolment.addresses().iter().next()?;
        let destination = self.towards_network(source);
        let len = frame::wrap_into(self.reserved, sealed.as_bytes(), out)?;
        Some(((source, PORT_IKE).into(), (destination, PORT_IKE).into(), len))
    }
}

fn copy(sealed: &SealedDatagram, out: &mut [u8]) -> Option<usize> {
    let bytes = sealed.as_bytes();
    out.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(bytes.len())
}
