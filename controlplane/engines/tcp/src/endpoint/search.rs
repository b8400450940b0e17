//! The longest segment the path takes, found out by trying (RFC 4821, RFC 8899): the network may swallow what is too
//! long without a word.
//!
//! Down: after two timeouts of a long segment shorter ones are sent, after four still shorter ones (RFC 4821 §7.7).
//! Up: an outage looks the same, so what fitted before is tried again as soon as data flows, with one segment of new
//! data. If that is lost the size between is tried, until the answer is known to [`CLOSE_ENOUGH`]; the search begins
//! anew after [`RAISE`], since paths change back. At most one probe is on its way, and only with others behind it, so
//! that its loss is noticed at once and costs no timeout.

use core::time::Duration;

use towpath_base::Instant;

use super::{Endpoint, Recovery};
use crate::codec::record;
use crate::seq::Offset;

/// Segment sizes to fall back to, options included, after so many timeouts.
const STEPS: [(u8, u16); 2] = [(2, 1024), (4, 536)];
/// A size is not worth a probe for fewer bytes than this.
const CLOSE_ENOUGH: u16 = 32;
/// Time between two probes.
const PAUSE: Duration = Duration::from_secs(1);
/// Time after which a search that ended begins anew (PMTU_RAISE_TIMER of RFC 8899 §5.1.1).
const RAISE: Duration = Duration::from_secs(600);
/// Segments that wait behind a probe, to tell of its loss.
const BEHIND: u64 = 3;

/// What is known between what the path takes and what it took before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Search {
    /// Size before anything was suspected; 0 if nothing was.
    pub(super) before: u16,
    /// Smallest size known not to get through, or one more than the largest there is.
    pub(super) too_long: u16,
    /// Size of the probe on its way and the data in it.
    pub(super) probe: Option<(u16, (Offset, Offset))>,
    /// No probe earlier.
    next_at: Instant,
}
record!(Search {
    before,
    too_long,
    probe,
    next_at
});

impl Endpoint {
    /// Segments that never get through may be too long for a path that does not say so.
    pub(super) fn suspect_black_hole(&mut self, now: Instant) {
        let Some((_, size)) = STEPS.iter().find(|(failures, _)| *failures == self.failures) else {
            return;
        };
        let longer = |len: u64| len > u64::from(*size);
        if *size >= self.negotiated.mss || !self.sent.first().is_some_and(|sent| longer(sent.len())) {
            return;
        }
        let before = self.search.before.max(self.negotiated.mss);
        self.search = Search {
            before,
            too_long: before.saturating_add(1),
            probe: None,
            next_at: now,
        };
        self.shorten(*size);
    }

    /// Length of the data of a probe, if it is time for one.
    pub(super) fn probe_len(&self, now: Instant) -> Option<(u16, u64)> {
        let Search {
            before,
            too_long,
            probe,
            next_at,
        } = self.search;
        let calm = self.repair.phase == Recovery::Open
            && self.failures == 0
            && self.sent.sacked() == 0
            && self.sent.lost_bytes() == 0
            && !self.incoming.has_gap();
        if before <= self.negotiated.mss || probe.is_some() || now < next_at || !calm {
            return None;
        }
        // First what fitted before: most suspicions were an outage.
        let size = if too_long > before {
            before
        } else {
            self.negotiated.mss.midpoint(too_long)
        };
        let len = self.segment_len + u64::from(size - self.negotiated.mss.min(size));
        let wanted = len + BEHIND * self.segment_len;
        let room = (self.unacknowledged + self.peer_window).saturating_sub(self.next);
        let waiting = self.outgoing.end().saturating_sub(self.next);
        (room.min(waiting) >= wanted && len > self.segment_len).then_some((size, len))
    }

    /// Data up to `ack` arrived.
    pub(super) fn probe_arrived(&mut self, now: Instant, ack: Offset) {
        if let Some((size, (_, end))) = self.search.probe
            && end <= ack
        {
            self.search.probe = None;
            if size > self.negotiated.mss {
                self.negotiated.mss = size;
                self.update_segment_len();
            }
            self.narrow(now);
        }
    }

    /// Data at `start` is sent again: if it was the probe's, the probe was lost.
    pub(super) fn probe_lost(&mut self, now: Instant, start: Offset) {
        if let Some((size, (first, end))) = self.search.probe
            && (first..end).contains(&start)
        {
            self.search.probe = None;
            self.search.too_long = self.search.too_long.min(size);
            self.narrow(now);
        }
    }

    /// Decides when to try next.
    fn narrow(&mut self, now: Instant) {
        let left = self.search.too_long.saturating_sub(self.negotiated.mss);
        if self.negotiated.mss >= self.search.before {
            self.search = Search::default();
        } else if left <= CLOSE_ENOUGH {
            self.search.too_long = self.search.before.saturating_add(1);
            self.search.next_at = now + RAISE;
        } else {
            self.search.next_at = now + PAUSE;
        }
    }
}
