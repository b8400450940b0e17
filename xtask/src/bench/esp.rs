//! `cargo xtask bench esp`: what opening and sealing costs.
//!
//! * `esp.seal_open_vs_raw.64`, `.512`, `.1400`: nanoseconds a gateway's bridge takes for a packet of class `full` (open
//!   with one segment's key, check, seal with the other's) ÷ those of the cipher alone on the same bytes.
//! * `esp.ns_per_packet.SUITE`: the bridge at 1400 bytes, for one suite of each kind.
//! * `esp.10k_sas_vs_1`: throughput over ten thousand SAs in random order ÷ over one.
//! * `esp.bytes_per_sa`: what one more SA costs a gateway in memory.
//!
//! * `esp.gateway_vs_…`: the daemon itself, see [`gateway`].
//!
//! The program measured is `esp_speed` of `tests/cost`: one thread, no sockets, the engines as the gateway calls them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Args, Better, Record, gateway, quantile};
use crate::sh::{Cmd, Usage};
use crate::ui;

/// One of each kind.
const SUITES: &[&str] = &[
    "aes128gcm16",
    "aes256gcm16",
    "chacha20poly1305",
    "aes128ccm16",
    "aes128-sha256",
    "aes256-sha512",
    "aes128ctr-sha256",
    "null-sha256",
];

/// SAs of the figure about many.
const MANY: &str = "10000";

/// Measures and returns the records.
pub(super) fn run(root: &Path, args: &Args) -> Result<Vec<Record>> {
    let rounds = if args.quick { "15" } else { "41" };
    let wants = |part: &str| args.only.is_empty() || args.only.iter().any(|only| only == part);
    if let Some(unknown) = args
        .only
        .iter()
        .find(|part| !["engine", "gateway"].contains(&part.as_str()))
    {
        let text = format!("bench esp has no part {unknown:?}; there are engine and gateway");
        return Err(Usage(text).into());
    }
    let program = ui::step("building the engines optimised", || build(root))?;
    let mut records = Vec::new();
    if wants("engine") {
        records.extend(engine_part(&program, rounds)?);
    }
    if wants("gateway") {
        records.extend(gateway::run(root, args, &program.with_file_name("esp_load"))?);
    }
    Ok(records)
}

fn engine_part(program: &Path, rounds: &str) -> Result<Vec<Record>> {
    let mut records = engine(program, rounds)?;
    records.push(many(program, rounds)?);
    records.push(memory(program)?);
    for suite in SUITES {
        records.push(one_suite(program, suite, rounds)?);
    }
    Ok(records)
}

fn build(root: &Path) -> Result<PathBuf> {
    Cmd::line("cargo build --release --locked --package towpath-cost --bin esp_speed --bin esp_load")
        .dir(root)
        .run()?;
    Ok(root.join("target/release/esp_speed"))
}

/// The program's lines of numbers, one per round.
fn measure(program: &Path, arguments: &[&str]) -> Result<Vec<Vec<f64>>> {
    let output = Cmd::new(program).args(arguments).output()?;
    if !output.ok() {
        bail!("esp_speed {} did not finish", arguments.join(" "));
    }
    let lines = output.stdout.lines().map(|line| {
        let numbers: Option<Vec<f64>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
        numbers.with_context(|| format!("esp_speed said {line:?}"))
    });
    lines.collect()
}

fn column(rounds: &[Vec<f64>], at: usize) -> Vec<f64> {
    rounds
        .iter()
        .filter_map(|numbers| numbers.get(at).copied())
        .collect()
}

/// First column ÷ second, round by round.
fn ratios(rounds: &[Vec<f64>]) -> Vec<f64> {
    column(rounds, 0)
        .iter()
        .zip(column(rounds, 1))
        .map(|(a, b)| a / b)
        .collect()
}

fn nanoseconds(rounds: &[Vec<f64>], at: usize) -> String {
    format!("{:.0} ns per packet", quantile(&column(rounds, at), 0.5))
}

fn engine(program: &Path, rounds: &str) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for bytes in ["64", "512", "1400"] {
        let title = format!("opening and sealing packets of {bytes} bytes, {rounds} rounds");
        let lines = ui::step(&title, || measure(program, &["raw", bytes, rounds]))?;
        let mut record = Record::new(
            format!("esp.seal_open_vs_raw.{bytes}"),
            "ratio",
            Better::Lower,
            &ratios(&lines),
        )
        .arm("ours", nanoseconds(&lines, 0))
        .arm("aws-lc-rs alone", nanoseconds(&lines, 1))
        .condition("suite", "aes256gcm16")
        .condition("mode", "transport, IPv4, raw ESP")
        .condition("bytes", format!("{bytes}, the plain IP packet"))
        .condition("threads", 1);
        if bytes == "1400" {
            record = record.goal(1.15);
        }
        records.push(record);
    }
    Ok(records)
}

fn many(program: &Path, rounds: &str) -> Result<Record> {
    let title = format!("packets of {MANY} SAs in random order, {rounds} rounds");
    let lines = ui::step(&title, || measure(program, &["many", MANY, rounds]))?;
    Ok(
        Record::new("esp.10k_sas_vs_1", "ratio", Better::Higher, &ratios(&lines))
            .goal(0.8)
            .arm("one SA", nanoseconds(&lines, 0))
            .arm("10,000 SAs", nanoseconds(&lines, 1))
            .condition("suite", "aes256gcm16")
            .condition("bytes", 1400)
            .condition("level", "engine: look-up by SPI, open, seal; no sockets"),
    )
}

fn memory(program: &Path) -> Result<Record> {
    let lines = ui::step("memory of 10,000 SAs", || measure(program, &["memory", MANY]))?;
    let structure = column(&lines, 1).first().copied().unwrap_or(f64::NAN);
    Ok(
        Record::new("esp.bytes_per_sa", "bytes", Better::Lower, &column(&lines, 0))
            .arm("the structure itself", format!("{structure:.0} bytes"))
            .condition("suite", "aes256gcm16")
            .condition(
                "counts",
                "both directions, both segments: four keys, two replay windows of 960",
            ),
    )
}

fn one_suite(program: &Path, suite: &str, rounds: &str) -> Result<Record> {
    let lines = ui::step(&format!("{suite}, {rounds} rounds"), || {
        measure(program, &["suite", suite, rounds])
    })?;
    let values = column(&lines, 0);
    let gigabits = 1400.0 * 8.0 / quantile(&values, 0.5);
    Ok(
        Record::new(format!("esp.ns_per_packet.{suite}"), "ns", Better::Lower, &values)
            .arm("throughput", format!("{gigabits:.1} Gbit/s on one core"))
            .condition("suite", suite)
            .condition("bytes", 1400)
            .condition("mode", "transport, IPv4, raw ESP"),
    )
}
