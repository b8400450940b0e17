//! A private key with its certificates.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair,
};
use towpath_base::credentials::CertificateKey;
use towpath_base::crypto::{CryptoError, SignatureScheme, Signer};

use super::InvalidCredential;
use super::certificate::Certificate;

enum PrivateKey {
    EcdsaP256(EcdsaKeyPair),
    EcdsaP384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl PrivateKey {
    /// PKCS #8, SEC 1 or PKCS #1, whatever the bytes are.
    fn parse(der: &[u8]) -> Option<Self> {
        let ecdsa = |algorithm| {
            EcdsaKeyPair::from_pkcs8(algorithm, der)
                .or_else(|_| EcdsaKeyPair::from_private_key_der(algorithm, der))
        };
        if let Ok(key) = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING) {
            return Some(Self::EcdsaP256(key));
        }
        if let Ok(key) = ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING) {
            return Some(Self::EcdsaP384(key));
        }
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Some(Self::Ed25519(key));
        }
        let key = RsaKeyPair::from_pkcs8(der)
            .or_else(|_| RsaKeyPair::from_der(der))
            .ok()?;
        (256..=1024)
            .contains(&key.public_modulus_len())
            .then_some(Self::Rsa(key))
    }

    fn public_key(&self) -> &[u8] {
        match self {
            Self::EcdsaP256(key) | Self::EcdsaP384(key) => key.public_key().as_ref(),
            Self::Ed25519(key) => key.public_key().as_ref(),
            Self::Rsa(key) => key.public_key().as_ref(),
        }
    }
}

/// [`Signer`] over a key in memory; aws-lc zeroizes it when it is dropped.
///
/// ECDSA and RSA-PSS signatures are drawn from the library's own source of randomness.
pub struct CertificateSigner {
    key: PrivateKey,
    chain: Vec<Vec<u8>>,
}

impl fmt::Debug for CertificateSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates, [redacted]", self.chain.len())
    }
}

impl CertificateSigner {
    /// Takes a key that belongs to the first certificate.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn new(credential: &CertificateKey) -> Result<Self, InvalidCredential> {
        for (index, der) in credential.chain.iter().enumerate() {
            Certificate::parse(der).ok_or(InvalidCredential::Certificate(index))?;
        }
        let first = credential.chain.first().ok_or(InvalidCredential::NoCertificate)?;
        let certificate = Certificate::parse(first).ok_or(InvalidCredential::Certificate(0))?;
        let key = PrivateKey::parse(credential.key.expose()).ok_or(InvalidCredential::PrivateKey)?;
        if key.public_key() != certificate.public_key {
            return Err(InvalidCredential::KeyMismatch);
        }
        Ok(Self {
            key,
            chain: credential.chain.clone(),
        })
    }
}

impl Signer for CertificateSigner {
    fn schemes(&self) -> &[SignatureScheme] {
        use SignatureScheme as S;
        match self.key {
            PrivateKey::EcdsaP256(_) => &[S::EcdsaSha256],
            PrivateKey::EcdsaP384(_) => &[S::EcdsaSha384],
            PrivateKey::Ed25519(_) => &[S::Ed25519],
            // RFC 8247 §3.2.1 prefers PSS; every peer that knows RFC 7427 must know it.
            PrivateKey::Rsa(_) => &[
                S::RsaPssSha256,
                S::RsaPssSha384,
                S::RsaPssSha512,
                S::RsaPkcs1Sha256,
                S::RsaPkcs1Sha384,
                S::RsaPkcs1Sha512,
            ],
        }
    }

    fn certificates(&self) -> &[Vec<u8>] {
        &self.chain
    }

    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        use SignatureScheme as S;
        if !self.schemes().contains(&scheme) {
            return Err(CryptoError::Unsupported);
        }
        let rng = SystemRandom::new();
        let unsupported = |_| CryptoError::Unsupported;
        let encoding: &'static dyn RsaEncoding = match scheme {
            S::RsaPssSha256 => &RSA_PSS_SHA256,
            S::RsaPssSha384 => &RSA_PSS_SHA384,
            S::RsaPssSha512 => &RSA_PSS_SHA512,
            S::RsaPkcs1Sha384 => &RSA_PKCS1_SHA384,
            S::RsaPkcs1Sha512 => &RSA_PKCS1_SHA512,
            _ => &RSA_PKCS1_SHA256,
        };
        match &self.key {
            PrivateKey::EcdsaP256(key) | PrivateKey::EcdsaP384(key) => {
                let signature = key.sign(&rng, message).map_err(unsupported)?;
                Ok(signature.as_ref().to_vec())
            }
            PrivateKey::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            PrivateKey::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &rng, message, &mut signature)
                    .map_err(unsupported)?;
                Ok(signature)
            }
        }
    }
}
