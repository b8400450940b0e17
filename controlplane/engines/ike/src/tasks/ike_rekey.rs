//! CREATE_CHILD_SA that replaces the IKE SA (RFC 7296 §1.3.2, §2.18): the CHILD SAs move to the new one.
//!
//! ```text
//! SK { SA, Ni, KEi }   -->
//!                      <--   SK { SA, Nr, KEr }
//! SK { D }             -->   (on the old one)
//! ```
//!
//! Where both sides start at once, both answer, and two IKE SAs come about. The one whose exchange had the lowest of
//! the four nonces is deleted by the side that made it; the CHILD SAs move to the other (§2.8.1, §2.25.2).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng};
use towpath_base::ids::IkeSpi;

use super::{Parts, Task};
use crate::choose::{accept_ike, choose_ike, offer_ike};
use crate::command::{FailReason, Role};
use crate::config::IkeSaId;
use crate::endpoint::{Core, Effect, Ending};
use crate::keys::{IkeKeys, Inputs};
use crate::sa::{IkeSa, Rival, Sa, State, answer, retry_rekey_at};
use crate::wire::{Header, NotifyType, Payload};

/// Bytes of an IKE SPI in a proposal.
const SPI_LEN: usize = 8;

/// One rekeying of ours.
pub(crate) struct IkeRekey<P> {
    /// Our SPI of the new SA, once built.
    spi: Option<IkeSpi>,
    ni: Vec<u8>,
    exchange: Option<(DhGroup, P)>,
}

impl<P> Default for IkeRekey<P> {
    fn default() -> Self {
        Self {
            spi: None,
            ni: Vec::new(),
            exchange: None,
        }
    }
}

impl<P> IkeRekey<P> {
    pub(super) fn build<K, R>(
        &mut self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
    ) -> Option<Vec<Payload<'static>>>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        if sa.state != State::Established {
            return None;
        }
        let group = sa.keys.as_ref()?.suite.group;
        let (private, public) = core.keygen.initiate(group, &mut core.rng).ok()?;
        let spi = core.new_ike_spi();
        self.spi = Some(spi);
        self.ni = core.nonce();
        self.exchange = Some((group, private));
        let offers = offer_ike(&sa.policy.as_ref()?.ike_proposals, &spi.0.to_be_bytes());
        Some(vec![
            Payload::Sa(offers),
            Payload::Nonce(self.ni.clone().into()),
            Payload::Ke {
                group: group.number(),
                data: public.into(),
            },
        ])
    }

    pub(super) fn process<K, R>(
        mut self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        payloads: &[Payload<'_>],
    ) where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let parts = Parts::collect(payloads);
        let put_off = parts.as_ref().and_then(Parts::error) == Some(NotifyType::TEMPORARY_FAILURE);
        let agreed = parts.and_then(|parts| self.agree(sa, core, &parts));
        let rival = sa.rival.take();
        let Some(Agreed {
            keys,
            spi,
            peer_spi,
            nr,
        }) = agreed
        else {
            match rival {
                Some(rival) => move_to(sa, core, rival.heir, Ending::AwaitDelete),
                None if put_off => sa.rekey_at = Some(retry_rekey_at(core, now)),
                None => {}
            }
            self.abandon(core);
            return;
        };
        let lost = rival.filter(|rival| self.ni.as_slice().min(&nr) < rival.lowest.as_slice());
        let nonce = core::mem::take(&mut self.ni);
        let mut new = spawn(sa, core, now, Role::Initiator, spi, peer_spi, keys, nonce);
        let id = new.id;
        if lost.is_some() {
            new.enqueue(Task::DeleteIke {
                reason: FailReason::Redundant,
            });
        }
        core.effects.push(Effect::Spawn(new));
        match lost {
            Some(rival) => move_to(sa, core, rival.heir, Ending::AwaitDelete),
            None => move_to(sa, core, id, Ending::Delete),
        }
    }

    fn agree<K, R>(&mut self, sa: &Sa<K>, core: &Core<K, R>, parts: &Parts<'_>) -> Option<Agreed>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let (group, private) = self.exchange.take()?;
        let ours = &sa.policy.as_ref()?.ike_proposals;
        let chosen = accept_ike(ours, parts.sa?, SPI_LEN)?;
        let (sent, public) = parts.ke?;
        if sent != group.number() || chosen.suite.group != group {
            return None;
        }
        let shared = core.keygen.finish(private, public).ok()?;
        let (spi_i, spi_r) = (self.spi?, peer_spi(&chosen.spi)?);
        let inputs = Inputs {
            spi_i,
            spi_r,
            ni: &self.ni,
            nr: parts.nonce?,
        };
        let nr = inputs.nr.to_vec();
        let keys = sa
            .keys
            .as_ref()?
            .rekeyed(&core.keygen, chosen.suite, &shared, inputs)?;
        Some(Agreed {
            keys,
            spi: spi_i,
            peer_spi: spi_r,
            nr,
        })
    }

    pub(super) fn abandon<K: KeyGenerator, R: Rng>(self, core: &mut Core<K, R>) {
        if let Some(spi) = self.spi {
            core.release_ike_spi(spi);
        }
    }
}

