//! Where the processor time of a relayed gigabyte goes, as text for people: no figure of its own.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::receivers::receivers;
use super::Plan;
use super::stage::{Arm, Stage};
use super::street::cpu_seconds;
use crate::linkem::Links;
use crate::load;
use crate::sh::Cmd;

/// What a thread has used so far.
#[derive(Debug, Clone, Copy)]
struct Used {
    user: f64,
    system: f64,
    /// Times it went to sleep.
    slept: u64,
}

impl Used {
    fn of(thread: &Path) -> Option<Self> {
        let stat = fs::read_to_string(thread.join("stat")).ok()?;
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().skip(11);
        let mut seconds = || fields.next()?.parse::<f64>().ok().map(|ticks| ticks / 100.0);
        let (user, system) = (seconds()?, seconds()?);
        let status = fs::read_to_string(thread.join("status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some(Self {
            user,
            system,
            slept: line.trim().parse().ok()?,
        })
    }
}

/// Fetches through the relay and writes what its threads did meanwhile to `file`.
pub(super) fn write(stage: &Stage, plan: &Plan, devices: &[&str], file: &Path) -> Result<()> {
    let daemon = stage.daemon()?;
    let mut threads = vec![("the worker".to_owned(), worker(daemon)?)];
    for device in devices {
        let receiver = receivers(&[device])
            .next()
            .context("its packets are received by a thread of their own")?;
        threads.push((
            format!("receiving on {device}"),
            PathBuf::from(format!("/proc/{receiver}")),
        ));
    }
    let link = stage.link(&Links::default())?;
    let before: Vec<_> = threads.iter().map(|(_, thread)| Used::of(thread)).collect();
    let cpu = cpu_seconds(daemon, devices);
    let time = plan.cost.max(Duration::from_secs(4));
    let perf = file.with_extension("perf");
    let recorder = record(&threads, &perf, time);
    let seen = load::download(stage.terminal(), stage.server(Arm::Split), u64::MAX, time)?;
    let cpu = cpu_seconds(daemon, devices) - cpu;
    let (bytes, seconds) = (seen.bytes() as f64, seen.took.as_secs_f64());
    let gigabytes = bytes / 1e9;
    let mut text = format!(
        "{:.0} Mb/s; {:.2} processor seconds per GB in all\n",
        bytes * 8e-6 / seconds,
        cpu / gigabytes
    );
    for ((name, thread), before) in threads.iter().zip(before) {
        if let (Some(before), Some(after)) = (before, Used::of(thread)) {
            let _ = writeln!(
                text,
                "{name}: {:.2} user, {:.2} system seconds per GB; slept {:.0} times per MB",
                (after.user - before.user) / gigabytes,
                (after.system - before.system) / gigabytes,
                (after.slept - before.slept) as f64 / gigabytes / 1e3,
            );
        }
    }
    drop(recorder.map(|thread| thread.join()));
    drop(link.stop()?);
    text.push_str(&report(&perf));
    fs::write(file, &text)?;
    let head: Vec<_> = text.lines().take(4).collect();
    println!("{}\nprofile: {}", head.join("\n"), file.display());
    Ok(())
}

/// The thread that carries packets.
fn worker(daemon: u32) -> Result<PathBuf> {
    let is_worker =
        |thread: &PathBuf| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "worker");
    fs::read_dir(format!("/proc/{daemon}/task"))?
        .flatten()
        .map(|entry| entry.path())
        .find(is_worker)
        .context("the daemon has a worker")
}

/// Samples the threads meanwhile; without `perf` there are no samples.
fn record(threads: &[(String, PathBuf)], file: &Path, time: Duration) -> Option<std::thread::JoinHandle<()>> {
    let ids: Vec<_> = threads
        .iter()
        .filter_map(|(_, thread)| thread.file_name()?.to_str())
        .collect();
    let command = Cmd::line("perf record -q -F 1999 -e cpu-clock")
        .arg("-t")
        .arg(ids.join(","))
        .arg("-o")
        .arg(file)
        .args(["--", "sleep"])
        .arg(time.as_secs().to_string());
    Some(std::thread::spawn(move || {
        // No profile is not worth a failure.
        drop(command.output());
    }))
}

fn report(file: &Path) -> String {
    let table = |sort: &str| {
        let command = Cmd::line("perf report --stdio -q -g none --percent-limit 0.15 --sort").arg(sort);
        let output = command.arg("-i").arg(file).output();
        output.map(|output| output.stdout).unwrap_or_default()
    };
    let text = format!("\n{}\n{}", table("comm,dso"), table("comm,dso,symbol"));
    let _ = fs::remove_file(file);
    text
}
