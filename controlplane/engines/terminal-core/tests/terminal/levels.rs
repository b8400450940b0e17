//! Sensitivity levels: which SA a packet takes, and which it may come by (spec row T21, RFC 4301 §5.2).

use crate::common::*;
use towpath_base::DropReason;
use towpath_base::sa::{Class, Lifetime};
use towpath_keyx::message::RefuseReason;
use towpath_terminal_core::{Core, Disposition, Policy, SoftEsp};

/// What is marked with level 5 is for SAs of that level, the rest for those of level 0.
fn world() -> World {
    let chosen = Policy {
        level: Some(5),
        ..protect(peer(false))
    };
    let mut world = World::new(1);
    let policies = [chosen, protect(peer(false))];
    *world.terminal = Core::new(SoftEsp, config(0), &policies).unwrap();
    world.settle();
    world
}

/// A packet of the terminal's port `port`, or to it.
fn of_port(port: u16, outgoing: bool) -> Vec<u8> {
    let (from, to) = if outgoing {
        (here(false), peer(false))
    } else {
        (peer(false), here(false))
    };
    let mut packet = udp(from, to, b"data");
    let at = if outgoing { 20 } else { 22 };
    // The other end's port is 5000 either way; the checksum is nobody's business here.
    packet[20..24].copy_from_slice(&[0x13, 0x88, 0x13, 0x88]);
    packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
    packet[26..28].fill(0);
    packet
}

/// Level, class and packets both ways of each SA.
fn sas(world: &World) -> Vec<(u8, Class, u64, u64)> {
    let sas = world.terminal.sas();
    sas.map(|sa| (sa.level, sa.class, sa.packets_out, sa.packets_in))
        .collect()
}

#[test]
fn each_connection_of_a_level_has_its_own_sa_and_the_rest_shares_one() {
    let mut world = world();
    for (level, port) in [(5, 1000), (0, 1001), (5, 1002), (0, 1003)] {
        assert_eq!(
            world.application_at(level, &of_port(port, true)),
            Disposition::Consumed
        );
    }
    world.settle();
    let asked: Vec<_> = world
        .net
        .requests
        .iter()
        .map(|request| (request.level, request.terminal_port, request.peer_port))
        .collect();
    assert_eq!(asked, [(5, 1000, 5000), (0, 1001, 5000), (5, 1002, 5000)]);
    let (none, full) = (Class::None, Class::Full);
    let expected = [(5, none, 1, 0), (0, full, 2, 0), (5, none, 1, 0)];
    assert_eq!((sas(&world), world.received.len()), (expected.to_vec(), 4));
    // Level and connection decide, not what would admit the packet.
    for (level, port) in [(0, 1000), (5, 1002), (5, 1000), (7, 1000)] {
        assert_eq!(
            world.application_at(level, &of_port(port, true)),
            Disposition::Transmit
        );
    }
    assert_eq!(sas(&world), [(5, none, 2, 0), (0, full, 4, 0), (5, none, 2, 0)]);
}

#[test]
fn what_one_level_waits_for_and_is_refused_another_does_not_feel() {
    let mut world = world();
    world.net.answer = Answer::Refuse(RefuseReason::NoPolicy, 60);
    world.application_at(5, &of_port(1000, true));
    world.settle();
    assert_eq!(
        (world.terminal.held(), world.terminal.drops(DropReason::SaRefused)),
        (0, 1)
    );
    world.net.answer = Answer::Keys;
    assert_eq!(world.application(&of_port(1000, true)), Disposition::Consumed);
    world.settle();
    assert_eq!(sas(&world), [(0, Class::Full, 1, 0)]);
    let refused = Disposition::Drop(DropReason::SaRefused);
    assert_eq!(world.application_at(5, &of_port(1000, true)), refused);
}

#[test]
fn a_packet_comes_by_an_sa_of_the_level_a_policy_says_or_not_at_all() {
    let chosen = Policy {
        level: Some(5),
        ..protect(peer(false))
    };
    // Under the second table level 0 has no policy: what is not marked goes in clear, and comes so.
    for (rest, fate) in [
        (Some(protect(peer(false))), Disposition::Deliver),
        (None, Disposition::Drop(DropReason::PolicyDiscard)),
    ] {
        let policies: Vec<Policy> = [chosen].into_iter().chain(rest).collect();
        let mut world = World::new(1);
        *world.terminal = Core::new(SoftEsp, config(0), &policies).unwrap();
        world.settle();
        world.application_at(5, &of_port(1000, true));
        world.settle();
        let sealed = world.net.seal(&of_port(1000, false));
        assert_eq!(world.network(&sealed), Disposition::Deliver);
        // One of level 0, which nobody asked for.
        world.net.install(world.now, peer(false), None, None);
        world.settle();
        let sealed = world.net.seal(&of_port(2000, false));
        assert_eq!(world.network(&sealed), fate);
    }
}

#[test]
fn a_connections_sa_is_renewed_while_it_is_used_and_ends_when_it_is_not() {
    for used in [true, false] {
        let mut world = world();
        world.net.lifetime = Lifetime {
            soft_seconds: 300,
            hard_seconds: 420,
            ..Lifetime::default()
        };
        world.application_at(5, &of_port(1000, true));
        world.run_for(310);
        // Its successor is there some seconds after the soft limit.
        world.run_for(60);
        assert_eq!(world.net.requests.len(), 2, "the first was used");
        if used {
            world.application_at(5, &of_port(1000, true));
        }
        world.run_for(350);
        assert_eq!(world.net.requests.len(), if used { 3 } else { 2 });
        world.run_for(200);
        assert_eq!(sas(&world).len(), usize::from(used));
    }
}
