//! The terminal on a host with an operating system: configuration, sockets and the loop around the core.
//!
//! ```text
//!   applications ── route to the peer ──► TUN ──► core ──► raw socket on the interface ──► ESP
//!   applications ◄────── kernel ───────── TUN ◄── core ◄── raw and UDP sockets ◄────────── ESP
//! ```
//!
//! Addresses stay the host's own: the TUN device has none, and a route sends what policies protect through it.
//! What arrives in clear does not pass the core; a filter at the interface drops what a policy protects.
//!
//! Where the kernel has IPsec with the usual algorithms there is no TUN device: the core's SAs and the policies are
//! written into the kernel's tables, packets pass there alone, and clear ones that should not be are refused there.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the configuration file |
//! | `host` | addresses, sockets, TUN device, routes |
//! | `kernel` | the kernel's IPsec in place of our own |
//! | `driver` | the loop's body: core and host together |
//! | `filter` | clear packets that must not arrive |
//! | `state` | the registration counter on disk |
//! | [`status`] | the control socket |
//! | `key_log` | keys in clear, for laboratory tests |
#![forbid(unsafe_code)]

pub mod config;
mod driver;
mod filter;
mod host;
mod kernel;
mod key_log;
mod state;
pub mod status;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::pin;

use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tracing::info;
use zeroize::Zeroizing;

pub use config::{
    Action, Backend, InvalidConfig, Ksub, LevelConfig, PolicyConfig, PortRange, Protocol, TerminalConfig,
};
pub use host::HostError;
pub use state::StateError;
pub use status::{SaStatus, Status, query};

/// Why the terminal cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A value in the configuration is of no use.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The core refuses the configuration.
    #[error(transparent)]
    Core(#[from] towpath_terminal_core::InvalidConfig),
    /// The state file cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host does not give what the terminal needs.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The subscriber key file does not hold a key.
    #[error("ksub_file = {0}: expected 64 hex digits on the first line")]
    KsubFile(PathBuf),
    /// A file the configuration names cannot be opened.
    #[error("{field} = {path}: {error}")]
    File {
        /// The configuration key.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Runs the terminal until `shutdown` completes, then takes back what it changed on the host.
///
/// Needs a tokio runtime with IO and time, root (or `CAP_NET_ADMIN` and `CAP_NET_RAW`), and the network namespace
/// of the interface; one runs per process where [`TerminalConfig::debug_key_log`] is in use.
///
/// # Errors
/// [`RunError`]: on start what is wrong with the configuration or missing on the host, later only that the state
/// file cannot be written or the TUN device is gone.
pub async fn run(config: TerminalConfig, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    config.validate()?;
    let ksub = ksub(&config)?;
    let (state, counter) = state::StateFile::open(&config.state_file)?;
    if let Some(path) = &config.debug_key_log {
        key_log::start(path, ksub.key().expose())
            .map_err(|error| file_error("debug_key_log", path, error))?;
    }
    let host = host::Host::open(&config).await?;
    let (questions, mut asked) = mpsc::channel(4);
    let listening = config.control_socket.as_deref().map(|path| {
        status::Control::listen(path, questions.clone())
            .map_err(|error| file_error("control_socket", path, error))
    });
    let _control = listening.transpose()?;
    let mut driver = driver::Driver::new(&config, &ksub, host, state, counter)?;
    info!(name = config.name, handle = config.handle, addresses = ?driver.host().addresses, "terminal started");

    let mut shutdown = pin!(shutdown);
    driver.timeout()?;
    loop {
        let deadline = driver.deadline();
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut shutdown => break,
            () = timer => driver.timeout()?,
            Some(question) = asked.recv() => {
                // The client may have gone.
                let _ = question.send(driver.status());
            }
            () = driver.host().readable() => driver.receive()?,
        }
    }
    driver.close().await;
    info!(name = config.name, "terminal stopped");
    Ok(())
}

fn ksub(config: &TerminalConfig) -> Result<Ksub, RunError> {
    match (&config.ksub, &config.ksub_file) {
        (Some(ksub), _) => Ok(ksub.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|error| file_error("ksub_file", path, error))?;
            let text = Zeroizing::new(text);
            let line = text.lines().next().unwrap_or_default();
            Ksub::from_hex(line).ok_or_else(|| RunError::KsubFile(path.clone()))
        }
        (None, None) => Err(RunError::KsubFile(PathBuf::new())),
    }
}

fn file_error(field: &'static str, path: &std::path::Path, error: io::Error) -> RunError {
    RunError::File {
        field,
        path: path.to_owned(),
        error,
    }
}
