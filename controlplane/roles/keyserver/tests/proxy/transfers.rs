//! Key transfers: repeated, raced, never handed out twice.

use std::time::Duration;

use towpath_base::Spi;

use crate::world::{A, B, World};

/// A asked, and does not acknowledge what it was sent.
fn unconfirmed() -> World {
    let mut world = World::new();
    world.acknowledges(A, false);
    world.ask(A, B, 1);
    world
}

/// A rekeying of the peer, whose terminal does not acknowledge it. Gives the SPI of what it replaces.
fn rekeyed_unconfirmed() -> (World, Spi) {
    let mut world = World::new();
    world.ask(A, B, 1);
    world.acknowledges(B, false);
    let (ike, child) = world.ike_of(A);
    world.keyserver.ike_rekey(world.now, ike, Some(child)).unwrap();
    world.run();
    (world, child)
}

#[test]
fn a_transfer_is_repeated_until_acknowledged_and_given_up_in_the_end() {
    let mut world = unconfirmed();
    world.pass(Duration::from_secs(2));
    assert_eq!(world.gateway.len(), 2);
    // The terminal answers at last: the next retransmission reaches it.
    world.acknowledges(A, true);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.terminals[&A].installed.len(), 1);

    let mut world = unconfirmed();
    world.pass(Duration::from_secs(300));
    assert_eq!(world.gateway, []);
    assert!(world.terminals[&B].installed.is_empty());
    assert!(world.events.iter().any(|kind| kind == "key_transfer_failed"));
}

#[test]
fn keys_are_never_handed_out_twice() {
    let mut world = World::new();
    world.ask(A, B, 1);
    let first = world.sa_of(A).clone();
    // The terminal starts over: it registers again and has no SA.
    world.register(A, 2);
    world.ask(A, B, 2);
    world.pass(Duration::from_secs(30));
    let second = world.sa_of(A);
    assert_ne!(first.keys_out, second.keys_out);
    assert_ne!(first.spi_out, second.spi_out);
    assert_eq!(world.gateway.len(), 2);
}

#[test]
fn a_peer_that_rekeys_is_answered_when_the_terminal_has_the_keys() {
    let (mut world, child) = rekeyed_unconfirmed();
    world.pass(Duration::from_millis(1200));
    // B's side has made the new SA, its terminal has not confirmed it: A, which asked, has not heard of it.
    assert_eq!(world.terminals[&A].installed.len(), 1);
    assert_eq!(world.gateway.len(), 3, "the gateway is ready for B's new SA");
    world.acknowledges(B, true);
    world.pass(Duration::from_secs(2));
    for subscriber in [A, B] {
        let terminal = &world.terminals[&subscriber];
        assert_eq!((terminal.installed.len(), terminal.deleted), (1, 1));
    }
    let new = world.terminals[&A].installed[0].spi_in;
    assert_ne!(new, child);
    // Packets under the old keys are served for a while, and then no more.
    assert_eq!(world.gateway.len(), 4);
    world.pass(Duration::from_secs(6));
    assert_eq!(world.gateway.len(), 2);
    assert!(world.gateway.iter().any(|sa| sa.spi_in == new));
}

#[test]
fn a_terminal_that_never_confirms_holds_a_rekeying_up_for_a_bounded_time() {
    let (mut world, child) = rekeyed_unconfirmed();
    world.pass(towpath_keyserver::READY_WITHIN + Duration::from_secs(1));
    assert_ne!(world.terminals[&A].installed.last().unwrap().spi_in, child);
}

#[test]
fn a_deletion_that_races_a_key_transfer_wins() {
    let mut world = unconfirmed();
    let (ike, _) = world.ike_of(A);
    world.keyserver.ike_terminate(world.now, ike, None).unwrap();
    world.run();
    world.acknowledges(A, true);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.terminals[&A].installed, []);
    assert_eq!(world.terminals[&B].installed, []);
    assert_eq!(world.gateway, []);
    assert_eq!(world.keyserver.child_sas().count(), 0);
}
