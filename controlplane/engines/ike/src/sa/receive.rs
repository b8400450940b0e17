//! Messages of an existing IKE SA coming in.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::MessageId;
use towpath_common::DropReason;

use super::send::{answer, pump};
use super::{IkeSa, Sa, State};
use crate::command::{FailReason, Role};
use crate::endpoint::Core;
use crate::protect::unprotect;
use crate::tasks::{self, ike_init};
use crate::wire::{ExchangeType, Header, NotifyType, ParseError, Payload, parse_payloads};

/// Where a datagram came from and went to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// Takes one message for `sa`. The header's SPIs and addresses are checked already.
pub(crate) fn receive<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    path: Path,
    header: &Header,
    message: &[u8],
) -> Result<(), DropReason> {
    if header.exchange == ExchangeType::IKE_SA_INIT {
        let waiting = sa
            .outstanding
            .as_ref()
            .is_some_and(|out| out.id == header.message_id);
        if sa.state != State::InitSent || !header.response || !waiting {
            return Err(DropReason::IkeUnexpected);
        }
        return ike_init::process(sa, core, now, path, header, message);
    }
    let keys = sa.keys.as_ref().ok_or(DropReason::IkeUnexpected)?;
    let sk = match sa.role {
        Role::Initiator => &keys.sk_r,
        Role::Responder => &keys.sk_i,
    };
    let (first, chain) = unprotect(&core.keygen, sk, message).map_err(|_| DropReason::IkeAuthFailed)?;
    let payloads = parse_payloads(first, &chain);
    if header.response {
        response(sa, core, now, path, header, payloads)
    } else {
        request(sa, core, now, path, header, payloads)
    }
}

/// An authentic message shows where the peer is now: NATs float ports (RFC 7296 §2.23).
fn heard<P>(sa: &mut IkeSa<P>, now: Instant, path: Path) {
    sa.last_heard = now;
    if sa.nat.remote || sa.established_at.is_none() {
        sa.remote.set_port(path.source.port());
        sa.local.set_port(path.destination.port());
    }
}

fn request<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    path: Path,
    header: &Header,
    payloads: Result<Vec<Payload<'_>>, ParseError>,
) -> Result<(), DropReason> {
    if let Some((id, packet)) = &sa.last_response
        && *id == header.message_id
    {
        if sa.withheld.is_some() {
            // Its answer is on its way as soon as the owner is ready.
            return Ok(());
        }
        // A retransmitted request gets the same response again (RFC 7296 §2.1).
        let packet = packet.clone();
        core.transmit(sa.local, sa.remote, packet);
        return Ok(());
    }
    let permitted = match sa.state {
        // No exchange but IKE_AUTH before AUTH is proven.
        State::InitAnswered => header.exchange == ExchangeType::IKE_AUTH,
        State::Established | State::Deleting => header.exchange != ExchangeType::IKE_AUTH,
        _ => false,
    };
    if header.message_id != sa.expected || !permitted {
        return Err(DropReason::IkeUnexpected);
    }
    sa.expected = MessageId(sa.expected.0.saturating_add(1));
    heard(sa, now, path);
    match payloads {
        Ok(payloads) => {
            core.log(sa.id, sa.local.ip(), sa.remote.ip(), false, header, &payloads);
            tasks::respond(sa, core, now, header, &payloads);
            pump(sa, core, now);
            Ok(())
        }
        Err(error) => {
            let refusal = match error {
                ParseError::UnsupportedCritical(kind) => {
                    Payload::notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind])
                }
                _ => Payload::notify(NotifyType::INVALID_SYNTAX, &[][..]),
            };
            answer(sa, core, header.exchange, header.message_id, &[refusal]);
            if sa.state == State::InitAnswered {
                sa.end(core, now, FailReason::ProtocolError);
            }
            Err(DropReason::IkeMalformed)
        }
    }
}

fn response<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    path: Path,
    header: &Header,
    payloads: Result<Vec<Payload<'_>>, ParseError>,
) -> Result<(), DropReason> {
    let expected = sa
        .outstanding
        .take_if(|out| out.id == header.message_id && out.task.exchange() == header.exchange);
    let Some(outstanding) = expected else {
        return Err(DropReason::IkeUnexpected);
    };
    heard(sa, now, path);
    sa.next_request = MessageId(sa.next_request.0.saturating_add(1));
    match payloads {
        Ok(payloads) => {
            core.log(sa.id, sa.local.ip(), sa.remote.ip(), false, header, &payloads);
            outstanding.task.process(sa, core, now, &payloads);
            pump(sa, core, now);
            Ok(())
        }
        Err(_) => {
            // The peer authenticated nonsense (RFC 7296 §2.21.3): nothing on this SA can be relied on.
            sa.end(core, now, FailReason::ProtocolError);
            Err(DropReason::IkeMalformed)
        }
    }
}
