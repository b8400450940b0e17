//! IKE_FOLLOWUP_KE (RFC 9370 §2.2.4): ML-KEM-768 once more in every rekeying.

use std::time::Duration;

use towpath_base::Spi;
use towpath_base::sa::Lifetime;
use towpath_ike::{Config, FailReason, IkeState, Policy, Retransmit, Transmit};

use crate::world::*;

const PATIENCE: Duration = Duration::from_secs(3);
/// Exchange type of IKE_FOLLOWUP_KE in byte 18 of the header, and of CREATE_CHILD_SA.
const FOLLOWUP: u8 = 44;
const CREATE: u8 = 36;

fn fresh() -> Config {
    Config { pfs: true, ..quiet() }
}

fn established(seed: u64, a: Config, b: Config, policy: Policy) -> World {
    let waits = !b.ready_within.is_zero();
    let mut world = World::new(seed);
    world.add(a, Some(policy.clone()), &[v4(1)]);
    world.add(b, Some(policy), &[v4(2)]);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_millis(if waits { 3500 } else { 200 }));
    world.only_children();
    world.trace.clear();
    for end in &mut world.ends {
        end.commands.clear();
        end.drops.clear();
    }
    world
}

fn pair(seed: u64) -> World {
    established(seed, fresh(), fresh(), hybrid())
}

fn assert_one_of_each(world: &World, what: &str) {
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
    for end in &world.ends {
        let ikes: Vec<_> = end.endpoint.list(world.now).collect();
        assert_eq!(ikes.len(), 1, "{what}: {:#?}", world.trace);
        assert_eq!(ikes[0].state, IkeState::Established, "{what}");
        assert_eq!(ikes[0].suite.unwrap().to_string(), HYBRID, "{what}");
    }
}

fn count(world: &World, text: &str) -> usize {
    world.trace.iter().filter(|line| line.contains(text)).count()
}

/// Without the number of the message, which goes on counting.
fn short(world: &World) -> Vec<String> {
    let line = |line: &String| {
        let words: Vec<_> = line.split(' ').collect();
        [&words[..4], &words[5..]].concat().join(" ")
    };
    world.trace.iter().map(line).collect()
}

/// ```text
/// --> CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }
/// <-- CREATE_CHILD_SA { SA, Nr, KEr, TSi, TSr, N(ADDITIONAL_KEY_EXCHANGE) }
/// --> IKE_FOLLOWUP_KE { KEi(1), N(ADDITIONAL_KEY_EXCHANGE) }      (ML-KEM encapsulation key)
/// <-- IKE_FOLLOWUP_KE { KEr(1) }                                  (ciphertext)
/// --> INFORMATIONAL { D }
/// <-- INFORMATIONAL { D }
/// ```
#[test]
fn ml_kem_is_repeated_when_a_child_sa_is_rekeyed() {
    for (by, me, peer) in [(0, "A", "B"), (1, "B", "A")] {
        let mut world = pair(1);
        let old = world.only_children();
        rekey_child(&mut world, by, old[by].spi_in);
        world.rest();
        let expected = [
            (
                me,
                "CREATE_CHILD_SA request [ N(REKEY_SA) SA No KE TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
            ),
            (
                peer,
                "CREATE_CHILD_SA response [ SA No KE TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) N(ADD_KE) ]",
            ),
            (me, "IKE_FOLLOWUP_KE request [ KE N(ADD_KE) ]"),
            (peer, "IKE_FOLLOWUP_KE response [ KE ]"),
            (me, "INFORMATIONAL request [ D ]"),
            (peer, "INFORMATIONAL response [ D ]"),
        ];
        assert_eq!(
            short(&world),
            expected.map(|(end, line)| format!("{end} --> {line}"))
        );
        assert_one_of_each(&world, me);
        let [a, _] = world.only_children();
        assert_ne!(a.spi_in, old[0].spi_in);
        assert_ne!(a.keys_in, old[0].keys_in);
    }
}

