//! IKE_AUTH (RFC 7296 §1.2, §2.15): identities, proof, first CHILD SA.
//!
//! ```text
//! SK { IDi, [IDr,] AUTH, [N(INITIAL_CONTACT),] SAi2, TSi, TSr, [N(USE_TRANSPORT_MODE)] }   -->
//!                         <--   SK { IDr, AUTH, SAr2, TSi, TSr, [N(USE_TRANSPORT_MODE)] }
//! ```

use alloc::vec;
use alloc::vec::Vec;

use subtle::ConstantTimeEq;
use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::Spi;
use towpath_base::profile::IkeId;

use super::child_create::{self, Keying};
use super::ike_rekey::rekey_ike_at;
use super::{Parts, Task, refuse};
use crate::command::{Command, FailReason, Role};
use crate::endpoint::{Core, Effect};
use crate::sa::{Sa, State, answer, say_once};
use crate::wire::{Header, Id, NotifyType, Payload};

/// Auth Method: Shared Key Message Integrity Code.
const SHARED_KEY: u8 = 2;

fn id_body(id: &Id<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    id.encode(&mut body);
    body
}

/// AUTH data of one side.
fn auth_data<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    of: Role,
    id: &Id<'_>,
) -> Option<Vec<u8>> {
    let (keys, init, policy) = (sa.keys.as_ref()?, sa.init.as_ref()?, sa.policy.as_ref()?);
    let (message, nonce) = match of {
        Role::Initiator => (&init.message_i, &init.nr),
        Role::Responder => (&init.message_r, &init.ni),
    };
    let octets = keys.signed_octets(
        &core.keygen,
        of == Role::Initiator,
        message,
        nonce,
        &id_body(id),
        &[],
    );
    let data = keys.auth_psk(&core.keygen, policy.psk.expose(), &octets);
    Some(data.expose().to_vec())
}

/// Whether the other side, of role `of`, proved to be who the policy wants; gives its identity.
fn verify<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    of: Role,
    id: Option<&Id<'_>>,
    auth: Option<(u8, &[u8])>,
) -> Option<IkeId> {
    let (id, (method, data)) = (id?, auth?);
    let expected = auth_data(sa, core, of, id)?;
    let proven = method == SHARED_KEY && bool::from(expected.as_slice().ct_eq(data));
    let name = id.to_ike_id()?;
    let wanted = sa.policy.as_ref()?.remote_id.as_ref();
    (proven && wanted.is_none_or(|wanted| *wanted == name)).then_some(name)
}

/// The request.
pub(super) fn build<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    spi_in: &mut Option<Spi>,
) -> Option<Vec<Payload<'static>>> {
    let policy = sa.policy.clone()?;
    let id = Id::from(&policy.local_id);
    let auth = auth_data(sa, core, Role::Initiator, &id)?;
    let spi = core.new_esp_spi(sa.local.ip());
    *spi_in = Some(spi);
    let mut payloads = vec![Payload::IdI(id)];
    payloads.extend(policy.remote_id.as_ref().map(|id| Payload::IdR(id.into())));
    payloads.push(Payload::Auth {
        method: SHARED_KEY,
        data: auth.into(),
    });
    if sa.first_contact {
        payloads.push(Payload::notify(NotifyType::INITIAL_CONTACT, &[][..]));
    }
    payloads.extend(child_create::offer(sa, &policy, spi));
    sa.state = State::AuthSent;
    sa.hold_until = None;
    Some(payloads)
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
    let Some(remote_id) = verify(sa, core, Role::Responder, parts.id_r, parts.auth) else {
        release(sa, core);
        // RFC 7296 §2.21.2: the responder believes the SA is up and is told otherwise.
        say_once(
            sa,
            core,
            &[Payload::notify(NotifyType::AUTHENTICATION_FAILED, &[][..])],
        );
        sa.end(core, now, FailReason::AuthenticationFailed);
        return;
    };
    establish(sa, core, now, remote_id);
    let init = sa.init.take();
    let nonces = init.as_ref().map(|init| (init.ni.as_slice(), init.nr.as_slice()));
    let (ni, nr) = nonces.unwrap_or_default();
    let keying = Keying { ni, nr, shared: None };
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

/// Answers a request; the state is InitAnswered.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) {
    let local_id = sa.policy.as_ref().map(|policy| Id::from(&policy.local_id));
    let meant_us = parts.id_r.is_none_or(|wanted| Some(wanted) == local_id.as_ref());
    let proven = verify(sa, core, Role::Initiator, parts.id_i, parts.auth).filter(|_| meant_us);
    let ours = local_id.and_then(|id| Some((auth_data(sa, core, Role::Responder, &id)?, id)));
    let (Some(remote_id), Some((auth, local_id))) = (proven, ours) else {
        refuse(sa, core, header, NotifyType::AUTHENTICATION_FAILED);
        sa.end(core, now, FailReason::AuthenticationFailed);
        return;
    };
    establish(sa, core, now, remote_id);
    if parts.notify(NotifyType::INITIAL_CONTACT).is_some() {
        core.effects.push(Effect::InitialContact);
    }
    let init = sa.init.take();
    let nonces = init.as_ref().map(|init| (init.ni.as_slice(), init.nr.as_slice()));
    let (ni, nr) = nonces.unwrap_or_default();
    let mut payloads = vec![
        Payload::IdR(local_id),
        Payload::Auth {
            method: SHARED_KEY,
            data: auth.into(),
        },
    ];
    let created = child_create::choose(sa, parts, false).and_then(|agreement| {
        let spi = core.new_esp_spi(sa.local.ip());
        let answer = child_create::answer_payloads(&agreement, spi);
        let keying = Keying { ni, nr, shared: None };
        child_create::install(sa, core, now, agreement, spi, Role::Responder, &keying, None)
            .map_err(|_| NotifyType::NO_PROPOSAL_CHOSEN)?;
        Ok(answer)
    });
    match created {
        Ok(answer) => payloads.extend(answer),
        Err(kind) => {
            // The IKE SA stands without CHILD SA (RFC 7296 §1.2); the peer may ask for another one.
            payloads.push(Payload::notify(kind, &[][..]));
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
