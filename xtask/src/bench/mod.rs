//! Measurements: one record per figure, a table for people and JSON for machines.
//!
//! Arms alternate inside one run; a figure is the median of the per-round ratios, its spread their first and third
//! quartile. A figure that misses its goal is printed as it is.

mod dataplane;
mod esp;
mod gateway;
mod ike;
mod netns;
mod receivers;
pub mod tcp;
mod terminal;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Options of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to measure: dataplane, esp, ike, tcp, terminal.
    pub name: String,
    /// Finish within five minutes.
    #[arg(long)]
    pub quick: bool,
    /// Measure only these parts, separated by commas (esp: engine, gateway; ike: psk, ecdsa, mlkem, many; tcp:
    /// goodput, megabyte, snoop, sharing, processor, latency, idle).
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    pub only: Vec<String>,
    /// tcp: of the goodput, measure this course only (round trip in ms, percent lost: 600.5), and print what the
    /// gateway says of the connection once per second.
    #[arg(long, value_name = "RTT.LOSS")]
    pub course: Option<String>,
    /// Measure the programs as they are built, optimised or not.
    #[arg(long, hide = true)]
    pub as_built: bool,
    /// Write the records here, too.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Whether more or less of a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// More.
    Higher,
    /// Less.
    Lower,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// `part.what[.size]`, the same in quick and full runs.
    pub id: String,
    /// Median over the rounds.
    pub value: f64,
    /// `ratio`, `percent`, `bytes`, ...
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// What it should be, where there is a goal.
    pub goal: Option<f64>,
    /// First and third quartile over the rounds.
    pub spread: [f64; 2],
    /// Number of rounds.
    pub rounds: usize,
    /// What was compared, with the figure of each arm.
    pub arms: BTreeMap<String, String>,
    /// Under which conditions.
    pub conditions: BTreeMap<String, String>,
}

impl Record {
    /// A record of the per-round values. At least one round is expected.
    pub fn new(id: impl Into<String>, unit: &'static str, better: Better, rounds: &[f64]) -> Self {
        Self {
            id: id.into(),
            value: round(quantile(rounds, 0.5)),
            unit,
            better,
            goal: None,
            spread: [round(quantile(rounds, 0.25)), round(quantile(rounds, 0.75))],
            rounds: rounds.len(),
            arms: BTreeMap::new(),
            conditions: BTreeMap::new(),
        }
    }

    /// With a goal.
    pub fn goal(mut self, goal: f64) -> Self {
        self.goal = Some(goal);
        self
    }

    /// With an arm: who it is and what it reached.
    pub fn arm(mut self, name: &str, text: impl Into<String>) -> Self {
        self.arms.insert(name.into(), text.into());
        self
    }

    /// With a condition.
    pub fn condition(mut self, name: &str, value: impl ToString) -> Self {
        self.conditions.insert(name.into(), value.to_string());
        self
    }

    /// Whether the goal is met; `None` without one.
    pub fn met(&self) -> Option<bool> {
        self.goal.map(|goal| match self.better {
            Better::Higher => self.value >= goal,
            Better::Lower => self.value <= goal,
        })
    }
}

/// The value below which the share `at` (0 to 1) of `values` lies, between neighbours in proportion.
pub fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = at * sorted.len().saturating_sub(1) as f64;
    let low = sorted.get(place.floor() as usize).copied().unwrap_or(f64::NAN);
    let high = sorted.get(place.ceil() as usize).copied().unwrap_or(low);
    low + (high - low) * place.fract()
}

/// Four significant digits: more would be noise.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// Prints records for people.
pub fn print_table(records: &[Record]) {
    println!("{}", table(records));
}

fn table(records: &[Record]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["figure", "median", "quartiles", "goal", "arms"]);
    for record in records {
        let goal = match (record.goal, record.met()) {
            (Some(goal), Some(met)) => {
                let sign = if record.better == Better::Higher {
                    "≥"
                } else {
                    "≤"
                };
                format!("{sign} {goal}: {}", if met { "met" } else { "missed" })
            }
            _ => String::new(),
        };
        let arms: Vec<String> = record
            .arms
            .iter()
            .map(|(name, text)| format!("{name}: {text}"))
            .collect();
        table.add_row([
            record.id.clone(),
            format!("{} {}", record.value, record.unit),
            format!("{} to {}", record.spread[0], record.spread[1]),
            goal,
            arms.join("\n"),
        ]);
    }
    table
}

