//! `cargo xtask lab`.

use std::path::Path;

use anyhow::{Result, bail};

/// Options of `cargo xtask lab`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_root: &Path, _args: &Args) -> Result<()> {
    bail!("no lab yet")
}
