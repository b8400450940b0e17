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
//! level = 5                           # protect: for packets of this sensitivity level alone; default: whatever their level
//!
//! [[level]]                           # an application chooses a level by the mark of its socket (SO_MARK)
//! level = 5                           # 1 to 255
//! mark = 5                            # default: the level
//! mask = 0xff                         # bits of the mark that count; default: all
//! tun = "towpath0-5"                  # user space: its device; default: the name of `tun`, and the level
//! ```

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use towpath_base::selector::{Prefix, TrafficSelector};

mod scalars;

pub use scalars::{Ksub, PortRange, Protocol};

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
    /// Sensitivity levels applications can choose.
    #[serde(rename = "level", default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<LevelConfig>,
}

/// A sensitivity level, and how an application chooses it (T21).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelConfig {
    /// 1 to 255; 0 is that of packets nobody chose one for.
    pub level: u8,
    /// Mark of the application's socket; the level when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// Bits of the mark that count; all when absent.
    #[serde(default = "all_bits", skip_serializing_if = "is_all_bits")]
    pub mask: u32,
    /// In user space: name of the TUN device its packets are routed into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tun: Option<String>,
}

impl LevelConfig {
    /// Mark and mask.
    pub fn mark(&self) -> (u32, u32) {
        let mark = self.mark.unwrap_or(self.level.into());
        (mark & self.mask, self.mask)
    }
}

/// Most bytes that protecting a packet adds: outer IPv6 header 40, UDP 8, ESP header 8, IV 16, padding and
/// trailer 17, ICV 16, rounded up.
pub const ESP_OVERHEAD: u16 = 110;

/// Smallest MTU IPv6 permits (RFC 8200 §5).
pub const MIN_MTU: u16 = 1280;

/// Most policies a terminal holds.
pub const MAX_POLICIES: usize = 32;

/// Most levels beside 0: each has its device or its policies.
pub const MAX_LEVELS: usize = 8;

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
    /// The sensitivity level of the packets it is about; whatever their level when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
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
            if !is_interface_name(name) {
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
        self.validate_levels()?;
        self.validate_policies()
    }

    /// Name of the TUN device of a level.
    pub fn tun_of(&self, level: &LevelConfig) -> String {
        let own = level.tun.clone();
        own.unwrap_or_else(|| format!("{}-{}", self.tun, level.level))
    }

    fn validate_levels(&self) -> Result<(), InvalidConfig> {
        let wrong = |field: &str, value: String, expected: &str| {
            Err(InvalidConfig {
                field: field.to_owned(),
                value,
                expected: expected.to_owned(),
            })
        };
        if self.levels.len() > MAX_LEVELS {
            let value = format!("{} levels", self.levels.len());
            return wrong("level", value, &format!("at most {MAX_LEVELS} levels"));
        }
        for (index, level) in self.levels.iter().enumerate() {
            let field = |key: &str| format!("level[{index}].{key}");
            let before = &self.levels[..index];
            if level.level == 0 || before.iter().any(|other| other.level == level.level) {
                let expected = "1 to 255, each level once";
                return wrong(&field("level"), level.level.to_string(), expected);
            }
            let (mark, mask) = level.mark();
            let same = |other: &LevelConfig| {
                let (theirs, their_mask) = other.mark();
                (mark ^ theirs) & mask & their_mask == 0
            };
            if mark == 0 || before.iter().any(same) {
                let value = format!("{mark:#x}/{mask:#x}");
                return wrong(
                    &field("mark"),
                    value,
                    "a mark other than 0 that no other level has",
                );
            }
            let tun = self.tun_of(level);
            let names = before.iter().map(|other| self.tun_of(other));
            let taken = names
                .chain([self.tun.clone(), self.interface.clone()])
                .any(|other| other == tun);
            if taken || !is_interface_name(&tun) {
                return wrong(
                    &field("tun"),
                    format!("{tun:?}"),
                    "an interface name of 1 to 15 characters, no other's",
                );
            }
        }
        Ok(())
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
            if let Some(level) = policy.level {
                let field = format!("policy[{index}].level");
                let known = level == 0 || self.levels.iter().any(|known| known.level == level);
                if !known {
                    return wrong(field, level.to_string(), "0, or a level with an entry of its own");
                }
                // What comes in clear shows no level.
                if policy.action != Action::Protect {
                    return wrong(field, level.to_string(), "no level unless the action is protect");
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

fn is_interface_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 15 && !name.contains(['/', ' '])
}

const fn all_bits() -> u32 {
    u32::MAX
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_all_bits(mask: &u32) -> bool {
    *mask == u32::MAX
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

    const LEVELS: &str = "[[level]]\nlevel = 5\n[[level]]\nlevel = 7\nmark = 0x123\nmask = 0xff00\n";

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
        let config = parse(&text(|text| {
            text.replace("\"bypass\"", "\"protect\"\nlevel = 5") + LEVELS
        }))
        .unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.levels[0].mark(), (5, u32::MAX));
        assert_eq!(config.levels[1].mark(), (0x100, 0xff00));
        assert_eq!(config.tun_of(&config.levels[0]), "towpath0-5");
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
            ("\"protect\"", "\"protect\"\nlevel = 5", "policy[0].level"),
            ("\"bypass\"", "\"bypass\"\nlevel = 0", "policy[1].level"),
            (
                "[[policy]]\npeer = \"2001",
                "[[level]]\nlevel = 0\n[[policy]]\npeer = \"2001",
                "level[0].level",
            ),
            (
                "[[policy]]\npeer = \"2001",
                "[[level]]\nlevel = 1\nmark = 0x100\nmask = 0xff\n[[policy]]\npeer = \"2001",
                "level[0].mark",
            ),
            (
                "[[policy]]\npeer = \"2001",
                "[[level]]\nlevel = 1\ntun = \"eth0\"\n[[policy]]\npeer = \"2001",
                "level[0].tun",
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
