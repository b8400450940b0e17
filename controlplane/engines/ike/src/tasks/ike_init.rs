//! IKE_SA_INIT (RFC 7296 §1.2): suite, key exchange, nonces.
//!
//! ```text
//! initiator                                          responder
//! SAi1, KEi, Ni, N(NATD_S), N(NATD_D)        -->
//!                                            <--     N(COOKIE) | N(INVALID_KE_PAYLOAD)     (again, with it)
//!                                            <--     SAr1, KEr, Nr, N(NATD_S), N(NATD_D)
//! ```

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{CryptoError, DhGroup, KeyGenerator, Rng, Secret};
use towpath_base::ids::{IkeSpi, MessageId};
use towpath_common::DropReason;

use super::parts::X509_SIGNATURE;
use super::{Parts, Task, natd};
use crate::auth::{announced_hashes, parse_hashes};
use crate::choose::{Additional, accept_first, choose_first, offer_ike};
use crate::command::FailReason;
use crate::config::Policy;
use crate::endpoint::Core;
use crate::keys::{IkeKeys, Inputs};
use crate::proposal::IkeSuite;
use crate::puzzle;
use crate::sa::{Extra, Init, Path, Sa, State, pump};
use crate::wire::{ExchangeType, Header, NotifyType, Payload, encode_message, parse_payloads};

/// Requests in answer to cookies and wrong groups: one cookie, one group, one cookie that expired.
const MAX_ATTEMPTS: u8 = 4;

/// What a new initiator has to know before it can build anything.
pub(crate) fn prepare<K: KeyGenerator, R: Rng>(
    core: &mut Core<K, R>,
    group: DhGroup,
) -> Result<Box<Init<K::Private>>, CryptoError> {
    let (private, public) = core.keygen.initiate(group, &mut core.rng)?;
    Ok(Box::new(Init {
        private: Some(private),
        group,
        public,
        ni: core.nonce(),
        nr: Vec::new(),
        message_i: Vec::new(),
        message_r: Vec::new(),
        cookie: Vec::new(),
        attempts: 0,
        extra: Extra::default(),
    }))
}

/// The request.
pub(super) fn build<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
) -> Option<Vec<Payload<'static>>> {
    let natd = natd::payloads(sa, core);
    let policy = sa.policy.as_ref()?;
    let offers = offer_ike(&policy.ike_proposals, &[], true);
    let notifies = announce(core, policy, None);
    let init = sa.init.as_mut()?;
    init.attempts += 1;
    let mut payloads = Vec::new();
    if !init.cookie.is_empty() {
        // A cookie comes back as the first payload (RFC 7296 §2.6).
        payloads.push(Payload::notify(NotifyType::COOKIE, init.cookie.clone()));
    }
    if !init.extra.solution.is_empty() {
        payloads.push(Payload::Unknown {
            kind: puzzle::PAYLOAD,
            data: init.extra.solution.clone().into(),
        });
    }
    payloads.push(Payload::Sa(offers));
    payloads.push(Payload::Ke {
        group: init.group.number(),
        data: init.public.clone().into(),
    });
    payloads.push(Payload::Nonce(init.ni.clone().into()));
    payloads.extend(natd);
    payloads.extend(notifies);
    Some(payloads)
}

/// Notifies about what this side can do. A response repeats only what the request's `theirs` have, and speaks of
/// additional key exchanges if one was chosen.
fn announce<K: KeyGenerator, R: Rng>(
    core: &Core<K, R>,
    policy: &Policy,
    theirs: Option<(&Parts<'_>, IkeSuite)>,
) -> Vec<Payload<'static>> {
    let asked = |kind| theirs.is_none_or(|(parts, _)| parts.notify(kind).is_some());
    let additional = match theirs {
        None => policy
            .ike_proposals
            .iter()
            .any(|proposal| !proposal.additional.is_empty()),
        Some((_, suite)) => suite.additional.is_some(),
    };
    let mut payloads = Vec::new();
    let mut say = |wanted: bool, kind, data: Vec<u8>| {
        if wanted && asked(kind) {
            payloads.push(Payload::notify(kind, data));
        }
    };
    let fragments = core.config.fragment_size > 0;
    say(fragments, NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, Vec::new());
    let signs = policy.auth.signs();
    say(signs, NotifyType::SIGNATURE_HASH_ALGORITHMS, announced_hashes());
    say(
        additional,
        NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED,
        Vec::new(),
    );
    say(policy.auth.ppk.is_some(), NotifyType::USE_PPK, Vec::new());
    if theirs.is_some() {
        // RFC 6023 §3: the responder alone says so.
        payloads.push(Payload::notify(NotifyType::CHILDLESS_IKEV2_SUPPORTED, &[][..]));
        payloads.extend(certificate_request(policy));
    }
    payloads
}

