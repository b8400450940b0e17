//! SAs that come, replace one another and go.

use crate::common::*;
use towpath_base::sa::Lifetime;
use towpath_keyx::message::{SaName, TransferResult};
use towpath_terminal_core::{Disposition, Event};

#[test]
fn a_transfer_that_comes_twice_is_installed_once_and_acknowledged_twice() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.duplication = 0;
    world.settle();
    let before = world.terminal.sas().next().unwrap();
    // The acknowledgement was lost: the network sends the same transfer under a new counter.
    let sa_transfer = towpath_keyx::message::KeyTransfer {
        transfer_id: 1,
        request_id: None,
        operation: towpath_keyx::message::Operation::Delete(before.name),
    };
    world
        .net
        .send(&towpath_keyx::ToTerminal::KeyTransfer(sa_transfer));
    world.settle();
    assert_eq!(
        world.terminal.sas().count(),
        1,
        "identifier 1 was carried out before"
    );
    assert_eq!(world.net.acks.len(), 2);
    assert_eq!(world.net.acks[0], world.net.acks[1]);
}

#[test]
fn a_late_copy_does_not_bring_a_deleted_sa_back_or_start_its_counters_over() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let sa = world.net.make_sa(peer(false));
    let operation = || towpath_keyx::message::Operation::Install {
        class: towpath_base::sa::Class::Full,
        level: 0,
        replaces: None,
        standby: false,
        sa: sa.clone(),
    };
    let name = operation().name();
    world.net.sender.push(world.now, None, operation()).unwrap();
    world.settle();
    world.application(&udp(here(false), peer(false), b"sequence number 1 of the new SA"));
    let used = world.terminal.sas().find(|sa| sa.name == name).unwrap();
    assert_eq!(used.packets_out, 1);
    // The same keys under another identifier: acknowledged, but nothing starts over.
    world.net.sender.push(world.now, None, operation()).unwrap();
    world.settle();
    assert_eq!(world.terminal.sas().find(|sa| sa.name == name), Some(used));
    world.net.delete(world.now, name);
    world.settle();
    world.net.sender.push(world.now, None, operation()).unwrap();
    world.settle();
    assert!(world.terminal.sas().all(|sa| sa.name != name));
    assert!(
        world
            .net
            .acks
            .iter()
            .all(|ack| ack.result == TransferResult::Done)
    );
}

#[test]
fn a_rekeyed_sa_sends_on_the_new_one_and_still_receives_on_the_old() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let old = world.terminal.sas().next().unwrap().name;
    let in_flight = world.net.seal(&udp(peer(false), here(false), b"in flight"));
    let new = world.net.install(world.now, peer(false), None, Some(old.spi_in));
    world.settle();
    world.application(&udp(here(false), peer(false), b"y"));
    let packets = |world: &World, name| {
        world
            .terminal
            .sas()
            .find(|sa| sa.name == name)
            .map(|sa| sa.packets_out)
    };
    assert_eq!((packets(&world, old), packets(&world, new)), (Some(1), Some(1)));
    assert_eq!(world.network(&in_flight), Disposition::Deliver);
    world.run_for(31);
    assert_eq!(packets(&world, old), None, "forgotten after a while");
    assert!(world.events.contains(&Event::Expired(old)));
}

/// A terminal with an SA and a successor that the peer may not have yet.
fn on_standby() -> (World, SaName, SaName) {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let old = world.terminal.sas().next().unwrap().name;
    let new = world
        .net
        .install_as(world.now, peer(false), None, Some(old.spi_in), true);
    world.settle();
    (world, old, new)
}

/// Packets sent on a pair; `None` if it is gone.
fn sent(world: &World, name: SaName) -> Option<u64> {
    let mut sas = world.terminal.sas();
    sas.find(|sa| sa.name == name).map(|sa| sa.packets_out)
}

#[test]
fn a_successor_on_standby_sends_when_the_peer_has_used_it() {
    let (mut world, old, new) = on_standby();
    world.application(&udp(here(false), peer(false), b"on the old"));
    assert_eq!((sent(&world, old), sent(&world, new)), (Some(2), Some(0)));
    let first = world.net.seal(&udp(peer(false), here(false), b"the peer has it"));
    assert_eq!(world.network(&first), Disposition::Deliver);
    world.application(&udp(here(false), peer(false), b"on the new"));
    assert_eq!((sent(&world, old), sent(&world, new)), (Some(2), Some(1)));
}

#[test]
fn a_successor_on_standby_sends_when_the_old_one_is_deleted_which_still_receives() {
    let (mut world, old, new) = on_standby();
    let delete = towpath_keyx::message::Operation::Delete(old);
    world.net.sender.push(world.now, None, delete).unwrap();
    world.settle();
    world.application(&udp(here(false), peer(false), b"on the new"));
    assert_eq!((sent(&world, old), sent(&world, new)), (Some(1), Some(1)));
    world.run_for(6);
    assert_eq!(sent(&world, old), None, "nothing is on the way any more");
}

#[test]
fn a_successor_on_standby_sends_after_a_while_whatever_the_peer_does() {
    let (mut world, old, new) = on_standby();
    world.run_for(11);
    world.application(&udp(here(false), peer(false), b"on the new"));
    assert_eq!((sent(&world, old), sent(&world, new)), (Some(1), Some(1)));
}

#[test]
fn past_the_soft_limit_a_replacement_is_asked_for_and_past_the_hard_one_the_sa_is_gone() {
    let mut world = World::new(3);
    world.net.lifetime = Lifetime {
        soft_seconds: 60,
        hard_seconds: 100,
        soft_bytes: 0,
        hard_bytes: 0,
    };
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let old = world.terminal.sas().next().unwrap().name;
    world.run_for(70);
    assert_eq!(
        world.net.requests.len(),
        1,
        "the gateway is given time to act first"
    );
    world.run_for(15);
    assert_eq!(world.net.requests.last().unwrap().replaces, Some(old.spi_in));
    assert_eq!(world.terminal.sas().filter(|sa| !sa.replaced).count(), 1);
    // A network that does not answer any more.
    world.net.answer = Answer::Silence;
    world.run_for(400);
    assert_eq!(world.terminal.sas().count(), 0);
    assert_eq!(
        world.application(&udp(here(false), peer(false), b"again")),
        Disposition::Consumed
    );
    world.net.answer = Answer::Keys;
    world.run_for(10);
    assert_eq!(world.net.requests.last().unwrap().replaces, None);
    assert_eq!(world.terminal.sas().count(), 1);
}

#[test]
fn what_no_sa_here_can_take_is_refused_in_the_acknowledgement() {
    let mut world = World::new(3);
    world.settle();
    let foreign: std::net::IpAddr = "10.99.9.9".parse().unwrap();
    let mut sa = world.net.make_sa(peer(false));
    sa.local = foreign;
    let operation = towpath_keyx::message::Operation::Install {
        class: towpath_base::sa::Class::Full,
        level: 0,
        replaces: None,
        standby: false,
        sa,
    };
    world.net.sender.push(world.now, None, operation).unwrap();
    for n in 0..5u8 {
        let remote = std::net::IpAddr::from([10, 77, 9, 10 + n]);
        world.net.install(world.now, remote, None, None);
    }
    world.settle();
    let results: Vec<_> = world.net.acks.iter().map(|ack| ack.result).collect();
    assert_eq!(
        results.iter().filter(|r| **r == TransferResult::Unusable).count(),
        1
    );
    assert_eq!(results.iter().filter(|r| **r == TransferResult::Done).count(), 4);
    assert_eq!(
        results.iter().filter(|r| **r == TransferResult::NoRoom).count(),
        1
    );
}
