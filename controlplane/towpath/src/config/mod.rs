//! The configuration file of `towpath run`, and how it is read and checked.
//!
//! The structs are the table of keys; `example.toml` is the table for people, and a test holds the two
//! together. Unknown keys are refused; every error names file, line, key, value and expectation.

mod check;
mod document;
pub(crate) mod relay;

pub(crate) use check::check;
pub(crate) use document::{ConfigError, Document};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towpath_base::sa::EspSuite;
use towpath_telemetry::logging::Format;

/// Where the configuration is when `--config` does not say.
pub(crate) const DEFAULT_PATH: &str = "/etc/towpath/towpath.toml";

/// What `towpath config example` prints.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Roles this process runs.
    pub(crate) roles: Vec<Role>,
    /// The packet path.
    pub(crate) gateway: Gateway,
    /// TCP inside SAs.
    pub(crate) relay: relay::Relay,
    /// IKE in the terminals' names.
    pub(crate) keyserver: Keyserver,
    /// Roles on other machines.
    pub(crate) channel: Channel,
    /// Registration of terminals.
    pub(crate) registry: Registry,
    /// Subscribers and their secrets.
    pub(crate) store: Store,
    /// The socket of the command line.
    pub(crate) admin: Admin,
    /// Log lines.
    pub(crate) log: Log,
    /// What the command line may do beyond running things.
    pub(crate) permissions: Permissions,
    /// Not for production.
    pub(crate) debug: Debug,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roles: vec![Role::Gateway, Role::Keyserver, Role::Registry],
            gateway: Gateway::default(),
            relay: relay::Relay::default(),
            keyserver: Keyserver::default(),
            channel: Channel::default(),
            registry: Registry::default(),
            store: Store::default(),
            admin: Admin::default(),
            log: Log::default(),
            permissions: Permissions::default(),
            debug: Debug::default(),
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let document = Document::open(path)?;
        let config: Self = document.read()?;
        check(&config, &document)?;
        Ok(config)
    }

    /// [`Config::load`], or the defaults when `path` is the default one and there is no file: commands that need
    /// only the socket or the store work before anything is configured.
    pub(crate) fn load_or_default(path: &Path) -> Result<Self, ConfigError> {
        if path == Path::new(DEFAULT_PATH) && !path.exists() {
            return Ok(Self::default());
        }
        Self::load(path)
    }

    /// Whether `role` runs here.
    pub(crate) fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// A role of the network side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Classifies, relays, protects packets.
    Gateway,
    /// Speaks IKEv2 for the terminals.
    Keyserver,
    /// Authenticates terminals, owns profiles.
    Registry,
}

impl Role {
    /// Its name in configuration and output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Keyserver => "keyserver",
            Self::Registry => "registry",
        }
    }
}

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gateway {
    /// Directory under a BPF file system for maps and links.
    pub(crate) pin_dir: PathBuf,
    /// The XDP program; looked for beside the executable when absent.
    pub(crate) bpf_object: Option<PathBuf>,
    /// How to attach.
    pub(crate) mode: XdpMode,
    /// Packet worker threads; 0 to choose. This version runs one.
    pub(crate) workers: u32,
    /// The value both SPIs of a terminal's message to the network hold.
    pub(crate) reserved_spi: u64,
    /// Bytes of one packet buffer.
    pub(crate) frame_size: u32,
    /// Packet buffers per port.
    pub(crate) frames: u32,
    /// Most ESP SA pairs bridged at a time.
    pub(crate) max_sas: u32,
    /// Sealed messages a terminal may send per second, on average.
    pub(crate) requests_per_second: u32,
    /// Sealed messages a terminal may send at once.
    pub(crate) requests_burst: u32,
    /// Interfaces.
    pub(crate) port: Vec<Port>,
    /// Keyservers, nearest first; the one of this process when empty.
    pub(crate) keyserver: Vec<Remote>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            pin_dir: "/sys/fs/bpf/towpath".into(),
            bpf_object: None,
            mode: XdpMode::Auto,
            workers: 0,
            reserved_spi: 100,
            frame_size: 4096,
            frames: 4096,
            max_sas: 100_000,
            requests_per_second: 10,
            requests_burst: 40,
            port: Vec::new(),
            keyserver: Vec::new(),
        }
    }
}

