//! Sequence numbers: 32 bits on the wire, 64 bits inside.
//!
//! A [`SeqNum`] has no order, only [`SeqNum::before`] and [`SeqNum::after`] (RFC 9293 §3.4). Everything
//! inside an endpoint counts in [`Offset`]s, positions in the sequence space since the SYN, which have an
//! order and do not wrap: the SYN is offset 0, the first byte of data offset 1.

use core::fmt;
use core::ops::{Add, Sub};

/// A sequence number as it stands in a segment, host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SeqNum(pub u32);

impl SeqNum {
    /// True when `self` lies before `other`, modulo 2^32.
    #[inline]
    pub const fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// True when `self` lies after `other`, modulo 2^32.
    #[inline]
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// Signed distance from `other` to `self`.
    #[inline]
    pub const fn distance(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }
}

impl Add<u32> for SeqNum {
    type Output = Self;

    fn add(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count))
    }
}

impl Sub<u32> for SeqNum {
    type Output = Self;

    fn sub(self, count: u32) -> Self {
        Self(self.0.wrapping_sub(count))
    }
}

impl fmt::Debug for SeqNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeqNum({})", self.0)
    }
}

/// A position in one direction's sequence space: sequence numbers since the SYN, which has position 0.
pub type Offset = u64;

/// One direction's mapping between [`SeqNum`] and [`Offset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeqSpace {
    /// The initial sequence number: the one of offset 0.
    pub initial: SeqNum,
}

impl SeqSpace {
    /// The number that stands on the wire for `offset`.
    #[inline]
    pub const fn number(self, offset: Offset) -> SeqNum {
        SeqNum(self.initial.0.wrapping_add(offset as u32))
    }

    /// The offset nearest to `near` that `number` can stand for; `None` before the SYN.
    #[inline]
    pub const fn offset(self, number: SeqNum, near: Offset) -> Option<Offset> {
        near.checked_add_signed(number.distance(self.number(near)) as i64)
    }
}

crate::codec::record!(SeqSpace { initial });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_and_after_wrap() {
        assert!(SeqNum(u32::MAX).before(SeqNum(3)));
        assert!(SeqNum(3).after(SeqNum(u32::MAX)));
        assert!(!SeqNum(3).before(SeqNum(3)));
    }

    #[test]
    fn an_offset_survives_the_wire_on_both_sides_of_a_wrap() {
        let space = SeqSpace {
            initial: SeqNum(u32::MAX - 5),
        };
        for offset in [0, 5, 6, 1 << 20, (1 << 32) - 1, 1 << 33] {
            for near in [offset, offset + 1000, u64::saturating_sub(offset, 1000)] {
                assert_eq!(space.offset(space.number(offset), near), Some(offset));
            }
        }
        assert_eq!(space.offset(SeqNum(u32::MAX - 6), 0), None);
    }
}
