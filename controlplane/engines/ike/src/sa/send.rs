//! Requests and responses going out: one outstanding request at a time.

use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::MessageId;

use super::{Outstanding, Sa, State};
use crate::command::{FailReason, Role};
use crate::endpoint::Core;
use crate::fragment::Place;
use crate::protect::{Inside, protect, protected_len};
use crate::tasks::{Awaited, Task, intermediate};
use crate::wire::{ExchangeType, Header, Payload, PayloadType, encode_message, encode_payloads};

impl<P> super::IkeSa<P> {
    pub(crate) fn header(&self, exchange: ExchangeType, response: bool, message_id: MessageId) -> Header {
        Header {
            spi_i: self.spi_i,
            spi_r: self.spi_r,
            next_payload: 0,
            exchange,
            from_initiator: self.role == Role::Initiator,
            response,
            message_id,
        }
    }

    /// Queues a task unless the SA is over.
    pub(crate) fn enqueue(&mut self, task: Task<P>) {
        if !self.is_closed() {
            self.queue.push_back(task);
        }
    }

    /// Whether the next task may start. A held IKE_AUTH waits for the other of two simultaneous starts.
    fn may_start(&self, now: Instant) -> bool {
        let held = self.hold_until.is_some_and(|until| now < until);
        let auth_next = matches!(self.queue.front(), Some(Task::IkeAuth { .. }));
        // The peer is replacing the IKE SA: what would be made here waits for the new one (RFC 7296 §2.25.2).
        let waits = self.followups.iter().any(Awaited::is_ike)
            && !matches!(
                self.queue.front(),
                Some(Task::DeleteIke { .. } | Task::Dpd | Task::Mobike(_))
            );
        let busy = self.outstanding.is_some() || self.is_closed() || self.moving;
        !(busy || waits || held && auth_next)
    }
}

/// An IV that was never used under the present keys.
fn new_iv<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, counts: bool) -> Option<Vec<u8>> {
    let iv = if counts {
        sa.next_iv.to_be_bytes().to_vec()
    } else {
        core.random::<16>().to_vec()
    };
    sa.next_iv = sa.next_iv.checked_add(1)?;
    Some(iv)
}

/// Builds a protected message of `sa`; `None` without keys. One that is too long for a peer that takes fragments
/// becomes several, back to back: each says in its header where it ends, and [`Core::transmit`] sends them one by one.
pub(crate) fn seal<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    header: Header,
    payloads: &[Payload<'_>],
) -> Option<Vec<u8>> {
    let first = payloads.first().map_or(PayloadType::NONE, Payload::kind).0;
    let mut text = Vec::new();
    encode_payloads(payloads, &mut text);
    if header.exchange == ExchangeType::IKE_INTERMEDIATE {
        intermediate::note(sa, core, &header, first, &text);
    }
    let keys = sa.keys.as_ref()?;
    let sk = match sa.role {
        Role::Initiator => keys.sk_i.clone(),
        Role::Responder => keys.sk_r.clone(),
    };
    let (limit, counts) = (core.config.fragment_size, sk.cipher.counts());
    let fits = limit == 0 || !sa.fragments.agreed || protected_len(&sk, text.len(), false) <= limit;
    if fits {
        let iv = new_iv(sa, core, counts)?;
        let whole = Inside {
            first,
            text,
            place: None,
        };
        return protect(&core.keygen, &sk, &iv, header, &whole).ok();
    }
    // The most text whose message is within the limit; padding takes up to a block.
    let room = limit.saturating_sub(protected_len(&sk, 0, true)).max(256);
    let total = u16::try_from(text.len().div_ceil(room)).ok()?;
    let mut messages = Vec::new();
    for (number, piece) in (1..=total).zip(text.chunks(room)) {
        let iv = new_iv(sa, core, counts)?;
        let inside = Inside {
            first: if number == 1 { first } else { PayloadType::NONE.0 },
            text: piece.to_vec(),
            place: Some(Place { number, total }),
        };
        messages.extend(protect(&core.keygen, &sk, &iv, header, &inside).ok()?);
    }
    Some(messages)
}

