//! Limits: what strangers get when there are many of them, and what they are told.

use towpath_base::profile::Psk;
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant};
use towpath_crypto::IkeCrypto;
use towpath_ike::{Budget, BudgetId, Command, Config, Endpoint, FailReason, Initiate, Transmit};

use crate::world::*;

const NOW: Instant = Instant::from_secs(1);

fn endpoint(seed: u64, config: Config) -> Endpoint<IkeCrypto, SeededRng> {
    Endpoint::new(config, IkeCrypto, SeededRng::new(seed))
}

fn wish(tag: u64) -> Initiate {
    Initiate {
        tag,
        local: v4(1),
        remote: v4(2),
        remote_port: None,
        policy: policy(),
    }
}

fn first_request(seed: u64) -> Transmit {
    let mut initiator = endpoint(seed, quiet());
    initiator.initiate(NOW, wish(1)).unwrap();
    initiator.poll_transmit().unwrap()
}

/// Takes what an endpoint has to say, and says no to whoever asks.
fn drain(endpoint: &mut Endpoint<IkeCrypto, SeededRng>) -> Vec<Transmit> {
    while let Some(command) = endpoint.poll_command() {
        drop(command);
    }
    std::iter::from_fn(|| endpoint.poll_transmit()).collect()
}

/// Above the second threshold a puzzle comes with the cookie (RFC 8019).
///
/// ```text
/// IKE_SA_INIT { SA KE No … }                 -->
///                                            <--  { N(COOKIE) N(PUZZLE) }
/// { N(COOKIE) PS SA KE No … }                -->
/// ```
#[test]
fn an_initiator_solves_the_puzzle_it_is_set() {
    let strict = Config {
        cookie_threshold: 0,
        puzzle_threshold: 0,
        puzzle_difficulty: 8,
        unsolved_per_second: 0,
        ..quiet()
    };
    let mut world = World::pair_with(1, strict, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    world.only_children();
    assert!(
        world.trace[1].starts_with("A --> IKE_SA_INIT request 0 [ N(COOKIE) (54) SA KE No"),
        "{:?}",
        world.trace
    );
}

#[test]
fn initiators_that_do_not_know_puzzles_are_let_in_slowly() {
    let config = |unsolved_per_second, puzzle_accept| Config {
        cookie_threshold: 0,
        puzzle_threshold: 0,
        unsolved_per_second,
        puzzle_accept,
        ..quiet()
    };
    for (per_second, expected) in [(0, 0), (1, 1)] {
        let mut world = World::new(1);
        world.add(config(per_second, 0), Some(policy()), &[v4(1)]);
        world.add(config(per_second, 0), Some(policy()), &[v4(2)]);
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.rest();
        assert_eq!(world.ends[0].children.len(), expected);
        assert!(!world.trace.iter().any(|line| line.contains("(54)")));
    }
}

#[test]
fn an_operators_share_does_not_take_from_the_others() {
    let [ours, theirs] = [BudgetId(1), BudgetId(2)];
    let mut responder = endpoint(1, quiet());
    responder.limit(
        ours,
        Budget {
            ike_sas: 3,
            half_open: 2,
        },
    );
    let mut refused = 0;
    for seed in 0..10 {
        let budget = if seed < 5 { ours } else { theirs };
        let mut request = first_request(seed);
        request.source.set_ip(v4(100 + seed as u8));
        responder
            .handle_datagram(NOW, request.source, request.destination, &request.payload)
            .unwrap();
        while let Some(command) = responder.poll_command() {
            match command {
                Command::NeedPolicy { request, .. } => {
                    responder.provide_policy_within(NOW, request, Some(policy()), budget);
                }
                Command::Failed { reason, .. } => {
                    assert_eq!(reason, FailReason::Budget);
                    refused += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!((responder.used(ours), responder.used(theirs), refused), (2, 5, 3));
}

#[test]
fn messages_under_unknown_spis_and_versions_are_answered_a_few_times() {
    let mut world = World::pair(1, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let auth = world.sent[2].clone();
    let responder = &mut world.ends[1].endpoint;
    let mut answers = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut payload = auth.payload.clone();
        change(&mut payload);
        let result = responder.handle_datagram(world.now, auth.source, auth.destination, &payload);
        (result, drain(responder))
    };
    // Another responder SPI: N(INVALID_IKE_SPI), the request's SPIs, exchange and message ID, response flag.
    let (result, sent) = answers(&|payload| payload[15] ^= 1);
    assert_eq!(result, Err(DropReason::IkeUnknownSpi));
    let [answer] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(
        (answer.source, answer.destination),
        (auth.destination, auth.source)
    );
    assert_eq!(answer.payload[..8], auth.payload[..8]);
    assert_eq!(
        answer.payload[18..20],
        [35, 0x20],
        "IKE_AUTH, response of the responder"
    );
    assert_eq!(answer.payload[20..24], auth.payload[20..24]);
    assert_eq!(answer.payload[28..], [0, 0, 0, 8, 0, 0, 0, 4]);
    // Version 3: N(INVALID_MAJOR_VERSION), in version 2.
    let (result, sent) = answers(&|payload| payload[17] = 0x30);
    assert_eq!(result, Err(DropReason::IkeMalformed));
    assert_eq!(
        (sent[0].payload[17], &sent[0].payload[28..]),
        (0x20, &[0, 0, 0, 8, 0, 0, 0, 5][..])
    );
    // IKEv1, responses, and garbage are not answered.
    for change in [
        |p: &mut Vec<u8>| p[17] = 0x10,
        |p: &mut Vec<u8>| (p[15], p[19]) = (9, 0x28),
        |p: &mut Vec<u8>| p.truncate(20),
    ] {
        assert_eq!(answers(&change).1, []);
    }
    // A flood gets ten answers in this second.
    let flood: usize = (0..1000u32)
        .map(|number| {
            answers(&|payload| payload[8..12].copy_from_slice(&number.to_be_bytes()))
                .1
                .len()
        })
        .sum();
    assert_eq!(flood, Config::default().stray_answers_per_second as usize - 2);
}

/// A wrong key, an unknown identity, and one that is not expected get the same bytes back.
#[test]
fn failures_to_authenticate_look_alike() {
    let mut other_id = policy();
    other_id.local_id = towpath_base::profile::IkeId::Fqdn("stranger.test".into());
    let mut wrong_key = policy();
    wrong_key.psk = Psk::new(b"guess".to_vec());
    let mut wrong_idr = policy();
    wrong_idr.remote_id = Some(towpath_base::profile::IkeId::Fqdn("nobody.test".into()));
    let mut expects = policy();
    expects.remote_id = Some(towpath_base::profile::IkeId::Fqdn("host.test".into()));
    let mut lengths = Vec::new();
    for initiator in [wrong_key, other_id, wrong_idr] {
        let mut world = World::pair(1, initiator, expects.clone());
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.rest();
        assert_eq!(
            world.trace.last().unwrap(),
            "B --> IKE_AUTH response 1 [ N(AUTH_FAILED) ]"
        );
        assert_eq!(
            failures(&world.ends[1]),
            [(None, FailReason::AuthenticationFailed)]
        );
        lengths.push(world.sent.last().unwrap().payload.len());
    }
    assert!(lengths.windows(2).all(|two| two[0] == two[1]), "{lengths:?}");
}
