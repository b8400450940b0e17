//! `towpath sa add|remove`: SAs whose keys people bring (manual keying).

mod keys;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use towpath_base::Spi;
use towpath_base::manual::ManualSa;
use towpath_base::sa::{Class, EspIntegrity, EspSuite, Lifetime, Mode, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_telemetry::admin::{
    ManualRequest, ManualSaInfo, Reply, Request, SubscriberName, SubscriberRequest,
};

use crate::backend::daemon;
use crate::cli::{Common, parse_spi};
use crate::failure::{Failure, Outcome};
use crate::output;

const KEYS_HELP: &str = "\
A key file is a list of NAME = \"HEX\", one a line; # begins a comment. Keys are cipher key, salt and integrity
key in this order, as many bytes as the suite wants. Names decide what the gateway is given:

  peer_in, peer_out, segment_in, segment_out   class full, each segment under keys of its own
  in, out                                      class full, both ends and the gateway share them; or class inspect,
                                               then the cipher keys alone
  none at all                                  class none

For AH the names begin with ah_: ah_peer_in, ah_peer_out, ah_segment_in, ah_segment_out; or ah_in and ah_out, which
both ends and the gateway share. ESP inside AH (--suite and --ah) takes the four keys of each. AH has no class
inspect: it hides nothing.

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
    /// ESP with these algorithms, strongSwan's names: aes256gcm16, aes128ctr-sha256, chacha20poly1305, ...
    #[arg(long, value_parser = named::<EspSuite>, required_unless_present = "ah")]
    suite: Option<EspSuite>,
    /// AH with this HMAC; with --suite, too: ESP inside AH
    #[arg(long, value_name = "HASH", value_parser = named::<EspIntegrity>, conflicts_with = "encap")]
    ah: Option<EspIntegrity>,
    /// Over IPv4, too, AH of a multiple of 8 bytes: what a Linux kernel expects unless told `flag align4`
    #[arg(long, requires = "ah")]
    ah_align8: bool,
    /// ESP inside AH: ESP's own SPI of packets the terminal receives, AH's when absent
    #[arg(long, value_name = "SPI", value_parser = parse_spi, requires_all = ["ah", "suite"])]
    esp_spi_in: Option<u32>,
    /// ESP inside AH: ESP's own SPI of packets the terminal sends, AH's when absent
    #[arg(long, value_name = "SPI", value_parser = parse_spi, requires_all = ["ah", "suite"])]
    esp_spi_out: Option<u32>,
    /// transport, tunnel, or wildcard: either, packet by packet
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
    /// Seconds after which people are told that new keys are wanted; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    soft_seconds: u32,
    /// Bytes after which people are told; 0 for never
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    soft_bytes: u64,
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

names!(EspSuite, EspIntegrity, Mode, Class);

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
    let protection = keys::protection(&args)?;
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
        mode: args.mode,
        esn: args.esn,
        replay_window: args.replay_window,
        encap: args.encap,
        local_ts: args.local_ts,
        remote_ts: args.remote_ts,
        lifetime: Lifetime {
            hard_seconds: args.hard_seconds,
            hard_bytes: args.hard_bytes,
            soft_seconds: args.soft_seconds,
            soft_bytes: args.soft_bytes,
        },
        protection,
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
        "ALGORITHMS",
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
            algorithms(sa),
            sa.mode.to_string(),
        ]);
    }
    output::print(&output::render(&table))?;
    for sa in sas.iter().filter(|sa| sa.keys.is_some()) {
        output::print(&keys::shown(sa))?;
    }
    Ok(())
}

fn class(sa: &ManualSaInfo) -> String {
    format!("{}{}", sa.class, if sa.shared { ", shared keys" } else { "" })
}

fn algorithms(sa: &ManualSaInfo) -> String {
    let names = [
        sa.suite.map(|suite| suite.to_string()),
        sa.ah.map(|integrity| format!("ah-{integrity}")),
    ];
    let names: Vec<String> = names.into_iter().flatten().collect();
    names.join(" in ")
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
            algorithms(sa),
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
