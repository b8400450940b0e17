//! CREATE_CHILD_SA that replaces a CHILD SA, as initiator (RFC 7296 §1.3.3, §2.8): make before break.
//!
//! ```text
//! SK { N(REKEY_SA), SA, Ni, [KEi,] TSi, TSr }   -->
//!                                               <--   SK { SA, Nr, [KEr,] TSi, TSr }
//!                                                     (perhaps IKE_FOLLOWUP_KE)
//!                                                     (the owner says that it is ready)
//! SK { D }                                      -->   (the old one)
//! ```
//!
//! Where both sides start at once, both exchanges run to their end and make two CHILD SAs. The one whose exchange
//! had the lowest of the four nonces is deleted by the side that made it; the other side deletes the old one
//! (RFC 7296 §2.8.1).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng, Secret};
use towpath_base::ids::Spi;

use super::child_create::{self, Agreement, Keying};
use super::followup::{Leg, forget};
use super::{Parts, Task};
use crate::choose::offer_esp;
use crate::command::{FailReason, Role};
use crate::endpoint::Core;
use crate::sa::{Child, IkeSa, Sa, State, retry_rekey_at};
use crate::wire::{Notify, NotifyType, Payload, Proposal, Protocol, Transform, TransformType};

/// Requests with another group, because the peer wants one.
const MAX_ATTEMPTS: u8 = 2;

/// The peer's rekeying of the same CHILD SA, answered while ours was on its way.
#[derive(Debug)]
struct Rival {
    /// SPI of packets to us of the CHILD SA it made.
    spi_in: Spi,
    /// The lower of its two nonces.
    lowest: Vec<u8>,
}

/// One rekeying of ours.
pub(crate) struct ChildRekey<P> {
    /// SPI of packets to us of the CHILD SA to be replaced.
    old: Spi,
    /// SPI of packets to us of the new one, once built.
    new: Option<Spi>,
    ni: Vec<u8>,
    /// Group the peer asked for.
    group: Option<DhGroup>,
    exchange: Option<(DhGroup, P)>,
    attempts: u8,
    rival: Option<Rival>,
    /// The additional key exchange that is to come.
    leg: Option<Box<Leg<P, Agreed>>>,
}

/// What CREATE_CHILD_SA brought.
struct Agreed {
    agreement: Agreement,
    shared: Option<Secret>,
    nr: Vec<u8>,
}

impl<P> ChildRekey<P> {
    pub(super) const fn new(old: Spi) -> Self {
        Self {
            old,
            new: None,
            ni: Vec::new(),
            group: None,
            exchange: None,
            attempts: 0,
            rival: None,
            leg: None,
        }
    }

    /// The CHILD SA to be replaced.
    pub(super) const fn old(&self) -> Spi {
        self.old
    }

    /// CREATE_CHILD_SA is through, IKE_FOLLOWUP_KE is to come.
    pub(super) const fn follows(&self) -> bool {
        self.leg.is_some()
    }

    /// The peer rekeyed the same CHILD SA meanwhile, with these nonces.
    pub(super) fn crossed(&mut self, old: Spi, spi_in: Spi, ni: &[u8], nr: &[u8]) {
        if self.old == old {
            let lowest = ni.min(nr).to_vec();
            self.rival = Some(Rival { spi_in, lowest });
        }
    }

