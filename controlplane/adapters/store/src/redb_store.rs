//! The embedded store: one redb file, mode 0600.

use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, WriteTransaction,
};
use towpath_base::SubscriberHandle;
use towpath_base::profile::{Attachment, Subscriber, SubscriberSecrets};
use towpath_base::selector::Prefix;

use crate::seal::Sealer;
use crate::tables::{
    COUNTERS, EPOCH_KEY, FIXED, KEY_CHECK, LOCATIONS, NAMES, NEXT_HANDLE_KEY, NUMBERS, SCHEMA, SCHEMA_KEY,
    SECRETS, SUBSCRIBERS, address_key, decode, decode_secrets, decode_subscriber, encode, encode_secrets,
    encode_subscriber, key_prefix, place, prefix_key,
};
use crate::{Accept, Imported, Kek, Location, Result, Store, StoreError};

/// Bytes of pages kept in memory.
const CACHE: usize = 64 << 20;

const KEY_CHECK_TEXT: &[u8] = b"towpath key check 1";

/// The embedded store. Clones are the same store.
#[derive(Clone)]
pub struct RedbStore {
    database: Arc<Database>,
    sealer: Arc<Sealer>,
}

impl std::fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedbStore")
    }
}

/// redb has an error type per operation; all of them end here.
pub(crate) fn db(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(error.into())
}

