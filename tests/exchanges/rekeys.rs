//! Rekeyings: with a fresh key exchange, crossing each other, waiting for whoever installs the keys.

use std::time::Duration;

use towpath_base::Spi;
use towpath_base::sa::ChildSa;
use towpath_ike::{Command, Config, FailReason, IkeState};

use crate::world::*;

const PATIENCE: Duration = Duration::from_secs(3);

fn established(seed: u64, config: Config) -> World {
    let waits = !config.ready_within.is_zero();
    let mut world = World::pair_with(seed, config, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_millis(200));
    if waits {
        // The responder's answer is held back like that to a rekeying.
        assert!(world.ends[0].children.is_empty());
        let first = *world.ends[1]
            .children
            .values()
            .map(|child| &child.spi_in)
            .next()
            .unwrap();
        ready(&mut world, 1, first);
        world.run_for(Duration::from_millis(200));
    }
    world.trace.clear();
    for end in &mut world.ends {
        end.commands.clear();
    }
    world
}

fn ready(world: &mut World, end: usize, spi_in: Spi) {
    let ike = ike_of(&world.ends[end], world.now);
    world.ends[end]
        .endpoint
        .child_ready(world.now, ike, spi_in)
        .unwrap();
    world.collect(end);
}

fn newest(
    end: &towpath_base::Spi,
    children: &std::collections::BTreeMap<(std::net::IpAddr, Spi), ChildSa>,
) -> Spi {
    children
        .values()
        .map(|child| child.spi_in)
        .find(|spi| spi != end)
        .unwrap()
}

#[test]
fn a_rekeying_makes_a_fresh_key_exchange_where_the_peer_wants_it() {
    let config = Config { pfs: true, ..quiet() };
    for by in [0, 1] {
        let mut world = established(1, config.clone());
        let old = world.only_children();
        rekey_child(&mut world, by, old[by].spi_in);
        world.rest();
        assert!(world.trace[0].ends_with("[ N(REKEY_SA) SA No KE TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]"));
        assert!(world.trace[1].ends_with("[ SA No KE TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]"));
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
    }
}

/// ```text
/// A: CREATE_CHILD_SA { N(REKEY_SA) SA Ni1 .. }  --> <--  B: CREATE_CHILD_SA { N(REKEY_SA) SA Ni2 .. }
/// A: response { SA Nr2 .. }                     --> <--  B: response { SA Nr1 .. }
///    the side whose exchange had the lowest nonce deletes what it made, the other side the old one
/// ```
#[test]
fn crossing_rekeyings_of_a_child_sa_are_decided_by_the_lowest_nonce() {
    let mut winners = [0, 0];
    for seed in 0..200 {
        for config in [
            quiet(),
            Config {
                ready_within: PATIENCE,
                ..quiet()
            },
        ] {
            let mut world = established(seed, config);
            let old = world.only_children();
            rekey_child(&mut world, 0, old[0].spi_in);
            rekey_child(&mut world, 1, old[1].spi_in);
            world.rest();
            let [a, b] = world.only_children();
            assert_mirror(&a, &b);
            let made_by_us = |end: &End, spi: Spi| {
                end.commands.iter().any(|command| {
                    matches!(command, Command::ChildEstablished { child, role, .. }
                        if child.spi_in == spi && *role == towpath_ike::Role::Initiator)
                })
            };
            let winner = usize::from(made_by_us(&world.ends[1], b.spi_in));
            assert_eq!(made_by_us(&world.ends[0], a.spi_in), winner == 0);
            winners[winner] += 1;
            let deletes = |name: &str| {
                let by = |line: &&String| {
                    line.starts_with(name) && line.contains("request") && line.ends_with("[ D ]")
                };
                world.trace.iter().filter(by).count()
            };
            // Each side deletes one: the loser its own, the winner the old one.
            assert_eq!((deletes("A"), deletes("B")), (1, 1), "{:#?}", world.trace);
        }
    }
    assert!(winners.iter().all(|count| *count > 100), "{winners:?}");
}

