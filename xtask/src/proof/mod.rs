//! The main job in the lab: a terminal without IKE talks IPsec with an unmodified peer.
//!
//! [`scenario`] lists what is shown, [`stack`] starts Towpath, [`runner`] runs one scenario, [`judge`] reads the
//! captures, [`rekeys`] replaces keys under load, [`relay`] shows what TCP keeps, [`table`] prints the result, [`live`]
//! shows it as it happens.
//! [`nonces`] reads what the daemon sealed, `report` ends a run.

pub mod judge;
pub mod live;
pub mod nonces;
pub mod rekeys;
pub mod relay;
mod report;
pub mod runner;
pub mod scenario;
pub mod stack;
pub mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::nonces::Nonces;
use self::report::Report;
use self::runner::Outcome;
use self::scenario::Scenario;
use self::stack::{Stack, programs};
use crate::lab::{Family, Lab, Node, Options, PeerKind};
use crate::sh::{Cmd, Usage, is_root};
use crate::ui::{Step, step};
use crate::{ebpf, setup};

/// Options of `cargo xtask run`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Run every scenario once, print a table, exit 0 if all passed
    #[arg(long, conflicts_with = "iface")]
    pub once: bool,
    /// The kind of peer; with --once: this kind only instead of both
    #[arg(long, value_enum)]
    pub peer: Option<PeerKind>,
    /// With --once or --relay: only scenarios whose description contains all of these words
    #[arg(long, value_name = "WORDS")]
    pub only: Option<String>,
    /// With --once: leave the lab up when a scenario failed
    #[arg(long, requires = "once")]
    pub keep: bool,
    /// Replace keys every second or two for this many seconds while packets flow in both families, with the kernel peer
    /// unless --peer says otherwise; exit 0 if none was lost
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["once", "iface"])]
    pub rekeys: Option<u64>,
    /// Show what TCP keeps through the split relay: 1,000 connections, closed windows, shrinking paths, curl, ssh,
    /// iperf3; a table, exit 0 if all passed (about ten minutes)
    #[arg(long, conflicts_with_all = ["once", "iface", "rekeys"])]
    pub relay: bool,
    /// With --once, --relay or --rekeys: write the outcome, and what nonces the daemons used, to this file
    #[arg(long, value_name = "FILE", conflicts_with = "iface")]
    pub json: Option<PathBuf>,
    /// Use the programs and the XDP object that are there, without building
    #[arg(long)]
    pub no_build: bool,
    /// Which lab; several can run side by side
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Load onto real interfaces instead of the lab, once for each: --iface IN --iface OUT
    #[arg(long, num_args = 1, requires = "config", value_name = "NAME")]
    pub iface: Vec<String>,
    /// The daemon's configuration for real interfaces
    #[arg(long, requires = "iface", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the command.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    if !args.iface.is_empty() && args.iface.len() != 2 {
        return Err(Usage("two interfaces are needed: --iface IN --iface OUT".to_owned()).into());
    }
    if args.json.is_some() && !(args.once || args.relay || args.rekeys.is_some()) {
        return Err(Usage("--json goes with --once, --relay or --rekeys".to_owned()).into());
    }
    if !is_root() {
        bail!("network namespaces, XDP and AF_XDP need root");
    }
    let object = if args.no_build {
        ebpf::object_path(root)
    } else {
        prepare(root)?
    };
    match &args.config {
        Some(config) => real_interfaces(&args.iface, config, &object),
        None if args.once => once(root, args, &object),
        None if args.relay => relay::run(root, args, &object),
        None if args.rekeys.is_some() => replace_keys(root, args, &object),
        None => live::run(root, args, &object),
    }
}

