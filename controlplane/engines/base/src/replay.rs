//! The anti-replay window (RFC 4303 §3.4.3, RFC 6479).

#[cfg(feature = "alloc")]
use alloc::boxed::Box;

/// Smallest window a receiver may choose (RFC 4303 §3.4.3: 64 is the default, and no less here).
pub const MIN_WINDOW: u32 = 64;

/// Largest window a receiver may choose.
pub const MAX_WINDOW: u32 = 4096;

/// Which sequence numbers were already accepted: a ring of bits behind the highest one.
///
/// `WORDS` 64-bit words lie in the window itself and cover `64 * (WORDS - 1)` numbers: one word is always partly
/// ahead (RFC 6479 §2), so moving the window forward clears whole words instead of shifting bits. `WORDS` must be a
/// power of two, at least 2. With the feature `alloc` a window may be larger than its words, see [`Self::sized`];
/// it allocates when it is made and never again.
#[derive(Debug, Clone)]
pub struct ReplayWindow<const WORDS: usize = 16> {
    highest: u64,
    size: u64,
    bits: Bits<WORDS>,
}

/// The ring; its length is a power of two.
#[derive(Debug, Clone)]
enum Bits<const WORDS: usize> {
    Inline([u64; WORDS]),
    #[cfg(feature = "alloc")]
    Boxed(Box<[u64]>),
}

impl<const WORDS: usize> Bits<WORDS> {
    #[inline]
    fn words(&self) -> &[u64] {
        match self {
            Self::Inline(words) => words,
            #[cfg(feature = "alloc")]
            Self::Boxed(words) => words,
        }
    }

    #[inline]
    fn words_mut(&mut self) -> &mut [u64] {
        match self {
            Self::Inline(words) => words,
            #[cfg(feature = "alloc")]
            Self::Boxed(words) => words,
        }
    }
}

/// Why a sequence number was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed;

impl<const WORDS: usize> ReplayWindow<WORDS> {
    /// Numbers a window of [`Self::new`] covers.
    pub const SIZE: u64 = {
        assert!(WORDS.is_power_of_two() && WORDS >= 2);
        64 * (WORDS as u64 - 1)
    };

    /// An empty window; the first acceptable number is 1.
    pub const fn new() -> Self {
        Self {
            highest: 0,
            size: Self::SIZE,
            bits: Bits::Inline([0; WORDS]),
        }
    }

    /// An empty window of exactly `packets` numbers, [`MIN_WINDOW`] to [`MAX_WINDOW`]. `None` outside these bounds,
    /// or where it would not fit into `WORDS` words and there is no allocator.
    pub fn sized(packets: u32) -> Option<Self> {
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&packets) {
            return None;
        }
        let words = (packets.div_ceil(64) as usize + 1).next_power_of_two();
        let bits = if words <= WORDS {
            Bits::Inline([0; WORDS])
        } else {
            Self::boxed(words)?
        };
        Some(Self {
            highest: 0,
            size: packets.into(),
            bits,
        })
    }

    #[cfg(feature = "alloc")]
    fn boxed(words: usize) -> Option<Bits<WORDS>> {
        Some(Bits::Boxed(alloc::vec![0; words].into_boxed_slice()))
    }

    #[cfg(not(feature = "alloc"))]
    const fn boxed(_words: usize) -> Option<Bits<WORDS>> {
        None
    }

    /// Goes on where a former owner was, at most: everything up to `highest` counts as seen.
    pub fn resume(&mut self, highest: u64) {
        if highest <= self.highest {
            return;
        }
        self.highest = highest;
        let words = self.bits.words_mut();
        words.fill(u64::MAX);
        let len = words.len();
        if let Some(word) = words.get_mut(word_of(highest, len)) {
            // Those above it in its word have not been seen.
            *word = u64::MAX >> (63 - (highest & 63));
        }
    }

    /// Numbers the window covers.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Highest number accepted so far, 0 if none.
    pub const fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether `sequence` could be accepted. Call before the integrity check, [`Self::accept`] after it.
    #[inline]
    pub fn check(&self, sequence: u64) -> Result<(), Replayed> {
        if sequence == 0 || sequence.saturating_add(self.size) <= self.highest {
            return Err(Replayed);
        }
        let words = self.bits.words();
        let seen = words
            .get(word_of(sequence, words.len()))
            .is_none_or(|word| word & bit_of(sequence) != 0);
        if sequence <= self.highest && seen {
            return Err(Replayed);
        }
        Ok(())
    }

    /// Marks `sequence` as seen. Call only after the integrity check passed.
    #[inline]
    pub fn accept(&mut self, sequence: u64) -> Result<(), Replayed> {
        self.check(sequence)?;
        let words = self.bits.words_mut();
        let len = words.len();
        if sequence > self.highest {
            let steps = ((sequence >> 6) - (self.highest >> 6)).min(len as u64);
            for step in 1..=steps {
                let ahead = (((self.highest >> 6) + step) & (len as u64 - 1)) as usize;
                if let Some(word) = words.get_mut(ahead) {
                    *word = 0;
                }
            }
            self.highest = sequence;
        }
        if let Some(word) = words.get_mut(word_of(sequence, len)) {
            *word |= bit_of(sequence);
        }
        Ok(())
    }

    /// The 64-bit number whose low half is `low` and that lies nearest the window (RFC 4303 appendix A2.2).
    #[inline]
    pub const fn extend(&self, low: u32) -> u64 {
        let bottom = self.highest.saturating_sub(self.size - 1);
        let high = bottom >> 32;
        // Below the window's bottom within its own half means the next half.
        if low < bottom as u32 {
            (high.wrapping_add(1) << 32) | low as u64
        } else {
            (high << 32) | low as u64
        }
    }
}

