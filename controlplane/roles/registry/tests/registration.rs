//! Terminals register with a registry over a real store; forgers, replayers and strangers do not.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use towpath_base::crypto::Rng;
use towpath_base::profile::Attachment;
use towpath_base::{DropReason, Instant, SecretKey, SubscriberHandle};
use towpath_fabric::{Datagram, DropCode, FromRegistry, NodeName, SessionGrant, ToRegistry};
use towpath_keyx::RegistrationKeys;
use towpath_keyx::registration::{Addresses, Attempt, Granted, deregister};
use towpath_registry::{Config, Destination, Registry};
use towpath_store::{Kek, RedbStore, contract};
use towpath_telemetry::admin::{Record, Reply, SubscriberName, SubscriberRequest};

/// Deterministic, and different every time it is asked.
struct Counter(u8);

impl Rng for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0 += 1;
        bytes.fill(self.0);
    }
}

/// A terminal: its key, its counter.
struct Terminal {
    handle: SubscriberHandle,
    ksub: SecretKey<32>,
    address: IpAddr,
    counter: u64,
}

impl Terminal {
    fn keys(&self) -> RegistrationKeys {
        RegistrationKeys::derive(&self.ksub, self.handle)
    }

    fn datagram(&self, payload: &[u8]) -> Datagram {
        Datagram {
            source: SocketAddr::new(self.address, 500),
            destination: "192.0.2.1:500".parse().unwrap(),
            payload: payload.to_vec(),
        }
    }

    fn register(&mut self, addresses: &[IpAddr]) -> (Attempt, Datagram) {
        self.counter += 1;
        let mut attempt = Attempt::new([self.counter as u8; 32]);
        let addresses = Addresses::of(addresses.iter().copied());
        let sealed = attempt.register(&self.keys(), self.counter, &addresses).unwrap();
        let datagram = self.datagram(sealed.as_bytes());
        (attempt, datagram)
    }
}

struct World {
    registry: Registry<Counter>,
    now: Instant,
}

const UNIX: u64 = 1_800_000_000;

fn open(path: &Path) -> RedbStore {
    RedbStore::open(path, &Kek::new(SecretKey::new([9; 32]))).unwrap()
}

impl World {
    fn new(path: &Path) -> Self {
        Self::at(path, 0)
    }

    /// A registry that starts `seconds` later than the first.
    fn at(path: &Path, seconds: u64) -> Self {
        Self::with(path, seconds, Config::default())
    }

    fn with(path: &Path, seconds: u64, config: Config) -> Self {
        let now = Instant::from_secs(5);
        let registry = Registry::new(Box::new(open(path)), config, Counter(0), now, UNIX + seconds).unwrap();
        Self { registry, now }
    }

    fn add(&mut self, name: &str, attachment: Attachment, addresses: &[&str]) -> Terminal {
        let (subscriber, secrets) = contract::record("default", name, attachment, addresses);
        let ksub = secrets.ksub.clone();
        let address = subscriber.addresses[0].address();
        let record = Record {
            subscriber,
            secrets: Some(secrets),
        };
        let request = SubscriberRequest::Add(Box::new(record));
        let Reply::Subscriber(added) = self.registry.handle_admin(self.now, request).unwrap() else {
            panic!("not a subscriber")
        };
        Terminal {
            handle: added.subscriber.handle,
            ksub,
            address,
            counter: 0,
        }
    }

    /// Hands `datagram` to the registry and returns all but events.
    fn exchange(&mut self, datagram: Datagram) -> Vec<(Destination, FromRegistry)> {
        let message = ToRegistry::Register {
            datagram,
            keyserver: Some(NodeName::default()),
        };
        self.registry.handle(self.now, &NodeName::default(), message);
        self.drain()
    }

    fn drain(&mut self) -> Vec<(Destination, FromRegistry)> {
        std::iter::from_fn(|| self.registry.poll())
            .filter(|(_, message)| !matches!(message, FromRegistry::Event(_)))
            .collect()
    }

    /// The reason the registry refuses `datagram` for; it must do nothing else.
    fn refused(&mut self, datagram: Datagram) -> DropReason {
        let messages = self.exchange(datagram);
        let [(Destination::Gateway(_), FromRegistry::Refused(code))] = messages.as_slice() else {
            panic!("{messages:?}")
        };
        DropCode::reason(*code).unwrap()
    }

