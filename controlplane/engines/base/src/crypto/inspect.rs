//! Decrypting with the cipher key alone: class `inspect` (spec rows T4 and T8).

use super::{Forged, InvalidKey};
use crate::key::Key;
use crate::sa::EspSuite;

/// One direction, keyed with the cipher key and nothing else: it can look, and cannot make a packet anybody accepts.
///
/// What it shows was not authenticated.
pub trait EspDecryptor {
    /// The algorithms.
    fn suite(&self) -> EspSuite;

    /// Decrypts `payload` (a multiple of the block length) that came with `iv`, in place.
    fn decrypt(&mut self, iv: &[u8], payload: &mut [u8]) -> Result<(), Forged>;
}

/// Makes decryptors.
pub trait InspectProvider {
    /// What it makes.
    type Decryptor: EspDecryptor;

    /// A decryptor under `cipher`, the key with its salt.
    ///
    /// # Errors
    /// [`InvalidKey`] for an AEAD: its one key is the integrity key too.
    fn decryptor(&self, suite: EspSuite, cipher: &Key) -> Result<Self::Decryptor, InvalidKey>;
}
