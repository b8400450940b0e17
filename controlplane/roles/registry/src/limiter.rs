//! How often a terminal may register: every acceptance costs a disk flush.

use std::collections::HashMap;

use towpath_base::{Instant, SubscriberHandle};

/// Buckets kept before those that are full again are dropped.
const PRUNE: usize = 1 << 16;

/// Token buckets, one per subscriber. Only authentic messages are counted, so nobody uses up another's tokens.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// Nanoseconds that earn one token.
    interval: u64,
    /// Nanoseconds' worth of a full bucket.
    full: u64,
    /// When the subscriber's bucket is full again.
    full_at: HashMap<SubscriberHandle, u64>,
}

impl Limiter {
    /// `per_minute` on average, `burst` at once; both at least one.
    pub(crate) fn new(per_minute: u32, burst: u32) -> Self {
        let interval = 60_000_000_000 / u64::from(per_minute.max(1));
        Self {
            interval,
            full: interval.saturating_mul(u64::from(burst.max(1))),
            full_at: HashMap::new(),
        }
    }

    /// Takes a token; false if there is none.
    pub(crate) fn allow(&mut self, now: Instant, subscriber: SubscriberHandle) -> bool {
        let now = now.as_nanos();
        if self.full_at.len() >= PRUNE {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let full_at = self.full_at.entry(subscriber).or_insert(now);
        let after = (*full_at).max(now).saturating_add(self.interval);
        let allowed = after - now <= self.full;
        if allowed {
            *full_at = after;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_each_subscriber_for_itself() {
        let mut limiter = Limiter::new(60, 3);
        let (a, b) = (SubscriberHandle(1), SubscriberHandle(2));
        let mut at = |second, who| limiter.allow(Instant::from_secs(second), who);
        assert!(at(100, a) && at(100, a) && at(100, a) && !at(100, a));
        assert!(at(100, b));
        assert!(at(101, a) && !at(101, a));
        assert!(at(200, a) && at(200, a) && at(200, a) && !at(200, a));
    }
}
