//! [`KeyGenerator`] on aws-lc-rs, and MODP groups on crypto-bigint.

mod dh;
mod modp;
mod sk;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use aws_lc_rs::digest::{self, SHA1_FOR_LEGACY_USE_ONLY};
use aws_lc_rs::hmac;
use towpath_base::Key;
use towpath_base::crypto::{CryptoError, DhGroup, KeyGenerator, Prf, Rng, Secret, SkKeys, SkParts};

pub use dh::DhPrivate;

/// The key generator of a keyserver.
///
/// Private values of Diffie-Hellman come from the [`Rng`] passed in, so exchanges repeat for the same seed. ML-KEM
/// and signatures draw from the library's own source.
#[derive(Debug, Clone, Copy, Default)]
pub struct IkeCrypto;

const fn algorithm(prf: Prf) -> hmac::Algorithm {
    match prf {
        Prf::HmacSha256 => hmac::HMAC_SHA256,
        Prf::HmacSha384 => hmac::HMAC_SHA384,
        Prf::HmacSha512 => hmac::HMAC_SHA512,
    }
}

fn hmac(prf: Prf, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm(prf), key));
    parts.iter().for_each(|part| context.update(part));
    context.sign()
}

impl KeyGenerator for IkeCrypto {
    type Private = DhPrivate;

    fn initiate(&self, group: DhGroup, rng: &mut dyn Rng) -> Result<(DhPrivate, Vec<u8>), CryptoError> {
        let private = DhPrivate::generate(group, rng)?;
        let public = private.public()?;
        Ok((private, public))
    }

    fn finish(&self, private: DhPrivate, public: &[u8]) -> Result<Secret, CryptoError> {
        private.agree(public)
    }

    fn respond(
        &self,
        group: DhGroup,
        public: &[u8],
        rng: &mut dyn Rng,
    ) -> Result<(Vec<u8>, Secret), CryptoError> {
        if group == DhGroup::MlKem768 {
            return dh::encapsulate(public);
        }
        let private = DhPrivate::generate(group, rng)?;
        Ok((private.public()?, private.agree(public)?))
    }

    fn prf(&self, prf: Prf, key: &[u8], parts: &[&[u8]]) -> Key {
        // No PRF gives more than a Key holds.
        Key::from_slice(hmac(prf, key, parts).as_ref()).unwrap_or(Key::EMPTY)
    }

    fn sha1(&self, parts: &[&[u8]]) -> [u8; 20] {
        let mut context = digest::Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        parts.iter().for_each(|part| context.update(part));
        context.finish().as_ref().try_into().unwrap_or([0; 20])
    }

    fn seal(&self, keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError> {
        sk::seal(keys, parts)
    }

    fn open(&self, keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError> {
        sk::open(keys, parts)
    }
}
