//! For tests and simulations only.

use crate::crypto::Rng;
use crate::sa::{EspKeys, EspSuite};

/// A random-looking sequence that repeats for the same seed (SplitMix64). **Not** for keys outside tests.
#[derive(Debug, Clone)]
pub struct SeededRng(u64);

impl SeededRng {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, 0 for a bound of 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        match self.next_u64().checked_rem(bound) {
            Some(number) => number,
            None => 0,
        }
    }
}

impl Rng for SeededRng {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next_u64().to_be_bytes();
            for (byte, value) in chunk.iter_mut().zip(random) {
                *byte = value;
            }
        }
    }
}

/// Keys of `suite` that everybody can tell: every byte is `fill`.
///
/// # Panics
/// Never: the material has the suite's own length.
pub fn esp_keys(suite: EspSuite, fill: u8) -> EspKeys {
    let material = [fill; 2 * crate::key::MAX_KEY_LEN];
    let keys = material.get(..suite.key_material_len());
    keys.and_then(|material| EspKeys::split(suite, material))
        .expect("the suite's own length")
}
