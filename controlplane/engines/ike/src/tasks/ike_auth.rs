//! IKE_AUTH (RFC 7296 §1.2, §2.15): identities, proof, first CHILD SA.
//!
//! ```text
//! SK { IDi, [CERT+,] [N(INITIAL_CONTACT),] [CERTREQ,] [IDr,] AUTH, [N(PPK_IDENTITY), N(NO_PPK_AUTH),]
//!      SAi2, TSi, TSr, [N(USE_TRANSPORT_MODE)] }   -->
//!         <--   SK { IDr, [CERT+,] AUTH, [N(PPK_IDENTITY),] SAr2, TSi, TSr, [N(USE_TRANSPORT_MODE)] }
//! ```

use alloc::vec;
use alloc::vec::Vec;

use subtle::ConstantTimeEq;
use towpath_base::Instant;
use towpath_base::credentials::Ppk;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::Spi;
use towpath_base::profile::IkeId;

use super::child_create::{self, Keying};
use super::ike_init::certificate_request;
use super::ike_rekey::rekey_ike_at;
use super::mobike;
use super::parts::X509_SIGNATURE;
use super::{Parts, Task, intermediate, refuse};
use crate::auth::{self, SHARED_KEY};
use crate::command::{Command, FailReason, Role};
use crate::endpoint::{Core, Effect};
use crate::keys::IkeKeys;
use crate::sa::{IkeSa, Sa, State, Withheld, answer, say_once};
use crate::wire::{Header, Id, NotifyType, Payload};

/// PPK_ID type: a fixed octet string (RFC 8784 §5.1).
const PPK_ID_FIXED: u8 = 2;

fn id_body(id: &Id<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    id.encode(&mut body);
    body
}

/// What the side `of` proves itself over.
fn octets<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    keys: &IkeKeys,
    of: Role,
    id: &Id<'_>,
) -> Option<Vec<u8>> {
    let init = sa.init.as_ref()?;
    let (message, nonce) = match of {
        Role::Initiator => (&init.message_i, &init.nr),
        Role::Responder => (&init.message_r, &init.ni),
    };
    let (by_initiator, id) = (of == Role::Initiator, id_body(id));
    let intermediate = intermediate::int_auth(sa);
    Some(keys.signed_octets(&core.keygen, by_initiator, message, nonce, &id, &intermediate))
}

/// Auth Method and Authentication Data of ours.
fn prove<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    keys: &IkeKeys,
    of: Role,
    id: &Id<'_>,
) -> Option<(u8, Vec<u8>)> {
    let octets = octets(sa, core, keys, of, id)?;
    let policy = sa.policy.as_ref()?;
    match &policy.auth.signer {
        Some(signer) => auth::sign(signer.as_ref(), &sa.init.as_ref()?.extra.hashes, &octets),
        None if policy.psk.expose().is_empty() => None,
        None => {
            let data = keys.auth_psk(&core.keygen, policy.psk.expose(), &octets);
            Some((SHARED_KEY, data.expose().to_vec()))
        }
    }
}

/// Whether the other side, of role `of`, proved under `keys` to be who the policy wants; gives its identity.
fn verify<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    keys: &IkeKeys,
    of: Role,
    parts: &Parts<'_>,
    proof: Option<(u8, &[u8])>,
) -> Result<IkeId, FailReason> {
    const FAILED: FailReason = FailReason::AuthenticationFailed;
    let id = match of {
        Role::Initiator => parts.id_i,
        Role::Responder => parts.id_r,
    };
    let (id, (method, data)) = id.zip(proof).ok_or(FAILED)?;
    let name = id.to_ike_id().ok_or(FAILED)?;
    let policy = sa.policy.as_ref().ok_or(FAILED)?;
    let octets = octets(sa, core, keys, of, id).ok_or(FAILED)?;
    if let Some(verifier) = &policy.auth.verifier {
        let certificates: Vec<&[u8]> = parts.certificates().collect();
        auth::verify(verifier.as_ref(), &certificates, &name, (method, data), &octets)
            .map_err(FailReason::Untrusted)?;
    } else {
        let expected = keys.auth_psk(&core.keygen, policy.psk.expose(), &octets);
        let same = method == SHARED_KEY && bool::from(expected.expose().ct_eq(data));
        if !same || policy.psk.expose().is_empty() {
            return Err(FAILED);
        }
    }
    let meant = policy
        .remote_id
        .as_ref()
        .is_none_or(|wanted| wanted.matches(&name));
    if meant { Ok(name) } else { Err(FAILED) }
}

