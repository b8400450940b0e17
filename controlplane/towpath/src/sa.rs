//! `towpath sa add|remove`: SAs whose keys people bring (manual keying).

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use towpath_base::Spi;
use towpath_base::key::Key;
use towpath_base::manual::{ManualKeys, ManualSa};
use towpath_base::sa::{Class, EspKeys, EspSuite, Lifetime, Mode, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_telemetry::admin::{
    ManualRequest, ManualSaInfo, Reply, Request, SubscriberName, SubscriberRequest,
};
use zeroize::Zeroizing;

use crate::backend::daemon;
use crate::cli::{Common, parse_spi};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Longest key file, bytes.
const MAX_KEY_FILE: u64 = 16 << 10;

const KEYS_HELP: &str = "\
A key file is a list of NAME = \"HEX\", one a line; # begins a comment. Keys are cipher key, salt and integrity
key in this order, as many bytes as the suite wants. Names decide what the gateway is given:

  peer_in, peer_out, segment_in, segment_out   class full, each segment under keys of its own
  in, out                                      class full, both ends and the gateway share them; or class inspect,
                                               then the cipher keys alone
  none at all                                  class none

`in` is towards the terminal, `out` towards the peer. No key may serve two senders. Under shared keys a
counter-mode suite (GCM, CCM, ChaCha20, CTR) is intervened in only while the other sender provably stays in its
half of the IV space.";

/// `towpath sa add`.
#[derive(Debug, Args)]
#[command(after_long_help = KEYS_HELP)]
pub(crate) struct Add {
    /// Unique name
    name: String,
    /// Subscriber whose terminal it is
    #[arg(long, value_name = "NAME")]
    subscriber: String,
    /// Operator of the subscriber
    #[arg(long, default_value = "default")]
    operator: String,
    /// Terminal's address; the subscriber's when it has one address of the peer's family
    #[arg(long, value_name = "ADDRESS")]
    terminal: Option<IpAddr>,
    /// Peer's address
    #[arg(long, value_name = "ADDRESS")]
    peer: IpAddr,
    /// SPI of packets the terminal receives, hexadecimal
    #[arg(long, value_name = "SPI", value_parser = parse_spi)]
    spi_in: u32,
    /// SPI of packets the terminal sends, hexadecimal
    #[arg(long, value_name = "SPI", value_parser = parse_spi)]
    spi_out: u32,
    /// Algorithms, strongSwan's names: aes256gcm16, aes128ctr-sha256, chacha20poly1305, ...
    #[arg(long, value_parser = named::<EspSuite>)]
    suite: EspSuite,
    /// transport or tunnel
    #[arg(long, default_value = "transport", value_parser = named::<Mode>)]
    mode: Mode,
    /// 64-bit sequence numbers
    #[arg(long)]
    esn: bool,
    /// Packets the replay windows cover, 64 to 4096
    #[arg(long, default_value_t = 960, value_name = "PACKETS")]
    replay_window: u16,
    /// In UDP between these ports, the terminal's first
    #[arg(long, value_name = "PORT:PORT", value_parser = parse_encap)]
    encap: Option<UdpEncap>,
    /// What the gateway may do: full, inspect or none; else what the keys say
    #[arg(long, value_parser = named::<Class>)]
    class: Option<Class>,
    /// File with the keys, `-` for standard input
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// One key on the command line, where other users of this machine can see it
    #[arg(long, value_name = "NAME=HEX")]
    key: Vec<String>,
    /// Terminal's side of the traffic, its address when absent: `ADDRESS[/LENGTH] [proto N] [ports A-B]`
    #[arg(long, value_name = "SELECTOR")]
    local_ts: Vec<TrafficSelector>,
    /// Peer's side of the traffic, its address when absent
    #[arg(long, value_name = "SELECTOR")]
    remote_ts: Vec<TrafficSelector>,
    /// Seconds after which the SA is gone; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    hard_seconds: u32,
    /// Bytes after which the SA is gone; 0 for never
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    hard_bytes: u64,
}

fn named<T: std::str::FromStr + Names>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("expected one of {}", T::names()))
}

/// The names a table knows.
trait Names {
    fn names() -> String;
}

macro_rules! names {
    ($($table:ty),+) => {
        $(impl Names for $table {
            fn names() -> String {
                let names: Vec<&str> = Self::ALL.iter().map(|value| value.name()).collect();
                names.join(", ")
            }
        })+
    };
}

names!(EspSuite, Mode, Class);

fn parse_encap(text: &str) -> Result<UdpEncap, String> {
    let ports = text
        .split_once(':')
        .and_then(|(local, remote)| Some((local.parse().ok()?, remote.parse().ok()?)));
    match ports {
        Some((local_port, remote_port)) if local_port != 0 && remote_port != 0 => Ok(UdpEncap {
            local_port,
            remote_port,
        }),
        _ => Err("expected PORT:PORT, 1 to 65535 each".into()),
    }
}

