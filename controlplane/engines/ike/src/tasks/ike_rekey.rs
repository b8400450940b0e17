//! CREATE_CHILD_SA that replaces the IKE SA (RFC 7296 §1.3.2, §2.18): the CHILD SAs move to the new one.
//!
//! ```text
//! SK { SA, Ni, KEi }   -->
//!                      <--   SK { SA, Nr, KEr }
//!                            (perhaps IKE_FOLLOWUP_KE)
//! SK { D }             -->   (on the old one)
//! ```
//!
//! Where both sides start at once, both answer, and two IKE SAs come about. The one whose exchange had the lowest of
//! the four nonces is deleted by the side that made it; the CHILD SAs move to the other (§2.8.1, §2.25.2).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng, Secret};
use towpath_base::ids::IkeSpi;

use super::followup::{Awaited, Leg, Of, forget, wait_for};
use super::{Parts, Task};
use crate::choose::{Additional, accept_ike, choose_ike, offer_ike};
use crate::command::{FailReason, Role};
use crate::config::IkeSaId;
use crate::endpoint::{Core, Effect, Ending};
use crate::keys::{IkeKeys, Inputs, Keying};
use crate::proposal::IkeSuite;
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
    /// The additional key exchange that is to come.
    leg: Option<Leg<P, Agreed>>,
}

impl<P> Default for IkeRekey<P> {
    fn default() -> Self {
        Self {
            spi: None,
            ni: Vec::new(),
            exchange: None,
            leg: None,
        }
    }
}

impl<P> IkeRekey<P> {
    /// CREATE_CHILD_SA is through, IKE_FOLLOWUP_KE is to come.
    pub(super) const fn follows(&self) -> bool {
        self.leg.is_some()
    }

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
        if let Some(leg) = self.leg.as_mut() {
            return leg.build(core);
        }
        let suite = sa.keys.as_ref()?.suite;
        let group = suite.group;
        let (private, public) = core.keygen.initiate(group, &mut core.rng).ok()?;
        let spi = core.new_ike_spi();
        self.spi = Some(spi);
        self.ni = core.nonce();
        self.exchange = Some((group, private));
        let proposals = &sa.policy.as_ref()?.ike_proposals;
        let offers = offer_ike(proposals, &spi.0.to_be_bytes(), suite.additional.is_some());
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
        if let Some(leg) = self.leg.take() {
            match leg.finish(sa, core, parts.as_ref()) {
                Ok((agreed, additional)) => self.replace(sa, core, now, agreed, Some(&additional), None),
                Err(lost) => {
                    self.abandon(core);
                    sa.rekey_at = lost.again.then(|| retry_rekey_at(core, now));
                }
            }
            return;
        }
        let put_off = parts.as_ref().and_then(Parts::error) == Some(NotifyType::TEMPORARY_FAILURE);
        let agreed = parts
            .as_ref()
            .and_then(|parts| Some((parts, self.agree(sa, core, parts)?)));
        let rival = sa.rival.take();
        let Some((parts, agreed)) = agreed else {
            match rival.and_then(|rival| rival.heir) {
                Some(heir) => move_to(sa, core, heir, Ending::AwaitDelete),
                None if put_off => sa.rekey_at = Some(retry_rekey_at(core, now)),
                None => {}
            }
            self.abandon(core);
            return;
        };
        let lost = rival.filter(|rival| self.ni.as_slice().min(&agreed.nr) < rival.lowest.as_slice());
        match agreed.suite.additional {
            Some(method) => self.follow(sa, core, now, method, parts, agreed, lost),
            None => self.replace(sa, core, now, agreed, None, lost),
        }
    }

    /// Goes on to the additional key exchange, unless the peer's own rekeying goes before ours.
    fn follow<K, R>(
        mut self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        method: DhGroup,
        parts: &Parts<'_>,
        agreed: Agreed,
        lost: Option<Rival>,
    ) where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let leg = Leg::new(sa.id, method, parts, agreed);
        if let Some(leg) = leg.filter(|_| lost.is_none()) {
            forget(sa, core, Awaited::is_ike);
            self.leg = Some(leg);
            sa.queue.push_front(Task::IkeRekey(Box::new(self)));
            return;
        }
        self.abandon(core);
        if let Some(rival) = lost {
            await_heir(sa, core, now, rival);
        }
    }

    /// Every secret is there: makes the new SA.
    fn replace<K, R>(
        mut self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        agreed: Agreed,
        additional: Option<&Secret>,
        lost: Option<Rival>,
    ) where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let inputs = Inputs {
            spi_i: agreed.spi,
            spi_r: agreed.peer_spi,
            ni: &self.ni,
            nr: &agreed.nr,
        };
        let (suite, shared) = (agreed.suite, &agreed.shared);
        let keys = sa.keys.as_ref();
        let keys = keys.and_then(|old| old.rekeyed(&core.keygen, suite, shared, additional, inputs));
        let Some(keys) = keys else {
            self.abandon(core);
            return;
        };
        let nonce = core::mem::take(&mut self.ni);
        let (spi, peer_spi) = (agreed.spi, agreed.peer_spi);
        let mut new = spawn(sa, core, now, Role::Initiator, spi, peer_spi, keys, nonce);
        let id = new.id;
        if lost.is_some() {
            new.enqueue(Task::DeleteIke {
                reason: FailReason::Redundant,
            });
        }
        core.effects.push(Effect::Spawn(new));
        match lost {
            Some(rival) => await_heir(sa, core, now, rival),
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
        let additional = match sa.keys.as_ref()?.suite.additional {
            Some(_) => Additional::Possible,
            None => Additional::Unsupported,
        };
        let chosen = accept_ike(ours, parts.sa?, SPI_LEN, additional)?;
        let (sent, public) = parts.ke?;
        if sent != group.number() || chosen.suite.group != group {
            return None;
        }
        let shared = core.keygen.finish(private, public).ok()?;
        Some(Agreed {
            suite: chosen.suite,
            shared,
            spi: self.spi?,
            peer_spi: peer_spi(&chosen.spi)?,
            nr: parts.nonce?.to_vec(),
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
    suite: IkeSuite,
    shared: Secret,
    /// Our SPI.
    spi: IkeSpi,
    peer_spi: IkeSpi,
    nr: Vec<u8>,
}

fn peer_spi(bytes: &[u8]) -> Option<IkeSpi> {
    let spi = u64::from_be_bytes(bytes.try_into().ok()?);
    (spi != 0).then_some(IkeSpi(spi))
}

/// The peer's rekeying goes before ours: on to what it made, or is yet to make.
fn await_heir<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, now: Instant, rival: Rival) {
    match rival.heir {
        Some(heir) => move_to(sa, core, heir, Ending::AwaitDelete),
        // Should it never.
        None => sa.rekey_at = Some(retry_rekey_at(core, now)),
    }
}

/// Whether the peer may replace the IKE SA now, and if so whether a rekeying of ours crosses it: not while a CHILD SA of
/// ours is being made or ended (RFC 7296 §2.25.2), or our own rekeying is decided (RFC 9370 §2.2.4).
fn may_be_replaced<P>(sa: &IkeSa<P>) -> Option<bool> {
    match sa.outstanding.as_ref().map(|out| &out.task) {
        _ if sa.state != State::Established || sa.moving => None,
        None | Some(Task::Dpd) => Some(false),
        Some(Task::IkeRekey(ours)) if !ours.follows() => Some(true),
        Some(_) => None,
    }
}

/// Answers the peer's rekeying.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) -> Result<(), Payload<'static>> {
    let Some(crossed) = may_be_replaced(sa).filter(|_| sa.rival.is_none()) else {
        return Err(Payload::bare(NotifyType::TEMPORARY_FAILURE));
    };
    let (Some(proposals), Some((group, public)), Some(ni)) = (parts.sa, parts.ke, parts.nonce) else {
        return Err(Payload::bare(NotifyType::INVALID_SYNTAX));
    };
    let ours = sa
        .policy
        .as_ref()
        .map(|policy| policy.ike_proposals.as_slice())
        .unwrap_or_default();
    let chosen = choose_ike(ours, proposals, SPI_LEN).ok_or(Payload::bare(NotifyType::NO_PROPOSAL_CHOSEN))?;
    let wanted = chosen.suite.group;
    if group != wanted.number() {
        let data = wanted.number().to_be_bytes().to_vec();
        return Err(Payload::notify(NotifyType::INVALID_KE_PAYLOAD, data));
    }
    let spi_i = peer_spi(&chosen.spi).ok_or(Payload::bare(NotifyType::INVALID_SYNTAX))?;
    let (our_public, shared) = core
        .keygen
        .respond(wanted, public, &mut core.rng)
        .map_err(|_| Payload::bare(NotifyType::INVALID_SYNTAX))?;
    let (nr, spi_r) = (core.nonce(), core.new_ike_spi());
    let mut payloads = vec![
        Payload::Sa(vec![chosen.answer(&spi_r.0.to_be_bytes())]),
        Payload::Nonce(nr.clone().into()),
        Payload::Ke {
            group,
            data: our_public.into(),
        },
    ];
    let suite = chosen.suite;
    if let Some(method) = suite.additional {
        if crossed {
            let lowest = ni.min(&nr).to_vec();
            sa.rival = Some(Rival { heir: None, lowest });
        }
        let of = Of::Ike { suite, spi_i, spi_r };
        payloads.push(wait_for(sa, core, now, method, (ni, &nr, shared), of));
        answer(sa, core, header.exchange, header.message_id, &payloads);
        return Ok(());
    }
    let keying = Keying {
        ni,
        nr: &nr,
        shared: Some(&shared),
        additional: None,
    };
    complete(sa, core, now, header, suite, (spi_i, spi_r), &keying, &payloads)
}

