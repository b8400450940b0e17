//! Subscribers and their service profiles (spec rows K2, K3, K16), as the registry stores them.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use crate::credentials::Credentials;
use crate::ids::SubscriberHandle;
use crate::key::SecretKey;
use crate::sa::{Class, EspSuite, Lifetime, Mode};
use crate::selector::{InvalidPrefix, Prefix, TrafficSelector};

/// How a subscriber is known outside (K2). At least one is set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct Identification {
    /// Telephone number (E.164 digits).
    pub telephone: Option<String>,
    /// Network access identifier (RFC 7542).
    pub nai: Option<String>,
    /// Entry number in an external authentication database.
    pub aaa_entry: Option<String>,
}

/// Whose address an IPsec application condition speaks of. Text: `terminal`, or the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConditionAddress {
    /// Whatever address the terminal registered with.
    Terminal,
    /// This prefix.
    Prefix(Prefix),
}

impl fmt::Display for ConditionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Terminal => f.write_str("terminal"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for ConditionAddress {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        match text {
            "terminal" => Ok(Self::Terminal),
            prefix => prefix.parse().map(Self::Prefix),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for ConditionAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.serialize_str(&self.to_string());
        }
        match self {
            Self::Terminal => None,
            Self::Prefix(prefix) => Some(*prefix),
        }
        .serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for ConditionAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return text.parse().map_err(|error| {
                serde::de::Error::custom(format_args!("`{}`: {error}, or `terminal`", text.escape_debug()))
            });
        }
        Ok(Option::<Prefix>::deserialize(deserializer)?.map_or(Self::Terminal, Self::Prefix))
    }
}

/// One IPsec application condition (K2): an address, optionally paired with a peer, and a UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Condition {
    /// The terminal's side.
    pub address: ConditionAddress,
    /// Only messages to or from these peers; all when absent.
    #[cfg_attr(feature = "serde", serde(default))]
    pub peer: Option<Prefix>,
    /// UDP destination port, 500 unless said otherwise (K15).
    #[cfg_attr(feature = "serde", serde(default = "ike_port"))]
    pub port: u16,
}

#[cfg(feature = "serde")]
const fn ike_port() -> u16 {
    500
}

/// The service profile: which messages are diverted (K2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct ServiceProfile {
    /// List 1: peer → terminal messages to divert to the keyserver.
    pub to_terminal: Vec<Condition>,
    /// List 2: terminal → peer messages to divert to the keyserver.
    pub from_terminal: Vec<Condition>,
    /// List 3: gateway-addressed messages to forward.
    pub to_gateway: Vec<Condition>,
}

impl ServiceProfile {
    /// IKE on ports 500 and 4500 from any peer, requests on port 500: what a terminal needs.
    pub fn standard() -> Self {
        let condition = |port| Condition {
            address: ConditionAddress::Terminal,
            peer: None,
            port,
        };
        Self {
            to_terminal: [500, 4500].map(condition).to_vec(),
            from_terminal: [500, 4500].map(condition).to_vec(),
            to_gateway: Vec::new(),
        }
    }

    /// The same profile with [`ConditionAddress::Terminal`] spelt out as `prefixes`.
    pub fn at(&self, prefixes: &[Prefix]) -> Self {
        let spell = |conditions: &[Condition]| {
            let mut spelt = Vec::new();
            for condition in conditions {
                match condition.address {
                    ConditionAddress::Prefix(_) => spelt.push(*condition),
                    ConditionAddress::Terminal => spelt.extend(prefixes.iter().map(|prefix| Condition {
                        address: ConditionAddress::Prefix(*prefix),
                        ..*condition
                    })),
                }
            }
            spelt
        };
        Self {
            to_terminal: spell(&self.to_terminal),
            from_terminal: spell(&self.from_terminal),
            // This list names addresses of the gateway.
            to_gateway: self.to_gateway.clone(),
        }
    }
}

/// When the gateway holds a profile (K3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Attachment {
    /// While the terminal is registered there.
    #[default]
    Registered,
    /// Always, at its provisioned addresses.
    Fixed,
}

/// An IKE identity (RFC 7296 §3.5).
///
/// Serialised as [`IkeId::to_text`] writes it where people read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IkeId {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// ID_FQDN.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Rfc822(String),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
    /// ID_DER_ASN1_DN: a distinguished name in DER.
    DistinguishedName(Vec<u8>),
}

impl fmt::Display for IkeId {
    /// Control characters are escaped: identities come from the wire and end in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Fqdn(text) | Self::Rfc822(text) => write!(f, "{}", text.escape_debug()),
            Self::KeyId(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::DistinguishedName(der) => crate::dn::write(der, f),
        }
    }
}

