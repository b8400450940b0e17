//! Simultaneous starts end with one IKE SA and one pair of CHILD SAs (spec row K13).

use std::time::Duration;

use towpath_base::Instant;
use towpath_ike::{Command, IkeState};

use crate::world::*;

fn ike_sas(end: &End, now: Instant) -> usize {
    end.endpoint
        .list(now)
        .filter(|sa| sa.state == IkeState::Established)
        .count()
}

/// Every wish was answered exactly once.
fn assert_answered(end: &End, tag: u64) {
    let answers = end.commands.iter().filter(|command| match command {
        Command::ChildEstablished { tag: Some(it), .. } | Command::Failed { tag: Some(it), .. } => *it == tag,
        _ => false,
    });
    assert_eq!(answers.count(), 1, "{:?}", end.commands);
}

#[test]
fn requests_that_cross_make_one_sa() {
    for seed in 0..200 {
        let mut world = World::pair(seed, policy(), policy());
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.initiate(2, v4(2), v4(1)).unwrap();
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_answered(&world.ends[0], 1);
        assert_answered(&world.ends[1], 2);
        // One exchange was not even finished.
        assert_eq!(
            world
                .trace
                .iter()
                .filter(|line| line.contains("IKE_AUTH request"))
                .count(),
            1
        );
        assert!(world.ends.iter().all(|end| ike_sas(end, world.now) == 1));
    }
}

#[test]
fn starts_at_any_distance_in_any_weather_make_one_sa() {
    for seed in 0..1000 {
        let mut world = World::pair(seed, policy(), policy());
        world.weather = Weather {
            loss: seed % 4 * 80,
            copies: 100,
            jitter: Duration::from_millis(seed % 5 * 20),
        };
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.run_for(Duration::from_millis(seed % 60));
        world.initiate(2, v4(2), v4(1)).unwrap();
        world.run_for(Duration::from_secs(20));
        world.weather = Weather::FAIR;
        world.run_for(Duration::from_secs(120));
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_answered(&world.ends[0], 1);
        assert_answered(&world.ends[1], 2);
        assert!(
            world.ends.iter().all(|end| ike_sas(end, world.now) == 1),
            "seed {seed}"
        );
    }
}

#[test]
fn one_endpoint_for_both_ends_resolves_its_own_collision() {
    for seed in 0..50 {
        let mut world = World::new(seed);
        world.add(quiet(), Some(policy()), &[v4(1), v4(2)]);
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.initiate(2, v4(2), v4(1)).unwrap();
        world.rest();
        assert_eq!(world.ends[0].children.len(), 2);
        world.assert_mirrored();
        assert_eq!(ike_sas(&world.ends[0], world.now), 2);
        assert_answered(&world.ends[0], 1);
        assert_answered(&world.ends[0], 2);
    }
}

/// A stock peer does not yield: it answers our request while its own goes on. Here that is an end whose `hold`
/// is zero, with requests that reach their destinations whatever the nonces say.
#[test]
fn a_peer_that_does_not_yield_still_ends_with_one_sa() {
    for seed in 0..100 {
        let stubborn = towpath_ike::Config {
            hold: Duration::ZERO,
            ..quiet()
        };
        let mut world = World::new(seed);
        world.add(quiet(), Some(policy()), &[v4(1)]);
        world.add(stubborn, Some(policy()), &[v4(2)]);
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.initiate(2, v4(2), v4(1)).unwrap();
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert!(world.ends.iter().all(|end| ike_sas(end, world.now) == 1));
    }
}

#[test]
fn a_second_wish_while_one_is_under_way_is_refused_by_name() {
    let mut world = World::pair(1, policy(), policy());
    let first = world.initiate(1, v4(1), v4(2)).unwrap();
    assert_eq!(
        world.initiate(2, v4(1), v4(2)),
        Err(towpath_ike::InitiateError::InProgress(first))
    );
}

#[test]
fn a_later_exchange_replaces_the_earlier() {
    let mut world = World::pair(1, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(60));
    let [before, _] = world.only_children();
    world.initiate(2, v4(1), v4(2)).unwrap();
    world.rest();
    let [after, b] = world.only_children();
    assert_mirror(&after, &b);
    assert_ne!(before.spi_in, after.spi_in);
}
