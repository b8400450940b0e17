//! What every [`Store`] must do, as a suite that takes a way to make an empty one.

use std::net::IpAddr;

use towpath_base::credentials::Credentials;
use towpath_base::profile::{
    Attachment, Identification, IkeId, PeerPolicy, Psk, ServiceProfile, Subscriber, SubscriberSecrets,
};
use towpath_base::sa::{Class, EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::{SecretKey, SubscriberHandle};

use crate::{Accept, Location, Store, StoreError};

/// Makes an empty store.
pub type Fresh<'a> = &'a dyn Fn() -> Box<dyn Store>;

/// Runs the whole suite; panics at the first breach.
pub fn run(fresh: Fresh<'_>) {
    records_come_back_as_they_went_in(&*fresh());
    names_are_unique_within_an_operator(&*fresh());
    an_import_happens_whole_or_not_at_all(&*fresh());
    handles_are_never_used_twice(&*fresh());
    pages_are_ordered_scoped_and_complete(&*fresh());
    fixed_addresses_never_overlap(&*fresh());
    registration_counters_only_rise(&*fresh());
    a_new_key_starts_a_new_counter(&*fresh());
    epochs_count_up(&*fresh());
}

/// A subscriber with secrets drawn from its name.
pub fn record(
    operator: &str,
    name: &str,
    attachment: Attachment,
    addresses: &[&str],
) -> (Subscriber, SubscriberSecrets) {
    let mut ksub = [0x5a; 32];
    for (slot, byte) in ksub.iter_mut().zip(name.bytes()) {
        *slot ^= byte;
    }
    let peer = PeerPolicy {
        peer: "192.0.2.0/24".parse().expect("prefix"),
        local_id: IkeId::from_text(&format!("{name}@towpath.example")),
        remote_id: Some(IkeId::KeyId(vec![0, 1, 255])),
        ike_proposals: vec!["aes256gcm16-prfsha256-x25519".into()],
        esp_suites: vec![EspSuite::Aes256Gcm16, EspSuite::Aes128CbcSha256],
        esn: true,
        mode: Mode::Transport,
        class: Class::Full,
        local_ts: vec![TrafficSelector::host(IpAddr::from([10, 0, 0, 1]))],
        remote_ts: Vec::new(),
        lifetime: Lifetime {
            soft_seconds: 3000,
            hard_seconds: 3600,
            ..Lifetime::default()
        },
        level: 0,
    };
    let subscriber = Subscriber {
        handle: SubscriberHandle(0),
        name: name.into(),
        operator: operator.into(),
        identification: Identification {
            nai: Some(format!("{name}@{operator}")),
            ..Identification::default()
        },
        addresses: addresses
            .iter()
            .map(|text| text.parse().expect("prefix"))
            .collect(),
        attachment,
        profile: ServiceProfile::standard(),
        peers: vec![peer],
    };
    let secrets = SubscriberSecrets {
        ksub: SecretKey::new(ksub),
        credentials: vec![Credentials::psk(Psk::new(
            format!("the pre-shared key of {name}").into_bytes(),
        ))],
    };
    (subscriber, secrets)
}

fn add(store: &dyn Store, operator: &str, name: &str) -> Subscriber {
    let record = record(operator, name, Attachment::Registered, &["10.0.0.0/8"]);
    let mut imported = store.import(&[record], false).expect("import");
    imported.added.remove(0)
}

fn location(last: u8, expires_unix: u64) -> Location {
    Location {
        addresses: vec![IpAddr::from([10, 0, 0, last])],
        expires_unix,
    }
}

fn records_come_back_as_they_went_in(store: &dyn Store) {
    let (mut wanted, secrets) = record(
        "default",
        "alice",
        Attachment::Registered,
        &["10.0.0.1", "2001:db8::/64"],
    );
    let added = store
        .import(&[(wanted.clone(), secrets.clone())], false)
        .expect("import");
    let handle = added.added[0].handle;
    wanted.handle = handle;
    assert_eq!(added.added, [wanted.clone()]);
    assert_eq!(store.get(handle).expect("get"), Some(wanted.clone()));
    assert_eq!(
        store.find("default", "alice").expect("find"),
        Some(wanted.clone())
    );
    let kept = store.secrets(handle).expect("secrets").expect("there");
    assert!(kept.ksub == secrets.ksub && kept.credentials == secrets.credentials);
    wanted.profile.to_terminal.clear();
    store.update(&wanted).expect("update");
    assert_eq!(store.get(handle).expect("get"), Some(wanted.clone()));
    assert!(
        store
            .secrets(handle)
            .expect("secrets")
            .is_some_and(|kept| kept.ksub == secrets.ksub)
    );
    assert_eq!(store.remove("default", "alice").expect("remove"), wanted);
    assert_eq!(store.get(handle).expect("get"), None);
    assert!(store.secrets(handle).expect("secrets").is_none());
    assert!(matches!(store.update(&wanted), Err(StoreError::NotFound { .. })));
    assert!(matches!(
        store.remove("default", "alice"),
        Err(StoreError::NotFound { .. })
    ));
    assert_eq!(store.count().expect("count"), 0);
}

fn names_are_unique_within_an_operator(store: &dyn Store) {
    let first = add(store, "north", "alice");
    let second = add(store, "south", "alice");
    assert_ne!(first.handle, second.handle);
    let again = record("north", "alice", Attachment::Registered, &[]);
    assert!(matches!(
        store.import(&[again], false),
        Err(StoreError::Exists { .. })
    ));
    assert_eq!(store.find("north", "alice").expect("find"), Some(first));
    store.remove("north", "alice").expect("remove");
    assert_eq!(store.find("south", "alice").expect("find"), Some(second));
    assert_eq!(store.find("east", "alice").expect("find"), None);
}

fn an_import_happens_whole_or_not_at_all(store: &dyn Store) {
    let bob = add(store, "default", "bob");
    let records = ["alice", "bob", "carol"].map(|name| record("default", name, Attachment::Registered, &[]));
    assert!(store.import(&records, false).is_err());
    assert_eq!(store.count().expect("count"), 1);
    let imported = store.import(&records, true).expect("import");
    assert_eq!((imported.added.len(), imported.replaced.len()), (2, 1));
    let (old, new) = &imported.replaced[0];
    assert_eq!((old, new.handle), (&bob, bob.handle));
    assert!(
        new.addresses.is_empty()
            && store
                .get(bob.handle)
                .expect("get")
                .is_some_and(|kept| kept == *new)
    );
}

fn handles_are_never_used_twice(store: &dyn Store) {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        let added = add(store, "default", "alice");
        assert!(added.handle.0 > 0 && seen.insert(added.handle));
        store.remove("default", "alice").expect("remove");
    }
}