/// Which of `len` words, a power of two, holds the bit of `sequence`.
#[inline]
const fn word_of(sequence: u64, len: usize) -> usize {
    ((sequence >> 6) & (len as u64 - 1)) as usize
}

#[inline]
const fn bit_of(sequence: u64) -> u64 {
    1 << (sequence & 63)
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

    #[test]
    fn a_resumed_window_refuses_all_up_to_its_number_and_takes_every_one_above_once() {
        for highest in [1, 62, 63, 64, 127, 1000, 65_535, u64::from(u32::MAX) + 5] {
            for size in [64, 960, 4096] {
                let mut window = ReplayWindow::<16>::sized(size).unwrap();
                window.resume(highest);
                for seen in highest.saturating_sub(5000)..=highest {
                    assert_eq!(window.accept(seen), Err(Replayed), "{seen} of {highest}");
                }
                // In an order that moves the window by less and by more than a word.
                for step in [3, 1, 2, 70, 64, 5, 200, 130, 69] {
                    let inside = highest + step + u64::from(size) > window.highest();
                    assert_eq!(window.accept(highest + step).is_ok(), inside);
                    assert_eq!(window.accept(highest + step), Err(Replayed));
                }
                window.resume(highest);
                assert_eq!(window.highest(), highest + 200, "never backwards");
            }
        }
    }

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

    /// SplitMix64.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    /// A million numbers for each size: sent around the end of a 32-bit half, reordered, repeated, with gaps, and
    /// seen by the receiver as their low halves alone.
    #[cfg(feature = "alloc")]
    #[test]
    fn a_million_numbers_across_esn_wraps_agree_with_a_naive_set() {
        for size in [64u32, 65, 100, 960, 1024, 4032, 4096] {
            let mut window = ReplayWindow::<2>::sized(size).unwrap();
            let (mut seen, mut highest) = (BTreeSet::new(), 0u64);
            let mut numbers = Numbers(u64::from(size));
            let (mut wraps, mut accepted) = (0, 0u32);
            for _ in 0..1_000_000 {
                let random = numbers.next();
                let near = random >> 32;
                let sent = match random % 1000 {
                    // Far ahead, yet less than a half away: what a receiver can follow.
                    0 => highest + (near % 0x7fff_ffff),
                    1..=5 => highest + near % (4 * u64::from(size)),
                    6..=400 => highest + 1,
                    _ => highest.saturating_sub(near % (u64::from(size) + 40)),
                };
                let inside = sent + u64::from(size) > highest;
                if inside {
                    assert_eq!(window.extend(sent as u32), sent);
                }
                let fresh = sent != 0 && inside && seen.insert(sent);
                assert_eq!(window.check(sent).is_ok(), fresh);
                assert_eq!(window.accept(sent).is_ok(), fresh);
                if fresh && sent > highest {
                    wraps += (sent >> 32) - (highest >> 32);
                    highest = sent;
                    seen = seen.split_off(&highest.saturating_sub(u64::from(size)));
                }
                accepted += u32::from(fresh);
            }
            assert_eq!(window.highest(), highest);
            assert!(wraps > 100 && accepted > 300_000, "{wraps} {accepted}");
        }
    }

    #[test]
    fn sizes_outside_the_bounds_are_refused() {
        assert!(ReplayWindow::<128>::sized(63).is_none());
        assert!(ReplayWindow::<128>::sized(4097).is_none());
        assert_eq!(ReplayWindow::<128>::sized(4096).unwrap().size(), 4096);
        assert_eq!(ReplayWindow::<2>::sized(64).unwrap().size(), 64);
        let larger = ReplayWindow::<2>::sized(65);
        assert_eq!(larger.is_some(), cfg!(feature = "alloc"));
    }
}