/// ```text
/// --> CREATE_CHILD_SA { SA, Ni, KEi }
/// <-- CREATE_CHILD_SA { SA, Nr, KEr, N(ADDITIONAL_KEY_EXCHANGE) }
/// --> IKE_FOLLOWUP_KE { KEi(1), N(ADDITIONAL_KEY_EXCHANGE) }
/// <-- IKE_FOLLOWUP_KE { KEr(1) }
/// --> INFORMATIONAL { D }
/// <-- INFORMATIONAL { }
/// ```
#[test]
fn ml_kem_is_repeated_when_the_ike_sa_is_rekeyed() {
    for (by, me, peer) in [(0, "A", "B"), (1, "B", "A")] {
        let mut world = pair(1);
        let old = world.only_children();
        rekey_ike(&mut world, by);
        world.rest();
        let expected = [
            (me, "CREATE_CHILD_SA request [ SA No KE ]"),
            (peer, "CREATE_CHILD_SA response [ SA No KE N(ADD_KE) ]"),
            (me, "IKE_FOLLOWUP_KE request [ KE N(ADD_KE) ]"),
            (peer, "IKE_FOLLOWUP_KE response [ KE ]"),
            (me, "INFORMATIONAL request [ D ]"),
            (peer, "INFORMATIONAL response [ ]"),
        ];
        assert_eq!(
            short(&world),
            expected.map(|(end, line)| format!("{end} --> {line}"))
        );
        assert_one_of_each(&world, me);
        assert_eq!(world.only_children(), old);
        // The new IKE SA is good for another round, of either kind, by the other side.
        rekey_ike(&mut world, 1 - by);
        world.rest();
        rekey_child(&mut world, 1 - by, old[1 - by].spi_in);
        world.rest();
        assert_one_of_each(&world, me);
    }
}

/// An IKE SA that came about without an additional key exchange is rekeyed without; so is a CHILD SA without a key
/// exchange of its own.
#[test]
fn what_had_no_ml_kem_gets_none_by_rekeying() {
    let optional = Policy {
        ike_proposals: vec![proposal("aes256gcm16-prfsha256-x25519-ke1_mlkem768-ke1_none")],
        ..policy()
    };
    let mut world = World::pair_with(1, fresh(), optional, policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_millis(200));
    for by in [0, 1] {
        let old = world.only_children();
        rekey_child(&mut world, by, old[by].spi_in);
        world.rest();
        rekey_ike(&mut world, by);
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
        assert_ne!(a.spi_in, old[0].spi_in);
    }
    assert_eq!(count(&world, "IKE_FOLLOWUP_KE"), 0);
    let mut world = established(1, quiet(), fresh(), hybrid());
    let old = world.only_children();
    rekey_child(&mut world, 0, old[0].spi_in);
    world.rest();
    assert_one_of_each(&world, "no second key exchange");
    assert_eq!((count(&world, "IKE_FOLLOWUP_KE"), count(&world, " KE ")), (0, 0));
}

/// ```text
/// A: CREATE_CHILD_SA { N(REKEY_SA) SA Ni1 KE .. }  --> <--  B: CREATE_CHILD_SA { N(REKEY_SA) SA Ni2 KE .. }
/// A: response { SA Nr2 KE .. N(ADD_KE) }           --> <--  B: response { SA Nr1 KE .. N(ADD_KE) }
///    the side whose exchange had the lowest nonce stops; the other one goes on:
///    IKE_FOLLOWUP_KE { KE N(ADD_KE) }  -->  <-- { KE }, INFORMATIONAL { D } for the old one
/// ```
#[test]
fn of_crossing_rekeyings_one_goes_on_to_ml_kem() {
    let acts: [fn(&mut World, usize, Spi); 2] = [rekey_child, |world, end, _| rekey_ike(world, end)];
    for (kind, act) in acts.iter().enumerate() {
        let mut winners = [0, 0];
        for seed in 0..60 {
            let mut world = pair(seed);
            let old = world.only_children();
            act(&mut world, 0, old[0].spi_in);
            act(&mut world, 1, old[1].spi_in);
            world.run_for(Duration::from_secs(2));
            assert_one_of_each(&world, "crossed");
            assert_eq!(count(&world, "IKE_FOLLOWUP_KE request"), 1, "{:#?}", world.trace);
            assert_eq!(
                count(&world, "request") - count(&world, "CREATE_CHILD_SA request"),
                2
            );
            winners[usize::from(count(&world, "A --> IKE_FOLLOWUP_KE request") == 1)] += 1;
            let deleted = world.only_children()[0].spi_in != old[0].spi_in;
            assert_eq!(deleted, kind == 0);
            // The side that stopped does not come back to it.
            world.run_for(Duration::from_secs(60));
            assert_eq!(count(&world, "CREATE_CHILD_SA request"), 2, "{:#?}", world.trace);
        }
        assert!(winners.iter().all(|count| *count > 10), "{winners:?}");
    }
}