fn pages_are_ordered_scoped_and_complete(store: &dyn Store) {
    for (operator, name) in [
        ("b", "2"),
        ("a", "9"),
        ("b", "1"),
        ("b", "3"),
        ("c", "0"),
        ("ab", "5"),
    ] {
        add(store, operator, name);
    }
    let names = |page: Vec<Subscriber>| -> Vec<String> {
        page.into_iter()
            .map(|subscriber| subscriber.operator + &subscriber.name)
            .collect()
    };
    let page = |operator, after, limit| names(store.page(operator, after, limit).expect("page"));
    assert_eq!(page(None, None, 100), ["a9", "ab5", "b1", "b2", "b3", "c0"]);
    assert_eq!(page(Some("b"), None, 2), ["b1", "b2"]);
    assert_eq!(page(Some("b"), Some(("b", "2")), 2), ["b3"]);
    assert_eq!(page(Some("b"), Some(("b", "3")), 2), [""; 0]);
    assert_eq!(page(None, Some(("ab", "5")), 2), ["b1", "b2"]);
    // The cursor may be gone by now, or lie outside the operator.
    assert_eq!(page(None, Some(("b", "25")), 1), ["b3"]);
    assert_eq!(page(Some("b"), Some(("a", "0")), 1), ["b1"]);
    assert_eq!(page(Some("zz"), None, 10), [""; 0]);
}

