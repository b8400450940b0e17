//! The stage of the TCP benchmarks: the lab with an emulated radio link.
//!
//! ```text
//!   terminal A ─── em ─── gateway ─── peer        peer: charon with ESP in user space, TCP of this kernel
//!          └ radio link ┘        └ wire ┘
//! ```
//!
//! The peer sends, the terminal receives. Which treatment a connection gets is decided by the peer's port, so that all
//! arms share one gateway and one link.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use towpath_linkem::emulator::Setup;
use towpath_linkem::report::Report;

use crate::ebpf;
use crate::lab::net::EMULATOR_PORTS;
use crate::lab::{Family, Lab, Node, PeerKind};
use crate::linkem::{Links, Running, row};
use crate::load::{self, Download, Server};
use crate::proof::stack::{Stack, find};
use crate::sh::Cmd;

/// How a connection is treated, and with which congestion control the peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    /// Split by the gateway: CUBIC on the wire, `radio` over the radio link.
    Split,
    /// End to end, CUBIC.
    Cubic,
    /// End to end, BBR.
    Bbr,
    /// Snoop, CUBIC end to end.
    Snoop,
    /// Split with CUBIC on both sides.
    SplitCubic,
}

impl Arm {
    /// Port of idle connections; split, as the gateway's default is.
    pub(super) const HELD: u16 = 7110;

    const ALL: [Self; 5] = [Self::Split, Self::Cubic, Self::Bbr, Self::Snoop, Self::SplitCubic];

    pub(super) const fn port(self) -> u16 {
        match self {
            Self::Split => 7100,
            Self::Cubic => 7101,
            Self::Bbr => 7102,
            Self::Snoop => 7103,
            Self::SplitCubic => 7104,
        }
    }

    const fn sender(self) -> &'static str {
        match self {
            Self::Bbr => "bbr",
            _ => "cubic",
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Split => "split, radio towards the terminal, CUBIC (kernel) on the wire",
            Self::Cubic => "end to end CUBIC (kernel)",
            Self::Bbr => "end to end BBR (kernel, version 1)",
            Self::Snoop => "Snoop, end to end CUBIC (kernel)",
            Self::SplitCubic => "split, CUBIC on both sides",
        }
    }
}

/// Share of a packet on the radio link that is data: 1,500 bytes less the outer IPv4 and UDP headers, ESP's header,
/// IV, padding and tag with AES-GCM (RFC 4106), the inner IPv4 header, and TCP's with timestamps.
pub(super) const EFFICIENCY: f64 = 1386.0 / 1500.0;

/// The gateway's rules for the ports of [`Arm`].
const RULES: &str = r#"
[[relay.rule]]
peer_port = "7101-7102"
action = "pass"

[[relay.rule]]
peer_port = 7103
action = "snoop"

[[relay.rule]]
peer_port = 7104
action = "split"
terminal_congestion = "cubic"
"#;

/// A radio link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Radio {
    /// Bits per second towards the terminal.
    pub(super) rate: u64,
    pub(super) rtt: Duration,
    /// Percent of the packets towards the terminal.
    pub(super) loss: f64,
    /// Queue in bandwidth-delay products.
    pub(super) queue: f64,
    pub(super) seed: u64,
}

impl Radio {
    /// Bandwidth-delay product, bytes.
    pub(super) fn bdp(&self) -> f64 {
        self.rate as f64 / 8.0 * self.rtt.as_secs_f64()
    }

    pub(super) fn links(&self) -> Links {
        let delay = self.rtt.as_micros() / 2;
        let queue = (self.bdp() * self.queue).max(30_000.0) as u64;
        Links {
            both: format!("delay={delay}us"),
            ab: format!("rate={},queue={queue},loss={}%", self.rate, self.loss),
            ba: String::new(),
            seed: self.seed,
        }
    }
}

/// One transfer and what the link did meanwhile.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) seen: Download,
    pub(super) link: Report,
    /// Segments the peer's kernel repeated.
    pub(super) sender_repeats: u64,
    /// Shortly before its end: when, and how many segments the relay had sent again towards the terminal.
    relayed: Option<(Duration, u64)>,
}

impl Transfer {
    /// Segments sent again towards the terminal ÷ packets the link lost; `None` if the gateway did not say.
    pub(super) fn radio_repeats(&self) -> Option<f64> {
        let (at, repeats) = self.relayed?;
        let lost =
            self.link.directions[0].dropped.noise as f64 * at.as_secs_f64() / self.seen.took.as_secs_f64();
        (lost > 0.0).then_some(repeats as f64 / lost)
    }
}

/// The lab, removed when dropped.
pub(super) struct Stage {
    stack: Option<Stack>,
    _servers: Vec<Server>,
    em: String,
    ta: String,
    peer: String,
    results: PathBuf,
}

impl Stage {
    pub(super) fn new(root: &Path) -> Result<Self> {
        let object = ebpf::build(root)?;
        let lab = Lab::ephemeral_with(root, "bt", PeerKind::Libipsec, true)?;
        let (em, ta, peer) = (
            lab.net().emulator(),
            lab.net().namespace(Node::Ta),
            lab.net().namespace(Node::Peer),
        );
        row::large_windows(&ta)?;
        row::large_windows(&peer)?;
        let mut stack = Stack::start_with(lab, &object, RULES)?;
        let servers = Arm::ALL.map(|arm| Server::start(&peer, arm.port(), arm.sender()));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let ping = Cmd::line("ping -c 3 -i 0.2 -W 5 -q").arg(Node::Peer.addr(Family::V4).to_string());
        let out = stack.lab.exec(Node::Ta, &ping, Duration::from_secs(15))?;
        if !out.ok() {
            bail!(
                "no security association: {}\n{}",
                out.all(),
                stack.tail("towpath", 20)
            );
        }
        // From here on every measurement has a link of its own.
        stack.lab.stop_link()?;
        Ok(Self {
            stack: Some(stack),
            _servers: servers,
            em,
            ta,
            peer,
            results: root.join("target/bench"),
        })
    }

