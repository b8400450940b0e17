//! The terminal's configuration file.
//!
//! ```toml
//! name = "alice"                      # how the log calls this terminal
//! handle = 7                          # number the registry gave the subscriber
//! ksub = "00112233…"                  # subscriber key, 64 hex digits; or ksub_file = "PATH"
//! interface = "eth0"                  # towards the network
//! addresses = ["192.0.2.7"]           # default: every global address of the interface
//! backend = "auto"                    # who seals and opens: "kernel", "user-space", or whichever can
//! inbound_filter = true               # user space: drop what arrives in clear though a policy protects it (needs tc)
//! tun = "towpath0"                    # user space: name of the device that takes plain packets
//! mtu = 1390                          # of that device; default: the interface's, less what ESP may add
//! reserved_spi = 100                  # both SPIs of messages to the network (figure 12A)
//! state_file = "/var/lib/towpath/terminal.state"   # survives restarts: the registration counter
//! control_socket = "/run/towpath/terminal.sock"    # for `towpath terminal status`; default: none
//! debug_key_log = "/tmp/keys"         # WRITES KEYS IN CLEAR for laboratory tests; default: none
//!
//! [[policy]]                          # first match wins; what matches none leaves in clear
//! peer = "198.51.100.0/24"            # address or prefix
//! protocol = "tcp"                    # name or number; default: any
//! ports = "80-90"                     # the peer's port or ports; default: any
//! local_ports = 1024                  # the terminal's; default: any
//! action = "protect"                  # protect, bypass or discard
//! gateway = "203.0.113.1"             # protect: the peers' security gateway, which tunnels for them; default: none
//! ```

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use towpath_base::SecretKey;
use towpath_base::selector::{Prefix, TrafficSelector};
use zeroize::Zeroizing;

/// The whole file. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalConfig {
    /// How the log calls this terminal.
    #[serde(default = "default_name")]
    pub name: String,
    /// Number the registry gave the subscriber; stands in every sealed message.
    pub handle: u64,
    /// Subscriber key; exactly one of this and [`Self::ksub_file`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ksub: Option<Ksub>,
    /// File whose first line is the subscriber key, 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ksub_file: Option<PathBuf>,
    /// Interface towards the network.
    pub interface: String,
    /// Addresses to register and to protect; every global address of the interface when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Who seals and opens packets.
    #[serde(default, skip_serializing_if = "Backend::is_auto")]
    pub backend: Backend,
    /// In user space: whether packets that arrive in clear are dropped where a policy protects or discards them. The
    /// filter needs the program `tc`; the kernel's IPsec drops them by itself.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub inbound_filter: bool,
    /// Name of the TUN device, at most 15 bytes.
    #[serde(default = "default_tun")]
    pub tun: String,
    /// MTU of the TUN device, bytes; by default the interface's less [`ESP_OVERHEAD`], at least 1280.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Value of both SPIs in messages to and from the network.
    #[serde(default = "default_reserved_spi")]
    pub reserved_spi: u64,
    /// Where the registration counter survives restarts.
    pub state_file: PathBuf,
    /// Unix socket that answers status requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_socket: Option<PathBuf>,
    /// File that gets every key in hex, for laboratory tests that search captures for keys. Never in service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug_key_log: Option<PathBuf>,
    /// The security policy database, in order.
    #[serde(rename = "policy", default)]
    pub policies: Vec<PolicyConfig>,
}

/// Most bytes that protecting a packet adds: outer IPv6 header 40, UDP 8, ESP header 8, IV 16, padding and
/// trailer 17, ICV 16, rounded up.
pub const ESP_OVERHEAD: u16 = 110;

/// Smallest MTU IPv6 permits (RFC 8200 §5).
pub const MIN_MTU: u16 = 1280;

/// Most policies a terminal holds.
pub const MAX_POLICIES: usize = 32;

/// Most addresses a terminal registers.
pub const MAX_ADDRESSES: usize = 4;

/// Who seals and opens packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The kernel if it has IPsec with the usual algorithms, else user space.
    #[default]
    Auto,
    /// The kernel's own IPsec (XFRM).
    Kernel,
    /// This process, behind a TUN device.
    UserSpace,
}