    pub(super) fn build<K, R>(
        &mut self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
    ) -> Option<Vec<Payload<'static>>>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        if let Some(mut leg) = self.leg.take() {
            if leg.goes_on_in(sa.id) && sa.state == State::Established {
                let payloads = leg.build(core);
                self.leg = Some(leg);
                return payloads;
            }
            // The CHILD SAs went to another IKE SA meanwhile: from the beginning.
            self.release(core, sa.local.ip());
            (self.rival, self.attempts) = (None, 0);
        }
        if sa.state != State::Established {
            return None;
        }
        if sa.followups.iter().any(|awaited| awaited.is_to_replace(self.old)) {
            // The peer is at it.
            put_off(sa, core, now, self.old);
            return None;
        }
        let child = sa
            .child(self.old)
            .filter(|child| !child.deleting && !child.replaced)?;
        let policy = sa.policy.as_ref()?;
        let suite = sa.keys.as_ref().map(|keys| keys.suite);
        let group = self.group.or(suite.map(|suite| suite.group));
        let group = group.filter(|_| core.config.pfs);
        let additional = suite.and_then(|suite| suite.additional);
        // A group the key generator lacks cannot be in the IKE SA's suite; without one there is still a rekeying.
        let exchange =
            group.and_then(|group| Some((group, core.keygen.initiate(group, &mut core.rng).ok()?)));
        let spi = core.new_esp_spi(sa.local.ip());
        self.new = Some(spi);
        self.ni = core.nonce();
        self.attempts += 1;
        let mut rekey = Notify::new(NotifyType::REKEY_SA, &[][..]);
        rekey.protocol = Protocol::ESP.0;
        rekey.spi = self.old.0.to_be_bytes().to_vec().into();
        let offers = offer_esp(&policy.esp_suites, policy.esn, spi);
        let mut payloads = vec![Payload::Notify(rekey)];
        payloads.push(Payload::Sa(match &exchange {
            Some((group, _)) => with_groups(&offers, *group, additional),
            None => offers,
        }));
        payloads.push(Payload::Nonce(self.ni.clone().into()));
        self.exchange = exchange.map(|(group, (private, public))| {
            payloads.push(Payload::Ke {
                group: group.number(),
                data: public.into(),
            });
            (group, private)
        });
        payloads.push(Payload::TsI(child.local_ts.clone()));
        payloads.push(Payload::TsR(child.remote_ts.clone()));
        payloads.extend(child_create::notifies(child.mode));
        Some(payloads)
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
        let Some(spi) = self.new else { return };
        let parts = Parts::collect(payloads);
        if let Some(leg) = self.leg.take() {
            match leg.finish(sa, core, parts.as_ref()) {
                Ok((agreed, additional)) => self.make(sa, core, now, agreed, Some(&additional)),
                Err(lost) => {
                    self.release(core, sa.local.ip());
                    if lost.again {
                        put_off(sa, core, now, self.old);
                    }
                }
            }
            return;
        }
        let Some(parts) = parts else {
            core.release_esp_spi(sa.local.ip(), spi);
            return;
        };
        match self.agree(sa, core, &parts) {
            Ok(agreed) => match agreed.agreement.additional() {
                Some(method) => self.follow(sa, core, now, method, &parts, agreed),
                None => self.make(sa, core, now, agreed, None),
            },
            Err(reason) => {
                self.release(core, sa.local.ip());
                self.refused(sa, core, now, &parts, reason);
            }
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
    ) where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let lost = self.lost(sa, &agreed.nr);
        let leg = Leg::new(sa.id, method, parts, agreed).filter(|_| !lost);
        let Some(leg) = leg else {
            self.release(core, sa.local.ip());
            if lost {
                put_off(sa, core, now, self.old);
            }
            return;
        };
        forget(sa, core, |awaited| awaited.is_to_replace(self.old));
        self.leg = Some(Box::new(leg));
        sa.queue.push_front(Task::ChildRekey(self));
    }

    /// Every secret is there.
    fn make<K, R>(
        self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        agreed: Agreed,
        additional: Option<&Secret>,
    ) where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let Some(spi) = self.new else { return };
        let Agreed {
            agreement,
            shared,
            nr,
        } = agreed;
        if self.lost(sa, &nr) {
            discard(sa, &agreement, spi);
            return;
        }
        let keying = Keying {
            ni: &self.ni,
            nr: &nr,
            shared: shared.as_ref(),
            additional,
        };
        let (role, old) = (Role::Initiator, Some(self.old));
        match child_create::install(sa, core, now, agreement, spi, role, &keying, old) {
            Ok(()) => self.won(sa, core, now, spi),
            // Refused for good: the CHILD SA lives on until its hard limit.
            Err(_) => core.release_esp_spi(sa.local.ip(), spi),
        }
    }

    /// Gives the SPI of what will not be back.
    fn release<K: KeyGenerator, R: Rng>(&mut self, core: &mut Core<K, R>, local: IpAddr) {
        if let Some(spi) = self.new.take() {
            core.release_esp_spi(local, spi);
        }
    }

    /// What the response agrees to.
    fn agree<K, R>(&mut self, sa: &Sa<K>, core: &Core<K, R>, parts: &Parts<'_>) -> Result<Agreed, FailReason>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let exchange = self.exchange.take();
        let offered = exchange.as_ref().map(|(group, _)| *group);
        let additional = sa.keys.as_ref().and_then(|keys| keys.suite.additional);
        let agreement = child_create::accept_rekeyed(sa, parts, sa.child(self.old), offered, additional)?;
        let nr = parts.nonce.ok_or(FailReason::ProtocolError)?.to_vec();
        let shared = match (agreement.group(), exchange, parts.ke) {
            (None, _, _) => None,
            (Some(group), Some((_, private)), Some((sent, public))) if sent == group.number() => {
                let shared = core.keygen.finish(private, public);
                Some(shared.map_err(|_| FailReason::BadPublicValue)?)
            }
            _ => return Err(FailReason::ProtocolError),
        };
        Ok(Agreed {
            agreement,
            shared,
            nr,
        })
    }

    /// Whether what we made is not to be used: the peer's own rekeying goes before ours, or ended the old one.
    fn lost(&self, sa: &IkeSa<P>, nr: &[u8]) -> bool {
        let ours = self.ni.as_slice().min(nr);
        match &self.rival {
            Some(rival) => ours < rival.lowest.as_slice(),
            None => sa.child(self.old).is_none(),
        }
    }

    fn won<K, R>(&self, sa: &mut Sa<K>, core: &mut Core<K, R>, now: Instant, spi: Spi)
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        if let Some(rival) = self.rival.as_ref().and_then(|rival| sa.child_mut(rival.spi_in)) {
            // The peer, who made it, deletes it; should it forget, the hard limit does.
            rival.replaced = true;
            rival.soft_at = None;
        }
        forget(sa, core, |awaited| awaited.is_to_replace(self.old));
        let wait = core.config.ready_within;
        let Some(old) = sa.child_mut(self.old) else { return };
        old.replaced = true;
        old.soft_at = None;
        if wait.is_zero() {
            old.deleting = true;
            sa.enqueue(Task::DeleteChild {
                spi_in: self.old,
                reason: FailReason::Rekeyed,
            });
        } else {
            old.delete_at = Some(now + wait);
            if let Some(new) = sa.child_mut(spi) {
                new.replaces = Some(self.old);
            }
        }
    }

    fn refused<K, R>(
        self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        parts: &Parts<'_>,
        reason: FailReason,
    ) where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let kind = match reason {
            FailReason::Notify(kind) => NotifyType(kind),
            _ => NotifyType(0),
        };
        let replaced = sa.child(self.old).is_none_or(|child| child.replaced);
        if kind == NotifyType::CHILD_SA_NOT_FOUND {
            let reason = if replaced {
                FailReason::Rekeyed
            } else {
                FailReason::DeletedByPeer
            };
            sa.remove_child(core, self.old, reason);
        } else if replaced {
            // The peer's own rekeying came through.
        } else if let Some(group) = self.other_group(sa, parts, kind) {
            let mut again = Self::new(self.old);
            (again.group, again.attempts) = (Some(group), self.attempts);
            sa.queue.push_front(Task::ChildRekey(again));
        } else if kind == NotifyType::TEMPORARY_FAILURE {
            put_off(sa, core, now, self.old);
        }
        // Refused for good: the CHILD SA lives on until its hard limit.
    }

    /// The group the peer wants instead (RFC 7296 §1.3), if it is one our policy names.
    fn other_group(&self, sa: &IkeSa<P>, parts: &Parts<'_>, kind: NotifyType) -> Option<DhGroup> {
        if kind != NotifyType::INVALID_KE_PAYLOAD || self.attempts >= MAX_ATTEMPTS {
            return None;
        }
        let data = <[u8; 2]>::try_from(parts.notify(kind)?.data.as_ref()).ok()?;
        let wanted = DhGroup::from_number(u16::from_be_bytes(data))?;
        let mut proposals = sa.policy.as_ref()?.ike_proposals.iter();
        proposals
            .any(|proposal| proposal.groups.contains(&wanted))
            .then_some(wanted)
    }

    pub(super) fn abandon<K: KeyGenerator, R: Rng>(mut self, core: &mut Core<K, R>, local: IpAddr) {
        self.release(core, local);
    }
}