#[test]
fn crossing_rekeyings_of_the_ike_sa_are_decided_by_the_lowest_nonce() {
    let mut winners = [0, 0];
    for seed in 0..200 {
        let mut world = established(seed, quiet());
        let children = world.only_children();
        let old = [0, 1].map(|end| ike_of(&world.ends[end], world.now));
        rekey_ike(&mut world, 0);
        rekey_ike(&mut world, 1);
        world.rest();
        assert_eq!(world.only_children(), children, "the CHILD SAs move, unchanged");
        for (end, old) in world.ends.iter().zip(old) {
            let live: Vec<_> = end.endpoint.list(world.now).collect();
            assert_eq!(
                (live.len(), live[0].state),
                (1, IkeState::Established),
                "{:#?}",
                world.trace
            );
            let told: Vec<_> = end
                .commands
                .iter()
                .filter(|c| !matches!(c, Command::NeedPolicy { .. }))
                .collect();
            assert!(
                matches!(told[..], [
                    Command::IkeRekeyed { old: from, new },
                    Command::IkeClosed { ike, reason: FailReason::Rekeyed, .. },
                ] if *from == old && *new == live[0].id && *ike == old),
                "{told:#?}"
            );
        }
        let [a, b] = [0, 1].map(|end| world.ends[end].endpoint.list(world.now).next().unwrap());
        assert_eq!((a.spi_i, a.spi_r), (b.spi_i, b.spi_r));
        assert_ne!(a.role, b.role);
        winners[usize::from(b.role == towpath_ike::Role::Initiator)] += 1;
    }
    assert!(winners.iter().all(|count| *count > 50), "{winners:?}");
}

#[test]
fn rekeyings_at_any_distance_in_any_weather_leave_one_of_each() {
    for seed in 0..400 {
        let config = Config {
            ready_within: PATIENCE * (seed as u32 % 2),
            pfs: seed % 3 == 0,
            ..quiet()
        };
        let mut world = established(seed, config);
        let [apart, foul, fair] = [
            Duration::from_millis(seed % 60),
            Duration::from_secs(40),
            Duration::from_secs(120),
        ];
        world.rekey_twice(seed, apart, foul, fair);
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        for end in &world.ends {
            assert_eq!(
                end.endpoint.list(world.now).count(),
                1,
                "seed {seed}: {:#?}",
                world.trace
            );
        }
    }
}

/// The answer to a peer's rekeying, and the Delete of what ours replaced, wait for whoever installs the keys.
#[test]
fn nothing_is_broken_before_the_owner_is_ready() {
    let config = Config {
        ready_within: PATIENCE,
        ..quiet()
    };
    let mut world = established(1, config);
    let old = world.only_children();
    rekey_child(&mut world, 0, old[0].spi_in);
    world.run_for(Duration::from_secs(1));
    // A has asked, perhaps again; B has the new SA and says nothing.
    assert_eq!(
        (world.ends[0].children.len(), world.ends[1].children.len()),
        (1, 2)
    );
    let new = newest(&old[1].spi_in, &world.ends[1].children);
    ready(&mut world, 1, new);
    world.run_for(Duration::from_secs(1));
    // A has it too, and has not deleted the old one.
    assert!(world.ends.iter().all(|end| end.children.len() == 2));
    let new = newest(&old[0].spi_in, &world.ends[0].children);
    ready(&mut world, 0, new);
    world.run_for(Duration::from_millis(100));
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
    assert!(world.ends.iter().all(|end| end.drops.is_empty()));
}

#[test]
fn an_owner_that_is_never_ready_holds_a_rekeying_up_for_a_bounded_time() {
    let config = Config {
        ready_within: PATIENCE,
        ..quiet()
    };
    let mut world = established(1, config);
    let old = world.only_children();
    rekey_child(&mut world, 0, old[0].spi_in);
    world.run_for(PATIENCE * 2 + Duration::from_secs(1));
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
    assert_ne!(a.spi_in, old[0].spi_in);
}
