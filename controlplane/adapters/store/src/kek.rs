//! The key-encryption key and its file.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use towpath_base::SecretKey;
use zeroize::Zeroizing;

use crate::{Result, StoreError};

/// Encrypts the secrets in a store. 256 bits; its file holds them as 64 hex digits and a line feed.
#[derive(Debug, Clone)]
pub struct Kek(SecretKey<32>);

impl Kek {
    /// Takes over `key`.
    pub const fn new(key: SecretKey<32>) -> Self {
        Self(key)
    }

    /// Reads `path`, which nobody but its owner may be able to read.
    pub fn load(path: &Path) -> Result<Self> {
        let fail = |reason: String| StoreError::KeyFile {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(|error| {
            fail(match error.kind() {
                ErrorKind::NotFound => "does not exist; `towpath init` makes one".into(),
                _ => format!("cannot be read: {error}"),
            })
        })?;
        // Of the open file, so that nobody can swap it in between.
        let metadata = file.metadata().map_err(|error| fail(error.to_string()))?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(fail(format!(
                "has mode {mode:04o}, expected 0600: others could read it (chmod 600 {})",
                path.display()
            )));
        }
        let user = nix::unistd::geteuid().as_raw();
        if metadata.uid() != user && metadata.uid() != 0 {
            let owner = metadata.uid();
            return Err(fail(format!("belongs to user {owner}, expected {user} or root")));
        }
        let mut text = Zeroizing::new(String::with_capacity(80));
        Read::by_ref(&mut file)
            .take(80)
            .read_to_string(&mut text)
            .map_err(|error| fail(error.to_string()))?;
        parse(text.trim_end())
            .map(Self)
            .ok_or_else(|| fail("expected 64 hex digits".into()))
    }

    /// Draws a key and writes it to `path`, mode 0600. An existing file is an error.
    pub fn create(path: &Path) -> Result<Self> {
        let fail = |error: std::io::Error| StoreError::KeyFile {
            path: path.to_owned(),
            reason: match error.kind() {
                ErrorKind::AlreadyExists => "exists already; it is never overwritten".into(),
                _ => format!("cannot be created: {error}"),
            },
        };
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| fail(std::io::Error::other("no randomness")))?;
        let mut text = Zeroizing::new(String::with_capacity(65));
        for byte in key.iter() {
            // Writing into a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        if let Some(directory) = path
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty())
        {
            fs::create_dir_all(directory).map_err(fail)?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        file.write_all(text.as_bytes()).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        Ok(Self(SecretKey::new(*key)))
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

fn parse(text: &str) -> Option<SecretKey<32>> {
    let mut key = Zeroizing::new([0; 32]);
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(SecretKey::new(*key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_created_key_is_read_back_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/kek");
        let created = Kek::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Kek::load(&path).unwrap().0, created.0);
        let error = Kek::create(&path).unwrap_err().to_string();
        assert!(error.contains("never overwritten"), "{error}");
    }

    #[test]
    fn a_key_file_others_can_read_or_that_is_no_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        let error = Kek::load(&path).unwrap_err().to_string();
        assert!(error.contains("towpath init"), "{error}");
        Kek::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Kek::load(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0640, expected 0600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "00", &"g".repeat(64), &"0".repeat(66), &"é".repeat(32)] {
            fs::write(&path, text).unwrap();
            let error = Kek::load(&path).unwrap_err().to_string();
            assert!(error.contains("expected 64 hex digits"), "{error}");
        }
    }
}
