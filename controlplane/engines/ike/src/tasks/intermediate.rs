//! IKE_INTERMEDIATE (RFC 9242) with an additional key exchange (RFC 9370 §2.2.2): before anybody says who it is.
//!
//! ```text
//! SK { KEi }   -->
//!              <--   SK { KEr }
//! ```
//!
//! Everything after it is protected by keys that both exchanges went into, and AUTH covers its messages.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng, Secret};

use super::{Parts, Task, refuse};
use crate::command::FailReason;
use crate::endpoint::Core;
use crate::keys::Inputs;
use crate::sa::{IkeSa, Sa, answer};
use crate::wire::{GENERIC_HEADER_LEN, HEADER_LEN, Header, NotifyType, Payload, PayloadType};

/// The request.
pub(super) fn build<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
) -> Option<Vec<Payload<'static>>> {
    let extra = &mut sa.init.as_mut()?.extra;
    let group = extra.pending?;
    let (private, public) = core.keygen.initiate(group, &mut core.rng).ok()?;
    extra.private = Some(private);
    Some(vec![Payload::Ke {
        group: group.number(),
        data: public.into(),
    }])
}

/// The response.
pub(super) fn process<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    payloads: &[Payload<'_>],
) {
    let parts = Parts::collect(payloads);
    let Some((sent, public)) = parts.as_ref().and_then(|parts| parts.ke) else {
        let reason = match parts.and_then(|parts| parts.error()) {
            Some(kind) => FailReason::Notify(kind.0),
            None => FailReason::ProtocolError,
        };
        sa.end(core, now, reason);
        return;
    };
    let extra = sa.init.as_mut().map(|init| &mut init.extra);
    let expected = extra.and_then(|extra| extra.pending.zip(extra.private.take()));
    let Some((_, private)) = expected.filter(|(group, _)| group.number() == sent) else {
        sa.end(core, now, FailReason::ProtocolError);
        return;
    };
    let Ok(shared) = core.keygen.finish(private, public) else {
        sa.end(core, now, FailReason::BadPublicValue);
        return;
    };
    strengthen(sa, core, &shared);
    sa.enqueue(Task::IkeAuth { spi_in: None });
}

/// Answers a request; an additional key exchange is pending.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) {
    let pending = sa.init.as_ref().and_then(|init| init.extra.pending);
    let (Some(group), Some((sent, public))) = (pending, parts.ke) else {
        refuse(sa, core, header, NotifyType::INVALID_SYNTAX);
        sa.end(core, now, FailReason::ProtocolError);
        return;
    };
    let agreed = if sent == group.number() {
        core.keygen.respond(group, public, &mut core.rng).ok()
    } else {
        None
    };
    let Some((our_public, shared)) = agreed else {
        refuse(sa, core, header, NotifyType::INVALID_SYNTAX);
        sa.end(core, now, FailReason::BadPublicValue);
        return;
    };
    let payload = Payload::Ke {
        group: group.number(),
        data: our_public.into(),
    };
    answer(sa, core, header.exchange, header.message_id, &[payload]);
    strengthen(sa, core, &shared);
}

/// From here on both exchanges are in the keys.
fn strengthen<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &Core<K, R>, shared: &Secret) {
    let (Some(init), Some(keys)) = (sa.init.as_mut(), sa.keys.as_ref()) else {
        return;
    };
    let inputs = Inputs {
        spi_i: sa.spi_i,
        spi_r: sa.spi_r,
        ni: &init.ni,
        nr: &init.nr,
    };
    let new = keys.rekeyed(&core.keygen, keys.suite, shared, None, inputs);
    init.extra.pending = None;
    init.extra.exchanges += 1;
    init.extra.previous = core::mem::replace(&mut sa.keys, new.map(Box::new));
}

/// Takes a message of the exchange into what AUTH will cover (RFC 9242 §3.3.2), under the keys that protect it:
/// IntAuth = prf(SK_p, IntAuth | A | P), where A are the headers with lengths as if nothing but the payloads P were
/// inside, and the message is taken whole where it came in fragments.
pub(crate) fn note<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &Core<K, R>,
    header: &Header,
    first: u8,
    text: &[u8],
) {
    let (Some(init), Some(keys)) = (sa.init.as_mut(), sa.keys.as_ref()) else {
        return;
    };
    let payload_len = GENERIC_HEADER_LEN + text.len();
    let mut covered = Vec::with_capacity(HEADER_LEN + payload_len);
    let whole = Header {
        next_payload: PayloadType::SK.0,
        ..*header
    };
    whole.encode(HEADER_LEN + payload_len, &mut covered);
    covered.extend_from_slice(&[first, 0]);
    covered.extend_from_slice(&u16::try_from(payload_len).unwrap_or(u16::MAX).to_be_bytes());
    covered.extend_from_slice(text);
    let of_initiator = header.from_initiator;
    let so_far = match of_initiator {
        true => &mut init.extra.int_auth_i,
        false => &mut init.extra.int_auth_r,
    };
    let sk_p = keys.sk_p(of_initiator).expose();
    let next = core.keygen.prf(keys.suite.prf, sk_p, &[so_far, &covered]);
    *so_far = next.expose().to_vec();
}

/// What AUTH covers of the exchanges; nothing if there were none.
pub(super) fn int_auth<P>(sa: &IkeSa<P>) -> Vec<u8> {
    let Some(extra) = sa
        .init
        .as_ref()
        .map(|init| &init.extra)
        .filter(|extra| extra.exchanges > 0)
    else {
        return Vec::new();
    };
    let auth_id = 1 + extra.exchanges;
    [&extra.int_auth_i[..], &extra.int_auth_r, &auth_id.to_be_bytes()].concat()
}
