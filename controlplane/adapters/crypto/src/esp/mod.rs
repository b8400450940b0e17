//! ESP and AH bulk cryptography with aws-lc-rs.

mod ccm;
mod direct;
mod icv;
#[cfg(debug_assertions)]
pub mod recorder;
#[cfg(test)]
mod wycheproof;

use aws_lc_rs::cipher::{
    AES_128, AES_256, Algorithm, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, Forged, InvalidKey, Whereabouts};
use towpath_base::sa::{EspCipher, EspKeys, EspSuite, KeyParts};

use ccm::Ccm;
use direct::AeadKey;
pub use icv::AwsLcIcv;

/// Makes [`AwsLcTransform`]s and [`AwsLcIcv`]s.
#[derive(Debug, Clone, Copy, Default)]
pub struct AwsLcEsp;

/// One keyed direction. It can seal and open, for the trait has both; an owner uses one.
#[derive(Debug)]
pub struct AwsLcTransform {
    suite: EspSuite,
    #[cfg(debug_assertions)]
    print: [u8; 16],
    cipher: Cipher,
}

/// The common case inline with its key schedule, the others behind one pointer.
#[expect(
    clippy::large_enum_variant,
    reason = "the packet path finds the large one where it looks, without another pointer"
)]
enum Cipher {
    Aead { key: AeadKey, salt: [u8; 4] },
    Ccm(Box<Ccm>),
    Cbc(Box<Cbc>),
    Ctr(Box<Ctr>),
    Null(Box<AwsLcIcv>),
}

struct Cbc {
    encrypt: EncryptingKey,
    decrypt: DecryptingKey,
    icv: AwsLcIcv,
}

struct Ctr {
    /// Encryption is decryption.
    key: EncryptingKey,
    nonce: [u8; 4],
    icv: AwsLcIcv,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl EspProvider for AwsLcEsp {
    type Transform = AwsLcTransform;

    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<AwsLcTransform, InvalidKey> {
        let parts = keys.parts(suite).ok_or(InvalidKey)?;
        let cipher = Cipher::new(suite, parts)?;
        Ok(AwsLcTransform {
            suite,
            #[cfg(debug_assertions)]
            print: recorder::print_of(parts),
            cipher,
        })
    }
}

/// AES by key length; the lengths were checked.
const fn aes(suite: EspSuite) -> &'static Algorithm {
    if suite.cipher_key_len() == 16 {
        &AES_128
    } else {
        &AES_256
    }
}

impl Cipher {
    fn new(suite: EspSuite, parts: KeyParts<'_>) -> Result<Self, InvalidKey> {
        let unbound = || UnboundCipherKey::new(aes(suite), parts.cipher).map_err(|_| InvalidKey);
        let icv = || AwsLcIcv::new(suite.integrity().ok_or(InvalidKey)?, parts.integrity);
        match suite.cipher() {
            EspCipher::AesGcm16 if suite.cipher_key_len() == 16 => {
                Self::aead(direct::Algorithm::Aes128Gcm, parts)
            }
            EspCipher::AesGcm16 => Self::aead(direct::Algorithm::Aes256Gcm, parts),
            EspCipher::ChaCha20Poly1305 => Self::aead(direct::Algorithm::ChaCha20Poly1305, parts),
            EspCipher::AesCcm16 => {
                let salt = parts.salt.try_into().map_err(|_| InvalidKey)?;
                Ok(Self::Ccm(Box::new(Ccm::new(aes(suite), parts.cipher, salt)?)))
            }
            EspCipher::AesCbc => Ok(Self::Cbc(Box::new(Cbc {
                encrypt: EncryptingKey::cbc(unbound()?).map_err(|_| InvalidKey)?,
                decrypt: DecryptingKey::cbc(unbound()?).map_err(|_| InvalidKey)?,
                icv: icv()?,
            }))),
            EspCipher::AesCtr => Ok(Self::Ctr(Box::new(Ctr {
                key: EncryptingKey::ctr(unbound()?).map_err(|_| InvalidKey)?,
                nonce: parts.salt.try_into().map_err(|_| InvalidKey)?,
                icv: icv()?,
            }))),
            EspCipher::Null => Ok(Self::Null(Box::new(icv()?))),
        }
    }

    fn aead(algorithm: direct::Algorithm, parts: KeyParts<'_>) -> Result<Self, InvalidKey> {
        Ok(Self::Aead {
            key: AeadKey::new(algorithm, parts.cipher)?,
            salt: parts.salt.try_into().map_err(|_| InvalidKey)?,
        })
    }
}

impl EspTransform for AwsLcTransform {
    #[inline]
    fn suite(&self) -> EspSuite {
        self.suite
    }

    #[inline]
    fn seal(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        #[cfg(debug_assertions)]
        if self.suite.is_counter_mode() {
            recorder::note(&self.print, &parts);
        }
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                let nonce = parts.nonce(salt)?;
                let full = parts.esn_high.map(|high| parts.header_with(high));
                let icv = parts.icv.try_into().map_err(|_| Forged)?;
                // Without ESN the header as it stands: no bytes are moved for the common case.
                let aad = full.as_ref().map_or(&parts.header[..], |full| full);
                key.seal(&nonce, aad, parts.payload, icv)
            }
            Cipher::Ccm(ccm) => ccm.seal(parts),
            Cipher::Cbc(cbc) => {
                let iv = FixedLength::try_from(parts.iv).map_err(|_| Forged)?;
                cbc.encrypt
                    .less_safe_encrypt(parts.payload, EncryptionContext::Iv128(iv))
                    .map_err(|_| Forged)?;
                cbc.icv.sign_esp(parts)
            }
            Cipher::Ctr(ctr) => {
                ctr.apply(parts.counter_block(&ctr.nonce)?, parts.payload)?;
                ctr.icv.sign_esp(parts)
            }
            Cipher::Null(icv) => icv.sign_esp(parts),
        }
    }

    #[inline]
    fn fetch(bytes: Whereabouts) {
        direct::fetch(bytes);
    }

    #[inline]
    fn open(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        match &self.cipher {
            Cipher::Aead { key, salt } => {
                let nonce = parts.nonce(salt)?;
                let full = parts.esn_high.map(|high| parts.header_with(high));
                let icv = (&*parts.icv).try_into().map_err(|_| Forged)?;
                let aad = full.as_ref().map_or(&parts.header[..], |full| full);
                key.open(&nonce, aad, parts.payload, icv)
            }
            Cipher::Ccm(ccm) => ccm.open(parts),
            Cipher::Cbc(cbc) => {
                cbc.icv.verify_esp(&parts)?;
                let iv = FixedLength::try_from(parts.iv).map_err(|_| Forged)?;
                cbc.decrypt
                    .decrypt(parts.payload, DecryptionContext::Iv128(iv))
                    .map_err(|_| Forged)?;
                Ok(())
            }
            Cipher::Ctr(ctr) => {
                ctr.icv.verify_esp(&parts)?;
                ctr.apply(parts.counter_block(&ctr.nonce)?, parts.payload)
            }
            Cipher::Null(icv) => icv.verify_esp(&parts),
        }
    }
}

impl Ctr {
    fn apply(&self, block: [u8; 16], payload: &mut [u8]) -> Result<(), Forged> {
        let context = EncryptionContext::Iv128(FixedLength::from(&block));
        self.key.less_safe_encrypt(payload, context).map_err(|_| Forged)?;
        Ok(())
    }
}
