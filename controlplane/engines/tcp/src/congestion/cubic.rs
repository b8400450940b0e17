//! CUBIC (RFC 9438) with HyStart++ (RFC 9406). Windows in bytes; the cubic itself counts segments.

use core::time::Duration;

use towpath_base::Instant;

use super::hystart::HyStart;
use super::{AckEvent, rate_of};
use crate::codec::record;

/// C of RFC 9438 §5, segments per second cubed.
const C: f64 = 0.4;
/// beta_cubic.
const BETA: f64 = 0.7;
/// alpha_cubic = 3 (1 − beta) / (1 + beta).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// What a reduction changed, to take it back.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Before {
    window: u64,
    threshold: u64,
    max: f64,
}
record!(Before {
    window,
    threshold,
    max
});

/// CUBIC's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Cubic {
    mss: u64,
    window: u64,
    threshold: u64,
    initial: u64,
    /// W_max, segments.
    max: f64,
    /// K, seconds.
    k: f64,
    /// Start of the present congestion avoidance stage.
    epoch: Option<Instant>,
    /// cwnd at that start, segments.
    epoch_window: f64,
    /// W_est, segments.
    estimate: f64,
    /// Fractions of a byte the window has grown by.
    carry: f64,
    hystart: HyStart,
    before: Option<Before>,
}
record!(Cubic {
    mss,
    window,
    threshold,
    initial,
    max,
    k,
    epoch,
    epoch_window,
    estimate,
    carry,
    hystart,
    before
});

/// Cube root by Newton's method: `core` has none.
fn cbrt(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    // Bring the value near one, so that a fixed number of steps is enough.
    let (mut scaled, mut factor) = (value, 1.0);
    while scaled > 8.0 {
        scaled /= 8.0;
        factor *= 2.0;
    }
    while scaled < 1.0 {
        scaled *= 8.0;
        factor /= 2.0;
        if factor < 1e-30 {
            return 0.0;
        }
    }
    let mut root = 1.5;
    for _ in 0..6 {
        root = (2.0 * root + scaled / (root * root)) / 3.0;
    }
    root * factor
}

impl Cubic {
    /// Starts with a window of `initial` bytes.
    pub fn new(mss: u64, initial: u64) -> Self {
        Self {
            mss: mss.max(1),
            window: initial,
            threshold: u64::MAX,
            initial,
            max: 0.0,
            k: 0.0,
            epoch: None,
            epoch_window: 0.0,
            estimate: 0.0,
            carry: 0.0,
            hystart: HyStart::default(),
            before: None,
        }
    }

    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    pub(super) const fn threshold(&self) -> u64 {
        self.threshold
    }

    pub(super) fn pacing_rate(&self, smoothed_rtt: Option<Duration>) -> u64 {
        let Some(rtt) = smoothed_rtt else { return 0 };
        let percent = if self.window < self.threshold / 2 {
            200
        } else {
            120
        };
        rate_of(self.window.saturating_mul(percent) / 100, rtt)
    }

    fn segments(&self, bytes: u64) -> f64 {
        bytes as f64 / self.mss as f64
    }

    pub(super) fn on_ack(&mut self, event: &AckEvent) {
        if event.marked && !event.recovering {
            self.on_congestion(event.now, event.prior_in_flight);
            return;
        }
        if event.recovering || event.delivered == 0 {
            return;
        }
        if self.window < self.threshold {
            self.slow_start(event);
        } else if event.prior_in_flight + 2 * self.mss >= self.window {
            self.avoid_congestion(event);
        }
    }

    fn slow_start(&mut self, event: &AckEvent) {
        if self
            .hystart
            .on_ack(event.total_delivered, event.in_flight, event.rtt)
        {
            self.threshold = self.window;
            return;
        }
        // RFC 7661 in spirit: a window that is not used does not grow.
        if self.window < 2 * event.prior_in_flight + self.mss {
            self.window = self.window.saturating_add(self.hystart.growth(event.delivered));
        }
    }

