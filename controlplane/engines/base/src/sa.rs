//! Security associations as the key exchange leaves them and everybody else takes them.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use crate::ids::Spi;
use crate::key::Key;
use crate::selector::TrafficSelector;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used in configuration, command line and output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The value on our own wire formats.
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The value for a code of our own wire formats.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|value| value.name() == text).ok_or(UnknownName)
            }
        }

        // The name where people read it, the code elsewhere.
        #[cfg(feature = "serde")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(self.name())
                } else {
                    serializer.serialize_u8(self.code())
                }
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error;

                const NAMES: &[&str] = &[$($text,)+];
                if deserializer.is_human_readable() {
                    let text = alloc::string::String::deserialize(deserializer)?;
                    text.parse().map_err(|_| D::Error::unknown_variant(&text, NAMES))
                } else {
                    let code = u8::deserialize(deserializer)?;
                    Self::from_code(code).ok_or_else(|| D::Error::custom("unknown code"))
                }
            }
        }
    };
}

/// A name that is not in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownName;

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown name")
    }
}

impl core::error::Error for UnknownName {}

// Behind the macro it uses.
mod suite;
pub use suite::{EspCipher, EspIntegrity, EspSuite};

named! {
    /// IPsec mode (RFC 4301 §3.2).
    Mode {
        /// The payload of the packet is protected, its IP header stays.
        Transport = 1, "transport";
        /// The whole packet is protected inside a new one.
        Tunnel = 2, "tunnel";
        /// Either, packet by packet (RFC 4301 §4.4.2.1): received as it came; sent in transport mode between the SA's own
        /// ends, else in a tunnel. Only by hand: IKE has no way to agree on it.
        Wildcard = 3, "wildcard";
    }
}

impl Mode {
    /// What an SA made by IKE can have.
    pub const NEGOTIATED: &'static [Self] = &[Self::Transport, Self::Tunnel];
}

named! {
    /// What the gateway may do with an SA (spec row T8). It is never given a key it may not use.
    Class {
        /// Decrypt, generate and modify: segment keys on both sides.
        Full = 1, "full";
        /// Decrypt only.
        Inspect = 2, "inspect";
        /// Pass untouched: end-to-end keys, none of them at the gateway.
        None = 3, "none";
    }
}

/// Keys of one direction of an ESP SA.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EspKeys {
    /// Cipher key, followed by the salt for counter-mode ciphers.
    pub cipher: Key,
    /// Integrity key, empty for an AEAD.
    pub integrity: Key,
}

impl EspKeys {
    /// Splits `material` (cipher key, salt, integrity key, in this order: RFC 7296 §2.17); `None` if its
    /// length is not [`EspSuite::key_material_len`].
    pub fn split(suite: EspSuite, material: &[u8]) -> Option<Self> {
        if material.len() != suite.key_material_len() {
            return None;
        }
        let (cipher, integrity) = material.split_at_checked(suite.cipher_key_len() + suite.salt_len())?;
        let mut keys = Self {
            cipher: Key::EMPTY,
            integrity: Key::EMPTY,
        };
        keys.cipher.set(cipher)?;
        keys.integrity.set(integrity)?;
        Some(keys)
    }

    /// The keys apart; `None` if a length does not fit `suite`.
    pub fn parts(&self, suite: EspSuite) -> Option<KeyParts<'_>> {
        if self.integrity.len() != suite.integrity_key_len()
            || self.cipher.len() != suite.cipher_key_len() + suite.salt_len()
        {
            return None;
        }
        let (cipher, salt) = self.cipher.expose().split_at_checked(suite.cipher_key_len())?;
        Some(KeyParts {
            cipher,
            salt,
            integrity: self.integrity.expose(),
        })
    }
}

/// [`EspKeys`] apart, each of the length its suite asks for.
#[derive(Clone, Copy)]
pub struct KeyParts<'a> {
    /// Cipher key.
    pub cipher: &'a [u8],
    /// Salt.
    pub salt: &'a [u8],
    /// Integrity key.
    pub integrity: &'a [u8],
}

impl fmt::Debug for KeyParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// UDP encapsulation of ESP (RFC 3948), ports seen from the local end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct UdpEncap {
    /// Port of the side that holds this description.
    pub local_port: u16,
    /// Port of the other side, as packets from it show it.
    pub remote_port: u16,
}

impl UdpEncap {
    /// The same encapsulation described by the other side.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        Self {
            local_port: self.remote_port,
            remote_port: self.local_port,
        }
    }
}

/// Limits of an SA (RFC 4301 §4.4.2.1). Zero means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Lifetime {
    /// Seconds after which a replacement is wanted.
    pub soft_seconds: u32,
    /// Seconds after which the SA is gone.
    pub hard_seconds: u32,
    /// Bytes after which a replacement is wanted.
    pub soft_bytes: u64,
    /// Bytes after which the SA is gone.
    pub hard_bytes: u64,
}

/// Most traffic selectors per side that a CHILD SA of ours carries.
pub const MAX_SELECTORS: usize = 4;

/// Traffic selectors of one side, at most [`MAX_SELECTORS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selectors {
    items: [Option<TrafficSelector>; MAX_SELECTORS],
}

impl Selectors {
    /// No selector: nothing matches.
    pub const EMPTY: Self = Self {
        items: [None; MAX_SELECTORS],
    };