impl IkeId {
    /// Reads configuration text: an IP address, a distinguished name (`C=CH, CN=host`), `user@host`, or a domain
    /// name. A type in front forbids guessing: `fqdn:`, `email:`, `keyid:` (hex digits), `dn:` (hex digits of DER).
    pub fn from_text(text: &str) -> Self {
        if let Some(name) = text.strip_prefix("fqdn:") {
            return Self::Fqdn(name.into());
        }
        if let Some(mailbox) = text.strip_prefix("email:") {
            return Self::Rfc822(mailbox.into());
        }
        if let Some(bytes) = text.strip_prefix("keyid:").and_then(from_hex) {
            return Self::KeyId(bytes);
        }
        if let Some(der) = text.strip_prefix("dn:").and_then(from_hex) {
            return Self::DistinguishedName(der);
        }
        if let Some(der) = crate::dn::parse(text) {
            return Self::DistinguishedName(der);
        }
        match text.parse() {
            Ok(address) => Self::Address(address),
            Err(_) if text.contains('@') => Self::Rfc822(text.into()),
            Err(_) => Self::Fqdn(text.into()),
        }
    }

    /// Text that [`IkeId::from_text`] reads back as the same identity.
    pub fn to_text(&self) -> String {
        let (kind, plain) = match self {
            Self::Address(address) => return address.to_string(),
            Self::Fqdn(name) => ("fqdn:", name.clone()),
            Self::Rfc822(mailbox) => ("email:", mailbox.clone()),
            Self::KeyId(_) => ("keyid:", self.to_string()),
            Self::DistinguishedName(der) => {
                // The text forgets how the strings are encoded.
                let text = self.to_string();
                if Self::from_text(&text) == *self {
                    return text;
                }
                let mut hex = String::from("dn:");
                der.iter().for_each(|byte| hex += &alloc::format!("{byte:02x}"));
                return hex;
            }
        };
        if Self::from_text(&plain) == *self {
            plain
        } else {
            kind.to_string() + &plain
        }
    }
}

impl IkeId {
    /// Whether `proven` is the identity meant here: names without regard to case, distinguished names without regard
    /// to the kind of their strings (RFC 4945 §3.1).
    pub fn matches(&self, proven: &Self) -> bool {
        match (self, proven) {
            (Self::Fqdn(a), Self::Fqdn(b)) => a.eq_ignore_ascii_case(b),
            (Self::Rfc822(a), Self::Rfc822(b)) => match (a.rsplit_once('@'), b.rsplit_once('@')) {
                (Some((user_a, host_a)), Some((user_b, host_b))) => {
                    user_a == user_b && host_a.eq_ignore_ascii_case(host_b)
                }
                _ => a == b,
            },
            (Self::DistinguishedName(a), Self::DistinguishedName(b)) => a == b || crate::dn::same(a, b),
            (a, b) => a == b,
        }
    }
}

/// The bytes that an even number of hex digits stand for.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect::<Option<_>>()?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    Some(
        digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect(),
    )
}

#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
enum IkeIdParts {
    Address(IpAddr),
    Fqdn(String),
    Rfc822(String),
    KeyId(Vec<u8>),
    DistinguishedName(Vec<u8>),
}

#[cfg(feature = "serde")]
impl serde::Serialize for IkeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.serialize_str(&self.to_text());
        }
        match self.clone() {
            Self::Address(address) => IkeIdParts::Address(address),
            Self::Fqdn(name) => IkeIdParts::Fqdn(name),
            Self::Rfc822(mailbox) => IkeIdParts::Rfc822(mailbox),
            Self::KeyId(bytes) => IkeIdParts::KeyId(bytes),
            Self::DistinguishedName(der) => IkeIdParts::DistinguishedName(der),
        }
        .serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for IkeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Ok(Self::from_text(&String::deserialize(deserializer)?));
        }
        Ok(match IkeIdParts::deserialize(deserializer)? {
            IkeIdParts::Address(address) => Self::Address(address),
            IkeIdParts::Fqdn(name) => Self::Fqdn(name),
            IkeIdParts::Rfc822(mailbox) => Self::Rfc822(mailbox),
            IkeIdParts::KeyId(bytes) => Self::KeyId(bytes),
            IkeIdParts::DistinguishedName(der) => Self::DistinguishedName(der),
        })
    }
}

