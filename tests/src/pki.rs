//! Certificates made for a test: authorities, and leaves under them.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    RsaKeySize, SanType,
};

/// An authority with its key.
pub type Ca = CertifiedIssuer<'static, KeyPair>;

/// Kinds of key a subscriber or peer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ECDSA, P-256
    P256,
    /// ECDSA, P-384
    P384,
    /// Ed25519
    Ed25519,
    /// RSA, 2048 bits
    Rsa,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::P256, Self::P384, Self::Ed25519, Self::Rsa];

    /// A fresh key.
    ///
    /// # Panics
    /// There is no randomness.
    pub fn key(self) -> KeyPair {
        let algorithm = match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa => {
                return KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
            }
        };
        KeyPair::generate_for(algorithm).expect("a key")
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
    ];
    params
}

/// An authority that nobody stands above.
///
/// # Panics
/// The library cannot sign.
pub fn root(kind: Kind) -> Ca {
    CertifiedIssuer::self_signed(authority("root"), kind.key()).expect("signed")
}

/// An authority below another.
///
/// # Panics
/// The library cannot sign.
pub fn below(ca: &Ca, name: &str, kind: Kind) -> Ca {
    CertifiedIssuer::signed_by(authority(name), kind.key(), &**ca).expect("signed")
}

/// A certificate for `O=Towpath, CN=` the common name, with these other names, and its key; both in DER, the key as
/// PKCS #8.
///
/// # Panics
/// The library cannot sign.
pub fn leaf(ca: &Ca, common_name: &str, names: Vec<SanType>, kind: Kind) -> (Vec<u8>, Vec<u8>) {
    let key = kind.key();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Towpath");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names = names;
    let certificate = params.signed_by(&key, &**ca).expect("signed");
    (certificate.der().to_vec(), key.serialize_der())
}
