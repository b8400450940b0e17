//! `cargo xtask fuzz`: coverage-guided fuzzing of everything that reads bytes from outside.
//!
//! libFuzzer with the compiler's own coverage instrumentation, so the ordinary toolchain is enough. The targets are
//! the files of `tests/fuzz/targets`; `tests/fuzz/corpus` holds what is worth starting from, and is run through the
//! targets by the ordinary test `corpus`.

mod corpus;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::sh::{Cmd, Output, Usage, last_lines};
use crate::ui::Step;

/// The host's triple: instrumentation must not reach build scripts, hence a target of its own.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Instrumentation that libFuzzer reads (clang's SanitizerCoverage).
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// Slowest input, seconds, and largest process, MiB, before they are findings.
const TIMEOUT: u32 = 10;
const MEMORY: u32 = 2048;

/// Options of `cargo xtask fuzz`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Targets to run, all by default
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 600)]
    pub seconds: u64,
    /// Only name the targets
    #[arg(long)]
    pub list: bool,
    /// Choose the committed corpus anew from it and everything found so far: few small inputs that reach the same
    #[arg(long)]
    pub keep: bool,
    /// Run one input, a finding for instance, or all of a folder, and show what happens
    #[arg(long, value_name = "PATH", conflicts_with_all = ["list", "keep"])]
    pub replay: Option<PathBuf>,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// What became of one target.
#[derive(Debug, Serialize)]
struct Outcome {
    target: String,
    seconds: u64,
    runs: u64,
    /// Edges of the program that were reached.
    coverage: u64,
    /// Inputs in the corpus at the end.
    corpus: u64,
    /// The input that was a finding.
    finding: Option<PathBuf>,
}

struct Places {
    folder: PathBuf,
    binaries: PathBuf,
}

impl Places {
    fn new(root: &Path) -> Self {
        Self {
            folder: root.join("tests/fuzz"),
            binaries: root.join("target/fuzz").join(TRIPLE).join("release"),
        }
    }

    /// The committed corpus.
    fn corpus(&self, target: &str) -> PathBuf {
        self.folder.join("corpus").join(target)
    }

    fn artifacts(&self, target: &str) -> PathBuf {
        self.folder.join("artifacts").join(target)
    }
}

/// Builds and runs the targets. An error when there is a finding.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    let places = Places::new(root);
    let titles = targets(&places.folder)?;
    if args.list {
        for (name, title) in &titles {
            println!("{name:<16} {title}");
        }
        return Ok(());
    }
    let chosen = choose(&titles, &args.targets)?;
    build(root, &places, &chosen)?;
    if let Some(input) = &args.replay {
        let [target] = chosen.as_slice() else {
            return Err(Usage("--replay needs exactly one target".into()).into());
        };
        return Cmd::new(places.binaries.join(target)).args(files(input)?).show();
    }
    let outcomes: Vec<_> = chosen
        .iter()
        .map(|target| fuzz(root, &places, target, args))
        .collect::<Result<_>>()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    }
    let findings: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.finding.is_some())
        .collect();
    for outcome in &findings {
        let path = outcome.finding.as_deref().unwrap_or(Path::new(""));
        eprintln!(
            "{}: finding; replay with: cargo xtask fuzz {} --replay {}",
            outcome.target,
            outcome.target,
            path.display()
        );
    }
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} of {} targets have a finding", findings.len(), outcomes.len())
}

/// Name and first line of documentation of every target.
fn targets(folder: &Path) -> Result<BTreeMap<String, String>> {
    let folder = folder.join("targets");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let (Some(name), Some("rs")) = (
            path.file_stem().and_then(|name| name.to_str()),
            path.extension().and_then(|it| it.to_str()),
        ) else {
            continue;
        };
        let text = fs::read_to_string(&path)?;
        let title = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("//!")
            .trim();
        found.insert(name.to_owned(), title.to_owned());
    }
    Ok(found)
}

/// The file itself, or those of the folder.
fn files(input: &Path) -> Result<Vec<PathBuf>> {
    if !input.is_dir() {
        return Ok(vec![input.to_owned()]);
    }
    let mut files: Vec<_> = fs::read_dir(input)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}

