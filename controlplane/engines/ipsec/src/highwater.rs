//! Sequence numbers that are stored before they are used (spec row N2).
//!
//! Keys that outlive the process (manual keying, shared keys) must not start their counters over. A sender of such
//! an SA uses only numbers up to a limit that is on disk already; after a restart it begins above that limit,
//! whatever was really sent:
//!
//! ```text
//!   disk:    0 ─────────── 65536 ────────── 131072           limit, written first
//!   sender:  1 … 32768 ───► asks for the next block, goes on
//!                     crash at 40000 ─► restart begins at 131073: never below
//! ```
//!
//! The packet path never waits for the disk: it asks when half a block is left, and drops with
//! [`DropReason::SequenceNotReserved`](towpath_base::DropReason) if it gets to the end first.

/// Numbers reserved at a time.
pub const BLOCK: u64 = 1 << 16;

/// The numbers a sender may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    after: u64,
    limit: u64,
}

impl Reserved {
    /// For keys that die with the process: nothing needs to be stored.
    pub const EVERYTHING: Self = Self {
        after: 0,
        limit: u64::MAX,
    };

    /// `stored` is the limit a former owner of the key had on disk, 0 if there was none; `limit` the one that is on
    /// disk now. Numbers from `stored + 1` to `limit` may be used.
    pub const fn above(stored: u64, limit: u64) -> Self {
        Self { after: stored, limit }
    }

    /// The number behind which to start.
    pub const fn after(&self) -> u64 {
        self.after
    }

    /// Whether `sequence` may be used.
    pub const fn covers(&self, sequence: u64) -> bool {
        sequence <= self.limit
    }

    /// More was stored. A lower limit than the present one changes nothing.
    pub const fn extend(&mut self, limit: u64) {
        if limit > self.limit {
            self.limit = limit;
        }
    }

    /// The limit to store next when `last` is the last number used and no more than half a block is left.
    pub const fn wants(&self, last: u64) -> Option<u64> {
        if self.limit == u64::MAX || last.saturating_add(BLOCK / 2) < self.limit {
            return None;
        }
        let from = if last > self.limit { last } else { self.limit };
        Some(from.saturating_add(BLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_asked_for_when_half_a_block_is_left() {
        let mut reserved = Reserved::above(0, BLOCK);
        assert_eq!(reserved.wants(BLOCK / 2 - 1), None);
        assert_eq!(reserved.wants(BLOCK / 2), Some(2 * BLOCK));
        reserved.extend(2 * BLOCK);
        reserved.extend(BLOCK);
        assert_eq!(reserved.wants(BLOCK), None);
        assert!(reserved.covers(2 * BLOCK) && !reserved.covers(2 * BLOCK + 1));
        // A counter that was moved far ahead asks from where it is.
        assert_eq!(reserved.wants(10 * BLOCK), Some(11 * BLOCK));
    }

    #[test]
    fn a_successor_starts_above_everything_its_predecessor_could_have_used() {
        let successor = Reserved::above(2 * BLOCK, 3 * BLOCK);
        assert_eq!(successor.after(), 2 * BLOCK);
        assert_eq!(Reserved::EVERYTHING.wants(u64::MAX - 1), None);
    }
}
