//! Builds the XDP object.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Builds `dataplane-ebpf` and returns the path of the object.
pub fn build(_root: &Path) -> Result<PathBuf> {
    bail!("there is no XDP program to build yet")
}