impl Backend {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// One entry of the security policy database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Peers.
    pub peer: Prefix,
    /// IP protocol; any when absent.
    #[serde(default, skip_serializing_if = "Protocol::is_any")]
    pub protocol: Protocol,
    /// The peer's ports; any when absent.
    #[serde(default, skip_serializing_if = "PortRange::is_any")]
    pub ports: PortRange,
    /// The terminal's ports; any when absent.
    #[serde(default, skip_serializing_if = "PortRange::is_any")]
    pub local_ports: PortRange,
    /// What happens to a packet that matches.
    pub action: Action,
    /// The security gateway the peers are behind; without it the SA is with the peer itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

impl PolicyConfig {
    /// Both sides of the entry for one of the terminal's addresses: its own, and the peers'.
    pub fn selectors(&self, address: IpAddr) -> (TrafficSelector, TrafficSelector) {
        let local = TrafficSelector {
            protocol: self.protocol.0,
            first_port: self.local_ports.first,
            last_port: self.local_ports.last,
            ..TrafficSelector::host(address)
        };
        (local, self.remote_selector())
    }

    /// The peer's side of the entry.
    pub fn remote_selector(&self) -> TrafficSelector {
        TrafficSelector {
            protocol: self.protocol.0,
            first_port: self.ports.first,
            last_port: self.ports.last,
            ..TrafficSelector::any_of(self.peer)
        }
    }
}

/// What a policy does (RFC 4301 §4.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Under an SA, which is asked for when there is none.
    Protect,
    /// In clear.
    Bypass,
    /// Dropped.
    Discard,
}

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

    fn is_any(&self) -> bool {
        self.0 == 0
    }

    fn has_ports(self) -> bool {
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
    fn is_any(&self) -> bool {
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

/// What is wrong with a configuration that parses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig {
    /// The key, as in the file.
    pub field: String,
    /// The value, as far as it may be shown.
    pub value: String,
    /// What would have been right.
    pub expected: String,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: expected {}", self.field, self.value, self.expected)
    }
}

impl std::error::Error for InvalidConfig {}

impl TerminalConfig {
    /// Checks what the types do not, in the order of the file. Opens no file and no device.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let wrong = |field: &str, value: &dyn fmt::Display, expected: &str| InvalidConfig {
            field: field.to_owned(),
            value: value.to_string(),
            expected: expected.to_owned(),
        };
        match (&self.ksub, &self.ksub_file) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => return Err(wrong("ksub", &"(absent)", "ksub or ksub_file")),
            (Some(_), Some(file)) => {
                return Err(wrong("ksub_file", &file.display(), "ksub or ksub_file, not both"));
            }
        }
        for (field, name) in [("interface", &self.interface), ("tun", &self.tun)] {
            let fits = !name.is_empty() && name.len() <= 15 && !name.contains(['/', ' ']);
            if !fits {
                let value = format!("{name:?}");
                return Err(wrong(field, &value, "an interface name of 1 to 15 characters"));
            }
        }
        if self.tun == self.interface {
            return Err(wrong("tun", &self.tun, "another name than that of the interface"));
        }
        if self.addresses.len() > MAX_ADDRESSES {
            let expected = format!("at most {MAX_ADDRESSES} addresses");
            return Err(wrong(
                "addresses",
                &format!("{} addresses", self.addresses.len()),
                &expected,
            ));
        }
        if let Some(address) = self
            .addresses
            .iter()
            .find(|a| a.is_unspecified() || a.is_multicast())
        {
            return Err(wrong("addresses", address, "unicast addresses"));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(wrong("mtu", &mtu, "at least 1280, the least IPv6 permits"));
        }
        if self.reserved_spi == 0 {
            return Err(wrong("reserved_spi", &0, "a number above 0"));
        }
        self.validate_policies()
    }

    fn validate_policies(&self) -> Result<(), InvalidConfig> {
        let wrong = |field: String, value: String, expected: &str| {
            Err(InvalidConfig {
                field,
                value,
                expected: expected.to_owned(),
            })
        };
        if self.policies.is_empty() || self.policies.len() > MAX_POLICIES {
            let value = format!("{} policies", self.policies.len());
            return wrong(
                "policy".to_owned(),
                value,
                &format!("1 to {MAX_POLICIES} policies"),
            );
        }
        if !self
            .policies
            .iter()
            .any(|policy| policy.action == Action::Protect)
        {
            return wrong(
                "policy.action".to_owned(),
                "no protect".to_owned(),
                "at least one policy that protects",
            );
        }
        for (index, policy) in self.policies.iter().enumerate() {
            for (key, range) in [("ports", policy.ports), ("local_ports", policy.local_ports)] {
                if !range.is_any() && !policy.protocol.has_ports() {
                    let value = format!("{}-{}", range.first, range.last);
                    return wrong(
                        format!("policy[{index}].{key}"),
                        value,
                        "a protocol that has ports beside it",
                    );
                }
            }
            let field = format!("policy[{index}].gateway");
            if let Some(gateway) = policy.gateway {
                if policy.action != Action::Protect {
                    return wrong(
                        field,
                        gateway.to_string(),
                        "no gateway unless the action is protect",
                    );
                }
                if gateway.is_ipv4() != policy.peer.address().is_ipv4() {
                    return wrong(
                        field,
                        gateway.to_string(),
                        "an address of the same family as peer",
                    );
                }
            }
            if policy.action == Action::Protect && policy.peer.bits() == 0 {
                // The request to the network is addressed to a peer: there must be one to name.
                return wrong(
                    format!("policy[{index}].peer"),
                    policy.peer.to_string(),
                    "a prefix longer than /0",
                );
            }
        }
        Ok(())
    }
}

