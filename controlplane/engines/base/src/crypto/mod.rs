//! What engines ask of cryptography, as traits: adapters and bare-metal builds bring the algorithms.

#[cfg(feature = "alloc")]
mod auth;
mod esp;
#[cfg(feature = "alloc")]
mod ike;
mod inspect;

#[cfg(feature = "alloc")]
pub use auth::{PeerProof, PeerVerifier, SignatureScheme, Signer, Untrusted};
pub use esp::{
    Aad, EspParts, EspProvider, EspTransform, Forged, IcvProvider, IcvTransform, InvalidKey, Whereabouts,
};
#[cfg(feature = "alloc")]
pub use ike::{CryptoError, DhGroup, Integrity, KeyGenerator, Prf, Secret, SkCipher, SkKeys, SkParts};
pub use inspect::{EspDecryptor, InspectProvider};

/// A source of randomness, passed in so that simulations repeat.
pub trait Rng {
    /// Fills `bytes` with unpredictable bytes.
    fn fill(&mut self, bytes: &mut [u8]);
}

impl<T: Rng + ?Sized> Rng for &mut T {
    fn fill(&mut self, bytes: &mut [u8]) {
        (**self).fill(bytes);
    }
}