/// The policy's post-quantum preshared key, where both sides can use one.
fn ppk<P>(sa: &IkeSa<P>) -> Option<&Ppk> {
    let possible = sa.init.as_ref().is_some_and(|init| init.extra.ppk);
    sa.policy.as_ref()?.auth.ppk.as_ref().filter(|_| possible)
}

/// Whether the policy insists on a post-quantum preshared key.
fn ppk_required<P>(sa: &IkeSa<P>) -> bool {
    let ppk = sa.policy.as_ref().and_then(|policy| policy.auth.ppk.as_ref());
    ppk.is_some_and(|ppk| ppk.required)
}

/// The keys with the post-quantum preshared key in them.
fn mixed<K: KeyGenerator, R: Rng>(sa: &Sa<K>, core: &Core<K, R>, ppk: &Ppk) -> Option<IkeKeys> {
    sa.keys.as_ref()?.with_ppk(&core.keygen, ppk.secret.expose())
}

fn certificates<P>(sa: &IkeSa<P>) -> Vec<Payload<'static>> {
    let signer = sa.policy.as_ref().and_then(|policy| policy.auth.signer.as_ref());
    let chain = signer.map(|signer| signer.certificates()).unwrap_or_default();
    let payload = |der: &Vec<u8>| Payload::Cert {
        encoding: X509_SIGNATURE,
        data: der.clone().into(),
    };
    chain.iter().map(payload).collect()
}

/// AUTH, and what goes with a post-quantum preshared key (RFC 8784 §3).
fn proofs<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    id: &Id<'_>,
) -> Option<Vec<Payload<'static>>> {
    let keys = sa.keys.as_ref()?;
    let plain = prove(sa, core, keys, Role::Initiator, id)?;
    let auth = |(method, data): (u8, Vec<u8>)| Payload::Auth {
        method,
        data: data.into(),
    };
    let Some(ppk) = ppk(sa) else {
        return (!ppk_required(sa)).then(|| vec![auth(plain)]);
    };
    let with_ppk = prove(sa, core, &mixed(sa, core, ppk)?, Role::Initiator, id)?;
    let identity = [&[PPK_ID_FIXED][..], &ppk.id].concat();
    let mut payloads = vec![
        auth(with_ppk),
        Payload::notify(NotifyType::PPK_IDENTITY, identity),
    ];
    if !ppk.required {
        payloads.push(Payload::notify(NotifyType::NO_PPK_AUTH, plain.1));
    }
    Some(payloads)
}

/// The request.
pub(super) fn build<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    spi_in: &mut Option<Spi>,
) -> Option<Vec<Payload<'static>>> {
    let policy = sa.policy.clone()?;
    let id = Id::from(&policy.local_id);
    let Some(proofs) = proofs(sa, core, &id) else {
        // A key the peer cannot check, or one it must have and has not.
        sa.end(core, now, FailReason::AuthenticationFailed);
        return None;
    };
    let spi = core.new_esp_spi(sa.local.ip());
    *spi_in = Some(spi);
    let mut payloads = vec![Payload::IdI(id)];
    payloads.extend(certificates(sa));
    payloads.extend(certificate_request(&policy));
    payloads.extend(policy.remote_id.as_ref().map(|id| Payload::IdR(id.into())));
    payloads.extend(proofs);
    if sa.first_contact {
        payloads.push(Payload::bare(NotifyType::INITIAL_CONTACT));
    }
    if core.config.mobike {
        payloads.extend(mobike::supported());
    }
    payloads.extend(child_create::offer(sa, &policy, spi));
    sa.state = State::AuthSent;
    sa.hold_until = None;
    Some(payloads)
}

/// The responder's proof, under the keys it says it used.
fn verify_responder<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &Core<K, R>,
    parts: &Parts<'_>,
) -> Result<IkeId, FailReason> {
    if parts.notify(NotifyType::PPK_IDENTITY).is_some()
        && let Some(keys) = ppk(sa).and_then(|ppk| mixed(sa, core, ppk))
    {
        let name = verify(sa, core, &keys, Role::Responder, parts, parts.auth)?;
        sa.keys = Some(keys.into());
        return Ok(name);
    }
    match &sa.keys {
        Some(keys) if !ppk_required(sa) => verify(sa, core, keys, Role::Responder, parts, parts.auth),
        _ => Err(FailReason::AuthenticationFailed),
    }
}

