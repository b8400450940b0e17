//! Limits on how often something happens: token buckets that remember one number each (the generic cell rate algorithm).

use core::time::Duration;

use crate::Instant;

/// So many events in a time on average, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// What earns one event.
    interval: Duration,
    /// What earns as many as may happen at once.
    full: Duration,
}

impl Rate {
    /// `events` in each `per` on average, `burst` at once, at least one. None at all if `events` is zero.
    pub const fn new(events: u32, per: Duration, burst: u32) -> Self {
        match per.checked_div(events) {
            Some(interval) => Self {
                interval,
                full: interval.saturating_mul(if burst == 0 { 1 } else { burst }),
            },
            None => Self {
                interval: Duration::MAX,
                full: Duration::ZERO,
            },
        }
    }

    /// `events` a second, as many at once.
    pub const fn per_second(events: u32) -> Self {
        Self::new(events, Duration::from_secs(1), events)
    }

    /// One event in each `interval`.
    pub const fn every(interval: Duration) -> Self {
        Self::new(1, interval, 1)
    }
}

/// What has been used of a [`Rate`]; a new one is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// Whether one more event is within `rate`; if so it is counted.
    pub fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let after = self.full_at.max(now) + rate.interval;
        let allowed = after.saturating_since(now) <= rate.full;
        if allowed {
            self.full_at = after;
        }
        allowed
    }

    /// Nothing of it is used: a new one is as good.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &mut Bucket, now: Instant, rate: Rate) -> usize {
        (0..100).filter(|_| bucket.take(now, rate)).count()
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let rate = Rate::new(10, Duration::from_secs(1), 5);
        let mut bucket = Bucket::default();
        let start = Instant::from_secs(100);
        assert_eq!(taken(&mut bucket, start, rate), 5);
        assert!(!bucket.is_full(start));
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(350), rate), 3);
        // Ten seconds of a flood of 1000 events a second.
        let flood = (1..=10_000u64)
            .filter(|ms| bucket.take(start + Duration::from_millis(350 + ms), rate))
            .count();
        assert!((99..=101).contains(&flood), "{flood}");
        let later = start + Duration::from_secs(60);
        assert!(bucket.is_full(later));
        assert_eq!(taken(&mut bucket, later, rate), 5);
    }

    #[test]
    fn as_many_as_a_second_has_one_in_an_interval_and_none() {
        let start = Instant::from_secs(1);
        for events in [1, 3, 7, 64] {
            let mut bucket = Bucket::default();
            assert_eq!(
                taken(&mut bucket, start, Rate::per_second(events)),
                events as usize
            );
        }
        let (mut bucket, rate) = (Bucket::default(), Rate::every(Duration::from_secs(5)));
        let at = |second| Instant::from_secs(second);
        assert!(bucket.take(at(1), rate) && !bucket.take(at(5), rate) && bucket.take(at(6), rate));
        assert_eq!(taken(&mut Bucket::default(), start, Rate::per_second(0)), 0);
        // No burst is a burst of one.
        assert_eq!(
            taken(
                &mut Bucket::default(),
                start,
                Rate::new(9, Duration::from_secs(1), 0)
            ),
            1
        );
    }
}
