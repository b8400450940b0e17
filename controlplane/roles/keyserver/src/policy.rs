//! From a subscriber's record to what the IKE engine negotiates.

use core::fmt;
use std::sync::Arc;

use towpath_base::credentials::Credentials;
use towpath_base::crypto::{PeerVerifier, Signer};
use towpath_base::profile::{PeerPolicy, Psk};
use towpath_base::sa::{Class, EspSuite};
use towpath_crypto::{CertificateSigner, InvalidCredential, TrustVerifier};
use towpath_ike::{Auth, IkeProposal, Policy};

/// A record the engine cannot use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PolicyError {
    /// An IKE proposal does not parse.
    Proposal(String),
    /// No ESP suite, or no IKE proposal.
    Empty,
    /// Certificate, key, authorities or revocation lists cannot be used.
    Credential(InvalidCredential),
    /// Nothing to prove an identity with, on one side or the other.
    NoCredential,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proposal(text) => write!(f, "IKE proposal {text:?} is not known"),
            Self::Empty => f.write_str("policy without IKE proposal or ESP suite"),
            Self::Credential(error) => write!(f, "credentials cannot be used: {error}"),
            Self::NoCredential => f.write_str("policy without credentials for both sides"),
        }
    }
}

/// The class an SA of this suite can have: `inspect` needs a cipher key that is not the integrity key.
pub(crate) const fn possible_class(asked: Class, suite: EspSuite) -> Class {
    match asked {
        Class::Inspect if suite.is_aead() => Class::None,
        class => class,
    }
}

/// Keys and certificates in a form the engine can use.
fn auth(credentials: Credentials) -> Result<Auth, PolicyError> {
    if !credentials.is_complete() {
        return Err(PolicyError::NoCredential);
    }
    let signer = credentials.certificate.as_ref().map(CertificateSigner::new);
    let (authorities, lists) = (&credentials.authorities, &credentials.revocation_lists);
    let verifier = (!authorities.is_empty()).then(|| TrustVerifier::new(authorities, lists));
    let signer = signer.transpose().map_err(PolicyError::Credential)?;
    let verifier = verifier.transpose().map_err(PolicyError::Credential)?;
    Ok(Auth {
        signer: signer.map(|signer| Arc::new(signer) as Arc<dyn Signer>),
        verifier: verifier.map(|verifier| Arc::new(verifier) as Arc<dyn PeerVerifier>),
        ppk: credentials.ppk,
    })
}

/// The engine's policy for one peer.
pub(crate) fn engine_policy(record: &PeerPolicy, credentials: Credentials) -> Result<Policy, PolicyError> {
    let ike_proposals = record
        .ike_proposals
        .iter()
        .map(|text| {
            text.parse::<IkeProposal>()
                .map_err(|_| PolicyError::Proposal(text.clone()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if ike_proposals.is_empty() || record.esp_suites.is_empty() {
        return Err(PolicyError::Empty);
    }
    Ok(Policy {
        local_id: record.local_id.clone(),
        remote_id: record.remote_id.clone(),
        psk: credentials.psk.clone().unwrap_or(Psk::new(Vec::new())),
        ike_proposals,
        esp_suites: record.esp_suites.clone(),
        esn: record.esn,
        mode: record.mode,
        local_ts: record.local_ts.clone(),
        remote_ts: record.remote_ts.clone(),
        lifetime: record.lifetime,
        force_encap: false,
        auth: auth(credentials)?,
    })
}

#[cfg(test)]
mod tests {
    use towpath_base::credentials::CertificateKey;

    use super::*;

    fn certificate() -> CertificateKey {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".into()]).unwrap();
        CertificateKey {
            chain: vec![params.self_signed(&key).unwrap().der().to_vec()],
            key: Psk::new(key.serialize_der()),
        }
    }

    #[test]
    fn credentials_become_what_the_engine_signs_and_verifies_with() {
        let psk = || Some(Psk::new(b"swordfish".to_vec()));
        let ours = certificate();
        let authorities = ours.chain.clone();
        let given = |psk, certificate: Option<&CertificateKey>, authorities: &[Vec<u8>]| Credentials {
            psk,
            certificate: certificate.cloned(),
            authorities: authorities.to_vec(),
            ..Credentials::default()
        };
        for (credentials, signs, verifies) in [
            (given(psk(), None, &[]), false, false),
            (given(None, Some(&ours), &authorities), true, true),
            (given(psk(), Some(&ours), &[]), true, false),
            (given(psk(), None, &authorities), false, true),
        ] {
            let auth = auth(credentials).unwrap();
            assert_eq!(
                (auth.signer.is_some(), auth.verifier.is_some()),
                (signs, verifies)
            );
        }
        for incomplete in [
            given(None, None, &[]),
            given(None, Some(&ours), &[]),
            given(None, None, &authorities),
        ] {
            assert_eq!(auth(incomplete), Err(PolicyError::NoCredential));
        }
        let mut other = certificate();
        other.chain = ours.chain.clone();
        assert_eq!(
            auth(given(psk(), Some(&other), &[])),
            Err(PolicyError::Credential(InvalidCredential::KeyMismatch))
        );
        assert_eq!(
            auth(given(psk(), None, &[vec![0]])),
            Err(PolicyError::Credential(InvalidCredential::Authority(0)))
        );
    }
}
