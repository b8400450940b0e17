//! One connection, helped along.

use std::sync::Arc;
use std::time::Duration;

use towpath_base::sa::EspSuite;
use towpath_base::{DropReason, Instant};
use towpath_fabric::{GatewayKeys, GatewaySa, InspectKeys};
use towpath_gateway::datapath::Datapath;
use towpath_gateway::relay::RelayConfig;
use towpath_ipsec::soft::SoftEsp;
use towpath_tcp::relay::rules::{Action, Rules, Treatment};
use towpath_tcp::{Endpoint, IsnSecret, SeqNum};

use crate::ends::*;
use crate::world::*;

fn snooping() -> RelayConfig {
    RelayConfig {
        rules: Arc::new(Rules {
            default: Action::of(Treatment::Snoop),
            ..Rules::default()
        }),
        ..RelayConfig::default()
    }
}

fn snooped(mut world: World, share: u64) {
    // Longer than the radio's loss could be hidden by luck.
    world.loss_per_mille = 30;
    world.ends[1].to_write = pattern(1 << 20, 3);
    world.run_until(Duration::from_millis(400), |world| {
        world.ends[0].read.len() > 1000
    });
    let flows = world.path.flows(world.now, 9);
    assert!(flows.len() == 1 && flows[0].snoop.is_some(), "{flows:?}");
    world.run_until(Duration::from_secs(120), World::has_everything);
    world.check();
    let totals = world.path.relay_totals();
    assert!(world.lost > 20 && totals.snoop.repeated > 10, "{totals:?}");
    assert_eq!(world.relayed, totals.snoop.repeated);
    assert_eq!(totals.flows, 0, "nothing was split");
    // What the radio lost, the peer heard of but rarely.
    let again = world.ends[1].endpoint.stats().retransmits;
    assert!(
        again * share < world.lost,
        "the peer repeated {again} of {}",
        world.lost
    );
    let strange = |reason: &&DropReason| **reason != DropReason::EspReplayed;
    assert_eq!(world.drops.iter().find(strange), None, "{}", world.story());
}

#[test]
fn snoop_repairs_the_radio_in_class_full() {
    snooped(World::new(PLAIN, snooping()), 4);
    snooped(World::new(Shape { v6: true, ..PLAIN }, snooping()), 4);
}

#[test]
fn snoop_repeats_the_peers_own_packet_where_the_gateway_may_only_look() {
    for v6 in [false, true] {
        let shape = Shape {
            suite: EspSuite::Aes128CbcSha256,
            v6,
            ..PLAIN
        };
        let [terminal, peer] = addresses(v6);
        let now = Instant::from_secs(1);
        let sa = child(terminal, peer, 0x1000, 1, shape);
        let mut path = Datapath::new(SoftEsp, 16).with_relay(snooping(), IsnSecret([3, 4]));
        let seen = GatewaySa {
            level: Some(0),
            keys: GatewayKeys::Inspect(InspectKeys::of(&sa).unwrap()),
            ..full(&sa, 1)
        };
        path.install(now, &seen).unwrap();
        let dial = Endpoint::connect(now, host(4000, 80), SeqNum(1));
        let answer = Endpoint::listen(now, host(80, 4000), SeqNum(99));
        // The keys of the two ends are the same: nobody sits between them.
        let ends = [
            End::new(now, &sa, dial, true),
            End::new(now, &sa.mirrored(), answer, false),
        ];
        // An acknowledgment that says something new has to pass as it is, with what it says of holes.
        snooped(World::of(now, path, ends), 2);
    }
}