/// The CHILD SA is rekeyed later, unless the peer has done it by then.
fn put_off<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, now: Instant, old: Spi) {
    let again = retry_rekey_at(core, now);
    if let Some(old) = sa.child_mut(old).filter(|old| !old.replaced && !old.deleting) {
        old.rekeying = false;
        old.soft_at = Some(again);
    }
}

/// Every proposal with a key exchange and the additional one first, then without the additional one, then with none.
fn with_groups(offers: &[Proposal], group: DhGroup, additional: Option<DhGroup>) -> Vec<Proposal> {
    let first = Transform::new(TransformType::KE, group.number());
    let second = additional.map(|method| Transform::new(TransformType::ADDKE1, method.number()));
    let hybrid = second.map(|second| vec![first, second]);
    let choices = [hybrid, Some(vec![first]), Some(Vec::new())];
    let mut all = Vec::new();
    for choice in choices.into_iter().flatten() {
        all.extend(offers.iter().cloned().map(|mut proposal| {
            proposal.transforms.extend(&choice);
            proposal
        }));
    }
    for (proposal, number) in all.iter_mut().zip(1..) {
        proposal.number = number;
    }
    all
}

/// Deletes what nobody is to use, without a word to the owner.
fn discard<P>(sa: &mut IkeSa<P>, agreement: &Agreement, spi_in: Spi) {
    sa.children.push(Child {
        deleting: true,
        silent: true,
        ..agreement.child(spi_in)
    });
    sa.enqueue(Task::DeleteChild {
        spi_in,
        reason: FailReason::Redundant,
    });
}
