//! Exchanges as tasks (after strongSwan): one file each, with the half that builds and the half that processes.
//!
//! | file | exchange |
//! |---|---|
//! | [`ike_init`] | IKE_SA_INIT: suite, key exchange, nonces |
//! | [`intermediate`] | IKE_INTERMEDIATE: an additional key exchange |
//! | [`ike_auth`] | IKE_AUTH: identities, AUTH, first CHILD SA |
//! | [`child_create`] | the CHILD SA part of IKE_AUTH and CREATE_CHILD_SA, as responder also new ones |
//! | [`child_rekey`] | CREATE_CHILD_SA with REKEY_SA |
//! | [`ike_rekey`] | CREATE_CHILD_SA for a new IKE SA |
//! | [`followup`] | IKE_FOLLOWUP_KE: an additional key exchange of one of these |
//! | [`delete`] | INFORMATIONAL with Delete payloads |
//! | [`mobike`] | INFORMATIONAL with new addresses |
//! | [`natd`] | the NAT detection part of IKE_SA_INIT |
//!
//! Liveness checks (RFC 7296 §2.4) are an empty INFORMATIONAL and need no file.

pub(crate) mod child_create;
pub(crate) mod child_rekey;
pub(crate) mod delete;
pub(crate) mod followup;
pub(crate) mod ike_auth;
pub(crate) mod ike_init;
pub(crate) mod ike_rekey;
pub(crate) mod intermediate;
pub(crate) mod mobike;
pub(crate) mod natd;
mod parts;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::Spi;

pub(crate) use followup::{Awaited, forget};
pub(crate) use parts::Parts;

use crate::command::FailReason;
use crate::endpoint::Core;
use crate::sa::{Sa, answer};
use crate::wire::{ExchangeType, Header, NotifyType, Payload, Protocol};

/// A request of ours, queued or waiting for its response.
pub(crate) enum Task<P> {
    /// IKE_SA_INIT.
    IkeInit,
    /// IKE_INTERMEDIATE with an additional key exchange.
    Intermediate,
    /// IKE_AUTH with the first CHILD SA.
    IkeAuth {
        /// SPI of packets to us, once built.
        spi_in: Option<Spi>,
    },
    /// CREATE_CHILD_SA that replaces a CHILD SA.
    ChildRekey(child_rekey::ChildRekey<P>),
    /// CREATE_CHILD_SA that replaces the IKE SA.
    IkeRekey(Box<ike_rekey::IkeRekey<P>>),
    /// Delete of one CHILD SA.
    DeleteChild {
        /// SPI of packets to us.
        spi_in: Spi,
        /// What the owner is told.
        reason: FailReason,
    },
    /// Delete of the IKE SA.
    DeleteIke {
        /// What the owner is told.
        reason: FailReason,
    },
    /// Addresses changed, or did they?
    Mobike(mobike::Mobike),
    /// Is the peer there?
    Dpd,
}

impl<P> Task<P> {
    pub(crate) const fn child_rekey(old: Spi) -> Self {
        Self::ChildRekey(child_rekey::ChildRekey::new(old))
    }

    pub(crate) fn ike_rekey() -> Self {
        Self::IkeRekey(Box::default())
    }

    pub(crate) const fn exchange(&self) -> ExchangeType {
        match self {
            Self::IkeInit => ExchangeType::IKE_SA_INIT,
            Self::Intermediate => ExchangeType::IKE_INTERMEDIATE,
            Self::IkeAuth { .. } => ExchangeType::IKE_AUTH,
            Self::ChildRekey(rekey) if rekey.follows() => ExchangeType::IKE_FOLLOWUP_KE,
            Self::IkeRekey(rekey) if rekey.follows() => ExchangeType::IKE_FOLLOWUP_KE,
            Self::ChildRekey(_) | Self::IkeRekey(_) => ExchangeType::CREATE_CHILD_SA,
            Self::DeleteChild { .. } | Self::DeleteIke { .. } | Self::Mobike(_) | Self::Dpd => {
                ExchangeType::INFORMATIONAL
            }
        }
    }

