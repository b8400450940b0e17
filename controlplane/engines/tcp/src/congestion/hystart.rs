//! HyStart++: leave slow start when the round trip grows, not when packets are lost (RFC 9406).

use core::time::Duration;

use crate::codec::record;

const MIN_RTT_THRESHOLD: Duration = Duration::from_millis(4);
const MAX_RTT_THRESHOLD: Duration = Duration::from_millis(16);
const SAMPLES: u8 = 8;
/// CSS_GROWTH_DIVISOR.
const CONSERVATIVE_DIVISOR: u64 = 4;
/// CSS_ROUNDS.
const CONSERVATIVE_ROUNDS: u8 = 5;

/// State across the rounds of one slow start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct HyStart {
    /// The round ends when this much is delivered in all.
    round_end: u64,
    last_min: Option<Duration>,
    current_min: Option<Duration>,
    samples: u8,
    /// In conservative slow start: the round trip it began with, and rounds spent in it.
    conservative: Option<(Duration, u8)>,
}
record!(HyStart {
    round_end,
    last_min,
    current_min,
    samples,
    conservative
});

impl HyStart {
    /// An acknowledgment in slow start; `in_flight` went out before it. True when slow start is over.
    pub(super) fn on_ack(&mut self, total_delivered: u64, in_flight: u64, rtt: Option<Duration>) -> bool {
        if total_delivered >= self.round_end {
            self.round_end = total_delivered + in_flight;
            self.last_min = self.current_min.take();
            self.samples = 0;
            if let Some((_, rounds)) = &mut self.conservative {
                *rounds += 1;
                if *rounds >= CONSERVATIVE_ROUNDS {
                    return true;
                }
            }
        }
        let Some(rtt) = rtt else { return false };
        self.samples = self.samples.saturating_add(1);
        let current = self.current_min.map_or(rtt, |min| min.min(rtt));
        self.current_min = Some(current);
        if self.samples < SAMPLES {
            return false;
        }
        match (self.conservative, self.last_min) {
            (Some((baseline, _)), _) if current < baseline => self.conservative = None,
            (None, Some(last)) => {
                let threshold = (last / 8).clamp(MIN_RTT_THRESHOLD, MAX_RTT_THRESHOLD);
                if current >= last + threshold {
                    self.conservative = Some((current, 0));
                }
            }
            _ => {}
        }
        false
    }

    /// By how much the window grows for `delivered` bytes.
    pub(super) const fn growth(&self, delivered: u64) -> u64 {
        if self.conservative.is_some() {
            delivered / CONSERVATIVE_DIVISOR
        } else {
            delivered
        }
    }
}
