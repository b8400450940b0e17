//! `cargo xtask lab up|down|shell|status`.

use std::path::Path;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde::Serialize;

use super::{Family, Lab, Node, Options, PeerKind};
use crate::linkem::Links;
use crate::sh::{Cmd, Usage};
use crate::ui::Step;

/// Options of `cargo xtask lab`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which lab; several can run side by side
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    pub instance: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with the lab.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Bring the lab up (does nothing when it is up)
    Up {
        /// What kind of peer
        #[arg(long, value_enum, default_value_t)]
        peer: PeerKind,
        /// With a link emulator between terminal A and the gateway; `lab link` sets what the link is like
        #[arg(long)]
        linkem: bool,
    },
    /// Set what the emulated link of terminal A is like: `lab link --both rate=20M,delay=50ms --ab loss=1%`
    ///
    /// --ab is from the gateway to the terminal. `cargo xtask linkem --help` explains the keys.
    Link(Links),
    /// End everything the lab started and remove it
    Down,
    /// A shell at a node, or one command: `lab shell ta -- ping 10.77.9.2`
    Shell {
        /// ta, tb, gw or peer
        node: String,
        /// Command to run instead of a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// What is up, and the peer's security associations
    Status {
        /// For machines
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    match &args.command {
        Command::Up { peer, linkem } => up(root, &args.instance, *peer, *linkem),
        Command::Link(links) => link(root, &args.instance, links),
        Command::Down => {
            Lab::down_instance(root, &args.instance)?;
            println!("lab: down");
            Ok(())
        }
        Command::Shell { node, command } => shell(root, &args.instance, node, command),
        Command::Status { json } => status(root, &args.instance, *json),
    }
}

fn link(root: &Path, instance: &str, links: &Links) -> Result<()> {
    let mut lab = attached(root, instance)?;
    lab.set_link(links)?;
    println!("lab: the link of terminal A is emulated");
    Ok(())
}

fn up(root: &Path, instance: &str, peer: PeerKind, linkem: bool) -> Result<()> {
    let step = Step::new(format!("lab up, peer {}", peer.name()));
    match Lab::up(
        root,
        &Options {
            instance: instance.to_owned(),
            peer,
            linkem,
        },
    ) {
        Ok(lab) => {
            step.done("");
            print_nodes(&lab);
            Ok(())
        }
        Err(error) => {
            step.failed("");
            Err(error)
        }
    }
}

fn print_nodes(lab: &Lab) {
    for node in Node::ALL {
        let addresses = Family::ALL.map(|f| node.addr(f).to_string()).join("  ");
        println!(
            "  {:<5} {:<18} {addresses}",
            node.name(),
            lab.net().namespace(node)
        );
    }
}

fn attached(root: &Path, instance: &str) -> Result<Lab> {
    match Lab::attach(root, instance)? {
        Some(lab) => Ok(lab),
        None => bail!("there is no lab {instance:?}: cargo xtask lab up"),
    }
}

fn shell(root: &Path, instance: &str, node: &str, command: &[String]) -> Result<()> {
    let Some(node) = Node::parse(node) else {
        return Err(Usage(format!("no node {node:?}: expected ta, tb, gw or peer")).into());
    };
    let lab = attached(root, instance)?;
    let guest = node == Node::Peer && lab.peer_kind() == PeerKind::Kernel;
    match (guest, command.is_empty()) {
        (true, true) => bail!(
            "the peer is a guest kernel without a terminal: give a command, `lab shell peer -- ip xfrm state`"
        ),
        (true, false) => {
            let out = lab.exec(
                node,
                &Cmd::new(&command[0]).args(&command[1..]),
                std::time::Duration::from_secs(60),
            )?;
            print!("{}", out.stdout);
            if out.ok() {
                Ok(())
            } else {
                bail!("ended with status {:?}", out.code)
            }
        }
        (false, true) => {
            println!("namespace {}; ctrl-d leaves", lab.net().namespace(node));
            lab.net()
                .inside(node, Cmd::new("bash").arg("-i"))
                .status()
                .map(|_| ())
        }
        (false, false) => lab
            .net()
            .inside(node, Cmd::new(&command[0]).args(&command[1..]))
            .show(),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    instance: &'a str,
    up: bool,
    peer: Option<PeerKind>,
    processes: Vec<ProcessReport>,
    sas: Vec<SaReport>,
}

#[derive(Serialize)]
struct ProcessReport {
    name: String,
    pid: u32,
    alive: bool,
}

#[derive(Serialize)]
struct SaReport {
    name: String,
    state: String,
    remote_host: String,
    remote_id: String,
    children: Vec<String>,
}

fn status(root: &Path, instance: &str, json: bool) -> Result<()> {
    let lab = Lab::attach(root, instance)?;
    let up = lab.as_ref().is_some_and(Lab::healthy);
    let mut report = Report {
        instance,
        up,
        peer: lab.as_ref().map(Lab::peer_kind),
        processes: vec![],
        sas: vec![],
    };
    if let Some(lab) = &lab {
        let process = |p: &super::state::Process| ProcessReport {
            name: p.name.clone(),
            pid: p.pid,
            alive: p.alive(),
        };
        report.processes = lab.processes().iter().map(process).collect();
        if up {
            report.sas = lab.peer().list_sas()?.into_iter().map(sa_report).collect();
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let Some(lab) = lab else {
        println!("lab {instance}: not up");
        return Ok(());
    };
    println!(
        "lab {instance}: {}, peer {}",
        if up { "up" } else { "broken" },
        lab.peer_kind().name()
    );
    print_nodes(&lab);
    for p in &report.processes {
        println!(
            "  process {:<7} {} {}",
            p.pid,
            p.name,
            if p.alive { "" } else { "(ended)" }
        );
    }
    if up {
        print!("{}", lab.peer().list_sas_text()?);
    }
    Ok(())
}

fn sa_report(sa: super::IkeSa) -> SaReport {
    let children = sa
        .children
        .iter()
        .map(|c| format!("{} {} {} {}", c.name, c.state, c.mode, c.encr))
        .collect();
    SaReport {
        name: sa.name,
        state: sa.state,
        remote_host: sa.remote_host,
        remote_id: sa.remote_id,
        children,
    }
}
