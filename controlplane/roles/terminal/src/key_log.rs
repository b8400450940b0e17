//! Keys in clear, for laboratory tests that search captures for key material. Never in service.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use towpath_terminal_core::Secret;
use tracing::warn;

/// The log of this process. The core takes a plain function for a tap, which can carry nothing along.
static LOG: Mutex<Option<KeyLog>> = Mutex::new(None);

/// Starts to log secrets that [`tap`] is shown, beginning with the subscriber key.
pub(crate) fn start(path: &Path, ksub: &[u8; 32]) -> io::Result<()> {
    let mut log = KeyLog::open(path)?;
    log.add("ksub", ksub);
    *lock() = Some(log);
    Ok(())
}

/// Writes down a secret of the core's.
pub(crate) fn tap(secret: &Secret<'_>) {
    if let Some(log) = lock().as_mut() {
        match secret {
            Secret::Session(keys) => {
                log.add("session_t2n", keys.t2n.expose());
                log.add("session_n2t", keys.n2t.expose());
            }
            Secret::Sa(sa) => {
                log.add("esp_in_cipher", sa.keys_in.cipher.expose());
                log.add("esp_in_integrity", sa.keys_in.integrity.expose());
                log.add("esp_out_cipher", sa.keys_out.cipher.expose());
                log.add("esp_out_integrity", sa.keys_out.integrity.expose());
            }
        }
    }
}

fn lock() -> MutexGuard<'static, Option<KeyLog>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appends one line `WHAT HEX` per key to a file only its owner may read.
#[derive(Debug)]
pub(crate) struct KeyLog {
    file: File,
}

impl KeyLog {
    /// Opens or creates `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        warn!(path = %path.display(), "debug_key_log is set: every key is written to this file in clear");
        Ok(Self { file })
    }

    /// Adds a line. An empty key (an AEAD has no integrity key) is left out.
    pub(crate) fn add(&mut self, what: &str, key: &[u8]) {
        if key.is_empty() {
            return;
        }
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Err(error) = writeln!(self.file, "{what} {hex}") {
            warn!(%error, "debug_key_log");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_line_per_key_for_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        KeyLog::open(&path).unwrap().add("ksub", &[0xab, 1]);
        let mut again = KeyLog::open(&path).unwrap();
        again.add("esp_in", &[]);
        again.add("esp_out", &[2]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "ksub ab01\nesp_out 02\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