/// Installs what is missing and builds; returns the XDP object.
pub fn prepare(root: &Path) -> Result<PathBuf> {
    let missing = setup::missing(root);
    if !missing.is_empty() {
        println!("run: missing {}; running setup first", missing.join(", "));
        setup::run(root)?;
    }
    let object = step("build the XDP program", || ebpf::build(root))?;
    step("build towpath", || {
        let release = programs()?.ends_with("release");
        let profile: &[&str] = if release { &["--release"] } else { &[] };
        Cmd::line("cargo build --locked --quiet -p towpath -p xtask")
            .args(profile)
            .dir(root)
            .show()
    })?;
    Ok(object)
}

/// Runs the daemon on the machine's own interfaces, in the foreground.
fn real_interfaces(ifaces: &[String], config: &Path, object: &Path) -> Result<()> {
    for iface in ifaces {
        if !Path::new("/sys/class/net").join(iface).exists() {
            return Err(Usage(format!("--iface {iface}: there is no such interface")).into());
        }
    }
    let text = std::fs::read_to_string(config).map_err(|e| Usage(format!("{}: {e}", config.display())))?;
    for iface in ifaces {
        if !text.contains(&format!("\"{iface}\"")) {
            return Err(Usage(format!(
                "{}: [[gateway.port]] names no port {iface:?}, which --iface asks for",
                config.display()
            ))
            .into());
        }
    }
    let status = Cmd::new(programs()?.join("towpath"))
        .args(["run", "--config"])
        .arg(config)
        .env("TOWPATH_BPF_OBJECT", object)
        .status()?;
    std::process::exit(status)
}

/// Brings up an ephemeral lab with Towpath in it: for tests. The XDP object must have been built.
pub fn stack_for_test(name: &str, peer: PeerKind) -> Result<Stack> {
    stack_for_test_with(name, peer, "")
}

/// As [`stack_for_test`], with `extra` at the end of the gateway's configuration.
pub fn stack_for_test_with(name: &str, peer: PeerKind, extra: &str) -> Result<Stack> {
    stack_in(Lab::ephemeral(&crate::root(), name, peer)?, extra, |_, _| ())
}

/// Towpath in `lab`, with `extra` at the end of the gateway's configuration and subscribers changed by `edit`: for
/// tests.
pub fn stack_in(lab: Lab, extra: &str, edit: fn(Node, &mut serde_json::Value)) -> Result<Stack> {
    let object = ebpf::object_path(&crate::root());
    if !object.exists() {
        bail!("the XDP program is not built: cargo xtask build-ebpf");
    }
    let mut stack = Stack::start_edited(lab, &object, extra, edit)?;
    for node in [Node::Tb, Node::Peer] {
        runner::start_server(&mut stack.lab, node)?;
    }
    Ok(stack)
}

/// Keys are replaced under load; an error when a packet was lost.
fn replace_keys(root: &Path, args: &Args, object: &Path) -> Result<()> {
    let instance = args.instance.clone().unwrap_or_else(|| "rekeys".to_owned());
    let options = Options {
        linkem: false,
        instance: instance.clone(),
        peer: args.peer.unwrap_or_default(),
    };
    Lab::down_instance(root, &instance)?;
    let stack = Stack::start(Lab::up(root, &options)?, object)?;
    let seconds = std::time::Duration::from_secs(args.rekeys.unwrap_or(600).max(20));
    // Both families at the same time: their keys have nothing to do with each other.
    let reports = std::thread::scope(|scope| {
        let run = |family| {
            let stream = rekeys::Stream {
                terminal: Node::Ta,
                family,
            };
            rekeys::run(&stack, stream, seconds)
        };
        let threads = Family::ALL.map(|family| scope.spawn(move || run(family)));
        threads.map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    });
    let [v4, v6] = reports;
    let (_, nonces) = stack.end()?;
    Lab::down_instance(root, &instance)?;
    let reports = [v4?, v6?];
    for report in &reports {
        println!(
            "{}: {} packets sent, {} answered; CHILD SAs replaced by the peer {}, by us {}, by both at once {}; \
             IKE SAs {}, {}, {}",
            report.stream.family,
            report.sent,
            report.answered,
            report.children[0],
            report.children[1],
            report.children[2],
            report.ikes[0],
            report.ikes[1],
            report.ikes[2],
        );
    }
    for report in reports.iter().filter(|report| !report.passed()) {
        println!(
            "FAILED {}: {} packets lost, {} CHILD SAs left where one is expected",
            report.stream.family,
            report.sent - report.answered,
            report.left
        );
    }
    let failed = reports.iter().filter(|report| !report.passed()).count();
    let rows = reports.iter().map(rekeys::Report::row).collect();
    Report::new(failed, nonces, rows).finish(args, "streams")
}

