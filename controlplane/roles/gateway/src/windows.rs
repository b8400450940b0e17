//! What stored SAs have used up, where a killed process leaves it: a small file, written in place.
//!
//! ```text
//!   worker ─► datapath accepts ─► write here ─► packets leave        a page of the kernel's: it outlives the process
//!   control ─► disk, once a second                                   outlives the machine, up to a second behind
//! ```
//!
//! **Architecture invariant:** what was accepted is written before it leaves. So after SIGKILL no packet is accepted
//! twice; after a power failure at most those of the last second may be.
//!
//! A record of 128 bytes for each SA, at its number times 128; numbers are never used twice:
//!
//! ```text
//!   magic 8 | number 8 | added, seconds since 1970 8 | received 2 x 8 | packets 2 x 8 | bytes 2 x 8 | zero
//! ```
//!
//! Big-endian; of two numbers the first is that of the direction to the peer.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use towpath_ipsec::Used;

const MAGIC: [u8; 8] = *b"towpath1";
const RECORD: u64 = 128;
/// Where the part begins that the worker writes.
const USED_AT: u64 = 24;

/// The file.
#[derive(Debug)]
pub struct Windows {
    file: File,
}

impl Windows {
    /// Opens it; it is made if it is not there.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file })
    }

    /// Another handle of the same file: for the other thread.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        let file = self.file.try_clone()?;
        Ok(Self { file })
    }

    /// What the SA has used up, and its age. One that is not there yet begins now.
    ///
    /// # Errors
    /// The file system's.
    pub fn resume(&self, number: u64) -> io::Result<(Used, Duration)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = number.saturating_mul(RECORD);
        let mut record = [0; RECORD as usize];
        let mut len = 0;
        while let Some(rest) = record.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at + len as u64) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut words = record.chunks_exact(8).map(|word| {
            let word = <[u8; 8]>::try_from(word).unwrap_or_default();
            u64::from_be_bytes(word)
        });
        let mut next = || words.next().unwrap_or_default();
        if (next(), next()) == (u64::from_be_bytes(MAGIC), number) {
            let added = Duration::from_secs(next());
            let mut pair = || [next(), next()];
            let used = Used {
                received: pair(),
                packets: pair(),
                bytes: pair(),
            };
            return Ok((used, now.saturating_sub(added)));
        }
        let mut fresh = [0; RECORD as usize];
        let head = [MAGIC, number.to_be_bytes(), now.as_secs().to_be_bytes()].concat();
        for (byte, value) in fresh.iter_mut().zip(head) {
            *byte = value;
        }
        self.file.write_all_at(&fresh, at)?;
        self.file.sync_data()?;
        Ok((Used::default(), Duration::ZERO))
    }

    /// Keeps what the SA has used up.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep(&self, number: u64, used: &Used) -> io::Result<()> {
        let Used {
            received,
            packets,
            bytes,
        } = *used;
        let mut record = [0; 48];
        let words = [received, packets, bytes].into_iter().flatten();
        for (place, word) in record.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        self.file
            .write_all_at(&record, number.saturating_mul(RECORD).saturating_add(USED_AT))
    }

    /// What was kept, onto the disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_for_the_next_process_and_only_for_that_sa() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("windows");
        let used = Used {
            received: [7, u64::MAX],
            packets: [1, 2],
            bytes: [3, 1 << 40],
        };
        {
            let windows = Windows::open(&path).unwrap();
            assert_eq!(windows.resume(3).unwrap(), (Used::default(), Duration::ZERO));
            windows.try_clone().unwrap().keep(3, &used).unwrap();
            windows.sync().unwrap();
        }
        let windows = Windows::open(&path).unwrap();
        let (found, age) = windows.resume(3).unwrap();
        assert!(
            found == used && age < Duration::from_secs(60),
            "{found:?} {age:?}"
        );
        for other in [2, 4, 1000] {
            assert_eq!(windows.resume(other).unwrap().0, Used::default());
        }
        assert_eq!(windows.resume(3).unwrap().0, used);
    }
}
