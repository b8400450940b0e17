//! A rate limit.

use core::time::Duration;

use towpath_base::Instant;

/// Lets `rate` through per second, as many at once after a pause.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: u32,
    tokens: u32,
    since: Instant,
}

impl Bucket {
    pub(super) const fn new(rate: u32) -> Self {
        Self {
            rate,
            tokens: rate,
            since: Instant::ZERO,
        }
    }

    /// Whether one more may pass now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_since(self.since);
        if passed >= Duration::from_secs(1) {
            self.tokens = self.rate;
            self.since = now;
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }
}