impl RedbStore {
    /// Opens the store at `path`, which is made if it is not there.
    pub fn open(path: &Path, kek: &Kek) -> Result<Self> {
        let fail = |reason: String| StoreError::File {
            path: path.to_owned(),
            reason,
        };
        if let Some(directory) = path
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty())
        {
            std::fs::create_dir_all(directory)
                .map_err(|error| fail(format!("cannot be created: {error}")))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| fail(format!("cannot be opened: {error}")))?;
        let mode = file.metadata()?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(fail(format!("has mode {mode:04o}, expected 0600")));
        }
        drop(file);
        let database =
            Database::builder()
                .set_cache_size(CACHE)
                .create(path)
                .map_err(|error| match error {
                    DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
                    DatabaseError::UpgradeRequired(version) => {
                        fail(format!("is of format {version}, too old for this program"))
                    }
                    DatabaseError::Storage(error @ redb::StorageError::Corrupted(_)) => {
                        fail(format!("is no store of this program, or damaged: {error}"))
                    }
                    DatabaseError::Storage(redb::StorageError::Io(error))
                        if error.kind() == io::ErrorKind::InvalidData =>
                    {
                        fail("is no store of this program".into())
                    }
                    error => db(error),
                })?;
        Self::prepare(database, kek, path.to_owned())
    }

    /// A store in memory, for tests and simulations.
    pub fn in_memory(kek: &Kek) -> Result<Self> {
        let database = Database::builder()
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .map_err(db)?;
        Self::prepare(database, kek, PathBuf::from("in memory"))
    }

    fn prepare(database: Database, kek: &Kek, path: PathBuf) -> Result<Self> {
        let store = Self {
            database: Arc::new(database),
            sealer: Arc::new(Sealer::new(kek)),
        };
        store.write(|transaction| {
            let mut numbers = transaction.open_table(NUMBERS).map_err(db)?;
            let found = numbers.get(SCHEMA_KEY).map_err(db)?.map(|value| value.value());
            match found {
                Some(SCHEMA) => {}
                Some(found) => {
                    let expected = SCHEMA;
                    return Err(StoreError::Schema { found, expected });
                }
                None => {
                    numbers.insert(SCHEMA_KEY, SCHEMA).map_err(db)?;
                    numbers.insert(NEXT_HANDLE_KEY, 1).map_err(db)?;
                    numbers.insert(EPOCH_KEY, 0).map_err(db)?;
                }
            }
            let mut check = transaction.open_table(KEY_CHECK).map_err(db)?;
            let known = check.get(()).map_err(db)?.map(|value| value.value().to_vec());
            match known {
                Some(sealed) => {
                    if store.sealer.open(b"key check", &sealed).is_err() {
                        return Err(StoreError::WrongKey(path.clone()));
                    }
                }
                None => {
                    let sealed = store.seal(b"key check", KEY_CHECK_TEXT)?;
                    check.insert((), sealed.as_slice()).map_err(db)?;
                }
            }
            // Readers find every table there.
            transaction.open_table(SUBSCRIBERS).map_err(db)?;
            transaction.open_table(NAMES).map_err(db)?;
            transaction.open_table(SECRETS).map_err(db)?;
            transaction.open_table(FIXED).map_err(db)?;
            transaction.open_table(COUNTERS).map_err(db)?;
            transaction.open_table(LOCATIONS).map_err(db)?;
            crate::ledger::prepare(transaction)
        })?;
        Ok(store)
    }

    /// Runs `change` in a transaction that is durable when this returns, or has not happened.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&WriteTransaction) -> Result<T>) -> Result<T> {
        let mut transaction = self.database.begin_write().map_err(db)?;
        transaction.set_durability(Durability::Immediate).map_err(db)?;
        let done = change(&transaction)?;
        transaction.commit().map_err(db)?;
        Ok(done)
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    fn read(&self) -> Result<ReadTransaction> {
        self.database.begin_read().map_err(db)
    }

    pub(crate) fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        self.sealer
            .seal(bound_to, plain)
            .map_err(|_| StoreError::Io(io::Error::other("cannot seal")))
    }

    fn open_secrets(&self, subscriber: &Subscriber, sealed: &[u8]) -> Result<SubscriberSecrets> {
        let plain = self
            .sealer
            .open(&place(subscriber), sealed)
            .map_err(|_| StoreError::Damaged(subscriber.handle))?;
        decode_secrets(subscriber.handle, &plain)
    }

    /// Adds or replaces one subscriber.
    fn put(
        &self,
        transaction: &WriteTransaction,
        record: &(Subscriber, SubscriberSecrets),
        replace: bool,
        imported: &mut Imported,
    ) -> Result<()> {
        let (mut new, secrets) = (record.0.clone(), &record.1);
        let mut names = transaction.open_table(NAMES).map_err(db)?;
        let known = names
            .get((new.operator.as_str(), new.name.as_str()))
            .map_err(db)?
            .map(|value| value.value());
        let old = match known {
            Some(_) if !replace => {
                let (operator, name) = (new.operator, new.name);
                return Err(StoreError::Exists { operator, name });
            }
            Some(handle) => {
                new.handle = SubscriberHandle(handle);
                Some(self.replace(transaction, new.handle, secrets)?)
            }
            None => {
                new.handle = take_handle(transaction)?;
                None
            }
        };
        names
            .insert((new.operator.as_str(), new.name.as_str()), new.handle.0)
            .map_err(db)?;
        put_record(transaction, &new)?;
        let sealed = self.seal(&place(&new), &encode_secrets(secrets))?;
        let mut table = transaction.open_table(SECRETS).map_err(db)?;
        table.insert(new.handle.0, sealed.as_slice()).map_err(db)?;
        match old {
            Some(old) => imported.replaced.push((old, new)),
            None => imported.added.push(new),
        }
        Ok(())
    }

    /// Makes room for a new version of a subscriber: its addresses, its location, and its counter if the new
    /// key is another, because the terminal that gets the new key counts from the beginning.
    fn replace(
        &self,
        transaction: &WriteTransaction,
        handle: SubscriberHandle,
        secrets: &SubscriberSecrets,
    ) -> Result<Subscriber> {
        let subscribers = transaction.open_table(SUBSCRIBERS).map_err(db)?;
        let old = read_record(&subscribers, handle)?.ok_or(StoreError::Damaged(handle))?;
        drop_fixed(transaction, &old)?;
        let table = transaction.open_table(SECRETS).map_err(db)?;
        let sealed = table.get(handle.0).map_err(db)?;
        let known = sealed.map(|sealed| self.open_secrets(&old, sealed.value()));
        if !matches!(known, Some(Ok(known)) if known.ksub == secrets.ksub) {
            let mut counters = transaction.open_table(COUNTERS).map_err(db)?;
            counters.remove(handle.0).map_err(db)?;
        }
        let mut locations = transaction.open_table(LOCATIONS).map_err(db)?;
        locations.remove(handle.0).map_err(db)?;
        Ok(old)
    }
}

