//! A subscriber as a file: what `import` reads, `export` writes, and `show --json` and `list --json` print.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use towpath_base::SubscriberHandle;
use towpath_base::credentials::Credentials;
use towpath_base::profile::{
    Attachment, Identification, IkeId, PeerPolicy, Psk, ServiceProfile, Subscriber, SubscriberSecrets,
};
use towpath_base::sa::{Class, EspSuite, Lifetime, Mode};
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_telemetry::admin::{Location, Record};
use zeroize::Zeroizing;

use super::credential::CredentialDocument;
use super::secret;

/// The operator of who names none.
pub(crate) const DEFAULT_OPERATOR: &str = "default";

/// A subscriber.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubscriberDocument {
    /// Unique within the operator.
    pub(crate) name: String,
    /// `default` when absent.
    #[serde(default = "default_operator")]
    pub(crate) operator: String,
    /// Number of the subscriber; ignored by `import`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) handle: Option<SubscriberHandle>,
    /// `registered` (default) or `fixed`.
    #[serde(default)]
    pub(crate) attachment: Attachment,
    /// Addresses the terminal may have.
    pub(crate) addresses: Vec<Prefix>,
    /// Subscriber key, 64 hex digits. Never printed, only exported with `--with-secrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ksub: Option<Zeroizing<String>>,
    /// File with the subscriber key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ksub_file: Option<PathBuf>,
    /// How it is known outside; `NAME@OPERATOR` as NAI when absent.
    #[serde(default)]
    pub(crate) identification: Identification,
    /// Which messages are diverted; IKE on ports 500 and 4500 when absent.
    #[serde(default = "ServiceProfile::standard")]
    pub(crate) profile: ServiceProfile,
    /// How to negotiate with whom, first match wins.
    #[serde(default)]
    pub(crate) peers: Vec<PeerDocument>,
    /// Present registration; ignored by `import`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) location: Option<Location>,
}

/// A peer, or a prefix of peers.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerDocument {
    /// The peers.
    pub(crate) peer: Prefix,
    /// Identity shown as the terminal's; the NAI when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) local_id: Option<IkeId>,
    /// Identity the peer must prove; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) remote_id: Option<IkeId>,
    /// IKE proposals; those of `[keyserver]` when absent.
    #[serde(default)]
    pub(crate) ike_proposals: Vec<String>,
    /// ESP suites; those of `[keyserver]` when absent.
    #[serde(default)]
    pub(crate) esp_suites: Vec<EspSuite>,
    /// 64-bit sequence numbers.
    #[serde(default)]
    pub(crate) esn: bool,
    /// `transport` (default) or `tunnel`.
    #[serde(default = "transport")]
    pub(crate) mode: Mode,
    /// `full` (default) or `none`.
    #[serde(default = "full")]
    pub(crate) class: Class,
    /// Sensitivity level of the packets it is about; 0 when absent. At another level every connection has its own SA.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) level: u8,
    /// Terminal's side of the traffic; its address when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) local_ts: Vec<TrafficSelector>,
    /// Peer's side of the traffic; its address when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) remote_ts: Vec<TrafficSelector>,
    /// Pre-shared key as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) psk: Option<Zeroizing<String>>,
    /// Pre-shared key in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) psk_hex: Option<Zeroizing<String>>,
    /// File with the pre-shared key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) psk_file: Option<PathBuf>,
    /// Certificates and post-quantum key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) credential: Option<Box<CredentialDocument>>,
    /// Limits of ESP SAs.
    #[serde(default)]
    pub(crate) lifetime: LifetimeDocument,
}

/// Limits of ESP SAs; 0 for none.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LifetimeDocument {
    /// A replacement is wanted after these seconds.
    pub(crate) soft_seconds: u32,
    /// Gone after these seconds.
    pub(crate) hard_seconds: u32,
    /// A replacement is wanted after these bytes.
    pub(crate) soft_bytes: u64,
    /// Gone after these bytes.
    pub(crate) hard_bytes: u64,
}