    pub(super) fn server(&self, arm: Arm) -> (IpAddr, u16) {
        (Node::Peer.addr(Family::V4), arm.port())
    }

    pub(super) fn terminal(&self) -> &str {
        &self.ta
    }

    /// Where results are written.
    pub(super) fn results(&self) -> &Path {
        &self.results
    }

    /// Namespace of the link emulator.
    pub(super) fn emulator(&self) -> &str {
        &self.em
    }

    pub(super) fn namespace(&self, node: Node) -> Result<String> {
        Ok(self.stack()?.lab.net().namespace(node))
    }

    /// Process id of the gateway's daemon.
    pub(super) fn daemon(&self) -> Result<u32> {
        let lab = &self.stack()?.lab;
        let daemon = lab.processes().iter().find(|process| process.name == "towpath");
        Ok(daemon.context("the daemon runs")?.pid)
    }

    fn stack(&self) -> Result<&Stack> {
        self.stack.as_ref().context("the lab is up as long as the stage")
    }

    /// Starts a link.
    pub(super) fn link(&self, links: &Links) -> Result<Running> {
        let setup = Setup {
            ports: EMULATOR_PORTS.map(str::to_owned),
            links: links.configs()?,
            seed: links.seed,
        };
        Running::start(&self.em, setup)
    }

    /// Fetches `bytes` over the link there is, for `limit` at most.
    pub(super) fn fetch(&self, arm: Arm, bytes: u64, limit: Duration) -> Result<Download> {
        load::download(&self.ta, self.server(arm), bytes, limit)
    }

    /// Fetches `bytes` over a radio link of its own, for `limit` at most.
    pub(super) fn transfer(&self, arm: Arm, radio: &Radio, bytes: u64, limit: Duration) -> Result<Transfer> {
        let link = self.link(&radio.links())?;
        let before = load::tcp_counter(&self.peer, "RetransSegs")?;
        let (seen, relayed) = thread::scope(|scope| {
            let watch = scope.spawn(|| self.repeats_shortly_before(arm, bytes, limit));
            let seen = self.fetch(arm, bytes, limit);
            (seen, watch.join().ok().flatten())
        });
        let seen = seen?;
        let sender_repeats = load::tcp_counter(&self.peer, "RetransSegs")? - before;
        let link = link.stop()?;
        let overload = link.directions.iter().map(|d| d.dropped.unwanted()).sum::<u64>();
        if overload > 0 {
            println!("bench: the emulator itself lost {overload} packets: the machine is too busy");
        }
        Ok(Transfer {
            seen,
            link,
            sender_repeats,
            relayed,
        })
    }

    /// What the gateway says of the arm's connection just before `limit`; only split ones have a side of their own.
    fn repeats_shortly_before(&self, arm: Arm, bytes: u64, limit: Duration) -> Option<(Duration, u64)> {
        if arm != Arm::Split || bytes != u64::MAX || limit < Duration::from_secs(5) {
            return None;
        }
        let start = Instant::now();
        thread::sleep(limit - Duration::from_millis(500));
        let flow = self.flow(arm)?;
        let repeats = flow.get("terminal_side")?.get("retransmits")?.as_u64()?;
        Some((start.elapsed(), repeats))
    }

    /// What the gateway says of the arm's newest connection.
    fn flow(&self, arm: Arm) -> Option<Value> {
        let flows = self.stack.as_ref()?.cli(&["flow", "list"]).ok()?;
        let flows = find(&flows, "flows")?.as_array()?;
        let number = |flow: &Value, key: &str| flow.get(key).and_then(Value::as_u64);
        flows
            .iter()
            .filter(|flow| number(flow, "network_port") == Some(arm.port().into()))
            .min_by_key(|flow| number(flow, "age_ms"))
            .cloned()
    }

    /// Runs `job` and prints what the gateway says of the arm's newest connection meanwhile.
    pub(super) fn watched<T>(&self, arm: Arm, job: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(500));
                    if let Some(flow) = self.flow(arm) {
                        println!("{}", told(&flow));
                    }
                }
            });
            let outcome = job();
            over.store(true, Ordering::Relaxed);
            outcome
        })
    }
}

/// A line about a connection.
fn told(flow: &Value) -> String {
    let number = |side: &str, key: &str| {
        let value = flow.get(side).and_then(|side| side.get(key));
        value.and_then(Value::as_f64).unwrap_or_default()
    };
    let of = |key: &str| number("terminal_side", key);
    format!(
        "bench: {:6.2} s: rtt {:.0} ms, window {:.0} kB, receiver's {:.0}, in flight {:.0}, queued {:.0}, unread {:.0}, \
         pace {:.2} Mb/s, floor {:.2} %, lost {:.2} %, repeats {:.0}, early {:.0}, timeouts {:.0}, sent {:.2} MB",
        flow.get("age_ms").and_then(Value::as_f64).unwrap_or_default() / 1e3,
        of("rtt_us") / 1e3,
        of("cwnd") / 1e3,
        of("receiver_window") / 1e3,
        of("in_flight") / 1e3,
        of("queued") / 1e3,
        number("network_side", "unread") / 1e3,
        of("pace_bps") / 1e6,
        of("loss_floor_percent"),
        of("loss_percent"),
        of("retransmits"),
        of("early_repeats"),
        of("timeouts"),
        of("bytes_sent") / 1e6,
    )
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(stack) = self.stack.take() {
            drop(stack.stop());
        }
    }
}
