//! Thousands of exchanges through a bad network: established with equal keys, or cleanly failed.

use std::time::Duration;

use towpath_base::sa::Lifetime;
use towpath_ike::{Command, Config};

use crate::world::*;

fn storm(seed: u64) -> Weather {
    Weather {
        loss: [50, 150, 300, 600][(seed % 4) as usize],
        copies: 200,
        jitter: Duration::from_millis(seed % 7 * 50),
    }
}

fn watchful() -> Config {
    Config {
        dpd_after: Some(Duration::from_secs(20)),
        ike_rekey_after: None,
        ..Config::default()
    }
}

#[test]
fn loss_duplication_and_reordering_never_leave_half_an_sa() {
    let mut established = 0;
    for seed in 0..2000 {
        let mut world = World::pair_with(seed, watchful(), policy(), policy());
        world.weather = storm(seed);
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.run_for(Duration::from_secs(70));
        world.weather = Weather::FAIR;
        // A side that believes in an SA the other gave up finds out by asking.
        world.run_for(Duration::from_secs(150));
        world.assert_mirrored();
        let answers = world.ends[0].commands.iter().filter(|command| {
            matches!(
                command,
                Command::ChildEstablished { tag: Some(1), .. } | Command::Failed { tag: Some(1), .. }
            )
        });
        assert_eq!(answers.count(), 1, "seed {seed}");
        established += usize::from(!world.ends[0].children.is_empty());
    }
    // 0.6 loss fails often, the others hardly ever.
    assert!(established > 1500, "{established}");
}

#[test]
fn rekeying_in_a_storm_keeps_the_ends_together() {
    let mut both = policy();
    both.lifetime = Lifetime {
        soft_seconds: 30,
        hard_seconds: 90,
        ..Lifetime::default()
    };
    let config = Config {
        ike_rekey_after: Some(Duration::from_secs(70)),
        ..watchful()
    };
    let mut rekeyed = 0;
    for seed in 0..200 {
        let mut world = World::pair_with(seed, config.clone(), both.clone(), both.clone());
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.run_for(Duration::from_secs(5));
        world.weather = Weather {
            loss: seed % 3 * 100,
            ..storm(seed)
        };
        world.run_for(Duration::from_secs(400));
        world.weather = Weather::FAIR;
        world.run_for(Duration::from_secs(200));
        // Whatever is in the middle of being rekeyed comes to an end.
        for _ in 0..20 {
            if world.ends.iter().all(|end| end.children.len() == 1) {
                break;
            }
            world.run_for(Duration::from_secs(3));
        }
        world.assert_mirrored();
        rekeyed += usize::from(!world.ends[0].children.is_empty());
        let moved = world.ends[0]
            .commands
            .iter()
            .any(|command| matches!(command, Command::IkeRekeyed { .. }));
        assert!(moved, "seed {seed}");
    }
    assert!(rekeyed >= 190, "{rekeyed}");
}
