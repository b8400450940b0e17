//! `towpath subscriber add`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use towpath_base::credentials::Credentials;
use towpath_base::profile::{
    Attachment, Identification, IkeId, PeerPolicy, ServiceProfile, Subscriber, SubscriberSecrets,
};
use towpath_base::sa::{Class, EspSuite, Lifetime, Mode};
use towpath_base::selector::Prefix;
use towpath_base::{SecretKey, SubscriberHandle};
use towpath_telemetry::admin::{Record, Reply, SubscriberRequest};
use towpath_terminal::config::{Action, MAX_ADDRESSES};
use towpath_terminal::{Ksub, LevelConfig, PolicyConfig, PortRange, Protocol, TerminalConfig};

use super::credential::CredentialDocument;
use super::secret::{self, PrivateFile};
use super::{DEFAULT_OPERATOR, SubscriberDocument, transfer, unexpected};
use crate::backend::Backend;
use crate::cli::Common;
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::output;

const AFTER: &str = "\
Examples:
  A terminal that talks IPsec with one peer; its key is drawn and written to the terminal's configuration:
    towpath subscriber add alice --address 10.77.1.2 --address fd77:1::2 --nai alice@example.net \\
        --peer 10.77.9.2 --remote-id peer.example.net --psk-file alice.psk --terminal-config alice.toml

  Tunnel mode, no key at the gateway, pre-shared key from a pipe:
    pass show bob | towpath subscriber add bob --operator north --address 10.77.2.0/24 \\
        --peer 192.0.2.0/24 --mode tunnel --class none --psk-stdin --ksub-file bob.key

  A certificate for the terminal, and an authority that certifies its peer:
    towpath subscriber add carol --address 10.77.3.2 --local-id carol.example.net --peer 10.77.9.2 \\
        --remote-id peer.example.net --cert carol.pem --key carol.key --ca authority.pem \\
        --terminal-config carol.toml

Peers with different settings go into a file: see `towpath subscriber import`.";

/// Options of a new subscriber.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
#[command(group = ArgGroup::new("psk").args(["psk_file", "psk_stdin"]))]
#[command(group = ArgGroup::new("credential").args(["psk_file", "psk_stdin", "cert", "authorities"]).multiple(true))]
pub(crate) struct Add {
    /// Name, unique within the operator
    name: String,
    /// Operator (MVNO) it belongs to
    #[arg(long, default_value = DEFAULT_OPERATOR, env = "TOWPATH_OPERATOR")]
    operator: String,
    /// Address or prefix the terminal may have; several are allowed
    #[arg(long = "address", required = true, value_name = "PREFIX")]
    addresses: Vec<Prefix>,
    /// Divert its messages always, not only while the terminal is registered
    #[arg(long)]
    fixed: bool,
    /// Network access identifier (RFC 7542)
    #[arg(long)]
    nai: Option<String>,
    /// Telephone number (E.164)
    #[arg(long, value_name = "NUMBER")]
    telephone: Option<String>,
    /// Entry in an external authentication database
    #[arg(long, value_name = "ENTRY")]
    aaa_entry: Option<String>,

