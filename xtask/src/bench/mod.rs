//! Measurements.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Options of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    pub name: String,
    /// Finish within five minutes.
    #[arg(long)]
    pub quick: bool,
    /// Write the records here, too.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Runs one benchmark.
pub fn run(_root: &Path, args: &Args) -> Result<()> {
    bail!("there is no benchmark {:?} yet", args.name)
}
