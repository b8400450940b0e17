//! `cargo xtask linkem`: joins two interfaces by an emulated link. The emulator itself is `tests/linkem`.

mod ceiling;
pub mod row;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use towpath_linkem::emulator::{Emulator, Setup};
use towpath_linkem::model::LinkConfig;
use towpath_linkem::report::Report;
use towpath_linkem::spec;

use crate::sh::Usage;

/// Options of `cargo xtask linkem`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = LINK_HELP)]
pub struct Args {
    /// First interface
    #[arg(long, required_unless_present = "ceiling", value_name = "IF")]
    pub a: Option<String>,
    /// Second interface
    #[arg(long, required_unless_present = "ceiling", value_name = "IF")]
    pub b: Option<String>,
    /// Named network namespace the interfaces are in, instead of this one
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// What the links are like.
    #[command(flatten)]
    pub links: Links,
    /// End after so many seconds; otherwise on SIGINT or SIGTERM
    #[arg(long, value_name = "SECONDS")]
    pub seconds: Option<f64>,
    /// Write what the links really did here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Measure what the emulator itself can carry on this machine, in namespaces of its own
    #[arg(long, conflicts_with_all = ["a", "b", "netns", "seconds", "both", "ab", "ba"])]
    pub ceiling: bool,
}

const LINK_HELP: &str = "\
A LINK is KEY=VALUE,...:
  rate=50M              bits per second of IP packets (0: no limit)
  delay=50ms jitter=2ms one way; jitter adds up to this and keeps the order
  queue=600k            bytes; queue=100p: packets
  loss=1%               random loss
  bursts=1%/20%/0/50%   Gilbert-Elliott: enter, leave, loss in the good state, loss in the bad state
  reorder=1%/5ms        share of packets held back by up to this
  duplicate=1%
  outage=5s-6s          since the start; may be repeated
  mtu=1500

The interfaces need no addresses. Offloads of the far ends must be off (ethtool -K IF tx off tso off gso off):
frames carry finished checksums and fit the wire, or are dropped as too long.";

/// Two links and their randomness.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct Links {
    /// Both directions
    #[arg(long, default_value = "", hide_default_value = true, value_name = "LINK")]
    pub both: String,
    /// From the first interface to the second, on top of --both
    #[arg(long, default_value = "", hide_default_value = true, value_name = "LINK")]
    pub ab: String,
    /// From the second interface to the first, on top of --both
    #[arg(long, default_value = "", hide_default_value = true, value_name = "LINK")]
    pub ba: String,
    /// Seed of all randomness
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Links {
    /// Reads the descriptions.
    pub fn configs(&self) -> Result<[LinkConfig; 2]> {
        let mut configs = [LinkConfig::default(), LinkConfig::default()];
        for (config, (option, own)) in configs.iter_mut().zip([("--ab", &self.ab), ("--ba", &self.ba)]) {
            for (option, text) in [("--both", &self.both), (option, own)] {
                spec::apply(config, text).map_err(|error| Usage(format!("{option}: {error}")))?;
            }
        }
        Ok(configs)
    }

    /// As arguments of the command.
    pub fn arguments(&self) -> Vec<String> {
        let texts = [("--both", &self.both), ("--ab", &self.ab), ("--ba", &self.ba)];
        let mut arguments: Vec<String> = texts
            .iter()
            .map(|(option, text)| format!("{option}={text}"))
            .collect();
        arguments.push(format!("--seed={}", self.seed));
        arguments
    }
}

/// Moves the calling thread into a named network namespace.
pub fn enter(namespace: &str) -> Result<()> {
    let path = format!("/run/netns/{namespace}");
    let file = std::fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    if args.ceiling {
        return ceiling::run(args.json.as_deref());
    }
    let ports = [args.a.clone(), args.b.clone()].map(Option::unwrap_or_default);
    let setup = Setup {
        ports,
        links: args.links.configs()?,
        seed: args.links.seed,
    };
    if let Some(namespace) = &args.netns {
        enter(namespace)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    ctrlc::set_handler(move || seen.store(true, Ordering::Relaxed)).context("cannot watch for signals")?;
    if let Some(seconds) = args.seconds {
        let ended = Arc::clone(&stop);
        let time = Duration::try_from_secs_f64(seconds)
            .map_err(|_| Usage(format!("--seconds is {seconds}; expected a time")))?;
        std::thread::spawn(move || {
            std::thread::sleep(time);
            ended.store(true, Ordering::Relaxed);
        });
    }
    let emulator = Emulator::open(setup)?;
    // Whoever started this waits for the line.
    println!("ready");
    let report = emulator.run(&stop)?;
    for line in report.lines() {
        println!("{line}");
    }
    match &args.json {
        Some(path) => write(path, &report),
        None => Ok(()),
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// An emulator on a thread of this process.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<Report>>>,
}

impl Running {
    /// Starts it in a named namespace; it carries frames when this returns.
    pub fn start(namespace: &str, setup: Setup) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, wait) = std::sync::mpsc::channel();
        let (namespace, seen) = (namespace.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let opened = enter(&namespace).and_then(|()| Ok(Emulator::open(setup)?));
            let emulator = match opened {
                Ok(emulator) => emulator,
                Err(error) => {
                    let _ = ready.send(false);
                    return Err(error);
                }
            };
            let _ = ready.send(true);
            Ok(emulator.run(&seen)?)
        });
        let mut running = Self {
            stop,
            thread: Some(thread),
        };
        if wait.recv() == Ok(true) {
            return Ok(running);
        }
        Err(running.finish().err().context("the emulator ended early")?)
    }

    fn finish(&mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the emulator was stopped before")?;
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the emulator panicked"))?
    }

    /// Ends it and says what it did.
    pub fn stop(mut self) -> Result<Report> {
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_adds_to_what_holds_for_both() {
        let links = Links {
            both: "rate=50M,delay=50ms".into(),
            ab: "loss=1%".into(),
            ba: "rate=0".into(),
            seed: 3,
        };
        let [ab, ba] = links.configs().expect("good descriptions");
        assert_eq!((ab.rate, ab.loss.mean()), (50_000_000, 0.01));
        assert_eq!((ba.rate, ba.loss.mean()), (0, 0.0));
        assert_eq!(ab.delay, ba.delay);
        let wrong = Links {
            ba: "speed=1".into(),
            ..links
        };
        let error = wrong.configs().expect_err("no such key");
        assert!(
            error.is::<Usage>() && error.to_string().starts_with("--ba"),
            "{error}"
        );
    }
}
