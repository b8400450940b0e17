//! The terminal core against a network in virtual time.
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use common::*;
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant};
use towpath_keyx::message::{RefuseReason, SaName, TransferResult};
use towpath_keyx::{NetworkSession, SessionKeys};
use towpath_terminal_core::{
    Action, Command, Core, Disposition, Event, InvalidConfig, Policy, SoftEsp, Transmit,
};

#[test]
fn the_first_packet_waits_for_its_sa_and_later_ones_do_not() {
    for (v6, mode, encap) in [
        (false, Mode::Transport, false),
        (true, Mode::Transport, false),
        (false, Mode::Transport, true),
        (true, Mode::Transport, true),
        (false, Mode::Tunnel, false),
        (true, Mode::Tunnel, true),
    ] {
        for suite in EspSuite::ALL {
            let mut world = World::new(1);
            (world.net.suite, world.net.mode, world.net.encap) = (*suite, mode, encap);
            world.settle();
            assert!(world.terminal.is_registered());
            let packet = udp(here(v6), peer(v6), b"first");
            assert_eq!(world.application(&packet), Disposition::Consumed);
            assert_eq!((world.terminal.held(), world.received.len()), (1, 0));
            world.settle();
            assert_eq!((world.terminal.held(), &world.received), (0, &vec![packet]));
            let packet = udp(here(v6), peer(v6), b"second");
            assert_eq!(world.application(&packet), Disposition::Transmit);
            assert_eq!(world.received.last(), Some(&packet));
            assert_eq!(world.net.requests.len(), 1);
            // And back.
            let answer = udp(peer(v6), here(v6), b"answer");
            let sealed = world.net.seal(&answer);
            assert_eq!(world.network(&sealed), Disposition::Deliver);
            assert_eq!(world.delivered.pop(), Some(answer));
        }
    }
}

#[test]
fn packets_without_policy_go_in_clear_and_discarded_ones_go_nowhere() {
    let mut world = World::new(1);
    let other = "10.1.1.1".parse().unwrap();
    assert_eq!(
        world.application(&udp(here(false), other, b"clear")),
        Disposition::Transmit
    );
    assert_eq!(world.clear.len(), 1);
    let policies = [
        Policy {
            first_local_port: 4000,
            last_local_port: 4000,
            ..Policy::new(TrafficSelector::host(other), Action::Discard)
        },
        Policy::new(TrafficSelector::host(other), Action::Bypass),
    ];
    let mut terminal: Box<Terminal> = Box::new(Core::new(SoftEsp, config(0), &policies).unwrap());
    let mut buffer = Buffer::new(&udp(here(false), other, b"from port 4000"));
    let result = buffer.with(|p| terminal.handle_plain(Instant::ZERO, p, &mut SeededRng::new(1)));
    assert_eq!(result, Disposition::Drop(DropReason::PolicyDiscard));
    assert_eq!(terminal.drops(DropReason::PolicyDiscard), 1);
    let too_many = [policies[0]; 5];
    assert_eq!(
        Core::<SoftEsp, 4, 4, 64>::new(SoftEsp, config(0), &too_many).err(),
        Some(InvalidConfig::TooManyPolicies)
    );
}

#[test]
fn what_must_be_protected_is_not_taken_in_clear() {
    let mut world = World::new(1);
    let spoofed = udp(peer(false), here(false), b"in clear");
    assert_eq!(
        world.network(&spoofed),
        Disposition::Drop(DropReason::PolicyDiscard)
    );
    let other = udp("10.1.1.1".parse().unwrap(), here(false), b"unprotected");
    assert_eq!(world.network(&other), Disposition::Deliver);
}

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
fn a_refusal_frees_the_queue_and_holds_off_further_requests() {
    let mut world = World::new(3);
    world.net.answer = Answer::Refuse(RefuseReason::NoPolicy, 20);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    assert_eq!(
        (world.terminal.held(), world.terminal.drops(DropReason::SaRefused)),
        (0, 1)
    );
    assert!(world.events.contains(&Event::Refused {
        peer: peer(false),
        reason: Some(RefuseReason::NoPolicy)
    }));
    let refused = Disposition::Drop(DropReason::SaRefused);
    assert_eq!(world.application(&udp(here(false), peer(false), b"y")), refused);
    // Another peer is no worse off.
    assert_eq!(
        world.application(&udp(here(true), peer(true), b"z")),
        Disposition::Consumed
    );
    world.run_for(21);
    world.net.answer = Answer::Keys;
    assert_eq!(
        world.application(&udp(here(false), peer(false), b"y")),
        Disposition::Consumed
    );
    world.settle();
    assert_eq!(world.received.len(), 1);
}