fn default_name() -> String {
    "terminal".to_owned()
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_yes(value: &bool) -> bool {
    *value
}

fn default_tun() -> String {
    "towpath0".to_owned()
}

fn default_reserved_spi() -> u64 {
    100
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn text(change: impl Fn(&str) -> String) -> String {
        change(&format!(
            "handle = 7\nksub = \"{KEY}\"\ninterface = \"eth0\"\nstate_file = \"/tmp/s\"\n\
             [[policy]]\npeer = \"198.51.100.0/24\"\nprotocol = \"tcp\"\nports = \"80-90\"\naction = \"protect\"\n\
             [[policy]]\npeer = \"2001:db8::1\"\naction = \"bypass\"\n"
        ))
    }

    fn parse(text: &str) -> Result<TerminalConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_short_file_gets_the_defaults() {
        let config = parse(&text(str::to_owned)).unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!((config.tun.as_str(), config.reserved_spi), ("towpath0", 100));
        assert_eq!(config.ksub.as_ref().unwrap().key().expose()[31], 0x1f);
        let selector = config.policies[0].remote_selector();
        assert_eq!(
            selector.to_string(),
            "198.51.100.0-198.51.100.255 proto 6 ports 80-90"
        );
        assert!(config.policies[1].ports.is_any());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = parse(&text(str::to_owned)).unwrap();
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn the_key_is_never_printed() {
        let config = parse(&text(str::to_owned)).unwrap();
        assert!(!format!("{config:?}").contains("0a0b0c"));
        let mistyped = text(|text| text.replace("1d1e1f", "1d1e1"));
        assert!(!parse(&mistyped).unwrap_err().message().contains("0a0b0c"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("handle = 7", "handle = 7\nhandel = 8", "handel"),
            ("\"tcp\"", "\"tpc\"", "tcp, udp"),
            ("\"80-90\"", "\"90-80\"", "range of ports"),
            ("\"80-90\"", "70000", "a port"),
            ("\"protect\"", "\"encrypt\"", "protect"),
        ];
        for (from, to, named) in cases {
            let error = parse(&text(|text| text.replace(from, to)))
                .unwrap_err()
                .to_string();
            assert!(error.contains(named), "{to}: {error}");
        }
        let cases = [
            ("interface = \"eth0\"", "interface = \"towpath0\"", "tun"),
            ("handle = 7", "handle = 7\nmtu = 1200", "mtu"),
            ("handle = 7", "handle = 7\nksub_file = \"/k\"", "ksub_file"),
            ("\"protect\"", "\"discard\"", "policy.action"),
            ("protocol = \"tcp\"\n", "", "policy[0].ports"),
            ("198.51.100.0/24", "0.0.0.0/0", "policy[0].peer"),
            (
                "\"protect\"",
                "\"protect\"\ngateway = \"2001:db8::2\"",
                "policy[0].gateway",
            ),
            (
                "\"bypass\"",
                "\"bypass\"\ngateway = \"2001:db8::2\"",
                "policy[1].gateway",
            ),
        ];
        for (from, to, field) in cases {
            let invalid = parse(&text(|text| text.replace(from, to)))
                .unwrap()
                .validate()
                .unwrap_err();
            assert_eq!(invalid.field, field, "{invalid}");
        }
    }
}
