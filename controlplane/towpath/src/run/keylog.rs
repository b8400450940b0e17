//! The debugging aid `debug.key_log`: every key this process handles, in hex, in a file.
//!
//! Whoever reads the file reads the traffic. It exists so that a test can search captures for keys, and
//! for a look at one's own traffic in a laboratory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use towpath_base::sa::{ChildSa, EspKeys};
use towpath_fabric::{AhSegments, GatewayKeys, GatewaySa, SessionGrant};

/// The open file.
pub(super) struct KeyLog(File);

impl KeyLog {
    /// Creates the file, mode 0600, or appends to it.
    pub(super) fn create(path: &Path) -> Result<Self> {
        tracing::warn!(path = %path.display(), "debug.key_log is set: every key is written to this file");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path);
        file.map(Self)
            .with_context(|| format!("debug.key_log {}", path.display()))
    }

    /// Keys of a session between a terminal and the keyserver.
    pub(super) fn session(&mut self, grant: &SessionGrant) {
        self.line("session_t2n", grant.t2n.expose());
        self.line("session_n2t", grant.n2t.expose());
    }

    /// Keys of an SA of class `full`; of class `none` this process keeps none.
    pub(super) fn sa(&mut self, sa: &GatewaySa) {
        match &sa.keys {
            GatewayKeys::None => {}
            GatewayKeys::Full {
                peer,
                segment_in,
                segment_out,
            } => self.segments(peer, segment_in, segment_out),
            GatewayKeys::Inspect(keys) => {
                self.line("inspect_in", keys.cipher_in.expose());
                self.line("inspect_out", keys.cipher_out.expose());
            }
            GatewayKeys::Shared { sa } => {
                self.keys("shared_in", &sa.keys_in);
                self.keys("shared_out", &sa.keys_out);
            }
            GatewayKeys::Ah(ah) => self.ah(ah),
            GatewayKeys::AhShared { sa } => {
                self.line("ah_shared_in", sa.key_in.expose());
                self.line("ah_shared_out", sa.key_out.expose());
            }
            GatewayKeys::EspInAh {
                peer,
                segment_in,
                segment_out,
                ah,
            } => {
                self.segments(peer, segment_in, segment_out);
                self.ah(ah);
            }
        }
    }

    fn segments(&mut self, peer: &ChildSa, segment_in: &EspKeys, segment_out: &EspKeys) {
        self.keys("peer_in", &peer.keys_in);
        self.keys("peer_out", &peer.keys_out);
        self.keys("segment_in", segment_in);
        self.keys("segment_out", segment_out);
    }

    fn ah(&mut self, ah: &AhSegments) {
        self.line("ah_peer_in", ah.peer.key_in.expose());
        self.line("ah_peer_out", ah.peer.key_out.expose());
        self.line("ah_segment_in", ah.segment_in.expose());
        self.line("ah_segment_out", ah.segment_out.expose());
    }

    fn keys(&mut self, name: &str, keys: &EspKeys) {
        for part in [&keys.cipher, &keys.integrity] {
            if !part.is_empty() {
                self.line(name, part.expose());
            }
        }
    }

    fn line(&mut self, name: &str, key: &[u8]) {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Err(error) = writeln!(self.0, "{name} {hex}") {
            tracing::error!(%error, "key log");
        }
    }
}
