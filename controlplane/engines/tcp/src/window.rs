//! The receive window: scale (RFC 7323 §2), silly-window avoidance (RFC 9293 §3.8.6.2.2), and growth with
//! the reader's speed.

use core::time::Duration;

use towpath_base::Instant;

use crate::codec::record;
use crate::seq::Offset;

/// Shift that lets `limit` bytes be announced in 16 bits.
pub(crate) fn scale_for(limit: usize) -> u8 {
    (0..14).find(|shift| (limit >> shift) <= 0xffff).unwrap_or(14)
}

/// A window as announced, right edge and all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReceiveWindow {
    /// Bytes granted at present, grows up to `limit`.
    size: usize,
    limit: usize,
    /// Right edge announced: never moves left (RFC 9293 §3.8.6).
    edge: Offset,
    /// Bytes read since `measured_at`.
    read: usize,
    measured_at: Instant,
    rtt: Option<Duration>,
}
record!(ReceiveWindow {
    size,
    limit,
    edge,
    read,
    measured_at,
    rtt
});

impl ReceiveWindow {
    /// A window that starts at `initial` bytes and may grow to `limit`.
    pub(crate) fn new(initial: usize, limit: usize) -> Self {
        Self {
            size: initial.min(limit),
            limit,
            edge: 0,
            read: 0,
            measured_at: Instant::ZERO,
            rtt: None,
        }
    }

    /// Bytes granted at present.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Largest size.
    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// Changes the largest size; the announced edge stays where it is.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.size = self.size.min(limit);
    }

    /// Right edge announced so far.
    pub(crate) const fn edge(&self) -> Offset {
        self.edge
    }

    /// Where the right edge may go: `next` is RCV.NXT, `occupied` bytes wait for the reader.
    pub(crate) fn candidate(&self, next: Offset, occupied: usize) -> Offset {
        next.saturating_add(self.size.saturating_sub(occupied) as u64)
            .max(self.edge)
    }

    /// True when opening the window is worth a segment of its own.
    pub(crate) fn worth_announcing(&self, next: Offset, occupied: usize, mss: usize) -> bool {
        let gain = self.candidate(next, occupied).saturating_sub(self.edge);
        let open = self.edge.saturating_sub(next);
        gain >= (self.size / 2) as u64
            || (open < 2 * mss as u64 && gain >= (2 * mss).min(self.size / 2).max(1) as u64)
    }

    /// The value for the header's window field, scaled by `shift`; moves the announced edge.
    pub(crate) fn announce(&mut self, next: Offset, occupied: usize, shift: u8, mss: usize) -> u16 {
        let candidate = self.candidate(next, occupied);
        // Small steps of a nearly closed window are kept back.
        if candidate.saturating_sub(self.edge) >= mss.min(self.size / 2) as u64 || self.edge <= next {
            self.edge = candidate;
        }
        let window = self.edge.saturating_sub(next);
        let field = (window >> shift).min(0xffff);
        // What rounding cut off has not been announced, unless it had been before.
        field as u16
    }

    /// A round trip as the receiver sees it.
    pub(crate) fn sample_rtt(&mut self, rtt: Duration) {
        let rtt = rtt.max(Duration::from_millis(1));
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
    }

    /// The reader took `count` bytes: if that was more than half the window in a round trip, it grows.
    pub(crate) fn on_read(&mut self, now: Instant, count: usize) {
        self.read += count;
        let Some(rtt) = self.rtt else { return };
        if now.saturating_since(self.measured_at) < rtt {
            return;
        }
        if self.read.saturating_mul(2) > self.size {
            self.size = self.read.saturating_mul(4).max(self.size).min(self.limit);
        }
        self.read = 0;
        self.measured_at = now;
    }
}
