//! CREATE_CHILD_SA that replaces a CHILD SA, as initiator (RFC 7296 §1.3.3, §2.8): make before break.
//!
//! ```text
//! SK { N(REKEY_SA), SA, Ni, [KEi,] TSi, TSr }   -->
//!                                               <--   SK { SA, Nr, [KEr,] TSi, TSr }
//!                                                     (the owner says that it is ready)
//! SK { D }                                      -->   (the old one)
//! ```
//!
//! Where both sides start at once, both exchanges run to their end and make two CHILD SAs. The one whose exchange
//! had the lowest of the four nonces is deleted by the side that made it; the other side deletes the old one
//! (RFC 7296 §2.8.1).

use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng, Secret};
use towpath_base::ids::Spi;

use super::child_create::{self, Agreement, Keying};
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
        }
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
    ) -> Option<Vec<Payload<'static>>>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        if sa.state != State::Established {
            return None;
        }
        let child = sa
            .child(self.old)
            .filter(|child| !child.deleting && !child.replaced)?;
        let policy = sa.policy.as_ref()?;
        let group = self.group.or(sa.keys.as_ref().map(|keys| keys.suite.group));
        let group = group.filter(|_| core.config.pfs);
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
            Some((group, _)) => with_group(&offers, *group),
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
        let Some(parts) = Parts::collect(payloads) else {
            core.release_esp_spi(sa.local.ip(), spi);
            return;
        };
        let result = match self.agree(sa, core, &parts) {
            Ok((agreement, shared)) => {
                let nr = parts.nonce.unwrap_or_default();
                if self.lost(sa, nr) {
                    discard(sa, &agreement, spi);
                    return;
                }
                let keying = Keying {
                    ni: &self.ni,
                    nr,
                    shared: shared.as_ref(),
                };
                let (role, old) = (Role::Initiator, Some(self.old));
                child_create::install(sa, core, now, agreement, spi, role, &keying, old)
            }
            Err(reason) => Err(reason),
        };
        match result {
            Ok(()) => self.won(sa, core, now, spi),
            Err(reason) => {
                core.release_esp_spi(sa.local.ip(), spi);
                self.refused(sa, core, now, &parts, reason);
            }
        }
    }

    /// What the response agrees to, and the secret of the additional key exchange.
    fn agree<K, R>(
        &mut self,
        sa: &Sa<K>,
        core: &Core<K, R>,
        parts: &Parts<'_>,
    ) -> Result<(Agreement, Option<Secret>), FailReason>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let exchange = self.exchange.take();
        let offered = exchange.as_ref().map(|(group, _)| *group);
        let agreement = child_create::accept_rekeyed(sa, parts, sa.child(self.old), offered)?;
        if parts.nonce.is_none() {
            return Err(FailReason::ProtocolError);
        }
        let shared = match (agreement.group(), exchange, parts.ke) {
            (None, _, _) => None,
            (Some(group), Some((_, private)), Some((sent, public))) if sent == group.number() => {
                let shared = core.keygen.finish(private, public);
                Some(shared.map_err(|_| FailReason::BadPublicValue)?)
            }
            _ => return Err(FailReason::ProtocolError),
        };
        Ok((agreement, shared))
    }

    /// Whether what we made is not to be used: the peer's own rekeying goes before ours, or ended the old one.
    fn lost(&self, sa: &IkeSa<P>, nr: &[u8]) -> bool {
        let ours = self.ni.as_slice().min(nr);
        match &self.rival {
            Some(rival) => ours < rival.lowest.as_slice(),
            None => sa.child(self.old).is_none(),
        }
    }

    fn won<K, R>(&self, sa: &mut Sa<K>, core: &Core<K, R>, now: Instant, spi: Spi)
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        if let Some(rival) = self.rival.as_ref().and_then(|rival| sa.child_mut(rival.spi_in)) {
            // The peer, who made it, deletes it; should it forget, the hard limit does.
            rival.replaced = true;
            rival.soft_at = None;
        }
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
            let again = retry_rekey_at(core, now);
            if let Some(old) = sa.child_mut(self.old) {
                old.rekeying = false;
                old.soft_at = Some(again);
            }
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

    pub(super) fn abandon<K: KeyGenerator, R: Rng>(self, core: &mut Core<K, R>, local: IpAddr) {
        if let Some(spi) = self.new {
            core.release_esp_spi(local, spi);
        }
    }
}

/// Every proposal with a key exchange first, then again without.
fn with_group(offers: &[Proposal], group: DhGroup) -> Vec<Proposal> {
    let with = offers.iter().cloned().map(|mut proposal| {
        proposal
            .transforms
            .push(Transform::new(TransformType::KE, group.number()));
        proposal
    });
    let mut all: Vec<_> = with.chain(offers.iter().cloned()).collect();
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
