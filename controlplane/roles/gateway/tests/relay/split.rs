//! One connection becomes two.

use std::sync::Arc;
use std::time::Duration;

use towpath_base::sa::Mode;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_gateway::datapath::{Datapath, SaKey};
use towpath_gateway::relay::RelayConfig;
use towpath_ipsec::soft::SoftEsp;
use towpath_tcp::relay::rules::{Action, Rules, Treatment};
use towpath_tcp::{Closed, Endpoint, IsnSecret, SeqNum, State};

use crate::ends::*;
use crate::world::*;

#[test]
fn bytes_pass_both_ways_through_a_lossy_radio_in_every_shape_of_sa() {
    for shape in SHAPES {
        let mut world = World::new(shape, RelayConfig::default());
        world.loss_per_mille = 20;
        world.load(1 << 20);
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert!(world.lost > 20, "{}", world.story());
        // Nothing of the connection passed: it was split from the first segment on.
        assert_eq!((world.passed, &world.drops[..]), (0, &[][..]));
        // Segments are as large as fits, and no larger; those of a wildcard would fit behind a second IP header, too.
        let spare = if shape.mode == Mode::Wildcard { 20 } else { 0 };
        for longest in world.longest {
            assert!((1480 - spare..=1500 - spare).contains(&longest), "{longest}");
        }
        world.run_until(Duration::from_secs(60), |world| {
            world.path.flows(world.now, 9).is_empty()
        });
    }
}

/// T14: between home and foreign agent, and inside the SA; every pair of families, both kinds.
#[test]
fn the_relay_works_inside_other_packets() {
    let agents = [["192.0.2.1", "192.0.2.2"], ["2001:db8:1::1", "2001:db8:1::2"]]
        .map(|pair| pair.map(|text| text.parse().unwrap()));
    for v6 in [false, true] {
        for kind in [Kind::IpInIp, Kind::Gre] {
            let shape = Shape { v6, ..PLAIN };
            for case in [Some(agents[0]), Some(agents[1]), None] {
                let mut world = World::new(shape, RelayConfig::default());
                world.agents = case.map(|pair| (kind, pair));
                if case.is_none() {
                    for end in &mut world.ends {
                        end.inside = Some(kind);
                    }
                }
                world.loss_per_mille = 10;
                world.load(150_000);
                world.run_until(Duration::from_secs(60), World::has_everything);
                world.check();
                let story = world.story();
                assert!(world.relayed > 200 && world.passed < 20, "relayed: {story}");
                assert!(world.between <= 1500, "{} bytes: {story}", world.between);
                assert!(world.longest.iter().all(|len| *len <= 1500), "{story}");
                assert!(world.drops.is_empty(), "{story}");
            }
        }
    }
}

#[test]
fn the_loss_is_repaired_on_the_radio_and_the_peer_never_repeats() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.loss_per_mille = 50;
    world.ends[1].to_write = pattern(1 << 20, 7);
    world.run_until(Duration::from_secs(60), World::has_everything);
    world.check();
    assert_eq!(world.ends[1].endpoint.stats().retransmits, 0);
    assert!(world.lost > 20);
}

#[test]
fn a_connection_goes_on_through_a_rekeying_and_no_packet_is_lost() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.load(3 << 20);
    let [terminal, peer] = addresses(false);
    let old = child(terminal, peer, 0x1000, 1, PLAIN);
    for round in 1..4_u8 {
        let new = child(terminal, peer, 0x1000 + u32::from(round) * 16, 20 * round, PLAIN);
        let before = world.ends[0].read.len();
        world.run_until(Duration::from_secs(20), |world| {
            world.ends[0].read.len() > before + 300_000
        });
        // The peer has it first, the terminal after its key transfer; the old one goes last.
        let now = world.now;
        world.ends[1].give(now, &new.mirrored());
        world.path.install(now, &full(&new, 20 * round + 10)).unwrap();
        let ack = world.now + Duration::from_millis(60);
        world.run_until(Duration::from_secs(1), |world| world.now >= ack);
        let now = world.now;
        world.ends[0].give(now, &segment(&new, 20 * round + 10));
        let gone = world.now + Duration::from_millis(200);
        world.run_until(Duration::from_secs(1), |world| world.now >= gone);
        let removed = if round == 1 {
            old.clone()
        } else {
            child(
                terminal,
                peer,
                0x1000 + u32::from(round - 1) * 16,
                20 * (round - 1),
                PLAIN,
            )
        };
        let key = SaKey {
            local: terminal,
            remote: peer,
            spi_in: removed.spi_in,
            spi_out: removed.spi_out,
        };
        assert!(world.path.remove(&key).is_some());
    }
    world.run_until(Duration::from_secs(60), World::has_everything);
    world.check();
    assert_eq!(world.drops, []);
    assert_eq!(world.ends[0].endpoint.stats().retransmits, 0);
}

