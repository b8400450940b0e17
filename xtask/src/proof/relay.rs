//! `cargo xtask run --relay`: what TCP must keep through the split relay, with a real kernel's TCP at both ends and
//! ESP in class `full` on both sides of the gateway.
//!
//! ```text
//!   ta (agent, kernel TCP) ══ segment keys ══ gw: open, relay, seal ══ peer's keys ══ peer (charon, kernel TCP)
//! ```
//!
//! `programs` are the ones people use; the rest is done by `cargo xtask pump`, the same program at both ends.

mod programs;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use comfy_table::{ContentArrangement, Table, presets};

use super::nonces::Nonces;
use super::report::Report;
use super::stack::{Stack, programs as programs_folder};
use super::{Args, runner};
use crate::lab::state::wait_for;
use crate::lab::{Family, Lab, Node, Options, PeerKind};
use crate::sh::Cmd;
use crate::ui::{Step, step};

/// How long one check may take, its own pauses not counted.
const LIMIT: Duration = Duration::from_secs(240);
/// How long a receiver does not read, seconds.
const CLOSED: u64 = 60;
/// How long it does not read while a path shrinks, seconds.
const SHRINKING: u64 = 6;
/// What the path is made to carry in mid-flow, bytes; before it is 1500.
const NARROW: u16 = 1300;
/// Port of the server that answers nobody.
const DEAF: u16 = 7009;
/// SYNs of a flood.
const SYNS: u32 = 20_000;
/// The daemon may grow this much from one flood to the next, KiB: what the allocator keeps, no state.
const GROWTH: u64 = 16 << 10;

/// One thing to show, for one family.
struct Check {
    name: &'static str,
    work: fn(&Place<'_>) -> Result<String>,
    /// Families it is for.
    families: &'static [Family],
}

const BOTH: &[Family] = &Family::ALL;

const CHECKS: &[Check] = &[
    check("1,000 connections mixed", |p| {
        p.pump("mixed", &["100000", "--count", "1000", "--at-once", "100"])
    }),
    check("half-close", |p| p.pump("half", &["2000000"])),
    check("reset", |p| p.pump("reset", &["100000"]).map(|_| "ok".to_owned())),
    check("urgent, out of band and inline", |p| {
        p.pump("urgent", &["20000"]).map(|_| "both ways".to_owned())
    }),
    check("window closed for 60 s, out", |p| p.closed("pause")),
    check("window closed for 60 s, in", |p| p.closed("sip")),
    check("path shrinks silently, core", |p| p.shrink(Node::Peer, "pause")),
    check("path shrinks silently, access", |p| p.shrink(Node::Ta, "sip")),
    check("curl", programs::curl),
    check("ssh, interactive", programs::ssh),
    check("scp 10 MiB, both ways", programs::scp),
    check("iperf3", |p| programs::iperf3(p, false)),
    check("iperf3 -R", |p| programs::iperf3(p, true)),
    Check {
        name: "flood of SYNs",
        work: |p| p.flood(),
        families: &[Family::V4],
    },
];

const fn check(name: &'static str, work: fn(&Place<'_>) -> Result<String>) -> Check {
    Check {
        name,
        work,
        families: BOTH,
    }
}

/// How a check went.
#[derive(Debug)]
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// With what kind of peer.
    pub peer: PeerKind,
    /// Over which family.
    pub family: Family,
    /// What was measured, or what went wrong.
    pub verdict: Result<String, String>,
}

impl Outcome {
    /// As JSON.
    fn row(&self) -> serde_json::Value {
        serde_json::json!({
            "peer": self.peer.name(),
            "family": self.family.to_string(),
            "check": self.name,
            "passed": self.verdict.is_ok(),
            "found": self.verdict.as_ref().unwrap_or_else(|error| error),
        })
    }
}

/// The relay with one kind of peer, in one family.
struct Place<'a> {
    stack: &'a Stack,
    family: Family,
}

/// Runs the command: every check with both kinds of peer, a table, an error when one failed.
pub(super) fn run(root: &Path, args: &Args, object: &Path) -> Result<()> {
    let kinds = args
        .peer
        .map_or(vec![PeerKind::Kernel, PeerKind::Libipsec], |kind| vec![kind]);
    let instance = args.instance.clone().unwrap_or_else(|| "relay".to_owned());
    let mut outcomes = Vec::new();
    let mut nonces = Nonces::default();
    for peer in kinds {
        Lab::down_instance(root, &instance)?;
        let options = Options {
            instance: instance.clone(),
            peer,
            linkem: false,
        };
        let mut stack = step(&format!("lab and towpath up, peer {}", peer.name()), || {
            Stack::start(Lab::up(root, &options)?, object)
        })?;
        let judged = all(&mut stack, args.only.as_deref().unwrap_or_default());
        nonces += stack.end()?.1;
        Lab::down_instance(root, &instance)?;
        outcomes.extend(judged?);
    }
    print(&outcomes);
    let failed = outcomes.iter().filter(|outcome| outcome.verdict.is_err()).count();
    if outcomes.is_empty() {
        bail!("no check has all of these words");
    }
    let rows = outcomes.iter().map(Outcome::row).collect();
    Report::new(failed, nonces, rows).finish(args, "checks")
}