#[test]
fn held_packets_are_bounded_in_number_bytes_and_time() {
    let mut world = World::new(3);
    world.net.answer = Answer::Silence;
    world.settle();
    let packet = udp(here(false), peer(false), &[0; 972]);
    let outcomes: Vec<_> = (0..6).map(|_| world.application(&packet)).collect();
    assert_eq!(outcomes[3], Disposition::Consumed);
    assert_eq!(outcomes[4], Disposition::Drop(DropReason::HoldQueueFull));
    world.run_for(11);
    assert_eq!(
        (
            world.terminal.held(),
            world.terminal.drops(DropReason::HoldTimeout)
        ),
        (0, 4)
    );
    world.run_for(120);
    assert_eq!(world.net.requests.len(), 8, "given up");
    assert!(world.events.contains(&Event::Refused {
        peer: peer(false),
        reason: None
    }));
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
fn forged_replayed_and_foreign_messages_change_nothing_and_are_counted() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let sas: Vec<_> = world.terminal.sas().collect();
    let from = "10.77.1.1".parse().unwrap();
    let keys = SessionKeys::derive(&ksub(), HANDLE, &[1; 32], &[2; 32]);
    let mut stranger = NetworkSession::new(HANDLE, &keys);
    let delete = towpath_keyx::ToTerminal::KeyTransfer(towpath_keyx::message::KeyTransfer {
        transfer_id: 77,
        request_id: None,
        operation: towpath_keyx::message::Operation::Delete(sas[0].name),
    });
    let mut forged = Vec::new();
    // Counters beyond those the terminal has seen, so that the seal and not the window refuses them.
    for _ in 0..20 {
        forged = stranger.seal(&delete).unwrap().as_bytes().to_vec();
    }
    world
        .terminal
        .handle_datagram(world.now, from, &towpath_keyx::frame::wrap(RESERVED, &forged));
    assert_eq!(world.terminal.drops(DropReason::KeyxForged), 1);
    let genuine = world
        .net
        .session
        .as_mut()
        .unwrap()
        .seal(&towpath_keyx::ToTerminal::ProxyReply(
            towpath_keyx::message::ProxyReply {
                request_id: 9,
                outcome: towpath_keyx::message::Outcome::Accepted,
            },
        ));
    let genuine = towpath_keyx::frame::wrap(RESERVED, genuine.unwrap().as_bytes());
    world.terminal.handle_datagram(world.now, from, &genuine);
    world.terminal.handle_datagram(world.now, from, &genuine);
    assert_eq!(world.terminal.drops(DropReason::KeyxReplayed), 1);
    for len in 0..genuine.len() {
        world.terminal.handle_datagram(world.now, from, &genuine[..len]);
    }
    let counted =
        [DropReason::KeyxMalformed, DropReason::IkeUnexpected].map(|reason| world.terminal.drops(reason));
    assert_eq!(counted.iter().sum::<u32>() as usize, genuine.len());
    assert_eq!(world.terminal.sas().collect::<Vec<_>>(), sas);
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

#[test]
fn packets_without_headers_as_sockets_give_them_are_taken_too() {
    for v6 in [false, true] {
        for encap in [false, true] {
            let mut world = World::new(3);
            world.net.encap = encap;
            world.settle();
            world.application(&udp(here(v6), peer(v6), b"x"));
            world.settle();
            let sealed = world.net.seal(&udp(peer(v6), here(v6), b"for the socket"));
            let ip_len = if v6 { 40 } else { 20 };
            let disposition = if encap {
                let mut buffer = Buffer::new(&sealed[ip_len + 8..]);
                let (from, to) = ((peer(v6), 4500).into(), (here(v6), 4500).into());
                buffer.with(|p| world.terminal.handle_encapsulated(world.now, from, to, p))
            } else {
                let mut buffer = Buffer::new(&sealed[ip_len..]);
                buffer.with(|p| world.terminal.handle_esp(world.now, peer(v6), here(v6), p))
            };
            assert_eq!(disposition, Disposition::Deliver, "v6 {v6} encap {encap}");
        }
    }
    let mut world = World::new(3);
    let mut keepalive = Buffer::new(&[0xff]);
    let (from, to) = ((peer(false), 4500).into(), (here(false), 4500).into());
    let disposition = keepalive.with(|p| world.terminal.handle_encapsulated(world.now, from, to, p));
    assert_eq!(disposition, Disposition::Consumed);
    let mut ike = Buffer::new(&[0; 32]);
    let disposition = ike.with(|p| world.terminal.handle_encapsulated(world.now, from, to, p));
    assert_eq!(disposition, Disposition::Drop(DropReason::IkeUnexpected));
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

#[test]
fn every_deadline_passes_once_handled() {
    let mut world = World::new(3);
    world.net.answer = Answer::Silence;
    world.application(&udp(here(false), peer(false), b"x"));
    let mut last = Instant::ZERO;
    for _ in 0..200 {
        world.settle();
        let Some((at, timer)) = world.terminal.poll_timeout() else {
            break;
        };
        assert!(at >= last && at >= world.now, "{timer:?} stays");
        last = at;
        world.now = at;
        world.terminal.handle_timeout(at);
    }
    assert!(world.now > Instant::ZERO + Duration::from_secs(60));
    let mut buffer = [0; 2048];
    while let Some(command) = world.terminal.poll_command() {
        assert!(matches!(command, Command::Tell(_)));
    }
    if let Some(Transmit::Packet(_)) =
        world
            .terminal
            .poll_transmit(world.now, &mut buffer, &mut SeededRng::new(1))
    {
        panic!("no packet without an SA");
    }
}

#[test]
fn altered_packets_and_messages_never_panic_and_never_open() {
    for seed in 0..6 {
        let mut world = World::new(seed);
        world.net.suite = EspSuite::ALL[seed as usize % EspSuite::ALL.len()];
        world.net.mode = if seed % 2 == 0 {
            Mode::Transport
        } else {
            Mode::Tunnel
        };
        world.net.encap = seed % 3 == 0;
        world.settle();
        world.application(&udp(here(false), peer(false), b"x"));
        world.settle();
        let sealed = world.net.seal(&udp(peer(false), here(false), &[7; 100]));
        let message = towpath_keyx::ToTerminal::ProxyReply(towpath_keyx::message::ProxyReply {
            request_id: 1,
            outcome: towpath_keyx::message::Outcome::Accepted,
        });
        let message = world.net.session.as_mut().unwrap().seal(&message).unwrap();
        let message = towpath_keyx::frame::wrap(RESERVED, message.as_bytes());
        let plain = udp(here(false), peer(false), &[7; 100]);
        let mut rng = SeededRng::new(seed);
        for _ in 0..3000 {
            let mut bytes = match rng.below(3) {
                0 => sealed.clone(),
                1 => plain.clone(),
                _ => message.clone(),
            };
            let original = bytes.clone();
            for _ in 0..=rng.below(3) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= rng.below(256) as u8;
            }
            bytes.truncate(rng.below(2 * bytes.len() as u64) as usize);
            if bytes == original {
                continue;
            }
            world.terminal.handle_datagram(world.now, here(false), &bytes);
            Buffer::new(&bytes).with(|p| world.terminal.handle_plain(world.now, p, &mut rng));
            let mut buffer = Buffer::new(&bytes);
            if buffer.with(|p| world.terminal.handle_network(world.now, p)) == Disposition::Deliver {
                // Only what policy lets in unprotected, or what was altered outside ESP's protection.
                let flow = towpath_ipsec::Flow::of(buffer.packet()).unwrap();
                let genuine = flow.source == peer(false) && buffer.packet().ends_with(&[7; 100]);
                assert!(flow.source != peer(false) || genuine, "seed {seed}");
            }
            world.settle();
            world.run_for(1);
        }
        let malformed =
            world.terminal.drops(DropReason::KeyxMalformed) + world.terminal.drops(DropReason::KeyxForged);
        assert!(malformed > 0 && world.terminal.drops(DropReason::EspAuthFailed) > 0);
    }
}