/// Every scenario once; an error when one failed.
fn once(root: &Path, args: &Args, object: &Path) -> Result<()> {
    let kinds = args
        .peer
        .map_or(vec![PeerKind::Kernel, PeerKind::Libipsec], |kind| vec![kind]);
    let words: Vec<&str> = args
        .only
        .as_deref()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let wanted = |s: &Scenario| {
        words
            .iter()
            .all(|w| s.title().to_lowercase().contains(&w.to_lowercase()))
    };
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut nonces = Nonces::default();
    for kind in kinds {
        let rows: Vec<Scenario> = scenario::matrix(kind).into_iter().filter(wanted).collect();
        if !rows.is_empty() {
            outcomes.extend(with_peer(root, kind, rows, object, args, &mut nonces)?);
        }
    }
    table::print(&outcomes);
    let failed = outcomes.iter().filter(|o| !o.passed()).count();
    if outcomes.is_empty() {
        bail!("no scenario has all of these words: {}", words.join(" "));
    }
    let rows = outcomes.iter().map(Outcome::row).collect();
    Report::new(failed, nonces, rows).finish(args, "scenarios")
}

/// All `rows` with one kind of peer, in a lab of their own; `nonces` gets what the daemons sealed.
fn with_peer(
    root: &Path,
    kind: PeerKind,
    rows: Vec<Scenario>,
    object: &Path,
    args: &Args,
    nonces: &mut Nonces,
) -> Result<Vec<Outcome>> {
    let instance = args.instance.clone().unwrap_or_else(|| "once".to_owned());
    Lab::down_instance(root, &instance)?;
    let options = Options {
        linkem: false,
        instance: instance.clone(),
        peer: kind,
    };
    let lab = step(&format!("lab up, peer {}", kind.name()), || {
        Lab::up(root, &options)
    })?;
    let outcomes = in_lab(lab, rows, object, nonces);
    let failed = outcomes.as_ref().map_or(true, |o| o.iter().any(|o| !o.passed()));
    if args.keep && failed {
        println!("the lab is left up: cargo xtask lab --instance {instance} status");
    } else {
        Lab::down_instance(root, &instance)?;
    }
    outcomes
}

fn in_lab(lab: Lab, rows: Vec<Scenario>, object: &Path, nonces: &mut Nonces) -> Result<Vec<Outcome>> {
    let mut stack = step("towpath up, both terminals registered", || {
        Stack::start(lab, object)
    })?;
    for node in [Node::Tb, Node::Peer] {
        runner::start_server(&mut stack.lab, node)?;
    }
    let mut outcomes = Vec::new();
    for row in rows {
        let step = Step::new(row.title());
        let outcome = runner::run(&stack, row, &|text| step.note(text));
        if outcome.passed() {
            step.done(
                outcome
                    .verdicts
                    .iter()
                    .flatten()
                    .take(2)
                    .flatten()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", "),
            );
        } else {
            step.failed(outcome.complaints().join("; "));
            // What follows is judged on a fresh start.
            let _ = stack.lab.peer().forget();
            let dead = stack.dead().map(|p| p.name.clone());
            if let Some(name) = dead {
                eprintln!("{name} ended; its last words:\n{}", stack.tail(&name, 15));
            }
            let (lab, sealed) = stack.end()?;
            *nonces += sealed;
            stack = Stack::start(lab, object).context("restarting after a failed scenario")?;
        }
        outcomes.push(outcome);
    }
    *nonces += stack.end()?.1;
    Ok(outcomes)
}
