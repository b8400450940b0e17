//! A process killed in the middle of its writes: everything it acknowledged is there, whole.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use towpath_base::SecretKey;
use towpath_base::SubscriberHandle;
use towpath_base::credentials::Credentials;
use towpath_base::profile::{Attachment, Identification, Psk, ServiceProfile, Subscriber, SubscriberSecrets};
use towpath_base::selector::Prefix;
use towpath_store::{Kek, Location, RedbStore, Store};

const CHILD: &str = "TOWPATH_CRASH_CHILD";

fn open(path: &Path) -> RedbStore {
    RedbStore::open(path, &Kek::new(SecretKey::new([3; 32]))).unwrap()
}

fn record(number: u64) -> (Subscriber, SubscriberSecrets) {
    let subscriber = Subscriber {
        handle: SubscriberHandle(0),
        name: format!("s{number}"),
        operator: "default".into(),
        identification: Identification::default(),
        addresses: vec![Prefix::host(std::net::Ipv4Addr::from_bits(number as u32).into())],
        attachment: Attachment::Fixed,
        profile: ServiceProfile::standard(),
        peers: Vec::new(),
    };
    let secrets = SubscriberSecrets {
        ksub: SecretKey::new([number as u8; 32]),
        credentials: vec![Credentials::psk(Psk::new(number.to_be_bytes().to_vec()))],
    };
    (subscriber, secrets)
}

/// The child: writes without end, and says what was acknowledged.
#[test]
fn child_writes() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = open(Path::new(&path));
    let mut out = std::io::stdout();
    for number in store.count().unwrap() + 1.. {
        let handle = store.import(&[record(number)], false).unwrap().added[0].handle;
        let location = Location {
            addresses: Vec::new(),
            expires_unix: number,
        };
        assert!(store.accept_registration(handle, number, &location).unwrap());
        writeln!(out, "ack {number} {}", handle.0).unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut acknowledged = Vec::new();
    for round in 1..=5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        for line in lines {
            let Some((number, handle)) = line.strip_prefix("ack ").and_then(|rest| rest.split_once(' '))
            else {
                continue;
            };
            acknowledged.push((number.parse::<u64>().unwrap(), handle.parse::<u64>().unwrap()));
            if acknowledged.len() == round * 20 {
                // SIGKILL: no destructor, no flush. Lines already in the pipe count as well.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let store = open(&path);
        assert!(acknowledged.len() >= round * 20);
        for (number, handle) in &acknowledged {
            let handle = SubscriberHandle(*handle);
            let kept = store.get(handle).unwrap().unwrap();
            assert_eq!(kept.name, format!("s{number}"));
            assert_eq!(
                store.secrets(handle).unwrap().unwrap().credentials,
                record(*number).1.credentials
            );
            assert_eq!(store.last_counter(handle).unwrap(), *number);
        }
        // At most one write was under way.
        assert!(store.count().unwrap() <= acknowledged.len() as u64 + 1);
        // That one counts as acknowledged from here on if it is there: the next child goes on behind it.
        if let Some(extra) = store
            .find("default", &format!("s{}", acknowledged.len() + 1))
            .unwrap()
        {
            let location = Location {
                addresses: Vec::new(),
                expires_unix: 0,
            };
            let number = acknowledged.len() as u64 + 1;
            store
                .accept_registration(extra.handle, number, &location)
                .unwrap();
            acknowledged.push((number, extra.handle.0));
        }
    }
}