impl Default for LifetimeDocument {
    fn default() -> Self {
        Self {
            soft_seconds: 3000,
            hard_seconds: 3600,
            soft_bytes: 0,
            hard_bytes: 0,
        }
    }
}

impl From<Lifetime> for LifetimeDocument {
    fn from(lifetime: Lifetime) -> Self {
        let Lifetime {
            soft_seconds,
            hard_seconds,
            soft_bytes,
            hard_bytes,
        } = lifetime;
        Self {
            soft_seconds,
            hard_seconds,
            soft_bytes,
            hard_bytes,
        }
    }
}

impl From<LifetimeDocument> for Lifetime {
    fn from(document: LifetimeDocument) -> Self {
        let LifetimeDocument {
            soft_seconds,
            hard_seconds,
            soft_bytes,
            hard_bytes,
        } = document;
        Self {
            soft_seconds,
            hard_seconds,
            soft_bytes,
            hard_bytes,
        }
    }
}

fn default_operator() -> String {
    DEFAULT_OPERATOR.into()
}

const fn transport() -> Mode {
    Mode::Transport
}

const fn full() -> Class {
    Class::Full
}

/// What is proposed where a peer names nothing.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    /// IKE proposals.
    pub(crate) ike_proposals: Vec<String>,
    /// ESP suites.
    pub(crate) esp_suites: Vec<EspSuite>,
}

/// What is wrong with a document: key below the subscriber, and the problem.
pub(crate) type Invalid = (String, String);

impl SubscriberDocument {
    /// The record to store.
    pub(crate) fn into_record(mut self, defaults: &Defaults) -> Result<Record, Invalid> {
        let identification = &mut self.identification;
        if *identification == Identification::default() {
            identification.nai = Some(format!("{}@{}", self.name, self.operator));
        }
        let ksub = self.ksub()?;
        let mut credentials = Vec::new();
        let mut peers = Vec::new();
        for (index, peer) in self.peers.into_iter().enumerate() {
            let place = |(key, problem): Invalid| (format!("peers[{index}].{key}"), problem);
            credentials.push(peer.credentials().map_err(place)?);
            let policy = peer.into_policy(&self.identification, defaults);
            peers.push(policy.map_err(place)?);
        }
        Ok(Record {
            subscriber: Subscriber {
                handle: SubscriberHandle(0),
                name: self.name,
                operator: self.operator,
                identification: self.identification,
                addresses: self.addresses,
                attachment: self.attachment,
                profile: self.profile,
                peers,
            },
            secrets: Some(SubscriberSecrets { ksub, credentials }),
        })
    }

    fn ksub(&self) -> Result<towpath_base::SecretKey<32>, Invalid> {
        match (&self.ksub, &self.ksub_file) {
            (Some(text), None) => secret::ksub_hex(text)
                .ok_or_else(|| ("ksub".into(), "expected 64 hex digits (value not shown)".into())),
            (None, Some(path)) => secret::ksub_file(path).map_err(|problem| ("ksub_file".into(), problem)),
            (None, None) => Err(("ksub".into(), "is missing, expected `ksub` or `ksub_file`".into())),
            (Some(_), Some(_)) => Err((
                "ksub_file".into(),
                "expected `ksub` or `ksub_file`, not both".into(),
            )),
        }
    }

