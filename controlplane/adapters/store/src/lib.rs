//! Subscribers, their encrypted secrets and their registrations.
//!
//! [`Store`] is what the registry asks for; [`RedbStore`] is the embedded one, a single file. A store for many
//! machines implements the same trait and passes the same suite, `contract`.
//!
//! **Architecture invariants.** What a call acknowledged survives a crash. A call changes everything it says
//! or nothing. Secrets lie on disk only sealed under the key-encryption key, bound to operator, name and
//! handle, so that they cannot be moved to another subscriber.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod kek;
mod ledger;
mod redb_store;
mod seal;
mod tables;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use towpath_base::SubscriberHandle;
use towpath_base::profile::{Subscriber, SubscriberSecrets};
use towpath_base::selector::Prefix;

pub use kek::Kek;
pub use ledger::{KeyPrint, Ledger, Mark, Shelf};
pub use redb_store::RedbStore;

/// Where a terminal registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Addresses it registered with.
    pub addresses: Vec<IpAddr>,
    /// End of the registration, seconds since 1970.
    pub expires_unix: u64,
}

/// A registration to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// Whose.
    pub handle: SubscriberHandle,
    /// Its counter, which rises with each.
    pub counter: u64,
    /// Where the terminal is.
    pub location: Location,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Imported {
    /// New subscribers, with the handles they got.
    pub added: Vec<Subscriber>,
    /// Replaced subscribers: as they were, as they are.
    pub replaced: Vec<(Subscriber, Subscriber)>,
}

/// Why a store refused or failed; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Name in use.
    #[error("subscriber `{name}` of operator `{operator}` exists already")]
    Exists {
        /// Operator.
        operator: String,
        /// Name.
        name: String,
    },
    /// Two subscribers with a fixed attachment would share addresses.
    #[error(
        "address {wanted} of `{name}` overlaps {taken} of subscriber {owner}, which has a fixed attachment too"
    )]
    AddressTaken {
        /// The new subscriber.
        name: String,
        /// Its address.
        wanted: Prefix,
        /// What it overlaps.
        taken: Prefix,
        /// Whose that is.
        owner: SubscriberHandle,
    },
    /// No such subscriber.
    #[error("no subscriber `{name}` of operator `{operator}`")]
    NotFound {
        /// Operator.
        operator: String,
        /// Name.
        name: String,
    },
    /// Another process has the file.
    #[error(
        "store {0} is in use by another process, a running daemon most likely: talk to it with --admin SOCKET"
    )]
    InUse(PathBuf),
    /// The key-encryption key is not the one this store was made with.
    #[error("the key-encryption key is not the one store {0} was made with")]
    WrongKey(PathBuf),
    /// A key file that cannot be used.
    #[error("key file {path}: {reason}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A file that cannot be used.
    #[error("store {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// Made by a version this one does not know.
    #[error("store has schema {found}, expected {expected}")]
    Schema {
        /// Of the file.
        found: u64,
        /// Of this program.
        expected: u64,
    },
    /// A record that does not decode or whose seal is broken.
    #[error("record of subscriber {0} is damaged")]
    Damaged(SubscriberHandle),
    /// A record of a gateway that does not decode or whose seal is broken.
    #[error("record {number} of {shelf} is damaged")]
    DamagedRecord {
        /// Which kind.
        shelf: &'static str,
        /// Its number.
        number: u64,
    },
    /// The database failed.
    #[error("store: {0}")]
    Database(#[from] redb::Error),
    /// The file system failed.
    #[error("store: {0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Whether the request was at fault, not the store.
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Exists { .. } | Self::AddressTaken { .. } | Self::NotFound { .. }
        )
    }
}

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What the registry keeps. Calls return when the change is durable.
pub trait Store: Send {
    /// Adds subscribers with their secrets, all or none, and numbers them: the handles given are ignored, and
    /// none is ever used twice. With `replace` an existing name is replaced and keeps its handle; without, it
    /// is [`StoreError::Exists`]. A replaced subscriber key starts its registration counter anew.
    fn import(&self, records: &[(Subscriber, SubscriberSecrets)], replace: bool) -> Result<Imported>;

    /// Replaces the record of the subscriber with this handle; name, operator and secrets stay.
    fn update(&self, subscriber: &Subscriber) -> Result<()>;

    /// Removes a subscriber and all that is kept about it.
    fn remove(&self, operator: &str, name: &str) -> Result<Subscriber>;

    /// The subscriber with this handle.
    fn get(&self, handle: SubscriberHandle) -> Result<Option<Subscriber>>;

    /// The subscriber with this name.
    fn find(&self, operator: &str, name: &str) -> Result<Option<Subscriber>>;

    /// At most `limit` subscribers in order of operator and name, of one operator or of all, behind `after`.
    fn page(
        &self,
        operator: Option<&str>,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Vec<Subscriber>>;

    /// Number of subscribers.
    fn count(&self) -> Result<u64>;

    /// The subscriber's secrets.
    fn secrets(&self, handle: SubscriberHandle) -> Result<Option<SubscriberSecrets>>;

    /// Subscribers with a fixed attachment.
    fn fixed(&self) -> Result<Vec<Subscriber>>;

    /// The subscriber with a fixed attachment to whom `address` belongs.
    fn fixed_owner(&self, address: IpAddr) -> Result<Option<SubscriberHandle>>;

    /// Counter of the last registration accepted, 0 if there was none.
    fn last_counter(&self, handle: SubscriberHandle) -> Result<u64>;

    /// Accepts each registration whose counter is above the last of its subscriber: keeps counter and location, and says
    /// true. Others change nothing: false. One flush for all of them.
    fn accept_registrations(&self, registrations: &[Accept]) -> Result<Vec<bool>>;

    /// As [`Self::accept_registrations`], one alone.
    fn accept_registration(
        &self,
        handle: SubscriberHandle,
        counter: u64,
        location: &Location,
    ) -> Result<bool> {
        let one = Accept {
            handle,
            counter,
            location: location.clone(),
        };
        Ok(self.accept_registrations(&[one])? == [true])
    }

    /// Ends a registration; no error if there is none.
    fn forget_location(&self, handle: SubscriberHandle) -> Result<()>;

    /// Every registration.
    fn locations(&self) -> Result<Vec<(SubscriberHandle, Location)>>;

    /// Counts a start of the network up and returns the new epoch, from 1.
    fn next_epoch(&self) -> Result<u64>;
}
