//! Ends that move: MOBIKE (RFC 4555) in both roles, and NATs that forget their mapping.

use std::net::SocketAddr;
use std::time::Duration;

use towpath_ike::{Command, Config, FailReason, IkeState};

use crate::world::*;

fn mobile() -> Config {
    Config {
        mobike: true,
        ..quiet()
    }
}

fn end(host: u8) -> SocketAddr {
    SocketAddr::new(v4(host), 4500)
}

/// A at 10.0.0.1 and 10.0.0.3, B at 10.0.0.2 and 10.0.0.4; A started.
fn established(seed: u64) -> World {
    let mut world = World::new(seed);
    world.add(mobile(), Some(policy()), &[v4(1), v4(3), v6(3)]);
    world.add(mobile(), Some(policy()), &[v4(2), v4(4), v6(4)]);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(1));
    world.only_children();
    world.trace.clear();
    for end in &mut world.ends {
        end.commands.clear();
    }
    world
}

fn move_to(world: &mut World, by: usize, local: SocketAddr, remote: SocketAddr) {
    let ike = ike_of(&world.ends[by], world.now);
    world.ends[by]
        .endpoint
        .readdress_ike(world.now, ike, local, remote)
        .unwrap();
    world.collect(by);
}

fn changes(end: &End) -> Vec<(SocketAddr, SocketAddr)> {
    let change = |command: &Command| match command {
        Command::AddressesChanged { local, remote, .. } => Some((*local, *remote)),
        _ => None,
    };
    end.commands.iter().filter_map(change).collect()
}

#[test]
fn the_initiator_moves_and_its_sas_follow() {
    let mut world = established(1);
    move_to(&mut world, 0, end(3), end(2));
    world.rest();
    assert_eq!(
        world.trace,
        [
            "A --> INFORMATIONAL request 2 [ N(UPD_SA_ADDR) N(NATD_S_IP) N(NATD_D_IP) N(COOKIE2) ]",
            "B --> INFORMATIONAL response 2 [ N(NATD_S_IP) N(NATD_D_IP) N(COOKIE2) ]",
            "B --> INFORMATIONAL request 0 [ N(COOKIE2) ]",
            "A --> INFORMATIONAL response 0 [ N(COOKIE2) ]",
        ]
    );
    assert_eq!(changes(&world.ends[0]), [(end(3), end(2))]);
    assert_eq!(changes(&world.ends[1]), [(end(2), end(3))]);
    // Everything goes on from there: rekeyings by both sides, and the end.
    for by in [1, 0] {
        let ike = ike_of(&world.ends[by], world.now);
        world.ends[by].endpoint.rekey_ike(world.now, ike).unwrap();
        world.collect(by);
        world.rest();
    }
    // What is protected is what it was: the addresses of the beginning.
    for by in [1, 0] {
        let old = world.only_children();
        let ike = ike_of(&world.ends[by], world.now);
        let spi_in = old[by].spi_in;
        world.ends[by]
            .endpoint
            .rekey_child(world.now, ike, spi_in)
            .unwrap();
        world.collect(by);
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_ne!(a.spi_in, old[0].spi_in);
        assert_eq!((a.local, b.remote), (v4(3), v4(3)));
        assert_eq!((&a.local_ts, &b.remote_ts), (&old[0].local_ts, &old[1].remote_ts));
    }
    move_to(&mut world, 0, end(1), end(2));
    world.rest();
    assert_eq!(changes(&world.ends[1]).last(), Some(&(end(2), end(1))));
    let ike = ike_of(&world.ends[0], world.now);
    world.ends[0].endpoint.delete_ike(world.now, ike).unwrap();
    world.collect(0);
    world.rest();
    assert!(
        world
            .ends
            .iter()
            .all(|end| end.endpoint.list(world.now).count() == 0)
    );
}

#[test]
fn the_responder_does_not_decide_on_addresses() {
    let mut world = established(1);
    let ike = ike_of(&world.ends[1], world.now);
    let refused = world.ends[1]
        .endpoint
        .readdress_ike(world.now, ike, end(4), end(1));
    assert_eq!(refused, Err(towpath_ike::UnknownSa));
}

