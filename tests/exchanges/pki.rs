//! Certificates for tests: one authority, and leaves that name `host.test`.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, RsaKeySize};
use towpath_base::credentials::CertificateKey;
use towpath_base::profile::Psk;
use towpath_crypto::{CertificateSigner, TrustVerifier};
use towpath_ike::{Auth, Policy};

pub(crate) type Ca = CertifiedIssuer<'static, KeyPair>;

/// Kinds of key a subscriber or peer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::P256, Self::P384, Self::Ed25519, Self::Rsa];

    pub(crate) fn key(self) -> KeyPair {
        let algorithm = match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
            Self::Rsa => {
                return KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
            }
        };
        KeyPair::generate_for(algorithm).unwrap()
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
    ];
    params
}

pub(crate) fn root(kind: Kind) -> Ca {
    CertifiedIssuer::self_signed(ca_params("root"), kind.key()).unwrap()
}

/// An authority below another.
pub(crate) fn below(ca: &Ca, name: &str, kind: Kind) -> Ca {
    CertifiedIssuer::signed_by(ca_params(name), kind.key(), &**ca).unwrap()
}

/// A certificate for `name` with its key.
pub(crate) fn leaf(ca: &Ca, name: &str, kind: Kind) -> CertificateKey {
    let key = kind.key();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Towpath");
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, &**ca).unwrap();
    CertificateKey {
        chain: vec![certificate.der().to_vec()],
        key: Psk::new(key.serialize_der()),
    }
}

pub(crate) fn signer(credential: &CertificateKey) -> Auth {
    Auth {
        signer: Some(Arc::new(CertificateSigner::new(credential).unwrap())),
        ..Auth::default()
    }
}

pub(crate) fn trusting(mut auth: Auth, ca: &Ca) -> Auth {
    let verifier = TrustVerifier::new(&[ca.der().to_vec()], &[]).unwrap();
    auth.verifier = Some(Arc::new(verifier));
    auth
}

/// Proves itself and wants proof by certificates under `ca`; knows no shared key.
pub(crate) fn certified(ca: &Ca, kind: Kind) -> Policy {
    Policy {
        psk: Psk::new(Vec::new()),
        auth: trusting(signer(&leaf(ca, "host.test", kind)), ca),
        ..crate::world::policy()
    }
}
