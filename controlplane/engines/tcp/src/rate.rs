//! Delivery rate samples (draft-ietf-ccwg-bbr, "Delivery Rate Samples"): how fast the network delivered
//! what was just acknowledged, measured over the longer of the sending and the acknowledging interval.

use core::time::Duration;

use towpath_base::Instant;

use crate::codec::record;

/// State of the sampler at the moment a segment was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SendMark {
    /// Bytes delivered so far.
    pub delivered: u64,
    /// When the last of those was delivered.
    pub delivered_at: Instant,
    /// When the first segment of the sending interval was sent.
    pub first_sent_at: Instant,
    /// Bytes in flight once the segment was sent.
    pub in_flight: u64,
    /// Bytes lost so far.
    pub lost: u64,
    /// The application, not the window, limited sending.
    pub app_limited: bool,
}
record!(SendMark {
    delivered,
    delivered_at,
    first_sent_at,
    in_flight,
    lost,
    app_limited
});

/// One delivery rate sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateSample {
    /// Bytes delivered over `interval`.
    pub delivered: u64,
    /// Length of the sample.
    pub interval: Duration,
    /// Delivery rate, bytes per second; zero if unknown.
    pub rate: u64,
    /// Bytes that had been delivered when the newest acknowledged segment was sent.
    pub prior_delivered: u64,
    /// Bytes in flight when that segment was sent.
    pub tx_in_flight: u64,
    /// Bytes lost between its sending and now.
    pub lost: u64,
    /// The sample is a lower bound only.
    pub app_limited: bool,
}

/// Turns acknowledgments into [`RateSample`]s.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RateSampler {
    /// Bytes delivered so far.
    pub delivered: u64,
    /// Bytes lost so far.
    pub lost: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// Samples are application-limited until this much is delivered; zero if not.
    app_limited_until: u64,
    /// Mark and time of the newest segment acknowledged by the segment at hand.
    newest: Option<(SendMarkAt, Instant)>,
}
record!(RateSampler {
    delivered,
    lost,
    delivered_at,
    first_sent_at,
    app_limited_until,
    newest
});

/// A mark together with the end of its segment, to order segments sent at the same instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SendMarkAt {
    mark: SendMark,
    end: u64,
}
record!(SendMarkAt { mark, end });

impl RateSampler {
    /// The mark of a segment of `len` bytes about to be sent while `in_flight` bytes are.
    pub(crate) fn on_send(&mut self, now: Instant, in_flight: u64, len: u64) -> SendMark {
        if in_flight == 0 {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        SendMark {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            in_flight: in_flight + len,
            lost: self.lost,
            app_limited: self.app_limited_until != 0,
        }
    }

    /// A segment of `len` bytes, sent at `sent_at` with `mark`, was delivered.
    pub(crate) fn on_delivered(
        &mut self,
        now: Instant,
        mark: SendMark,
        sent_at: Instant,
        end: u64,
        len: u64,
    ) {
        self.delivered += len;
        self.delivered_at = now;
        let newer = self
            .newest
            .is_none_or(|(at, sent)| (sent_at, end) >= (sent, at.end));
        if newer {
            self.newest = Some((SendMarkAt { mark, end }, sent_at));
            self.first_sent_at = sent_at;
        }
    }

    /// The application has nothing more to send while the window has room.
    pub(crate) fn on_app_limited(&mut self, in_flight: u64) {
        self.app_limited_until = (self.delivered + in_flight).max(1);
    }

    /// The sample of the acknowledgment just processed, if it delivered anything.
    pub(crate) fn sample(&mut self, min_rtt: Option<Duration>) -> Option<RateSample> {
        if self.app_limited_until != 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
        let (SendMarkAt { mark, .. }, sent_at) = self.newest.take()?;
        let send = sent_at.saturating_since(mark.first_sent_at);
        let ack = self.delivered_at.saturating_since(mark.delivered_at);
        let interval = send.max(ack);
        let delivered = self.delivered.saturating_sub(mark.delivered);
        // A sample over less than a round trip is noise: acknowledgments were compressed.
        let usable = min_rtt.is_some_and(|min| interval >= min) && !interval.is_zero();
        let rate = if usable {
            u64::try_from(u128::from(delivered) * 1_000_000_000 / interval.as_nanos().max(1))
                .unwrap_or(u64::MAX)
        } else {
            0
        };
        Some(RateSample {
            delivered,
            interval,
            rate,
            prior_delivered: mark.delivered,
            tx_in_flight: mark.in_flight,
            lost: self.lost.saturating_sub(mark.lost),
            app_limited: mark.app_limited,
        })
    }
}