    fn registers(&mut self, terminal: &mut Terminal) -> (Granted, SessionGrant) {
        let address = terminal.address;
        let (mut attempt, datagram) = terminal.register(&[address]);
        let messages = self.exchange(datagram);
        let answer = messages.iter().find_map(|(to, message)| match message {
            FromRegistry::Answer { sealed, .. } if matches!(to, Destination::Gateway(_)) => Some(sealed),
            _ => None,
        });
        let session = messages.iter().find_map(|(to, message)| match message {
            FromRegistry::Session(grant) if matches!(to, Destination::Keyserver(_)) => Some(grant.clone()),
            _ => None,
        });
        let granted = attempt.acknowledged(&terminal.ksub, &terminal.keys(), answer.unwrap());
        (granted.unwrap(), session.unwrap())
    }
}

fn granted_to(messages: &[(Destination, FromRegistry)]) -> Vec<SubscriberHandle> {
    let grant = |message: &FromRegistry| match message {
        FromRegistry::Grant { subscriber, .. } => Some(subscriber.handle),
        _ => None,
    };
    messages
        .iter()
        .filter_map(|(_, message)| grant(message))
        .collect()
}

#[test]
fn terminal_and_keyserver_end_up_with_the_same_keys() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(&directory.path().join("s"));
    let mut alice = world.add("alice", Attachment::Registered, &["10.0.0.0/24", "2001:db8::/64"]);
    alice.address = "10.0.0.7".parse().unwrap();
    let both = [alice.address, "2001:db8::7".parse().unwrap()];
    let (mut attempt, datagram) = alice.register(&both);
    let messages = world.exchange(datagram);
    let [
        (Destination::Keyserver(_), FromRegistry::Session(session)),
        (
            Destination::Gateway(_),
            FromRegistry::Grant {
                subscriber,
                addresses,
            },
        ),
        (Destination::Gateway(_), FromRegistry::Answer { terminal, sealed }),
    ] = messages.as_slice()
    else {
        panic!("{messages:?}")
    };
    let granted = attempt.acknowledged(&alice.ksub, &alice.keys(), sealed).unwrap();
    assert!(granted.keys.t2n == session.t2n && granted.keys.n2t == session.n2t && session.t2n != session.n2t);
    assert_eq!((granted.terms.lifetime_seconds, granted.terms.epoch), (3600, 1));
    assert_eq!(
        (subscriber.handle, addresses.as_slice()),
        (alice.handle, both.as_slice())
    );
    assert_eq!(
        (session.addresses.as_slice(), *terminal),
        (both.as_slice(), SocketAddr::new(both[0], 500))
    );
    // Again from the same place: a new session, nothing new for the gateway.
    let (_, datagram) = alice.register(&both);
    let messages = world.exchange(datagram);
    let [
        (_, FromRegistry::Session(again)),
        (_, FromRegistry::Answer { .. }),
    ] = messages.as_slice()
    else {
        panic!("{messages:?}")
    };
    assert!(again.session != session.session && again.t2n != session.t2n);
    assert_eq!(world.registry.registered(), 1);
}

#[test]
fn forged_truncated_replayed_and_unknown_registrations_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut world = World::new(&path);
    let mut alice = world.add("alice", Attachment::Registered, &["10.0.0.7"]);
    let (_, good) = alice.register(&[alice.address]);
    for len in 0..good.payload.len() {
        let mut cut = good.clone();
        cut.payload.truncate(len);
        let reason = world.refused(cut);
        assert!(
            matches!(reason, DropReason::KeyxMalformed | DropReason::KeyxForged),
            "{len}: {reason:?}"
        );
    }
    for index in 0..good.payload.len() {
        let mut flipped = good.clone();
        flipped.payload[index] ^= 1;
        let reason = world.refused(flipped);
        let expected = [
            DropReason::KeyxMalformed,
            DropReason::KeyxUnknownSubscriber,
            DropReason::KeyxForged,
        ];
        assert!(expected.contains(&reason), "{index}: {reason:?}");
    }
    let mut moved = good.clone();
    moved.source = "10.0.0.8:500".parse().unwrap();
    assert_eq!(world.refused(moved), DropReason::KeyxWrongAddress);
    assert_eq!(world.exchange(good.clone()).len(), 3, "the original still counts");
    assert_eq!(world.refused(good.clone()), DropReason::KeyxReplayed);
    // An older one that was held back, and one that is replayed over a restart.
    alice.counter = 0;
    let (_, older) = alice.register(&[alice.address]);
    assert_eq!(world.refused(older), DropReason::KeyxReplayed);
    drop(world);
    let mut world = World::new(&path);
    world.drain();
    assert_eq!(world.refused(good), DropReason::KeyxReplayed);
}