/// Adds a manual SA.
pub(crate) fn add(common: &Common, args: Add) -> Outcome {
    let keys = keys(&args)?;
    let mut client = daemon(common)?;
    let terminal = match args.terminal {
        Some(terminal) => terminal,
        None => only_address(&mut client, &args)?,
    };
    let sa = ManualSa {
        id: 0,
        name: args.name,
        operator: args.operator,
        subscriber: args.subscriber,
        terminal,
        peer: args.peer,
        spi_in: Spi(args.spi_in),
        spi_out: Spi(args.spi_out),
        suite: args.suite,
        mode: args.mode,
        esn: args.esn,
        replay_window: args.replay_window,
        encap: args.encap,
        local_ts: args.local_ts,
        remote_ts: args.remote_ts,
        lifetime: Lifetime {
            hard_seconds: args.hard_seconds,
            hard_bytes: args.hard_bytes,
            ..Lifetime::default()
        },
        keys,
    };
    sa.check().map_err(Failure::usage)?;
    let reply = client.request(&Request::Manual(ManualRequest::Add(Box::new(sa))))?;
    show(common, reply, "added")
}

/// Removes a manual SA.
pub(crate) fn remove(common: &Common, name: String) -> Outcome {
    let reply = daemon(common)?.request(&Request::Manual(ManualRequest::Remove { name }))?;
    show(common, reply, "removed")
}

/// Lists manual SAs.
pub(crate) fn list(common: &Common, with_keys: bool) -> Outcome {
    let request = Request::Manual(ManualRequest::List { with_keys });
    let sas = match daemon(common)?.request(&request)? {
        Reply::ManualSas(sas) => sas,
        reply => return Err(crate::show::unexpected(&reply)),
    };
    if common.json {
        return output::json(&sas);
    }
    let mut table = output::table(&[
        "NUMBER",
        "NAME",
        "SUBSCRIBER",
        "TERMINAL",
        "PEER",
        "SPI IN",
        "SPI OUT",
        "CLASS",
        "SUITE",
        "MODE",
    ]);
    for sa in &sas {
        table.add_row([
            sa.id.to_string(),
            sa.name.clone(),
            sa.subscriber.clone(),
            sa.terminal.to_string(),
            sa.peer.to_string(),
            sa.spi_in.clone(),
            sa.spi_out.clone(),
            class(sa),
            sa.suite.to_string(),
            sa.mode.to_string(),
        ]);
    }
    output::print(&output::render(&table))?;
    for sa in sas.iter().filter(|sa| sa.keys.is_some()) {
        output::print(&shown_keys(sa))?;
    }
    Ok(())
}

fn class(sa: &ManualSaInfo) -> String {
    format!("{}{}", sa.class, if sa.shared { ", shared keys" } else { "" })
}

fn shown_keys(sa: &ManualSaInfo) -> String {
    let pair = |keys: &EspKeys| output::hex(keys.cipher.expose()) + &output::hex(keys.integrity.expose());
    let lines = match &sa.keys {
        None | Some(ManualKeys::None) => Vec::new(),
        Some(ManualKeys::Segments {
            peer_in,
            peer_out,
            segment_in,
            segment_out,
        }) => vec![
            ("peer_in", pair(peer_in)),
            ("peer_out", pair(peer_out)),
            ("segment_in", pair(segment_in)),
            ("segment_out", pair(segment_out)),
        ],
        Some(ManualKeys::Shared { keys_in, keys_out }) => {
            vec![("in", pair(keys_in)), ("out", pair(keys_out))]
        }
        Some(ManualKeys::Inspect {
            cipher_in,
            cipher_out,
        }) => vec![
            ("in", output::hex(cipher_in.expose())),
            ("out", output::hex(cipher_out.expose())),
        ],
    };
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, hex)| format!("{name} = \"{hex}\"\n"))
        .collect();
    format!("\n# {}\n{}", sa.name, lines.concat())
}

fn show(common: &Common, reply: Reply, done: &str) -> Outcome {
    let Reply::ManualSas(sas) = reply else {
        return Err(crate::show::unexpected(&reply));
    };
    if common.json {
        return output::json(&sas);
    }
    for sa in &sas {
        output::print(&format!(
            "SA {} `{}` {done}: {} with {}, spi in {}, out {}, {} {}, class {}\n",
            sa.id,
            sa.name,
            sa.terminal,
            sa.peer,
            sa.spi_in,
            sa.spi_out,
            sa.suite,
            sa.mode,
            class(sa)
        ))?;
    }
    Ok(())
}