    /// The document of a stored subscriber; secrets as far as the record has them.
    pub(crate) fn from_record(record: Record, location: Option<Location>) -> Self {
        let Record { subscriber, secrets } = record;
        let Subscriber {
            handle,
            name,
            operator,
            identification,
            addresses,
            attachment,
            profile,
            peers,
        } = subscriber;
        let credentials = |index: usize| {
            secrets
                .as_ref()
                .and_then(|secrets| secrets.credentials.get(index))
        };
        let peers = peers
            .into_iter()
            .enumerate()
            .map(|(index, policy)| PeerDocument::from_policy(policy, credentials(index)))
            .collect();
        Self {
            name,
            operator,
            handle: Some(handle),
            attachment,
            addresses,
            ksub: secrets.as_ref().map(|secrets| secret::hex(secrets.ksub.expose())),
            ksub_file: None,
            identification,
            profile,
            peers,
            location,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_zero(level: &u8) -> bool {
    *level == 0
}

impl PeerDocument {
    fn credentials(&self) -> Result<Credentials, Invalid> {
        let document = self.credential.as_deref().cloned().unwrap_or_default();
        let place = |(key, problem): Invalid| (format!("credential.{key}"), problem);
        let credentials = document.into_credentials(self.psk()?).map_err(place)?;
        if credentials.is_complete() {
            return Ok(credentials);
        }
        Err((
            "psk".into(),
            "is missing, expected `psk`, `psk_hex` or `psk_file`, or `credential` with a certificate and authorities"
                .into(),
        ))
    }

    fn psk(&self) -> Result<Option<Psk>, Invalid> {
        match (&self.psk, &self.psk_hex, &self.psk_file) {
            (Some(text), None, None) => Ok(Some(Psk::new(text.as_bytes().to_vec()))),
            (None, Some(text), None) => secret::unhex(text)
                .map(|bytes| Some(Psk::new(bytes.to_vec())))
                .ok_or_else(|| ("psk_hex".into(), "expected hex digits (value not shown)".into())),
            (None, None, Some(path)) => {
                let psk = secret::psk_file(path).map_err(|problem| ("psk_file".into(), problem));
                psk.map(Some)
            }
            (None, None, None) => Ok(None),
            _ => Err((
                "psk".into(),
                "expected one of `psk`, `psk_hex` and `psk_file`, not several".into(),
            )),
        }
    }

    fn into_policy(
        self,
        identification: &Identification,
        defaults: &Defaults,
    ) -> Result<PeerPolicy, Invalid> {
        let local_id = match (self.local_id, &identification.nai) {
            (Some(id), _) => id,
            (None, Some(nai)) => IkeId::from_text(nai),
            (None, None) => {
                let problem = "is missing, expected an identity, as there is no NAI to take";
                return Err(("local_id".into(), problem.into()));
            }
        };
        if !Mode::NEGOTIATED.contains(&self.mode) {
            let problem = format!(
                "is {}, expected transport or tunnel: IKE agrees on no other",
                self.mode
            );
            return Err(("mode".into(), problem));
        }
        let or = |given: Vec<String>, default: &Vec<String>| {
            if given.is_empty() { default.clone() } else { given }
        };
        Ok(PeerPolicy {
            peer: self.peer,
            local_id,
            remote_id: self.remote_id,
            ike_proposals: or(self.ike_proposals, &defaults.ike_proposals),
            esp_suites: if self.esp_suites.is_empty() {
                defaults.esp_suites.clone()
            } else {
                self.esp_suites
            },
            esn: self.esn,
            mode: self.mode,
            class: self.class,
            local_ts: self.local_ts,
            remote_ts: self.remote_ts,
            lifetime: self.lifetime.into(),
            level: self.level,
        })
    }

    fn from_policy(policy: PeerPolicy, credentials: Option<&Credentials>) -> Self {
        let psk = credentials.and_then(|credentials| credentials.psk.as_ref());
        let PeerPolicy {
            peer,
            local_id,
            remote_id,
            ike_proposals,
            esp_suites,
            esn,
            mode,
            class,
            local_ts,
            remote_ts,
            lifetime,
            level,
        } = policy;
        // Text where it is text that survives a file, hex otherwise.
        let text = psk.and_then(|psk| std::str::from_utf8(psk.expose()).ok());
        let text = text.filter(|text| !text.chars().any(char::is_control));
        let psk_hex = psk
            .filter(|_| text.is_none())
            .map(|psk| secret::hex(psk.expose()));
        Self {
            peer,
            local_id: Some(local_id),
            remote_id,
            ike_proposals,
            esp_suites,
            esn,
            mode,
            class,
            level,
            local_ts,
            remote_ts,
            psk: text.map(|text| Zeroizing::new(text.to_owned())),
            psk_hex,
            psk_file: None,
            credential: credentials
                .filter(|credentials| {
                    **credentials
                        != Credentials {
                            psk: credentials.psk.clone(),
                            ..Credentials::default()
                        }
                })
                .map(|credentials| Box::new(CredentialDocument::from_credentials(credentials))),
            lifetime: lifetime.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults {
            ike_proposals: vec!["aes256gcm16-prfsha256-x25519".into()],
            esp_suites: vec![EspSuite::Aes256Gcm16],
        }
    }

    fn minimal() -> SubscriberDocument {
        let text = format!(
            "name = \"alice\"\naddresses = [\"10.0.0.1\"]\nksub = \"{}\"\n[[peers]]\npeer = \"192.0.2.1\"\npsk = \"p\"\n",
            "5a".repeat(32)
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn a_short_document_gets_the_defaults() {
        let record = minimal().into_record(&defaults()).unwrap();
        let subscriber = record.subscriber;
        assert_eq!(subscriber.operator, "default");
        assert_eq!(subscriber.identification.nai.as_deref(), Some("alice@default"));
        assert_eq!(subscriber.profile, ServiceProfile::standard());
        let peer = &subscriber.peers[0];
        assert_eq!(peer.local_id, IkeId::Rfc822("alice@default".into()));
        assert_eq!(
            (peer.mode, peer.class, peer.lifetime.hard_seconds),
            (Mode::Transport, Class::Full, 3600)
        );
        assert_eq!(peer.esp_suites, [EspSuite::Aes256Gcm16]);
    }

    #[test]
    fn what_is_exported_is_imported_as_the_same() {
        let mut document = minimal();
        document.peers[0].psk = None;
        document.peers[0].psk_hex = Some(Zeroizing::new("00ff".into()));
        let record = document.into_record(&defaults()).unwrap();
        let exported = SubscriberDocument::from_record(record.clone(), None);
        for text in [
            toml::to_string(&exported).unwrap(),
            serde_json::to_string(&exported).unwrap(),
        ] {
            let read: SubscriberDocument = serde_json::from_str(&text)
                .or_else(|_| toml::from_str(&text))
                .unwrap();
            let again = read.into_record(&defaults()).unwrap();
            assert_eq!(again.subscriber, record.subscriber);
            let (again, secrets) = (again.secrets.unwrap(), record.secrets.as_ref().unwrap());
            assert!(again.ksub == secrets.ksub && again.credentials == secrets.credentials);
        }
    }

    #[test]
    fn a_record_without_secrets_has_none_in_its_document() {
        let mut record = minimal().into_record(&defaults()).unwrap();
        record.secrets = None;
        let text = toml::to_string(&SubscriberDocument::from_record(record, None)).unwrap();
        assert!(!text.contains("ksub") && !text.contains("psk"), "{text}");
    }

    #[test]
    fn missing_and_double_secrets_and_a_mode_ike_has_not_are_named() {
        let refused = |change: fn(&mut SubscriberDocument)| {
            let mut document = minimal();
            change(&mut document);
            document.into_record(&defaults()).unwrap_err().0
        };
        assert_eq!(refused(|d| d.ksub = None), "ksub");
        assert_eq!(refused(|d| d.ksub_file = Some("x".into())), "ksub_file");
        assert_eq!(refused(|d| d.ksub = Some(Zeroizing::new("0".into()))), "ksub");
        assert_eq!(refused(|d| d.peers[0].psk = None), "peers[0].psk");
        assert_eq!(
            refused(|d| d.peers[0].psk_hex = Some(Zeroizing::new("00".into()))),
            "peers[0].psk"
        );
        assert_eq!(refused(|d| d.peers[0].mode = Mode::Wildcard), "peers[0].mode");
    }
}
