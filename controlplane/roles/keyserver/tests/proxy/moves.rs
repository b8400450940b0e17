//! Terminals that move (RFC 4555).

use std::net::IpAddr;
use std::time::Duration;

use towpath_base::sa::Mode;
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_crypto::{IkeCrypto, SystemRng};
use towpath_keyserver::{Config, Keyserver};
use towpath_keyx::message::FromTerminal;

use crate::world::{A, B, World, address};

/// A registers at another address and says so.
fn move_a(world: &mut World) -> IpAddr {
    let new = IpAddr::from([10, 0, 0, 101]);
    world.moved.insert(A, new);
    world.register(A, 2);
    let hello = world.seal(A, &FromTerminal::Hello);
    world.deliver(A, B, hello);
    world.pass(Duration::from_secs(2));
    new
}

#[test]
fn a_terminal_that_moves_takes_its_sas_along_and_the_other_end_follows() {
    let mut world = World::new();
    world.mode = Mode::Tunnel;
    world.behind = |subscriber| {
        let net = [10, 9, subscriber.0 as u8, 0];
        vec![TrafficSelector::any_of(Prefix::new(net.into(), 24).unwrap())]
    };
    world.ask(A, B, 1);
    let (old_a, old_b) = (world.sa_of(A).clone(), world.sa_of(B).clone());
    let new = move_a(&mut world);
    // Fresh keys between the new ends; the IKE SA is the same.
    let (a, b) = (world.sa_of(A), world.sa_of(B));
    assert_eq!((a.local, b.remote), (new, new));
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    assert_ne!(a.spi_in, old_a.spi_in);
    // What B was told to forget is what it was given.
    assert_eq!((old_b.remote, world.terminals[&B].deleted), (address(A), 1));
    assert!(world.events.iter().filter(|kind| *kind == "ike_moved").count() >= 2);
    assert_eq!(
        world
            .events
            .iter()
            .filter(|kind| *kind == "ike_established")
            .count(),
        2
    );
    world.pass(Duration::from_secs(10));
    assert_eq!(world.gateway.len(), 2, "{:?}", world.gateway);
    assert!(world.gateway.iter().all(|sa| sa.local == new || sa.remote == new));
    // Another rekeying, and the end, work from there.
    let (b_ike, _) = world.ike_of(B);
    world.keyserver.ike_rekey(world.now, b_ike, None).unwrap();
    world.run();
    let (b_ike, _) = world.ike_of(B);
    world.keyserver.ike_terminate(world.now, b_ike, None).unwrap();
    world.run();
    world.pass(Duration::from_secs(10));
    assert_eq!(world.gateway, []);
    assert!(world.terminals[&A].installed.is_empty() && world.terminals[&B].installed.is_empty());
}

/// The traffic is between the addresses themselves: nothing is left to protect, and the next request starts afresh.
#[test]
fn an_sa_of_an_address_ends_with_it() {
    let mut world = World::new();
    world.ask(A, B, 1);
    let new = move_a(&mut world);
    world.pass(Duration::from_secs(120));
    assert_eq!(world.gateway, []);
    assert!(world.terminals[&B].installed.is_empty());
    world.ask(A, B, 2);
    assert_eq!(world.sa_of(B).remote, new);
}

#[test]
fn without_mobike_a_move_ends_the_sas() {
    let mut world = World::new();
    let config = Config {
        ike: towpath_ike::Config {
            mobike: false,
            ..Config::default().ike
        },
        ..Config::default()
    };
    world.keyserver = Keyserver::new(config, IkeCrypto, SystemRng);
    world.register(A, 1);
    world.register(B, 1);
    world.mode = Mode::Tunnel;
    world.behind = |_| {
        vec![TrafficSelector::any_of(
            Prefix::new([10, 9, 0, 0].into(), 16).unwrap(),
        )]
    };
    world.ask(A, B, 1);
    world.sa_of(A);
    move_a(&mut world);
    world.pass(Duration::from_secs(200));
    assert_eq!(world.gateway, []);
}
