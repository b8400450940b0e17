//! SAs whose keys people bring (scheme 1 of spec row T9), as the command line sends and the store keeps them.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::ids::Spi;
use crate::key::Key;
use crate::sa::{ChildSa, Class, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use crate::selector::TrafficSelector;

/// Smallest SPI that is not reserved (RFC 4303 §2.1).
pub const FIRST_SPI: Spi = Spi(256);

/// Keys of a manual SA: what the gateway gets of them decides what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[expect(clippy::large_enum_variant, reason = "rare, and moved once")]
pub enum ManualKeys {
    /// Class `none`: the gateway has no key.
    None,
    /// Class `full`: each segment has keys of its own.
    Segments {
        /// Peer → gateway.
        peer_in: EspKeys,
        /// Gateway → peer.
        peer_out: EspKeys,
        /// Gateway → terminal.
        segment_in: EspKeys,
        /// Terminal → gateway.
        segment_out: EspKeys,
    },
    /// Class `full` with the end-to-end keys: the gateway intervenes only while no nonce can meet its twin.
    Shared {
        /// Towards the terminal.
        keys_in: EspKeys,
        /// Towards the peer.
        keys_out: EspKeys,
    },
    /// Class `inspect`: cipher keys (with salt) alone.
    Inspect {
        /// Towards the terminal.
        cipher_in: Key,
        /// Towards the peer.
        cipher_out: Key,
    },
}

impl ManualKeys {
    /// The class they allow.
    pub const fn class(&self) -> Class {
        match self {
            Self::None => Class::None,
            Self::Inspect { .. } => Class::Inspect,
            Self::Segments { .. } | Self::Shared { .. } => Class::Full,
        }
    }

    /// Every key some sender uses: each must be another one.
    fn senders(&self) -> Vec<&EspKeys> {
        match self {
            Self::None | Self::Inspect { .. } => Vec::new(),
            Self::Shared { keys_in, keys_out } => [keys_in, keys_out].to_vec(),
            Self::Segments {
                peer_in,
                peer_out,
                segment_in,
                segment_out,
            } => [peer_in, peer_out, segment_in, segment_out].to_vec(),
        }
    }
}

/// A pair of manual SAs, seen from the terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct ManualSa {
    /// Number, given by the gateway and never used twice; ignored on the way in. Policies name it.
    pub id: u64,
    /// Unique name.
    pub name: String,
    /// Operator of the subscriber.
    pub operator: String,
    /// Name of the subscriber whose terminal it is.
    pub subscriber: String,
    /// Terminal's address.
    pub terminal: IpAddr,
    /// Peer's address.
    pub peer: IpAddr,
    /// SPI of packets the terminal receives.
    pub spi_in: Spi,
    /// SPI of packets the terminal sends.
    pub spi_out: Spi,
    /// Algorithms.
    pub suite: EspSuite,
    /// Transport or tunnel.
    pub mode: Mode,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Packets the replay windows cover: 64 to 4096 (RFC 4303 §3.4.3).
    pub replay_window: u16,
    /// UDP encapsulation.
    pub encap: Option<UdpEncap>,
    /// Terminal's side of the traffic; its address when empty.
    pub local_ts: Vec<TrafficSelector>,
    /// Peer's side of the traffic; its address when empty.
    pub remote_ts: Vec<TrafficSelector>,
    /// Limits. A manual SA that reaches the hard one ends; nobody replaces it.
    pub lifetime: Lifetime,
    /// Keys.
    pub keys: ManualKeys,
}

/// Why a manual SA cannot be: field, value, expectation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidManualSa {
    /// The field.
    pub field: &'static str,
    /// What is wrong and what was expected.
    pub reason: String,
}

impl fmt::Display for InvalidManualSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl core::error::Error for InvalidManualSa {}

const fn invalid(field: &'static str, reason: String) -> InvalidManualSa {
    InvalidManualSa { field, reason }
}

