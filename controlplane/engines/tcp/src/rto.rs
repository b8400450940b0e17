//! Round-trip times and the retransmission timeout (RFC 6298).

use core::time::Duration;

use crate::codec::record;

/// Clock granularity G of RFC 6298 §2.
const GRANULARITY: Duration = Duration::from_millis(1);

/// The estimator of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RttEstimator {
    smoothed: Option<Duration>,
    variation: Duration,
    min: Option<Duration>,
    /// Doublings of the timeout since the last acknowledgment of new data.
    backoff: u8,
    lower: Duration,
    upper: Duration,
}
record!(RttEstimator {
    smoothed,
    variation,
    min,
    backoff,
    lower,
    upper
});

impl RttEstimator {
    /// No sample yet; timeouts are at least the round trip and `lower`, at most `upper`.
    pub(crate) const fn new(lower: Duration, upper: Duration) -> Self {
        Self {
            smoothed: None,
            variation: Duration::ZERO,
            min: None,
            backoff: 0,
            lower,
            upper,
        }
    }

    /// SRTT, once there is a sample.
    pub(crate) const fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The smallest sample of the connection.
    pub(crate) const fn min(&self) -> Option<Duration> {
        self.min
    }

    /// Takes a sample that cannot belong to a retransmission (RFC 6298 §2.2, §2.3).
    pub(crate) fn sample(&mut self, rtt: Duration) {
        self.min = Some(self.min.map_or(rtt, |min| min.min(rtt)));
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                let error = smoothed.abs_diff(rtt);
                self.variation = (self.variation * 3 + error) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
    }

    /// RTO, backed off.
    pub(crate) fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            // RFC 6298 §2.1: one second before the first sample.
            None => Duration::from_secs(1),
            // The least timeout is the least *margin*: on a path of 600 ms a steady SRTT leaves 4·RTTVAR nothing, and the
            // first delayed acknowledgment would be a timeout.
            Some(smoothed) => {
                let margin = self.variation.saturating_mul(4).max(GRANULARITY);
                smoothed.saturating_add(margin.max(self.lower))
            }
        };
        base.max(self.lower)
            .saturating_mul(1 << self.backoff.min(16))
            .min(self.upper)
    }

    /// The timer expired (RFC 6298 §5.5).
    pub(crate) const fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }

    /// New data was acknowledged: back to the estimate.
    pub(crate) const fn reset_backoff(&mut self) {
        self.backoff = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_path_settles_and_a_timeout_doubles() {
        let mut rtt = RttEstimator::new(Duration::from_millis(200), Duration::from_secs(60));
        assert_eq!(rtt.timeout(), Duration::from_secs(1));
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(600));
        }
        assert!((800..810).contains(&rtt.timeout().as_millis()));
        rtt.back_off();
        rtt.back_off();
        assert!(rtt.timeout() >= Duration::from_millis(2400));
        rtt.reset_backoff();
        assert!(rtt.timeout() < Duration::from_millis(810));
    }
}
