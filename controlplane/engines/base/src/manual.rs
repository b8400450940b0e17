//! SAs whose keys people bring (scheme 1 of spec row T9), as the command line sends and the store keeps them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::ids::Spi;
use crate::key::Key;
use crate::sa::{AhSa, ChildSa, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use crate::selector::TrafficSelector;

mod keys;

pub use keys::{AhForm, AhKeys, ManualKeys, Protection, Segments};

/// Smallest SPI that is not reserved (RFC 4303 §2.1).
pub const FIRST_SPI: Spi = Spi(256);

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
    /// Transport, tunnel or either.
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
    /// ESP, AH or both, and the keys.
    pub protection: Protection,
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
        if self.encap.is_some() && self.protection.ah().is_some() {
            let reason =
                "is given with AH, expected ESP alone: AH covers the addresses a NAT changes (RFC 3948)";
            return Err(invalid("encap", reason.into()));
        }
        self.check_keys()
    }

    fn check_keys(&self) -> Result<(), InvalidManualSa> {
        if let Protection::Esp { suite, keys } = &self.protection {
            check_inspect(*suite, keys)?;
        }
        if let Protection::EspInAh { spi_in, spi_out, .. } = &self.protection
            && (*spi_in).min(*spi_out) < FIRST_SPI
        {
            let reason = alloc::format!("is {}, expected 00000100 or more", (*spi_in).min(*spi_out));
            return Err(invalid("esp_spi", reason));
        }
        let ciphers = self.protection.esp_senders();
        if let Some(suite) = self.protection.suite() {
            for keys in &ciphers {
                let len = keys.cipher.len() + keys.integrity.len();
                if keys.parts(suite).is_none() {
                    let expected = suite.key_material_len();
                    let what = "cipher key, salt, integrity key";
                    return Err(invalid("keys", wrong_length(len, expected, suite, what)));
                }
            }
        }
        let same = |a: &EspKeys, b: &EspKeys| {
            if a.cipher.is_empty() {
                a.integrity == b.integrity
            } else {
                a.cipher == b.cipher
            }
        };
        if has_twins(&ciphers, |a, b| same(a, b)) {
            let reason = "two senders have the same cipher key, expected one each: nonces would repeat";
            return Err(invalid("keys", reason.into()));
        }
        let signers = self.protection.ah_senders();
        if let Some(form) = self.protection.ah() {
            let expected = form.integrity.key_len();
            if let Some(key) = signers.iter().find(|key| key.len() != expected) {
                let reason = alloc::format!(
                    "an AH key has {} bytes, expected {expected} for {}",
                    key.len(),
                    form.integrity
                );
                return Err(invalid("keys", reason));
            }
        }
        if has_twins(&signers, |a, b| a == b) {
            let reason = "two senders have the same AH key, expected one each: each could pass for the other";
            return Err(invalid("keys", reason.into()));
        }
        Ok(())
    }

    /// Traffic of both sides.
    fn selectors(&self) -> [Selectors; 2] {
        let selectors = |given: &[TrafficSelector], own| {
            if given.is_empty() {
                Selectors::one(TrafficSelector::host(own))
            } else {
                Selectors::from_iter(given.iter().copied())
            }
        };
        [
            selectors(&self.local_ts, self.terminal),
            selectors(&self.remote_ts, self.peer),
        ]
    }

    /// The ESP SA with `keys_in` and `keys_out`.
    pub fn child(&self, suite: EspSuite, keys_in: &EspKeys, keys_out: &EspKeys) -> ChildSa {
        let [local_ts, remote_ts] = self.selectors();
        let (spi_in, spi_out) = match &self.protection {
            Protection::EspInAh { spi_in, spi_out, .. } => (*spi_in, *spi_out),
            Protection::Esp { .. } | Protection::Ah { .. } => (self.spi_in, self.spi_out),
        };
        ChildSa {
            local: self.terminal,
            remote: self.peer,
            suite,
            mode: self.mode,
            esn: self.esn,
            encap: self.encap,
            spi_in,
            spi_out,
            keys_in: keys_in.clone(),
            keys_out: keys_out.clone(),
            local_ts,
            remote_ts,
            lifetime: self.lifetime,
        }
    }

    /// The AH SA with `key_in` and `key_out`. Around ESP it is always in transport mode, in front of ESP.
    pub fn ah(&self, form: AhForm, key_in: &Key, key_out: &Key) -> AhSa {
        let [local_ts, remote_ts] = self.selectors();
        let bundled = matches!(self.protection, Protection::EspInAh { .. });
        AhSa {
            local: self.terminal,
            remote: self.peer,
            integrity: form.integrity,
            mode: if bundled { Mode::Transport } else { self.mode },
            esn: self.esn,
            align8: form.align8,
            bundled,
            spi_in: self.spi_in,
            spi_out: self.spi_out,
            key_in: key_in.clone(),
            key_out: key_out.clone(),
            local_ts,
            remote_ts,
            lifetime: if bundled {
                Lifetime::default()
            } else {
                self.lifetime
            },
        }
    }

    /// The keys whose numbers the gateway has to keep: towards the peer, towards the terminal. Of ESP inside AH those
    /// of ESP, for both count alike.
    pub fn gateway_senders(&self) -> Option<[&[u8]; 2]> {
        let esp = |keys: &EspKeys| keys.cipher.is_empty();
        let secret = |keys| -> &[u8] {
            let keys: &EspKeys = keys;
            if esp(keys) {
                keys.integrity.expose()
            } else {
                keys.cipher.expose()
            }
        };
        match &self.protection {
            Protection::Esp { keys, .. } => match keys {
                ManualKeys::Segments {
                    peer_out, segment_in, ..
                } => Some([secret(peer_out), secret(segment_in)]),
                ManualKeys::Shared { keys_in, keys_out } => Some([secret(keys_out), secret(keys_in)]),
                ManualKeys::None | ManualKeys::Inspect { .. } => None,
            },
            Protection::EspInAh { keys, .. } => Some([secret(&keys.peer_out), secret(&keys.segment_in)]),
            Protection::Ah { keys, .. } => match keys {
                AhKeys::None => None,
                AhKeys::Segments(keys) => Some([keys.peer_out.expose(), keys.segment_in.expose()]),
                AhKeys::Shared { key_in, key_out } => Some([key_out.expose(), key_in.expose()]),
            },
        }
    }

    /// Whether some sender of `other` uses a key of this one.
    pub fn shares_a_key_with(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.protection, &other.protection);
        let ciphers = theirs.esp_senders();
        let same = |keys: &&EspKeys| {
            let twin = |other: &&EspKeys| {
                if keys.cipher.is_empty() {
                    keys.integrity == other.integrity
                } else {
                    keys.cipher == other.cipher
                }
            };
            ciphers.iter().any(twin)
        };
        let signers = theirs.ah_senders();
        ours.esp_senders().iter().any(same) || ours.ah_senders().iter().any(|key| signers.contains(key))
    }
}

