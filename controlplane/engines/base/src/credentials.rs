//! What a subscriber proves its identity with, and whom it believes (spec row K5): handed from the registry to the
//! keyserver for one exchange, never written down there.

use alloc::vec::Vec;
use core::fmt;

use crate::profile::Psk;

/// Credentials for one peer, or a prefix of peers. At least a pre-shared key, or a certificate and trusted
/// authorities; one side may prove itself by key and the other by certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Credentials {
    /// Pre-shared key, for whichever side has no certificate.
    pub psk: Option<Psk>,
    /// The terminal proves itself by this certificate.
    pub certificate: Option<CertificateKey>,
    /// The peer must prove itself by a certificate under one of these authorities, DER.
    pub authorities: Vec<Vec<u8>>,
    /// Revocation lists of the authorities, DER.
    pub revocation_lists: Vec<Vec<u8>>,
    /// Post-quantum pre-shared key.
    pub ppk: Option<Ppk>,
}

impl Credentials {
    /// A pre-shared key for both sides.
    pub fn psk(psk: Psk) -> Self {
        Self {
            psk: Some(psk),
            ..Self::default()
        }
    }

    /// Whether both sides have something to prove themselves with.
    pub const fn is_complete(&self) -> bool {
        let local = self.psk.is_some() || self.certificate.is_some();
        local && (self.psk.is_some() || !self.authorities.is_empty())
    }
}

/// A certificate with its private key.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CertificateKey {
    /// Certificates, DER: the key's own, then those of authorities between it and what the peer trusts.
    pub chain: Vec<Vec<u8>>,
    /// Private key, PKCS #8 in DER.
    pub key: Psk,
}

impl fmt::Debug for CertificateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates, [redacted]", self.chain.len())
    }
}

/// A post-quantum pre-shared key (RFC 8784).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Ppk {
    /// PPK_ID, the data of type PPK_ID_FIXED.
    pub id: Vec<u8>,
    /// The key, 32 bytes or more.
    pub secret: Psk,
    /// Refuse a peer that does not use it.
    pub required: bool,
}