/// The response.
pub(super) fn process<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    payloads: &[Payload<'_>],
    spi_in: Option<Spi>,
) {
    let release = |sa: &Sa<K>, core: &mut Core<K, R>| {
        if let Some(spi) = spi_in {
            core.release_esp_spi(sa.local.ip(), spi);
        }
    };
    let Some(parts) = Parts::collect(payloads) else {
        release(sa, core);
        sa.end(core, now, FailReason::ProtocolError);
        return;
    };
    if parts.auth.is_none() {
        release(sa, core);
        let reason = match parts.error() {
            Some(NotifyType::AUTHENTICATION_FAILED) => FailReason::AuthenticationRefused,
            Some(other) => FailReason::Notify(other.0),
            None => FailReason::ProtocolError,
        };
        sa.end(core, now, reason);
        return;
    }
    let remote_id = verify_responder(sa, core, &parts);
    let Ok(remote_id) = remote_id else {
        let reason = remote_id.err().unwrap_or(FailReason::AuthenticationFailed);
        release(sa, core);
        // RFC 7296 §2.21.2: the responder believes the SA is up and is told otherwise.
        say_once(sa, core, &[Payload::bare(NotifyType::AUTHENTICATION_FAILED)]);
        sa.end(core, now, reason);
        return;
    };
    establish(sa, core, now, remote_id);
    if core.config.mobike && parts.notify(NotifyType::MOBIKE_SUPPORTED).is_some() {
        sa.mobike = Some(Role::Initiator);
    }
    let init = sa.init.take();
    let nonces = init.as_ref().map(|init| (init.ni.as_slice(), init.nr.as_slice()));
    let (ni, nr) = nonces.unwrap_or_default();
    let keying = Keying {
        ni,
        nr,
        shared: None,
        additional: None,
    };
    let agreed = child_create::accept(sa, &parts, None);
    let result = match (agreed, spi_in) {
        (Ok(agreement), Some(spi)) => {
            child_create::install(sa, core, now, agreement, spi, Role::Initiator, &keying, None)
        }
        (Err(reason), _) => Err(reason),
        (_, None) => Err(FailReason::ProtocolError),
    };
    if let Err(reason) = result {
        release(sa, core);
        core.commands.push_back(Command::Failed {
            ike: sa.id,
            tag: sa.tag.take(),
            local: sa.local.ip(),
            remote: sa.remote.ip(),
            reason,
        });
        // An IKE SA without what it was wanted for.
        sa.enqueue(Task::DeleteIke { reason });
    }
}

/// The initiator's proof, by the post-quantum preshared key where it names ours. Says whether that one was used.
fn verify_initiator<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &Core<K, R>,
    parts: &Parts<'_>,
) -> Result<(IkeId, bool), FailReason> {
    const FAILED: FailReason = FailReason::AuthenticationFailed;
    let named = parts.notify(NotifyType::PPK_IDENTITY);
    let ours = ppk(sa).filter(|ppk| {
        named.is_some_and(|notify| notify.data.split_first() == Some((&PPK_ID_FIXED, &ppk.id)))
    });
    if let Some(keys) = ours.and_then(|ppk| mixed(sa, core, ppk)) {
        let name = verify(sa, core, &keys, Role::Initiator, parts, parts.auth)?;
        sa.keys = Some(keys.into());
        return Ok((name, true));
    }
    let keys = sa.keys.as_ref().filter(|_| !ppk_required(sa)).ok_or(FAILED)?;
    // AUTH of one who used another such key says nothing to us; its other proof may.
    let proof = match (named, parts.auth) {
        (Some(_), Some((method, _))) => {
            let other = parts.notify(NotifyType::NO_PPK_AUTH).ok_or(FAILED)?;
            Some((method, other.data.as_ref()))
        }
        (_, auth) => auth,
    };
    Ok((verify(sa, core, keys, Role::Initiator, parts, proof)?, false))
}

