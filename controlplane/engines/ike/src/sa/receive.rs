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
use crate::fragment::Place;
use crate::keys::IkeKeys;
use crate::protect::{Inside, unprotect};
use crate::tasks::mobike::announce;
use crate::tasks::{self, ike_init, intermediate};
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
    let inside = open(sa, core, header, message)?;
    let (first, text) = match inside.place {
        None => (inside.first, inside.text),
        Some(place) => match collect(sa, core, header, place, inside)? {
            Some(whole) => whole,
            None => return Ok(()),
        },
    };
    let chain = Chain {
        first,
        text: &text,
        payloads: parse_payloads(first, &text),
    };
    if header.response {
        response(sa, core, now, path, header, chain)
    } else {
        request(sa, core, now, path, header, chain)
    }
}

/// What was inside the Encrypted payload, as bytes and parsed.
struct Chain<'a> {
    first: u8,
    text: &'a [u8],
    payloads: Result<Vec<Payload<'a>>, ParseError>,
}

/// Takes the protection off.
fn open<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    header: &Header,
    message: &[u8],
) -> Result<Inside, DropReason> {
    let keys = sa.keys.as_ref().ok_or(DropReason::IkeUnexpected)?;
    let of_peer = |keys: &IkeKeys| match sa.role {
        Role::Initiator => keys.sk_r.clone(),
        Role::Responder => keys.sk_i.clone(),
    };
    let opened = unprotect(&core.keygen, &of_peer(keys), message);
    // An additional key exchange changed the keys, and its request comes again.
    let previous = sa.init.as_ref().and_then(|init| init.extra.previous.as_ref());
    let repeated = sa
        .last_response
        .as_ref()
        .is_some_and(|(id, _)| *id == header.message_id);
    let opened = match (opened, previous) {
        (Err(_), Some(previous)) if repeated && !header.response => {
            unprotect(&core.keygen, &of_peer(previous), message)
        }
        (opened, _) => opened,
    };
    opened.map_err(|_| DropReason::IkeAuthFailed)
}

/// Puts a fragment to the others of its message; gives the whole once it is there.
fn collect<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    header: &Header,
    place: Place,
    inside: Inside,
) -> Result<Option<(u8, Vec<u8>)>, DropReason> {
    if !sa.fragments.agreed {
        return Err(DropReason::IkeUnexpected);
    }
    let awaited = if header.response {
        sa.outstanding
            .as_ref()
            .is_some_and(|out| out.id == header.message_id && out.task.exchange() == header.exchange)
    } else {
        header.message_id == sa.expected && permitted(sa, header)
    };
    if !awaited {
        // RFC 7383 §2.6.1: of a request that was answered, the first fragment alone brings the answer again.
        let repeated = sa
            .last_response
            .as_ref()
            .filter(|(id, _)| *id == header.message_id);
        if let Some((_, packet)) = repeated.filter(|_| !header.response && place.number == 1)
            && sa.withheld.is_none()
        {
            let packet = packet.clone();
            core.transmit(sa.local, sa.remote, packet);
            return Ok(None);
        }
        return Err(DropReason::IkeUnexpected);
    }
    let proven = sa.established_at.is_some();
    sa.fragments.add(
        header.response,
        proven,
        header.message_id,
        place,
        inside.first,
        inside.text,
    )
}

/// Whether the exchange may be asked for now.
fn permitted<P>(sa: &IkeSa<P>, header: &Header) -> bool {
    let pending = sa.init.as_ref().is_some_and(|init| init.extra.pending.is_some());
    match sa.state {
        // No exchange but IKE_AUTH before AUTH is proven, and not even that one before all key exchanges are done.
        State::InitAnswered if pending => header.exchange == ExchangeType::IKE_INTERMEDIATE,
        State::InitAnswered => header.exchange == ExchangeType::IKE_AUTH,
        State::Established | State::Deleting => !matches!(
            header.exchange,
            ExchangeType::IKE_AUTH | ExchangeType::IKE_INTERMEDIATE
        ),
        _ => false,
    }
}

/// An authentic message shows where the peer is now: NATs float ports (RFC 7296 §2.23). Another address is believed
/// when the peer says so (RFC 4555 §3.5).
fn heard<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, now: Instant, path: Path) {
    sa.last_heard = now;
    sa.path = Some(path);
    let same = sa.remote.ip() == path.source.ip() && sa.local.ip() == path.destination.ip();
    if same && (sa.nat.remote || sa.established_at.is_none()) {
        let (local, remote) = (sa.local, sa.remote);
        sa.remote.set_port(path.source.port());
        sa.local.set_port(path.destination.port());
        if sa.established_at.is_some() {
            announce(sa, core, local, remote);
        }
    }
}

fn request<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    path: Path,
    header: &Header,
    chain: Chain<'_>,
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
        let (local, remote) = match sa.mobike {
            Some(_) => (path.destination, path.source),
            None => (sa.local, sa.remote),
        };
        core.transmit(local, remote, packet);
        return Ok(());
    }
    if header.message_id != sa.expected || !permitted(sa, header) {
        return Err(DropReason::IkeUnexpected);
    }
    sa.expected = MessageId(sa.expected.0.saturating_add(1));
    sa.fragments.forget(false);
    heard(sa, core, now, path);
    if header.exchange == ExchangeType::IKE_INTERMEDIATE {
        intermediate::note(sa, core, header, chain.first, chain.text);
    }
    match chain.payloads {
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
                _ => Payload::bare(NotifyType::INVALID_SYNTAX),
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
    chain: Chain<'_>,
) -> Result<(), DropReason> {
    let expected = sa
        .outstanding
        .take_if(|out| out.id == header.message_id && out.task.exchange() == header.exchange);
    let Some(outstanding) = expected else {
        return Err(DropReason::IkeUnexpected);
    };
    heard(sa, core, now, path);
    sa.next_request = MessageId(sa.next_request.0.saturating_add(1));
    sa.fragments.forget(true);
    if header.exchange == ExchangeType::IKE_INTERMEDIATE {
        intermediate::note(sa, core, header, chain.first, chain.text);
    }
    match chain.payloads {
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
