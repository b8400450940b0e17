//! Address prefixes and traffic selectors.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

/// An address prefix of either family; a host is a prefix of full length.
///
/// Serialised as text (`10.0.0.0/8`) where people read it, as address and length elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// `len` leading bits of `address`; `None` if longer than the family's addresses. Host bits are cleared.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Self { address, len })
    }

    /// The prefix that holds `address` alone.
    pub const fn host(address: IpAddr) -> Self {
        Self {
            address,
            len: if address.is_ipv4() { 32 } else { 128 },
        }
    }

    /// First address of the prefix.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Number of leading bits.
    pub const fn bits(&self) -> u8 {
        self.len
    }

    /// True when exactly one address matches.
    pub const fn is_host(&self) -> bool {
        self.len == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Whether `address` lies in the prefix. Families never match each other.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.len).is_some_and(|other| other.address == self.address)
    }

    /// Last address of the prefix.
    pub fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => {
                let host = u32::MAX.checked_shr(u32::from(self.len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | host))
            }
            IpAddr::V6(v6) => {
                let host = u128::MAX.checked_shr(u32::from(self.len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() | host))
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.len)
        }
    }
}

/// The text is not an address or `address/length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidPrefix;

impl fmt::Display for InvalidPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an IP address or ADDRESS/LENGTH")
    }
}

impl core::error::Error for InvalidPrefix {}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        match text.split_once('/') {
            None => Ok(Self::host(text.parse().map_err(|_| InvalidPrefix)?)),
            Some((address, len)) => {
                let address = address.parse().map_err(|_| InvalidPrefix)?;
                Self::new(address, len.parse().map_err(|_| InvalidPrefix)?).ok_or(InvalidPrefix)
            }
        }
    }
}

/// What one side of a CHILD SA protects (RFC 7296 §3.13.1): a range of addresses, a protocol, a range of ports.
///
/// Serialised as its text (`10.0.0.0-10.0.0.9 proto 6 ports 80-80`) where people read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrafficSelector {
    /// First address.
    pub first: IpAddr,
    /// Last address, same family, not below `first`.
    pub last: IpAddr,
    /// IP protocol; 0 means any.
    pub protocol: u8,
    /// First port; with `last_port` 0..=65535 means any.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
}

impl TrafficSelector {
    /// All protocols and ports of `prefix`.
    pub fn any_of(prefix: Prefix) -> Self {
        Self {
            first: prefix.address(),
            last: prefix.last(),
            protocol: 0,
            first_port: 0,
            last_port: u16::MAX,
        }
    }

    /// All protocols and ports of one host.
    pub fn host(address: IpAddr) -> Self {
        Self::any_of(Prefix::host(address))
    }

    /// Whether a packet end matches. `port` is `None` where the protocol has none or it cannot be seen
    /// (a later fragment); such a packet matches only a selector of all ports.
    pub fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.first.is_ipv4() == address.is_ipv4()
            && (self.first..=self.last).contains(&address)
            && (self.protocol == 0 || self.protocol == protocol)
            && match port {
                Some(port) => (self.first_port..=self.last_port).contains(&port),
                None => self.first_port == 0 && self.last_port == u16::MAX,
            }
    }

    /// The part of `self` that `other` covers as well, `None` if there is none (RFC 7296 §2.9).
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.first.is_ipv4() != other.first.is_ipv4() {
            return None;
        }
        let protocol = match (self.protocol, other.protocol) {
            (0, protocol) | (protocol, 0) => protocol,
            (a, b) if a == b => a,
            _ => return None,
        };
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        let (first_port, last_port) = (
            self.first_port.max(other.first_port),
            self.last_port.min(other.last_port),
        );
        (first <= last && first_port <= last_port).then_some(Self {
            first,
            last,
            protocol,
            first_port,
            last_port,
        })
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.first != self.last {
            write!(f, "-{}", self.last)?;
        }
        if self.protocol != 0 {
            write!(f, " proto {}", self.protocol)?;
        }
        if (self.first_port, self.last_port) != (0, u16::MAX) {
            write!(f, " ports {}-{}", self.first_port, self.last_port)?;
        }
        Ok(())
    }
}

/// The text is not a traffic selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidSelector;

impl fmt::Display for InvalidSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected `ADDRESS[/LENGTH]` or `FIRST-LAST`, then optionally `proto N` and `ports A-B`")
    }
}

impl core::error::Error for InvalidSelector {}

impl FromStr for TrafficSelector {
    type Err = InvalidSelector;

