//! The embedded store keeps the contract, its file private and its secrets sealed.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use towpath_base::SecretKey;

use super::*;
use crate::contract;

fn kek(byte: u8) -> Kek {
    Kek::new(SecretKey::new([byte; 32]))
}

#[test]
fn it_keeps_the_contract_in_a_file_and_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    contract::run(&|| {
        let path = directory.path().join("contract.redb");
        // A missing file is fine: it is the first time.
        let _ = fs::remove_file(&path);
        Box::new(RedbStore::open(&path, &kek(1)).unwrap())
    });
    contract::run(&|| Box::new(RedbStore::in_memory(&kek(1)).unwrap()));
}

#[test]
fn the_file_is_private_exclusive_and_holds_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/store.redb");
    let store = RedbStore::open(&path, &kek(1)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let record = contract::record("default", "alice", Attachment::Registered, &["10.0.0.1"]);
    store.import(std::slice::from_ref(&record), false).unwrap();
    assert!(matches!(
        RedbStore::open(&path, &kek(1)),
        Err(StoreError::InUse(_))
    ));
    drop(store);
    assert!(matches!(
        RedbStore::open(&path, &kek(2)),
        Err(StoreError::WrongKey(_))
    ));
    let bytes = fs::read(&path).unwrap();
    let holds = |secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    assert!(holds(b"alice"), "the search does not find what is there");
    assert!(!holds(record.1.ksub.expose()) && !holds(record.1.credentials[0].psk.as_ref().unwrap().expose()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = RedbStore::open(&path, &kek(1)).unwrap_err().to_string();
    assert!(error.contains("mode 0644, expected 0600"), "{error}");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    fs::write(&path, "dear diary\n".repeat(1000)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let error = RedbStore::open(&path, &kek(1)).unwrap_err().to_string();
    assert!(error.contains("no store of this program"), "{error}");
    assert!(fs::read_to_string(&path).unwrap().starts_with("dear diary"));
}

#[test]
fn secrets_moved_to_another_subscriber_do_not_open() {
    let store = RedbStore::in_memory(&kek(1)).unwrap();
    let records = ["a", "b"].map(|name| contract::record("default", name, Attachment::Registered, &[]));
    let added = store.import(&records, false).unwrap().added;
    store
        .write(|transaction| {
            let mut secrets = transaction.open_table(SECRETS).map_err(db)?;
            let sealed = secrets
                .get(added[0].handle.0)
                .map_err(db)?
                .unwrap()
                .value()
                .to_vec();
            secrets.insert(added[1].handle.0, sealed.as_slice()).map_err(db)?;
            Ok(())
        })
        .unwrap();
    assert!(matches!(
        store.secrets(added[1].handle),
        Err(StoreError::Damaged(_))
    ));
}
