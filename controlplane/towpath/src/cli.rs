//! The command line, as clap reads it. Every option is documented here and nowhere else.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::DEFAULT_PATH;
use crate::{profile, subscriber};

const AFTER: &str = "\
Examples:
  towpath init --port eth0=access --port eth1=core     prepare a machine
  towpath config check                                 read the configuration, say what is wrong
  towpath run                                          gateway, keyserver and registry in one process
  towpath subscriber add alice --address 10.77.1.2 --peer 10.77.9.2 --nai alice@example.net \\
      --psk-file alice.psk --terminal-config alice.toml
  towpath terminal --config alice.toml                 on the terminal: IPsec without IKE
  towpath events                                       watch what happens
  towpath sa list --json                               for scripts

Exit status: 0 done; 1 it did not work; 2 the command, a file or the configuration is wrong, and nothing
was changed.";

/// IPsec key exchange by proxy: gateway, keyserver, registry and terminal.
#[derive(Debug, Parser)]
#[command(name = "towpath", version, after_long_help = AFTER, max_term_width = 100, subcommand_required = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Configuration file
    #[arg(long, short, global = true, env = "TOWPATH_CONFIG", default_value = DEFAULT_PATH, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Admin socket of the daemon, instead of the one in the configuration
    #[arg(long, global = true, env = "TOWPATH_ADMIN", value_name = "SOCKET")]
    pub(crate) admin: Option<PathBuf>,
    /// Write JSON for scripts; fields are documented in controlplane/docs/configuration.md
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run gateway, keyserver and registry as the configuration says, until SIGTERM or SIGINT
    Run,
    /// Run a terminal: protect packets to peers with SAs the network negotiates
    ///
    /// Its configuration is /etc/towpath/terminal.toml unless --config says otherwise; `towpath subscriber add
    /// --terminal-config FILE` writes one.
    Terminal(Terminal),
    /// Prepare this machine: configuration, key file and store; leaves alone what is there
    Init(Init),
    /// Certificates for roles on several machines
    #[command(subcommand)]
    Node(crate::node::Command),
    /// Subscribers: who may use the network, and how keys are negotiated in their name
    #[command(subcommand)]
    Subscriber(subscriber::Command),
    /// Service profiles: which messages of a subscriber are diverted to the keyserver
    #[command(subcommand)]
    Profile(profile::Command),
    /// What runs here
    Status,
    /// ESP SAs the gateway serves
    #[command(subcommand)]
    Sa(Sa),
    /// Security policies of the gateway: what may pass inside the SAs
    #[command(subcommand)]
    Policy(crate::policy::Command),
    /// Write packets of one SA to a pcapng file, encrypted or decrypted; needs `permissions.capture`
    Capture(crate::capture::Capture),
    /// IKE SAs of the keyserver: look into them, start, replace and end them
    #[command(subcommand)]
    Ike(Ike),
    /// TCP connections the gateway relays inside SAs of class full
    #[command(subcommand)]
    Flow(crate::show::Flow),
    /// Counters: verdicts of the classifier, and every reason a packet was dropped for
    Stats(Stats),
    /// Watch what happens, one line each, until interrupted
    Events(Events),
    /// The configuration file
    #[command(subcommand)]
    Config(Config),
    /// Detach the XDP program and remove its pinned maps: forwarding is the kernel's again
    Unload(Unload),
    /// Print a completion script: `towpath completions bash > /etc/bash_completion.d/towpath`
    Completions {
        /// For this shell
        shell: Shell,
    },
    /// Print the manual page, or write the pages of all commands into a directory
    Man {
        /// Directory for one page per command
        #[arg(value_name = "DIRECTORY")]
        directory: Option<PathBuf>,
    },
}

/// `towpath terminal`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Terminal {
    #[command(subcommand)]
    pub(crate) command: Option<TerminalCommand>,
    /// Who seals and opens packets, whatever the configuration says
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub(crate) backend: Option<TerminalBackend>,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Human, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// What is logged: a level, or a list of TARGET=LEVEL
    #[arg(long, env = "TOWPATH_LOG", default_value = "info", value_name = "FILTER")]
    pub(crate) log_filter: String,
}