/// Whether two of `items` are the same.
fn has_twins<T>(items: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    let twins = |(index, one)| items.iter().skip(index + 1).any(|other| same(one, other));
    items.iter().enumerate().any(twins)
}

/// Class `inspect` takes cipher keys alone, hence suites that have them.
fn check_inspect(suite: EspSuite, keys: &ManualKeys) -> Result<(), InvalidManualSa> {
    let ManualKeys::Inspect {
        cipher_in,
        cipher_out,
    } = keys
    else {
        return Ok(());
    };
    if suite.is_aead() {
        let reason = alloc::format!(
            "is inspect, but the one key of {suite} is the integrity key too; expected full, none, or a \
             suite like aes256-sha256"
        );
        return Err(invalid("class", reason));
    }
    let expected = suite.cipher_key_len() + suite.salt_len();
    for (field, key) in [("in", cipher_in), ("out", cipher_out)] {
        if key.len() != expected {
            let reason = wrong_length(key.len(), expected, suite, "cipher key alone");
            return Err(invalid(field, reason));
        }
    }
    Ok(())
}

fn wrong_length(len: usize, expected: usize, suite: EspSuite, what: &str) -> String {
    alloc::format!("a key has {len} bytes, expected {expected} for {suite} ({what})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

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
            mode: Mode::Transport,
            esn: false,
            replay_window: 64,
            encap: None,
            local_ts: Vec::new(),
            remote_ts: Vec::new(),
            lifetime: Lifetime::default(),
            protection: Protection::Esp { suite, keys },
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
