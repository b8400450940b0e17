//! Deletes, liveness, rekeying.

use std::time::Duration;

use towpath_base::Spi;
use towpath_base::sa::Lifetime;
use towpath_ike::{Command, Config, FailReason};

use crate::world::*;

fn established() -> World {
    let mut world = World::pair(11, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    world.trace.clear();
    world.sent.clear();
    world
}

fn deleted(end: &End) -> Vec<FailReason> {
    let reason = |command: &Command| match command {
        Command::ChildDeleted { reason, .. } => Some(*reason),
        _ => None,
    };
    end.commands.iter().filter_map(reason).collect()
}

#[test]
fn either_side_deletes_the_ike_sa() {
    for (by, other) in [(0, 1), (1, 0)] {
        let mut world = established();
        let ike = ike_of(&world.ends[by], world.now);
        world.ends[by].endpoint.delete_ike(world.now, ike).unwrap();
        world.collect(by);
        world.rest();
        // --> INFORMATIONAL { D }   <-- INFORMATIONAL { }
        assert_eq!(world.trace.len(), 2, "{:?}", world.trace);
        assert!(world.trace[0].ends_with("[ D ]") && world.trace[1].ends_with("[ ]"));
        assert_eq!(
            (deleted(&world.ends[by]), closed(&world.ends[by])),
            (vec![FailReason::Requested], vec![FailReason::Requested])
        );
        assert_eq!(closed(&world.ends[other]), [FailReason::DeletedByPeer]);
        assert!(
            world
                .ends
                .iter()
                .all(|end| end.children.is_empty() && end.endpoint.list(world.now).count() == 0)
        );
    }
}

#[test]
fn both_sides_delete_at_once() {
    let mut world = established();
    for end in [0, 1] {
        let ike = ike_of(&world.ends[end], world.now);
        world.ends[end].endpoint.delete_ike(world.now, ike).unwrap();
        world.collect(end);
    }
    world.rest();
    assert!(
        world
            .ends
            .iter()
            .all(|end| closed(end) == [FailReason::Requested] && end.endpoint.list(world.now).count() == 0)
    );
}

#[test]
fn a_child_sa_is_deleted_alone_where_it_is_not_the_last() {
    let mut world = established();
    let [a, _] = world.only_children();
    let ike = ike_of(&world.ends[0], world.now);
    // A second CHILD SA by rekeying, the Delete of the first held back.
    world.filter = Some(Box::new(|_| true));
    world.ends[0]
        .endpoint
        .rekey_child(world.now, ike, a.spi_in)
        .unwrap();
    world.collect(0);
    world.rest();
    assert_eq!(deleted(&world.ends[0]), [FailReason::Rekeyed]);
    assert_eq!(deleted(&world.ends[1]), [FailReason::Rekeyed]);
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
    assert_eq!(
        world.ends[0].endpoint.delete_child(world.now, ike, Spi(1)),
        Err(towpath_ike::UnknownSa)
    );
    world.ends[0]
        .endpoint
        .delete_child(world.now, ike, a.spi_in)
        .unwrap();
    world.collect(0);
    world.rest();
    assert_eq!(closed(&world.ends[1]), [FailReason::DeletedByPeer]);
}

#[test]
fn rekeying_a_child_sa_makes_before_it_breaks() {
    for by in [0, 1] {
        let mut world = established();
        let old = world.only_children();
        let ike = ike_of(&world.ends[by], world.now);
        world.ends[by]
            .endpoint
            .rekey_child(world.now, ike, old[by].spi_in)
            .unwrap();
        world.collect(by);
        world.rest();
        let (me, peer) = if by == 0 { ("A", "B") } else { ("B", "A") };
        let id = if by == 0 { 2 } else { 0 };
        assert_eq!(
            world.trace,
            [
                format!(
                    "{me} --> CREATE_CHILD_SA request {id} [ N(REKEY_SA) SA No TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]"
                ),
                format!(
                    "{peer} --> CREATE_CHILD_SA response {id} [ SA No TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]"
                ),
                format!("{me} --> INFORMATIONAL request {} [ D ]", id + 1),
                format!("{peer} --> INFORMATIONAL response {} [ D ]", id + 1),
            ]
        );
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_ne!(a.keys_in, old[0].keys_in);
        for (end, old) in world.ends.iter().zip(&old) {
            // The new one is announced before the old one goes.
            let news: Vec<_> = end.commands.iter().rev().take(2).collect();
            assert!(
                matches!(news[0], Command::ChildDeleted { spi_in, reason: FailReason::Rekeyed, .. } if *spi_in == old.spi_in)
            );
            assert!(
                matches!(news[1], Command::ChildEstablished { replaces: Some(spi), .. } if *spi == old.spi_in)
            );
        }
    }
}

#[test]
fn rekeying_the_ike_sa_moves_its_child_sas() {
    for by in [0, 1] {
        let mut world = established();
        let old = ike_of(&world.ends[by], world.now);
        world.ends[by].endpoint.rekey_ike(world.now, old).unwrap();
        world.collect(by);
        world.rest();
        let (me, peer) = if by == 0 { ("A", "B") } else { ("B", "A") };
        let id = if by == 0 { 2 } else { 0 };
        assert_eq!(
            world.trace,
            [
                format!("{me} --> CREATE_CHILD_SA request {id} [ SA No KE ]"),
                format!("{peer} --> CREATE_CHILD_SA response {id} [ SA No KE ]"),
                format!("{me} --> INFORMATIONAL request {} [ D ]", id + 1),
                format!("{peer} --> INFORMATIONAL response {} [ ]", id + 1),
            ]
        );
        assert!(
            world
                .ends
                .iter()
                .all(|end| closed(end) == [FailReason::Rekeyed] && deleted(end).is_empty())
        );
        let new = [0, 1].map(|end| ike_of(&world.ends[end], world.now));
        assert_ne!(new[by], old);
        // The new SA works: a CHILD SA is rekeyed on it, from the other side.
        let [_, b] = world.only_children();
        world.ends[1]
            .endpoint
            .rekey_child(world.now, new[1], b.spi_in)
            .unwrap();
        world.collect(1);
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        world.ends[0].endpoint.delete_ike(world.now, new[0]).unwrap();
        world.collect(0);
        world.rest();
        assert!(
            world
                .ends
                .iter()
                .all(|end| end.children.is_empty() && end.endpoint.list(world.now).count() == 0)
        );
    }
}

#[test]
fn soft_and_hard_limits_in_time_are_kept() {
    let mut both = policy();
    both.lifetime = Lifetime {
        soft_seconds: 100,
        hard_seconds: 200,
        ..Lifetime::default()
    };
    let mut world = World::pair(2, both.clone(), both);
    world.initiate(1, v4(1), v4(2)).unwrap();
    // Rekeyed again and again, never without an SA, at most for a moment with two.
    for _ in 0..100 {
        world.run_for(Duration::from_secs(10));
        assert!(
            (1..=2).contains(&world.ends[0].children.len()),
            "{:#?}",
            world.trace
        );
    }
    let rekeyed = deleted(&world.ends[0]);
    assert!(
        rekeyed.len() >= 9 && rekeyed.iter().all(|reason| *reason == FailReason::Rekeyed),
        "{rekeyed:?}"
    );
    world.assert_mirrored();
    // The peer is gone: no rekeying succeeds, the SA ends.
    world.filter = Some(Box::new(|_| false));
    world.run_for(Duration::from_secs(400));
    assert!(world.ends.iter().all(|end| end.children.is_empty()));
}

#[test]
fn a_silent_peer_is_asked_and_given_up() {
    let config = Config {
        dpd_after: Some(Duration::from_secs(30)),
        ike_rekey_after: None,
        ..Config::default()
    };
    let mut world = World::pair_with(1, config, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(100));
    assert!(
        world.trace[4..]
            .iter()
            .all(|line| line.contains("INFORMATIONAL") && line.ends_with("[ ]"))
    );
    assert!(world.trace.len() >= 8, "{:?}", world.trace);
    world.only_children();
    world.filter = Some(Box::new(|_| false));
    world.run_for(Duration::from_secs(100));
    for end in &world.ends {
        assert_eq!(
            (deleted(end), closed(end)),
            (vec![FailReason::Timeout], vec![FailReason::Timeout])
        );
        assert_eq!(end.endpoint.list(world.now).count(), 0);
    }
    world.rest();
    assert!(
        world.ends.iter().all(|end| end.endpoint.poll_timeout().is_none()),
        "everything is forgotten"
    );
}

#[test]
fn nobody_there_is_a_clean_failure() {
    let mut world = World::new(1);
    world.add(quiet(), Some(policy()), &[v4(1)]);
    world.initiate(9, v4(1), v4(2)).unwrap();
    world.rest();
    // Seven transmissions with growing waits.
    assert_eq!(world.sent.len(), 7);
    assert_eq!(failures(&world.ends[0]), [(Some(9), FailReason::Timeout)]);
    assert!(world.ends[0].endpoint.poll_timeout().is_none());
}

#[test]
fn a_peer_that_starts_afresh_replaces_its_old_sa() {
    let mut world = established();
    world.run_for(Duration::from_secs(60));
    // B loses everything.
    let lost = world.add(quiet(), Some(policy()), &[v4(2)]);
    world.initiate(2, v4(2), v4(1)).unwrap();
    world.rest();
    assert_eq!(world.ends[0].children.len(), 1);
    assert_eq!(closed(&world.ends[0]), [FailReason::InitialContact]);
    let a = world.ends[0].children.values().next().unwrap();
    let b = world.ends[lost].children.values().next().unwrap();
    assert_mirror(a, b);
}

#[test]
fn rekeyings_that_cross_end_with_one_sa() {
    for seed in 0..40 {
        let mut world = World::pair(seed, policy(), policy());
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.rest();
        let old = world.only_children();
        let both_start = |world: &mut World, start: &dyn Fn(&mut World, usize)| {
            start(world, 0);
            world.run_for(Duration::from_millis(seed % 25));
            start(world, 1);
            world.run_for(Duration::from_secs(60));
        };
        both_start(&mut world, &|world, end| {
            let ike = ike_of(&world.ends[end], world.now);
            // Too late where the other's rekeying is already through.
            let _ = world.ends[end]
                .endpoint
                .rekey_child(world.now, ike, old[end].spi_in);
            world.collect(end);
        });
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_ne!(a.spi_in, old[0].spi_in);
        let before = ike_of(&world.ends[0], world.now);
        both_start(&mut world, &|world, end| {
            let ike = ike_of(&world.ends[end], world.now);
            world.ends[end].endpoint.rekey_ike(world.now, ike).unwrap();
            world.collect(end);
        });
        assert_ne!(ike_of(&world.ends[0], world.now), before);
        assert!(
            world
                .ends
                .iter()
                .all(|end| end.endpoint.list(world.now).count() == 1),
            "{:#?}",
            world.trace
        );
        assert_eq!(world.only_children(), [a, b]);
    }
}

#[test]
fn a_child_sa_rekeyed_while_the_ike_sa_is() {
    for seed in 0..40 {
        let mut world = World::pair(seed, policy(), policy());
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.rest();
        let old = world.only_children();
        let ike = [0, 1].map(|end| ike_of(&world.ends[end], world.now));
        world.ends[0]
            .endpoint
            .rekey_child(world.now, ike[0], old[0].spi_in)
            .unwrap();
        world.collect(0);
        world.run_for(Duration::from_millis(seed % 30));
        world.ends[1].endpoint.rekey_ike(world.now, ike[1]).unwrap();
        world.collect(1);
        world.run_for(Duration::from_secs(60));
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_ne!(a.spi_in, old[0].spi_in);
        assert!(
            world
                .ends
                .iter()
                .all(|end| end.endpoint.list(world.now).count() == 1),
            "{:#?}",
            world.trace
        );
        assert_ne!(ike_of(&world.ends[0], world.now), ike[0]);
    }
}

/// A new IKE SA takes over: established before the old one is deleted, and its CHILD SA in place of the old one's.
#[test]
fn reauthentication_makes_before_it_breaks() {
    for by in [0, 1] {
        let mut world = established();
        world.run_for(Duration::from_secs(60));
        let old = world.only_children();
        let ike = ike_of(&world.ends[by], world.now);
        for end in &mut world.ends {
            end.commands.clear();
        }
        world.ends[by].endpoint.reauthenticate(world.now, ike).unwrap();
        world.collect(by);
        world.run_for(Duration::from_secs(1));
        assert!(world.ends.iter().all(|end| end.children.len() == 2));
        let news = world.ends[by].commands.iter().find_map(|command| match command {
            Command::ChildEstablished { replaces, .. } => Some(*replaces),
            _ => None,
        });
        assert_eq!(news, Some(Some(old[by].spi_in)));
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_ne!(a.spi_in, old[0].spi_in);
        assert_ne!(ike_of(&world.ends[by], world.now), ike);
        // Both sides find the old one redundant; one of them says so first.
        let over = closed(&world.ends[by]);
        assert!(
            matches!(over[..], [FailReason::Redundant | FailReason::DeletedByPeer]),
            "{over:?}"
        );
    }
}

#[test]
fn an_ike_sa_of_ours_is_authenticated_anew_when_it_is_old() {
    let config = Config {
        reauth_after: Some(Duration::from_secs(100)),
        ..quiet()
    };
    let mut world = World::pair_with(1, config, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(350));
    let proofs = world
        .trace
        .iter()
        .filter(|line| line.contains("IKE_AUTH request"));
    assert_eq!(proofs.count(), 4, "{:#?}", world.trace);
    world.only_children();
}

/// The peer deletes the old IKE SA before it is replaced: on the way of any message of the new one. What is established
/// then replaces nothing any more.
#[test]
fn reauthentication_goes_on_when_the_peer_deletes_first() {
    for wait in 0..60 {
        let mut world = established();
        world.run_for(Duration::from_secs(60));
        let ike = ike_of(&world.ends[0], world.now);
        let theirs = ike_of(&world.ends[1], world.now);
        let old = world.only_children()[0].spi_in;
        world.ends[0].commands.clear();
        world.ends[0].endpoint.reauthenticate(world.now, ike).unwrap();
        world.collect(0);
        world.run_for(Duration::from_millis(wait));
        world.ends[1].endpoint.delete_ike(world.now, theirs).unwrap();
        world.collect(1);
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_ne!(a.spi_in, old);
        assert!(
            world
                .ends
                .iter()
                .all(|end| end.endpoint.list(world.now).count() == 1)
        );
        // Its owner never hears of a replacement for what it was told to remove.
        let mut there = true;
        for command in &world.ends[0].commands {
            match command {
                Command::ChildDeleted { spi_in, .. } if *spi_in == old => there = false,
                Command::ChildEstablished { replaces, .. } => {
                    assert_eq!(*replaces, there.then_some(old), "after {wait} ms");
                }
                _ => {}
            }
        }
    }
}
