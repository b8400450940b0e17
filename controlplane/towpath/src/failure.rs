//! How a command fails: one clear message and an exit status.

use std::fmt;
use std::process::ExitCode;

use towpath_store::StoreError;
use towpath_telemetry::admin::{AdminError, ClientError, ErrorKind};

use crate::config::ConfigError;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command, a file or the configuration is wrong: exit status 2, and nothing was changed.
    Usage(String),
    /// Everything was right, but it did not work: exit status 1.
    Runtime(String),
    /// The reader of our output went away: no message, exit status 0.
    Quiet,
}

impl Failure {
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::Usage(message.to_string())
    }

    pub(crate) fn runtime(message: impl fmt::Display) -> Self {
        Self::Runtime(message.to_string())
    }

    /// Prints the message and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        let (message, status) = match self {
            Self::Usage(message) => (message, 2),
            Self::Runtime(message) => (message, 1),
            Self::Quiet => return ExitCode::SUCCESS,
        };
        eprintln!("error: {message}");
        ExitCode::from(status)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error.kind {
            ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Conflict => Self::usage(error),
            ErrorKind::Unavailable | ErrorKind::Internal => Self::runtime(error),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(error) => error.into(),
            error => Self::runtime(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::KeyFile { .. }
            | StoreError::File { .. }
            | StoreError::WrongKey(_)
            | StoreError::Schema { .. } => Self::usage(error),
            _ if error.is_refusal() => Self::usage(error),
            _ => Self::runtime(error),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<StoreError>() {
            Ok(error) => error.into(),
            Err(error) => Self::runtime(format!("{error:#}")),
        }
    }
}

/// Result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;
