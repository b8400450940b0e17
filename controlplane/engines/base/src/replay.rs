//! The anti-replay window (RFC 4303 §3.4.3, RFC 6479).

/// Which sequence numbers were already accepted: a ring of bits behind the highest one.
///
/// `WORDS` 64-bit words give a window of `64 * (WORDS - 1)` numbers: one word is always partly
/// ahead (RFC 6479 §2), so moving the window forward clears whole words instead of shifting bits.
/// `WORDS` must be a power of two, at least 2.
#[derive(Debug, Clone)]
pub struct ReplayWindow<const WORDS: usize> {
    highest: u64,
    bits: [u64; WORDS],
}

/// Why a sequence number was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed;

impl<const WORDS: usize> ReplayWindow<WORDS> {
    /// Numbers the window covers.
    pub const SIZE: u64 = {
        assert!(WORDS.is_power_of_two() && WORDS >= 2);
        64 * (WORDS as u64 - 1)
    };

    /// An empty window; the first acceptable number is 1.
    pub const fn new() -> Self {
        Self {
            highest: 0,
            bits: [0; WORDS],
        }
    }

    /// Highest number accepted so far, 0 if none.
    pub const fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether `sequence` could be accepted. Call before the integrity check, [`Self::accept`] after it.
    pub fn check(&self, sequence: u64) -> Result<(), Replayed> {
        if sequence == 0 || sequence.saturating_add(Self::SIZE) <= self.highest {
            return Err(Replayed);
        }
        let (word, mask) = Self::position(sequence);
        if sequence <= self.highest && self.bits[word] & mask != 0 {
            return Err(Replayed);
        }
        Ok(())
    }

    /// Marks `sequence` as seen. Call only after the integrity check passed.
    pub fn accept(&mut self, sequence: u64) -> Result<(), Replayed> {
        self.check(sequence)?;
        if sequence > self.highest {
            let words = ((sequence >> 6) - (self.highest >> 6)).min(WORDS as u64);
            for step in 1..=words {
                self.bits[((self.highest >> 6) + step) as usize % WORDS] = 0;
            }
            self.highest = sequence;
        }
        let (word, mask) = Self::position(sequence);
        self.bits[word] |= mask;
        Ok(())
    }

    /// The 64-bit number whose low half is `low` and that lies nearest the window (RFC 4303 appendix A2.2).
    pub fn extend(&self, low: u32) -> u64 {
        let bottom = self.highest.saturating_sub(Self::SIZE - 1);
        let high = bottom >> 32;
        // Below the window's bottom within its own half means the next half.
        if low < bottom as u32 {
            ((high + 1) << 32) | u64::from(low)
        } else {
            (high << 32) | u64::from(low)
        }
    }

    const fn position(sequence: u64) -> (usize, u64) {
        ((sequence >> 6) as usize % WORDS, 1 << (sequence & 63))
    }
}

impl<const WORDS: usize> Default for ReplayWindow<WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The window as the RFC words it, with an unbounded memory.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn accept(&mut self, sequence: u64, size: u64) -> Result<(), Replayed> {
            let highest = self.seen.last().copied().unwrap_or(0);
            let left_of_window = sequence + size <= highest;
            if sequence == 0 || left_of_window || !self.seen.insert(sequence) {
                Err(Replayed)
            } else {
                Ok(())
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_that_forgets_nothing(
            start in prop_oneof![Just(0u64), Just(u64::from(u32::MAX) - 200)],
            steps in prop::collection::vec((-150i64..200, any::<bool>()), 1..400),
        ) {
            let (mut window, mut model, mut at) = (ReplayWindow::<2>::new(), Model::default(), start);
            for (step, far) in steps {
                let jump = if far { step * 7 } else { step };
                let sequence = at.saturating_add_signed(jump);
                prop_assert_eq!(window.accept(sequence), model.accept(sequence, ReplayWindow::<2>::SIZE));
                at = at.max(sequence);
            }
        }

        #[test]
        fn the_extended_number_is_the_one_sent(
            highest in 1u64..(1 << 40), offset in -60i64..1_000_000,
        ) {
            let mut window = ReplayWindow::<2>::new();
            window.accept(highest).unwrap();
            let sent = highest.saturating_add_signed(offset);
            prop_assume!(sent > 0 && sent + ReplayWindow::<2>::SIZE > highest);
            prop_assert_eq!(window.extend(sent as u32), sent);
        }
    }
}
