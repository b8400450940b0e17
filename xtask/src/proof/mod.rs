//! The main job, run in the lab and judged.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Options of `cargo xtask run`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Run every scenario once, print a table, exit 0 if all passed.
    #[arg(long)]
    pub once: bool,
    /// Load onto these real interfaces: access side first, core side second.
    #[arg(long, num_args = 1, requires = "config", value_name = "IFACE")]
    pub iface: Vec<String>,
    /// Configuration for real interfaces.
    #[arg(long, requires = "iface", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the command.
pub fn run(_root: &Path, _args: &Args) -> Result<()> {
    bail!("the daemon is not there yet")
}