/// Asks for a certificate under the authorities we trust (RFC 7296 §3.7).
pub(super) fn certificate_request(policy: &Policy) -> Option<Payload<'static>> {
    let verifier = policy.auth.verifier.as_ref()?;
    Some(Payload::CertReq {
        encoding: X509_SIGNATURE,
        data: verifier.authorities().concat().into(),
    })
}

/// Takes over what the other side announced and this side can do as well.
fn agree<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &Core<K, R>, parts: &Parts<'_>, suite: IkeSuite) {
    let said = |kind| parts.notify(kind).is_some();
    sa.fragments.agreed = core.config.fragment_size > 0 && said(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED);
    let ppk = sa.policy.as_ref().is_some_and(|policy| policy.auth.ppk.is_some());
    if let Some(init) = sa.init.as_mut() {
        let hashes = parts.notify(NotifyType::SIGNATURE_HASH_ALGORITHMS);
        init.extra.hashes = hashes
            .map(|notify| parse_hashes(&notify.data))
            .unwrap_or_default();
        init.extra.ppk = ppk && said(NotifyType::USE_PPK);
        init.extra.pending = suite.additional;
    }
}

/// Whether an additional key exchange can follow.
fn additional(parts: &Parts<'_>) -> Additional {
    match parts.notify(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED) {
        Some(_) => Additional::Possible,
        None => Additional::Unsupported,
    }
}

/// The response. Nothing authenticates it, so what does not parse is dropped and waited on for a better one.
pub(crate) fn process<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    path: Path,
    header: &Header,
    message: &[u8],
) -> Result<(), DropReason> {
    let (_, body) = Header::parse(message).map_err(|_| DropReason::IkeMalformed)?;
    let payloads = parse_payloads(header.next_payload, body).map_err(|_| DropReason::IkeMalformed)?;
    let parts = Parts::collect(&payloads).ok_or(DropReason::IkeMalformed)?;
    if let Some(kind) = parts
        .error()
        .or(parts.notify(NotifyType::COOKIE).map(|notify| notify.kind))
    {
        core.log(sa.id, sa.local.ip(), sa.remote.ip(), false, header, &payloads);
        return again(sa, core, now, &parts, kind);
    }
    let (Some(proposals), Some((group, public)), Some(nonce)) = (parts.sa, parts.ke, parts.nonce) else {
        return Err(DropReason::IkeMalformed);
    };
    let ours = sa.policy.as_ref().ok_or(DropReason::IkeUnexpected)?;
    let chosen =
        accept_first(&ours.ike_proposals, proposals, additional(&parts)).ok_or(DropReason::IkeMalformed)?;
    let init = sa.init.as_mut().ok_or(DropReason::IkeUnexpected)?;
    if group != chosen.suite.group.number() || chosen.suite.group != init.group || header.spi_r.0 == 0 {
        return Err(DropReason::IkeMalformed);
    }
    core.log(sa.id, sa.local.ip(), sa.remote.ip(), false, header, &payloads);
    let private = init.private.take().ok_or(DropReason::IkeUnexpected)?;
    sa.outstanding = None;
    let Ok(shared) = core.keygen.finish(private, public) else {
        sa.end(core, now, FailReason::BadPublicValue);
        return Err(DropReason::IkeMalformed);
    };
    init.nr = nonce.to_vec();
    init.message_r = message.to_vec();
    sa.spi_r = header.spi_r;
    sa.nat = natd::detect(sa, core, path, header.spi_r, &parts);
    if sa.encap().is_some() || core.config.mobike {
        // RFC 7296 §2.23: everything from IKE_AUTH on uses the port of UDP encapsulation.
        sa.local.set_port(core.config.nat_port);
        sa.remote.set_port(core.config.nat_port);
    }
    agree(sa, core, &parts, chosen.suite);
    derive(sa, core, chosen.suite, &shared);
    sa.next_request = MessageId(1);
    sa.enqueue(match chosen.suite.additional {
        Some(_) => Task::Intermediate,
        None => Task::IkeAuth { spi_in: None },
    });
    pump(sa, core, now);
    Ok(())
}

