//! What is offered, chosen and narrowed.

use std::time::Duration;

use towpath_base::profile::IkeId;
use towpath_base::sa::{EspSuite, Mode};
use towpath_ike::{Command, FailReason};

use crate::world::*;

#[test]
fn every_suite_group_family_and_mode_gives_equal_keys() {
    let ike = [
        "aes256gcm16-prfsha256-x25519",
        "aes128gcm16-prfsha512-ecp256",
        "aes256-sha256-ecp256",
        "aes128-sha384-x25519",
        "aes256-sha512-prfsha384-modp2048",
    ];
    let pairs = [(v4(1), v4(2)), (v6(1), v6(2))];
    for text in ike {
        for suite in EspSuite::ALL {
            for mode in Mode::NEGOTIATED {
                for (local, remote) in pairs {
                    let mut both = policy();
                    both.ike_proposals = vec![proposal(text)];
                    both.esp_suites = vec![*suite];
                    both.mode = *mode;
                    let mut world = World::pair(3, both.clone(), both);
                    world.initiate(1, local, remote).unwrap();
                    world.rest();
                    let [a, b] = world.only_children();
                    assert_mirror(&a, &b);
                    assert_eq!(
                        (a.suite, a.mode, a.local, a.remote),
                        (*suite, *mode, local, remote)
                    );
                    let info = world.ends[0].endpoint.list(world.now).next().unwrap();
                    assert_eq!(info.remote_id, Some(IkeId::Fqdn("host.test".into())));
                }
            }
        }
    }
}

#[test]
fn the_responders_preference_decides() {
    let mut a = policy();
    a.ike_proposals = vec![
        proposal("aes128-sha256-x25519"),
        proposal("aes256gcm16-prfsha256-x25519"),
    ];
    a.esp_suites = vec![EspSuite::Aes128CbcSha256, EspSuite::Aes256Gcm16];
    let mut b = policy();
    b.ike_proposals.push(proposal("aes128-sha256-x25519"));
    b.esp_suites.push(EspSuite::Aes128CbcSha256);
    b.esn = false;
    let mut world = World::pair(1, a, b);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
    assert_eq!((a.suite, a.esn), (EspSuite::Aes256Gcm16, false));
    let suite = world.ends[0]
        .endpoint
        .list(world.now)
        .next()
        .unwrap()
        .suite
        .unwrap();
    assert_eq!(suite.to_string(), "aes256gcm16-prfsha256-x25519");
}

#[test]
fn tunnel_mode_where_one_side_wants_it() {
    let mut tunnel = policy();
    tunnel.mode = Mode::Tunnel;
    for (a, b) in [(policy(), tunnel.clone()), (tunnel, policy())] {
        let mut world = World::pair(1, a, b);
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_eq!(a.mode, Mode::Tunnel);
    }
}

#[test]
fn selectors_are_narrowed_to_what_both_want() {
    let mut a = policy();
    a.mode = Mode::Tunnel;
    a.local_ts = vec![any_of("10.0.0.1")];
    a.remote_ts = vec![any_of("10.2.0.0/16"), any_of("10.3.0.0/16")];
    let mut b = policy();
    b.local_ts = vec![any_of("10.2.7.0/24"), any_of("192.0.2.0/24")];
    b.remote_ts = vec![any_of("10.0.0.0/8")];
    let mut world = World::pair(1, a, b);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
    assert_eq!(
        a.local_ts.iter().copied().collect::<Vec<_>>(),
        [any_of("10.0.0.1")]
    );
    assert_eq!(
        a.remote_ts.iter().copied().collect::<Vec<_>>(),
        [any_of("10.2.7.0/24")]
    );
}

#[test]
fn no_common_traffic_leaves_nothing_behind() {
    let mut b = policy();
    b.local_ts = vec![any_of("192.0.2.0/24")];
    let mut world = World::pair(1, policy(), b);
    world.initiate(4, v4(1), v4(2)).unwrap();
    world.rest();
    assert_eq!(failures(&world.ends[0]), [(Some(4), FailReason::TsUnacceptable)]);
    assert_eq!(failures(&world.ends[1]), [(None, FailReason::TsUnacceptable)]);
    assert_eq!(closed(&world.ends[1]), [FailReason::DeletedByPeer]);
    assert!(
        world
            .ends
            .iter()
            .all(|end| end.endpoint.list(world.now).count() == 0)
    );
}