    /// Peer, or prefix of peers, to negotiate with; several are allowed and share the options below
    #[arg(
        long = "peer",
        value_name = "PREFIX",
        requires = "credential",
        help_heading = "Key exchange"
    )]
    peers: Vec<Prefix>,
    /// File with the pre-shared key; a line feed at its end does not count
    #[arg(long, value_name = "FILE", requires = "peers", help_heading = "Key exchange")]
    psk_file: Option<PathBuf>,
    /// Read the pre-shared key from standard input
    #[arg(long, requires = "peers", help_heading = "Key exchange")]
    psk_stdin: bool,
    /// File with the terminal's certificate and those between it and what the peer trusts, PEM
    #[arg(long, value_name = "FILE", requires_all = ["peers", "key"], help_heading = "Key exchange")]
    cert: Option<PathBuf>,
    /// File with the certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert", help_heading = "Key exchange")]
    key: Option<PathBuf>,
    /// File with authorities the peer's certificate must come from, PEM; several are allowed
    #[arg(
        long = "ca",
        value_name = "FILE",
        requires = "peers",
        help_heading = "Key exchange"
    )]
    authorities: Vec<PathBuf>,
    /// File with revocation lists of these authorities, PEM; several are allowed
    #[arg(
        long = "crl",
        value_name = "FILE",
        requires = "authorities",
        help_heading = "Key exchange"
    )]
    revocation_lists: Vec<PathBuf>,
    /// Name of a post-quantum pre-shared key (RFC 8784)
    #[arg(long, value_name = "NAME", requires_all = ["peers", "ppk_file"], help_heading = "Key exchange")]
    ppk_id: Option<String>,
    /// File with that key, 32 bytes or more
    #[arg(long, value_name = "FILE", requires = "ppk_id", help_heading = "Key exchange")]
    ppk_file: Option<PathBuf>,
    /// Refuse peers that do not use it
    #[arg(long, requires = "ppk_id", help_heading = "Key exchange")]
    ppk_required: bool,
    /// Identity shown as the terminal's (address, name, user@host, C=CH, CN=host; fqdn:, email:, keyid:HEX, dn:HEX)
    /// [default: the NAI]
    #[arg(long, value_name = "ID", value_parser = parse_id, help_heading = "Key exchange")]
    local_id: Option<IkeId>,
    /// Identity the peer must prove [default: any]
    #[arg(long, value_name = "ID", value_parser = parse_id, help_heading = "Key exchange")]
    remote_id: Option<IkeId>,
    /// IKE proposals in order of preference, strongSwan names [default: keyserver.ike_proposals]
    #[arg(long, value_delimiter = ',', value_name = "PROPOSAL,...", value_parser = parse_ike, help_heading = "Key exchange")]
    ike: Vec<String>,
    /// ESP suites in order of preference: aes128gcm16, aes256gcm16, aes128-sha256, aes256-sha256
    /// [default: keyserver.esp_suites]
    #[arg(long, value_delimiter = ',', value_name = "SUITE,...", value_parser = parse_esp, help_heading = "Key exchange")]
    esp: Vec<EspSuite>,
    /// Ask for 64-bit sequence numbers
    #[arg(long, help_heading = "Key exchange")]
    esn: bool,
    /// IPsec mode
    #[arg(long, default_value = "transport", value_parser = parse_mode, value_name = "transport|tunnel", help_heading = "Key exchange")]
    mode: Mode,
    /// What the gateway may do: `full`: open and re-seal; `none`: pass, it gets no key
    #[arg(long, default_value = "full", value_parser = parse_class, value_name = "full|none", help_heading = "Key exchange")]
    class: Class,
    /// Another class for connections whose sockets have this number as their mark; several are allowed
    #[arg(long = "level", value_name = "LEVEL=CLASS", value_parser = parse_level, help_heading = "Key exchange")]
    levels: Vec<LevelClass>,
    /// Seconds after which an ESP SA is to be replaced; 0: never
    #[arg(
        long,
        default_value_t = 3000,
        value_name = "SECONDS",
        help_heading = "Key exchange"
    )]
    soft_seconds: u32,
    /// Seconds after which an ESP SA is gone; 0: never
    #[arg(
        long,
        default_value_t = 3600,
        value_name = "SECONDS",
        help_heading = "Key exchange"
    )]
    hard_seconds: u32,

    /// File with the subscriber key, 64 hex digits; otherwise one is drawn
    #[arg(long, value_name = "FILE", help_heading = "Terminal")]
    ksub_file: Option<PathBuf>,
    /// Write the terminal's configuration, with handle and key, to this new file, mode 0600
    #[arg(long, value_name = "FILE", help_heading = "Terminal")]
    terminal_config: Option<PathBuf>,
    /// Interface of the terminal towards the network
    #[arg(long, default_value = "eth0", value_name = "NAME", help_heading = "Terminal")]
    terminal_interface: String,
    /// Where the terminal keeps what has to survive a restart [default: /var/lib/towpath/NAME.state]
    #[arg(long, value_name = "FILE", help_heading = "Terminal")]
    terminal_state: Option<PathBuf>,
}

fn parse_id(text: &str) -> Result<IkeId, String> {
    if text.is_empty() || text.len() > 255 {
        return Err("expected 1 to 255 bytes".into());
    }
    Ok(IkeId::from_text(text))
}

fn parse_ike(text: &str) -> Result<String, String> {
    super::check_ike_proposal(text).map(|()| text.to_owned())
}

fn names<T: ToString>(all: &[T]) -> String {
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    format!("expected one of {}", all.join(", "))
}

