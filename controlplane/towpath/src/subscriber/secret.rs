//! Secrets on their way in and out: files, standard input, hex. Nothing of this is ever printed.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use towpath_base::SecretKey;
use towpath_base::profile::Psk;
use towpath_registry::MAX_PSK;
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Reads at most `limit` bytes.
fn read(mut input: impl Read, limit: usize, what: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    Read::by_ref(&mut input)
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{what}: cannot be read: {error}"))?;
    if bytes.len() > limit {
        return Err(format!("{what}: more than {limit} bytes"));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<File, String> {
    let file = File::open(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let readable_by_all = file.metadata().is_ok_and(|metadata| metadata.mode() & 0o004 != 0);
    if readable_by_all {
        eprintln!(
            "warning: {} holds a secret and every user can read it",
            path.display()
        );
    }
    Ok(file)
}

/// A pre-shared key: the bytes of the file, one line feed at its end not counted.
pub(super) fn psk_file(path: &Path) -> Result<Psk, String> {
    psk(open(path)?, &path.display().to_string())
}

/// A pre-shared key from standard input.
pub(super) fn psk_stdin() -> Result<Psk, String> {
    psk(std::io::stdin().lock(), "standard input")
}

fn psk(input: impl Read, what: &str) -> Result<Psk, String> {
    let bytes = read(input, MAX_PSK + 2, what)?;
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Err(format!("{what}: is empty, expected a pre-shared key"));
    }
    Ok(Psk::new(text.to_vec()))
}

/// A subscriber key from a file of 64 hex digits.
pub(super) fn ksub_file(path: &Path) -> Result<SecretKey<32>, String> {
    let what = path.display().to_string();
    let bytes = read(open(path)?, 80, &what)?;
    std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| ksub_hex(text.trim()))
        .ok_or_else(|| format!("{what}: expected 64 hex digits"))
}

/// A subscriber key from 64 hex digits.
pub(super) fn ksub_hex(text: &str) -> Option<SecretKey<32>> {
    let bytes = unhex(text)?;
    let key: Zeroizing<[u8; 32]> = Zeroizing::new(bytes.as_slice().try_into().ok()?);
    Some(SecretKey::new(*key))
}

/// A fresh subscriber key.
pub(super) fn draw_ksub() -> Outcome<SecretKey<32>> {
    let mut key = Zeroizing::new([0; 32]);
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut *key))
        .map_err(|error| Failure::runtime(format!("/dev/urandom: {error}")))?;
    Ok(SecretKey::new(*key))
}

/// The bytes of an even number of hex digits.
pub(crate) fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for index in (0..text.len()).step_by(2) {
        bytes.push(u8::from_str_radix(text.get(index..index + 2)?, 16).ok()?);
    }
    Some(bytes)
}

/// Hex digits.
pub(super) fn hex(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 2));
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text
}

/// A file only its owner can read, that is removed again unless it is [kept](Self::keep).
pub(super) struct PrivateFile {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl PrivateFile {
    /// Makes the file; one that exists is an error, for it may hold a key that is nowhere else.
    pub(super) fn create(path: &Path) -> Outcome<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| {
                let path = path.display();
                match error.kind() {
                    ErrorKind::AlreadyExists => {
                        Failure::usage(format!("{path}: exists already; it is never overwritten"))
                    }
                    _ => Failure::usage(format!("{path}: cannot be created: {error}")),
                }
            })?;
        Ok(Self {
            file,
            path: path.to_owned(),
            kept: false,
        })
    }

    /// Writes `text`.
    pub(super) fn write(&mut self, text: &str) -> Outcome {
        self.file
            .write_all(text.as_bytes())
            .map_err(|error| Failure::runtime(format!("{}: {error}", self.path.display())))
    }

    /// Makes what was written durable.
    pub(super) fn keep(mut self) -> Outcome {
        self.file
            .sync_all()
            .map_err(|error| Failure::runtime(format!("{}: {error}", self.path.display())))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if !self.kept {
            // It was ours a moment ago; if it is gone, so much the better.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_read_back_and_nothing_else_is_read() {
        assert_eq!(hex(&[0, 0x5a, 0xff]).as_str(), "005aff");
        assert_eq!(unhex("005aFF").unwrap().as_slice(), [0, 0x5a, 0xff]);
        for text in ["0", "0g", "+1", " 1", "é0"] {
            assert!(unhex(text).is_none(), "{text}");
        }
        assert!(ksub_hex(&"ab".repeat(32)).is_some() && ksub_hex("ab").is_none());
    }

    #[test]
    fn a_psk_is_the_text_without_its_line_end() {
        let read = |text: &[u8]| psk(text, "x");
        assert_eq!(read(b"secret\r\n").unwrap().expose(), b"secret");
        assert_eq!(read(b"two words\n\n").unwrap().expose(), b"two words\n");
        assert!(read(b"\n").is_err() && read(&[b'a'; MAX_PSK + 3]).is_err());
    }

    #[test]
    fn a_private_file_goes_away_unless_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        PrivateFile::create(&path).unwrap().write("x").unwrap();
        assert!(!path.exists());
        let mut file = PrivateFile::create(&path).unwrap();
        file.write("y").unwrap();
        file.keep().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(PrivateFile::create(&path).is_err() && path.exists());
    }
}
