//! What becomes of packets: held, sealed, refused, in clear.

use crate::common::*;
use towpath_base::sa::{EspSuite, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant};
use towpath_keyx::message::RefuseReason;
use towpath_terminal_core::{Action, Core, Disposition, Event, InvalidConfig, Policy, SoftEsp};

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