#[test]
fn between_two_terminals_the_connection_is_relayed_once_and_both_sides_are_radio() {
    for (first, second) in [(0, 1), (1, 0)] {
        let [a, b] = addresses(false);
        let now = Instant::from_secs(1);
        let sa = child(a, b, 0x1000, 1, PLAIN);
        let mut path = Datapath::new(SoftEsp, 16).with_relay(RelayConfig::default(), IsnSecret([3, 4]));
        let mut far = full(&sa.mirrored(), 21);
        far.subscriber = SubscriberHandle(2);
        path.install(now, &full(&sa, 11)).unwrap();
        path.install(now, &far).unwrap();
        let dial = Endpoint::connect(now, host(4000, 80), SeqNum(1));
        let answer = Endpoint::listen(now, host(80, 4000), SeqNum(99));
        let mut endpoints = [Some(dial), Some(answer)];
        let ends = [
            End::new(now, &segment(&sa, 11), endpoints[first].take().unwrap(), true),
            End::new(
                now,
                &segment(&sa.mirrored(), 21),
                endpoints[second].take().unwrap(),
                true,
            ),
        ];
        let mut world = World::of(now, path, ends);
        world.loss_per_mille = 20;
        world.load(1 << 19);
        world.run_until(Duration::from_millis(500), |world| {
            world.ends[0].endpoint.state() == State::Established
        });
        let flows = world.path.flows(world.now, 9);
        assert_eq!(flows.len(), 1);
        for side in [&flows[0].terminal, &flows[0].network] {
            assert_eq!(side.as_ref().unwrap().algorithm, towpath_tcp::Algorithm::Radio);
        }
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert_eq!((world.passed, &world.drops[..]), (0, &[][..]));
    }
}

#[test]
fn what_a_rule_lets_pass_and_what_is_no_tcp_is_sealed_again_by_the_same_sender() {
    let rules = Arc::new(Rules {
        default: Action::of(Treatment::Pass),
        ..Rules::default()
    });
    for own in [false, true] {
        let mut config = RelayConfig::default();
        if !own {
            config.rules = Arc::clone(&rules);
        }
        let mut world = World::new(PLAIN, config);
        if own {
            // Given while the SA is there: it holds for the next connection.
            world
                .path
                .set_rules(SubscriberHandle(1), Some(Arc::clone(&rules)));
        }
        world.load(1 << 18);
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert!(world.passed > 300 && world.relayed == 0, "{}", world.story());
        assert_eq!(world.drops, []);
    }
}

#[test]
fn segments_of_a_connection_that_was_there_before_pass() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.path.set_rules(
        SubscriberHandle(1),
        Some(Arc::new(Rules {
            default: Action::of(Treatment::Pass),
            ..Rules::default()
        })),
    );
    world.load(1 << 18);
    world.run_until(Duration::from_secs(5), |world| world.ends[0].read.len() > 10_000);
    // The rule changes in mid-flow.
    world.path.set_rules(SubscriberHandle(1), None);
    world.run_until(Duration::from_secs(60), World::has_everything);
    world.check();
    assert_eq!(world.relayed, 0);
}

#[test]
fn without_an_sa_the_relay_waits_and_at_last_forgets() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.load(1 << 20);
    world.run_until(Duration::from_secs(5), |world| world.ends[0].read.len() > 100_000);
    let [terminal, peer] = addresses(false);
    let key = SaKey {
        local: terminal,
        remote: peer,
        spi_in: Spi(0x1000),
        spi_out: Spi(0x1001),
    };
    world.path.remove(&key);
    let later = world.now + Duration::from_millis(500);
    world.run_until(Duration::from_secs(1), |world| world.now >= later);
    assert_eq!(world.path.flows(world.now, 9).len(), 1);
    // What passes the gateway now is sealed under the other segment's keys.
    let expected = |reason: &DropReason| {
        use DropReason::{EspAuthFailed, EspReplayed, RelayNoSa};
        matches!(reason, RelayNoSa | EspAuthFailed | EspReplayed)
    };
    assert!(world.drops.iter().all(expected), "{}", world.story());
    world.path.tick(world.now);
    world.path.tick(world.now + Duration::from_secs(61));
    assert_eq!(world.path.flows(world.now, 9), []);
    assert_eq!(world.path.relay_totals().buffered, 0);
}

#[test]
fn connections_whose_relay_died_are_reset_at_both_ends_at_once() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.load(1 << 20);
    world.run_until(Duration::from_secs(5), |world| world.ends[0].read.len() > 100_000);
    // Another process takes over: it negotiates anew and knows of no connection.
    let [terminal, peer] = addresses(false);
    let new = child(terminal, peer, 0x5000, 70, PLAIN);
    let now = world.now;
    world.path = Datapath::new(SoftEsp, 16).with_relay(RelayConfig::default(), IsnSecret([8, 9]));
    world.path.install(now, &full(&new, 80)).unwrap();
    world.ends[1].give(now, &new.mirrored());
    world.ends[0].give(now, &segment(&new, 80));
    world.run_until(Duration::from_secs(5), |world| {
        world
            .ends
            .iter()
            .all(|end| end.endpoint.closed() == Some(Closed::Reset))
    });
    assert_eq!(world.path.relay_totals().orphans, 1);
}
