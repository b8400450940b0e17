//! The operating system's randomness.

use towpath_base::crypto::Rng;

/// Randomness from the operating system, through aws-lc's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRng;

impl Rng for SystemRng {
    /// # Panics
    /// If the system gives no randomness: nothing that needs keys can go on then.
    fn fill(&mut self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the operating system gives no randomness");
    }
}