    /// Payloads of the request; `None` if there is nothing to do any more.
    pub(crate) fn build<K, R>(
        &mut self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
    ) -> Option<Vec<Payload<'static>>>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        match self {
            Self::IkeInit => ike_init::build(sa, core),
            Self::Intermediate => intermediate::build(sa, core),
            Self::IkeAuth { spi_in } => ike_auth::build(sa, core, now, spi_in),
            Self::ChildRekey(rekey) => rekey.build(sa, core, now),
            Self::IkeRekey(rekey) => rekey.build(sa, core),
            Self::DeleteChild { spi_in, .. } => delete::build_child(sa, *spi_in),
            Self::DeleteIke { reason } => delete::build_ike(sa, core, now, *reason),
            Self::Mobike(mobike) => mobike.build(sa, core),
            Self::Dpd => Some(Vec::new()),
        }
    }

    /// Takes the response. IKE_SA_INIT has its own way in, because nothing protects it.
    pub(crate) fn process<K, R>(
        self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        payloads: &[Payload<'_>],
    ) where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        match self {
            Self::Intermediate => intermediate::process(sa, core, now, payloads),
            Self::IkeAuth { spi_in } => ike_auth::process(sa, core, now, payloads, spi_in),
            Self::ChildRekey(rekey) => rekey.process(sa, core, now, payloads),
            Self::IkeRekey(rekey) => rekey.process(sa, core, now, payloads),
            Self::DeleteChild { spi_in, reason } => sa.remove_child(core, spi_in, reason),
            Self::DeleteIke { reason } => sa.end(core, now, reason),
            Self::Mobike(mobike) => mobike.process(sa, core, now, payloads),
            Self::IkeInit | Self::Dpd => {}
        }
    }

    /// Gives back what a task had reserved.
    pub(crate) fn abandon<K, R>(self, core: &mut Core<K, R>, local: IpAddr)
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        match self {
            Self::IkeAuth { spi_in: Some(spi) } => core.release_esp_spi(local, spi),
            Self::ChildRekey(rekey) => rekey.abandon(core, local),
            Self::IkeRekey(rekey) => rekey.abandon(core),
            _ => {}
        }
    }
}

/// Answers an authentic request.
pub(crate) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    payloads: &[Payload<'_>],
) {
    let Some(parts) = Parts::collect(payloads) else {
        refuse(sa, core, header, NotifyType::INVALID_SYNTAX);
        return;
    };
    match header.exchange {
        ExchangeType::IKE_INTERMEDIATE => intermediate::respond(sa, core, now, header, &parts),
        ExchangeType::IKE_AUTH => ike_auth::respond(sa, core, now, header, &parts),
        ExchangeType::CREATE_CHILD_SA => {
            let for_ike = parts
                .sa
                .is_some_and(|sa| sa.iter().any(|p| p.protocol == Protocol::IKE));
            let answered = if for_ike {
                ike_rekey::respond(sa, core, now, header, &parts)
            } else {
                child_create::respond(sa, core, now, header, &parts)
            };
            if let Err(refusal) = answered {
                answer(sa, core, header.exchange, header.message_id, &[refusal]);
            }
        }
        ExchangeType::IKE_FOLLOWUP_KE => {
            if let Err(refusal) = followup::respond(sa, core, now, header, &parts) {
                answer(sa, core, header.exchange, header.message_id, &[refusal]);
            }
        }
        ExchangeType::INFORMATIONAL => delete::respond(sa, core, now, header, &parts),
        _ => refuse(sa, core, header, NotifyType::INVALID_SYNTAX),
    }
}

/// Answers with one error notify.
pub(crate) fn refuse<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    header: &Header,
    kind: NotifyType,
) {
    let payload = Payload::bare(kind);
    answer(sa, core, header.exchange, header.message_id, &[payload]);
}