#[test]
fn an_address_belongs_to_one_terminal_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(&directory.path().join("s"));
    let mut alice = world.add("alice", Attachment::Registered, &["10.0.0.0/24"]);
    let mut bob = world.add("bob", Attachment::Registered, &["10.0.0.0/24"]);
    world.add("fixed", Attachment::Fixed, &["10.0.0.9"]);
    alice.address = "10.0.0.7".parse().unwrap();
    world.drain();
    world.registers(&mut alice);
    bob.address = alice.address;
    let (_, taken) = bob.register(&[bob.address]);
    assert_eq!(world.refused(taken), DropReason::KeyxWrongAddress);
    for other in ["10.0.0.9", "10.9.0.1"] {
        bob.address = other.parse().unwrap();
        let (_, refused) = bob.register(&[bob.address]);
        assert_eq!(world.refused(refused), DropReason::KeyxWrongAddress, "{other}");
    }
    // Alice leaves; then bob may. A replay of her goodbye changes nothing.
    alice.counter += 1;
    let goodbye = deregister(
        &alice.keys(),
        alice.counter,
        &[1; 32],
        &Addresses::of([alice.address]),
    );
    let goodbye = alice.datagram(goodbye.unwrap().as_bytes());
    let messages = world.exchange(goodbye.clone());
    assert!(matches!(
        messages.as_slice(),
        [
            (Destination::Keyserver(_), FromRegistry::SessionEnded { .. }),
            (Destination::Gateway(_), FromRegistry::Withdraw { .. })
        ]
    ));
    assert_eq!(world.refused(goodbye), DropReason::KeyxReplayed);
    bob.address = alice.address;
    world.registers(&mut bob);
}

#[test]
fn a_flood_of_one_subscriber_is_its_own_problem() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(&directory.path().join("s"));
    let mut alice = world.add("alice", Attachment::Registered, &["10.0.0.7"]);
    let mut bob = world.add("bob", Attachment::Registered, &["10.0.0.8"]);
    for _ in 0..Config::default().registrations_burst {
        world.registers(&mut alice);
    }
    for _ in 0..100 {
        let (_, more) = alice.register(&[alice.address]);
        assert_eq!(world.refused(more), DropReason::KeyxRateLimited);
    }
    world.registers(&mut bob);
    world.now = Instant::from_secs(65);
    world.registers(&mut alice);
}

#[test]
fn registrations_end_and_survive_restarts_until_then() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut world = World::new(&path);
    let mut alice = world.add("alice", Attachment::Registered, &["10.0.0.7"]);
    let fixed = world.add("fixed", Attachment::Fixed, &["10.1.0.0/16"]);
    assert_eq!(granted_to(&world.drain()), [fixed.handle]);
    world.registers(&mut alice);
    drop(world);

    let mut world = World::at(&path, 1000);
    assert_eq!(granted_to(&world.drain()), [fixed.handle, alice.handle]);
    assert_eq!(world.registry.poll_timeout(), Some(Instant::from_secs(5 + 2600)));
    world.registry.handle_timeout(Instant::from_secs(5 + 2599));
    assert!(world.drain().is_empty());
    world.registry.handle_timeout(Instant::from_secs(5 + 2600));
    let messages = world.drain();
    assert!(matches!(
        messages.as_slice(),
        [
            (Destination::Keyserver(_), FromRegistry::SessionEnded { subscriber }),
            (Destination::Gateway(_), FromRegistry::Withdraw { .. })
        ] if *subscriber == alice.handle
    ));
    assert_eq!(world.registry.poll_timeout(), None);
    drop(world);

    let mut world = World::at(&path, 1001);
    assert_eq!(granted_to(&world.drain()), [fixed.handle]);
}

#[test]
fn what_operators_change_reaches_gateway_and_keyserver() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(&directory.path().join("s"));
    let mut alice = world.add("alice", Attachment::Registered, &["10.0.0.7"]);
    world.registers(&mut alice);
    // A fixed attachment at her address displaces her.
    let fixed = world.add("fixed", Attachment::Fixed, &["10.0.0.0/24"]);
    let messages = world.drain();
    assert!(messages.iter().any(|(_, message)| matches!(
        message,
        FromRegistry::Withdraw { subscriber } if *subscriber == alice.handle
    )));
    assert_eq!(granted_to(&messages), [fixed.handle]);
    let name = SubscriberName {
        operator: "default".into(),
        name: "fixed".into(),
    };
    world
        .registry
        .handle_admin(world.now, SubscriberRequest::Remove(name))
        .unwrap();
    assert!(matches!(
        world.drain().as_slice(),
        [
            (Destination::Keyserver(_), FromRegistry::SessionEnded { .. }),
            (Destination::Gateway(_), FromRegistry::Withdraw { subscriber })
        ] if *subscriber == fixed.handle
    ));
    world.registers(&mut alice);
}

