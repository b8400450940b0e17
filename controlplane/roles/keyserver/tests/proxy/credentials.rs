//! Credentials are asked for once for exchanges that follow each other, and anew when they may have changed.

use std::time::Duration;

use towpath_fabric::FromRegistry;
use towpath_keyserver::{Config, Keyserver};

use crate::world::{A, B, World};

/// Questions to the registry for an exchange between A and B that A asks for.
fn asked(world: &mut World, request_id: u32) -> usize {
    let before = world.asked;
    world.ask(A, B, request_id);
    world.pass(Duration::from_secs(5));
    world.sa_of(A);
    world.asked - before
}

#[test]
fn the_next_exchange_does_not_wait_for_the_registry() {
    let mut world = World::new();
    assert_eq!(asked(&mut world, 1), 2, "one for each end");
    let first = world.sa_of(A).clone();
    // A starts over, and lost its SA.
    world.terminals.get_mut(&A).unwrap().installed.clear();
    assert_eq!(asked(&mut world, 2), 0);
    assert_ne!(world.sa_of(A).keys_out, first.keys_out);
    // Not longer than it is told, whether it was used or not.
    world.pass(Config::default().credentials_for);
    world.terminals.get_mut(&A).unwrap().installed.clear();
    assert_eq!(asked(&mut world, 3), 2);
}

#[test]
fn what_may_have_changed_is_asked_for_anew() {
    let mut world = World::new();
    assert_eq!(asked(&mut world, 1), 2);
    // A new session: A's own.
    world.register(A, 2);
    assert_eq!(asked(&mut world, 2), 1);
    // The subscriber was changed, which ends what it has.
    world
        .keyserver
        .handle_registry(world.now, FromRegistry::SessionEnded { subscriber: A });
    world.run();
    world.register(A, 3);
    assert_eq!(asked(&mut world, 3), 1);
    // The channel to the registry was away: everybody's.
    let subscribers = vec![A, B];
    world
        .keyserver
        .handle_registry(world.now, FromRegistry::Registered { subscribers });
    world.terminals.get_mut(&A).unwrap().installed.clear();
    assert_eq!(asked(&mut world, 4), 2);
}

#[test]
fn a_credential_that_did_not_do_is_asked_for_anew() {
    let mut world = World::new();
    world.psk_of = |subscriber| Some(if subscriber == A { b"one" } else { b"two" });
    world.ask(A, B, 1);
    world.pass(Duration::from_millis(100));
    assert!(world.terminals[&A].installed.is_empty());
    world.psk_of = |_| Some(b"two");
    world.pass(Duration::from_secs(5));
    assert_eq!(asked(&mut world, 2), 2);
}

#[test]
fn without_the_minute_each_exchange_asks() {
    let mut world = World::new();
    let config = Config {
        credentials_for: Duration::ZERO,
        ..Config::default()
    };
    world.keyserver = Keyserver::new(config, towpath_crypto::IkeCrypto, towpath_crypto::SystemRng);
    world.register(A, 1);
    world.register(B, 1);
    assert_eq!(asked(&mut world, 1), 2);
    world.terminals.get_mut(&A).unwrap().installed.clear();
    assert_eq!(asked(&mut world, 2), 2);
}