fn choose(titles: &BTreeMap<String, String>, wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !titles.contains_key(*name)) {
        let names: Vec<_> = titles.keys().map(String::as_str).collect();
        return Err(Usage(format!(
            "no fuzz target {unknown}; there are {}",
            names.join(", ")
        ))
        .into());
    }
    Ok(if wanted.is_empty() {
        titles.keys().cloned().collect()
    } else {
        wanted.to_vec()
    })
}

fn build(root: &Path, places: &Places, chosen: &[String]) -> Result<()> {
    let step = Step::new("build the fuzz targets with instrumentation");
    let mut cmd = Cmd::line("cargo build --release --locked --quiet --target")
        .arg(TRIPLE)
        .env("CARGO_TARGET_DIR", root.join("target/fuzz"))
        .env("RUSTFLAGS", FLAGS)
        .dir(&places.folder);
    for target in chosen {
        cmd = cmd.args(["--bin", target]);
    }
    match cmd.show() {
        Ok(()) => step.done(""),
        Err(error) => {
            step.failed("");
            return Err(error);
        }
    }
    Ok(())
}

fn fuzz(root: &Path, places: &Places, target: &str, args: &Args) -> Result<Outcome> {
    let committed = places.corpus(target);
    let grown = root.join("target/fuzz/corpus").join(target);
    let artifacts = places.artifacts(target);
    for folder in [&committed, &grown, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let step = Step::new(format!("{target}, {} s", args.seconds));
    let output = Cmd::new(places.binaries.join(target))
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .arg(&grown)
        .arg(&committed)
        .limit(Duration::from_secs(args.seconds + 120))
        .output()?;
    let outcome = read(target, args.seconds, &output);
    let text = format!(
        "{} runs, {} edges, {} inputs",
        outcome.runs, outcome.coverage, outcome.corpus
    );
    if outcome.finding.is_none() {
        step.done(text);
    } else {
        step.failed(text);
        eprintln!("{}", last_lines(&output.stderr, 40));
    }
    if args.keep {
        let step = Step::new(format!("{target}, choose the corpus"));
        let count = corpus::keep(&places.binaries.join(target), &grown, &committed)?;
        step.done(format!("{count} inputs"));
    }
    Ok(outcome)
}

/// Reads libFuzzer's own words.
fn read(target: &str, seconds: u64, output: &Output) -> Outcome {
    let word_after = |line: &str, word: &str| -> Option<u64> {
        line.split_once(word)?.1.split_whitespace().next()?.parse().ok()
    };
    let last = |word: &str| {
        output
            .stderr
            .lines()
            .rev()
            .find_map(|line| word_after(line, word))
    };
    let corpus = output.stderr.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once("corp: ")?;
        rest.split(['/', ' ']).next()?.parse().ok()
    });
    let finding = output.stderr.lines().find_map(|line| {
        let (_, path) = line.split_once("Test unit written to ")?;
        Some(PathBuf::from(path.trim()))
    });
    Outcome {
        target: target.to_owned(),
        seconds,
        runs: last("stat::number_of_executed_units:").unwrap_or(0),
        coverage: last("cov: ").unwrap_or(0),
        corpus: corpus.unwrap_or(0),
        // A process that ends badly without a unit (out of memory in the harness) is a finding without a file.
        finding: finding.or_else(|| (!output.ok()).then(PathBuf::new)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_words_are_read() {
        let output = |code, stderr: &str| Output {
            code: Some(code),
            stdout: String::new(),
            stderr: stderr.into(),
        };
        let fine =
            "#99\tDONE   cov: 612 ft: 2100 corp: 41/5kb exec/s: 9\nstat::number_of_executed_units: 1234\n";
        let outcome = read("esp", 1, &output(0, fine));
        assert_eq!((outcome.runs, outcome.coverage, outcome.corpus), (1234, 612, 41));
        assert!(outcome.finding.is_none());
        let bad = "panicked\nartifact_prefix='a/'; Test unit written to a/crash-1\n";
        let outcome = read("esp", 1, &output(77, bad));
        assert_eq!(outcome.finding, Some(PathBuf::from("a/crash-1")));
    }

    #[test]
    fn an_unknown_target_is_a_wrong_command_line() {
        let titles = BTreeMap::from([("esp".to_owned(), String::new())]);
        assert!(choose(&titles, &["nothing".into()]).unwrap_err().is::<Usage>());
        assert_eq!(choose(&titles, &[]).unwrap(), ["esp"]);
    }
}
