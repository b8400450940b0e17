//! Certificates of the key exchange (RFC 4945): [`CertificateSigner`] proves a subscriber's identity,
//! [`TrustVerifier`] checks a peer's.
//!
//! Paths, validity, revocation and name constraints are webpki's. Of name constraints it evaluates those on DNS names
//! and addresses; a constraint on any other kind of name refuses every certificate that has such a name. Nothing is
//! ever fetched: certificates come from the peer or the policy, revocation lists from the policy.

mod certificate;
pub mod pem;
mod signer;
#[cfg(test)]
mod vectors;
mod verifier;

use std::fmt;

pub use signer::CertificateSigner;
pub use verifier::TrustVerifier;

/// Credentials that cannot be used, found before any exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidCredential {
    /// No certificate to go with the key.
    NoCertificate,
    /// This certificate, from 0, does not parse.
    Certificate(usize),
    /// The private key is none of ECDSA P-256 or P-384, Ed25519, RSA of 2048 to 8192 bits.
    PrivateKey,
    /// The private key is not that of the first certificate.
    KeyMismatch,
    /// This trusted authority, from 0, does not parse.
    Authority(usize),
    /// This revocation list, from 0, does not parse.
    RevocationList(usize),
}

impl fmt::Display for InvalidCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => f.write_str("a private key without a certificate"),
            Self::Certificate(index) => write!(f, "certificate {index} is not an X.509 certificate in DER"),
            Self::PrivateKey => f.write_str(
                "the private key is none of ECDSA P-256 or P-384, Ed25519, RSA of 2048 to 8192 bits",
            ),
            Self::KeyMismatch => f.write_str("the private key is not that of the first certificate"),
            Self::Authority(index) => write!(f, "authority {index} is not an X.509 certificate in DER"),
            Self::RevocationList(index) => {
                write!(
                    f,
                    "revocation list {index} is not an X.509 revocation list in DER"
                )
            }
        }
    }
}

impl std::error::Error for InvalidCredential {}
