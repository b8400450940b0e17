//! What a gateway keeps beside the subscribers: manual SAs, policies, and a mark for every key that outlives the
//! process (spec row N2).
//!
//! **Architecture invariant:** a mark only rises and is never removed, not even with its SA: whoever brings the
//! same key again continues above it. It is filed under a keyed print of the key, so the file does not tell keys.

use aws_lc_rs::hmac;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use towpath_base::SubscriberHandle;
use zeroize::Zeroizing;

use crate::redb_store::db;
use crate::tables::{decode, encode};
use crate::{RedbStore, Result, StoreError};

/// (shelf, number) → sealed record.
const RECORDS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("ledger_records");

/// Shelf → the next number.
const NEXT: TableDefinition<'_, &str, u64> = TableDefinition::new("ledger_next");

/// Print of a key → [`Mark`].
const MARKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("ledger_marks");

/// A kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shelf {
    /// Manual SAs with their keys.
    ManualSas,
    /// Security policies.
    Policies,
}

impl Shelf {
    const fn name(self) -> &'static str {
        match self {
            Self::ManualSas => "manual_sas",
            Self::Policies => "policies",
        }
    }
}

/// A keyed hash of a key: tells whether it is the same one, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyPrint([u8; 32]);

/// What is kept of a sending key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mark {
    /// No sequence number above this was used.
    pub limit: u64,
    /// Upper half of the IVs of the other sender under this key, once proven.
    pub top: Option<u32>,
    /// The other sender broke the rule: the gateway sends nothing under this key any more.
    pub degraded: bool,
}

/// What the gateway asks of a store. Calls return when the change is durable.
pub trait Ledger: Send {
    /// A number of `shelf` that was never given before, from 1.
    fn take_number(&self, shelf: Shelf) -> Result<u64>;

    /// Keeps `record`, sealed, under `number`.
    fn put(&self, shelf: Shelf, number: u64, record: &[u8]) -> Result<()>;

    /// Removes a record; false if there was none.
    fn take(&self, shelf: Shelf, number: u64) -> Result<bool>;

    /// Every record in order of number.
    fn records(&self, shelf: Shelf) -> Result<Vec<(u64, Zeroizing<Vec<u8>>)>>;

    /// Where the mark of `key` is filed.
    fn print(&self, key: &[u8]) -> KeyPrint;

    /// The mark of a key, all zero if it was never used.
    fn mark(&self, print: &KeyPrint) -> Result<Mark>;

    /// Raises the mark of a key to at least `mark` and returns what is kept now: the higher limit, the top half that
    /// was proven first, and a degradation for good.
    fn raise(&self, print: &KeyPrint, mark: Mark) -> Result<Mark>;
}

/// Readers find every table there.
pub(crate) fn prepare(transaction: &WriteTransaction) -> Result<()> {
    transaction.open_table(RECORDS).map_err(db)?;
    transaction.open_table(NEXT).map_err(db)?;
    transaction.open_table(MARKS).map_err(db)?;
    Ok(())
}

/// What a sealed record is bound to.
fn place(shelf: Shelf, number: u64) -> Vec<u8> {
    [
        b"towpath ledger 1 ",
        shelf.name().as_bytes(),
        &number.to_be_bytes()[..],
    ]
    .concat()
}

fn damaged(shelf: Shelf, number: u64) -> StoreError {
    StoreError::DamagedRecord {
        shelf: shelf.name(),
        number,
    }
}

impl Ledger for RedbStore {
    fn take_number(&self, shelf: Shelf) -> Result<u64> {
        self.write(|transaction| {
            let mut next = transaction.open_table(NEXT).map_err(db)?;
            let number = next
                .get(shelf.name())
                .map_err(db)?
                .map_or(1, |value| value.value());
            next.insert(shelf.name(), number + 1).map_err(db)?;
            Ok(number)
        })
    }

    fn put(&self, shelf: Shelf, number: u64, record: &[u8]) -> Result<()> {
        let sealed = self.seal(&place(shelf, number), record)?;
        self.write(|transaction| {
            let mut records = transaction.open_table(RECORDS).map_err(db)?;
            records
                .insert((shelf.name(), number), sealed.as_slice())
                .map_err(db)?;
            Ok(())
        })
    }

    fn take(&self, shelf: Shelf, number: u64) -> Result<bool> {
        self.write(|transaction| {
            let mut records = transaction.open_table(RECORDS).map_err(db)?;
            let was_there = records.remove((shelf.name(), number)).map_err(db)?.is_some();
            Ok(was_there)
        })
    }