/// The responder wants a cookie back or another group, or refuses.
fn again<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    parts: &Parts<'_>,
    kind: NotifyType,
) -> Result<(), DropReason> {
    let init = sa.init.as_mut().ok_or(DropReason::IkeUnexpected)?;
    let data = parts
        .notify(kind)
        .map(|notify| notify.data.to_vec())
        .unwrap_or_default();
    if kind == NotifyType::COOKIE && data == init.cookie && !data.is_empty() {
        // A copy on the way: this cookie was returned, and its puzzle solved.
        return Err(DropReason::IkeUnexpected);
    }
    if init.attempts >= MAX_ATTEMPTS {
        sa.end(core, now, FailReason::Notify(kind.0));
        return Ok(());
    }
    match kind {
        // RFC 7296 §2.6: 1 to 64 bytes.
        NotifyType::COOKIE if (1..=64).contains(&data.len()) => {
            // One that is too hard is left unsolved: the cookie alone may do (RFC 8019 §7.2).
            let puzzle = parts.notify(NotifyType::PUZZLE);
            let puzzle = puzzle.and_then(|puzzle| puzzle::asked(&puzzle.data));
            let feasible = puzzle.filter(|(_, difficulty)| *difficulty <= core.config.puzzle_accept);
            let solved = feasible.and_then(|(prf, bits)| puzzle::solve(&core.keygen, prf, &data, bits));
            init.extra.solution = solved.unwrap_or_default();
            init.cookie = data;
        }
        NotifyType::COOKIE => return Err(DropReason::IkeMalformed),
        NotifyType::INVALID_KE_PAYLOAD => {
            let wanted = <[u8; 2]>::try_from(data.as_slice()).ok().map(u16::from_be_bytes);
            let offered = |group: &DhGroup| {
                let mut proposals = sa.policy.iter().flat_map(|policy| &policy.ike_proposals);
                proposals.any(|proposal| proposal.groups.contains(group))
            };
            let group = wanted.and_then(DhGroup::from_number).filter(offered);
            // RFC 7296 §1.2: a group that was not offered, or the one just sent, is a lie.
            let Some(group) = group.filter(|group| *group != init.group) else {
                return Err(DropReason::IkeMalformed);
            };
            let Ok((private, public)) = core.keygen.initiate(group, &mut core.rng) else {
                sa.end(core, now, FailReason::NoProposalChosen);
                return Ok(());
            };
            (init.private, init.public, init.group) = (Some(private), public, group);
        }
        NotifyType::NO_PROPOSAL_CHOSEN => {
            sa.end(core, now, FailReason::NoProposalChosen);
            return Ok(());
        }
        other => {
            sa.end(core, now, FailReason::Notify(other.0));
            return Ok(());
        }
    }
    sa.outstanding = None;
    sa.enqueue(Task::IkeInit);
    pump(sa, core, now);
    Ok(())
}

fn derive<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &Core<K, R>, suite: IkeSuite, shared: &Secret) {
    if let Some(init) = &sa.init {
        let inputs = Inputs {
            spi_i: sa.spi_i,
            spi_r: sa.spi_r,
            ni: &init.ni,
            nr: &init.nr,
        };
        sa.keys = IkeKeys::first(&core.keygen, suite, shared, inputs).map(Box::new);
    }
}