fn take_handle(transaction: &WriteTransaction) -> Result<SubscriberHandle> {
    let mut numbers = transaction.open_table(NUMBERS).map_err(db)?;
    let handle = numbers
        .get(NEXT_HANDLE_KEY)
        .map_err(db)?
        .map_or(1, |value| value.value());
    numbers.insert(NEXT_HANDLE_KEY, handle + 1).map_err(db)?;
    Ok(SubscriberHandle(handle))
}

/// Writes the record and takes its addresses if the attachment is fixed.
fn put_record(transaction: &WriteTransaction, subscriber: &Subscriber) -> Result<()> {
    let mut subscribers = transaction.open_table(SUBSCRIBERS).map_err(db)?;
    subscribers
        .insert(subscriber.handle.0, encode_subscriber(subscriber).as_slice())
        .map_err(db)?;
    if subscriber.attachment != Attachment::Fixed {
        return Ok(());
    }
    let mut fixed = transaction.open_table(FIXED).map_err(db)?;
    for wanted in &subscriber.addresses {
        if let Some((taken, owner)) = overlapping(&fixed, *wanted)? {
            if owner == subscriber.handle {
                continue;
            }
            return Err(StoreError::AddressTaken {
                name: subscriber.name.clone(),
                wanted: *wanted,
                taken,
                owner,
            });
        }
        fixed
            .insert(prefix_key(*wanted).as_slice(), subscriber.handle.0)
            .map_err(db)?;
    }
    Ok(())
}

fn drop_fixed(transaction: &WriteTransaction, subscriber: &Subscriber) -> Result<()> {
    let mut fixed = transaction.open_table(FIXED).map_err(db)?;
    for prefix in &subscriber.addresses {
        let key = prefix_key(*prefix);
        let owner = fixed.get(key.as_slice()).map_err(db)?.map(|value| value.value());
        if owner == Some(subscriber.handle.0) {
            fixed.remove(key.as_slice()).map_err(db)?;
        }
    }
    Ok(())
}

fn read_record(
    subscribers: &impl ReadableTable<u64, &'static [u8]>,
    handle: SubscriberHandle,
) -> Result<Option<Subscriber>> {
    subscribers
        .get(handle.0)
        .map_err(db)?
        .map(|bytes| decode_subscriber(handle, bytes.value()))
        .transpose()
}

/// A prefix in the table that shares an address with `wanted`, and its owner.
fn overlapping(
    fixed: &impl ReadableTable<&'static [u8], u64>,
    wanted: Prefix,
) -> Result<Option<(Prefix, SubscriberHandle)>> {
    if let Some(found) = containing(fixed, wanted.address(), wanted.bits())? {
        return Ok(Some(found));
    }
    // What lies inside starts inside.
    let (first, mut last) = (address_key(wanted.address()), address_key(wanted.last()));
    if let Some(bits) = last.last_mut() {
        *bits = u8::MAX;
    }
    let mut inside = fixed
        .range::<&[u8]>(first.as_slice()..=last.as_slice())
        .map_err(db)?;
    match inside.next() {
        None => Ok(None),
        Some(entry) => {
            let (key, owner) = entry.map_err(db)?;
            Ok(key_prefix(key.value()).map(|prefix| (prefix, SubscriberHandle(owner.value()))))
        }
    }
}

/// The prefix in the table, of at most `bits` bits, that contains `address`, and its owner.
fn containing(
    fixed: &impl ReadableTable<&'static [u8], u64>,
    address: IpAddr,
    bits: u8,
) -> Result<Option<(Prefix, SubscriberHandle)>> {
    for prefix in (0..=bits).rev().filter_map(|bits| Prefix::new(address, bits)) {
        if let Some(owner) = fixed.get(prefix_key(prefix).as_slice()).map_err(db)? {
            return Ok(Some((prefix, SubscriberHandle(owner.value()))));
        }
    }
    Ok(None)
}

