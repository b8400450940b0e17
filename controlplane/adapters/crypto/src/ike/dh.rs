//! Diffie-Hellman over elliptic curves, ML-KEM, and the choice of the method.

use core::fmt;

use aws_lc_rs::agreement::{
    self, ECDH_P256, ECDH_P384, ParsedPublicKey, PrivateKey, UnparsedPublicKey, X25519,
};
use aws_lc_rs::kem::{self, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use towpath_base::crypto::{CryptoError, DhGroup, Rng, Secret};
use zeroize::Zeroizing;

use super::modp::{Modp2048, Modp3072, Modp4096};

/// A private value, one use.
pub struct DhPrivate(Inner);

enum Inner {
    /// X25519, P-256 or P-384.
    Curve(DhGroup, PrivateKey),
    Modp2048(Box<Modp2048>),
    Modp3072(Box<Modp3072>),
    Modp4096(Box<Modp4096>),
    MlKem768(DecapsulationKey<kem::AlgorithmId>),
}

impl fmt::Debug for DhPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A random P-256 scalar is out of range once in 2^32 draws; so many misses in a row mean a broken source.
const MAX_DRAWS: usize = 8;

fn unsupported<E>(_: E) -> CryptoError {
    CryptoError::Unsupported
}

/// Draws a private value of `len` bytes.
fn curve(
    group: DhGroup,
    algorithm: &'static agreement::Algorithm,
    len: usize,
    rng: &mut dyn Rng,
) -> Result<Inner, CryptoError> {
    let mut bytes = Zeroizing::new([0; 48]);
    let bytes = bytes.get_mut(..len).ok_or(CryptoError::Unsupported)?;
    for _ in 0..MAX_DRAWS {
        rng.fill(bytes);
        if let Ok(key) = PrivateKey::from_private_key(algorithm, bytes) {
            return Ok(Inner::Curve(group, key));
        }
    }
    Err(CryptoError::Unsupported)
}

impl DhPrivate {
    /// A fresh private value. That of ML-KEM comes from the library's own source of randomness.
    pub(super) fn generate(group: DhGroup, rng: &mut dyn Rng) -> Result<Self, CryptoError> {
        Ok(Self(match group {
            DhGroup::Modp2048 => Inner::Modp2048(Box::new(Modp2048::generate(rng))),
            DhGroup::Modp3072 => Inner::Modp3072(Box::new(Modp3072::generate(rng))),
            DhGroup::Modp4096 => Inner::Modp4096(Box::new(Modp4096::generate(rng))),
            DhGroup::X25519 => curve(group, &X25519, 32, rng)?,
            DhGroup::Ecp256 => curve(group, &ECDH_P256, 32, rng)?,
            DhGroup::Ecp384 => curve(group, &ECDH_P384, 48, rng)?,
            DhGroup::MlKem768 => {
                Inner::MlKem768(DecapsulationKey::generate(&ML_KEM_768).map_err(unsupported)?)
            }
        }))
    }

    /// A private value of ML-KEM from its expanded form (FIPS 203 §7.1, 2400 bytes). Test vectors come with one;
    /// exchanges make theirs.
    #[cfg(test)]
    pub(super) fn ml_kem_768(expanded: &[u8]) -> Result<Self, CryptoError> {
        let key = DecapsulationKey::new(&ML_KEM_768, expanded).map_err(unsupported)?;
        Ok(Self(Inner::MlKem768(key)))
    }

    /// As it goes on the wire: a coordinate for X25519, `x | y` for NIST curves (RFC 5903 §7), a padded number for
    /// MODP, the encapsulation key of a KEM.
    pub(super) fn public(&self) -> Result<Vec<u8>, CryptoError> {
        match &self.0 {
            Inner::Curve(group, key) => {
                let encoded = key.compute_public_key().map_err(unsupported)?;
                match group {
                    DhGroup::X25519 => Ok(encoded.as_ref().to_vec()),
                    // SEC 1 uncompressed points start with 4.
                    _ => (encoded.as_ref().strip_prefix(&[4]))
                        .map(<[u8]>::to_vec)
                        .ok_or(CryptoError::Unsupported),
                }
            }
            Inner::Modp2048(key) => Ok(key.public()),
            Inner::Modp3072(key) => Ok(key.public()),
            Inner::Modp4096(key) => Ok(key.public()),
            Inner::MlKem768(key) => {
                let key = key.encapsulation_key().map_err(unsupported)?;
                Ok(key.key_bytes().map_err(unsupported)?.as_ref().to_vec())
            }
        }
    }

    /// The shared secret: all of an X25519, MODP or KEM result, the x coordinate for NIST curves (RFC 5903 §9).
    pub(super) fn agree(&self, public: &[u8]) -> Result<Secret, CryptoError> {
        let (group, key) = match &self.0 {
            Inner::Modp2048(key) => return key.agree(public),
            Inner::Modp3072(key) => return key.agree(public),
            Inner::Modp4096(key) => return key.agree(public),
            Inner::MlKem768(key) => return decapsulate(key, public),
            Inner::Curve(group, key) => (*group, key),
        };
        if public.len() != group.public_len() {
            return Err(CryptoError::BadPublicValue);
        }
        let point = match group {
            DhGroup::X25519 => public.to_vec(),
            _ => [&[4], public].concat(),
        };
        let parsed = ParsedPublicKey::try_from(UnparsedPublicKey::new(key.algorithm(), point))
            .map_err(|_| CryptoError::BadPublicValue)?;
        agreement::agree(key, parsed, CryptoError::BadPublicValue, |secret| {
            Ok(Secret::new(secret.to_vec()))
        })
    }
}

/// Decapsulation never fails for a ciphertext of the right length: a wrong one gives an unrelated secret
/// (FIPS 203 §6.3), which no message authenticates under.
fn decapsulate(key: &DecapsulationKey<kem::AlgorithmId>, ciphertext: &[u8]) -> Result<Secret, CryptoError> {
    if ciphertext.len() != DhGroup::MlKem768.answer_len() {
        return Err(CryptoError::BadPublicValue);
    }
    let shared = key.decapsulate(ciphertext.into());
    let shared = shared.map_err(|_| CryptoError::BadPublicValue)?;
    Ok(Secret::new(shared.as_ref().to_vec()))
}

/// The responder's half of ML-KEM-768: ciphertext and secret. The key is checked (FIPS 203 §7.2): wrong length, or
/// coefficients not reduced, are refused.
pub(super) fn encapsulate(public: &[u8]) -> Result<(Vec<u8>, Secret), CryptoError> {
    let key = EncapsulationKey::new(&ML_KEM_768, public).map_err(|_| CryptoError::BadPublicValue)?;
    let (ciphertext, shared) = key.encapsulate().map_err(|_| CryptoError::BadPublicValue)?;
    Ok((
        ciphertext.as_ref().to_vec(),
        Secret::new(shared.as_ref().to_vec()),
    ))
}