fn parse_esp(text: &str) -> Result<EspSuite, String> {
    text.parse().map_err(|_| names(EspSuite::ALL))
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    let mode = text.parse().ok();
    mode.filter(|mode| Mode::NEGOTIATED.contains(mode))
        .ok_or_else(|| names(Mode::NEGOTIATED))
}

/// A sensitivity level and what the gateway may do at it.
#[derive(Debug, Clone, Copy)]
struct LevelClass {
    level: u8,
    class: Class,
}

fn parse_level(text: &str) -> Result<LevelClass, String> {
    let parts = text.split_once('=').and_then(|(level, class)| {
        let level = level.parse().ok().filter(|level| *level != 0)?;
        Some(LevelClass {
            level,
            class: parse_class(class).ok()?,
        })
    });
    parts.ok_or_else(|| "expected a level of 1 to 255 and its class, as in 5=none".into())
}

impl Add {
    /// Every peer at every level, those applications choose first.
    fn policies(&self) -> impl Iterator<Item = (Prefix, LevelClass)> + '_ {
        let all = LevelClass {
            level: 0,
            class: self.class,
        };
        let levels = self.levels.iter().copied().chain([all]);
        levels.flat_map(|level| self.peers.iter().map(move |peer| (*peer, level)))
    }
}

fn parse_class(text: &str) -> Result<Class, String> {
    match text.parse() {
        Ok(class @ (Class::Full | Class::None)) => Ok(class),
        _ => Err(names(&[Class::Full, Class::None])),
    }
}

pub(super) fn run(common: &Common, args: Add) -> Outcome {
    if args.ksub_file.is_none() && args.terminal_config.is_none() {
        return Err(Failure::usage(
            "the subscriber key would be drawn and lost: expected --terminal-config FILE to write it to, or \
             --ksub-file FILE to read it from",
        ));
    }
    let ksub = match &args.ksub_file {
        Some(path) => secret::ksub_file(path).map_err(Failure::Usage)?,
        None => secret::draw_ksub()?,
    };
    let record = record(common, &args, &ksub)?;
    let mut file = args
        .terminal_config
        .as_deref()
        .map(PrivateFile::create)
        .transpose()?;
    if file.is_some() {
        // Checked before anything is stored; the handle comes later.
        terminal_config(common, &args, SubscriberHandle(1), &ksub)?;
    }
    let reply = Backend::open(common)?.request(SubscriberRequest::Add(Box::new(record)))?;
    let Reply::Subscriber(added) = reply else {
        return Err(unexpected(&reply));
    };
    let subscriber = added.subscriber;
    if let Some(mut file) = file.take() {
        file.write(&terminal_config(common, &args, subscriber.handle, &ksub)?)?;
        file.keep()?;
    }
    if common.json {
        let record = Record {
            subscriber,
            secrets: None,
        };
        return output::json(&SubscriberDocument::from_record(record, None));
    }
    let mut text = format!(
        "added subscriber `{}` of operator `{}`, handle {}\n",
        subscriber.name, subscriber.operator, subscriber.handle
    );
    if let Some(path) = &args.terminal_config {
        text += &format!(
            "on the terminal: towpath terminal --config {}\n",
            Path::new(path.file_name().unwrap_or_default()).display()
        );
    }
    output::print(&text)
}

fn record(common: &Common, args: &Add, ksub: &SecretKey<32>) -> Outcome<Record> {
    let defaults = transfer::defaults(common)?;
    let mut identification = Identification {
        telephone: args.telephone.clone(),
        nai: args.nai.clone(),
        aaa_entry: args.aaa_entry.clone(),
    };
    if identification == Identification::default() {
        identification.nai = Some(format!("{}@{}", args.name, args.operator));
    }
    let credentials = credentials(args)?;
    let local_id = match (&args.local_id, &identification.nai) {
        (Some(id), _) => id.clone(),
        (None, Some(nai)) => IkeId::from_text(nai),
        (None, None) if args.peers.is_empty() => IkeId::from_text(&args.name),
        (None, None) => {
            return Err(Failure::usage(
                "expected --local-id ID, as there is no --nai to take",
            ));
        }
    };
    let or = |given: &[String], default: Vec<String>| if given.is_empty() { default } else { given.to_vec() };
    let policy = |(peer, LevelClass { level, class }): (Prefix, LevelClass)| PeerPolicy {
        peer,
        local_id: local_id.clone(),
        remote_id: args.remote_id.clone(),
        ike_proposals: or(&args.ike, defaults.ike_proposals.clone()),
        esp_suites: if args.esp.is_empty() {
            defaults.esp_suites.clone()
        } else {
            args.esp.clone()
        },
        esn: args.esn,
        mode: args.mode,
        class,
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        lifetime: Lifetime {
            soft_seconds: args.soft_seconds,
            hard_seconds: args.hard_seconds,
            soft_bytes: 0,
            hard_bytes: 0,
        },
        level,
    };
    let subscriber = Subscriber {
        handle: SubscriberHandle(0),
        name: args.name.clone(),
        operator: args.operator.clone(),
        identification,
        addresses: args.addresses.clone(),
        attachment: if args.fixed {
            Attachment::Fixed
        } else {
            Attachment::Registered
        },
        profile: ServiceProfile::standard(),
        peers: args.policies().map(policy).collect(),
    };
    let secrets = SubscriberSecrets {
        ksub: ksub.clone(),
        credentials: vec![credentials; args.policies().count()],
    };
    towpath_registry::validate(&subscriber, &secrets)?;
    Ok(Record {
        subscriber,
        secrets: Some(secrets),
    })
}

