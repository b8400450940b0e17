//! Proportional rate reduction: how much may be sent per acknowledgment while the window shrinks to its
//! new size (RFC 6937, slow-start reduction bound).

use crate::codec::record;

/// State of one recovery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Prr {
    /// RecoverFS: bytes in flight when recovery began.
    flight_size: u64,
    /// Bytes delivered since.
    delivered: u64,
    /// Bytes sent since.
    sent: u64,
    /// Window in force.
    window: u64,
}
record!(Prr {
    flight_size,
    delivered,
    sent,
    window
});

impl Prr {
    /// Recovery begins with `flight_size` bytes in flight; one segment may go at once.
    pub(crate) fn start(flight_size: u64, in_flight: u64, mss: u64) -> Self {
        Self {
            flight_size: flight_size.max(mss),
            delivered: 0,
            sent: 0,
            window: in_flight + mss,
        }
    }

    /// An acknowledgment delivered `delivered` bytes; `in_flight` bytes remain out; `good` says it
    /// advanced SND.UNA without reporting new losses.
    pub(crate) fn on_ack(&mut self, delivered: u64, in_flight: u64, threshold: u64, mss: u64, good: bool) {
        self.delivered += delivered;
        let allowance = if in_flight > threshold {
            let proportional = (u128::from(self.delivered) * u128::from(threshold))
                .div_ceil(u128::from(self.flight_size.max(1)));
            u64::try_from(proportional)
                .unwrap_or(u64::MAX)
                .saturating_sub(self.sent)
        } else {
            let mut limit = self.delivered.saturating_sub(self.sent).max(delivered);
            if good {
                limit += mss;
            }
            limit.min(threshold - in_flight)
        };
        // RFC 6937 §3: the first retransmission is never held back.
        let allowance = if self.sent == 0 {
            allowance.max(mss)
        } else {
            allowance
        };
        self.window = in_flight + allowance;
    }

    /// Bytes went out.
    pub(crate) const fn on_send(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Window in force, bytes.
    pub(crate) const fn window(&self) -> u64 {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_the_flight_leaves_over_one_round() {
        let mss = 1000;
        let mut prr = Prr::start(20_000, 19_000, mss);
        let mut in_flight = 19_000;
        let mut sent = 0;
        for _ in 0..19 {
            in_flight -= mss;
            prr.on_ack(mss, in_flight, 10_000, mss, false);
            while prr.window() >= in_flight + mss {
                prr.on_send(mss);
                in_flight += mss;
                sent += mss;
            }
        }
        assert!((9_000..=11_000).contains(&sent), "{sent}");
        assert!(in_flight <= 11_000, "{in_flight}");
    }
}
