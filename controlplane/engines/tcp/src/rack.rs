//! RACK-TLP: loss told by time (RFC 8985).

use core::time::Duration;

use towpath_base::Instant;

use crate::codec::record;
use crate::scoreboard::Sent;
use crate::seq::Offset;

/// Rounds a widened reordering window is kept (RFC 8985 §6.2, step 4).
const PERSIST_RECOVERIES: u8 = 16;

/// Longest delay of an acknowledgment to expect of the peer (RFC 8985 §7.2).
const WORST_DELAYED_ACK: Duration = Duration::from_millis(200);

/// RACK's view of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rack {
    /// RACK.xmit_ts and RACK.end_seq: the delivered segment that was sent last.
    newest: Option<(Instant, Offset)>,
    /// RACK.rtt: its round trip.
    rtt: Duration,
    /// RACK.fack: highest offset delivered.
    forward: Offset,
    reordering_seen: bool,
    /// RACK.reo_wnd_mult.
    window_multiplier: u8,
    window_persist: u8,
    /// RACK.dsack_round: no second widening before this offset is acknowledged.
    duplicate_round: Option<Offset>,
}
record!(Rack {
    newest,
    rtt,
    forward,
    reordering_seen,
    window_multiplier,
    window_persist,
    duplicate_round
});

impl Rack {
    /// Takes note of a delivered segment (RFC 8985 §6.2, steps 1 to 3). `echoed_earlier` says that the
    /// acknowledgment echoes a timestamp from before the segment was sent last.
    pub(crate) fn on_delivered(
        &mut self,
        now: Instant,
        segment: &Sent,
        min_rtt: Option<Duration>,
        echoed_earlier: bool,
    ) {
        let rtt = now.saturating_since(segment.sent_at);
        let of_an_earlier_copy =
            segment.retransmits > 0 && (echoed_earlier || min_rtt.is_some_and(|min| rtt < min));
        if !of_an_earlier_copy
            && self
                .newest
                .is_none_or(|newest| (segment.sent_at, segment.end) > newest)
        {
            self.newest = Some((segment.sent_at, segment.end));
            self.rtt = rtt;
        }
        if segment.end > self.forward {
            self.forward = segment.end;
        } else if segment.end < self.forward && segment.retransmits == 0 {
            self.reordering_seen = true;
        }
    }

    /// A D-SACK: what was sent again had arrived, so wait longer next time (step 4).
    pub(crate) fn on_duplicate(&mut self, acknowledged: Offset, next: Offset) {
        if self.duplicate_round.is_none_or(|round| acknowledged >= round) {
            self.duplicate_round = Some(next);
            self.window_multiplier = self.window_multiplier.saturating_add(1);
            self.window_persist = PERSIST_RECOVERIES;
        }
    }

    /// A recovery ended: after enough of them without a D-SACK the window shrinks again.
    pub(crate) const fn on_recovery_end(&mut self) {
        self.window_persist = self.window_persist.saturating_sub(1);
        if self.window_persist == 0 {
            self.window_multiplier = 0;
        }
    }

    /// RACK.reo_wnd.
    pub(crate) fn reordering_window(
        &self,
        min_rtt: Option<Duration>,
        smoothed: Option<Duration>,
        recovering_or_three_sacked: bool,
    ) -> Duration {
        if !self.reordering_seen && recovering_or_three_sacked {
            return Duration::ZERO;
        }
        let quarter = min_rtt.unwrap_or_default() / 4;
        let window = quarter.saturating_mul(u32::from(self.window_multiplier) + 1);
        window.min(smoothed.unwrap_or(window))
    }

    /// How long until `segment` counts as lost: `Some(0)` if it is, `None` if nothing sent later has been
    /// delivered (step 5).
    pub(crate) fn time_to_loss(&self, now: Instant, segment: &Sent, window: Duration) -> Option<Duration> {
        let newest = self.newest?;
        if newest <= (segment.sent_at, segment.end) {
            return None;
        }
        Some((segment.sent_at + self.rtt + window).saturating_since(now))
    }

    /// True when on a timeout `segment` is old enough to be given up with the first (RFC 8985 §6.3).
    pub(crate) fn expired(&self, now: Instant, segment: &Sent, window: Duration) -> bool {
        segment.sent_at + self.rtt + window <= now
    }
}

/// Tail loss probe (RFC 8985 §7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TailLossProbe {
    /// TLP.end_seq while a probe is out, and whether it was a retransmission.
    outstanding: Option<(Offset, bool)>,
}
record!(TailLossProbe { outstanding });

/// What an acknowledgment says about a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeVerdict {
    /// No probe out, or not acknowledged yet.
    Nothing,
    /// The original had arrived.
    Harmless,
    /// The probe repaired a loss: reduce the window once (RFC 8985 §7.4.2).
    Repaired,
}

impl TailLossProbe {
    /// PTO (RFC 8985 §7.2).
    pub(crate) fn timeout(smoothed: Option<Duration>, one_segment: bool, rto: Duration) -> Duration {
        let timeout = match smoothed {
            Some(smoothed) => {
                smoothed.saturating_mul(2)
                    + if one_segment {
                        WORST_DELAYED_ACK
                    } else {
                        Duration::from_millis(2)
                    }
            }
            None => Duration::from_secs(1),
        };
        timeout.min(rto)
    }

    /// True while a probe is out: only one at a time.
    pub(crate) const fn is_outstanding(&self) -> bool {
        self.outstanding.is_some()
    }

    /// A probe was sent; everything up to `end` is out.
    pub(crate) const fn sent(&mut self, end: Offset, retransmission: bool) {
        self.outstanding = Some((end, retransmission));
    }

    /// Judges an acknowledgment (RFC 8985 §7.4.2).
    pub(crate) const fn on_ack(&mut self, ack: Offset, duplicate_reported: bool) -> ProbeVerdict {
        let Some((end, retransmission)) = self.outstanding else {
            return ProbeVerdict::Nothing;
        };
        if !retransmission {
            if ack >= end {
                self.outstanding = None;
            }
            return ProbeVerdict::Nothing;
        }
        if duplicate_reported && ack >= end {
            self.outstanding = None;
            ProbeVerdict::Harmless
        } else if ack > end {
            self.outstanding = None;
            ProbeVerdict::Repaired
        } else {
            ProbeVerdict::Nothing
        }
    }

    /// Recovery by other means began.
    pub(crate) const fn cancel(&mut self) {
        self.outstanding = None;
    }
}
