//! What is refused, and what happens when somebody is not there.

use std::time::Duration;

use towpath_base::DropReason;
use towpath_fabric::{FromRegistry, ToRegistry};
use towpath_keyx::message::{FromTerminal, RefuseReason};

use crate::world::{A, B, World};

#[test]
fn replayed_forged_truncated_and_misplaced_messages_are_refused() {
    let mut world = World::new();
    let sealed = world.request(A, B, 1);
    for len in 0..sealed.len() {
        world.deliver(A, B, sealed[..len].to_vec());
    }
    for at in 0..sealed.len() {
        let mut forged = sealed.clone();
        forged[at] ^= 1;
        world.deliver(A, B, forged);
    }
    assert_eq!(world.drops.len(), 2 * sealed.len());
    assert!(world.gateway.is_empty());
    // Another subscriber's address, then another peer's.
    world.deliver(B, A, sealed.clone());
    assert_eq!(world.drops.pop(), Some(DropReason::KeyxUnknownSession));
    world.deliver(A, A, sealed);
    assert_eq!(world.drops.pop(), Some(DropReason::KeyxWrongAddress));
    assert!(world.gateway.is_empty());
    let sealed = world.request(A, B, 2);
    world.deliver(A, B, sealed.clone());
    assert_eq!(world.gateway.len(), 2);
    world.deliver(A, B, sealed);
    assert_eq!(world.drops.pop(), Some(DropReason::KeyxReplayed));
}

#[test]
fn a_new_session_takes_over_only_when_the_terminal_uses_it() {
    let mut world = World::new();
    world.ask(A, B, 1);
    // Somebody replays a registration: the registry grants a session the terminal knows nothing of.
    let old = world.terminals.remove(&A).unwrap();
    world.register(A, 2);
    let unknown = world.terminals.insert(A, old).unwrap();
    let hello = world.seal(A, &FromTerminal::Hello);
    world.deliver(A, B, hello);
    assert_eq!(world.drops, []);
    // The terminal itself takes the new one up: the old one is over.
    let mut old = world.terminals.insert(A, unknown).unwrap();
    let hello = world.seal(A, &FromTerminal::Hello);
    world.deliver(A, B, hello);
    let stale = old
        .session
        .seal(&FromTerminal::Hello)
        .unwrap()
        .as_bytes()
        .to_vec();
    world.deliver(A, B, stale);
    assert!(
        matches!(
            world.drops.as_slice(),
            [DropReason::KeyxForged | DropReason::KeyxReplayed]
        ),
        "{:?}",
        world.drops
    );
}

#[test]
fn a_peer_without_policy_or_with_another_secret_is_refused_and_the_terminal_told() {
    let mut world = World::new();
    world.psk_of = |_| None;
    world.ask(A, B, 1);
    assert_eq!(world.terminals[&A].refused, [RefuseReason::NoPolicy]);

    let mut world = World::new();
    world.psk_of = |subscriber| Some(if subscriber == A { b"one" } else { b"two" });
    world.ask(A, B, 1);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.terminals[&A].refused, [RefuseReason::ExchangeFailed]);
    assert!(world.gateway.is_empty() && world.terminals[&A].installed.is_empty());
    // Asking again at once gets "later" instead of another exchange.
    world.ask(A, B, 2);
    assert_eq!(world.keyserver.ike_sas(world.now).count(), 0);
}

#[test]
fn a_subscriber_that_leaves_takes_its_sas_along() {
    let mut world = World::new();
    world.ask(A, B, 1);
    world
        .keyserver
        .handle_registry(world.now, FromRegistry::SessionEnded { subscriber: A });
    world.run();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.gateway, []);
    assert_eq!(world.terminals[&B].installed, []);
}

/// The registry is gone in the middle of an exchange: the terminal is told, and the next attempt works.
#[test]
fn a_registry_that_does_not_answer_delays_and_does_not_block() {
    let mut world = World::new();
    let request = world.request(A, B, 1);
    world.deliver_only(A, B, request);
    let asked = world.keyserver.poll_registry();
    assert!(
        matches!(asked, Some(ToRegistry::SessionConfirmed { .. })),
        "{asked:?}"
    );
    let asked = world.keyserver.poll_registry();
    assert!(matches!(asked, Some(ToRegistry::Credential { .. })), "{asked:?}");
    world.pass(Duration::from_secs(6));
    assert_eq!(world.terminals[&A].refused, [RefuseReason::ExchangeFailed]);
    world.pass(Duration::from_secs(2));
    world.ask(A, B, 2);
    world.sa_of(A);
}