/// Starts queued tasks while none is outstanding.
pub(crate) fn pump<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, now: Instant) {
    while sa.may_start(now) {
        let Some(task) = sa.queue.pop_front() else { return };
        start(sa, core, now, task);
    }
}

fn start<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    mut task: Task<K::Private>,
) {
    // A task whose object is gone meanwhile builds nothing.
    let Some(payloads) = task.build(sa, core, now) else {
        return;
    };
    let exchange = task.exchange();
    let id = sa.next_request;
    let header = sa.header(exchange, false, id);
    let packet = if exchange == ExchangeType::IKE_SA_INIT {
        Some(encode_message(header, &payloads))
    } else {
        seal(sa, core, header, &payloads)
    };
    let Some(packet) = packet else {
        sa.end(core, now, FailReason::ProtocolError);
        return;
    };
    if exchange == ExchangeType::IKE_SA_INIT
        && let Some(init) = sa.init.as_mut()
    {
        init.message_i = packet.clone();
    }
    core.log(sa.id, sa.local.ip(), sa.remote.ip(), true, &header, &payloads);
    core.transmit(sa.local, sa.remote, packet.clone());
    sa.outstanding = Some(Outstanding {
        task,
        id,
        packet,
        count: 1,
        due: now + core.config.retransmit.wait(1),
    });
}

/// Sends a protected response and remembers it for retransmitted requests.
pub(crate) fn answer<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    exchange: ExchangeType,
    id: MessageId,
    payloads: &[Payload<'_>],
) {
    let header = sa.header(exchange, true, id);
    let Some(packet) = seal(sa, core, header, payloads) else {
        return;
    };
    core.log(sa.id, sa.local.ip(), sa.remote.ip(), true, &header, payloads);
    if sa.withheld.is_none() {
        // A request from another address is answered there; the SA stays where it is (RFC 4555 §3.5).
        let path = sa.path.filter(|_| sa.mobike.is_some());
        let (local, remote) = path.map_or((sa.local, sa.remote), |path| (path.destination, path.source));
        core.transmit(local, remote, packet.clone());
    }
    sa.last_response = Some((id, packet));
}

/// Sends the response that was held back.
pub(crate) fn release<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>) {
    if sa.withheld.take().is_some()
        && let Some((_, packet)) = &sa.last_response
    {
        core.transmit(sa.local, sa.remote, packet.clone());
    }
}

/// A request that is sent once and whose answer nobody waits for: the SA is over on our side.
pub(crate) fn say_once<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    payloads: &[Payload<'_>],
) {
    let header = sa.header(ExchangeType::INFORMATIONAL, false, sa.next_request);
    if let Some(packet) = seal(sa, core, header, payloads) {
        core.log(sa.id, sa.local.ip(), sa.remote.ip(), true, &header, payloads);
        core.transmit(sa.local, sa.remote, packet);
    }
}

/// The retransmission timer of the outstanding request ran out.
pub(crate) fn retransmit<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, now: Instant) {
    let jitter = core.random::<1>();
    let limits = core.config.retransmit;
    let Some(outstanding) = sa.outstanding.as_mut() else {
        return;
    };
    if outstanding.count >= limits.transmissions {
        let reason = match (&outstanding.task, sa.state) {
            (Task::DeleteIke { reason }, State::Deleting) => *reason,
            _ => FailReason::Timeout,
        };
        sa.end(core, now, reason);
        return;
    }
    outstanding.count += 1;
    let wait = limits.wait(outstanding.count);
    // Up to a quarter more, so that many SAs do not speak at once.
    outstanding.due = now + wait + wait / 1024 * u32::from(jitter[0]);
    core.transmit(sa.local, sa.remote, outstanding.packet.clone());
}