/// The subscriber's address, if it has one of the peer's family.
fn only_address(client: &mut towpath_telemetry::admin::Client, args: &Add) -> Outcome<IpAddr> {
    let name = SubscriberName {
        operator: args.operator.clone(),
        name: args.subscriber.clone(),
    };
    let reply = client.request(&Request::Subscriber(SubscriberRequest::Show(name)))?;
    let Reply::Subscriber(attached) = reply else {
        return Err(crate::show::unexpected(&reply));
    };
    let mut hosts = attached
        .subscriber
        .addresses
        .iter()
        .filter(|prefix| prefix.is_host() && prefix.address().is_ipv4() == args.peer.is_ipv4());
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => Ok(host.address()),
        _ => Err(Failure::usage(
            "--terminal: is missing, and the subscriber has not exactly one address of the peer's family",
        )),
    }
}

/// Keys by name, from file and command line.
fn keys(args: &Add) -> Outcome<ManualKeys> {
    let mut found: BTreeMap<String, Zeroizing<Vec<u8>>> = BTreeMap::new();
    if let Some(path) = &args.keys {
        let (what, text) = read(path)?;
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                let place = format!("{what}, line {}", number + 1);
                take(&mut found, &place, line)?;
            }
        }
    }
    for text in &args.key {
        take(&mut found, "--key", text)?;
    }
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let whole = |name: &str| -> Outcome<EspKeys> {
        let bytes = found.get(name).map(|bytes| bytes.as_slice()).unwrap_or_default();
        EspKeys::split(args.suite, bytes).ok_or_else(|| {
            Failure::usage(format!(
                "key {name}: is {} bytes, expected {} for {}",
                bytes.len(),
                args.suite.key_material_len(),
                args.suite
            ))
        })
    };
    let cipher =
        |name: &str| -> Outcome<Key> {
            let bytes = found.get(name).map(|bytes| bytes.as_slice()).unwrap_or_default();
            let wanted = args.suite.cipher_key_len() + args.suite.salt_len();
            Key::from_slice(bytes).filter(|key| key.len() == wanted).ok_or_else(|| {
            Failure::usage(format!(
                "key {name}: is {} bytes, expected {wanted}: class inspect takes the cipher key alone",
                bytes.len()
            ))
        })
        };
    let keys = match (names.as_slice(), args.class) {
        ([], None | Some(Class::None)) => ManualKeys::None,
        (["in", "out"], Some(Class::Inspect)) => ManualKeys::Inspect {
            cipher_in: cipher("in")?,
            cipher_out: cipher("out")?,
        },
        (["in", "out"], None | Some(Class::Full)) => ManualKeys::Shared {
            keys_in: whole("in")?,
            keys_out: whole("out")?,
        },
        (["peer_in", "peer_out", "segment_in", "segment_out"], None | Some(Class::Full)) => {
            ManualKeys::Segments {
                peer_in: whole("peer_in")?,
                peer_out: whole("peer_out")?,
                segment_in: whole("segment_in")?,
                segment_out: whole("segment_out")?,
            }
        }
        (given, class) => {
            let class = class.map_or("no class".into(), |class| format!("class {class}"));
            return Err(Failure::usage(format!(
                "keys: {} with {class}, expected in and out; or peer_in, peer_out, segment_in and segment_out (class \
                 full); or none (class none)",
                if given.is_empty() {
                    "none given".into()
                } else {
                    given.join(", ")
                }
            )));
        }
    };
    Ok(keys)
}

fn read(path: &std::path::Path) -> Outcome<(String, Zeroizing<String>)> {
    let mut text = Zeroizing::new(String::new());
    let what = if path.as_os_str() == "-" {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let outcome = if path.as_os_str() == "-" {
        std::io::stdin()
            .lock()
            .take(MAX_KEY_FILE)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut text))
    };
    outcome.map_err(|error| Failure::usage(format!("{what}: cannot be read: {error}")))?;
    Ok((what, text))
}

/// `NAME = "HEX"`, quotes optional. The value is in no message.
fn take(found: &mut BTreeMap<String, Zeroizing<Vec<u8>>>, place: &str, text: &str) -> Outcome {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Failure::usage(format!("{place}: expected NAME = \"HEX\"")))?;
    let (name, value) = (name.trim(), value.trim().trim_matches('"'));
    if !["in", "out", "peer_in", "peer_out", "segment_in", "segment_out"].contains(&name) {
        return Err(Failure::usage(format!(
            "{place}: `{}` is no key's name, expected in, out, peer_in, peer_out, segment_in or segment_out",
            name.escape_debug()
        )));
    }
    let value = value.strip_prefix("0x").unwrap_or(value);
    let bytes = crate::subscriber::unhex(value).ok_or_else(|| {
        Failure::usage(format!(
            "{place}: key {name}: expected an even number of hex digits"
        ))
    })?;
    if found.insert(name.to_owned(), bytes).is_some() {
        return Err(Failure::usage(format!("{place}: key {name} is given twice")));
    }
    Ok(())
}
