//! What strangers and broken peers get.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use towpath_base::DropReason;
use towpath_base::profile::Psk;
use towpath_base::testutil::SeededRng;
use towpath_ike::{Command, Config, Transmit};

use crate::world::*;

/// An IKE_SA_INIT request of somebody who asks for `b` to talk.
fn first_request(seed: u64) -> Transmit {
    let mut world = World::new(seed);
    world.add(quiet(), Some(policy()), &[v4(1)]);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.sent[0].clone()
}

fn responder(config: Config) -> World {
    let mut world = World::new(99);
    world.add(config, Some(policy()), &[v4(2)]);
    world
}

#[test]
fn half_open_sas_are_limited_in_total_and_do_not_stay() {
    let mut world = responder(Config {
        half_open_total: 10,
        cookie_threshold: 1000,
        ..quiet()
    });
    for seed in 0..60 {
        let mut request = first_request(seed);
        request.source = SocketAddr::new(v4(100 + seed as u8), 500);
        world.deliver(0, &request);
    }
    assert_eq!(world.ends[0].endpoint.list(world.now).count(), 10);
    assert_eq!(world.ends[0].drops, [DropReason::IkeLimit; 50]);
    world.rest();
    assert_eq!(world.ends[0].endpoint.list(world.now).count(), 0);
    world.deliver(0, &first_request(1000));
    assert_eq!(world.ends[0].endpoint.list(world.now).count(), 1);
}

#[test]
fn requests_forged_in_a_peers_name_do_not_lock_it_out() {
    let mut world = World::pair(1, policy(), policy());
    for seed in 100..200 {
        world.deliver(1, &first_request(seed));
    }
    let half = Config::default().half_open_per_source / 2;
    assert_eq!(world.ends[1].endpoint.list(world.now).count(), half);
    // The peer itself returns the cookie.
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    world.only_children();
}

#[test]
fn who_fails_again_and_again_is_limited_too() {
    let mut wrong = policy();
    wrong.psk = Psk::new(b"guess".to_vec());
    let mut world = World::pair(1, wrong, policy());
    let limit = Config::default().half_open_per_source;
    for _ in 0..3 * limit {
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.run_for(Duration::from_millis(100));
        let ike = world.ends[0].endpoint.list(world.now).next().map(|sa| sa.id);
        if let Some(ike) = ike {
            world.ends[0].endpoint.delete_ike(world.now, ike).unwrap();
        }
        world.collect(0);
    }
    let answered = world
        .trace
        .iter()
        .filter(|line| line.starts_with("B --> IKE_SA_INIT"));
    assert_eq!(answered.count(), limit);
    assert!(world.ends[1].drops.contains(&DropReason::IkeLimit));
    // Later it may try again.
    world.run_for(Duration::from_secs(60));
    world.ends[0].policy = Some(policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(1));
    world.only_children();
}

#[test]
fn forged_requests_hold_our_own_exchange_once_at_most() {
    let mut world = World::new(1);
    world.add(quiet(), Some(policy()), &[v4(1)]);
    world.add(quiet(), Some(policy()), &[v4(2)]);
    world.initiate(1, v4(1), v4(2)).unwrap();
    for seed in 0..100 {
        let request = first_request(seed);
        // In the peer's name, to us.
        let forged = Transmit {
            source: request.destination,
            destination: request.source,
            payload: request.payload,
        };
        world.deliver(0, &forged);
        world.run_for(Duration::from_millis(100));
    }
    world.only_children();
}

#[test]
fn spoofed_requests_leave_no_state_and_do_not_lock_anybody_out() {
    let mut world = World::pair(1, policy(), policy());
    for seed in 100..1100u64 {
        let mut request = first_request(seed);
        request.source = SocketAddr::new([192, 0, (seed >> 8) as u8, seed as u8].into(), 500);
        world.deliver(1, &request);
    }
    let threshold = Config::default().cookie_threshold;
    assert_eq!(world.ends[1].endpoint.list(world.now).count(), threshold);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    world.only_children();
}

#[test]
fn a_cookie_is_good_for_its_initiator_only() {
    let config = Config {
        cookie_threshold: 0,
        ..quiet()
    };
    let mut world = World::new(1);
    world.add(quiet(), Some(policy()), &[v4(1)]);
    world.add(config, Some(policy()), &[v4(2)]);
    world.initiate(1, v4(1), v4(2)).unwrap();
    while world.sent.len() < 3 {
        assert!(world.step(world.now + Duration::from_secs(1)));
    }
    let with_cookie = world.sent[2].clone();
    let mut elsewhere = with_cookie.clone();
    elsewhere.source.set_ip(v4(77));
    let mut other_spi = with_cookie.clone();
    other_spi.payload[0] ^= 1;
    for stolen in [elsewhere, other_spi] {
        world.deliver(1, &stolen);
        assert_eq!(world.ends[1].endpoint.list(world.now).count(), 0);
    }
    world.deliver(1, &with_cookie);
    assert_eq!(world.ends[1].endpoint.list(world.now).count(), 1);
    // Two minutes later it is worth nothing.
    world.run_for(Duration::from_secs(200));
    let mut again = with_cookie;
    again.payload[7] ^= 0;
    let count = world.ends[1].endpoint.list(world.now).count();
    world.deliver(1, &again);
    assert_eq!(world.ends[1].endpoint.list(world.now).count(), count);
}

