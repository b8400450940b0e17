//! Values of the configuration that are more than a number or a text: protocols, ports, the subscriber key.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use towpath_base::SecretKey;
use zeroize::Zeroizing;

/// An IP protocol by name or number; 0 is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protocol(pub u8);

impl Protocol {
    const NAMES: &'static [(&'static str, u8)] = &[
        ("any", 0),
        ("icmp", 1),
        ("tcp", 6),
        ("udp", 17),
        ("icmpv6", 58),
        ("sctp", 132),
    ];

    pub(super) fn is_any(&self) -> bool {
        self.0 == 0
    }

    pub(super) fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 132 | 136)
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Self::NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = Protocol;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tcp, udp, icmp, icmpv6, sctp, any or a protocol number up to 255")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Protocol, E> {
                u8::try_from(number)
                    .map(Protocol)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Protocol, E> {
                u8::try_from(number)
                    .map(Protocol)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Protocol, E> {
                Protocol::NAMES
                    .iter()
                    .find(|(name, _)| *name == text)
                    .map(|(_, number)| Protocol(*number))
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// A port or an inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, not below [`Self::first`].
    pub last: u16,
}

impl PortRange {
    pub(super) fn is_any(&self) -> bool {
        *self == Self::default()
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(Self { first, last })
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self {
            first: 0,
            last: u16::MAX,
        }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(&format_args!("{}-{}", self.first, self.last))
        }
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = PortRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port (443) or a range of ports (\"8000-8100\")")
            }

            fn visit_i64<E: de::Error>(self, port: i64) -> Result<PortRange, E> {
                u16::try_from(port)
                    .map(|port| PortRange {
                        first: port,
                        last: port,
                    })
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(port), &self))
            }

            fn visit_u64<E: de::Error>(self, port: u64) -> Result<PortRange, E> {
                u16::try_from(port)
                    .map(|port| PortRange {
                        first: port,
                        last: port,
                    })
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(port), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
                PortRange::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// The subscriber key as 64 hex digits; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Ksub(SecretKey<32>);

impl Ksub {
    /// Takes over `key`.
    pub const fn new(key: SecretKey<32>) -> Self {
        Self(key)
    }

    /// Reads 64 hex digits, surrounding white space ignored; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.trim().as_bytes();
        let mut key = Zeroizing::new([0u8; 32]);
        if digits.len() != 2 * key.len() {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair)
                .ok()
                .filter(|pair| !pair.starts_with('+'))?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(SecretKey::new(*key)))
    }

    /// The key.
    pub const fn key(&self) -> &SecretKey<32> {
        &self.0
    }
}

impl fmt::Debug for Ksub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for Ksub {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let hex: Zeroizing<String> =
            Zeroizing::new(self.0.expose().iter().map(|byte| format!("{byte:02x}")).collect());
        serializer.serialize_str(&hex)
    }
}

impl<'de> Deserialize<'de> for Ksub {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        // The value itself stays out of the message: it is a secret, mistyped.
        Self::from_hex(&text).ok_or_else(|| {
            de::Error::custom(format_args!(
                "expected 64 hex digits, found {} characters",
                text.trim().len()
            ))
        })
    }
}
