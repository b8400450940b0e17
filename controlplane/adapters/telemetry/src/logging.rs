//! Log lines on standard error, for people or as one JSON object each.

use std::fmt;
use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// For people: coloured where standard error is a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// The filter cannot be read, or logging was set up before.
#[derive(Debug)]
pub struct LoggingError(String);

impl fmt::Display for LoggingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoggingError {}

/// Checks a filter without installing it: `info`, or `warn,towpath_keyserver=debug`.
pub fn check_filter(filter: &str) -> Result<(), LoggingError> {
    EnvFilter::try_new(filter)
        .map(drop)
        .map_err(|error| LoggingError(error.to_string()))
}

/// Installs the process-wide logger. `filter` is a level or a list of `target=level`.
pub fn init(format: Format, filter: &str) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(filter).map_err(|error| LoggingError(error.to_string()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = match format {
        Format::Human => builder.finish().try_init(),
        Format::Json => builder.json().finish().try_init(),
    };
    installed.map_err(|error| LoggingError(error.to_string()))
}
