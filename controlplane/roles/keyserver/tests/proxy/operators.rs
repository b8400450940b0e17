//! Operators share a keyserver, and none uses up another's part (K16). A is of one operator, B of another.

use std::time::Duration;

use towpath_base::DropReason;
use towpath_crypto::{IkeCrypto, SystemRng};
use towpath_ike::Budget;
use towpath_keyserver::{Config, Keyserver, OperatorLimits};
use towpath_keyx::message::RefuseReason;

use crate::world::{A, B, World};

fn world(operators: OperatorLimits) -> World {
    let mut world = World::new();
    limit(&mut world, operators);
    world
}

fn limit(world: &mut World, operators: OperatorLimits) {
    let config = Config {
        operators,
        ..Config::default()
    };
    world.keyserver = Keyserver::new(config, IkeCrypto, SystemRng);
    world.register(A, 1);
    world.register(B, 1);
}

#[test]
fn an_operator_that_begins_too_many_exchanges_waits() {
    let mut world = world(OperatorLimits {
        exchanges_per_second: 1,
        ..OperatorLimits::default()
    });
    world.ask(A, B, 1);
    let first = world.sa_of(A).clone();
    world.terminals.get_mut(&A).unwrap().installed.clear();
    world.ask(A, B, 2);
    assert_eq!(world.terminals[&A].refused, [RefuseReason::TryLater]);
    assert_eq!(world.drops, [DropReason::KeyxRateLimited]);
    world.pass(Duration::from_secs(2));
    world.ask(A, B, 3);
    assert_ne!(world.sa_of(A).keys_out, first.keys_out);
}

#[test]
fn a_peer_beyond_the_rate_is_not_answered_and_gets_through_when_it_asks_again() {
    let mut world = World::new();
    world.operator_of = |_| "north";
    limit(
        &mut world,
        OperatorLimits {
            exchanges_per_second: 1,
            ..OperatorLimits::default()
        },
    );
    // A's request is the only one of this second: as the peer, it is not answered by B's side.
    world.ask(A, B, 1);
    assert!(world.terminals[&A].installed.is_empty());
    world.pass(Duration::from_secs(5));
    world.sa_of(A);
    world.sa_of(B);
    assert_eq!(world.terminals[&A].refused, []);
}

#[test]
fn an_operator_without_places_has_none() {
    let mut world = world(OperatorLimits {
        share: Budget {
            ike_sas: 0,
            half_open: 0,
        },
        ..OperatorLimits::default()
    });
    world.ask(A, B, 1);
    assert_eq!(world.terminals[&A].refused, [RefuseReason::ExchangeFailed]);
    assert_eq!(world.keyserver.ike_sas(world.now).count(), 0);
}
