//! Token buckets in a table of fixed size: a flood from one source costs that source, not the others.

use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use towpath_base::Instant;
use towpath_base::rate::{Bucket, Rate};

/// Buckets in the table. Two sources share one with probability 1/4096 per pair, under a seeded hash,
/// so an attacker cannot choose whom to starve.
const BUCKETS: usize = 4096;

/// Allows `rate` events per second and key, `burst` at once.
pub struct Limiter {
    seed: RandomState,
    buckets: Box<[Bucket]>,
    rate: Rate,
}

impl Limiter {
    /// A limiter of `rate` events per second with bursts of `burst`; both at least 1.
    pub fn new(rate: u32, burst: u32) -> Self {
        Self::of(Rate::new(rate.max(1), Duration::from_secs(1), burst))
    }

    /// A limiter of one event per `interval`.
    pub fn every(interval: Duration) -> Self {
        Self::of(Rate::every(interval))
    }

    fn of(rate: Rate) -> Self {
        Self {
            seed: RandomState::new(),
            buckets: vec![Bucket::default(); BUCKETS].into_boxed_slice(),
            rate,
        }
    }

    /// Whether one more event of `key` is within its limit; if so it is counted.
    pub fn allow(&mut self, now: Instant, key: impl Hash) -> bool {
        let index = self.seed.hash_one(key) as usize % BUCKETS;
        let bucket = self.buckets.get_mut(index);
        bucket.is_some_and(|bucket| bucket.take(now, self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let mut limiter = Limiter::new(10, 5);
        let start = Instant::from_secs(100);
        let at_once = (0..100).filter(|_| limiter.allow(start, "a")).count();
        assert_eq!(at_once, 5);
        // Ten seconds of a flood of 1000 events a second.
        let over_time = (1..=10_000u64)
            .filter(|ms| limiter.allow(start + Duration::from_millis(*ms), "a"))
            .count();
        assert!((99..=101).contains(&over_time), "{over_time}");
    }

    #[test]
    fn a_flood_of_one_source_leaves_the_others_alone() {
        let mut limiter = Limiter::new(10, 5);
        let start = Instant::from_secs(1);
        for _ in 0..10_000 {
            limiter.allow(start, 0u32);
        }
        let served = (1..=100u32).filter(|source| limiter.allow(start, source)).count();
        assert!(served >= 98, "{served}");
    }
}