#[test]
fn our_own_request_sent_back_is_not_answered() {
    let mut world = World::new(1);
    world.add(quiet(), Some(policy()), &[v4(1)]);
    world.initiate(1, v4(1), v4(2)).unwrap();
    let own = world.sent[0].clone();
    let reflected = Transmit {
        source: own.destination,
        destination: own.source,
        payload: own.payload,
    };
    world.deliver(0, &reflected);
    assert_eq!(world.ends[0].drops, [DropReason::IkeUnexpected]);
    assert_eq!(world.ends[0].endpoint.list(world.now).count(), 1);
}

#[test]
fn recorded_messages_played_again_change_nothing() {
    let mut world = World::pair(1, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let recorded = world.sent.clone();
    let before = [0, 1].map(|end| (world.ends[end].commands.len(), world.ends[end].children.len()));
    for datagram in recorded.iter().chain(recorded.iter().rev()) {
        let end = usize::from(datagram.destination.ip() == v4(2));
        world.deliver(end, datagram);
    }
    world.run_for(Duration::from_secs(1));
    let after = [0, 1].map(|end| (world.ends[end].commands.len(), world.ends[end].children.len()));
    assert_eq!(before, after);
    // The last request is answered again, word for word; nothing else is.
    assert!(
        world.sent[recorded.len()..]
            .iter()
            .all(|datagram| datagram.payload == recorded[3].payload)
    );
}

#[test]
fn messages_from_another_address_are_not_looked_at() {
    let mut world = World::pair(1, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.filter = Some(Box::new(|datagram| {
        datagram.payload[18] != 35 || datagram.destination.ip() != v4(2)
    }));
    world.run_for(Duration::from_millis(100));
    let mut auth = world.sent.last().unwrap().clone();
    auth.source.set_ip(v4(66));
    world.deliver(1, &auth);
    assert_eq!(world.ends[1].drops, [DropReason::IkeUnknownSpi]);
    assert!(world.ends[1].children.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is done to the messages of somebody without the key: no SA.
    #[test]
    fn no_sa_without_auth(seed in any::<u64>(), flips in proptest::collection::vec(any::<(u16, u8)>(), 0..6)) {
        let mut wrong = policy();
        wrong.psk = Psk::new(b"guess".to_vec());
        let mut world = World::pair(seed, wrong, policy());
        let mut rng = SeededRng::new(seed);
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.run_for(Duration::from_secs(1));
        for datagram in world.sent.clone() {
            for (at, bit) in &flips {
                let mut changed = datagram.clone();
                let at = usize::from(*at) % changed.payload.len();
                changed.payload[at] ^= 1 << (bit % 8);
                // Another exchange type or message ID.
                changed.payload[18] = 34 + rng.below(4) as u8;
                let end = usize::from(changed.destination.ip() == v4(2));
                world.deliver(end, &changed);
            }
        }
        world.rest();
        let established = |command: &Command| {
            matches!(command, Command::ChildEstablished { .. } | Command::IkeEstablished { .. })
        };
        prop_assert!(!world.ends.iter().any(|end| end.commands.iter().any(established)));
    }

    /// A peer with the right key and mutated messages on the way: never a panic, never half an SA.
    #[test]
    fn mutations_on_the_way_are_dropped(seed in any::<u64>(), rate in 1u64..4) {
        let mut world = World::pair(seed, policy(), policy());
        world.initiate(1, v4(1), v4(2)).unwrap();
        let mut rng = SeededRng::new(seed);
        let until = world.now + Duration::from_secs(60);
        let mut seen = 0;
        while world.step(until) {
            for index in seen..world.sent.len() {
                if rng.below(4) < rate {
                    let mut changed = world.sent[index].clone();
                    let at = rng.below(changed.payload.len() as u64) as usize;
                    changed.payload[at] ^= 1 << rng.below(8);
                    world.post(changed);
                }
            }
            seen = world.sent.len();
        }
        world.rest();
        world.assert_mirrored();
    }

    #[test]
    fn random_datagrams_are_dropped_with_a_reason(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut world = responder(quiet());
        let datagram = Transmit {
            source: SocketAddr::new(v4(1), 500),
            destination: SocketAddr::new(v4(2), 500),
            payload: bytes,
        };
        world.deliver(0, &datagram);
        prop_assert_eq!(world.ends[0].drops.len(), 1);
        prop_assert_eq!(world.ends[0].endpoint.list(world.now).count(), 0);
    }
}
