//! Security policy entries (RFC 4301 §4.4.1, spec row T6) as people write them and the store keeps them.
//!
//! The table that looks them up is `towpath_ipsec::spd`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use crate::sa::{Class, UnknownName};
use crate::selector::Prefix;

/// A range of addresses of one family, both ends included. Text: `ADDRESS`, `ADDRESS/LENGTH` or `FIRST-LAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// `first` to `last`; `None` if they are of two families or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// First address.
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// Last address.
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether `address` lies in it. Families never match each other.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// The prefix that is exactly this range, if there is one.
    pub fn as_prefix(&self) -> Option<Prefix> {
        let longest = if self.first.is_ipv4() { 32 } else { 128 };
        let differing = match (self.first, self.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => 32 - (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => 128 - (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return None,
        };
        let prefix = Prefix::new(self.first, longest - differing as u8)?;
        (prefix.address() == self.first && prefix.last() == self.last).then_some(prefix)
    }
}

impl From<Prefix> for AddressRange {
    fn from(prefix: Prefix) -> Self {
        Self {
            first: prefix.address(),
            last: prefix.last(),
        }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_prefix() {
            Some(prefix) => prefix.fmt(f),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// A range of ports, both ends included. Text: `any`, `PORT` or `FIRST-LAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port, and packets whose ports cannot be seen (RFC 4301 §4.4.1.1, OPAQUE).
    pub const ANY: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// `first` to `last`; `None` if they are in the wrong order.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Whether a packet end matches; `None` where the port cannot be seen.
    pub fn matches(&self, port: Option<u16>) -> bool {
        match port {
            Some(port) => (self.first..=self.last).contains(&port),
            None => *self == Self::ANY,
        }
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self::ANY
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            (0, u16::MAX) => f.write_str("any"),
            (first, last) if first == last => first.fmt(f),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// The text is not a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidRange(&'static str);

impl fmt::Display for InvalidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl core::error::Error for InvalidRange {}

impl FromStr for AddressRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let invalid = InvalidRange("ADDRESS, ADDRESS/LENGTH or FIRST-LAST of one family in order");
        match text.split_once('-') {
            None => text.parse::<Prefix>().map(Self::from).map_err(|_| invalid),
            Some((first, last)) => {
                let parse = |text: &str| text.trim().parse().map_err(|_| invalid);
                Self::new(parse(first)?, parse(last)?).ok_or(invalid)
            }
        }
    }
}

impl FromStr for PortRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let invalid = InvalidRange("`any`, PORT or FIRST-LAST in order");
        if text == "any" {
            return Ok(Self::ANY);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let parse = |text: &str| text.trim().parse().map_err(|_| invalid);
        Self::new(parse(first)?, parse(last)?).ok_or(invalid)
    }
}

/// Which IPsec protocol an entry asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum IpsecProtocol {
    /// RFC 4303.
    Esp,
    /// RFC 4302.
    Ah,
    /// ESP inside AH.
    EspAh,
}

impl IpsecProtocol {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Esp, Self::Ah, Self::EspAh];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Esp => "esp",
            Self::Ah => "ah",
            Self::EspAh => "esp+ah",
        }
    }
}

impl fmt::Display for IpsecProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IpsecProtocol {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.name() == text)
            .ok_or(UnknownName)
    }
}

/// Which packets an entry is about. What is absent matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields, default)
)]
pub struct PolicySelector {
    /// Source addresses.
    pub source: Option<AddressRange>,
    /// Destination addresses.
    pub destination: Option<AddressRange>,
    /// User the packet belongs to, as the sending system numbers them.
    pub user: Option<u32>,
    /// Data-sensitivity level; an application chooses it by socket mark (T21).
    pub level: Option<u8>,
    /// Transport protocol.
    pub protocol: Option<u8>,
    /// The packet is, or is to be, protected by this IPsec protocol.
    pub ipsec: Option<IpsecProtocol>,
    /// Source ports.
    pub source_ports: PortRange,
    /// Destination ports.
    pub destination_ports: PortRange,
    /// IPv4 TOS byte; a selector with it matches IPv4 alone.
    pub tos: Option<u8>,
    /// IPv6 traffic class; a selector with it matches IPv6 alone.
    pub traffic_class: Option<u8>,
    /// IPv6 flow label, 20 bits; a selector with it matches IPv6 alone.
    pub flow_label: Option<u32>,
}

