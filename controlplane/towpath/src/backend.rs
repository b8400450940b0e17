//! Where subscriber commands work: through a running daemon, or on the store itself.
//!
//! Without a daemon the command opens the database, which only one process can, and brings the pinned maps up
//! to date, so that the data plane follows at once and not when the daemon starts.

use std::path::{Path, PathBuf};

use towpath_base::profile::{Attachment, Subscriber};
use towpath_bpf::{CompileError, CompiledProfile, Error as BpfError, ProfileMaps};
use towpath_registry::Change;
use towpath_store::{Kek, RedbStore};
use towpath_telemetry::admin::{Client, Reply, Request, SubscriberRequest};

use crate::cli::Common;
use crate::config::Config;
use crate::failure::{Failure, Outcome};

/// A running daemon, or the store.
pub(crate) enum Backend {
    /// A daemon does the work.
    Daemon(Client),
    /// This process does.
    Offline {
        /// The store.
        store: RedbStore,
        /// Where the maps are, if they are.
        pin_dir: PathBuf,
    },
}

/// The socket to talk to.
pub(crate) fn socket(common: &Common) -> Outcome<PathBuf> {
    match &common.admin {
        Some(socket) => Ok(socket.clone()),
        None => Ok(Config::load_or_default(&common.config)?.admin.socket),
    }
}

/// The daemon, which has to run.
pub(crate) fn daemon(common: &Common) -> Outcome<Client> {
    let socket = socket(common)?;
    Client::connect(&socket)?.ok_or_else(|| no_daemon(&socket))
}

fn no_daemon(socket: &Path) -> Failure {
    Failure::runtime(format!(
        "no daemon serves {}: is `towpath run` running?",
        socket.display()
    ))
}

impl Backend {
    /// The daemon if there is one; the store otherwise, unless `--admin` asked for a daemon.
    pub(crate) fn open(common: &Common) -> Outcome<Self> {
        if let Some(socket) = &common.admin {
            return Client::connect(socket)?
                .map(Self::Daemon)
                .ok_or_else(|| no_daemon(socket));
        }
        let config = Config::load_or_default(&common.config)?;
        if let Some(client) = Client::connect(&config.admin.socket)? {
            return Ok(Self::Daemon(client));
        }
        let kek = Kek::load(&config.store.kek_file)?;
        Ok(Self::Offline {
            store: RedbStore::open(&config.store.path, &kek)?,
            pin_dir: config.gateway.pin_dir,
        })
    }

    /// Carries out `request`.
    pub(crate) fn request(&mut self, request: SubscriberRequest) -> Outcome<Reply> {
        match self {
            Self::Daemon(client) => Ok(client.request(&Request::Subscriber(request))?),
            Self::Offline { store, pin_dir } => {
                let (reply, changes) = towpath_registry::apply(store, request)?;
                write_maps(pin_dir, &changes)?;
                Ok(reply)
            }
        }
    }
}

/// What the classifier holds of a subscriber with a fixed attachment; nothing for others while no daemon runs.
fn fixed(subscriber: &Subscriber) -> Result<Option<CompiledProfile>, CompileError> {
    if subscriber.attachment != Attachment::Fixed {
        return Ok(None);
    }
    let profile = subscriber.profile.at(&subscriber.addresses);
    towpath_bpf::compile(subscriber.handle, &profile, &[]).map(Some)
}

/// Brings the maps pinned at `pin_dir`, if any, in line with `changes`, which are stored already.
fn write_maps(pin_dir: &Path, changes: &[Change]) -> Outcome {
    if changes.is_empty() {
        return Ok(());
    }
    let mut maps = match ProfileMaps::open_pinned(pin_dir) {
        Ok(maps) => maps,
        Err(BpfError::NotPinned(_)) => return Ok(()),
        Err(error) => return Err(stored_only(error)),
    };
    for change in changes {
        let (old, new) = match change {
            Change::Added(new) => (None, Some(new)),
            // The conditions of the addresses a terminal registered with stay until the daemon knows better.
            Change::Profile(new) if new.attachment == Attachment::Registered => continue,
            Change::Profile(new) => (Some(new), Some(new)),
            Change::Replaced { old, new } => (Some(old), Some(new)),
            Change::Removed(old) => (Some(old), None),
        };
        if let Some(old) = old {
            maps.remove_subscriber(old.handle.0).map_err(stored_only)?;
        }
        let compiled = new.map(fixed).transpose().map_err(stored_only)?.flatten();
        if let Some(compiled) = compiled {
            maps.insert(&compiled).map_err(stored_only)?;
        }
    }
    Ok(())
}

fn stored_only(error: impl std::fmt::Display) -> Failure {
    Failure::runtime(format!(
        "stored, but the pinned maps do not have it yet: {error}; the daemon writes them when it starts"
    ))
}
