//! Changes an operator makes: checked, stored, and told to whoever serves the subscriber.
//!
//! [`apply`] works on the store alone, so that the command line can use it without a running daemon.

use std::collections::BTreeSet;

use towpath_base::SubscriberHandle;
use towpath_base::profile::{Condition, Subscriber, SubscriberSecrets};
use towpath_store::{Store, StoreError};
use towpath_telemetry::admin::{
    AdminError, Attached, ErrorKind, MAX_PAGE, ProfileChange, ProfileList, Record, Reply, SubscriberName,
    SubscriberPage, SubscriberRequest,
};

use crate::validate::{validate, validate_subscriber};

/// What a request changed; the store has it already.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few, and moved once")]
pub enum Change {
    /// A subscriber that was not there.
    Added(Subscriber),
    /// A subscriber got another record or other secrets: its registration is over.
    Replaced {
        /// As it was.
        old: Subscriber,
        /// As it is.
        new: Subscriber,
    },
    /// A subscriber got another profile; its registration goes on.
    Profile(Subscriber),
    /// A subscriber is gone.
    Removed(Subscriber),
}

/// Result of a request on the store.
pub type Applied = Result<(Reply, Vec<Change>), AdminError>;

/// Carries `request` out on `store`. On an error nothing was changed. Registrations are not filled in: the
/// store's own are those of a daemon that may be gone.
pub fn apply(store: &dyn Store, request: SubscriberRequest) -> Applied {
    match request {
        SubscriberRequest::Add(record) => {
            let imported = store.import(&[complete(*record)?], false).map_err(from_store)?;
            let added = imported.added.into_iter().next();
            let added = added.ok_or_else(|| AdminError::internal("the store added nothing"))?;
            Ok((shown(added.clone()), vec![Change::Added(added)]))
        }
        SubscriberRequest::Import { records, replace } => import(store, records, replace),
        SubscriberRequest::List {
            operator,
            after,
            with_secrets,
        } => list(store, operator.as_deref(), after.as_ref(), with_secrets),
        SubscriberRequest::Show(name) => Ok((shown(find(store, &name)?), Vec::new())),
        SubscriberRequest::Remove(name) => {
            let gone = store.remove(&name.operator, &name.name).map_err(from_store)?;
            Ok((
                Reply::Removed { handle: gone.handle },
                vec![Change::Removed(gone)],
            ))
        }
        SubscriberRequest::Profile { name, change } => {
            let changed = change_profile(find(store, &name)?, change)?;
            validate_subscriber(&changed)?;
            store.update(&changed).map_err(from_store)?;
            Ok((shown(changed.clone()), vec![Change::Profile(changed)]))
        }
    }
}

fn shown(subscriber: Subscriber) -> Reply {
    Reply::Subscriber(Box::new(Attached {
        subscriber,
        location: None,
    }))
}

/// The record with its secrets, checked.
fn complete(record: Record) -> Result<(Subscriber, SubscriberSecrets), AdminError> {
    let Record {
        mut subscriber,
        secrets,
    } = record;
    // The store numbers subscribers.
    subscriber.handle = SubscriberHandle(0);
    let secrets = secrets.ok_or_else(|| {
        let name = subscriber.name.escape_debug();
        AdminError::invalid(format!(
            "subscriber `{name}`: secrets: none, expected ksub and a psk for each peer"
        ))
    })?;
    validate(&subscriber, &secrets)?;
    Ok((subscriber, secrets))
}

