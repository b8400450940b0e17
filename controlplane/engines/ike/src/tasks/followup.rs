//! IKE_FOLLOWUP_KE (RFC 9370 §2.2.4): an additional key exchange that a CREATE_CHILD_SA agreed on. The SA comes about
//! with its last message, of all the secrets together.
//!
//! ```text
//! SK { SA, Ni, KEi, .. }                        -->
//!                                               <--   SK { SA, Nr, KEr, .., N(ADDITIONAL_KEY_EXCHANGE) }
//! SK { KEi(1), N(ADDITIONAL_KEY_EXCHANGE) }     -->
//!                                               <--   SK { KEr(1) }
//! ```
//!
//! The notify links the exchanges; what it says is the responder's choice. Rekeyings that cross are decided when
//! CREATE_CHILD_SA is through: the side that loses just stops, and what the other side keeps for it is dropped.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng, Secret};
use towpath_base::ids::{IkeSpi, Spi};

use super::child_create::{self, Agreement, Keying};
use super::{Parts, Task, ike_rekey};
use crate::command::FailReason;
use crate::config::IkeSaId;
use crate::endpoint::Core;
use crate::proposal::IkeSuite;
use crate::sa::{IkeSa, Sa, State};
use crate::wire::{Header, NotifyType, Payload};

/// Most series of the peer's that are waited for in one IKE SA.
const MAX_AWAITED: usize = 4;
/// Series in a row that the responder may forget before the IKE SA is given up (RFC 9370 §2.2.4).
const MAX_FORGOTTEN: u8 = 3;
/// Bytes of a link of ours.
const LINK_LEN: usize = 8;

/// The rest of a series of ours, with what CREATE_CHILD_SA brought.
pub(super) struct Leg<P, A> {
    /// The IKE SA whose SK_d goes in: the series cannot go on in another.
    of: IkeSaId,
    link: Vec<u8>,
    group: DhGroup,
    private: Option<P>,
    agreed: A,
}

impl<P, A> Leg<P, A> {
    /// `None` if the response has no link in it.
    pub(super) fn new(of: IkeSaId, group: DhGroup, parts: &Parts<'_>, agreed: A) -> Option<Self> {
        let link = parts.notify(NotifyType::ADDITIONAL_KEY_EXCHANGE)?.data.to_vec();
        Some(Self {
            of,
            link,
            group,
            private: None,
            agreed,
        })
    }

    pub(super) fn goes_on_in(&self, ike: IkeSaId) -> bool {
        self.of == ike
    }

    /// The request.
    pub(super) fn build<K, R>(&mut self, core: &mut Core<K, R>) -> Option<Vec<Payload<'static>>>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let (private, public) = core.keygen.initiate(self.group, &mut core.rng).ok()?;
        self.private = Some(private);
        Some(vec![
            Payload::Ke {
                group: self.group.number(),
                data: public.into(),
            },
            Payload::notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, self.link.clone()),
        ])
    }

    /// The response: what was agreed on, and the secret to go with it. A responder that forgets one series after the
    /// other is given up.
    pub(super) fn finish<K, R>(
        self,
        sa: &mut IkeSa<P>,
        core: &Core<K, R>,
        parts: Option<&Parts<'_>>,
    ) -> Result<(A, Secret), Lost>
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        match parts.and_then(Parts::error) {
            Some(NotifyType::STATE_NOT_FOUND) => {
                sa.forgotten = sa.forgotten.saturating_add(1);
                let again = sa.forgotten < MAX_FORGOTTEN;
                if !again {
                    sa.enqueue(Task::DeleteIke {
                        reason: FailReason::Notify(NotifyType::STATE_NOT_FOUND.0),
                    });
                }
                return Err(Lost { again });
            }
            Some(kind) => {
                let again = kind == NotifyType::TEMPORARY_FAILURE;
                return Err(Lost { again });
            }
            None => {}
        }
        let secret = match (self.private, parts.and_then(|parts| parts.ke)) {
            (Some(private), Some((sent, public))) if sent == self.group.number() => {
                core.keygen.finish(private, public).ok()
            }
            _ => None,
        };
        let secret = secret.ok_or(Lost { again: false })?;
        sa.forgotten = 0;
        Ok((self.agreed, secret))
    }
}

/// A series of ours that came to nothing.
pub(super) struct Lost {
    /// It is to be tried again later.
    pub(super) again: bool,
}

/// A series the peer began: what we agreed to, until its next message.
pub(crate) struct Awaited {
    link: [u8; LINK_LEN],
    group: DhGroup,
    /// When it is forgotten.
    pub(crate) due: Instant,
    pub(super) ni: Vec<u8>,
    pub(super) nr: Vec<u8>,
    pub(super) shared: Secret,
    of: Of,
}

