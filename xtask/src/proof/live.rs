//! `cargo xtask run`: the main job, live, until ctrl-c.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::stack::Stack;
use crate::lab::{Family, Lab, Node, Options};
use crate::sh::Cmd;
use crate::ui::step;

/// Time between two rounds of traffic.
const ROUND: Duration = Duration::from_secs(5);

/// Brings the lab up, starts everything, lets terminal A talk to the peer and shows what happens.
pub fn run(root: &Path, args: &super::Args, object: &Path) -> Result<()> {
    let peer = args.peer.unwrap_or_default();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst)).context("cannot handle ctrl-c")?;
    let instance = args.instance.clone().unwrap_or_else(|| "default".to_owned());
    let options = Options {
        instance,
        peer,
        linkem: false,
    };
    Lab::down_instance(root, &options.instance)?;
    let lab = step(&format!("lab up, peer {}", peer.name()), || {
        Lab::up(root, &options)
    })?;
    let shown = show(lab, object, &stop);
    step("lab down", || Lab::down_instance(root, &options.instance))?;
    shown
}

fn show(lab: Lab, object: &Path, stop: &AtomicBool) -> Result<()> {
    let stack = step("towpath up, both terminals registered", || {
        Stack::start(lab, object)
    })?;
    println!(
        "\nterminal A {}  {}   has no IKE\npeer       {}  {}   unmodified strongSwan\n",
        Node::Ta.addr(Family::V4),
        Node::Ta.addr(Family::V6),
        Node::Peer.addr(Family::V4),
        Node::Peer.addr(Family::V6),
    );
    let mut events = Events::follow(&stack)?;
    for (round, family) in Family::ALL.into_iter().cycle().enumerate() {
        let lines = std::thread::scope(|scope| {
            let traffic = scope.spawn(|| traffic(&stack, family));
            while !traffic.is_finished() {
                events.print_for(Duration::from_millis(100));
            }
            traffic.join().unwrap_or_default()
        });
        events.print_for(Duration::from_millis(200));
        lines.iter().for_each(|line| println!("{line}"));
        if round < 2 {
            println!(
                "\nthe peer's own report (swanctl --list-sas):\n{}",
                stack.lab.peer().list_sas_text()?
            );
            println!(
                "ctrl-c ends it; meanwhile, in another terminal: cargo xtask lab status, cargo xtask lab shell ta\n"
            );
        }
        let until = Instant::now() + ROUND;
        while Instant::now() < until {
            events.print_for(Duration::from_millis(100));
            if stop.load(Ordering::SeqCst) {
                stack.stop();
                return Ok(());
            }
            if let Some(dead) = stack.dead() {
                let name = dead.name.clone();
                anyhow::bail!("{name} ended; its last words:\n{}", stack.tail(&name, 20));
            }
        }
    }
    Ok(())
}

/// Three pings each way, and what the daemon counted: lines to print.
fn traffic(stack: &Stack, family: Family) -> Vec<String> {
    let mut lines = Vec::new();
    for (from, to) in [(Node::Ta, Node::Peer), (Node::Peer, Node::Ta)] {
        let target = to.addr(family).to_string();
        let cmd = Cmd::new("ping").args(["-c", "3", "-i", "0.2", "-W", "5", "-q", &target]);
        let result = match stack.lab.exec(from, &cmd, Duration::from_secs(20)) {
            Ok(out) => out
                .stdout
                .lines()
                .find(|l| l.contains("packet loss"))
                .unwrap_or("no answer")
                .to_owned(),
            Err(error) => format!("{error:#}"),
        };
        lines.push(format!(
            "{:>9}  ping {} -> {target}: {result}",
            "traffic",
            from.name()
        ));
    }
    for sa in stack.sas().unwrap_or_default() {
        let text = |key: &str| {
            super::stack::find(&sa, key).map_or_else(String::new, |v| v.to_string().replace('"', ""))
        };
        let packets = |key: &str| {
            sa.get(key)
                .and_then(|t| t.get("packets"))
                .map_or(0, |v| v.as_u64().unwrap_or(0))
        };
        lines.push(format!(
            "{:>9}  {} with {}  class {}  SPIs {}/{}  {} packets to the terminal, {} to the peer",
            "SA",
            text("terminal"),
            text("peer"),
            text("class"),
            text("spi_in"),
            text("spi_out"),
            packets("to_terminal"),
            packets("to_peer"),
        ));
    }
    lines
}

/// The daemon's events and the agent's log lines as they come.
struct Events {
    lines: mpsc::Receiver<(&'static str, String)>,
    followers: Vec<Child>,
}

impl Events {
    fn follow(stack: &Stack) -> Result<Self> {
        let (sender, lines) = mpsc::channel();
        let mut followers = Vec::new();
        let agent = Cmd::new("tail")
            .args(["-n", "+1", "-F"])
            .arg(stack.lab.log_file("terminal-ta"));
        for (cmd, label) in [(stack.events(), "network"), (agent, "terminal")] {
            let mut child = cmd.piped()?;
            if let Some(out) = child.stdout.take() {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for line in BufReader::new(out).lines().map_while(Result::ok) {
                        if sender.send((label, line)).is_err() {
                            return;
                        }
                    }
                });
            }
            followers.push(child);
        }
        Ok(Self { lines, followers })
    }

    fn print_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Ok((label, line)) = self
            .lines
            .recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            println!("{label:>9}  {}", without_clock(&line));
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for child in &mut self.followers {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A log line without its date: the time of day is enough here.
fn without_clock(line: &str) -> &str {
    match line.split_once('T') {
        Some((date, rest)) if date.len() == 10 && date.as_bytes()[4] == b'-' => rest,
        _ => line,
    }
}
