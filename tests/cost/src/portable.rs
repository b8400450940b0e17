//! IKE's cryptography from the family the terminal core is built with: portable Rust, no assembly.
//!
//! Both measured programs then stand on the same ground: what differs is the protocol. One proposal,
//! `aes256gcm16-prfsha256-x25519`; the others are measured with the keyserver's own provider.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use hmac::{Hmac, Mac};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use towpath_base::Key;
use towpath_base::crypto::{CryptoError, DhGroup, KeyGenerator, Prf, Rng, Secret, SkCipher, SkKeys, SkParts};
use x25519_dalek::{PublicKey, StaticSecret};

/// The proposal it speaks.
pub const PROPOSAL: &str = "aes256gcm16-prfsha256-x25519";

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct PortableIke;

fn only(group: DhGroup) -> Result<(), CryptoError> {
    match group {
        DhGroup::X25519 => Ok(()),
        _ => Err(CryptoError::Unsupported),
    }
}

fn generate(rng: &mut dyn Rng) -> (StaticSecret, Vec<u8>) {
    let mut bytes = [0; 32];
    rng.fill(&mut bytes);
    let private = StaticSecret::from(bytes);
    let public = PublicKey::from(&private).as_bytes().to_vec();
    (private, public)
}

/// The key, and the nonce `salt | IV` (RFC 5282 §4).
fn gcm(keys: &SkKeys, iv: &[u8]) -> Result<(Aes256Gcm, [u8; 12]), CryptoError> {
    if keys.cipher != SkCipher::Aes256Gcm16 {
        return Err(CryptoError::Unsupported);
    }
    let unsupported = CryptoError::Unsupported;
    let (key, salt) = keys.encryption.expose().split_at_checked(32).ok_or(unsupported)?;
    let nonce = [salt, iv].concat().try_into().map_err(|_| unsupported)?;
    Ok((Aes256Gcm::new_from_slice(key).map_err(|_| unsupported)?, nonce))
}

impl KeyGenerator for PortableIke {
    type Private = StaticSecret;

    fn initiate(&self, group: DhGroup, rng: &mut dyn Rng) -> Result<(StaticSecret, Vec<u8>), CryptoError> {
        only(group)?;
        Ok(generate(rng))
    }

    fn finish(&self, private: StaticSecret, public: &[u8]) -> Result<Secret, CryptoError> {
        let public: [u8; 32] = public.try_into().map_err(|_| CryptoError::BadPublicValue)?;
        let shared = private.diffie_hellman(&PublicKey::from(public));
        if !shared.was_contributory() {
            return Err(CryptoError::BadPublicValue);
        }
        Ok(Secret::new(shared.as_bytes().to_vec()))
    }

    fn respond(
        &self,
        group: DhGroup,
        public: &[u8],
        rng: &mut dyn Rng,
    ) -> Result<(Vec<u8>, Secret), CryptoError> {
        only(group)?;
        let (private, own) = generate(rng);
        Ok((own, self.finish(private, public)?))
    }

    fn prf(&self, prf: Prf, key: &[u8], parts: &[&[u8]]) -> Key {
        assert_eq!(prf, Prf::HmacSha256, "the one proposal");
        let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).expect("HMAC takes any key");
        parts.iter().for_each(|part| mac.update(part));
        Key::from_slice(&mac.finalize().into_bytes()).expect("32 bytes fit")
    }

    fn sha1(&self, parts: &[&[u8]]) -> [u8; 20] {
        let mut hash = Sha1::new();
        parts.iter().for_each(|part| hash.update(part));
        hash.finalize().into()
    }

    fn seal(&self, keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError> {
        let (aead, nonce) = gcm(keys, parts.iv)?;
        let tag = aead
            .encrypt_inout_detached(&nonce.into(), parts.header, parts.text.into())
            .map_err(|_| CryptoError::Unsupported)?;
        parts.icv.copy_from_slice(&tag);
        Ok(())
    }

    fn open(&self, keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError> {
        let (aead, nonce) = gcm(keys, parts.iv)?;
        let tag: [u8; 16] = (&*parts.icv).try_into().map_err(|_| CryptoError::Forged)?;
        aead.decrypt_inout_detached(&nonce.into(), parts.header, parts.text.into(), &tag.into())
            .map_err(|_| CryptoError::Forged)
    }
}
