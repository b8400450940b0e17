//! Diffie-Hellman over elliptic curves, and the choice of the group.

use core::fmt;

use aws_lc_rs::agreement::{self, ECDH_P256, ParsedPublicKey, PrivateKey, UnparsedPublicKey, X25519};
use towpath_base::crypto::{CryptoError, DhGroup, Rng, Secret};
use zeroize::Zeroizing;

use super::modp::Modp2048;

/// A private value, one use.
pub struct DhPrivate(Inner);

enum Inner {
    X25519(PrivateKey),
    Ecp256(PrivateKey),
    Modp2048(Box<Modp2048>),
}

impl fmt::Debug for DhPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A random P-256 scalar is out of range once in 2^32 draws; so many misses in a row mean a broken source.
const MAX_DRAWS: usize = 8;

impl DhPrivate {
    pub(super) fn generate(group: DhGroup, rng: &mut dyn Rng) -> Result<Self, CryptoError> {
        let mut bytes = Zeroizing::new([0; 32]);
        match group {
            DhGroup::Modp2048 => Ok(Self(Inner::Modp2048(Box::new(Modp2048::generate(rng))))),
            DhGroup::X25519 => {
                rng.fill(&mut *bytes);
                PrivateKey::from_private_key(&X25519, &*bytes)
                    .map(|key| Self(Inner::X25519(key)))
                    .map_err(|_| CryptoError::Unsupported)
            }
            DhGroup::Ecp256 => {
                for _ in 0..MAX_DRAWS {
                    rng.fill(&mut *bytes);
                    if let Ok(key) = PrivateKey::from_private_key(&ECDH_P256, &*bytes) {
                        return Ok(Self(Inner::Ecp256(key)));
                    }
                }
                Err(CryptoError::Unsupported)
            }
        }
    }

    /// As it goes on the wire: a coordinate for X25519, `x | y` for P-256 (RFC 5903 §7), a padded number for MODP.
    pub(super) fn public(&self) -> Result<Vec<u8>, CryptoError> {
        let encoded = |key: &PrivateKey| key.compute_public_key().map_err(|_| CryptoError::Unsupported);
        match &self.0 {
            Inner::X25519(key) => Ok(encoded(key)?.as_ref().to_vec()),
            // SEC 1 uncompressed points start with 4.
            Inner::Ecp256(key) => {
                let point = encoded(key)?;
                point
                    .as_ref()
                    .strip_prefix(&[4])
                    .map(<[u8]>::to_vec)
                    .ok_or(CryptoError::Unsupported)
            }
            Inner::Modp2048(key) => Ok(key.public()),
        }
    }

    /// The shared secret: all of an X25519 or MODP result, the x coordinate for P-256 (RFC 5903 §9).
    pub(super) fn agree(&self, public: &[u8]) -> Result<Secret, CryptoError> {
        let (key, point, len) = match &self.0 {
            Inner::Modp2048(key) => return key.agree(public),
            Inner::X25519(key) => (key, public.to_vec(), DhGroup::X25519.public_len()),
            Inner::Ecp256(key) => (key, [&[4], public].concat(), DhGroup::Ecp256.public_len()),
        };
        if public.len() != len {
            return Err(CryptoError::BadPublicValue);
        }
        let parsed = ParsedPublicKey::try_from(UnparsedPublicKey::new(key.algorithm(), point))
            .map_err(|_| CryptoError::BadPublicValue)?;
        agreement::agree(key, parsed, CryptoError::BadPublicValue, |secret| {
            Ok(Secret::new(secret.to_vec()))
        })
    }
}