    /// RFC 9438 §4.2 to §4.5.
    fn avoid_congestion(&mut self, event: &AckEvent) {
        let window = self.segments(self.window);
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => {
                self.epoch = Some(event.now);
                self.epoch_window = window;
                self.estimate = window;
                if self.max <= window {
                    self.max = window;
                    self.k = 0.0;
                } else {
                    self.k = cbrt((self.max - window) / C);
                }
                event.now
            }
        };
        let cubic = |at: f64| C * (at - self.k) * (at - self.k) * (at - self.k) + self.max;
        let elapsed = event.now.saturating_since(epoch).as_secs_f64();
        let rtt = event.smoothed_rtt.unwrap_or_default().as_secs_f64();
        let acked = self.segments(event.delivered);
        let alpha = if self.estimate >= self.max { 1.0 } else { ALPHA };
        self.estimate += alpha * acked / window;
        let target = if cubic(elapsed) < self.estimate {
            self.estimate.max(window)
        } else {
            let target = cubic(elapsed + rtt).clamp(window, 1.5 * window);
            window + (target - window) * acked / window
        };
        let grown = (target - window) * self.mss as f64 + self.carry;
        let whole = if grown > 0.0 { grown as u64 } else { 0 };
        self.carry = (grown - whole as f64).clamp(0.0, 1.0);
        self.window = self.window.saturating_add(whole);
    }

    /// RFC 9438 §4.6, §4.7.
    pub(super) fn on_congestion(&mut self, _now: Instant, in_flight: u64) {
        self.before = Some(Before {
            window: self.window,
            threshold: self.threshold,
            max: self.max,
        });
        let window = self.segments(self.window);
        self.max = if window < self.max {
            window * (1.0 + BETA) / 2.0
        } else {
            window
        };
        // What was in flight counts, not a window that was never filled (RFC 9438 §4.6).
        let base = self.window.min(in_flight.max(2 * self.mss));
        self.threshold = ((base as f64 * BETA) as u64).max(2 * self.mss);
        self.window = self.threshold;
        self.epoch = None;
        self.carry = 0.0;
    }

    pub(super) fn on_timeout(&mut self, now: Instant, prior: u64, left: u64) {
        let before = self.before.take().filter(|_| self.window <= left + 2 * self.mss);
        self.on_congestion(now, prior);
        if before.is_some() {
            self.before = before;
        }
        // What RACK does not give up may still arrive; one segment goes beside it.
        self.window = left + self.mss;
    }

    pub(super) fn on_recovered(&mut self, _now: Instant) {
        if self.window > self.threshold {
            self.window = self.threshold;
        }
        self.window = self.window.max(2 * self.mss);
    }

    pub(super) fn undo(&mut self) {
        if let Some(Before {
            window,
            threshold,
            max,
        }) = self.before.take()
        {
            self.window = self.window.max(window);
            self.threshold = threshold;
            self.max = max;
            self.epoch = None;
        }
    }

    pub(super) fn on_idle(&mut self, _now: Instant) {
        self.threshold = self.threshold.max(self.window / 4 * 3);
        self.window = self.window.min(self.initial);
        self.epoch = None;
    }

    pub(super) fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1);
        self.window = self.window.max(2 * self.mss);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cube_root_is_one() {
        for value in [1e-6, 0.3, 1.0, 7.0, 8.0, 1000.0, 1e9] {
            let root = cbrt(value);
            assert!((root * root * root - value).abs() < value * 1e-9, "{value}");
        }
    }

    #[test]
    fn the_window_returns_to_its_maximum_after_k_seconds() {
        let mut cubic = Cubic::new(1000, 1_000_000);
        cubic.threshold = 1;
        cubic.on_congestion(Instant::ZERO, 1_000_000);
        assert_eq!(cubic.window(), 700_000);
        let k = cbrt(300.0 / C);
        let rtt = Duration::from_millis(100);
        let mut now = Instant::ZERO;
        let mut delivered = 0;
        while now.as_nanos() as f64 / 1e9 < k {
            let window = cubic.window();
            delivered += window;
            cubic.on_ack(&AckEvent {
                now,
                delivered: window,
                lost: 0,
                prior_in_flight: window,
                in_flight: window,
                rtt: Some(rtt),
                smoothed_rtt: Some(rtt),
                sample: None,
                total_delivered: delivered,
                recovering: false,
                marked: false,
            });
            now += rtt;
        }
        assert!(
            (980_000..1_050_000).contains(&cubic.window()),
            "{}",
            cubic.window()
        );
    }
}
