//! ESP algorithms in portable software (RustCrypto), without allocator.

use aes::cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit,
};
use aes::{Aes128, Aes256};
use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, Forged, InvalidKey};
use towpath_base::sa::{EspKeys, EspSuite};

/// Makes [`SoftTransform`]s.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftEsp;

/// One keyed direction.
#[derive(Debug)]
pub struct SoftTransform {
    suite: EspSuite,
    cipher: Cipher,
}

enum Cipher {
    Gcm128(Aes128Gcm, [u8; 4]),
    Gcm256(Aes256Gcm, [u8; 4]),
    Cbc128(Aes128, Hmac<Sha256>),
    Cbc256(Aes256, Hmac<Sha256>),
}

impl core::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl EspProvider for SoftEsp {
    type Transform = SoftTransform;

    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<SoftTransform, InvalidKey> {
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
        let salt = || salt.try_into().map_err(|_| InvalidKey);
        let mac = || {
            <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(keys.integrity.expose()).map_err(|_| InvalidKey)
        };
        let cipher = match suite {
            EspSuite::Aes128Gcm16 => {
                Cipher::Gcm128(Aes128Gcm::new_from_slice(key).map_err(|_| InvalidKey)?, salt()?)
            }
            EspSuite::Aes256Gcm16 => {
                Cipher::Gcm256(Aes256Gcm::new_from_slice(key).map_err(|_| InvalidKey)?, salt()?)
            }
            EspSuite::Aes128CbcSha256 => {
                Cipher::Cbc128(Aes128::new_from_slice(key).map_err(|_| InvalidKey)?, mac()?)
            }
            EspSuite::Aes256CbcSha256 => {
                Cipher::Cbc256(Aes256::new_from_slice(key).map_err(|_| InvalidKey)?, mac()?)
            }
            _ => return Err(InvalidKey),
        };
        Ok(SoftTransform { suite, cipher })
    }
}

impl EspTransform for SoftTransform {
    fn suite(&self) -> EspSuite {
        self.suite
    }

    fn seal(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        match &self.cipher {
            Cipher::Gcm128(aead, salt) => gcm_seal(aead, salt, parts),
            Cipher::Gcm256(aead, salt) => gcm_seal(aead, salt, parts),
            Cipher::Cbc128(cipher, mac) => cbc_seal(cipher, mac, parts),
            Cipher::Cbc256(cipher, mac) => cbc_seal(cipher, mac, parts),
        }
    }

    fn open(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        match &self.cipher {
            Cipher::Gcm128(aead, salt) => gcm_open(aead, salt, parts),
            Cipher::Gcm256(aead, salt) => gcm_open(aead, salt, parts),
            Cipher::Cbc128(cipher, mac) => cbc_open(cipher, mac, parts),
            Cipher::Cbc256(cipher, mac) => cbc_open(cipher, mac, parts),
        }
    }
}

type Nonce = aes_gcm::aead::array::Array<u8, aes_gcm::aead::consts::U12>;
type Tag = aes_gcm::aead::array::Array<u8, aes_gcm::aead::consts::U16>;

/// Salt and explicit IV (RFC 4106 §4).
fn nonce(salt: &[u8; 4], iv: &[u8]) -> Result<Nonce, Forged> {
    let iv: &[u8; 8] = iv.try_into().map_err(|_| Forged)?;
    let mut nonce = Nonce::default();
    nonce
        .iter_mut()
        .zip(salt.iter().chain(iv))
        .for_each(|(to, from)| *to = *from);
    Ok(nonce)
}

/// Additional authenticated data: the header, with ESN its sequence number in full (RFC 4106 §5).
fn aad(header: [u8; 8], esn_high: Option<u32>) -> ([u8; 12], usize) {
    let [a, b, c, d, e, f, g, h] = header;
    match esn_high {
        None => ([a, b, c, d, e, f, g, h, 0, 0, 0, 0], 8),
        Some(high) => {
            let [i, j, k, l] = high.to_be_bytes();
            ([a, b, c, d, i, j, k, l, e, f, g, h], 12)
        }
    }
}

trait Gcm: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16> {}
impl Gcm for Aes128Gcm {}
impl Gcm for Aes256Gcm {}

fn gcm_seal(aead: &impl Gcm, salt: &[u8; 4], parts: EspParts<'_>) -> Result<(), Forged> {
    let (aad, len) = aad(parts.header, parts.esn_high);
    let aad = aad.get(..len).ok_or(Forged)?;
    let tag = aead
        .encrypt_inout_detached(&nonce(salt, parts.iv)?, aad, parts.payload.into())
        .map_err(|_| Forged)?;
    *<&mut [u8; 16]>::try_from(parts.icv).map_err(|_| Forged)? = tag.into();
    Ok(())
}

fn gcm_open(aead: &impl Gcm, salt: &[u8; 4], parts: EspParts<'_>) -> Result<(), Forged> {
    let (aad, len) = aad(parts.header, parts.esn_high);
    let aad = aad.get(..len).ok_or(Forged)?;
    let tag = Tag::try_from(&*parts.icv).map_err(|_| Forged)?;
    aead.decrypt_inout_detached(&nonce(salt, parts.iv)?, aad, parts.payload.into(), &tag)
        .map_err(|_| Forged)
}

/// HMAC-SHA2-256 over header, IV, ciphertext and the unsent half of the sequence number (RFC 4303 §3.3.2.1).
fn authenticate(mac: &Hmac<Sha256>, parts: &EspParts<'_>) -> Hmac<Sha256> {
    let mut mac = mac.clone();
    mac.update(&parts.header);
    mac.update(parts.iv);
    mac.update(parts.payload);
    if let Some(high) = parts.esn_high {
        mac.update(&high.to_be_bytes());
    }
    mac
}

fn cbc_seal<C>(cipher: &C, mac: &Hmac<Sha256>, parts: EspParts<'_>) -> Result<(), Forged>
where
    C: BlockCipherEncrypt,
    for<'a> &'a C: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16>,
{
    let (blocks, rest) = Block::<&C>::slice_as_chunks_mut(parts.payload);
    let iv = parts.iv.try_into().map_err(|_| Forged)?;
    if !rest.is_empty() {
        return Err(Forged);
    }
    cbc::Encryptor::inner_iv_init(cipher, iv).encrypt_blocks(blocks);
    let tag = authenticate(mac, &parts).finalize().into_bytes();
    parts
        .icv
        .iter_mut()
        .zip(tag.iter())
        .for_each(|(to, from)| *to = *from);
    Ok(())
}

fn cbc_open<C>(cipher: &C, mac: &Hmac<Sha256>, parts: EspParts<'_>) -> Result<(), Forged>
where
    C: BlockCipherDecrypt,
    for<'a> &'a C: BlockCipherDecrypt<BlockSize = aes::cipher::consts::U16>,
{
    let icv: &[u8; 16] = (&*parts.icv).try_into().map_err(|_| Forged)?;
    authenticate(mac, &parts)
        .verify_truncated_left(icv)
        .map_err(|_| Forged)?;
    let (blocks, rest) = Block::<&C>::slice_as_chunks_mut(parts.payload);
    let iv = parts.iv.try_into().map_err(|_| Forged)?;
    if !rest.is_empty() {
        return Err(Forged);
    }
    cbc::Decryptor::inner_iv_init(cipher, iv).decrypt_blocks(blocks);
    Ok(())
}