/// What the terminal and its peers prove themselves with.
fn credentials(args: &Add) -> Outcome<Credentials> {
    let psk = match (&args.psk_file, args.psk_stdin) {
        (Some(path), _) => Some(secret::psk_file(path).map_err(Failure::Usage)?),
        (None, true) => Some(secret::psk_stdin().map_err(Failure::Usage)?),
        (None, false) => None,
    };
    let document = CredentialDocument {
        certificate_file: args.cert.clone(),
        key_file: args.key.clone(),
        authority_files: args.authorities.clone(),
        revocation_list_files: args.revocation_lists.clone(),
        ppk_id: args.ppk_id.clone(),
        ppk_file: args.ppk_file.clone(),
        ppk_required: args.ppk_required,
        ..CredentialDocument::default()
    };
    document
        .into_credentials(psk)
        .map_err(|(key, problem)| Failure::usage(format!("{key}: {problem}")))
}

/// The terminal's configuration file.
fn terminal_config(
    common: &Common,
    args: &Add,
    handle: SubscriberHandle,
    ksub: &SecretKey<32>,
) -> Outcome<zeroize::Zeroizing<String>> {
    let hosts: Vec<_> = args.addresses.iter().filter(|prefix| prefix.is_host()).collect();
    // Where the terminal's address is not known here, it takes those of its interface.
    let known = hosts.len() == args.addresses.len() && hosts.len() <= MAX_ADDRESSES;
    let state = format!("/var/lib/towpath/{}.state", args.name);
    let config = TerminalConfig {
        name: args.name.clone(),
        handle: handle.0,
        ksub: Some(Ksub::new(ksub.clone())),
        ksub_file: None,
        interface: args.terminal_interface.clone(),
        addresses: hosts
            .iter()
            .filter(|_| known)
            .map(|prefix| prefix.address())
            .collect(),
        backend: towpath_terminal::Backend::Auto,
        inbound_filter: true,
        tun: "towpath0".into(),
        mtu: None,
        reserved_spi: Config::load_or_default(&common.config)?.gateway.reserved_spi,
        state_file: args.terminal_state.clone().unwrap_or_else(|| state.into()),
        control_socket: Some(format!("/run/towpath/{}.sock", args.name).into()),
        debug_key_log: None,
        // A choice goes before what is for everything.
        policies: args
            .policies()
            .map(|(peer, LevelClass { level, .. })| PolicyConfig {
                peer,
                protocol: Protocol::default(),
                ports: PortRange::default(),
                local_ports: PortRange::default(),
                action: Action::Protect,
                gateway: None,
                level: Some(level).filter(|level| *level != 0),
            })
            .collect(),
        levels: args
            .levels
            .iter()
            .map(|LevelClass { level, .. }| LevelConfig {
                level: *level,
                mark: None,
                mask: u32::MAX,
                tun: None,
            })
            .collect(),
    };
    config
        .validate()
        .map_err(|error| Failure::usage(format!("the terminal's configuration would be wrong: {error}")))?;
    let text = toml::to_string(&config).map_err(Failure::runtime)?;
    Ok(zeroize::Zeroizing::new(format!(
        "# Terminal `{}` of operator `{}`. Holds its key: keep it to yourself.\n{text}",
        args.name, args.operator
    )))
}