/// One side makes no second key exchange: its SA comes about at once, and the nonces decide all the same.
#[test]
fn a_rekeying_with_ml_kem_may_cross_one_without() {
    for seed in 0..60 {
        let mut world = established(seed, fresh(), quiet(), hybrid());
        let old = world.only_children();
        rekey_child(&mut world, 0, old[0].spi_in);
        rekey_child(&mut world, 1, old[1].spi_in);
        world.run_for(Duration::from_secs(60));
        assert_one_of_each(&world, "mixed");
        assert_ne!(world.only_children()[0].spi_in, old[0].spi_in);
    }
}

/// Drops what `lost` picks until then.
fn deaf(world: &mut World, lost: impl Fn(&Transmit) -> bool + 'static) {
    world.filter = Some(Box::new(move |datagram: &Transmit| !lost(datagram)));
}

/// RFC 9370 §2.2.4: a request for what is in the middle of its key exchanges is put off.
#[test]
fn a_request_that_comes_during_the_key_exchanges_is_put_off() {
    let acts: [fn(&mut World, usize, Spi); 2] = [rekey_child, |world, end, _| rekey_ike(world, end)];
    for act in acts {
        let mut world = pair(1);
        let old = world.only_children();
        let request =
            |datagram: &Transmit| datagram.payload[18] == CREATE && datagram.payload[19] & 0x20 == 0;
        // A's request arrives, B's does not; then A waits for its IKE_FOLLOWUP_KE to be answered.
        deaf(&mut world, move |datagram| {
            datagram.payload[18] == FOLLOWUP || datagram.source.ip() == v4(2) && request(datagram)
        });
        act(&mut world, 0, old[0].spi_in);
        act(&mut world, 1, old[1].spi_in);
        world.run_for(Duration::from_millis(100));
        assert_eq!(count(&world, "IKE_FOLLOWUP_KE request"), 1);
        deaf(&mut world, |datagram| datagram.payload[18] == FOLLOWUP);
        world.run_for(Duration::from_millis(1200));
        assert_eq!(count(&world, "N(TEMP_FAIL)"), 1, "{:#?}", world.trace);
        world.filter = None;
        world.run_for(Duration::from_secs(100));
        assert_one_of_each(&world, "put off");
        assert_eq!(
            count(&world, "B --> IKE_FOLLOWUP_KE request"),
            0,
            "{:#?}",
            world.trace
        );
    }
}