/// How the XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum XdpMode {
    /// In the driver, or else in the stack with a message.
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the stack.
    Generic,
}

/// `[[gateway.port]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Port {
    /// Interface name.
    pub(crate) name: String,
    /// Which side.
    pub(crate) role: PortRole,
}

/// Which side of the gateway a port is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PortRole {
    /// Terminals are here.
    Access,
    /// Peers are here.
    Core,
}

/// A node elsewhere, or this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remote {
    /// The name in its certificate.
    pub(crate) name: String,
    /// Host name or address, and port; absent for this process.
    pub(crate) address: Option<String>,
}

/// `[channel]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Channel {
    /// This node's name.
    pub(crate) name: String,
    /// Its certificate, PEM.
    pub(crate) certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub(crate) private_key: Option<PathBuf>,
    /// The network's authority, PEM.
    pub(crate) authority: Option<PathBuf>,
    /// Where nodes reach the keyserver and the registry of this process.
    pub(crate) listen: Vec<SocketAddr>,
    /// The registry, where it is elsewhere.
    pub(crate) registry: Option<Remote>,
    /// Milliseconds between signs of life.
    pub(crate) heartbeat_ms: u32,
    /// Milliseconds of silence after which the other end is gone.
    pub(crate) dead_after_ms: u32,
}

impl Default for Channel {
    fn default() -> Self {
        Self {
            name: "local".into(),
            certificate: None,
            private_key: None,
            authority: None,
            listen: Vec::new(),
            registry: None,
            heartbeat_ms: 500,
            dead_after_ms: 2000,
        }
    }
}

/// `[keyserver]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Keyserver {
    /// For subscribers that are added without.
    pub(crate) ike_proposals: Vec<String>,
    /// For subscribers that are added without.
    pub(crate) esp_suites: Vec<EspSuite>,
    /// Most IKE SAs.
    pub(crate) max_ike_sas: u32,
    /// Most IKE SAs that are not established.
    pub(crate) max_half_open: u32,
    /// Per cent of both that one operator may use.
    pub(crate) operator_share_percent: u32,
    /// Exchanges that may be begun per second for the terminals of one operator; 0 for any number.
    pub(crate) operator_exchanges_per_second: u32,
    /// Seconds the registry's answer about a terminal and a peer serves later exchanges too; 0 for one exchange.
    pub(crate) credential_seconds: u32,
    /// Half-open SAs from which on a COOKIE is demanded (RFC 7296 §2.6).
    pub(crate) cookie_threshold: u32,
    /// Milliseconds before the first retransmission; doubles each time.
    pub(crate) retransmit_initial_ms: u32,
    /// Transmissions of one request before the peer counts as gone.
    pub(crate) retransmit_tries: u32,
    /// Seconds of silence after which a peer is asked whether it lives; 0 for never.
    pub(crate) dpd_seconds: u32,
    /// Seconds after which both sides of an IKE SA the keyserver started prove anew who they are; 0 for never.
    pub(crate) reauth_seconds: u32,
    /// Whether IKE SAs follow ends that move (RFC 4555).
    pub(crate) mobike: bool,
    /// Milliseconds before a key transfer is sent again; doubles each time.
    pub(crate) transfer_initial_ms: u32,
    /// Transmissions of one key transfer.
    pub(crate) transfer_tries: u32,
}

impl Default for Keyserver {
    fn default() -> Self {
        Self {
            ike_proposals: [
                "aes256gcm16-prfsha256-x25519",
                "aes256-sha256-ecp256",
                "aes128-sha256-modp2048",
            ]
            .map(String::from)
            .to_vec(),
            esp_suites: vec![EspSuite::Aes256Gcm16, EspSuite::Aes256CbcSha256],
            max_ike_sas: 100_000,
            max_half_open: 10_000,
            operator_share_percent: 100,
            operator_exchanges_per_second: 0,
            credential_seconds: 60,
            cookie_threshold: 100,
            retransmit_initial_ms: 1000,
            retransmit_tries: 6,
            dpd_seconds: 120,
            reauth_seconds: 0,
            mobike: true,
            transfer_initial_ms: 300,
            transfer_tries: 8,
        }
    }
}