impl Store for RedbStore {
    fn import(&self, records: &[(Subscriber, SubscriberSecrets)], replace: bool) -> Result<Imported> {
        self.write(|transaction| {
            let mut imported = Imported::default();
            for record in records {
                self.put(transaction, record, replace, &mut imported)?;
            }
            Ok(imported)
        })
    }

    fn update(&self, subscriber: &Subscriber) -> Result<()> {
        self.write(|transaction| {
            let subscribers = transaction.open_table(SUBSCRIBERS).map_err(db)?;
            let old = read_record(&subscribers, subscriber.handle)?;
            drop(subscribers);
            let old =
                old.filter(|old| (&old.operator, &old.name) == (&subscriber.operator, &subscriber.name));
            let Some(old) = old else {
                return Err(not_found(&subscriber.operator, &subscriber.name));
            };
            drop_fixed(transaction, &old)?;
            put_record(transaction, subscriber)
        })
    }

    fn remove(&self, operator: &str, name: &str) -> Result<Subscriber> {
        self.write(|transaction| {
            let mut names = transaction.open_table(NAMES).map_err(db)?;
            let handle = names
                .remove((operator, name))
                .map_err(db)?
                .map(|value| value.value())
                .ok_or_else(|| not_found(operator, name))?;
            let mut subscribers = transaction.open_table(SUBSCRIBERS).map_err(db)?;
            let old = read_record(&subscribers, SubscriberHandle(handle))?
                .ok_or(StoreError::Damaged(SubscriberHandle(handle)))?;
            subscribers.remove(handle).map_err(db)?;
            drop_fixed(transaction, &old)?;
            let mut secrets = transaction.open_table(SECRETS).map_err(db)?;
            secrets.remove(handle).map_err(db)?;
            let mut counters = transaction.open_table(COUNTERS).map_err(db)?;
            counters.remove(handle).map_err(db)?;
            let mut locations = transaction.open_table(LOCATIONS).map_err(db)?;
            locations.remove(handle).map_err(db)?;
            Ok(old)
        })
    }

    fn get(&self, handle: SubscriberHandle) -> Result<Option<Subscriber>> {
        read_record(&self.read()?.open_table(SUBSCRIBERS).map_err(db)?, handle)
    }

    fn find(&self, operator: &str, name: &str) -> Result<Option<Subscriber>> {
        let transaction = self.read()?;
        let names = transaction.open_table(NAMES).map_err(db)?;
        match names.get((operator, name)).map_err(db)? {
            None => Ok(None),
            Some(handle) => read_record(
                &transaction.open_table(SUBSCRIBERS).map_err(db)?,
                SubscriberHandle(handle.value()),
            ),
        }
    }

