//! Certificates for tests: one authority, and leaves that name `host.test`.

use std::sync::Arc;

use rcgen::SanType;
use towpath_base::credentials::CertificateKey;
use towpath_base::profile::Psk;
use towpath_crypto::{CertificateSigner, TrustVerifier};
use towpath_ike::{Auth, Policy};
pub(crate) use towpath_tests::pki::{Ca, Kind, below, root};

/// A certificate for `name` with its key.
pub(crate) fn leaf(ca: &Ca, name: &str, kind: Kind) -> CertificateKey {
    let names = vec![SanType::DnsName(name.try_into().unwrap())];
    let (certificate, key) = towpath_tests::pki::leaf(ca, name, names, kind);
    CertificateKey {
        chain: vec![certificate],
        key: Psk::new(key),
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