fn import(store: &dyn Store, records: Vec<Record>, replace: bool) -> Applied {
    let records = records.into_iter().map(complete).collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    for (subscriber, _) in &records {
        if !seen.insert((&subscriber.operator, &subscriber.name)) {
            return Err(AdminError::invalid(format!(
                "subscriber `{}` of operator `{}` is in the import twice",
                subscriber.name, subscriber.operator
            )));
        }
    }
    let imported = store.import(&records, replace).map_err(from_store)?;
    let reply = Reply::Imported {
        added: imported.added.len() as u64,
        replaced: imported.replaced.len() as u64,
    };
    let replaced = imported
        .replaced
        .into_iter()
        .map(|(old, new)| Change::Replaced { old, new });
    let changes = imported
        .added
        .into_iter()
        .map(Change::Added)
        .chain(replaced)
        .collect();
    Ok((reply, changes))
}

fn list(
    store: &dyn Store,
    operator: Option<&str>,
    after: Option<&SubscriberName>,
    with_secrets: bool,
) -> Applied {
    let after = after.map(|cursor| (cursor.operator.as_str(), cursor.name.as_str()));
    let limit = MAX_PAGE as usize;
    let page = store.page(operator, after, limit).map_err(from_store)?;
    let next = page
        .last()
        .filter(|_| page.len() == limit)
        .map(|last| SubscriberName {
            operator: last.operator.clone(),
            name: last.name.clone(),
        });
    let records = page
        .into_iter()
        .map(|subscriber| {
            let secrets = if with_secrets {
                store.secrets(subscriber.handle).map_err(from_store)?
            } else {
                None
            };
            Ok(Record { subscriber, secrets })
        })
        .collect::<Result<Vec<_>, AdminError>>()?;
    let locations = records.iter().map(|_| None).collect();
    let page = SubscriberPage {
        records,
        locations,
        next,
    };
    Ok((Reply::Subscribers(page), Vec::new()))
}

fn find(store: &dyn Store, name: &SubscriberName) -> Result<Subscriber, AdminError> {
    store
        .find(&name.operator, &name.name)
        .map_err(from_store)?
        .ok_or_else(|| AdminError::new(ErrorKind::NotFound, format!("no subscriber {name}")))
}

fn change_profile(mut subscriber: Subscriber, change: ProfileChange) -> Result<Subscriber, AdminError> {
    let refuse = |kind, list: ProfileList, condition: &Condition, what: &str| {
        let peer = condition
            .peer
            .map_or(String::new(), |peer| format!(" peer {peer}"));
        let (address, port) = (condition.address, condition.port);
        Err(AdminError::new(
            kind,
            format!(
                "{what} in list {}: address {address}{peer} port {port}",
                list.name()
            ),
        ))
    };
    match change {
        ProfileChange::Add { list, condition } => {
            let conditions = list.of_mut(&mut subscriber.profile);
            if conditions.contains(&condition) {
                return refuse(ErrorKind::Conflict, list, &condition, "the condition is already");
            }
            conditions.push(condition);
        }
        ProfileChange::Remove { list, condition } => {
            let conditions = list.of_mut(&mut subscriber.profile);
            let Some(index) = conditions.iter().position(|known| *known == condition) else {
                return refuse(ErrorKind::NotFound, list, &condition, "no such condition");
            };
            conditions.remove(index);
        }
    }
    Ok(subscriber)
}

/// What the store refused, for the one who asked.
pub(crate) fn from_store(error: StoreError) -> AdminError {
    let kind = match &error {
        StoreError::NotFound { .. } => ErrorKind::NotFound,
        StoreError::Exists { .. } | StoreError::AddressTaken { .. } => ErrorKind::Conflict,
        _ => ErrorKind::Internal,
    };
    AdminError::new(kind, error.to_string())
}

#[cfg(test)]
mod tests {
    use towpath_base::SecretKey;
    use towpath_base::profile::{Attachment, ConditionAddress};
    use towpath_store::{Kek, RedbStore, contract};

    use super::*;

    fn store() -> RedbStore {
        RedbStore::in_memory(&Kek::new(SecretKey::new([1; 32]))).unwrap()
    }

    fn record(operator: &str, name: &str) -> Record {
        let (subscriber, secrets) = contract::record(operator, name, Attachment::Registered, &["10.0.0.1"]);
        Record {
            subscriber,
            secrets: Some(secrets),
        }
    }