/// Runs one benchmark, prints its table, and keeps its records under `target/bench`.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    let records = match args.name.as_str() {
        "dataplane" if cfg!(debug_assertions) => return run_optimised(root, args),
        "dataplane" => dataplane::run(root, args)?,
        "tcp" if cfg!(debug_assertions) && !args.as_built => return run_optimised(root, args),
        "tcp" => tcp::run(root, args)?,
        "ike" => ike::run(root, args)?,
        "esp" if cfg!(debug_assertions) && !args.as_built => return run_optimised(root, args),
        "esp" => esp::run(root, args)?,
        "terminal" => terminal::run(root, args)?,
        other => {
            let known = "there are dataplane, esp, ike, tcp and terminal";
            return Err(crate::sh::Usage(format!("there is no benchmark {other:?}; {known}")).into());
        }
    };
    print_table(&records);
    if args.name == "tcp" {
        tcp::write(root, &records, &table(&records).to_string())?;
    }
    let kept = root.join("target/bench").join(format!("{}.json", args.name));
    for path in [Some(&kept), args.json.as_ref()].into_iter().flatten() {
        write_json(path, &records)?;
    }
    println!("records: {}", kept.display());
    Ok(())
}

fn write_json(path: &Path, records: &[Record]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(records)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The packet loops of this very program are measured: let the compiler do its best first.
fn run_optimised(root: &Path, args: &Args) -> Result<()> {
    println!("bench: building the benchmark optimised");
    let packages: &[&str] = if args.name == "tcp" || args.name == "esp" {
        &["xtask", "towpath"]
    } else {
        &["xtask"]
    };
    let mut build = Command::new("cargo");
    build
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--release"]);
    for package in packages {
        build.args(["--package", package]);
    }
    if !build.status().context("cannot start cargo")?.success() {
        bail!("the benchmark could not be built");
    }
    let mut command = Command::new(root.join("target/release/xtask"));
    command.current_dir(root).args(["bench", &args.name]);
    if !args.only.is_empty() {
        command.arg(format!("--only={}", args.only.join(",")));
    }
    if let Some(course) = &args.course {
        command.arg(format!("--course={course}"));
    }
    if args.quick {
        command.arg("--quick");
    }
    if let Some(path) = &args.json {
        command.arg("--json").arg(std::path::absolute(path)?);
    }
    let status = command.status().context("cannot start the benchmark")?;
    if !status.success() {
        bail!("the benchmark did not finish ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_median_with_quartiles() {
        let record = Record::new("a.b", "ratio", Better::Lower, &[5.0, 1.0, 2.0, 4.0, 3.0]).goal(1.5);
        assert_eq!((record.value, record.spread, record.rounds), (3.0, [2.0, 4.0], 5));
        assert_eq!(record.met(), Some(false));
        assert_eq!(
            Record::new("a.b", "ratio", Better::Higher, &[2.0])
                .goal(1.5)
                .met(),
            Some(true)
        );
        assert_eq!(round(123_456.0), 123_500.0);
        assert_eq!(round(0.012_345), 0.012_35);
    }

    #[test]
    fn a_record_has_the_fields_of_the_format() {
        let record = Record::new("a.b", "ratio", Better::Lower, &[1.0])
            .goal(1.15)
            .arm("ours", "x")
            .condition("mtu", 1500);
        let json: serde_json::Value = serde_json::to_value(&record).unwrap();
        let expected = serde_json::json!({
            "id": "a.b", "value": 1.0, "unit": "ratio", "better": "lower", "goal": 1.15, "spread": [1.0, 1.0],
            "rounds": 1, "arms": {"ours": "x"}, "conditions": {"mtu": "1500"}
        });
        assert_eq!(json, expected);
    }
}