/// Every check whose name contains all of `words`, in both families.
pub fn all(stack: &mut Stack, words: &str) -> Result<Vec<Outcome>> {
    serve(stack)?;
    let chosen = CHECKS.iter().filter(|check| {
        words
            .split_whitespace()
            .all(|word| check.name.to_lowercase().contains(&word.to_lowercase()))
    });
    let mut outcomes = Vec::new();
    for check in chosen {
        for family in check.families.iter().copied() {
            let place = Place { stack, family };
            let step = Step::new(format!("{family}, {}", check.name));
            let verdict = place.judge(check).map_err(|error| format!("{error:#}"));
            match &verdict {
                Ok(text) => step.done(text),
                Err(text) => step.failed(text),
            }
            outcomes.push(Outcome {
                name: check.name,
                peer: stack.lab.peer_kind(),
                family,
                verdict,
            });
        }
    }
    Ok(outcomes)
}

/// Servers at the peer, and an SA in both families.
fn serve(stack: &mut Stack) -> Result<()> {
    runner::start_server(&mut stack.lab, Node::Peer)?;
    let program = stack
        .lab
        .lend(Node::Peer, &programs_folder()?.join("xtask"))?
        .display()
        .to_string();
    background(
        &mut stack.lab,
        "deaf",
        &format!("exec {program} pump deaf {DEAF}"),
    )?;
    programs::serve(stack)?;
    for family in Family::ALL {
        let peer = Node::Peer.addr(family).to_string();
        let ping = Cmd::new("ping").args(["-c", "1", "-W", "20", "-q", &peer]);
        let out = stack.lab.exec(Node::Ta, &ping, Duration::from_secs(30))?;
        if !out.ok() {
            bail!("no SA with {peer}: {}\n{}", out.all(), stack.tail("towpath", 20));
        }
    }
    Ok(())
}

/// Starts a shell script at the peer that goes on.
fn background(lab: &mut Lab, name: &str, script: &str) -> Result<()> {
    if lab.peer_kind() == PeerKind::Libipsec {
        lab.spawn(Node::Peer, name, &Cmd::new("bash").args(["-c", script]))?;
        return Ok(());
    }
    let quoted = script.replace('\'', r"'\''");
    let line = format!("setsid bash -c '{quoted}' >/run/{name}.log 2>&1 </dev/null &");
    let out = lab.exec(Node::Peer, &Cmd::new(line), Duration::from_secs(20))?;
    if out.ok() {
        Ok(())
    } else {
        bail!("{name} did not start in the guest: {}", out.all())
    }
}

