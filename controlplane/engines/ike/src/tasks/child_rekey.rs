//! CREATE_CHILD_SA that replaces a CHILD SA, as initiator (RFC 7296 §1.3.3, §2.8): make before break.
//!
//! ```text
//! SK { N(REKEY_SA), SA, Ni, TSi, TSr }   -->
//!                                        <--   SK { SA, Nr, TSi, TSr }
//! SK { D }                               -->   (the old one)
//! ```

use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::Spi;

use super::child_create::{self, Keying};
use super::{Parts, Task};
use crate::choose::offer_esp;
use crate::command::{FailReason, Role};
use crate::endpoint::Core;
use crate::sa::{Sa, State, retry_rekey_at};
use crate::wire::{Notify, NotifyType, Payload, Protocol};

/// One rekeying of ours.
#[derive(Debug)]
pub(crate) struct ChildRekey {
    /// SPI of packets to us of the CHILD SA to be replaced.
    old: Spi,
    /// SPI of packets to us of the new one, once built.
    new: Option<Spi>,
    ni: Vec<u8>,
}

impl ChildRekey {
    pub(super) const fn new(old: Spi) -> Self {
        Self {
            old,
            new: None,
            ni: Vec::new(),
        }
    }

    pub(super) fn build<K: KeyGenerator, R: Rng>(
        &mut self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
    ) -> Option<Vec<Payload<'static>>> {
        if sa.state != State::Established {
            return None;
        }
        let child = sa
            .child(self.old)
            .filter(|child| !child.deleting && !child.replaced)?;
        let policy = sa.policy.as_ref()?;
        let spi = core.new_esp_spi(sa.local.ip());
        self.new = Some(spi);
        self.ni = core.nonce();
        let mut rekey = Notify::new(NotifyType::REKEY_SA, &[][..]);
        rekey.protocol = Protocol::ESP.0;
        rekey.spi = self.old.0.to_be_bytes().to_vec().into();
        let mut payloads = vec![
            Payload::Notify(rekey),
            Payload::Sa(offer_esp(&policy.esp_suites, policy.esn, spi)),
            Payload::Nonce(self.ni.clone().into()),
            Payload::TsI(child.local_ts.clone()),
            Payload::TsR(child.remote_ts.clone()),
        ];
        payloads.extend(child_create::notifies(child.mode));
        Some(payloads)
    }

    pub(super) fn process<K: KeyGenerator, R: Rng>(
        self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        payloads: &[Payload<'_>],
    ) {
        let Some(spi) = self.new else { return };
        let (parts, old) = (Parts::collect(payloads), sa.child(self.old).cloned());
        let created = parts.as_ref().zip(old.as_ref()).map(|(parts, old)| {
            let agreement = child_create::accept(sa, parts, Some(old))?;
            let keying = Keying {
                ni: &self.ni,
                nr: parts.nonce.ok_or(FailReason::ProtocolError)?,
                shared: None,
            };
            child_create::install(
                sa,
                core,
                now,
                agreement,
                spi,
                Role::Initiator,
                &keying,
                Some(self.old),
            )
        });
        match created {
            Some(Ok(())) => {
                if let Some(old) = sa.child_mut(self.old) {
                    old.replaced = true;
                    old.deleting = true;
                    sa.enqueue(Task::DeleteChild {
                        spi_in: self.old,
                        reason: FailReason::Rekeyed,
                    });
                }
                return;
            }
            Some(Err(FailReason::Notify(kind))) if kind == NotifyType::CHILD_SA_NOT_FOUND.0 => {
                sa.remove_child(core, self.old, FailReason::DeletedByPeer);
            }
            Some(Err(FailReason::Notify(kind))) if kind == NotifyType::TEMPORARY_FAILURE.0 => {
                let again = retry_rekey_at(core, now);
                if let Some(old) = sa.child_mut(self.old) {
                    old.rekeying = false;
                    old.soft_at = Some(again);
                }
            }
            // Refused for good: the CHILD SA lives on until its hard limit.
            _ => {}
        }
        core.release_esp_spi(sa.local.ip(), spi);
    }

    pub(super) fn abandon<K: KeyGenerator, R: Rng>(self, core: &mut Core<K, R>, local: IpAddr) {
        if let Some(spi) = self.new {
            core.release_esp_spi(local, spi);
        }
    }
}
