//! Pacing: segments leave at the rate congestion control asks for, not in bursts.

use core::time::Duration;

use towpath_base::Instant;

use crate::codec::record;

/// Sending may run ahead of the schedule by this much, so that timers need not be finer.
const SLACK: Duration = Duration::from_millis(1);

/// The schedule of one sender.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Pacer {
    next: Instant,
}
record!(Pacer { next });

impl Pacer {
    /// `None` if a segment may leave now, otherwise when.
    pub(crate) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        (self.next > now + SLACK).then_some(self.next)
    }

    /// A segment of `bytes` left; `rate` in bytes per second, zero for unpaced.
    pub(crate) fn on_send(&mut self, now: Instant, bytes: u64, rate: u64) {
        if rate == 0 {
            return;
        }
        let gap = bytes.saturating_mul(1_000_000_000) / rate;
        self.next = self.next.max(now) + Duration::from_nanos(gap);
    }
}
