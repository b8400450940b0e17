//! `cargo xtask bench tcp`: the TCP relay over emulated radio links, beside end-to-end TCP of this kernel.
//!
//! What the figures mean, and the bound's efficiency, is written in `controlplane/docs/link-emulator.md`.

mod bulk;
mod cost;
mod null;
mod plot;
mod profile;
pub mod splice;
mod stage;
mod street;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use self::stage::Stage;
use super::{Args, Record};
use crate::sh::Usage;

/// A part: its name, and what it measures.
type Part = (&'static str, fn(&Stage, &Plan) -> Result<Vec<Record>>);

/// The parts, in the order in which they are measured. Memory comes first: in a process that has carried load before, new
/// connections take what others left, and it does not grow.
const PARTS: [Part; 8] = [
    ("idle", cost::idle),
    ("goodput", bulk::goodput),
    ("megabyte", bulk::megabyte),
    ("snoop", bulk::snoop),
    ("sharing", bulk::sharing),
    ("processor", cost::processor),
    ("profile", cost::profile),
    ("latency", cost::latency),
];

/// The part that needs no stage.
const WITHOUT_STAGE: &str = "null";

/// How long and how often.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rounds: usize,
    /// Rounds of what takes a second.
    short_rounds: usize,
    /// Two connections side by side: left out at the start, and all.
    sharing: (Duration, Duration),
    /// Each measurement without impairment.
    cost: Duration,
    quick: bool,
    /// The only course of the goodput: round trip in milliseconds and percent.
    course: Option<(u64, u32)>,
}

impl Plan {
    fn new(quick: bool, course: Option<(u64, u32)>) -> Self {
        let seconds = |a, b| (Duration::from_secs(a), Duration::from_secs(b));
        Self {
            rounds: if quick { 1 } else { 7 },
            short_rounds: if quick { 5 } else { 15 },
            sharing: if quick { seconds(4, 14) } else { seconds(10, 60) },
            cost: Duration::from_secs(if quick { 2 } else { 5 }),
            quick,
            course,
        }
    }

    /// For a round trip in milliseconds: what is left out at the start, and the whole time.
    fn times(&self, rtt: u64) -> (Duration, Duration) {
        let seconds = match (rtt >= 600, self.quick) {
            (false, true) => (3, 9),
            (true, true) => (8, 20),
            (false, false) => (4, 24),
            (true, false) => (12, 52),
        };
        (Duration::from_secs(seconds.0), Duration::from_secs(seconds.1))
    }
}

/// `RTT.LOSS` as two numbers.
fn course(text: &str) -> Result<(u64, u32)> {
    let parts = text.split_once('.');
    parts
        .and_then(|(rtt, percent)| Some((rtt.parse().ok()?, percent.parse().ok()?)))
        .ok_or_else(|| Usage(format!("--course is {text:?}; expected for example 600.5")).into())
}

/// Writes the table and the picture beside the records.
pub(super) fn write(root: &Path, records: &[Record], table: &str) -> Result<()> {
    let folder = root.join("target/bench");
    std::fs::create_dir_all(&folder)?;
    for (name, text) in [("tcp.txt", format!("{table}\n")), ("tcp.svg", plot::svg(records))] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("table and plot: tcp.txt and tcp.svg in {}", folder.display());
    Ok(())
}

/// Measures and returns the records.
pub(super) fn run(root: &Path, args: &Args) -> Result<Vec<Record>> {
    let wanted = |part: &str| args.only.is_empty() || args.only.iter().any(|only| only == part);
    let known: Vec<_> = PARTS
        .iter()
        .map(|(name, _)| *name)
        .chain([WITHOUT_STAGE])
        .collect();
    if let Some(wrong) = args.only.iter().find(|name| !known.contains(&name.as_str())) {
        let known = known.join(", ");
        return Err(Usage(format!("--only is {wrong:?}; expected some of {known}")).into());
    }
    let plan = Plan::new(args.quick, args.course.as_deref().map(course).transpose()?);
    let mut records = Vec::new();
    if PARTS.iter().any(|(name, _)| wanted(name)) {
        let stage = Stage::new(root)?;
        for (name, measure) in PARTS.iter().filter(|(name, _)| wanted(name)) {
            println!("bench: {name}");
            records.extend(measure(&stage, &plan)?);
        }
    }
    if wanted(WITHOUT_STAGE) {
        println!("bench: {WITHOUT_STAGE}");
        records.extend(null::run(root, &plan)?);
    }
    Ok(records)
}
