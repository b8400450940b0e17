//! What must survive a restart: the registration counter.
//!
//! The counter is also the nonce of registrations under a key that never changes, so it must never go back.
//! The file holds a mark that every counter used so far is below; it is written, synchronised and renamed
//! into place before a counter at or above the old mark is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the file starts with.
const KEY: &str = "registration_counter = ";

/// Registrations per second that a lost file could be behind: more than any terminal sends.
const COUNTERS_PER_SECOND: u64 = 1 << 20;

/// The state file, held by one process at a time.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    /// Locked as long as it is open. Not the file itself: that one is replaced by each write.
    _lock: File,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process holds it: two terminals with one counter would use nonces twice.
    #[error("state_file = {0}: used by another process; each terminal needs its own")]
    InUse(PathBuf),
    /// Not written by us. It is left alone, since to start again would use nonces twice.
    #[error("state_file = {0}: expected the line \"registration_counter = NUMBER\"")]
    Damaged(PathBuf),
    /// It cannot be read or written.
    #[error("state_file = {0}: {1}")]
    Io(PathBuf, io::Error),
}

impl StateFile {
    /// Locks and reads `path`, creating its folder. Returns the mark below which all used counters lie.
    ///
    /// Without a file, counting starts at a mark taken from the clock: should the file have been lost, what
    /// was used before lies below it.
    pub(crate) fn open(path: &Path) -> Result<(Self, u64), StateError> {
        let failed = |error| StateError::Io(path.to_owned(), error);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(beside(path, "lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StateError::InUse(path.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mark = match fs::read_to_string(path) {
            Ok(text) => {
                let number = text
                    .strip_prefix(KEY)
                    .and_then(|number| number.trim_end().parse().ok());
                number.ok_or_else(|| StateError::Damaged(path.to_owned()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => by_the_clock(SystemTime::now()),
            Err(error) => return Err(failed(error)),
        };
        Ok((
            Self {
                path: path.to_owned(),
                _lock: lock,
            },
            mark,
        ))
    }

    /// Writes `mark`; it is on the disk when this returns.
    pub(crate) fn store(&self, mark: u64) -> Result<(), StateError> {
        self.try_store(mark)
            .map_err(|error| StateError::Io(self.path.clone(), error))
    }

    fn try_store(&self, mark: u64) -> io::Result<()> {
        let new = beside(&self.path, "new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        writeln!(file, "{KEY}{mark}")?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// `path` with `.suffix` added.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn by_the_clock(now: SystemTime) -> u64 {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    seconds.saturating_mul(COUNTERS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_mark_survives_and_belongs_to_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/terminal.state");
        let (state, first) = StateFile::open(&path).unwrap();
        assert!(first > COUNTERS_PER_SECOND, "taken from the clock");
        assert!(matches!(StateFile::open(&path), Err(StateError::InUse(_))));
        state.store(42).unwrap();
        state.store(43).unwrap();
        drop(state);
        let (_state, mark) = StateFile::open(&path).unwrap();
        assert_eq!(mark, 43);
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("terminal.state");
        for text in [
            "",
            "registration_counter = ",
            "registration_counter = -1\n",
            "counter = 7\n",
        ] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(StateFile::open(&path), Err(StateError::Damaged(_))),
                "{text:?}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn without_a_file_counting_starts_above_all_that_went_before() {
        let then = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let used = by_the_clock(then) + 3600 * 1000;
        assert!(by_the_clock(then + Duration::from_secs(3600)) > used);
    }
}
