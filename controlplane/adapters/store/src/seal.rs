//! Encryption at rest: AES-256-GCM under the key-encryption key, a fresh random nonce each time.
//!
//! Layout: nonce[12], ciphertext, tag[16]. With random 96-bit nonces one key is good for 2^32 writes (NIST
//! SP 800-38D §8.3), which a store of subscribers does not come near.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::Kek;

/// Seals and opens what lies on disk.
pub(crate) struct Sealer {
    key: LessSafeKey,
    /// For prints of keys; derived, so that a print says nothing about what is sealed.
    print_key: hmac::Key,
}

/// The bytes are not what was sealed under this key for this place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Sealer {
    pub(crate) fn new(kek: &Kek) -> Self {
        // The key has the algorithm's length by type, the only thing that is checked.
        #[expect(clippy::expect_used, reason = "32 bytes are an AES-256 key")]
        let key = UnboundKey::new(&AES_256_GCM, kek.expose()).expect("32 bytes");
        let master = hmac::Key::new(hmac::HMAC_SHA256, kek.expose());
        let derived = hmac::sign(&master, b"towpath key print 1");
        Self {
            key: LessSafeKey::new(key),
            print_key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        }
    }

    /// Key of the prints under which marks of keys are filed.
    pub(crate) const fn print_key(&self) -> &hmac::Key {
        &self.print_key
    }

    /// Seals `plain` for the place `bound_to`.
    pub(crate) fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Broken)?;
        let mut buffer = Zeroizing::new(plain.to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to),
                &mut buffer,
            )
            .map_err(|_| Broken)?;
        Ok([&nonce, buffer.as_slice(), tag.as_ref()].concat())
    }

    /// Opens what [`Sealer::seal`] made for the same place.
    pub(crate) fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Broken> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Broken)?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let len = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(bound_to),
                &mut buffer,
            )
            .map_err(|_| Broken)?
            .len();
        buffer.truncate(len);
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::SecretKey;

    use super::*;

    #[test]
    fn sealed_bytes_open_only_whole_in_their_place_and_under_their_key() {
        let sealer = Sealer::new(&Kek::new(SecretKey::new([7; 32])));
        let sealed = sealer.seal(b"here", b"secret").unwrap();
        assert_eq!(sealed.len(), 12 + 6 + 16);
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(sealer.open(b"here", &sealed).unwrap().as_slice(), b"secret");
        assert_eq!(sealer.open(b"there", &sealed), Err(Broken));
        for len in 0..sealed.len() {
            assert_eq!(sealer.open(b"here", &sealed[..len]), Err(Broken));
        }
        for index in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[index] ^= 1;
            assert_eq!(sealer.open(b"here", &flipped), Err(Broken));
        }
        let other = Sealer::new(&Kek::new(SecretKey::new([8; 32])));
        assert_eq!(other.open(b"here", &sealed), Err(Broken));
        assert_ne!(sealer.seal(b"here", b"secret").unwrap(), sealed, "nonce reused");
    }
}
