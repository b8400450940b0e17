//! How a run ends: what senders recorded, the outcome in a file, and an error when something failed.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::Args;
use super::nonces::{self, Nonces};

/// The outcome of a run, as `--json` writes it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Rows that failed.
    pub(super) failed: usize,
    /// What the daemons of the run sealed; `null` in release builds, which do not record it.
    pub(super) nonces: Option<Nonces>,
    /// One object for each scenario, check or stream.
    pub(super) rows: Vec<Value>,
}

impl Report {
    pub(super) fn new(failed: usize, nonces: Nonces, rows: Vec<Value>) -> Self {
        Self {
            failed,
            nonces: nonces::are_recorded().then_some(nonces),
            rows,
        }
    }

    /// Prints the last lines, writes the file, and is an error when a row failed or a nonce was used twice.
    pub(super) fn finish(&self, args: &Args, what: &str) -> Result<()> {
        println!("{} {what}, {} failed", self.rows.len(), self.failed);
        match self.nonces {
            Some(nonces) => println!("{nonces}"),
            None => println!("nonces are not recorded in release builds"),
        }
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(self)? + "\n";
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        match self.nonces.filter(|nonces| nonces.reused > 0) {
            Some(nonces) => bail!("{} nonces were used for two packets", nonces.reused),
            None if self.failed > 0 => bail!("{} of {} {what} failed", self.failed, self.rows.len()),
            None => Ok(()),
        }
    }
}
