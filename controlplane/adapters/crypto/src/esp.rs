//! ESP bulk cryptography with aws-lc-rs (RFC 4106; RFC 3602 with RFC 4868).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{constant_time, hmac};
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, Forged, InvalidKey};
use towpath_base::sa::{EspKeys, EspSuite};

/// Makes [`AwsLcTransform`]s.
#[derive(Debug, Clone, Copy, Default)]
pub struct AwsLcEsp;

/// One keyed direction. It can seal and open, for the trait has both; an owner uses one.
#[derive(Debug)]
pub struct AwsLcTransform {
    suite: EspSuite,
    cipher: Cipher,
}

enum Cipher {
    Gcm { key: LessSafeKey, salt: [u8; 4] },
    Cbc(Box<Cbc>),
}

struct Cbc {
    encrypt: EncryptingKey,
    decrypt: DecryptingKey,
    mac: hmac::Key,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl EspProvider for AwsLcEsp {
    type Transform = AwsLcTransform;

    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<AwsLcTransform, InvalidKey> {
        if keys.integrity.len() != suite.integrity_key_len()
            || keys.cipher.len() != suite.cipher_key_len() + suite.salt_len()
        {
            return Err(InvalidKey);
        }
        let (key, salt) = keys
            .cipher
            .expose()
            .split_at_checked(suite.cipher_key_len())
            .ok_or(InvalidKey)?;
        let cipher = match suite {
            EspSuite::Aes128Gcm16 => gcm(&AES_128_GCM, key, salt),
            EspSuite::Aes256Gcm16 => gcm(&AES_256_GCM, key, salt),
            EspSuite::Aes128CbcSha256 => cbc(&AES_128, key, keys.integrity.expose()),
            EspSuite::Aes256CbcSha256 => cbc(&AES_256, key, keys.integrity.expose()),
            _ => return Err(InvalidKey),
        }?;
        Ok(AwsLcTransform { suite, cipher })
    }
}

fn gcm(
    algorithm: &'static aws_lc_rs::aead::Algorithm,
    key: &[u8],
    salt: &[u8],
) -> Result<Cipher, InvalidKey> {
    let key = UnboundKey::new(algorithm, key).map_err(|_| InvalidKey)?;
    Ok(Cipher::Gcm {
        key: LessSafeKey::new(key),
        salt: salt.try_into().map_err(|_| InvalidKey)?,
    })
}

fn cbc(algorithm: &'static Algorithm, key: &[u8], integrity: &[u8]) -> Result<Cipher, InvalidKey> {
    let unbound = || UnboundCipherKey::new(algorithm, key).map_err(|_| InvalidKey);
    Ok(Cipher::Cbc(Box::new(Cbc {
        encrypt: EncryptingKey::cbc(unbound()?).map_err(|_| InvalidKey)?,
        decrypt: DecryptingKey::cbc(unbound()?).map_err(|_| InvalidKey)?,
        mac: hmac::Key::new(hmac::HMAC_SHA256, integrity),
    })))
}

impl EspTransform for AwsLcTransform {
    fn suite(&self) -> EspSuite {
        self.suite
    }

    fn seal(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        if parts.icv.len() != self.suite.icv_len() {
            return Err(Forged);
        }
        match &self.cipher {
            Cipher::Gcm { key, salt } => {
                let (nonce, aad) = nonce_and_aad(*salt, &parts)?;
                let tag = key
                    .seal_in_place_separate_tag(nonce, aad, parts.payload)
                    .map_err(|_| Forged)?;
                parts.icv.copy_from_slice(tag.as_ref());
            }
            Cipher::Cbc(cbc) => {
                let Cbc { encrypt, mac, .. } = &**cbc;
                let iv = FixedLength::try_from(parts.iv).map_err(|_| Forged)?;
                encrypt
                    .less_safe_encrypt(parts.payload, EncryptionContext::Iv128(iv))
                    .map_err(|_| Forged)?;
                let tag = authenticate(mac, &parts);
                let (icv, _) = tag.as_ref().split_at_checked(parts.icv.len()).ok_or(Forged)?;
                parts.icv.copy_from_slice(icv);
            }
        }
        Ok(())
    }

    fn open(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        if parts.icv.len() != self.suite.icv_len() {
            return Err(Forged);
        }
        match &self.cipher {
            Cipher::Gcm { key, salt } => {
                let (nonce, aad) = nonce_and_aad(*salt, &parts)?;
                key.open_in_place_separate_tag(nonce, aad, parts.icv, parts.payload)
                    .map_err(|_| Forged)?;
            }
            Cipher::Cbc(cbc) => {
                let Cbc { decrypt, mac, .. } = &**cbc;
                let tag = authenticate(mac, &parts);
                let (icv, _) = tag.as_ref().split_at_checked(parts.icv.len()).ok_or(Forged)?;
                constant_time::verify_slices_are_equal(icv, parts.icv).map_err(|_| Forged)?;
                let iv = FixedLength::try_from(parts.iv).map_err(|_| Forged)?;
                decrypt
                    .decrypt(parts.payload, DecryptionContext::Iv128(iv))
                    .map_err(|_| Forged)?;
            }
        }
        Ok(())
    }
}

/// Nonce: salt and explicit IV (RFC 4106 §4). AAD: the header, with ESN its sequence number in full (§5).
fn nonce_and_aad(salt: [u8; 4], parts: &EspParts<'_>) -> Result<(Nonce, Aad<AadBytes>), Forged> {
    let iv: [u8; 8] = parts.iv.try_into().map_err(|_| Forged)?;
    let ([a, b, c, d], [e, f, g, h, i, j, k, l]) = (salt, iv);
    let nonce = Nonce::assume_unique_for_key([a, b, c, d, e, f, g, h, i, j, k, l]);
    Ok((nonce, Aad::from(AadBytes::of(parts))))
}

/// HMAC-SHA2-256 over header, IV, ciphertext and the unsent half of the sequence number (RFC 4303 §3.3.2.1).
fn authenticate(key: &hmac::Key, parts: &EspParts<'_>) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(&parts.header);
    context.update(parts.iv);
    context.update(parts.payload);
    if let Some(high) = parts.esn_high {
        context.update(&high.to_be_bytes());
    }
    context.sign()
}

/// 8 or 12 bytes.
struct AadBytes {
    bytes: [u8; 12],
    len: usize,
}

impl AadBytes {
    fn of(parts: &EspParts<'_>) -> Self {
        let [a, b, c, d, e, f, g, h] = parts.header;
        match parts.esn_high {
            None => Self {
                bytes: [a, b, c, d, e, f, g, h, 0, 0, 0, 0],
                len: 8,
            },
            Some(high) => {
                let [i, j, k, l] = high.to_be_bytes();
                Self {
                    bytes: [a, b, c, d, i, j, k, l, e, f, g, h],
                    len: 12,
                }
            }
        }
    }
}

impl AsRef<[u8]> for AadBytes {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}
