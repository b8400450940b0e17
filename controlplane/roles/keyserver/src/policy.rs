//! From a subscriber's record to what the IKE engine negotiates.

use core::fmt;

use towpath_base::profile::{PeerPolicy, Psk};
use towpath_base::sa::{Class, EspSuite};
use towpath_ike::{IkeProposal, Policy};

/// A record the engine cannot use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PolicyError {
    /// An IKE proposal does not parse.
    Proposal(String),
    /// No ESP suite, or no IKE proposal.
    Empty,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proposal(text) => write!(f, "IKE proposal {text:?} is not known"),
            Self::Empty => f.write_str("policy without IKE proposal or ESP suite"),
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

/// The engine's policy for one peer.
pub(crate) fn engine_policy(record: &PeerPolicy, psk: Psk) -> Result<Policy, PolicyError> {
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
        psk,
        ike_proposals,
        esp_suites: record.esp_suites.clone(),
        esn: record.esn,
        mode: record.mode,
        local_ts: record.local_ts.clone(),
        remote_ts: record.remote_ts.clone(),
        lifetime: record.lifetime,
        force_encap: false,
        auth: Default::default(),
    })
}
