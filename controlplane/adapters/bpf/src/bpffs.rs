//! The BPF file system: where pinned maps and links outlive the process.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use crate::Error;

/// Where the data plane is pinned unless told otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/towpath";

const BPFFS_ROOT: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// What [`ensure_bpffs`] had to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mounted {
    /// The directory was on a bpffs already.
    Before,
    /// A bpffs was mounted here. In a private mount namespace (`ip netns exec` makes one) the pins end with
    /// its last process.
    Now(PathBuf),
}

/// Makes `dir` exist on a bpffs, mounting one if need be: at `/sys/fs/bpf` for a directory below it, else at
/// `dir` itself.
pub fn ensure_bpffs(dir: &Path) -> Result<Mounted, Error> {
    let existing = dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let mut mounted = Mounted::Before;
    if !is_bpffs(existing)? {
        let root = if dir.starts_with(BPFFS_ROOT) {
            Path::new(BPFFS_ROOT)
        } else {
            dir
        };
        if !root.exists() {
            fs::create_dir_all(root).map_err(Error::file("create", root))?;
        }
        mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>)
            .map_err(Error::file("mount a bpffs at", root))?;
        mounted = Mounted::Now(root.to_owned());
    }
    let mut builder = fs::DirBuilder::new();
    // The maps hold who talks to whom: for root alone.
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(Error::file("create", dir))?;
    Ok(mounted)
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    let stat = statfs(path).map_err(Error::file("examine", path))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Holds the directory against another process that changes the pinned maps, until dropped.
pub(crate) fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let file = File::open(dir).map_err(Error::file("open", dir))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::file("lock", dir)(errno))
}
