//! `cargo xtask bench terminal`: what the terminal costs.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Args, Record};

/// Measures and returns the records.
pub(super) fn run(_root: &Path, _args: &Args) -> Result<Vec<Record>> {
    bail!("the terminal is not measured yet")
}
