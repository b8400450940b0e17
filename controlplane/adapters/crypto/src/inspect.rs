//! Decryption without integrity, for class `inspect`, with aws-lc-rs.

use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use towpath_base::crypto::{EspDecryptor, Forged, InspectProvider, InvalidKey};
use towpath_base::key::Key;
use towpath_base::sa::{EspCipher, EspSuite};

use crate::AwsLcEsp;

/// One direction of a suite with a separate integrity key, which is not here.
#[derive(Debug)]
pub struct AwsLcDecryptor {
    suite: EspSuite,
    cipher: Cipher,
}

enum Cipher {
    Cbc(DecryptingKey),
    /// Encryption is decryption.
    Ctr(EncryptingKey, [u8; 4]),
    Null,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl InspectProvider for AwsLcEsp {
    type Decryptor = AwsLcDecryptor;

    fn decryptor(&self, suite: EspSuite, cipher: &Key) -> Result<AwsLcDecryptor, InvalidKey> {
        let (key, salt) = cipher
            .expose()
            .split_at_checked(suite.cipher_key_len())
            .filter(|(_, salt)| salt.len() == suite.salt_len())
            .ok_or(InvalidKey)?;
        let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
        let unbound = || UnboundCipherKey::new(algorithm, key).map_err(|_| InvalidKey);
        let cipher = match suite.cipher() {
            EspCipher::AesCbc => Cipher::Cbc(DecryptingKey::cbc(unbound()?).map_err(|_| InvalidKey)?),
            EspCipher::AesCtr => Cipher::Ctr(
                EncryptingKey::ctr(unbound()?).map_err(|_| InvalidKey)?,
                salt.try_into().map_err(|_| InvalidKey)?,
            ),
            EspCipher::Null => Cipher::Null,
            EspCipher::AesGcm16 | EspCipher::AesCcm16 | EspCipher::ChaCha20Poly1305 => {
                return Err(InvalidKey);
            }
        };
        Ok(AwsLcDecryptor { suite, cipher })
    }
}

impl EspDecryptor for AwsLcDecryptor {
    fn suite(&self) -> EspSuite {
        self.suite
    }

    fn decrypt(&mut self, iv: &[u8], payload: &mut [u8]) -> Result<(), Forged> {
        match &self.cipher {
            Cipher::Cbc(key) => {
                let iv = FixedLength::try_from(iv).map_err(|_| Forged)?;
                key.decrypt(payload, DecryptionContext::Iv128(iv))
                    .map_err(|_| Forged)?;
            }
            Cipher::Ctr(key, nonce) => {
                // RFC 3686 §4: nonce, IV, block counter from one.
                let mut block = [0; 16];
                let (front, rest) = block.split_at_mut(4);
                front.copy_from_slice(nonce);
                let (middle, counter) = rest.split_at_mut(8);
                middle.copy_from_slice(<&[u8; 8]>::try_from(iv).map_err(|_| Forged)?);
                counter.copy_from_slice(&1u32.to_be_bytes());
                key.less_safe_encrypt(payload, EncryptionContext::Iv128(FixedLength::from(block)))
                    .map_err(|_| Forged)?;
            }
            Cipher::Null => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::crypto::{EspParts, EspProvider, EspTransform};
    use towpath_base::sa::EspKeys;

    use super::*;

    #[test]
    fn what_one_sealed_is_seen_with_the_cipher_key_and_an_aead_has_no_such_key() {
        for &suite in EspSuite::ALL {
            let material: Vec<u8> = (0..suite.key_material_len()).map(|i| i as u8).collect();
            let keys = EspKeys::split(suite, &material).unwrap();
            if suite.is_aead() {
                assert!(AwsLcEsp.decryptor(suite, &keys.cipher).is_err(), "{suite}");
                continue;
            }
            let (iv, mut payload) = (vec![9; suite.iv_len()], vec![3; 64]);
            let mut icv = vec![0; suite.icv_len()];
            let parts = EspParts {
                header: [1; 8],
                esn_high: None,
                iv: &iv,
                payload: &mut payload,
                icv: &mut icv,
            };
            AwsLcEsp.transform(suite, &keys).unwrap().seal(parts).unwrap();
            let mut decryptor = AwsLcEsp.decryptor(suite, &keys.cipher).unwrap();
            decryptor.decrypt(&iv, &mut payload).unwrap();
            assert_eq!(payload, vec![3; 64], "{suite}");
            // A key of the wrong length is refused; AES-256 and HMAC-SHA2-256 happen to have one length.
            if keys.integrity.len() != keys.cipher.len() {
                assert!(AwsLcEsp.decryptor(suite, &keys.integrity).is_err(), "{suite}");
            }
        }
    }
}