/// How the keyserver deals with one peer (or a prefix of peers) in the subscriber's name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PeerPolicy {
    /// The peers.
    pub peer: Prefix,
    /// Identity the keyserver shows as the terminal.
    pub local_id: IkeId,
    /// Identity the peer must prove; any when absent.
    pub remote_id: Option<IkeId>,
    /// IKE proposals in order of preference, strongSwan names (`aes256gcm16-prfsha256-x25519`).
    pub ike_proposals: Vec<String>,
    /// ESP suites in order of preference.
    pub esp_suites: Vec<EspSuite>,
    /// Whether to ask for 64-bit sequence numbers.
    pub esn: bool,
    /// Mode asked for as initiator and accepted as responder.
    pub mode: Mode,
    /// What the gateway may do.
    pub class: Class,
    /// Terminal's side of the traffic; the terminal's registered address when empty.
    pub local_ts: Vec<TrafficSelector>,
    /// Peer's side of the traffic; the peer's address when empty.
    pub remote_ts: Vec<TrafficSelector>,
    /// Limits of CHILD SAs.
    pub lifetime: Lifetime,
    /// Sensitivity level of the packets it is about (T21). At another level than 0 every connection has an SA of its own,
    /// within the selectors above.
    #[cfg_attr(feature = "serde", serde(default))]
    pub level: u8,
}

/// A subscriber without its secrets: what the command line shows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Subscriber {
    /// Number in sealed messages and map entries.
    pub handle: SubscriberHandle,
    /// Unique name within the operator.
    pub name: String,
    /// Operator (MVNO) it belongs to (K16).
    pub operator: String,
    /// How it is known outside.
    pub identification: Identification,
    /// Addresses the terminal may register with, hence the only ones a keyserver may speak for.
    pub addresses: Vec<Prefix>,
    /// When its profile is active.
    pub attachment: Attachment,
    /// Which messages are diverted.
    pub profile: ServiceProfile,
    /// How to negotiate, first match wins.
    pub peers: Vec<PeerPolicy>,
}

impl Subscriber {
    /// The policy for packets of this level to `peer`, if any.
    pub fn policy_for(&self, peer: IpAddr, level: u8) -> Option<&PeerPolicy> {
        self.peers
            .iter()
            .find(|policy| policy.level == level && policy.peer.contains(peer))
    }

    /// Whether the terminal may use `address`.
    pub fn may_use(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|prefix| prefix.contains(address))
    }
}

/// A subscriber's secrets, never shown: the registry hands out only what a role needs.
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SubscriberSecrets {
    /// The symmetric key shared with the terminal, 256 bits.
    pub ksub: SecretKey<32>,
    /// Credentials for IKE, in the order of [`Subscriber::peers`].
    pub credentials: Vec<Credentials>,
}

impl fmt::Debug for SubscriberSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// An IKE pre-shared key of any length (RFC 7296 §2.15); zeroized on drop, never printed.
#[derive(Clone, PartialEq, Eq, zeroize::ZeroizeOnDrop)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct Psk(Vec<u8>);

impl Psk {
    /// Takes over `bytes`.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_back_as_the_same_kind() {
        for id in [
            IkeId::Address(IpAddr::from([10, 0, 0, 1])),
            IkeId::Fqdn("peer.towpath.example".into()),
            IkeId::Fqdn("10.0.0.1".into()),
            IkeId::Fqdn("fqdn:odd".into()),
            IkeId::Rfc822("a@towpath.example".into()),
            IkeId::Rfc822("no-at-sign".into()),
            IkeId::KeyId(alloc::vec![0, 0xff]),
            IkeId::from_text("C=CH, CN=x"),
            IkeId::DistinguishedName(alloc::vec![0x30, 0]),
        ] {
            assert_eq!(IkeId::from_text(&id.to_text()), id);
        }
        assert!(matches!(IkeId::from_text("CN=x"), IkeId::DistinguishedName(_)));
        assert_eq!(
            IkeId::from_text("a@towpath.example").to_text(),
            "a@towpath.example"
        );
    }

    #[test]
    fn a_profile_at_prefixes_names_each_of_them() {
        let prefixes = ["10.0.0.0/24".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let profile = ServiceProfile::standard().at(&prefixes);
        assert_eq!((profile.to_terminal.len(), profile.from_terminal.len()), (4, 4));
        assert!(
            profile
                .to_terminal
                .iter()
                .all(|condition| condition.address != ConditionAddress::Terminal)
        );
    }

    #[test]
    fn a_condition_names_the_terminal_or_a_prefix() {
        assert_eq!("terminal".parse(), Ok(ConditionAddress::Terminal));
        let prefix: ConditionAddress = "10.0.0.0/8".parse().unwrap();
        assert_eq!(prefix.to_string(), "10.0.0.0/8");
        assert!("terminals".parse::<ConditionAddress>().is_err());
    }
}