#[test]
fn no_common_esp_suite_leaves_nothing_behind() {
    let mut b = policy();
    b.esp_suites = vec![EspSuite::Aes128CbcSha256];
    let mut world = World::pair(1, policy(), b);
    world.initiate(4, v4(1), v4(2)).unwrap();
    world.rest();
    assert_eq!(
        failures(&world.ends[0]),
        [(Some(4), FailReason::NoProposalChosen)]
    );
    assert!(
        world
            .ends
            .iter()
            .all(|end| end.endpoint.list(world.now).count() == 0)
    );
}

#[test]
fn no_common_ike_proposal_fails_at_once() {
    let mut b = policy();
    b.ike_proposals = vec![proposal("aes128-sha256-modp2048")];
    let mut world = World::pair(1, policy(), b);
    world.initiate(4, v4(1), v4(2)).unwrap();
    world.rest();
    assert_eq!(
        failures(&world.ends[0]),
        [(Some(4), FailReason::NoProposalChosen)]
    );
    assert_eq!(failures(&world.ends[1]), [(None, FailReason::NoProposalChosen)]);
}

#[test]
fn a_nat_moves_everything_to_udp_encapsulation() {
    // 10.0.0.1 behind 10.0.0.9, ports shifted by 1000.
    let mut world = World::pair(1, policy(), policy());
    world.nat = Some(Nat {
        inside: v4(1),
        outside: v4(9),
        shift: 1000,
    });
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let [a, mut b] = world.only_children();
    // Each side knows the host behind the NAT by the address it sees on packets (RFC 7296 §2.23.1).
    assert_eq!(
        b.remote_ts.iter().copied().collect::<Vec<_>>(),
        [any_of("10.0.0.9")]
    );
    assert_eq!(
        a.local_ts.iter().copied().collect::<Vec<_>>(),
        [any_of("10.0.0.1")]
    );
    b.remote_ts = a.local_ts;
    assert_mirror(&a, &b);
    let ports =
        |child: &towpath_base::sa::ChildSa| child.encap.map(|encap| (encap.local_port, encap.remote_port));
    assert_eq!(ports(&a), Some((4500, 4500)));
    assert_eq!(ports(&b), Some((4500, 5500)));
    assert_eq!(b.remote, v4(9));
    assert!(
        world.sent[2..]
            .iter()
            .all(|datagram| datagram.destination.port() % 1000 == 500)
    );
    assert_eq!(world.sent[2].source.port(), 4500);
    // The Delete of the side that is not behind the NAT finds its way back.
    let ike = ike_of(&world.ends[1], world.now);
    world.ends[1].endpoint.delete_ike(world.now, ike).unwrap();
    world.collect(1);
    world.rest();
    assert_eq!(closed(&world.ends[0]), [FailReason::DeletedByPeer]);
}

#[test]
fn behind_a_nat_the_mapping_is_kept_alive() {
    let config = towpath_ike::Config {
        dpd_after: Some(Duration::from_secs(300)),
        ..quiet()
    };
    let mut world = World::pair_with(1, config, policy(), policy());
    world.nat = Some(Nat {
        inside: v4(1),
        outside: v4(9),
        shift: 1000,
    });
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(65));
    // Only the side behind the NAT has a mapping to keep.
    assert_eq!(
        world.trace[4..]
            .iter()
            .filter(|line| line.starts_with("A --> INFORMATIONAL request"))
            .count(),
        3
    );
    assert_eq!(world.trace.len(), 10);
}

#[test]
fn encapsulation_can_be_forced_from_either_side() {
    let mut forced = policy();
    forced.force_encap = true;
    for (a, b) in [(forced.clone(), policy()), (policy(), forced)] {
        let mut world = World::pair(1, a, b);
        world.initiate(1, v6(1), v6(2)).unwrap();
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_eq!(
            a.encap.map(|encap| (encap.local_port, encap.remote_port)),
            Some((4500, 4500))
        );
    }
}

#[test]
fn one_endpoint_speaks_for_both_ends() {
    for (local, remote) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        let mut world = World::new(5);
        world.add(quiet(), Some(policy()), &[local, remote]);
        world.initiate(1, local, remote).unwrap();
        world.rest();
        assert_eq!(world.ends[0].children.len(), 2);
        world.assert_mirrored();
        let established = |command: &&Command| matches!(command, Command::IkeEstablished { .. });
        assert_eq!(world.ends[0].commands.iter().filter(established).count(), 2);
    }
}
