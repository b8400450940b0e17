//! How often a terminal may register: every acceptance costs a disk flush.

use std::collections::HashMap;
use std::time::Duration;

use towpath_base::rate::{Bucket, Rate};
use towpath_base::{Instant, SubscriberHandle};

/// Buckets kept before those that are full again are dropped.
const PRUNE: usize = 1 << 16;

/// Token buckets, one per subscriber. Only authentic messages are counted, so nobody uses up another's tokens.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    buckets: HashMap<SubscriberHandle, Bucket>,
}

impl Limiter {
    /// `per_minute` on average, `burst` at once; both at least one.
    pub(crate) fn new(per_minute: u32, burst: u32) -> Self {
        Self {
            rate: Rate::new(per_minute.max(1), Duration::from_secs(60), burst),
            buckets: HashMap::new(),
        }
    }

    /// Takes a token; false if there is none.
    pub(crate) fn allow(&mut self, now: Instant, subscriber: SubscriberHandle) -> bool {
        if self.buckets.len() >= PRUNE {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        self.buckets.entry(subscriber).or_default().take(now, self.rate)
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