/// What becomes of a packet an entry matches.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum PolicyAction {
    /// It passes as it is.
    Bypass,
    /// It is dropped and counted.
    Discard,
    /// It is protected.
    Protect {
        /// SAs to use, by number; the first usable one is taken. Empty: whichever SA admits the packet.
        sas: Vec<u64>,
        /// What the gateway may do with it: never more than the SA's keys allow. Absent: what they allow.
        class: Option<Class>,
    },
}

impl PolicyAction {
    /// Its name on the command line.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Discard => "discard",
            Self::Protect { .. } => "protect",
        }
    }
}

/// An entry of the security policy database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Policy {
    /// Its number, never used twice.
    pub id: u32,
    /// Entries are tried in this order, the lowest first; equal ones in order of their numbers.
    pub order: u32,
    /// For people; may be empty.
    pub name: String,
    /// Which packets.
    pub selector: PolicySelector,
    /// What becomes of them.
    pub action: PolicyAction,
}

impl fmt::Display for PolicySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        let mut part = |name: &str, value: Option<String>| {
            parts.extend(value.map(|value| name.to_string() + " " + &value));
        };
        part("from", self.source.map(|range| range.to_string()));
        part("to", self.destination.map(|range| range.to_string()));
        part("protocol", self.protocol.map(|number| number.to_string()));
        let ports = |range: PortRange| (range != PortRange::ANY).then(|| range.to_string());
        part("source port", ports(self.source_ports));
        part("destination port", ports(self.destination_ports));
        part("user", self.user.map(|number| number.to_string()));
        part("level", self.level.map(|number| number.to_string()));
        part("ipsec", self.ipsec.map(|protocol| protocol.to_string()));
        part("tos", self.tos.map(|number| number.to_string()));
        part(
            "traffic class",
            self.traffic_class.map(|number| number.to_string()),
        );
        part("flow label", self.flow_label.map(|number| number.to_string()));
        if parts.is_empty() {
            return f.write_str("everything");
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(feature = "serde")]
macro_rules! as_text {
    ($name:ident { $($field:ident),+ }) => {
        // Text where people read it, both ends elsewhere; checked on the way in.
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(&self.to_string())
                } else {
                    ($(self.$field),+).serialize(serializer)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error;

                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    return text
                        .parse()
                        .map_err(|error| D::Error::custom(format_args!("`{}`: {error}", text.escape_debug())));
                }
                let ($($field),+) = serde::Deserialize::deserialize(deserializer)?;
                Self::new($($field),+).ok_or_else(|| D::Error::custom("range out of order"))
            }
        }
    };
}

#[cfg(feature = "serde")]
as_text!(AddressRange { first, last });
#[cfg(feature = "serde")]
as_text!(PortRange { first, last });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_back_from_their_text_and_know_when_they_are_prefixes() {
        for (text, prefix) in [
            ("10.0.0.1", true),
            ("10.0.0.0/8", true),
            ("10.0.0.1-10.0.0.9", false),
            ("0.0.0.0/0", true),
            ("::/0", true),
            ("2001:db8::/33", true),
            ("2001:db8::1-2001:db8::ff", false),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!(range.to_string(), text);
            assert_eq!(range.as_prefix().is_some(), prefix, "{text}");
        }
        assert_eq!(
            "10.0.0.0-10.0.0.255".parse::<AddressRange>().unwrap().to_string(),
            "10.0.0.0/24"
        );
        for text in ["", "any", "10.0.0.9-10.0.0.1", "10.0.0.1-::1", "10.0.0.1-"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
        for text in ["any", "80", "80-443"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        for text in ["", "443-80", "65536", "-1"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_that_cannot_be_seen_matches_all_ports_only() {
        assert!(PortRange::ANY.matches(None));
        assert!(!PortRange::new(1, u16::MAX).unwrap().matches(None));
        assert!(PortRange::new(80, 80).unwrap().matches(Some(80)));
    }
}