    fn records(&self, shelf: Shelf) -> Result<Vec<(u64, Zeroizing<Vec<u8>>)>> {
        let transaction = self.database().begin_read().map_err(db)?;
        let records = transaction.open_table(RECORDS).map_err(db)?;
        let mut found = Vec::new();
        let all = (shelf.name(), 0)..=(shelf.name(), u64::MAX);
        for entry in records.range(all).map_err(db)? {
            let (key, sealed) = entry.map_err(db)?;
            let number = key.value().1;
            let record = self
                .sealer()
                .open(&place(shelf, number), sealed.value())
                .map_err(|_| damaged(shelf, number))?;
            found.push((number, record));
        }
        Ok(found)
    }

    fn print(&self, key: &[u8]) -> KeyPrint {
        let mut print = [0; 32];
        print.copy_from_slice(hmac::sign(self.sealer().print_key(), key).as_ref());
        KeyPrint(print)
    }

    fn mark(&self, print: &KeyPrint) -> Result<Mark> {
        let transaction = self.database().begin_read().map_err(db)?;
        let marks = transaction.open_table(MARKS).map_err(db)?;
        read(&marks, print)
    }

    fn raise(&self, print: &KeyPrint, mark: Mark) -> Result<Mark> {
        self.write(|transaction| {
            let mut marks = transaction.open_table(MARKS).map_err(db)?;
            let old = read(&marks, print)?;
            let new = Mark {
                limit: old.limit.max(mark.limit),
                top: old.top.or(mark.top),
                degraded: old.degraded || mark.degraded,
            };
            marks
                .insert(print.0.as_slice(), encode(&new).as_slice())
                .map_err(db)?;
            Ok(new)
        })
    }
}

fn read(marks: &impl ReadableTable<&'static [u8], &'static [u8]>, print: &KeyPrint) -> Result<Mark> {
    match marks.get(print.0.as_slice()).map_err(db)? {
        None => Ok(Mark::default()),
        // A mark that cannot be read must not count as "never used".
        Some(bytes) => decode(SubscriberHandle(0), bytes.value()).map_err(|_| StoreError::DamagedRecord {
            shelf: "marks",
            number: 0,
        }),
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::SecretKey;

    use super::*;
    use crate::Kek;

    fn store() -> RedbStore {
        RedbStore::in_memory(&Kek::new(SecretKey::new([7; 32]))).unwrap()
    }

    #[test]
    fn records_come_back_by_shelf_and_number_and_numbers_never_do() {
        let store = store();
        for shelf in [Shelf::ManualSas, Shelf::Policies] {
            for expected in 1..=3 {
                let number = store.take_number(shelf).unwrap();
                assert_eq!(number, expected);
                store.put(shelf, number, &[number as u8; 100]).unwrap();
            }
            assert!(store.take(shelf, 2).unwrap() && !store.take(shelf, 2).unwrap());
            let found = store.records(shelf).unwrap();
            let expected = [1u64, 3].map(|number| (number, Zeroizing::new(vec![number as u8; 100])));
            assert_eq!(found, expected);
            assert_eq!(store.take_number(shelf).unwrap(), 4);
        }
    }

    #[test]
    fn a_mark_only_rises_and_belongs_to_the_key_alone() {
        let store = store();
        let print = store.print(b"a key");
        assert_eq!(store.mark(&print).unwrap(), Mark::default());
        let high = Mark {
            limit: 65536,
            top: Some(7),
            degraded: false,
        };
        assert_eq!(store.raise(&print, high).unwrap(), high);
        let lower = Mark {
            limit: 5,
            top: Some(8),
            degraded: true,
        };
        let kept = Mark {
            degraded: true,
            ..high
        };
        assert_eq!(store.raise(&print, lower).unwrap(), kept);
        assert_eq!(store.raise(&print, Mark::default()).unwrap(), kept);
        assert_eq!(store.mark(&store.print(b"another")).unwrap(), Mark::default());
        // Another store's prints are others: the file does not tell which keys two gateways share.
        let other = RedbStore::in_memory(&Kek::new(SecretKey::new([8; 32]))).unwrap();
        assert_ne!(other.print(b"a key"), print);
    }

    #[test]
    fn marks_and_records_survive_the_process_and_lie_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let kek = Kek::new(SecretKey::new([7; 32]));
        let secret = b"0123456789abcdef0123456789abcdef";
        {
            let store = RedbStore::open(&path, &kek).unwrap();
            store.put(Shelf::ManualSas, 1, secret).unwrap();
            let mark = Mark {
                limit: 9,
                ..Mark::default()
            };
            store.raise(&store.print(secret), mark).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(16).any(|window| window == &secret[..16]));
        let store = RedbStore::open(&path, &kek).unwrap();
        assert_eq!(store.mark(&store.print(secret)).unwrap().limit, 9);
        assert_eq!(store.records(Shelf::ManualSas).unwrap()[0].1.as_slice(), secret);
    }
}
