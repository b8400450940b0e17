//! Early repeats: what a small receive window, or the end of the data, leaves of the link is spent on sending twice.
//!
//! A receiver that tunes its window (Linux begins with 64 KiB) opens it by what its program read in a round trip. On a
//! lossy link every loss stops the reading for a round trip, and so the growth: the beginning of a transfer takes
//! several round trips more than the link would need, and its end one more. While nothing new may go out, or there is
//! nothing new, and the path is known to lose packets of its own, what is under way is sent once more, oldest first: of a
//! flight sent twice hardly anything is missing.
//!
//! It costs bytes, not time: a copy goes only when nothing else could, within the pace, while the flight is less than
//! half the congestion window and the path shows no queue. Each segment is copied once, and a connection may spend
//! [`ALLOWANCE`] and a [`SHARE`] of what it sent. Copies are no part of the scoreboard: what they bring is news of the
//! original, and a report of having received it twice (D-SACK) says nothing of the path.

use towpath_base::Instant;

use super::Endpoint;
use super::output::Outgoing;
use crate::codec::record;
use crate::congestion::Controller;
use crate::segment::{Ecn, Flags};
use crate::seq::Offset;

/// Bytes of copies any connection may send, in percent of what its path holds.
const ALLOWANCE: u64 = 150;
/// The same, bytes at most.
const MOST: u64 = 1 << 20;
/// Share of the bytes sent that may be copied beyond it.
const SHARE: u64 = 16;

/// The state of early repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Early {
    /// Everything before was copied, or has no need.
    pub(super) done: Offset,
    /// Copies whose second arrival may still be reported.
    unreported: u32,
}
record!(Early { done, unreported });

impl Endpoint {
    /// The segment to copy now.
    pub(super) fn next_early(&self) -> Option<(Offset, Offset)> {
        if !self.config.early_repeats || !self.negotiated.sack {
            return None;
        }
        let Controller::Radio(radio) = &self.controller else {
            return None;
        };
        let lossy = radio.loss_floor_ppm() > 0 || self.stats.bytes_lost > 0;
        let allowance = (radio.spare() * ALLOWANCE / 100).min(MOST);
        let spent = allowance == 0 || self.stats.bytes_early >= allowance + self.stats.bytes_sent / SHARE;
        let tight = self.sent.in_flight().saturating_mul(2) > self.controller.window();
        if !lossy || spent || tight || self.search.probe.is_some() {
            return None;
        }
        let segment = self
            .sent
            .in_flight_from(self.early.done.max(self.unacknowledged))?;
        Some((segment.start, segment.end))
    }

    /// Sends the copy that is due, if any.
    pub(super) fn transmit_early(&mut self, now: Instant, out: &mut [u8]) -> Option<Outgoing> {
        let (start, end) = self.next_early()?;
        let header = self.header(now, start, Flags::default());
        let fits = u64::from(self.negotiated.mss)
            .saturating_sub(header.options.wire_len() as u64)
            .max(1);
        let data_end = self.fin.map_or(end, |fin| end.min(fin)).min(start + fits);
        self.early.done = end;
        let header_len = header.write(out)?;
        let room = out.get_mut(header_len..header_len + data_end.checked_sub(start)? as usize)?;
        let copied = self.outgoing.copy(start, room);
        self.early.unreported = self.early.unreported.saturating_add(1);
        self.stats.bytes_early += copied as u64;
        self.stats.early_repeats += 1;
        self.pacer.on_send(
            now,
            copied as u64,
            self.controller.pacing_rate(self.rtt.smoothed()),
        );
        self.emit(now, &header, copied, out, Ecn::NotEct)
    }

    /// A D-SACK arrived: true if a copy explains it.
    pub(super) fn is_of_early(&mut self) -> bool {
        let explained = self.early.unreported > 0;
        self.early.unreported = self.early.unreported.saturating_sub(1);
        explained
    }

    /// What an acknowledgment says of a segment that was copied does not tell which copy arrived.
    pub(super) const fn was_copied(&self, start: Offset) -> bool {
        start < self.early.done
    }
}
