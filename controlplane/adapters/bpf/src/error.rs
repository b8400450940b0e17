//! What can go wrong between us and the kernel.

use std::io;
use std::path::PathBuf;

use towpath_common::abi::ABI_VERSION;

/// A failure of the data plane's user-space side. Every text says what was being done to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object file is not there.
    #[error(
        "no XDP object found (looked at {looked_at}); build it with `cargo xtask build-ebpf` or name it with {variable}",
        variable = crate::OBJECT_VARIABLE
    )]
    NoObject {
        /// Paths tried.
        looked_at: String,
    },
    /// The object file is not a BPF object of this project.
    #[error("{path} is not a Towpath XDP object: {reason}", path = path.display())]
    BadObject {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Object or pinned maps speak another version.
    #[error(
        "{what} has ABI version {found}, this program speaks {expected}{hint}",
        expected = ABI_VERSION
    )]
    AbiMismatch {
        /// File or directory.
        what: String,
        /// Its version.
        found: u32,
        /// What to do.
        hint: &'static str,
    },
    /// Nothing is pinned there.
    #[error("no data plane is pinned at {path}", path = .0.display())]
    NotPinned(PathBuf),
    /// An interface cannot be used.
    #[error("interface {name}: {reason}")]
    Interface {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// More ports than the maps have room for, or a queue beyond the port's share.
    #[error("{0}")]
    Limit(String),
    /// A condition belongs to another subscriber already.
    #[error("conditions for {what} belong to subscriber {owner} already")]
    Conflict {
        /// The address, prefix or pair.
        what: String,
        /// Handle of the subscriber that holds it.
        owner: u64,
    },
    /// A file or directory operation failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a map operation.
    #[error("map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        source: aya::maps::MapError,
    },
    /// The kernel refused program or maps.
    #[error("cannot load the XDP program: {0}")]
    Load(String),
    /// The program is loaded, but a port does not take it.
    #[error("cannot attach to {name}: {reason}")]
    Attach {
        /// The interface.
        name: String,
        /// Why, with the modes tried.
        reason: String,
    },
}

impl Error {
    pub(crate) fn map(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source }
    }

    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source: source.into(),
        }
    }
}