    /// Reads what `Display` writes, and a prefix in place of the range.
    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let mut words = text.split_whitespace();
        let range = words.next().ok_or(InvalidSelector)?;
        let mut selector = match range.split_once('-') {
            None => Self::any_of(range.parse().map_err(|_| InvalidSelector)?),
            Some((first, last)) => Self {
                first: first.parse().map_err(|_| InvalidSelector)?,
                last: last.parse().map_err(|_| InvalidSelector)?,
                protocol: 0,
                first_port: 0,
                last_port: u16::MAX,
            },
        };
        while let Some(word) = words.next() {
            let value = words.next().ok_or(InvalidSelector)?;
            match word {
                "proto" => selector.protocol = value.parse().map_err(|_| InvalidSelector)?,
                "ports" => {
                    let (first, last) = value.split_once('-').unwrap_or((value, value));
                    selector.first_port = first.parse().map_err(|_| InvalidSelector)?;
                    selector.last_port = last.parse().map_err(|_| InvalidSelector)?;
                }
                _ => return Err(InvalidSelector),
            }
        }
        let in_order = selector.first.is_ipv4() == selector.last.is_ipv4()
            && selector.first <= selector.last
            && selector.first_port <= selector.last_port;
        in_order.then_some(selector).ok_or(InvalidSelector)
    }
}

#[cfg(feature = "serde")]
mod serde_impls {
    //! Text for people, numbers for machines; both checked on the way in.

    use alloc::string::{String, ToString};

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{InvalidPrefix, InvalidSelector, IpAddr, Prefix, TrafficSelector};

    impl Serialize for Prefix {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if serializer.is_human_readable() {
                serializer.serialize_str(&self.to_string())
            } else {
                (self.address, self.len).serialize(serializer)
            }
        }
    }

    impl<'de> Deserialize<'de> for Prefix {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            if deserializer.is_human_readable() {
                let text = String::deserialize(deserializer)?;
                text.parse()
                    .map_err(|error| D::Error::custom(format_args!("`{}`: {error}", text.escape_debug())))
            } else {
                let (address, len) = <(IpAddr, u8)>::deserialize(deserializer)?;
                Self::new(address, len).ok_or_else(|| D::Error::custom(InvalidPrefix))
            }
        }
    }

    type Parts = (IpAddr, IpAddr, u8, u16, u16);

    impl Serialize for TrafficSelector {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if serializer.is_human_readable() {
                return serializer.serialize_str(&self.to_string());
            }
            let parts: Parts = (
                self.first,
                self.last,
                self.protocol,
                self.first_port,
                self.last_port,
            );
            parts.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for TrafficSelector {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            if deserializer.is_human_readable() {
                let text = String::deserialize(deserializer)?;
                return text
                    .parse()
                    .map_err(|error| D::Error::custom(format_args!("`{}`: {error}", text.escape_debug())));
            }
            let (first, last, protocol, first_port, last_port) = Parts::deserialize(deserializer)?;
            if first.is_ipv4() != last.is_ipv4() || first > last || first_port > last_port {
                return Err(D::Error::custom(InvalidSelector));
            }
            Ok(Self {
                first,
                last,
                protocol,
                first_port,
                last_port,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn prefixes_contain_their_own_and_nothing_else() {
        let net: Prefix = "10.1.0.0/16".parse().unwrap();
        assert!(net.contains("10.1.255.255".parse().unwrap()));
        assert!(!net.contains("10.2.0.0".parse().unwrap()));
        assert!(!net.contains("::ffff:10.1.0.1".parse().unwrap()));
        let all: Prefix = "::/0".parse().unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        assert_eq!(all.last().to_string(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(
            "2001:db8::/33".parse::<Prefix>().unwrap().to_string(),
            "2001:db8::/33"
        );
        assert!("10.0.0.0/33".parse::<Prefix>().is_err());
    }

    #[test]
    fn selectors_narrow_to_the_common_part() {
        let a = TrafficSelector {
            protocol: 6,
            ..TrafficSelector::any_of("10.0.0.0/8".parse().unwrap())
        };
        let b = TrafficSelector::host("10.9.9.9".parse().unwrap());
        let both = a.intersect(&b).unwrap();
        assert_eq!(both.to_string(), "10.9.9.9 proto 6");
        assert!(both.matches("10.9.9.9".parse().unwrap(), 6, Some(80)));
        assert!(!both.matches("10.9.9.9".parse().unwrap(), 17, Some(80)));
        assert!(
            a.intersect(&TrafficSelector::host("11.0.0.1".parse().unwrap()))
                .is_none()
        );
    }

    #[test]
    fn selectors_are_read_back_from_their_text() {
        for text in [
            "10.0.0.1",
            "10.0.0.0-10.0.0.9 proto 6 ports 80-443",
            "2001:db8::-2001:db8::ff",
        ] {
            assert_eq!(text.parse::<TrafficSelector>().unwrap().to_string(), text);
        }
        let net: TrafficSelector = "10.0.0.0/30 ports 53".parse().unwrap();
        assert_eq!(net.to_string(), "10.0.0.0-10.0.0.3 ports 53-53");
        for text in [
            "",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-::1",
            "10.0.0.1 ports 9-8",
            "10.0.0.1 proto",
        ] {
            assert_eq!(text.parse::<TrafficSelector>(), Err(InvalidSelector), "{text}");
        }
    }
}
