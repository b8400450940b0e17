//! ESP and AH algorithms in portable software (RustCrypto), without allocator.
//!
//! The feature `soft` brings [`EspSuite::SMALL`], what a microcontroller can afford; `soft-all` the rest.

mod aead;
mod block;
mod icv;
#[cfg(all(test, feature = "soft-all"))]
mod wycheproof;

use aes::cipher::KeyInit;
use aes::{Aes128, Aes128Enc, Aes256, Aes256Enc};
use aes_gcm::AesGcm;
use aes_gcm::aead::consts::U12;
#[cfg(feature = "soft-all")]
use ccm::consts::{U11, U16};
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, Forged, InvalidKey};
use towpath_base::sa::{EspKeys, EspSuite, KeyParts};

pub use icv::SoftIcv;

/// Counter mode only ever encrypts: half the key schedule does.
type Aes128Gcm = AesGcm<Aes128Enc, U12>;
type Aes256Gcm = AesGcm<Aes256Enc, U12>;

/// Makes [`SoftTransform`]s and [`SoftIcv`]s.
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
    Cbc128(Aes128, SoftIcv),
    Cbc256(Aes256, SoftIcv),
    #[cfg(feature = "soft-all")]
    Ccm128(ccm::Ccm<Aes128, U16, U11>, [u8; 3]),
    #[cfg(feature = "soft-all")]
    Ccm256(ccm::Ccm<Aes256, U16, U11>, [u8; 3]),
    #[cfg(feature = "soft-all")]
    ChaCha(chacha20poly1305::ChaCha20Poly1305, [u8; 4]),
    #[cfg(feature = "soft-all")]
    Ctr128(Aes128, [u8; 4], SoftIcv),
    #[cfg(feature = "soft-all")]
    Ctr256(Aes256, [u8; 4], SoftIcv),
    #[cfg(feature = "soft-all")]
    Null(SoftIcv),
}

impl core::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl SoftEsp {
    /// The suites built in.
    pub const SUITES: &'static [EspSuite] = if cfg!(feature = "soft-all") {
        EspSuite::ALL
    } else {
        EspSuite::SMALL
    };
}

impl EspProvider for SoftEsp {
    type Transform = SoftTransform;

    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<SoftTransform, InvalidKey> {
        let parts = keys.parts(suite).ok_or(InvalidKey)?;
        let cipher = Cipher::new(suite, parts)?;
        Ok(SoftTransform { suite, cipher })
    }
}

fn keyed<C: KeyInit>(key: &[u8]) -> Result<C, InvalidKey> {
    C::new_from_slice(key).map_err(|_| InvalidKey)
}

fn salted<const N: usize>(salt: &[u8]) -> Result<[u8; N], InvalidKey> {
    salt.try_into().map_err(|_| InvalidKey)
}

impl Cipher {
    fn new(suite: EspSuite, parts: KeyParts<'_>) -> Result<Self, InvalidKey> {
        use EspSuite as S;
        let KeyParts {
            cipher: key,
            salt,
            integrity,
        } = parts;
        let icv = || SoftIcv::new(suite.integrity().ok_or(InvalidKey)?, integrity);
        Ok(match suite {
            S::Aes128Gcm16 => Self::Gcm128(keyed(key)?, salted(salt)?),
            S::Aes256Gcm16 => Self::Gcm256(keyed(key)?, salted(salt)?),
            S::Aes128CbcSha256 => Self::Cbc128(keyed(key)?, icv()?),
            S::Aes256CbcSha256 => Self::Cbc256(keyed(key)?, icv()?),
            #[cfg(feature = "soft-all")]
            S::Aes128CbcSha384 | S::Aes128CbcSha512 => Self::Cbc128(keyed(key)?, icv()?),
            #[cfg(feature = "soft-all")]
            S::Aes256CbcSha384 | S::Aes256CbcSha512 => Self::Cbc256(keyed(key)?, icv()?),
            #[cfg(feature = "soft-all")]
            S::Aes128Ccm16 => Self::Ccm128(keyed(key)?, salted(salt)?),
            #[cfg(feature = "soft-all")]
            S::Aes256Ccm16 => Self::Ccm256(keyed(key)?, salted(salt)?),
            #[cfg(feature = "soft-all")]
            S::ChaCha20Poly1305 => Self::ChaCha(keyed(key)?, salted(salt)?),
            #[cfg(feature = "soft-all")]
            S::Aes128CtrSha256 | S::Aes128CtrSha384 | S::Aes128CtrSha512 => {
                Self::Ctr128(keyed(key)?, salted(salt)?, icv()?)
            }
            #[cfg(feature = "soft-all")]
            S::Aes256CtrSha256 | S::Aes256CtrSha384 | S::Aes256CtrSha512 => {
                Self::Ctr256(keyed(key)?, salted(salt)?, icv()?)
            }
            #[cfg(feature = "soft-all")]
            S::NullSha256 | S::NullSha384 | S::NullSha512 => Self::Null(icv()?),
            #[cfg(not(feature = "soft-all"))]
            _ => return Err(InvalidKey),
        })
    }
}

impl EspTransform for SoftTransform {
    fn suite(&self) -> EspSuite {
        self.suite
    }

    fn seal(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        match &self.cipher {
            Cipher::Gcm128(cipher, salt) => aead::seal(cipher, salt, parts),
            Cipher::Gcm256(cipher, salt) => aead::seal(cipher, salt, parts),
            Cipher::Cbc128(cipher, icv) => block::cbc_seal(cipher, icv, parts),
            Cipher::Cbc256(cipher, icv) => block::cbc_seal(cipher, icv, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ccm128(cipher, salt) => aead::seal(cipher, salt, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ccm256(cipher, salt) => aead::seal(cipher, salt, parts),
            #[cfg(feature = "soft-all")]
            Cipher::ChaCha(cipher, salt) => aead::seal(cipher, salt, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ctr128(cipher, nonce, icv) => block::ctr_seal(cipher, nonce, icv, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ctr256(cipher, nonce, icv) => block::ctr_seal(cipher, nonce, icv, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Null(icv) => icv.sign_esp(parts),
        }
    }

    fn open(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        match &self.cipher {
            Cipher::Gcm128(cipher, salt) => aead::open(cipher, salt, parts),
            Cipher::Gcm256(cipher, salt) => aead::open(cipher, salt, parts),
            Cipher::Cbc128(cipher, icv) => block::cbc_open(cipher, icv, parts),
            Cipher::Cbc256(cipher, icv) => block::cbc_open(cipher, icv, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ccm128(cipher, salt) => aead::open(cipher, salt, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ccm256(cipher, salt) => aead::open(cipher, salt, parts),
            #[cfg(feature = "soft-all")]
            Cipher::ChaCha(cipher, salt) => aead::open(cipher, salt, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ctr128(cipher, nonce, icv) => block::ctr_open(cipher, nonce, icv, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Ctr256(cipher, nonce, icv) => block::ctr_open(cipher, nonce, icv, parts),
            #[cfg(feature = "soft-all")]
            Cipher::Null(icv) => icv.verify_esp(&parts),
        }
    }
}