    /// The first [`MAX_SELECTORS`] of `selectors`.
    #[expect(
        clippy::should_implement_trait,
        reason = "collecting would hide that the rest is dropped"
    )]
    pub fn from_iter(selectors: impl IntoIterator<Item = TrafficSelector>) -> Self {
        let mut items = [None; MAX_SELECTORS];
        for (slot, selector) in items.iter_mut().zip(selectors) {
            *slot = Some(selector);
        }
        Self { items }
    }

    /// Adds a selector; `None` if there is no room.
    #[must_use]
    pub fn push(&mut self, selector: TrafficSelector) -> Option<()> {
        *self.items.iter_mut().find(|slot| slot.is_none())? = Some(selector);
        Some(())
    }

    /// One selector.
    pub fn one(selector: TrafficSelector) -> Self {
        Self::from_iter([selector])
    }

    /// The selectors.
    pub fn iter(&self) -> impl Iterator<Item = &TrafficSelector> {
        self.items.iter().flatten()
    }

    /// Whether a packet end matches any of them.
    pub fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.iter()
            .any(|selector| selector.matches(address, protocol, port))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Selectors {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.items.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Selectors {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self {
            items: serde::Deserialize::deserialize(deserializer)?,
        })
    }
}

/// An established pair of ESP SAs, described from its **local** end (the terminal's, for a proxied exchange).
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ChildSa {
    /// Local outer address: the terminal's.
    pub local: IpAddr,
    /// Remote outer address: the peer's.
    pub remote: IpAddr,
    /// Algorithms.
    pub suite: EspSuite,
    /// Transport or tunnel.
    pub mode: Mode,
    /// 64-bit sequence numbers (RFC 4303 §2.2.1).
    pub esn: bool,
    /// UDP encapsulation, if a NAT was found.
    pub encap: Option<UdpEncap>,
    /// SPI of packets the local end receives.
    pub spi_in: Spi,
    /// SPI of packets the local end sends.
    pub spi_out: Spi,
    /// Keys of packets the local end receives.
    pub keys_in: EspKeys,
    /// Keys of packets the local end sends.
    pub keys_out: EspKeys,
    /// What the local side of the traffic is.
    pub local_ts: Selectors,
    /// What the remote side of the traffic is.
    pub remote_ts: Selectors,
    /// Limits.
    pub lifetime: Lifetime,
}

impl ChildSa {
    /// The same SAs described from their remote end.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            suite: self.suite,
            mode: self.mode,
            esn: self.esn,
            encap: self.encap.map(UdpEncap::mirrored),
            spi_in: self.spi_out,
            spi_out: self.spi_in,
            keys_in: self.keys_out.clone(),
            keys_out: self.keys_in.clone(),
            local_ts: self.remote_ts,
            remote_ts: self.local_ts,
            lifetime: self.lifetime,
        }
    }
}

/// A pair of AH SAs (RFC 4302), described from its **local** end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AhSa {
    /// Local outer address.
    pub local: IpAddr,
    /// Remote outer address.
    pub remote: IpAddr,
    /// Algorithm.
    pub integrity: EspIntegrity,
    /// Transport or tunnel.
    pub mode: Mode,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Over IPv4, too, make AH a multiple of 8 bytes: what a Linux kernel expects of an SA without its flag `align4`.
    pub align8: bool,
    /// Outer half of a bundle with ESP: only ESP is carried, and its SA looks at the selectors.
    pub bundled: bool,
    /// SPI of packets the local end receives.
    pub spi_in: Spi,
    /// SPI of packets the local end sends.
    pub spi_out: Spi,
    /// Key of packets the local end receives, [`EspIntegrity::key_len`] bytes.
    pub key_in: Key,
    /// Key of packets the local end sends.
    pub key_out: Key,
    /// What the local side of the traffic is.
    pub local_ts: Selectors,
    /// What the remote side of the traffic is.
    pub remote_ts: Selectors,
    /// Limits.
    pub lifetime: Lifetime,
}

impl AhSa {
    /// The same SAs described from their remote end.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            integrity: self.integrity,
            mode: self.mode,
            esn: self.esn,
            align8: self.align8,
            bundled: self.bundled,
            spi_in: self.spi_out,
            spi_out: self.spi_in,
            key_in: self.key_out.clone(),
            key_out: self.key_in.clone(),
            local_ts: self.remote_ts,
            remote_ts: self.local_ts,
            lifetime: self.lifetime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keying_material_is_split_in_the_order_of_the_rfc() {
        let material: [u8; 64] = core::array::from_fn(|i| i as u8);
        let keys = EspKeys::split(EspSuite::Aes256CbcSha256, &material).unwrap();
        assert_eq!(keys.cipher.expose(), &material[..32]);
        assert_eq!(keys.integrity.expose(), &material[32..]);
        let keys = EspKeys::split(EspSuite::Aes256Gcm16, &material[..36]).unwrap();
        assert_eq!(keys.cipher.len(), 36);
        assert!(keys.integrity.is_empty());
        assert!(EspKeys::split(EspSuite::Aes256Gcm16, &material[..35]).is_none());
    }

    #[test]
    fn names_and_codes_are_read_back() {
        for suite in EspSuite::ALL {
            assert_eq!(suite.name().parse(), Ok(*suite));
            assert_eq!(EspSuite::from_code(suite.code()), Some(*suite));
        }
        assert_eq!("rot13".parse::<EspSuite>(), Err(UnknownName));
    }
}