/// ```text
/// --> IKE_FOLLOWUP_KE { KE, N(ADD_KE) }       (after more than 20 seconds)
/// <-- IKE_FOLLOWUP_KE { N(STATE_NOT_FOUND) }
///     from the beginning, a little later
/// ```
#[test]
fn a_responder_that_forgot_is_asked_again() {
    let acts: [fn(&mut World, usize, Spi); 2] = [rekey_child, |world, end, _| rekey_ike(world, end)];
    for (kind, act) in acts.iter().enumerate() {
        for by in [0, 1] {
            let mut world = pair(1);
            let old = world.only_children();
            let ike = ike_of(&world.ends[0], world.now);
            deaf(&mut world, |datagram| datagram.payload[18] == FOLLOWUP);
            act(&mut world, by, old[by].spi_in);
            world.run_for(Duration::from_secs(25));
            world.filter = None;
            world.run_for(Duration::from_secs(60));
            assert_eq!(count(&world, "N(STATE_NOT_FOUND)"), 1, "{:#?}", world.trace);
            assert_one_of_each(&world, "forgotten once");
            let replaced = match kind {
                0 => world.only_children()[0].spi_in != old[0].spi_in,
                _ => ike_of(&world.ends[0], world.now) != ike,
            };
            assert!(replaced, "{:#?}", world.trace);
        }
    }
}

/// RFC 9370 §2.2.4: after several of these the IKE SA is deleted.
#[test]
fn a_responder_that_always_forgets_is_given_up() {
    let forgetful = Config {
        followup_within: Duration::from_millis(1),
        ..fresh()
    };
    let lasting = Policy {
        lifetime: Lifetime::default(),
        ..hybrid()
    };
    let mut world = established(1, fresh(), forgetful, lasting);
    rekey_ike(&mut world, 0);
    world.run_for(Duration::from_secs(60));
    assert_eq!(count(&world, "N(STATE_NOT_FOUND)"), 3, "{:#?}", world.trace);
    assert_eq!(closed(&world.ends[0]), [FailReason::Notify(47)]);
    assert_eq!(closed(&world.ends[1]), [FailReason::DeletedByPeer]);
    assert!(world.ends.iter().all(|end| end.children.is_empty()));
}

/// The answer with the last secret waits for whoever installs the keys, and so does the Delete.
#[test]
fn nothing_is_broken_before_the_owner_is_ready() {
    let patient = || Config {
        ready_within: PATIENCE,
        ..fresh()
    };
    let mut world = established(1, patient(), patient(), hybrid());
    let old = world.only_children();
    rekey_child(&mut world, 0, old[0].spi_in);
    world.run_for(Duration::from_secs(1));
    let held = |world: &World| [0, 1].map(|end: usize| world.ends[end].children.len());
    assert_eq!(held(&world), [1, 2], "{:#?}", world.trace);
    for (end, other) in [(1, 0), (0, 1)] {
        let spis = world.ends[end].children.values().map(|child| child.spi_in);
        let new = spis.into_iter().find(|spi| *spi != old[end].spi_in).unwrap();
        let ike = ike_of(&world.ends[end], world.now);
        let now = world.now;
        world.ends[end].endpoint.child_ready(now, ike, new).unwrap();
        world.collect(end);
        world.run_for(Duration::from_millis(500));
        assert_eq!(world.ends[other].children.len(), if end == 1 { 2 } else { 1 });
    }
    assert_one_of_each(&world, "ready");
}

/// The CHILD SAs go to a new IKE SA between the two exchanges: the series cannot go on there, and begins anew.
#[test]
fn rekeyings_of_both_kinds_at_any_distance_leave_one_of_each() {
    for seed in 0..300 {
        let config = |end: u64| Config {
            ready_within: PATIENCE * (seed as u32 % 2),
            pfs: !(seed / 7 + end).is_multiple_of(4),
            // Retransmissions go on until the weather is fair.
            retransmit: Retransmit {
                transmissions: 12,
                ..Config::default().retransmit
            },
            ..fresh()
        };
        let mut world = established(seed, config(0), config(1), hybrid());
        let [apart, foul, fair] = [
            Duration::from_millis(seed % 90),
            Duration::from_secs(60),
            Duration::from_secs(150),
        ];
        world.rekey_twice(seed, apart, foul, fair);
        let what = format!("seed {seed}");
        assert_one_of_each(&world, &what);
        assert!(
            world
                .ends
                .iter()
                .all(|end| closed(end).iter().all(|why| *why == FailReason::Rekeyed))
        );
    }
}