/// `[registry]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    /// Seconds a registration lasts.
    pub(crate) lifetime_seconds: u32,
    /// Seconds between keep-alives of a terminal behind a NAT; 0 for none.
    pub(crate) keepalive_seconds: u32,
    /// Registrations a terminal may make per minute, on average.
    pub(crate) registrations_per_minute: u32,
    /// Registrations a terminal may make at once.
    pub(crate) registrations_burst: u32,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            lifetime_seconds: 3600,
            keepalive_seconds: 20,
            registrations_per_minute: 20,
            registrations_burst: 10,
        }
    }
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Store {
    /// The database.
    pub(crate) path: PathBuf,
    /// The key that encrypts secrets in it, 32 bytes in hex, mode 0600.
    pub(crate) kek_file: PathBuf,
}

impl Store {
    /// What SAs keyed by hand have used up, beside the database.
    pub(crate) fn windows(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".windows");
        name.into()
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            path: "/var/lib/towpath/towpath.redb".into(),
            kek_file: "/etc/towpath/store.key".into(),
        }
    }
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    /// The socket.
    pub(crate) socket: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: "/run/towpath/admin.sock".into(),
        }
    }
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// For people or as JSON.
    pub(crate) format: Format,
    /// Level, or list of `target=level`.
    pub(crate) filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: Format::Human,
            filter: "info".into(),
        }
    }
}

/// `[permissions]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Permissions {
    /// `towpath capture`: traffic can be written to files.
    pub(crate) capture: bool,
    /// `towpath sa list --manual --keys` and `towpath sa export-wireshark`: keys can be read.
    pub(crate) show_keys: bool,
}

/// `[debug]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Debug {
    /// File that receives every key in hex. Whoever reads it reads the traffic.
    pub(crate) key_log: Option<PathBuf>,
    /// File that receives a record of every ESP packet sealed, for tests of nonces. Not in release builds.
    #[cfg(debug_assertions)]
    pub(crate) nonce_log: Option<PathBuf>,
    /// Stored sequence numbers start over with the daemon: what must not be, to show that it is found. Not in release
    /// builds.
    #[cfg(debug_assertions)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) danger_start_over: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Config {
        let document = Document::from_text("example.toml", EXAMPLE);
        let config = document.read().unwrap();
        check(&config, &document).unwrap();
        config
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let mut config = example();
        assert_eq!(config.gateway.port.len(), 2);
        config.gateway.port.clear();
        assert_eq!(config.relay.rule.len(), 1);
        config.relay.rule.clear();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn the_example_names_every_key() {
        // Optional keys have no default to be serialised from; they stand commented out in the example.
        let complete = Config {
            debug: Debug {
                key_log: Some("k".into()),
                ..Debug::default()
            },
            gateway: Gateway {
                bpf_object: Some("o".into()),
                ..example().gateway
            },
            channel: Channel {
                certificate: Some("c".into()),
                private_key: Some("k".into()),
                authority: Some("a".into()),
                registry: Some(Remote {
                    name: "r".into(),
                    address: None,
                }),
                ..Channel::default()
            },
            ..Config::default()
        };
        let table = toml::Table::try_from(&complete).unwrap();
        let mut keys = Vec::new();
        for (name, value) in &table {
            keys.push(name);
            keys.extend(value.as_table().into_iter().flatten().map(|(key, _)| key));
        }
        assert!(keys.len() > 30, "{keys:?}");
        for key in keys {
            let named = EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} = "))
                    || line.trim_matches(['[', ']']).ends_with(key.as_str())
            });
            assert!(named, "`{key}` is missing in example.toml");
        }
    }
}
