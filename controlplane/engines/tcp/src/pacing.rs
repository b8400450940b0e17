//! Pacing: segments leave at the rate congestion control asks for, not in bursts.

use core::time::Duration;

use towpath_base::Instant;

use crate::codec::record;

/// Sending may run ahead of the schedule by this much, so that timers need not be finer.
const SLACK: Duration = Duration::from_millis(1);

/// What leaves late by no more than this, because nothing woke the sender in time, is caught up with. More is not, so that
/// a silence is not followed by a burst.
const CREDIT: Duration = Duration::from_millis(4);

/// The schedule of one sender.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Pacer {
    next: Instant,
    /// Something had to wait for its turn since the schedule was last ahead of the sender.
    waited: bool,
}
record!(Pacer { next, waited });

impl Pacer {
    /// `None` if a segment may leave now, otherwise when.
    pub(crate) fn blocked_until(&mut self, now: Instant) -> Option<Instant> {
        let blocked = self.next > now + SLACK;
        self.waited |= blocked;
        blocked.then_some(self.next)
    }

    /// A segment of `bytes` left; `rate` in bytes per second, zero for unpaced.
    pub(crate) fn on_send(&mut self, now: Instant, bytes: u64, rate: u64) {
        if rate == 0 {
            return;
        }
        let gap = bytes.saturating_mul(1_000_000_000) / rate;
        let late = now.saturating_since(self.next);
        if late > CREDIT {
            self.waited = false;
        }
        let start = if self.waited {
            self.next
        } else {
            self.next.max(now)
        };
        self.next = start + Duration::from_nanos(gap);
    }
}