/// What the response brings.
struct Agreed {
    keys: IkeKeys,
    /// Our SPI.
    spi: IkeSpi,
    peer_spi: IkeSpi,
    nr: Vec<u8>,
}

fn peer_spi(bytes: &[u8]) -> Option<IkeSpi> {
    let spi = u64::from_be_bytes(bytes.try_into().ok()?);
    (spi != 0).then_some(IkeSpi(spi))
}

/// Answers the peer's rekeying.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) -> Result<(), Payload<'static>> {
    let refusal = |kind| Payload::notify(kind, &[][..]);
    // RFC 7296 §2.25.2: not while a CHILD SA of ours is being made or ended, or the IKE SA is.
    let under_way = sa.outstanding.as_ref().map(|out| &out.task);
    let crossed = matches!(under_way, Some(Task::IkeRekey(_)));
    let free = crossed || matches!(under_way, None | Some(Task::Dpd));
    if sa.state != State::Established || !free || sa.rival.is_some() {
        return Err(refusal(NotifyType::TEMPORARY_FAILURE));
    }
    let (Some(proposals), Some((group, public)), Some(ni)) = (parts.sa, parts.ke, parts.nonce) else {
        return Err(refusal(NotifyType::INVALID_SYNTAX));
    };
    let ours = sa
        .policy
        .as_ref()
        .map(|policy| policy.ike_proposals.as_slice())
        .unwrap_or_default();
    let chosen = choose_ike(ours, proposals, SPI_LEN).ok_or(refusal(NotifyType::NO_PROPOSAL_CHOSEN))?;
    let wanted = chosen.suite.group;
    if group != wanted.number() {
        let data = wanted.number().to_be_bytes().to_vec();
        return Err(Payload::notify(NotifyType::INVALID_KE_PAYLOAD, data));
    }
    let spi_i = peer_spi(&chosen.spi).ok_or(refusal(NotifyType::INVALID_SYNTAX))?;
    let (our_public, shared) = core
        .keygen
        .respond(wanted, public, &mut core.rng)
        .map_err(|_| refusal(NotifyType::INVALID_SYNTAX))?;
    let (nr, spi_r) = (core.nonce(), core.new_ike_spi());
    let inputs = Inputs {
        spi_i,
        spi_r,
        ni,
        nr: &nr,
    };
    let keys = sa
        .keys
        .as_ref()
        .and_then(|old| old.rekeyed(&core.keygen, chosen.suite, &shared, inputs));
    let Some(keys) = keys else {
        core.release_ike_spi(spi_r);
        return Err(refusal(NotifyType::NO_PROPOSAL_CHOSEN));
    };
    let payloads = [
        Payload::Sa(vec![chosen.answer(&spi_r.0.to_be_bytes())]),
        Payload::Nonce(nr.clone().into()),
        Payload::Ke {
            group,
            data: our_public.into(),
        },
    ];
    answer(sa, core, header.exchange, header.message_id, &payloads);
    let mut new = spawn(sa, core, now, Role::Responder, spi_r, spi_i, keys, ni.to_vec());
    let heir = new.id;
    if crossed {
        // Should ours win, the peer deletes this one.
        new.expire_at = Some(now + Ending::DELETE_WITHIN);
        sa.rival = Some(Rival {
            heir,
            lowest: ni.min(&nr).to_vec(),
        });
    }
    core.effects.push(Effect::Spawn(new));
    if !crossed {
        move_to(sa, core, heir, Ending::AwaitDelete);
    }
    Ok(())
}

/// The CHILD SAs and what is queued go to `heir`, as soon as the endpoint has both SAs at hand.
pub(super) fn move_to<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    heir: IkeSaId,
    ending: Ending,
) {
    sa.moving = true;
    core.effects.push(Effect::Move { heir, ending });
}

/// Makes the new SA, without CHILD SAs yet.
fn spawn<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    role: Role,
    spi: IkeSpi,
    peer_spi: IkeSpi,
    keys: IkeKeys,
    ni: Vec<u8>,
) -> Box<IkeSa<K::Private>> {
    let id = IkeSaId(spi);
    let mut new = IkeSa::new(id, role, State::Established, sa.local, sa.remote, peer_spi, now);
    new.lane = sa.lane;
    new.policy = sa.policy.clone();
    new.remote_id = sa.remote_id.clone();
    new.nat = sa.nat;
    new.fragments.agreed = sa.fragments.agreed;
    new.ni = ni;
    new.keys = Some(Box::new(keys));
    new.established_at = sa.established_at;
    new.rekey_at = rekey_ike_at(core, now);
    new.reauth_at = sa.reauth_at;
    new.budget = sa.budget;
    new.mobike = sa.mobike;
    new.silent = true;
    Box::new(new)
}

/// When an IKE SA made now is to be rekeyed: up to a tenth earlier than configured, so that both sides rarely do it
/// at once.
pub(crate) fn rekey_ike_at<K: KeyGenerator, R: Rng>(core: &mut Core<K, R>, now: Instant) -> Option<Instant> {
    let after = core.config.ike_rekey_after?;
    let [jitter] = core.random();
    Some(now + (after - after / 2560 * u32::from(jitter)))
}
