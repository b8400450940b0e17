//! INFORMATIONAL (RFC 7296 §1.4): Deletes, and the empty message that asks whether we live.

use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::Spi;

use super::ike_rekey::move_to;
use super::{Parts, Task, mobike};
use crate::command::FailReason;
use crate::endpoint::{Core, Ending};
use crate::sa::{Sa, State, answer};
use crate::wire::{Delete, Header, NotifyType, Payload, Protocol};

/// Delete of one CHILD SA.
pub(super) fn build_child<P>(sa: &mut crate::sa::IkeSa<P>, spi_in: Spi) -> Option<Vec<Payload<'static>>> {
    if sa.state != State::Established {
        return None;
    }
    sa.child_mut(spi_in)?.deleting = true;
    Some(vec![Payload::Delete(Delete {
        protocol: Protocol::ESP,
        spis: vec![spi_in.0],
    })])
}

/// Delete of the IKE SA. The owner is told at once: nothing may be sent on its CHILD SAs any more.
pub(super) fn build_ike<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    _now: Instant,
    reason: FailReason,
) -> Option<Vec<Payload<'static>>> {
    if sa.state != State::Established {
        return None;
    }
    sa.announce_end(core, reason);
    sa.state = State::Deleting;
    for task in sa.queue.drain(..) {
        task.abandon(core, sa.local.ip());
    }
    Some(vec![Payload::Delete(Delete {
        protocol: Protocol::IKE,
        spis: Vec::new(),
    })])
}

/// Answers an INFORMATIONAL request.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) {
    let mut ours = Vec::new();
    let mut over = None;
    for payload in parts.payloads() {
        match payload {
            Payload::Delete(delete) if delete.protocol == Protocol::IKE => {
                over = Some(FailReason::DeletedByPeer)
            }
            Payload::Delete(delete) if delete.protocol == Protocol::ESP => {
                for spi_out in &delete.spis {
                    ours.extend(delete_child(sa, core, Spi(*spi_out)));
                }
            }
            // The initiator did not believe our AUTH (RFC 7296 §2.21.2).
            Payload::Notify(notify) if notify.kind == NotifyType::AUTHENTICATION_FAILED => {
                over = Some(FailReason::AuthenticationRefused);
            }
            _ => {}
        }
    }
    let mut payloads = Vec::new();
    if !ours.is_empty() && over.is_none() {
        payloads.push(Payload::Delete(Delete {
            protocol: Protocol::ESP,
            spis: ours,
        }));
    }
    mobike::respond(sa, core, parts, &mut payloads);
    answer(sa, core, header.exchange, header.message_id, &payloads);
    if over == Some(FailReason::DeletedByPeer)
        && let Some(heir) = sa.rival.take().and_then(|rival| rival.heir)
    {
        // The peer knows of its own rekeying alone: ours is forgotten (RFC 7296 §2.25.2).
        if let Some(out) = sa.outstanding.take() {
            out.task.abandon(core, sa.local.ip());
        }
        move_to(sa, core, heir, Ending::End);
    } else if let Some(reason) = over {
        sa.end(core, now, reason);
    }
}

/// Removes the CHILD SA whose outgoing SPI the peer named; gives our inbound SPI to be named in the answer.
fn delete_child<K: KeyGenerator, R: Rng>(sa: &mut Sa<K>, core: &mut Core<K, R>, spi_out: Spi) -> Option<u32> {
    let child = sa.children.iter().find(|child| child.spi_out == spi_out)?.clone();
    // Crossing Deletes: the answer must not name what our own request names (RFC 7296 §1.4.1).
    let asked = sa
        .outstanding
        .as_ref()
        .is_some_and(|out| matches!(&out.task, Task::DeleteChild { spi_in, .. } if *spi_in == child.spi_in));
    let reason = if child.replaced {
        FailReason::Rekeyed
    } else {
        FailReason::DeletedByPeer
    };
    sa.remove_child(core, child.spi_in, reason);
    (!asked).then_some(child.spi_in.0)
}
