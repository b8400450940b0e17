//! From a subscriber's record to what the IKE engine negotiates.

use core::fmt;
use std::sync::Arc;

use towpath_base::credentials::Credentials;
use towpath_base::crypto::{PeerVerifier, Signer};
use towpath_base::profile::{PeerPolicy, Psk};
use towpath_base::sa::{Class, EspSuite, Lifetime};
use towpath_base::selector::TrafficSelector;
use towpath_crypto::{CertificateSigner, InvalidCredential, TrustVerifier};
use towpath_ike::{Auth, IkeProposal, Policy};

use crate::pairs::PairKey;

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
    /// The connection is not within the policy's selectors, or the request does not say which it is.
    Connection,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proposal(text) => write!(f, "IKE proposal {text:?} is not known"),
            Self::Empty => f.write_str("policy without IKE proposal or ESP suite"),
            Self::Credential(error) => write!(f, "credentials cannot be used: {error}"),
            Self::NoCredential => f.write_str("policy without credentials for both sides"),
            Self::Connection => f.write_str("the connection is outside the policy's selectors"),
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

/// Limits of an SA at the engine. A connection's ends at its hard one unless the terminal asks for more.
fn lifetime(record: Lifetime, key: PairKey, limits: Lifetime) -> Lifetime {
    if !key.lane.is_connection() {
        return record;
    }
    let hard = [record.hard_seconds, limits.hard_seconds];
    Lifetime {
        soft_seconds: 0,
        hard_seconds: hard.into_iter().filter(|seconds| *seconds > 0).min().unwrap_or(0),
        ..record
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

/// Both sides of the traffic an SA is for: the record's, of which a connection has its part alone.
fn selectors(
    record: &PeerPolicy,
    key: PairKey,
) -> Result<(Vec<TrafficSelector>, Vec<TrafficSelector>), PolicyError> {
    if !key.lane.is_connection() {
        return Ok((record.local_ts.clone(), record.remote_ts.clone()));
    }
    let part = |side: &[TrafficSelector], end, port| {
        let own = [TrafficSelector::host(end)];
        let side = if side.is_empty() { &own } else { side };
        let part = side.iter().filter_map(|ts| key.lane.narrow(ts, port));
        Some(part.collect::<Vec<_>>()).filter(|part| !part.is_empty())
    };
    let local = part(&record.local_ts, key.local, key.lane.terminal_port);
    let remote = part(&record.remote_ts, key.remote, key.lane.peer_port);
    let known = key.lane.protocol != 0;
    local.zip(remote).filter(|_| known).ok_or(PolicyError::Connection)
}

/// The engine's policy for one peer, or one connection with it.
pub(crate) fn engine_policy(
    record: &PeerPolicy,
    credentials: Credentials,
    key: PairKey,
    limits: Lifetime,
) -> Result<Policy, PolicyError> {
    let (local_ts, remote_ts) = selectors(record, key)?;
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
        local_ts,
        remote_ts,
        lifetime: lifetime(record.lifetime, key, limits),
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