/// Who seals and opens a terminal's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TerminalBackend {
    /// The kernel if it has IPsec with the usual algorithms, else user space
    Auto,
    /// The kernel's own IPsec (XFRM)
    Kernel,
    /// The terminal's process, behind a TUN device
    UserSpace,
}

impl From<TerminalBackend> for towpath_terminal::Backend {
    fn from(backend: TerminalBackend) -> Self {
        match backend {
            TerminalBackend::Auto => Self::Auto,
            TerminalBackend::Kernel => Self::Kernel,
            TerminalBackend::UserSpace => Self::UserSpace,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

impl From<LogFormat> for towpath_telemetry::logging::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TerminalCommand {
    /// Registration, SAs and counters of a running terminal
    Status {
        /// Its control socket, instead of the one in its configuration
        #[arg(long, value_name = "SOCKET")]
        socket: Option<PathBuf>,
    },
    /// Read a terminal's configuration and say what is wrong with it
    Check,
}

/// `towpath init`.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// An interface and its side: terminals are behind `access`, peers behind `core`
    #[arg(long = "port", value_name = "INTERFACE=access|core", value_parser = parse_port)]
    pub(crate) ports: Vec<(String, crate::config::PortRole)>,
}

fn parse_port(text: &str) -> Result<(String, crate::config::PortRole), String> {
    use crate::config::PortRole;

    match text.split_once('=') {
        Some((name, "access")) if !name.is_empty() => Ok((name.to_owned(), PortRole::Access)),
        Some((name, "core")) if !name.is_empty() => Ok((name.to_owned(), PortRole::Core)),
        _ => Err("expected INTERFACE=access or INTERFACE=core".into()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sa {
    /// List pairs of SAs
    List {
        /// Only of this operator
        #[arg(long)]
        operator: Option<String>,
        /// Only of this subscriber
        #[arg(long, value_name = "NAME")]
        subscriber: Option<String>,
        /// Only with this terminal or peer
        #[arg(long)]
        address: Option<IpAddr>,
        /// Manual SAs as they are stored, served or not
        #[arg(long, conflicts_with_all = ["operator", "subscriber", "address"])]
        manual: bool,
        /// With their keys; needs `permissions.show_keys`
        #[arg(long, requires = "manual")]
        keys: bool,
    },
    /// Add a pair of SAs with keys of your own (manual keying); they survive restarts
    Add(Box<crate::sa::Add>),
    /// Remove a pair of manual SAs
    ///
    /// What is known of its keys stays: brought again, they go on above every sequence number ever used.
    Remove {
        /// Its name
        name: String,
    },
    /// Write keys in the format of Wireshark's `esp_sa` file; needs `permissions.show_keys`
    ExportWireshark {
        /// Only of the SA with this SPI in either direction, hexadecimal
        #[arg(long, value_name = "SPI", value_parser = parse_spi)]
        spi: Option<u32>,
        /// Keys of which side: each has its own under class full
        #[arg(long, value_enum, default_value_t = crate::capture::Side::Core)]
        side: crate::capture::Side,
    },
    /// Everything about a pair of SAs; keys are never shown
    Show {
        /// SPI of either direction, hexadecimal as in `sa list` (c0ffee01 or 0xc0ffee01)
        #[arg(value_name = "SPI", value_parser = parse_spi)]
        spi: u32,
    },
}

pub(crate) fn parse_spi(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.starts_with('+') {
        return Err("expected up to eight hex digits".into());
    }
    u32::from_str_radix(digits, 16).map_err(|_| "expected up to eight hex digits".into())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ike {
    /// List IKE SAs
    List,
    /// Everything about an IKE SA; keys are not shown
    Show {
        /// Either of its SPIs, as in `ike list`
        #[arg(value_name = "SPI", value_parser = parse_ike_spi)]
        ike: u64,
    },
    /// Start an exchange with a peer in a subscriber's name, as its terminal's request would
    Initiate {
        /// The subscriber; its terminal has to be registered
        #[arg(value_name = "SUBSCRIBER")]
        subscriber: String,
        /// The peer's address
        #[arg(value_name = "PEER")]
        peer: IpAddr,
    },
    /// Replace an IKE SA by a new one, or one of its CHILD SAs; no packet is lost
    Rekey {
        /// Either of its SPIs, as in `ike list`
        #[arg(value_name = "SPI", value_parser = parse_ike_spi)]
        ike: u64,
        /// Only the CHILD SA with this SPI of either direction
        #[arg(long, value_name = "SPI", value_parser = parse_spi)]
        child: Option<u32>,
    },
    /// Prove again who we are: a new IKE SA takes over, then the old one is deleted
    Reauthenticate {
        /// Either of its SPIs, as in `ike list`
        #[arg(value_name = "SPI", value_parser = parse_ike_spi)]
        ike: u64,
    },
    /// End an IKE SA with all its CHILD SAs, or one of them; the peer is told
    Terminate {
        /// Either of its SPIs, as in `ike list`
        #[arg(value_name = "SPI", value_parser = parse_ike_spi)]
        ike: u64,
        /// Only the CHILD SA with this SPI of either direction; the last one takes its IKE SA along
        #[arg(long, value_name = "SPI", value_parser = parse_spi)]
        child: Option<u32>,
    },
    /// The last exchanges, one line per message with the names of its payloads
    Log(IkeLog),
    /// Keys for Wireshark's ikev2_decryption_table; only while debug.key_log is configured
    Keys {
        /// Either SPI of one IKE SA; all of them without it
        #[arg(value_name = "SPI", value_parser = parse_ike_spi)]
        ike: Option<u64>,
    },
}

/// `towpath ike log`.
#[derive(Debug, Args)]
pub(crate) struct IkeLog {
    /// Go on with what comes, until interrupted
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Lines of what happened before (default 200; the daemon keeps its last 4,096 events)
    #[arg(long, short = 'n', value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
    /// Only of this subscriber
    #[arg(long, value_name = "NAME")]
    pub(crate) subscriber: Option<String>,
    /// Only with this peer
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) peer: Option<std::net::IpAddr>,
    /// Only of the IKE SA with this SPI, either of a live one, ours of one that ended
    #[arg(long, value_name = "SPI", value_parser = parse_ike_spi)]
    pub(crate) sa: Option<u64>,
}

fn parse_ike_spi(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let digits = digits.trim_end_matches("_i").trim_end_matches("_r");
    match u64::from_str_radix(digits, 16) {
        Ok(spi) if spi != 0 && !digits.starts_with('+') => Ok(spi),
        _ => Err("expected up to sixteen hex digits, not all zero".into()),
    }
}

/// `towpath stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Show again and again, with rates, until interrupted
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
    /// In the text format of Prometheus, with flows summed up by subscriber
    #[arg(long, conflicts_with = "watch")]
    pub(crate) prometheus: bool,
    /// Show counters that are zero as well
    #[arg(long)]
    pub(crate) all: bool,
}

/// `towpath events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on until interrupted; the default
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Stop after this many events
    #[arg(long, short = 'n', value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Read the configuration and all it refers to, and say what is wrong
    Check,
    /// Print a configuration with every key, its default and what it means
    Example,
}

/// `towpath unload`.
#[derive(Debug, Args)]
pub(crate) struct Unload {
    /// Where maps and links are pinned, instead of `gateway.pin_dir` of the configuration
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) pin_dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn spis_are_hexadecimal() {
        assert_eq!(parse_spi("0xc0ffee01"), Ok(0xc0ff_ee01));
        assert_eq!(parse_spi("100"), Ok(0x100));
        for text in ["", "0x", "+1", "123456789", "spi"] {
            assert!(parse_spi(text).is_err(), "{text}");
        }
    }
}