#[test]
fn credentials_are_for_the_peers_of_the_subscriber_alone() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(&directory.path().join("s"));
    let alice = world.add("alice", Attachment::Registered, &["10.0.0.7"]);
    let mut ask = |subscriber, peer: &str| {
        let message = ToRegistry::Credential {
            request: 7,
            subscriber,
            peer: peer.parse().unwrap(),
            level: 0,
        };
        world.registry.handle(world.now, &NodeName::default(), message);
        match world.drain().remove(0) {
            (
                Destination::Keyserver(_),
                FromRegistry::Credential {
                    request: 7,
                    credential,
                    ..
                },
            ) => credential,
            other => panic!("{other:?}"),
        }
    };
    let (policy, psk) = ask(alice.handle, "192.0.2.77").unwrap();
    assert_eq!(policy.peer.to_string(), "192.0.2.0/24");
    assert_eq!(psk.psk.as_ref().unwrap().expose(), b"the pre-shared key of alice");
    assert!(ask(alice.handle, "198.51.100.1").is_none());
    assert!(ask(SubscriberHandle(99), "192.0.2.77").is_none());
}

fn answers(messages: &[(Destination, FromRegistry)]) -> usize {
    let answer = |message: &&(Destination, FromRegistry)| matches!(message.1, FromRegistry::Answer { .. });
    messages.iter().filter(answer).count()
}

#[test]
fn registrations_of_one_turn_are_stored_together_and_mean_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config {
        registrations_per_flush: 8,
        ..Config::default()
    };
    let mut world = World::with(&directory.path().join("s"), 0, config);
    let mut alice = world.add("alice", Attachment::Registered, &["10.0.0.0/24"]);
    let mut bob = world.add("bob", Attachment::Registered, &["10.0.0.0/24"]);
    let mut carol = world.add("carol", Attachment::Registered, &["10.0.1.1"]);
    let addresses: [IpAddr; 2] = ["10.0.0.7", "10.0.0.8"].map(|text| text.parse().unwrap());
    (alice.address, bob.address) = (addresses[0], addresses[1]);

    // Two that have nothing to do with each other wait for the end of the turn.
    let (_, first) = alice.register(&[addresses[0]]);
    assert_eq!(world.exchange(first.clone()), []);
    let carols = carol.address;
    let (_, other) = carol.register(&[carols]);
    assert_eq!(world.exchange(other), []);
    assert!(world.registry.poll_timeout() <= Some(world.now));
    world.registry.handle_timeout(world.now);
    assert_eq!(answers(&world.drain()), 2);
    assert_eq!(world.registry.registered(), 2);

    // A second of the same terminal, and one at an address that is being taken, are judged by what is stored.
    let (_, second) = alice.register(&[addresses[0]]);
    assert_eq!(world.exchange(second.clone()), []);
    assert_eq!(
        world.exchange(first).len(),
        3,
        "session and answer, and a replay refused"
    );
    let (_, third) = alice.register(&[addresses[0]]);
    assert_eq!(world.exchange(third), []);
    let (_, stolen) = bob.register(&[addresses[0]]);
    let messages = world.exchange(Datagram {
        source: SocketAddr::new(addresses[0], 500),
        ..stolen
    });
    let refused = FromRegistry::Refused(DropReason::KeyxWrongAddress.into());
    assert!(answers(&messages) == 1 && messages.iter().any(|(_, message)| *message == refused));
    assert_eq!(world.refused(second), DropReason::KeyxReplayed);
}

#[test]
fn a_full_turn_does_not_wait() {
    let directory = tempfile::tempdir().unwrap();
    let time = |per_flush| {
        let config = Config {
            registrations_per_flush: per_flush,
            ..Config::default()
        };
        let mut world = World::with(&directory.path().join(format!("{per_flush}")), 0, config);
        let terminals = (0..64).map(|number| {
            let address = format!("10.0.0.{number}");
            world.add(&address, Attachment::Registered, &[&address])
        });
        let registrations: Vec<Datagram> = terminals
            .collect::<Vec<_>>()
            .iter_mut()
            .map(|terminal| terminal.register(&[terminal.address]).1)
            .collect();
        let since = std::time::Instant::now();
        let answered = registrations
            .into_iter()
            .map(|datagram| answers(&world.exchange(datagram)))
            .sum::<usize>();
        assert_eq!(answered, 64);
        since.elapsed()
    };
    let (each, together) = (time(1), time(64));
    println!("64 registrations stored one by one {each:?}, together {together:?}");
}
