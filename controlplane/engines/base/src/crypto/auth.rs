//! What the key exchange asks of signatures and certificates (RFC 7427, RFC 4945).
//!
//! The engine decides what is signed and compares identities; an adapter holds private keys, checks certificate
//! paths and touches the clock.

use alloc::vec::Vec;
use core::fmt;

use super::CryptoError;
use crate::profile::IkeId;

macro_rules! schemes {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, hash $hash:literal, [$($byte:literal),+ $(,)?];)+) => {
        /// A way to sign, each with its AlgorithmIdentifier in DER (RFC 7427 appendix A, RFC 8420 §2).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum SignatureScheme { $($(#[$doc])* $variant,)+ }

        impl SignatureScheme {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name for people.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Number of its hash in SIGNATURE_HASH_ALGORITHMS (RFC 7427 §7, RFC 8420 §2).
            pub const fn hash_number(self) -> u16 {
                match self { $(Self::$variant => $hash,)+ }
            }

            /// Its AlgorithmIdentifier in DER.
            pub const fn algorithm_identifier(self) -> &'static [u8] {
                match self { $(Self::$variant => &[$($byte),+],)+ }
            }
        }
    };
}

schemes! {
    /// ECDSA with SHA-256.
    EcdsaSha256, "ecdsa-sha256", hash 2, [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    /// ECDSA with SHA-384.
    EcdsaSha384, "ecdsa-sha384", hash 3, [0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
    /// Ed25519 (RFC 8420).
    Ed25519, "ed25519", hash 5, [0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
    /// RSASSA-PSS with SHA-256, salt of 32 bytes.
    RsaPssSha256, "rsa-pss-sha256", hash 2, [
        0x30, 0x41, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a, 0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 6, 9,
        0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 0xa1, 0x1c, 0x30, 0x1a, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d,
        1, 1, 8, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 0xa2, 3, 2, 1, 0x20,
    ];
    /// RSASSA-PSS with SHA-384, salt of 48 bytes.
    RsaPssSha384, "rsa-pss-sha384", hash 3, [
        0x30, 0x41, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a, 0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 6, 9,
        0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 0xa1, 0x1c, 0x30, 0x1a, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d,
        1, 1, 8, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2, 5, 0, 0xa2, 3, 2, 1, 0x30,
    ];
    /// RSASSA-PSS with SHA-512, salt of 64 bytes.
    RsaPssSha512, "rsa-pss-sha512", hash 4, [
        0x30, 0x41, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a, 0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 6, 9,
        0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 0xa1, 0x1c, 0x30, 0x1a, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d,
        1, 1, 8, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3, 5, 0, 0xa2, 3, 2, 1, 0x40,
    ];
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaPkcs1Sha256, "rsa-sha256", hash 2, [
        0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b, 5, 0,
    ];
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RsaPkcs1Sha384, "rsa-sha384", hash 3, [
        0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0c, 5, 0,
    ];
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RsaPkcs1Sha512, "rsa-sha512", hash 4, [
        0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0d, 5, 0,
    ];
}

impl SignatureScheme {
    /// Numbers of the hashes of all schemes, as SIGNATURE_HASH_ALGORITHMS announces them. SHA-1 is not among them.
    pub const HASHES: [u16; 4] = [2, 3, 4, 5];
}

impl fmt::Display for SignatureScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A subscriber's private key with its certificates.
pub trait Signer: fmt::Debug + Send + Sync {
    /// Schemes the key can do, most preferred first; not empty.
    fn schemes(&self) -> &[SignatureScheme];

    /// Certificates to send, DER, the key's own first.
    fn certificates(&self) -> &[Vec<u8>];

    /// Signs `message`. ECDSA signatures are Ecdsa-Sig-Value in DER.
    ///
    /// # Errors
    /// The key cannot do the scheme.
    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, CryptoError>;
}

/// What a peer shows to prove its identity.
#[derive(Debug, Clone, Copy)]
pub struct PeerProof<'a> {
    /// Certificates it sent, DER; the first is its own.
    pub certificates: &'a [&'a [u8]],
    /// Identity it claims.
    pub id: &'a IkeId,
    /// How it signed.
    pub scheme: SignatureScheme,
    /// What it signed.
    pub message: &'a [u8],
    /// Its signature; ECDSA as Ecdsa-Sig-Value in DER.
    pub signature: &'a [u8],
}

/// Why a peer's proof is not good enough. The peer learns none of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Untrusted {
    /// It sent no certificate.
    NoCertificate,
    /// A certificate is malformed, or its extensions forbid this use.
    BadCertificate,
    /// No path leads to a trust anchor.
    UnknownIssuer,
    /// A certificate on every path is expired or not valid yet.
    NotValidNow,
    /// A certificate is revoked.
    Revoked,
    /// A revocation list is expired, or not signed by its issuer.
    BadRevocationList,
    /// A name lies outside what an authority may certify.
    NameConstraint,
    /// The key is too short, or its exponent too small.
    WeakKey,
    /// The certificate does not name the identity.
    WrongIdentity,
    /// The signature is not one of this key over these bytes.
    BadSignature,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "no certificate",
            Self::BadCertificate => "certificate malformed or not for this use",
            Self::UnknownIssuer => "no path to a trusted authority",
            Self::NotValidNow => "certificate expired or not valid yet",
            Self::Revoked => "certificate revoked",
            Self::BadRevocationList => "revocation list expired or not authentic",
            Self::NameConstraint => "name outside what its authority may certify",
            Self::WeakKey => "key too weak",
            Self::WrongIdentity => "certificate does not name the identity",
            Self::BadSignature => "signature not valid",
        })
    }
}

/// Whom a subscriber trusts, and the code that checks it.
pub trait PeerVerifier: fmt::Debug + Send + Sync {
    /// SHA-1 hashes of the public keys (SubjectPublicKeyInfo) of the trust anchors, for CERTREQ (RFC 7296 §3.7).
    fn authorities(&self) -> &[[u8; 20]];

    /// Checks path, validity, revocation, constraints, identity and signature.
    ///
    /// # Errors
    /// The first thing found wrong.
    fn verify(&self, proof: &PeerProof<'_>) -> Result<(), Untrusted>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithm_identifiers_are_whole_and_distinct() {
        for scheme in SignatureScheme::ALL {
            let mut bytes = scheme.algorithm_identifier();
            assert!(
                crate::dn::take(&mut bytes).is_some() && bytes.is_empty(),
                "{scheme}"
            );
            assert!(SignatureScheme::HASHES.contains(&scheme.hash_number()));
            let same = SignatureScheme::ALL
                .iter()
                .filter(|other| other.algorithm_identifier() == scheme.algorithm_identifier());
            assert_eq!(same.count(), 1);
        }
    }
}
