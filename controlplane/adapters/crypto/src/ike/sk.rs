//! Protection of the Encrypted payload.

use aws_lc_rs::aead::{
    self, AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use towpath_base::crypto::{CryptoError, Integrity, SkCipher, SkKeys, SkParts};

use super::hmac;

const TAG_LEN: usize = 16;

fn unsupported<E>(_: E) -> CryptoError {
    CryptoError::Unsupported
}

fn check(keys: &SkKeys, parts: &SkParts<'_>) -> Result<(), CryptoError> {
    let authentication = keys.integrity.map_or(0, Integrity::key_len);
    let valid = keys.encryption.len() == keys.cipher.key_len()
        && keys.integrity.is_none() == keys.cipher.is_aead()
        && keys.authentication.len() == authentication
        && parts.iv.len() == keys.cipher.iv_len()
        && parts.icv.len() == keys.icv_len();
    if valid {
        Ok(())
    } else {
        Err(CryptoError::Unsupported)
    }
}

/// The key, and the nonce `salt | IV` (RFC 5282 §4, RFC 7634 §2).
fn aead(
    algorithm: &'static aead::Algorithm,
    keys: &SkKeys,
    iv: &[u8],
) -> Result<(LessSafeKey, Nonce), CryptoError> {
    let material = keys.encryption.expose();
    let (key, salt) = material
        .split_at_checked(algorithm.key_len())
        .ok_or(CryptoError::Unsupported)?;
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(unsupported)?);
    let nonce = Nonce::try_assume_unique_for_key(&[salt, iv].concat()).map_err(unsupported)?;
    Ok((key, nonce))
}

const fn aead_algorithm(cipher: SkCipher) -> Option<&'static aead::Algorithm> {
    match cipher {
        SkCipher::Aes128Gcm16 => Some(&AES_128_GCM),
        SkCipher::Aes256Gcm16 => Some(&AES_256_GCM),
        SkCipher::ChaCha20Poly1305 => Some(&CHACHA20_POLY1305),
        SkCipher::Aes128Cbc | SkCipher::Aes256Cbc | SkCipher::Aes128Ctr | SkCipher::Aes256Ctr => None,
    }
}

/// The AES key and, in counter mode, the salt after it.
fn aes(keys: &SkKeys) -> Result<(UnboundCipherKey, &[u8]), CryptoError> {
    let bytes = keys.cipher.key_bits().map_or(0, usize::from) / 8;
    let algorithm = if bytes == 16 { &AES_128 } else { &AES_256 };
    let (key, salt) = (keys.encryption.expose())
        .split_at_checked(bytes)
        .ok_or(CryptoError::Unsupported)?;
    Ok((UnboundCipherKey::new(algorithm, key).map_err(unsupported)?, salt))
}

/// First counter block: `salt | IV | 1` (RFC 5930 §2).
fn counter_block(salt: &[u8], iv: &[u8]) -> Result<[u8; 16], CryptoError> {
    [salt, iv, &[0, 0, 0, 1]].concat().try_into().map_err(unsupported)
}

fn encrypt(keys: &SkKeys, iv: &[u8], text: &mut [u8]) -> Result<(), CryptoError> {
    let (key, salt) = aes(keys)?;
    let done = if keys.cipher.counts() {
        let block = counter_block(salt, iv)?;
        EncryptingKey::ctr(key)
            .and_then(|key| key.less_safe_encrypt(text, EncryptionContext::Iv128((&block).into())))
    } else {
        EncryptingKey::cbc(key)
            .and_then(|key| key.less_safe_encrypt(text, EncryptionContext::Iv128(iv.try_into()?)))
    };
    done.map(|_| ()).map_err(unsupported)
}

fn decrypt(keys: &SkKeys, iv: &[u8], text: &mut [u8]) -> Result<(), CryptoError> {
    let (key, salt) = aes(keys)?;
    let done = if keys.cipher.counts() {
        let block = counter_block(salt, iv)?;
        DecryptingKey::ctr(key).and_then(|key| {
            key.decrypt(text, DecryptionContext::Iv128((&block).into()))?;
            Ok(())
        })
    } else {
        DecryptingKey::cbc(key).and_then(|key| {
            key.decrypt(text, DecryptionContext::Iv128(iv.try_into()?))?;
            Ok(())
        })
    };
    done.map_err(unsupported)
}

pub(super) fn seal(keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError> {
    check(keys, &parts)?;
    let SkParts {
        header,
        iv,
        text,
        icv,
    } = parts;
    if let Some(algorithm) = aead_algorithm(keys.cipher) {
        let (key, nonce) = aead(algorithm, keys, iv)?;
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(header), text)
            .map_err(unsupported)?;
        icv.copy_from_slice(tag.as_ref());
        return Ok(());
    }
    let integrity = keys.integrity.ok_or(CryptoError::Unsupported)?;
    encrypt(keys, iv, text)?;
    let tag = hmac(integrity.prf(), keys.authentication.expose(), &[header, iv, text]);
    let tag = tag
        .as_ref()
        .get(..integrity.icv_len())
        .ok_or(CryptoError::Unsupported)?;
    icv.copy_from_slice(tag);
    Ok(())
}

pub(super) fn open(keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError> {
    check(keys, &parts)?;
    let SkParts {
        header,
        iv,
        text,
        icv,
    } = parts;
    if let Some(algorithm) = aead_algorithm(keys.cipher) {
        let (key, nonce) = aead(algorithm, keys, iv)?;
        let len = text.len();
        let mut sealed = text.to_vec();
        sealed.extend_from_slice(icv.get(..TAG_LEN).unwrap_or(&[]));
        let plain = key
            .open_in_place(nonce, Aad::from(header), &mut sealed)
            .map_err(|_| CryptoError::Forged)?;
        text.copy_from_slice(plain.get(..len).ok_or(CryptoError::Forged)?);
        return Ok(());
    }
    let integrity = keys.integrity.ok_or(CryptoError::Unsupported)?;
    let tag = hmac(integrity.prf(), keys.authentication.expose(), &[header, iv, text]);
    let tag = tag
        .as_ref()
        .get(..integrity.icv_len())
        .ok_or(CryptoError::Unsupported)?;
    verify_slices_are_equal(tag, icv).map_err(|_| CryptoError::Forged)?;
    if !text.len().is_multiple_of(keys.cipher.block_len()) {
        return Err(CryptoError::Forged);
    }
    decrypt(keys, iv, text)
}
