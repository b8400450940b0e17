//! Registration, and a network that forgets or falls silent.

use crate::common::*;
use towpath_base::DropReason;
use towpath_base::testutil::SeededRng;
use towpath_terminal_core::Event;

#[test]
fn no_registration_leaves_before_its_counter_is_stored() {
    let mut world = World::new(1);
    world.persist = false;
    world.run_for(60);
    assert_eq!((world.net.last_counter, world.terminal.poll_timeout()), (0, None));
    world.persist = true;
    world.settle();
    // The core asked before; it does not ask again, so answer what it asked.
    world.terminal.persisted(65);
    world.settle();
    assert!(world.terminal.is_registered());
    assert!(world.net.last_counter <= 65);
}

#[test]
fn a_restarted_terminal_never_uses_a_counter_twice() {
    let mut world = World::new(1);
    world.settle();
    let used = world.net.last_counter;
    let mark = world.persisted;
    assert!(mark >= used);
    // Power loss: everything but the mark is gone.
    world.terminal = terminal(mark);
    world.settle();
    assert!(world.terminal.is_registered());
    assert!(world.net.last_counter > mark);
    assert!(world.net.refused.is_empty());
}

#[test]
fn always_established_over_a_bad_link() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        (world.loss, world.duplication, world.reordering) = (30, 20, true);
        world.run_for(2);
        for sent in 0..60 {
            world.application(&udp(here(false), peer(false), &[sent]));
            world.run_for(2);
            if !world.received.is_empty() {
                break;
            }
        }
        assert!(!world.received.is_empty(), "seed {seed}: {:?}", world.events);
        let installed = world
            .events
            .iter()
            .filter(|event| matches!(event, Event::Installed { .. }))
            .count();
        let sas = world.terminal.sas().count();
        assert!(
            installed >= 1 && sas == installed,
            "seed {seed}: {installed} installed, {sas} there"
        );
        assert!(world.clear.is_empty(), "seed {seed}: nothing in clear");
    }
}

#[test]
fn a_network_that_lost_its_state_is_noticed_by_the_next_sign_of_life() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    assert_eq!(world.terminal.sas().count(), 1);
    // SIGKILL: sessions and SAs are gone, the store (last counter) is not.
    let mut net = Net::new(99);
    (net.last_counter, net.epoch) = (world.net.last_counter, 2);
    world.net = net;
    world.run_for(61);
    assert!(world.events.contains(&Event::NetworkRestarted));
    assert_eq!(world.terminal.sas().count(), 0);
    assert!(world.terminal.is_registered());
    world.application(&udp(here(false), peer(false), b"y"));
    world.settle();
    assert_eq!(world.received.len(), 2);
}

#[test]
fn a_network_that_lost_its_state_is_noticed_soon_while_packets_are_sent() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let mut net = Net::new(99);
    (net.last_counter, net.epoch) = (world.net.last_counter, 2);
    world.net = net;
    for n in 0..12 {
        world.application(&udp(here(false), peer(false), &[n]));
        world.run_for(1);
    }
    assert!(world.events.contains(&Event::NetworkRestarted));
    world.application(&udp(here(false), peer(false), b"y"));
    world.settle();
    assert!(world.received.len() >= 2, "with a new SA");
}

#[test]
fn a_network_that_answers_is_not_asked_while_packets_come_back() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let hellos = world.net.hellos;
    for n in 0..50 {
        world.application(&udp(here(false), peer(false), &[n]));
        let answer = world.net.seal(&udp(peer(false), here(false), &[n]));
        world.network(&answer);
        world.run_for(1);
    }
    assert_eq!(world.net.hellos, hellos);
    for n in 0..50 {
        world.application(&udp(here(false), peer(false), &[n]));
        world.run_for(1);
    }
    assert!(
        (4..=6).contains(&(world.net.hellos - hellos)),
        "every ten seconds while nothing comes back"
    );
}

#[test]
fn hints_to_register_again_are_followed_once_in_a_while_and_only_if_they_answer_something() {
    let mut world = World::new(3);
    world.settle();
    let hint = |counter| {
        let header = towpath_keyx::Header {
            message_type: towpath_keyx::MessageType::Hello,
            subscriber: HANDLE,
            counter,
        };
        towpath_keyx::frame::wrap(RESERVED, &towpath_keyx::message::re_register(&header))
    };
    let from = "10.77.1.1".parse().unwrap();
    let before = world.net.last_counter;
    world.terminal.handle_datagram(world.now, from, &hint(1000));
    world.settle();
    assert_eq!(world.net.last_counter, before, "answers nothing that was sent");
    for _ in 0..10 {
        world.terminal.handle_datagram(world.now, from, &hint(1));
        world.settle();
    }
    assert_eq!(world.net.last_counter, before + 1);
    assert!(world.terminal.drops(DropReason::KeyxRateLimited) > 0);
}

#[test]
fn registrations_are_renewed_before_they_end_and_sas_stay() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.run_for(3600);
    assert!(world.terminal.is_registered());
    assert!(world.net.last_counter >= 7, "every 300 s of 600");
    assert!(world.net.hellos >= 50);
    assert_eq!(world.terminal.sas().count(), 1);
    assert!(!world.events.contains(&Event::RegistrationExpired));
}

#[test]
fn without_an_answer_the_registration_ends_and_is_tried_for_ever_ever_less() {
    let mut world = World::new(3);
    world.settle();
    world.loss = 100;
    world.run_for(700);
    assert!(world.events.contains(&Event::RegistrationExpired));
    world.loss = 0;
    world.run_for(40);
    assert!(world.terminal.is_registered());
}

#[test]
fn a_terminal_that_leaves_says_so() {
    let mut world = World::new(3);
    world.settle();
    let mut out = [0; 1024];
    let (source, _, len) = world.terminal.leave(&mut out, &mut SeededRng::new(4)).unwrap();
    world.net.datagram(world.now, source, &out[..len]);
    assert!(world.net.left);
    assert!(!world.terminal.is_registered());
    world.run_for(1000);
    assert!(!world.terminal.is_registered());
}
