//! Reads what the daemon of a lab wrote down about every packet it sealed: no nonce may come with two packets.
//!
//! Daemons with debug assertions write it (`debug.nonce_log`); one record is the print of the key, the nonce and the
//! print of the packet, 16 bytes each.

use std::collections::HashMap;
use std::fmt;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Bytes of one record.
const RECORD: usize = 48;

/// What a log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Nonces {
    /// Packets sealed under counter-mode ciphers.
    pub seals: usize,
    /// Keys they were sealed with.
    pub keys: usize,
    /// Packets sealed with a key and nonce that another packet had before.
    pub reused: usize,
}

impl AddAssign for Nonces {
    /// Another daemon's: its keys are its own.
    fn add_assign(&mut self, other: Self) {
        self.seals += other.seals;
        self.keys += other.keys;
        self.reused += other.reused;
    }
}

impl fmt::Display for Nonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seals, keys, reused } = self;
        write!(
            f,
            "packets recorded {seals}, keys {keys}, nonces used for two packets: {reused}"
        )
    }
}

/// Whether daemons of this build write the log.
pub const fn are_recorded() -> bool {
    cfg!(debug_assertions)
}

/// Reads a log; one that does not exist is empty.
pub fn read(path: &Path) -> Result<Nonces> {
    if !path.exists() {
        return Ok(Nonces::default());
    }
    let log = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(judge(&log))
}

fn judge(log: &[u8]) -> Nonces {
    let mut keys = HashMap::<&[u8], usize>::new();
    let mut packets = HashMap::<&[u8], &[u8]>::new();
    let mut found = Nonces::default();
    for record in log.chunks_exact(RECORD) {
        let (nonce, packet) = record.split_at(32);
        found.seals += 1;
        *keys.entry(&nonce[..16]).or_default() += 1;
        // The same packet again is no reuse: nothing new is learnt from it.
        found.reused += usize::from(*packets.entry(nonce).or_insert(packet) != packet);
    }
    found.keys = keys.len();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_packet_under_the_same_key_and_nonce_counts() {
        let record = |key: u8, nonce: u8, packet: u8| [[key; 16], [nonce; 16], [packet; 16]].concat();
        let log = [
            record(1, 1, 1),
            record(1, 2, 2),
            record(2, 1, 3),
            record(1, 1, 1),
            record(1, 2, 9),
        ];
        let found = judge(&log.concat());
        let expected = Nonces {
            seals: 5,
            keys: 2,
            reused: 1,
        };
        assert_eq!(found, expected);
    }
}
