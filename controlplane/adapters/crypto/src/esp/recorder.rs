//! Writes down what every sender seals, so that a test can look for a nonce that was used twice (spec row N2). Part of
//! builds with debug assertions alone; `debug.nonce_log` in the configuration begins it.
//!
//! One record is [`RECORD`] bytes, appended in one piece, so that a process that is killed leaves whole ones:
//!
//! ```text
//!   0   print of the key      first 16 bytes of SHA-256(key | salt)
//!   16  nonce                 the explicit IV, zeros behind
//!   32  print of the packet   first 16 bytes of SHA-256(ESP header | high sequence number | plaintext)
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use aws_lc_rs::digest::{Context, SHA256};
use towpath_base::crypto::EspParts;
use towpath_base::sa::KeyParts;

/// Bytes of one record.
pub const RECORD: usize = 48;

static LOG: OnceLock<File> = OnceLock::new();

/// Appends what is sealed from now on under a counter-mode cipher to `path`, which only its owner may read.
///
/// # Errors
/// The file cannot be opened.
pub fn record_nonces(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    // A second call changes nothing: one process has one log.
    let _ = LOG.set(file);
    Ok(())
}

/// The print of a key.
pub(super) fn print_of(parts: KeyParts<'_>) -> [u8; 16] {
    hash(&[parts.cipher, parts.salt])
}

fn hash(pieces: &[&[u8]]) -> [u8; 16] {
    let mut context = Context::new(&SHA256);
    pieces.iter().for_each(|piece| context.update(piece));
    let mut print = [0; 16];
    for (to, from) in print.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    print
}

/// Writes a packet down that is about to be sealed.
pub(super) fn note(key: &[u8; 16], parts: &EspParts<'_>) {
    let Some(mut file) = LOG.get() else {
        return;
    };
    let high = parts.esn_high.unwrap_or(0).to_be_bytes();
    let mut nonce = [0; 16];
    for (to, from) in nonce.iter_mut().zip(parts.iv) {
        *to = *from;
    }
    let packet = hash(&[&parts.header, &high, parts.payload]);
    let mut record = [0; RECORD];
    for (to, from) in record.iter_mut().zip(key.iter().chain(&nonce).chain(&packet)) {
        *to = *from;
    }
    if let Err(error) = file.write_all(&record) {
        // A log with gaps would prove nothing.
        panic!("the log of nonces cannot be written: {error}");
    }
}
