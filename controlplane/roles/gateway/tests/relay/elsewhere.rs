//! Paths, policies and modes that change what a relayed packet looks like outside.

use std::time::Duration;

use towpath_base::DropReason;
use towpath_base::policy::{Policy, PolicyAction, PolicySelector};
use towpath_base::sa::{EspSuite, Mode};
use towpath_gateway::datapath::StoredStart;
use towpath_gateway::relay::RelayConfig;
use towpath_ipsec::InboundSa;
use towpath_ipsec::shared::SharedStart;
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::spd::Spd;

use crate::ends::*;
use crate::world::*;

#[test]
fn a_router_s_too_big_reaches_the_connections_that_are_open() {
    for v6 in [false, true] {
        let mut world = World::new(Shape { v6, ..PLAIN }, RelayConfig::default());
        world.load(400_000);
        world.run_until(Duration::from_secs(5), |world| world.ends[1].read.len() > 50_000);
        assert!(world.longest[1] > 1400);
        world.narrowest = 1300;
        let narrowed = world.now;
        world.run_until(Duration::from_secs(20), World::has_everything);
        world.check();
        // What was on its way is lost; nobody had to find out by silence.
        let took = world.now.saturating_since(narrowed);
        assert!(
            took < Duration::from_secs(2),
            "v6={v6}: {took:?}, {}",
            world.story()
        );
    }
}

#[test]
fn a_relayed_connection_leaves_by_the_sa_its_policy_names() {
    for v6 in [false, true] {
        let mut world = World::new(Shape { v6, ..PLAIN }, RelayConfig::default());
        let [terminal, peer] = addresses(v6);
        // Another suite: its packets are longer, which the connection did not reckon with.
        let shape = Shape {
            v6,
            suite: EspSuite::Aes256CbcSha512,
            ..PLAIN
        };
        let named = child(terminal, peer, 0x3000, 70, shape);
        let start = SharedStart {
            limit: 1 << 32,
            ..SharedStart::default()
        };
        let start = StoredStart {
            to_peer: start,
            to_terminal: start,
            number: 9,
            ..StoredStart::default()
        };
        world
            .path
            .install_stored(world.now, &full(&named, 80), &start)
            .unwrap();
        // The ends send by the other SA, and know this one for what comes.
        for (end, sa) in [(0, segment(&named, 80)), (1, named.mirrored())] {
            world.ends[end].inbound = vec![InboundSa::new(&SoftEsp, world.now, &sa).unwrap()];
        }
        let mut policies = Spd::new(4, 16, 1);
        let policy = Policy {
            id: 1,
            order: 1,
            name: String::new(),
            selector: PolicySelector {
                protocol: Some(6),
                ..PolicySelector::default()
            },
            action: PolicyAction::Protect {
                sas: vec![9],
                class: None,
            },
        };
        policies.insert(policy).unwrap();
        world.path.set_policies(Box::new(policies));
        world.load(200_000);
        world.narrowest = 1500;
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        // The first long segments find out that they are too long; the connection then makes them shorter.
        let too_long = |reason: &DropReason| *reason == DropReason::TooBig;
        assert!(
            world.drops.iter().all(too_long) && world.drops.len() <= 8,
            "{:?}",
            world.drops
        );
        assert!(
            world.relayed > 200 && world.longest[1] <= 1500,
            "{:?}",
            world.longest
        );
    }
}

#[test]
fn ends_that_know_tunnels_alone_are_relayed_under_a_wildcard() {
    for v6 in [false, true] {
        let shape = Shape {
            v6,
            mode: Mode::Wildcard,
            ..PLAIN
        };
        let mut world = World::new(shape, RelayConfig::default());
        let [terminal, peer] = addresses(v6);
        let tunnel = Shape {
            mode: Mode::Tunnel,
            ..shape
        };
        let sa = child(terminal, peer, 0x1000, 1, tunnel);
        for (end, sa) in [(0, segment(&sa, 11)), (1, sa.mirrored())] {
            world.ends[end].out.clear();
            world.ends[end].inbound.clear();
            world.ends[end].give(world.now, &sa);
        }
        world.loss_per_mille = 20;
        world.load(200_000);
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert_eq!(world.drops, []);
    }
}