/// An unprotected response that leaves no state behind; the responder's SPI is zero.
pub(crate) fn stateless(request: &Header, payloads: &[Payload<'_>]) -> Vec<u8> {
    let header = Header {
        spi_r: IkeSpi(0),
        from_initiator: false,
        response: true,
        exchange: ExchangeType::IKE_SA_INIT,
        ..*request
    };
    encode_message(header, payloads)
}

/// Answers the stored request, now that the policy is known. On `Err` the SA is to be forgotten.
pub(crate) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
) -> Result<(), FailReason> {
    let request = sa
        .init
        .as_ref()
        .map(|init| init.message_i.clone())
        .unwrap_or_default();
    let (header, body) = Header::parse(&request).map_err(|_| FailReason::ProtocolError)?;
    let payloads = parse_payloads(header.next_payload, body).map_err(|_| FailReason::ProtocolError)?;
    let parts = Parts::collect(&payloads).ok_or(FailReason::ProtocolError)?;
    let (Some(proposals), Some((group, public)), Some(nonce)) = (parts.sa, parts.ke, parts.nonce) else {
        return Err(FailReason::ProtocolError);
    };
    let refuse = |sa: &Sa<K>, core: &mut Core<K, R>, payload: Payload<'static>| {
        let payloads = [payload];
        core.log(
            sa.id,
            sa.local.ip(),
            sa.remote.ip(),
            true,
            &response_header(sa),
            &payloads,
        );
        core.transmit(sa.local, sa.remote, stateless(&header, &payloads));
    };
    let ours = sa
        .policy
        .as_ref()
        .map(|policy| policy.ike_proposals.as_slice())
        .unwrap_or_default();
    let Some(chosen) = choose_first(ours, proposals, additional(&parts)) else {
        refuse(sa, core, Payload::bare(NotifyType::NO_PROPOSAL_CHOSEN));
        let reason = if sa.policy.is_some() {
            FailReason::NoProposalChosen
        } else {
            FailReason::NoPolicy
        };
        return Err(reason);
    };
    let wanted = chosen.suite.group;
    if group != wanted.number() {
        let data = wanted.number().to_be_bytes().to_vec();
        refuse(sa, core, Payload::notify(NotifyType::INVALID_KE_PAYLOAD, data));
        return Err(FailReason::Notify(NotifyType::INVALID_KE_PAYLOAD.0));
    }
    let (our_public, shared) = core
        .keygen
        .respond(wanted, public, &mut core.rng)
        .map_err(|_| FailReason::BadPublicValue)?;
    let path = Path {
        source: sa.remote,
        destination: sa.local,
    };
    sa.nat = natd::detect(sa, core, path, IkeSpi(0), &parts);
    let nr = core.nonce();
    let mut answer = vec![
        Payload::Sa(vec![chosen.answer(&[])]),
        Payload::Ke {
            group,
            data: our_public.into(),
        },
        Payload::Nonce(nr.clone().into()),
    ];
    answer.extend(natd::payloads(sa, core));
    if let Some(policy) = &sa.policy {
        answer.extend(announce(core, policy, Some((&parts, chosen.suite))));
    }
    agree(sa, core, &parts, chosen.suite);
    let response = response_header(sa);
    let message = encode_message(response, &answer);
    if let Some(init) = sa.init.as_mut() {
        init.ni = nonce.to_vec();
        init.nr = nr;
        init.message_r.clone_from(&message);
    }
    sa.ni = nonce.to_vec();
    derive(sa, core, chosen.suite, &shared);
    sa.state = State::InitAnswered;
    sa.expected = MessageId(1);
    sa.last_heard = now;
    core.log(sa.id, sa.local.ip(), sa.remote.ip(), true, &response, &answer);
    core.transmit(sa.local, sa.remote, message);
    Ok(())
}

fn response_header<P>(sa: &crate::sa::IkeSa<P>) -> Header {
    sa.header(ExchangeType::IKE_SA_INIT, true, MessageId(0))
}