impl Place<'_> {
    fn peer(&self) -> IpAddr {
        Node::Peer.addr(self.family)
    }

    /// The check, and that its packets passed the relay.
    fn judge(&self, check: &Check) -> Result<String> {
        let before = self.stack.counter("relay_in")?;
        let text = (check.work)(self)?;
        if let Some(dead) = self.stack.dead() {
            bail!("{} ended", dead.name);
        }
        let relayed = self.stack.counter("relay_in")? - before;
        if relayed < 10 {
            bail!("only {relayed} packets went through the relay");
        }
        Ok(text)
    }

    /// Runs a command at terminal A.
    fn exec(&self, cmd: &Cmd, limit: Duration) -> Result<String> {
        let out = self.stack.lab.exec(Node::Ta, cmd, limit)?;
        if !out.ok() {
            bail!("{}", out.all().trim());
        }
        Ok(out.stdout)
    }

    fn sh(&self, script: &str) -> Result<String> {
        self.exec(&Cmd::new("bash").args(["-c", script]), LIMIT)
    }

    fn pump(&self, verb: &str, args: &[&str]) -> Result<String> {
        let cmd = Cmd::new(programs_folder()?.join("xtask"))
            .args(["pump", verb, &self.peer().to_string()])
            .args(args);
        let said = self.exec(&cmd, LIMIT)?;
        Ok(said.trim().rsplit(", ").next().unwrap_or_default().to_owned())
    }

    /// More bytes than all buffers hold, and nobody reads for a minute.
    fn closed(&self, verb: &str) -> Result<String> {
        let started = Instant::now();
        self.pump(verb, &["40000000", &CLOSED.to_string()])?;
        Ok(format!("{:.0} s", started.elapsed().as_secs_f64()))
    }

    /// While a transfer waits for its receiver, the link of `node` begins to swallow what was just right before; no ICMP
    /// tells. The sender has to find out.
    fn shrink(&self, node: Node, verb: &str) -> Result<String> {
        let started = Instant::now();
        let seconds = SHRINKING.to_string();
        let args = ["12000000", seconds.as_str()];
        let done = std::thread::scope(|scope| {
            let busy = scope.spawn(|| self.pump(verb, &args));
            std::thread::sleep(Duration::from_secs(SHRINKING / 2));
            let narrowed = self.set_mtu(node, NARROW);
            let done = busy.join();
            narrowed.map(|()| done)
        });
        self.set_mtu(node, 1500)?;
        match done? {
            Ok(outcome) => outcome?,
            Err(_) => bail!("the thread of the transfer panicked"),
        };
        let waited = started.elapsed().saturating_sub(Duration::from_secs(SHRINKING));
        Ok(format!("{:.1} s for the rest", waited.as_secs_f64()))
    }

    /// The far end of a node's link, and the guest's interface behind it: what is longer vanishes on the wire, and the
    /// gateway, whose own end is as it was, is told nothing.
    fn set_mtu(&self, node: Node, mtu: u16) -> Result<()> {
        let lab = &self.stack.lab;
        lab.net()
            .inside(node, Cmd::line(&format!("ip link set eth0 mtu {mtu}")))
            .run()?;
        if node == Node::Peer && lab.peer_kind() == PeerKind::Kernel {
            let line = Cmd::new(format!("ip link set vec0 mtu {mtu}"));
            let out = lab.exec(node, &line, Duration::from_secs(20))?;
            if !out.ok() {
                bail!("the guest's interface: {}", out.all());
            }
        }
        Ok(())
    }

    /// SYNs to a server that does not answer: the daemon's memory stays what it is, and a connection among them opens.
    fn flood(&self) -> Result<String> {
        let program = programs_folder()?.join("xtask").display().to_string();
        let flood = format!("{program} pump flood {} {DEAF} {SYNS}", self.peer());
        self.sh(&flood)?;
        let first = self.stack.daemon_memory()?;
        let opened = std::thread::scope(|scope| {
            let busy = scope.spawn(|| (0..2).try_for_each(|_| self.sh(&flood).map(drop)));
            let opened = (0..5).try_fold(Duration::ZERO, |slowest, _| {
                let started = Instant::now();
                self.pump("put", &["100000"])?;
                anyhow::Ok(slowest.max(started.elapsed()))
            });
            match busy.join() {
                Ok(flooded) => flooded.and(opened),
                Err(_) => bail!("the thread of the flood panicked"),
            }
        })
        .context("during the flood")?;
        let settled = || self.stack.daemon_memory().is_ok_and(|now| now <= first + GROWTH);
        if !wait_for(Duration::from_secs(10), settled) {
            bail!(
                "the daemon had {first} KiB after {SYNS} SYNs and has {} after {}",
                self.stack.daemon_memory()?,
                3 * SYNS
            );
        }
        let memory = self.stack.daemon_memory()?.saturating_sub(first);
        Ok(format!(
            "+{memory} KiB for {} SYNs; 100 kB among them in {} ms",
            2 * SYNS,
            opened.as_millis()
        ))
    }
}

/// Rows: checks; columns: kinds of peer and families.
fn print(outcomes: &[Outcome]) {
    let mut columns: Vec<(PeerKind, Family)> = Vec::new();
    for outcome in outcomes {
        if !columns.contains(&(outcome.peer, outcome.family)) {
            columns.push((outcome.peer, outcome.family));
        }
    }
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["ESP class full, kernel TCP at both ends".to_owned()];
    header.extend(
        columns
            .iter()
            .map(|(peer, family)| format!("{} {family}", peer.name())),
    );
    table.set_header(header);
    for check in CHECKS {
        let cell = |(peer, family): &(PeerKind, Family)| {
            let same = |o: &&Outcome| o.name == check.name && o.peer == *peer && o.family == *family;
            match outcomes.iter().find(same).map(|outcome| &outcome.verdict) {
                Some(Ok(text)) => text.clone(),
                Some(Err(_)) => "FAIL".to_owned(),
                None => "-".to_owned(),
            }
        };
        if outcomes.iter().any(|outcome| outcome.name == check.name) {
            let mut row = vec![check.name.to_owned()];
            row.extend(columns.iter().map(cell));
            table.add_row(row);
        }
    }
    println!("{table}");
    for outcome in outcomes {
        if let Err(text) = &outcome.verdict {
            println!(
                "FAILED {} with {} over {}: {text}",
                outcome.name,
                outcome.peer.name(),
                outcome.family
            );
        }
    }
}
