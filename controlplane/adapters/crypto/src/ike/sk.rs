//! Protection of the Encrypted payload.

use aws_lc_rs::aead::{self, AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use towpath_base::crypto::{CryptoError, Integrity, SkCipher, SkKeys, SkParts};

use super::hmac;

const GCM_TAG_LEN: usize = 16;

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

/// The key, and the nonce `salt | IV` (RFC 5282 §4).
fn gcm(
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

fn cbc_key(keys: &SkKeys) -> Result<UnboundCipherKey, CryptoError> {
    let algorithm = if keys.cipher == SkCipher::Aes128Cbc {
        &AES_128
    } else {
        &AES_256
    };
    UnboundCipherKey::new(algorithm, keys.encryption.expose()).map_err(unsupported)
}

const fn gcm_algorithm(cipher: SkCipher) -> Option<&'static aead::Algorithm> {
    match cipher {
        SkCipher::Aes128Gcm16 => Some(&AES_128_GCM),
        SkCipher::Aes256Gcm16 => Some(&AES_256_GCM),
        SkCipher::Aes128Cbc | SkCipher::Aes256Cbc => None,
    }
}

pub(super) fn seal(keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError> {
    check(keys, &parts)?;
    let SkParts {
        header,
        iv,
        text,
        icv,
    } = parts;
    if let Some(algorithm) = gcm_algorithm(keys.cipher) {
        let (key, nonce) = gcm(algorithm, keys, iv)?;
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(header), text)
            .map_err(unsupported)?;
        icv.copy_from_slice(tag.as_ref());
        return Ok(());
    }
    let integrity = keys.integrity.ok_or(CryptoError::Unsupported)?;
    EncryptingKey::cbc(cbc_key(keys)?)
        .and_then(|key| key.less_safe_encrypt(text, EncryptionContext::Iv128(iv.try_into()?)))
        .map_err(unsupported)?;
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
    if let Some(algorithm) = gcm_algorithm(keys.cipher) {
        let (key, nonce) = gcm(algorithm, keys, iv)?;
        let len = text.len();
        let mut sealed = text.to_vec();
        sealed.extend_from_slice(icv.get(..GCM_TAG_LEN).unwrap_or(&[]));
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
    DecryptingKey::cbc(cbc_key(keys)?)
        .and_then(|key| {
            key.decrypt(text, DecryptionContext::Iv128(iv.try_into()?))?;
            Ok(())
        })
        .map_err(unsupported)
}