impl ManualSa {
    /// Whether it can be served.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), InvalidManualSa> {
        let printable = |text: &str| !text.is_empty() && text.len() <= 64 && !text.contains(char::is_control);
        if !printable(&self.name) {
            return Err(invalid(
                "name",
                "expected 1 to 64 characters, no control characters".into(),
            ));
        }
        for (field, spi) in [("spi_in", self.spi_in), ("spi_out", self.spi_out)] {
            if spi < FIRST_SPI {
                return Err(invalid(
                    field,
                    alloc::format!("is {spi}, expected 00000100 or more"),
                ));
            }
        }
        if self.terminal.is_ipv4() != self.peer.is_ipv4() || self.terminal == self.peer {
            let reason = alloc::format!(
                "is {}, expected another address of the terminal's family",
                self.peer
            );
            return Err(invalid("peer", reason));
        }
        if !(64..=4096).contains(&self.replay_window) {
            let reason = alloc::format!("is {}, expected 64 to 4096", self.replay_window);
            return Err(invalid("replay_window", reason));
        }
        for (field, selectors) in [("local_ts", &self.local_ts), ("remote_ts", &self.remote_ts)] {
            if selectors.len() > crate::sa::MAX_SELECTORS {
                let reason = alloc::format!("has {} selectors, expected at most 4", selectors.len());
                return Err(invalid(field, reason));
            }
        }
        self.check_keys()
    }

    fn check_keys(&self) -> Result<(), InvalidManualSa> {
        let suite = self.suite;
        let ciphers = suite.cipher_key_len() + suite.salt_len();
        if let ManualKeys::Inspect {
            cipher_in,
            cipher_out,
        } = &self.keys
        {
            if suite.is_aead() {
                let reason = alloc::format!(
                    "is inspect, but the one key of {suite} is the integrity key too; expected full, none, or a \
                     suite like aes256-sha256"
                );
                return Err(invalid("class", reason));
            }
            for (field, key) in [("in", cipher_in), ("out", cipher_out)] {
                if key.len() != ciphers {
                    return Err(invalid(
                        field,
                        wrong_length(key.len(), ciphers, suite, "cipher key alone"),
                    ));
                }
            }
        }
        let senders = self.keys.senders();
        for keys in &senders {
            let len = keys.cipher.len() + keys.integrity.len();
            if keys.parts(suite).is_none() {
                return Err(invalid(
                    "keys",
                    wrong_length(
                        len,
                        suite.key_material_len(),
                        suite,
                        "cipher key, salt, integrity key",
                    ),
                ));
            }
        }
        for (index, keys) in senders.iter().enumerate() {
            if senders
                .iter()
                .skip(index + 1)
                .any(|other| other.cipher == keys.cipher)
            {
                let reason = "two senders have the same cipher key, expected one each: nonces would repeat"
                    .to_string();
                return Err(invalid("keys", reason));
            }
        }
        Ok(())
    }

    /// The SA with `keys_in` and `keys_out`.
    pub fn child(&self, keys_in: &EspKeys, keys_out: &EspKeys) -> ChildSa {
        let selectors = |given: &[TrafficSelector], own| {
            if given.is_empty() {
                Selectors::one(TrafficSelector::host(own))
            } else {
                Selectors::from_iter(given.iter().copied())
            }
        };
        ChildSa {
            local: self.terminal,
            remote: self.peer,
            suite: self.suite,
            mode: self.mode,
            esn: self.esn,
            encap: self.encap,
            spi_in: self.spi_in,
            spi_out: self.spi_out,
            keys_in: keys_in.clone(),
            keys_out: keys_out.clone(),
            local_ts: selectors(&self.local_ts, self.terminal),
            remote_ts: selectors(&self.remote_ts, self.peer),
            lifetime: self.lifetime,
        }
    }

    /// Keys the gateway sends with: towards the peer, towards the terminal.
    pub const fn gateway_senders(&self) -> Option<[&EspKeys; 2]> {
        match &self.keys {
            ManualKeys::Segments {
                peer_out, segment_in, ..
            } => Some([peer_out, segment_in]),
            ManualKeys::Shared { keys_in, keys_out } => Some([keys_out, keys_in]),
            ManualKeys::None | ManualKeys::Inspect { .. } => None,
        }
    }

    /// Whether some sender of `other` uses a key of this one.
    pub fn shares_a_key_with(&self, other: &Self) -> bool {
        let theirs = other.keys.senders();
        let mut ours = self.keys.senders().into_iter();
        ours.any(|keys| theirs.iter().any(|other| other.cipher == keys.cipher))
    }
}

fn wrong_length(len: usize, expected: usize, suite: EspSuite, what: &str) -> String {
    alloc::format!("a key has {len} bytes, expected {expected} for {suite} ({what})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testutil::esp_keys as keys;

    fn sa(suite: EspSuite, keys: ManualKeys) -> ManualSa {
        ManualSa {
            id: 0,
            name: "a".into(),
            operator: "default".into(),
            subscriber: "alice".into(),
            terminal: IpAddr::from([10, 0, 0, 1]),
            peer: IpAddr::from([10, 0, 0, 2]),
            spi_in: Spi(0x100),
            spi_out: Spi(0x101),
            suite,
            mode: Mode::Transport,
            esn: false,
            replay_window: 64,
            encap: None,
            local_ts: Vec::new(),
            remote_ts: Vec::new(),
            lifetime: Lifetime::default(),
            keys,
        }
    }

    #[test]
    fn a_key_serves_one_sender() {
        let suite = EspSuite::Aes128Gcm16;
        let shared = |a, b| ManualKeys::Shared {
            keys_in: keys(suite, a),
            keys_out: keys(suite, b),
        };
        assert!(sa(suite, shared(1, 2)).check().is_ok());
        let twice = sa(suite, shared(1, 1)).check().unwrap_err();
        assert!(twice.to_string().contains("two senders"), "{twice}");
        assert!(sa(suite, shared(1, 2)).shares_a_key_with(&sa(suite, shared(3, 1))));
        assert!(!sa(suite, shared(1, 2)).shares_a_key_with(&sa(suite, shared(3, 4))));
    }

    #[test]
    fn each_rule_names_the_field_and_what_was_expected() {
        let suite = EspSuite::Aes128Gcm16;
        let good = sa(suite, ManualKeys::None);
        let inspect = ManualKeys::Inspect {
            cipher_in: Key::from_slice(&[1; 20]).unwrap(),
            cipher_out: Key::from_slice(&[2; 20]).unwrap(),
        };
        for (bad, expected) in [
            (
                ManualSa {
                    name: String::new(),
                    ..good.clone()
                },
                "name: expected 1",
            ),
            (
                ManualSa {
                    spi_in: Spi(255),
                    ..good.clone()
                },
                "spi_in: is 000000ff",
            ),
            (
                ManualSa {
                    peer: "::1".parse().unwrap(),
                    ..good.clone()
                },
                "peer: is ::1",
            ),
            (sa(suite, inspect), "class: is inspect"),
            (
                sa(
                    EspSuite::Aes256Gcm16,
                    ManualKeys::Shared {
                        keys_in: keys(suite, 1),
                        keys_out: keys(suite, 2),
                    },
                ),
                "keys: a key has 20 bytes, expected 36 for aes256gcm16",
            ),
        ] {
            let shown = bad.check().unwrap_err().to_string();
            assert!(shown.starts_with(expected), "{shown}");
        }
    }
}
