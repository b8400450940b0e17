//! The window granted to the peer: what fills the radio, and no more.

use core::time::Duration;

use towpath_base::Instant;

use super::flow::Flow;
use crate::seq::Offset;

/// What the SYNs said of window scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Hello {
    pub(super) terminal: Option<Option<u8>>,
    pub(super) network: Option<bool>,
}

impl Hello {
    /// Shift of the terminal's windows, if both SYNs were seen.
    pub(super) fn scale(self) -> Option<u8> {
        match (self.terminal?, self.network?) {
            (Some(shift), true) => Some(shift),
            _ => Some(0),
        }
    }
}

/// Grants the peer what fills the radio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shaper {
    /// Shift of the terminal's windows; without it nothing is shaped.
    pub(super) scale: Option<u8>,
    /// Bytes that may be on the radio; unbounded until a queue was seen.
    pub(super) target: Option<u64>,
    /// Right edge granted.
    pub(super) edge: Offset,
    pub(super) next_update: Instant,
}

impl Flow {
    /// Bytes on the radio: cached, and not known to have arrived.
    pub(super) fn pipe(&self) -> u64 {
        self.outstanding
    }

    /// The radio's queue is longer than its own round trip explains.
    pub(super) fn is_congested(&self, shaped: bool) -> bool {
        let Some((smoothed, min)) = self.rtt.smoothed().zip(self.rtt.min()) else {
            return false;
        };
        let bound = if shaped && self.shaper.scale.is_some() {
            min * 2
        } else {
            min * 3 / 2
        };
        smoothed > bound + Duration::from_millis(10)
    }

    /// The window field for an acknowledgment of `ack` that says `window`, if it is to be another one; and
    /// whether the right edge moved enough to be worth telling.
    pub(super) fn shape(&mut self, now: Instant, ack: Offset, window: u16) -> (Option<u16>, bool) {
        let pipe = self.pipe();
        let Some(scale) = self.shaper.scale else {
            return (None, false);
        };
        let Some((smoothed, min)) = self.rtt.smoothed().zip(self.rtt.min()) else {
            return (None, false);
        };
        let slack = Duration::from_millis(2);
        if now >= self.shaper.next_update {
            self.shaper.next_update = now + smoothed;
            if smoothed > min * 13 / 10 + slack {
                // A quarter of the round trip may be queue.
                let ratio = (min * 5 / 4 + slack).as_secs_f64() / smoothed.as_secs_f64();
                let base = self.shaper.target.unwrap_or(pipe).min(pipe.max(1));
                self.shaper.target = Some(((base as f64 * ratio) as u64).max(10 * 1460));
            } else if let Some(target) = &mut self.shaper.target
                && smoothed < min * 23 / 20 + slack
                && pipe * 4 >= *target * 3
            {
                *target += *target / 16;
            }
        }
        let Some(target) = self.shaper.target else {
            return (None, false);
        };
        let wanted = self.highest + target.saturating_sub(pipe);
        let edge = wanted.max(self.shaper.edge).max(ack);
        let granted = edge >= self.shaper.edge + 2 * 1460;
        let offered = ack + (u64::from(window) << scale.min(14));
        if edge >= offered {
            self.shaper.edge = self.shaper.edge.max(offered.min(edge));
            return (None, false);
        }
        let field = (edge - ack) >> scale.min(14);
        if granted {
            self.shaper.edge = edge;
        }
        (u16::try_from(field).ok(), granted)
    }
}