/// Makes the new SA the peer asked for, with the last message of its series.
pub(super) fn complete<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    suite: IkeSuite,
    (spi_i, spi_r): (IkeSpi, IkeSpi),
    keying: &Keying<'_>,
    payloads: &[Payload<'_>],
) -> Result<(), Payload<'static>> {
    let Keying { ni, nr, .. } = *keying;
    let inputs = Inputs { spi_i, spi_r, ni, nr };
    let keys = sa
        .keys
        .as_ref()
        .zip(keying.shared)
        .and_then(|(old, shared)| old.rekeyed(&core.keygen, suite, shared, keying.additional, inputs));
    let (crossed, keys) = match (may_be_replaced(sa), keys) {
        (Some(crossed), Some(keys)) => (crossed, keys),
        (crossed, _) => {
            core.release_ike_spi(spi_r);
            let kind = match crossed {
                Some(_) => NotifyType::NO_PROPOSAL_CHOSEN,
                None => NotifyType::TEMPORARY_FAILURE,
            };
            return Err(Payload::bare(kind));
        }
    };
    answer(sa, core, header.exchange, header.message_id, payloads);
    let mut new = spawn(sa, core, now, Role::Responder, spi_r, spi_i, keys, ni.to_vec());
    let heir = new.id;
    if crossed {
        // Should ours win, the peer deletes this one.
        new.expire_at = Some(now + Ending::DELETE_WITHIN);
        sa.rival = Some(Rival {
            heir: Some(heir),
            lowest: ni.min(nr).to_vec(),
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
