//! Deadlines of one IKE SA.

use core::time::Duration;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};

use super::send::{pump, release, retransmit};
use super::{IkeSa, Sa, State};
use crate::command::{Command, FailReason};
use crate::config::{Config, Timer};
use crate::endpoint::{Core, Effect};
use crate::tasks::{Task, forget};

/// A rekeying that the peer put off is tried again after this, plus up to as much again.
const RETRY_REKEY: Duration = Duration::from_secs(5);
/// Behind a NAT, liveness checks come as often as keepalives would (RFC 3948 §4), and keep the mapping.
const NAT_ALIVE: Duration = Duration::from_secs(20);

impl<P> IkeSa<P> {
    /// The next deadline. Every one lies in the past at most until [`fire`] has acted on it.
    pub(crate) fn deadline(&self, config: &Config) -> Option<(Instant, Timer)> {
        if let State::Closed(until) = self.state {
            return Some((until, Timer::Linger));
        }
        let established = self.state == State::Established;
        let idle = self.outstanding.is_none() && self.queue.is_empty();
        let half_open = self
            .is_half_open()
            .then(|| self.created_at + config.half_open_timeout);
        let dpd = config.dpd_after.filter(|_| established && idle).map(|after| {
            let after = if self.nat.local {
                after.min(NAT_ALIVE)
            } else {
                after
            };
            self.last_heard + after
        });
        let child = |pick: fn(&super::Child) -> Option<Instant>| {
            self.children
                .iter()
                .filter(|child| established && !child.deleting)
                .filter_map(pick)
                .min()
        };
        [
            (self.outstanding.as_ref().map(|out| out.due), Timer::Retransmit),
            (half_open, Timer::HalfOpen),
            (dpd, Timer::Dpd),
            (
                child(|child| child.soft_at.filter(|_| !child.rekeying)),
                Timer::ChildSoft,
            ),
            (child(|child| child.hard_at), Timer::ChildHard),
            (self.rekey_at.filter(|_| established), Timer::IkeRekey),
            (self.redundant_at.filter(|_| established), Timer::Redundant),
            (self.hold_until, Timer::Hold),
            (self.expire_at, Timer::Expire),
            (self.reauth_at.filter(|_| established), Timer::Reauthenticate),
            (self.withheld.map(|withheld| withheld.due), Timer::Ready),
            (child(|child| child.delete_at), Timer::Ready),
            (
                self.followups.iter().map(|awaited| awaited.due).min(),
                Timer::FollowUp,
            ),
        ]
        .into_iter()
        .filter_map(|(at, timer)| Some((at?, timer)))
        .min()
    }
}

/// Lets `timer` act; its deadline has passed.
pub(crate) fn fire<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    timer: Timer,
) {
    match timer {
        Timer::Retransmit => retransmit(sa, core, now),
        Timer::HalfOpen => sa.end(core, now, FailReason::Timeout),
        Timer::Dpd => sa.enqueue(Task::Dpd),
        Timer::ChildSoft => {
            let due = sa
                .children
                .iter_mut()
                .filter(|child| !child.rekeying && !child.deleting);
            let due = due.filter(|child| child.soft_at.is_some_and(|at| at <= now));
            for child in due {
                child.rekeying = true;
                child.soft_at = None;
                core.commands.push_back(Command::ChildSoftExpired {
                    ike: sa.id,
                    spi_in: child.spi_in,
                });
                sa.queue.push_back(Task::child_rekey(child.spi_in));
            }
        }
        Timer::ChildHard => {
            let due = sa.children.iter_mut().filter(|child| !child.deleting);
            for child in due.filter(|child| child.hard_at.is_some_and(|at| at <= now)) {
                child.deleting = true;
                sa.queue.push_back(Task::DeleteChild {
                    spi_in: child.spi_in,
                    reason: FailReason::Expired,
                });
            }
        }
        Timer::IkeRekey => {
            sa.rekey_at = None;
            sa.enqueue(Task::ike_rekey());
        }
        Timer::Redundant => {
            sa.redundant_at = None;
            sa.enqueue(Task::DeleteIke {
                reason: FailReason::Redundant,
            });
        }
        Timer::Hold => sa.hold_until = None,
        Timer::Expire => sa.end(core, now, FailReason::Rekeyed),
        Timer::Reauthenticate => {
            sa.reauth_at = None;
            core.effects.push(Effect::Reauthenticate);
        }
        Timer::Ready => {
            if sa.withheld.is_some_and(|withheld| withheld.due <= now) {
                release(sa, core);
            }
            delete_replaced(sa, |child| child.delete_at.is_some_and(|at| at <= now));
        }
        Timer::FollowUp => forget(sa, core, |awaited| awaited.due <= now),
        // The endpoint removes it.
        Timer::Linger => {}
    }
    pump(sa, core, now);
}

/// Queues the Deletes of those CHILD SAs a rekeying of ours replaced that `which` picks.
pub(crate) fn delete_replaced<P>(sa: &mut IkeSa<P>, which: impl Fn(&super::Child) -> bool) {
    let waiting = sa.children.iter_mut().filter(|child| child.delete_at.is_some());
    for child in waiting.filter(|child| which(child)) {
        child.delete_at = None;
        child.deleting = true;
        sa.queue.push_back(Task::DeleteChild {
            spi_in: child.spi_in,
            reason: FailReason::Rekeyed,
        });
    }
}

/// When to try a rekeying again that the peer put off (RFC 7296 §2.25).
pub(crate) fn retry_rekey_at<K: KeyGenerator, R: Rng>(core: &mut Core<K, R>, now: Instant) -> Instant {
    let [jitter] = core.random();
    now + RETRY_REKEY + RETRY_REKEY / 256 * u32::from(jitter)
}
