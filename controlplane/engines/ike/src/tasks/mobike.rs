//! MOBIKE (RFC 4555): an IKE SA and its CHILD SAs follow the initiator to another address.
//!
//! ```text
//! SK { N(UPDATE_SA_ADDRESSES), N(NATD_S), N(NATD_D), N(COOKIE2) }   -->     (from the new address)
//!                                      <--   SK { N(NATD_S), N(NATD_D), N(COOKIE2) }
//!                                      <--   SK { N(COOKIE2) }               (is it really there? §3.7)
//! SK { N(COOKIE2) }                    -->
//! ```

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};

use super::{Parts, natd};
use crate::command::{Command, FailReason, Role};
use crate::endpoint::{Core, Effect};
use crate::sa::{Sa, State};
use crate::tasks::Task;
use crate::wire::{NotifyType, Payload};

/// Bytes of our COOKIE2; others may have 8 to 64.
const COOKIE2_LEN: usize = 16;

/// A request of ours.
pub(crate) struct Mobike {
    cookie2: [u8; COOKIE2_LEN],
    /// Tells the peer of new addresses; otherwise only asks whether it is there.
    update: bool,
}

impl Mobike {
    /// We are elsewhere, or talk to another address of the peer.
    pub(crate) const fn update(cookie2: [u8; COOKIE2_LEN]) -> Self {
        Self {
            cookie2,
            update: true,
        }
    }

    pub(super) fn build<K: KeyGenerator, R: Rng>(
        &self,
        sa: &Sa<K>,
        core: &mut Core<K, R>,
    ) -> Option<Vec<Payload<'static>>> {
        if sa.state != State::Established {
            return None;
        }
        let mut payloads = Vec::new();
        if self.update {
            payloads.push(Payload::bare(NotifyType::UPDATE_SA_ADDRESSES));
            payloads.extend(natd::payloads(sa, core));
        }
        payloads.push(Payload::notify(NotifyType::COOKIE2, self.cookie2.to_vec()));
        Some(payloads)
    }

    pub(super) fn process<K: KeyGenerator, R: Rng>(
        self,
        sa: &mut Sa<K>,
        core: &mut Core<K, R>,
        now: Instant,
        payloads: &[Payload<'_>],
    ) {
        let parts = Parts::collect(payloads);
        let back = parts.as_ref().and_then(|parts| parts.notify(NotifyType::COOKIE2));
        if back.is_none_or(|cookie| *cookie.data != self.cookie2) {
            // RFC 4555 §3.7: somebody answers who did not get the question.
            sa.end(core, now, FailReason::ProtocolError);
            return;
        }
        let Some(parts) = parts.filter(|_| self.update) else {
            return;
        };
        if let Some(kind) = parts.error() {
            sa.end(core, now, FailReason::Notify(kind.0));
            return;
        }
        let encap = sa.encap();
        if let Some(path) = sa.path {
            sa.nat = natd::detect(sa, core, path, sa.spi_r, &parts);
        }
        if sa.encap() != encap {
            tell(sa, core, sa.local, sa.remote);
        }
    }
}

/// What an INFORMATIONAL request asks of us, in addition to `answer`.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    parts: &Parts<'_>,
    answer: &mut Vec<Payload<'static>>,
) {
    let Some(original) = sa.mobike else { return };
    let cookie2 = parts
        .notify(NotifyType::COOKIE2)
        .map(|cookie| cookie.data.to_vec());
    let update = parts.notify(NotifyType::UPDATE_SA_ADDRESSES).is_some();
    // Only who started the first IKE SA decides on addresses (RFC 4555 §3.5).
    if let Some(path) = sa.path.filter(|_| update && original == Role::Responder) {
        if path.destination.ip() == sa.local.ip() && path.source.is_ipv4() == path.destination.is_ipv4() {
            let (local, remote) = (sa.local, sa.remote);
            (sa.local, sa.remote) = (path.destination, path.source);
            sa.nat = natd::detect(sa, core, path, sa.spi_r, parts);
            answer.extend(natd::payloads(sa, core));
            announce(sa, core, local, remote);
            let cookie2 = core.random();
            sa.queue.push_back(Task::Mobike(Mobike {
                cookie2,
                update: false,
            }));
        } else {
            // A terminal has the addresses it was given, no others.
            answer.push(Payload::bare(NotifyType::UNACCEPTABLE_ADDRESSES));
        }
    }
    let echo = cookie2.filter(|cookie| (8..=64).contains(&cookie.len()));
    answer.extend(echo.map(|cookie| Payload::notify(NotifyType::COOKIE2, cookie)));
}

/// Tells the owner, and the endpoint's tables, that the ends are others than `local` and `remote` now.
pub(crate) fn announce<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &mut Core<K, R>,
    local: SocketAddr,
    remote: SocketAddr,
) {
    if (local, remote) == (sa.local, sa.remote) {
        return;
    }
    core.effects.push(Effect::Readdressed {
        local: local.ip(),
        remote: remote.ip(),
    });
    tell(sa, core, local, remote);
}

fn tell<K: KeyGenerator, R: Rng>(sa: &Sa<K>, core: &mut Core<K, R>, local: SocketAddr, remote: SocketAddr) {
    core.commands.push_back(Command::AddressesChanged {
        ike: sa.id,
        old: (local, remote),
        local: sa.local,
        remote: sa.remote,
        encap: sa.encap(),
        children: sa.children.iter().map(|child| child.spi_in).collect(),
    });
}

/// The notify both sides put into IKE_AUTH.
pub(super) fn supported() -> Vec<Payload<'static>> {
    vec![Payload::bare(NotifyType::MOBIKE_SUPPORTED)]
}