    fn name(name: &str) -> SubscriberName {
        SubscriberName {
            operator: "default".into(),
            name: name.into(),
        }
    }

    #[test]
    fn a_subscriber_is_added_once_shown_and_removed() {
        let store = store();
        let add = || {
            apply(
                &store,
                SubscriberRequest::Add(Box::new(record("default", "alice"))),
            )
        };
        let (reply, changes) = add().unwrap();
        let Reply::Subscriber(added) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(changes, [Change::Added(added.subscriber.clone())]);
        assert_eq!(add().unwrap_err().kind, ErrorKind::Conflict);
        let (_, changes) = apply(&store, SubscriberRequest::Remove(name("alice"))).unwrap();
        assert_eq!(changes, [Change::Removed(added.subscriber)]);
        let gone = apply(&store, SubscriberRequest::Show(name("alice"))).unwrap_err();
        assert_eq!(
            (gone.kind, gone.message.as_str()),
            (ErrorKind::NotFound, "no subscriber `alice` of operator `default`")
        );
    }

    #[test]
    fn an_import_with_one_bad_record_changes_nothing() {
        let store = store();
        let mut bad = record("default", "bob");
        bad.subscriber.addresses.clear();
        let records = vec![record("default", "alice"), bad];
        let error = apply(
            &store,
            SubscriberRequest::Import {
                records,
                replace: false,
            },
        )
        .unwrap_err();
        assert!(error.message.contains("`bob`: addresses"), "{error}");
        let twice = vec![record("default", "alice"), record("default", "alice")];
        let twice = SubscriberRequest::Import {
            records: twice,
            replace: true,
        };
        assert!(apply(&store, twice).unwrap_err().message.contains("twice"));
        assert_eq!(store.count().unwrap(), 0);
    }

    #[test]
    fn lists_carry_secrets_only_when_asked_and_stay_within_the_operator() {
        let store = store();
        for operator in ["north", "south"] {
            apply(
                &store,
                SubscriberRequest::Add(Box::new(record(operator, "alice"))),
            )
            .unwrap();
        }
        for with_secrets in [false, true] {
            let request = SubscriberRequest::List {
                operator: Some("south".into()),
                after: None,
                with_secrets,
            };
            let Reply::Subscribers(page) = apply(&store, request).unwrap().0 else {
                panic!("not a page")
            };
            let found: Vec<_> = page
                .records
                .iter()
                .map(|record| (record.subscriber.operator.as_str(), record.secrets.is_some()))
                .collect();
            assert_eq!(found, [("south", with_secrets)]);
            assert_eq!(page.next, None);
        }
    }

    #[test]
    fn conditions_are_added_and_removed_exactly() {
        let store = store();
        apply(
            &store,
            SubscriberRequest::Add(Box::new(record("default", "alice"))),
        )
        .unwrap();
        let condition = Condition {
            address: ConditionAddress::Terminal,
            peer: None,
            port: 5500,
        };
        let list = ProfileList::ToTerminal;
        let change = |change| {
            apply(
                &store,
                SubscriberRequest::Profile {
                    name: name("alice"),
                    change,
                },
            )
        };
        let (_, changes) = change(ProfileChange::Add { list, condition }).unwrap();
        let [Change::Profile(subscriber)] = changes.as_slice() else {
            panic!("{changes:?}")
        };
        assert!(subscriber.profile.to_terminal.contains(&condition));
        let again = change(ProfileChange::Add { list, condition }).unwrap_err();
        assert_eq!(again.kind, ErrorKind::Conflict);
        change(ProfileChange::Remove { list, condition }).unwrap();
        let gone = change(ProfileChange::Remove { list, condition }).unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NotFound);
        assert!(
            gone.message
                .contains("list to-terminal: address terminal port 5500")
        );
    }
}