/// Answers a request; the state is InitAnswered.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) {
    let local = sa.policy.as_ref().map(|policy| policy.local_id.clone());
    let meant_us = parts.id_r.is_none_or(|wanted| {
        let wanted = wanted.to_ike_id();
        local
            .as_ref()
            .zip(wanted)
            .is_some_and(|(local, wanted)| local.matches(&wanted))
    });
    let proven = match verify_initiator(sa, core, parts) {
        Ok(_) if !meant_us => Err(FailReason::AuthenticationFailed),
        proven => proven,
    };
    let local_id = local.as_ref().map(Id::from);
    let ours = local_id.zip(sa.keys.as_ref()).filter(|_| proven.is_ok());
    let ours = ours.and_then(|(id, keys)| Some((prove(sa, core, keys, Role::Responder, &id)?, id)));
    let (Ok((remote_id, with_ppk)), Some(((method, data), local_id))) = (&proven, ours) else {
        let reason = proven.err().unwrap_or(FailReason::AuthenticationFailed);
        refuse(sa, core, header, NotifyType::AUTHENTICATION_FAILED);
        sa.end(core, now, reason);
        return;
    };
    let mut payloads = vec![Payload::IdR(local_id)];
    payloads.extend(certificates(sa));
    payloads.push(Payload::Auth {
        method,
        data: data.into(),
    });
    if *with_ppk {
        payloads.push(Payload::bare(NotifyType::PPK_IDENTITY));
    }
    let remote_id = remote_id.clone();
    establish(sa, core, now, remote_id);
    if core.config.mobike && parts.notify(NotifyType::MOBIKE_SUPPORTED).is_some() {
        sa.mobike = Some(Role::Responder);
        payloads.extend(mobike::supported());
    }
    if parts.notify(NotifyType::INITIAL_CONTACT).is_some() {
        core.effects.push(Effect::InitialContact);
    }
    let init = sa.init.take();
    let nonces = init.as_ref().map(|init| (init.ni.as_slice(), init.nr.as_slice()));
    let (ni, nr) = nonces.unwrap_or_default();
    if parts.sa.is_none() && parts.ts_i.is_none() && parts.ts_r.is_none() {
        // An IKE SA without CHILD SA was asked for (RFC 6023).
        answer(sa, core, header.exchange, header.message_id, &payloads);
        return;
    }
    let created = child_create::choose(sa, parts, false, None).and_then(|agreement| {
        let spi = core.new_esp_spi(sa.local.ip());
        let answer = child_create::answer_payloads(&agreement, spi);
        let keying = Keying {
            ni,
            nr,
            shared: None,
            additional: None,
        };
        child_create::install(sa, core, now, agreement, spi, Role::Responder, &keying, None)
            .map_err(|_| NotifyType::NO_PROPOSAL_CHOSEN)?;
        Ok((answer, spi))
    });
    match created {
        Ok((answer, spi)) => {
            payloads.extend(answer);
            // The peer sends as soon as it has our answer: whoever receives must have the keys by then.
            let wait = core.config.ready_within;
            sa.withheld = (!wait.is_zero()).then_some(Withheld {
                spi_in: spi,
                due: now + wait,
            });
        }
        Err(kind) => {
            // The IKE SA stands without CHILD SA (RFC 7296 §1.2); the peer may ask for another one.
            payloads.push(Payload::bare(kind));
            let reason = match kind {
                NotifyType::TS_UNACCEPTABLE => FailReason::TsUnacceptable,
                NotifyType::NO_PROPOSAL_CHOSEN => FailReason::NoProposalChosen,
                _ => FailReason::ProtocolError,
            };
            core.commands.push_back(Command::Failed {
                ike: sa.id,
                tag: None,
                local: sa.local.ip(),
                remote: sa.remote.ip(),
                reason,
            });
        }
    }
    answer(sa, core, header.exchange, header.message_id, &payloads);
}

/// The only way into [`State::Established`] for a new IKE SA: both proofs are good.
fn establish<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, now: Instant, remote_id: IkeId) {
    sa.state = State::Established;
    sa.established_at = Some(now);
    sa.rekey_at = rekey_ike_at(core, now);
    let reauth = core.config.reauth_after.filter(|_| sa.role == Role::Initiator);
    // As with rekeying: up to a tenth earlier, so that what began together does not end together.
    let [jitter] = core.random();
    sa.reauth_at = reauth.map(|after| now + (after - after / 2560 * u32::from(jitter)));
    sa.remote_id = Some(remote_id.clone());
    core.effects.push(Effect::Established);
    if let Some(keys) = &sa.keys {
        core.commands.push_back(Command::IkeEstablished {
            ike: sa.id,
            role: sa.role,
            local: sa.local,
            remote: sa.remote,
            remote_id,
            suite: keys.suite,
        });
    }
}