    fn page(
        &self,
        operator: Option<&str>,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Vec<Subscriber>> {
        let transaction = self.read()?;
        let names = transaction.open_table(NAMES).map_err(db)?;
        let subscribers = transaction.open_table(SUBSCRIBERS).map_err(db)?;
        let start = after
            .max(operator.map(|operator| (operator, "")))
            .unwrap_or(("", ""));
        let mut page = Vec::new();
        for entry in names.range(start..).map_err(db)? {
            let (key, handle) = entry.map_err(db)?;
            if operator.is_some_and(|operator| operator != key.value().0) || page.len() >= limit {
                break;
            }
            if after == Some(key.value()) {
                continue;
            }
            let handle = SubscriberHandle(handle.value());
            page.push(read_record(&subscribers, handle)?.ok_or(StoreError::Damaged(handle))?);
        }
        Ok(page)
    }

    fn count(&self) -> Result<u64> {
        let subscribers = self.read()?.open_table(SUBSCRIBERS).map_err(db)?;
        subscribers.len().map_err(db)
    }

    fn secrets(&self, handle: SubscriberHandle) -> Result<Option<SubscriberSecrets>> {
        let transaction = self.read()?;
        let Some(subscriber) = read_record(&transaction.open_table(SUBSCRIBERS).map_err(db)?, handle)? else {
            return Ok(None);
        };
        let secrets = transaction.open_table(SECRETS).map_err(db)?;
        let sealed = secrets
            .get(handle.0)
            .map_err(db)?
            .ok_or(StoreError::Damaged(handle))?;
        self.open_secrets(&subscriber, sealed.value()).map(Some)
    }

    fn fixed(&self) -> Result<Vec<Subscriber>> {
        let transaction = self.read()?;
        let fixed = transaction.open_table(FIXED).map_err(db)?;
        let subscribers = transaction.open_table(SUBSCRIBERS).map_err(db)?;
        let mut handles = Vec::new();
        for entry in fixed.iter().map_err(db)? {
            handles.push(SubscriberHandle(entry.map_err(db)?.1.value()));
        }
        handles.sort_unstable();
        handles.dedup();
        let records = handles
            .into_iter()
            .map(|handle| read_record(&subscribers, handle)?.ok_or(StoreError::Damaged(handle)));
        records.collect()
    }

    fn fixed_owner(&self, address: IpAddr) -> Result<Option<SubscriberHandle>> {
        let fixed = self.read()?.open_table(FIXED).map_err(db)?;
        let found = containing(&fixed, address, Prefix::host(address).bits())?;
        Ok(found.map(|(_, owner)| owner))
    }

    fn last_counter(&self, handle: SubscriberHandle) -> Result<u64> {
        let counters = self.read()?.open_table(COUNTERS).map_err(db)?;
        let last = counters.get(handle.0).map_err(db)?;
        Ok(last.map_or(0, |value| value.value()))
    }

    fn accept_registrations(&self, registrations: &[Accept]) -> Result<Vec<bool>> {
        // Without a write transaction first: a replay must not cost a disk flush.
        let mut fresh = false;
        for Accept { handle, counter, .. } in registrations {
            fresh |= *counter > self.last_counter(*handle)?;
        }
        if !fresh {
            return Ok(vec![false; registrations.len()]);
        }
        self.write(|transaction| {
            let mut counters = transaction.open_table(COUNTERS).map_err(db)?;
            let mut locations = transaction.open_table(LOCATIONS).map_err(db)?;
            let mut accept = |wanted: &Accept| {
                let Accept {
                    handle,
                    counter,
                    location,
                } = wanted;
                let last = counters
                    .get(handle.0)
                    .map_err(db)?
                    .map_or(0, |value| value.value());
                if *counter <= last {
                    return Ok(false);
                }
                counters.insert(handle.0, *counter).map_err(db)?;
                locations
                    .insert(handle.0, encode(location).as_slice())
                    .map_err(db)?;
                Ok(true)
            };
            registrations.iter().map(&mut accept).collect()
        })
    }

    fn forget_location(&self, handle: SubscriberHandle) -> Result<()> {
        self.write(|transaction| {
            let mut locations = transaction.open_table(LOCATIONS).map_err(db)?;
            locations.remove(handle.0).map_err(db)?;
            Ok(())
        })
    }

    fn locations(&self) -> Result<Vec<(SubscriberHandle, Location)>> {
        let locations = self.read()?.open_table(LOCATIONS).map_err(db)?;
        let mut found = Vec::new();
        for entry in locations.iter().map_err(db)? {
            let (handle, bytes) = entry.map_err(db)?;
            let handle = SubscriberHandle(handle.value());
            found.push((handle, decode(handle, bytes.value())?));
        }
        Ok(found)
    }

    fn next_epoch(&self) -> Result<u64> {
        self.write(|transaction| {
            let mut numbers = transaction.open_table(NUMBERS).map_err(db)?;
            let epoch = numbers
                .get(EPOCH_KEY)
                .map_err(db)?
                .map_or(0, |value| value.value())
                .saturating_add(1);
            numbers.insert(EPOCH_KEY, epoch).map_err(db)?;
            Ok(epoch)
        })
    }
}

fn not_found(operator: &str, name: &str) -> StoreError {
    StoreError::NotFound {
        operator: operator.to_owned(),
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
