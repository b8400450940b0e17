//! Everything `cargo xtask` does, as a library so that the tests under `tests/` can use the lab.
//!
//! * [`lab`]: namespaces, peers and captures (real strongSwan, real kernels);
//! * [`proof`]: the main job run in the lab, one scenario after the other, and judged;
//! * [`linkem`]: emulated links between two interfaces; [`load`]: TCP load over them;
//! * [`layers`]: the dependency rules, checked;
//! * [`setup`], [`check`], [`suite`]: what a machine needs, what a commit needs, what a release needs;
//! * [`ebpf`]: builds the XDP object; [`mod@bench`]: measures.
#![forbid(unsafe_code)]

pub mod bench;
pub mod check;
pub mod ebpf;
pub mod fuzz;
pub mod lab;
pub mod layers;
pub mod linkem;
pub mod load;
pub mod proof;
pub mod pump;
pub mod setup;
pub mod sh;
pub mod suite;
pub mod ui;

use std::path::PathBuf;

/// The repository's root folder.
pub fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}