/// A terminal has the addresses it was given: a peer cannot move it.
#[test]
fn a_peer_cannot_give_us_another_address() {
    let mut world = established(1);
    move_to(&mut world, 0, end(1), end(4));
    world.rest();
    assert_eq!(
        world.trace[1],
        "B --> INFORMATIONAL response 2 [ N(UNACC_ADDR) N(COOKIE2) ]"
    );
    assert_eq!(changes(&world.ends[1]), []);
    assert_eq!(closed(&world.ends[0]), [FailReason::Notify(40)]);
}

#[test]
fn a_move_survives_loss_and_what_was_under_way() {
    for seed in 0..200 {
        let mut world = established(seed);
        world.weather = Weather {
            loss: seed % 4 * 80,
            copies: 100,
            jitter: Duration::from_millis(seed % 5 * 20),
        };
        let old = world.only_children();
        let ike = ike_of(&world.ends[0], world.now);
        world.ends[0]
            .endpoint
            .rekey_child(world.now, ike, old[0].spi_in)
            .unwrap();
        world.collect(0);
        world.run_for(Duration::from_millis(seed % 40));
        move_to(&mut world, 0, end(3), end(2));
        world.run_for(Duration::from_secs(60));
        world.weather = Weather::FAIR;
        world.rest();
        for (at, (local, remote)) in [(end(3), end(2)), (end(2), end(3))].into_iter().enumerate() {
            let info = world.ends[at].endpoint.list(world.now).next().unwrap();
            assert_eq!(
                (info.local, info.remote, info.state),
                (local, remote, IkeState::Established),
                "seed {seed}"
            );
            assert_eq!(world.ends[at].children.len(), 1, "seed {seed}");
        }
    }
}

/// Somebody on the way sends what was recorded from an address of his own: nothing moves there.
#[test]
fn recorded_messages_from_elsewhere_move_nothing() {
    let mut world = established(1);
    move_to(&mut world, 0, end(3), end(2));
    world.rest();
    for datagram in world.sent.clone() {
        let mut stolen = datagram;
        if stolen.destination.ip() == v4(2) {
            stolen.source.set_ip(v4(66));
            world.deliver(1, &stolen);
        }
    }
    let ike = ike_of(&world.ends[1], world.now);
    let info = world.ends[1].endpoint.get(world.now, ike).unwrap();
    assert_eq!(info.remote, end(3));
    assert_eq!(changes(&world.ends[1]).len(), 1);
}

#[test]
fn without_mobike_nothing_moves() {
    let mut world = World::pair(1, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let ike = ike_of(&world.ends[0], world.now);
    assert!(
        world.ends[0]
            .endpoint
            .readdress_ike(world.now, ike, end(3), end(2))
            .is_err()
    );
    let mut elsewhere = world.sent[2].clone();
    elsewhere.source.set_ip(v4(3));
    world.deliver(1, &elsewhere);
    assert_eq!(
        world.ends[1].drops.last(),
        Some(&towpath_base::DropReason::IkeUnknownSpi)
    );
}

/// The NAT in front of A gives it another port: B notices with the next message, and says so.
#[test]
fn a_nat_that_forgets_its_mapping_is_followed() {
    let config = Config {
        dpd_after: Some(Duration::from_secs(20)),
        ..quiet()
    };
    let mut world = World::new(1);
    world.add(config.clone(), Some(policy()), &[v4(1)]);
    world.add(config, Some(policy()), &[v4(2)]);
    let nat = |shift| {
        Some(Nat {
            inside: v4(1),
            outside: v4(9),
            shift,
        })
    };
    world.nat = nat(1000);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(1));
    assert_eq!(
        world.ends[1]
            .children
            .values()
            .next()
            .unwrap()
            .encap
            .unwrap()
            .remote_port,
        5500
    );
    world.ends[1].commands.clear();
    world.nat = nat(2000);
    world.run_for(Duration::from_secs(60));
    let outside = SocketAddr::new(v4(9), 6500);
    assert_eq!(changes(&world.ends[1]), [(end(2), outside)]);
    assert!(world.ends.iter().all(|end| end.children.len() == 1));
}