/// What it is to make.
pub(super) enum Of {
    Child {
        agreement: Box<Agreement>,
        spi: Spi,
        replaces: Option<Spi>,
    },
    Ike {
        suite: IkeSuite,
        spi_i: IkeSpi,
        spi_r: IkeSpi,
    },
}

impl Awaited {
    /// To replace the IKE SA.
    pub(crate) const fn is_ike(&self) -> bool {
        matches!(self.of, Of::Ike { .. })
    }

    /// To replace this CHILD SA, named by the SPI of packets to us.
    pub(super) fn is_to_replace(&self, spi_in: Spi) -> bool {
        matches!(self.of, Of::Child { replaces, .. } if replaces == Some(spi_in))
    }

    fn release<K: KeyGenerator, R: Rng>(self, core: &mut Core<K, R>, local: IpAddr) {
        match self.of {
            Of::Child { spi, .. } => core.release_esp_spi(local, spi),
            Of::Ike { spi_r, .. } => core.release_ike_spi(spi_r),
        }
    }
}

/// Keeps what CREATE_CHILD_SA agreed on until the peer goes on; gives the notify that links the exchanges. What the
/// peer began before for the same purpose, it has given up.
pub(super) fn wait_for<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    group: DhGroup,
    (ni, nr, shared): (&[u8], &[u8], Secret),
    of: Of,
) -> Payload<'static> {
    match &of {
        Of::Ike { .. } => forget(sa, core, Awaited::is_ike),
        Of::Child { replaces, .. } => {
            let old = *replaces;
            forget(sa, core, |awaited| {
                old.is_some_and(|old| awaited.is_to_replace(old))
            });
        }
    }
    if sa.followups.len() >= MAX_AWAITED {
        sa.followups.remove(0).release(core, sa.local.ip());
    }
    let link = core.random();
    sa.followups.push(Awaited {
        link,
        group,
        due: now + core.config.followup_within,
        ni: ni.to_vec(),
        nr: nr.to_vec(),
        shared,
        of,
    });
    Payload::notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, link.to_vec())
}

/// Forgets the series of the peer's that `which` picks.
pub(crate) fn forget<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    which: impl Fn(&Awaited) -> bool,
) {
    while let Some(at) = sa.followups.iter().position(&which) {
        sa.followups.swap_remove(at).release(core, sa.local.ip());
    }
}

/// Answers the next message of a series, which is its last: we agree to one additional key exchange at most. Whatever
/// is wrong with it, the series is over.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) -> Result<(), Payload<'static>> {
    let link = parts.notify(NotifyType::ADDITIONAL_KEY_EXCHANGE);
    let link = link.map(|notify| notify.data.as_ref());
    let at = sa
        .followups
        .iter()
        .position(|awaited| Some(&awaited.link[..]) == link);
    let Some(at) = at.filter(|_| sa.state == State::Established) else {
        return Err(Payload::bare(NotifyType::STATE_NOT_FOUND));
    };
    let awaited = sa.followups.swap_remove(at);
    let group = awaited.group;
    let exchanged = match parts.ke {
        Some((sent, public)) if sent == group.number() => {
            core.keygen.respond(group, public, &mut core.rng).ok()
        }
        _ => None,
    };
    let Some((public, additional)) = exchanged else {
        awaited.release(core, sa.local.ip());
        return Err(Payload::bare(NotifyType::INVALID_SYNTAX));
    };
    let payloads = [Payload::Ke {
        group: group.number(),
        data: public.into(),
    }];
    let Awaited {
        ni, nr, shared, of, ..
    } = awaited;
    let keying = Keying {
        ni: &ni,
        nr: &nr,
        shared: Some(&shared),
        additional: Some(&additional),
    };
    match of {
        Of::Child {
            agreement,
            spi,
            replaces,
        } => {
            let gone = |old| sa.child(old).is_none_or(|child| child.deleting || child.replaced);
            if sa.moving || replaces.is_some_and(gone) {
                core.release_esp_spi(sa.local.ip(), spi);
                return Err(Payload::bare(NotifyType::TEMPORARY_FAILURE));
            }
            child_create::complete(
                sa,
                core,
                now,
                header,
                *agreement,
                (spi, replaces),
                &keying,
                &payloads,
            )
        }
        Of::Ike { suite, spi_i, spi_r } => {
            ike_rekey::complete(sa, core, now, header, suite, (spi_i, spi_r), &keying, &payloads)
        }
    }
}