fn fixed_addresses_never_overlap(store: &dyn Store) {
    let fixed = |name: &str, addresses: &[&str]| {
        store.import(&[record("default", name, Attachment::Fixed, addresses)], true)
    };
    let owner = |address: &str| {
        store
            .fixed_owner(address.parse().expect("address"))
            .expect("owner")
    };
    let net = fixed("net", &["10.1.0.0/16", "2001:db8:1::/48"])
        .expect("import")
        .added[0]
        .handle;
    for overlap in [
        "10.1.2.3",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "2001:db8:1::1",
        "::/0",
        "0.0.0.0/0",
    ] {
        let refused = fixed("other", &["172.16.0.1", overlap]);
        assert!(
            matches!(refused, Err(StoreError::AddressTaken { owner, .. }) if owner == net),
            "{overlap}"
        );
    }
    assert_eq!(owner("172.16.0.1"), None);
    assert_eq!(owner("10.1.255.255"), Some(net));
    assert_eq!(owner("2001:db8:1::9"), Some(net));
    let all = fixed("other", &["10.2.0.0/16"]).expect("import").added[0].handle;
    assert_eq!(owner("10.2.0.9"), Some(all));
    assert_eq!(store.fixed().expect("fixed").len(), 2);
    // A replaced, updated or removed subscriber gives its addresses back.
    fixed("net", &["10.9.0.0/16"]).expect("import");
    assert_eq!((owner("10.1.0.1"), owner("10.9.0.1")), (None, Some(net)));
    let mut other = store.get(all).expect("get").expect("there");
    other.attachment = Attachment::Registered;
    store.update(&other).expect("update");
    store.remove("default", "net").expect("remove");
    assert_eq!((owner("10.2.0.9"), owner("10.9.0.1")), (None, None));
    assert!(store.fixed().expect("fixed").is_empty());
}

fn registration_counters_only_rise(store: &dyn Store) {
    let alice = add(store, "default", "alice").handle;
    let accept = |counter, last| {
        store
            .accept_registration(alice, counter, &location(last, 99))
            .expect("accept")
    };
    assert_eq!(store.last_counter(alice).expect("counter"), 0);
    assert!(!accept(0, 1) && accept(5, 1) && !accept(5, 2) && !accept(4, 2) && accept(u64::MAX, 3));
    assert_eq!(store.last_counter(alice).expect("counter"), u64::MAX);
    assert_eq!(store.locations().expect("locations"), [(alice, location(3, 99))]);
    store.forget_location(alice).expect("forget");
    store.forget_location(alice).expect("forget again");
    assert!(store.locations().expect("locations").is_empty());
    assert!(!accept(7, 1), "the counter outlives the location");
    let bob = add(store, "default", "bob").handle;
    let at = |handle, counter, last| Accept {
        handle,
        counter,
        location: location(last, 99),
    };
    // Many at once are as each after the other.
    let accepted =
        store.accept_registrations(&[at(bob, 1, 4), at(alice, 8, 5), at(bob, 1, 6), at(bob, 2, 7)]);
    assert_eq!(accepted.expect("accept"), [true, false, false, true]);
    assert_eq!(store.last_counter(bob).expect("counter"), 2);
    assert_eq!(store.locations().expect("locations"), [(bob, location(7, 99))]);
    assert_eq!(store.accept_registrations(&[]).expect("accept"), []);
}

fn a_new_key_starts_a_new_counter(store: &dyn Store) {
    let alice = add(store, "default", "alice").handle;
    assert!(
        store
            .accept_registration(alice, 9, &location(1, 99))
            .expect("accept")
    );
    let mut again = record("default", "alice", Attachment::Registered, &[]);
    store.import(&[again.clone()], true).expect("same key");
    assert_eq!(store.last_counter(alice).expect("counter"), 9);
    again.1.ksub = SecretKey::new([1; 32]);
    store.import(&[again], true).expect("new key");
    assert_eq!(store.last_counter(alice).expect("counter"), 0);
    assert!(
        store.locations().expect("locations").is_empty(),
        "the old registration is over"
    );
}

fn epochs_count_up(store: &dyn Store) {
    assert_eq!(store.next_epoch().expect("epoch"), 1);
    assert_eq!(store.next_epoch().expect("epoch"), 2);
}
