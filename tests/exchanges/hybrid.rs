//! An additional key exchange before AUTH, and messages in pieces.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use towpath_ike::{Config, FailReason, Policy, Transmit};

use crate::pki::{Kind, below, certified, leaf, root, signer, trusting};
use crate::world::*;

fn proposing(text: &str) -> Policy {
    Policy {
        ike_proposals: vec![proposal(text)],
        ..policy()
    }
}

/// Everything protected goes in pieces.
fn small() -> Config {
    Config {
        fragment_size: 400,
        ..quiet()
    }
}

fn established(world: &mut World) {
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
}

/// ```text
/// --> SA, KE, Ni, N(INTERMED_SUP)
/// <-- SA, KE, Nr, N(INTERMED_SUP)
/// --> SK { KE }        (ML-KEM encapsulation key)
/// <-- SK { KE }        (ciphertext)
/// --> SK { IDi, AUTH, … }
/// <-- SK { IDr, AUTH, … }
/// ```
#[test]
fn ml_kem_is_exchanged_before_anybody_says_who_it_is() {
    let mut world = World::pair(1, proposing(HYBRID), proposing(HYBRID));
    established(&mut world);
    let short: Vec<_> = world
        .trace
        .iter()
        .map(|line| line.split(" N(").next().unwrap())
        .collect();
    assert_eq!(
        short,
        [
            "A --> IKE_SA_INIT request 0 [ SA KE No",
            "B --> IKE_SA_INIT response 0 [ SA KE No",
            "A --> IKE_INTERMEDIATE request 1 [ KE ]",
            "B --> IKE_INTERMEDIATE response 1 [ KE ]",
            "A --> IKE_AUTH request 2 [ IDi AUTH",
            "B --> IKE_AUTH response 2 [ IDr AUTH SA TSi TSr",
        ]
    );
    let suite = world.ends[0]
        .endpoint
        .list(world.now)
        .next()
        .unwrap()
        .suite
        .unwrap();
    assert_eq!(suite.to_string(), HYBRID);
    // Both ends rekey the IKE SA and the CHILD SA.
    for end in [0, 1] {
        let ike = ike_of(&world.ends[end], world.now);
        world.ends[end].endpoint.rekey_ike(world.now, ike).unwrap();
        world.collect(end);
        world.rest();
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
    }
}

#[test]
fn the_additional_exchange_is_left_out_only_where_both_agree_to() {
    let plain = "aes256gcm16-prfsha256-x25519";
    let optional = "aes256gcm16-prfsha256-x25519-ke1_mlkem768-ke1_none";
    for (a, b, expected) in [
        (HYBRID, optional, Some(true)),
        (optional, HYBRID, Some(true)),
        (optional, optional, Some(true)),
        (optional, plain, Some(false)),
        (plain, optional, Some(false)),
        (HYBRID, plain, None),
        (plain, HYBRID, None),
    ] {
        let mut world = World::pair(1, proposing(a), proposing(b));
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.rest();
        let done = world.trace.iter().any(|line| line.contains("IKE_INTERMEDIATE"));
        let up = !world.ends[0].children.is_empty();
        assert_eq!(up.then_some(done), expected, "{a} {b} {:#?}", world.trace);
        if !up {
            assert_eq!(failures(&world.ends[0])[0].1, FailReason::NoProposalChosen);
        }
    }
}

/// Any one datagram lost, then any one sent twice.
#[test]
fn no_single_loss_or_copy_harms_an_exchange_in_pieces() {
    let ca = root(Kind::P256);
    let both = || Policy {
        ike_proposals: vec![proposal(HYBRID)],
        ..certified(&ca, Kind::Rsa)
    };
    let (a, b) = (both(), both());
    let mut world = World::pair_with(1, small(), a.clone(), b.clone());
    established(&mut world);
    let count = world.sent.len();
    assert!(count > 12, "{count} datagrams");
    assert!(
        world.sent[2..]
            .iter()
            .all(|datagram| datagram.payload.len() <= Config::default().fragment_size)
    );
    for lost in 0..count {
        let mut world = World::pair_with(1, small(), a.clone(), b.clone());
        let mut number = 0;
        world.filter = Some(Box::new(move |_: &Transmit| {
            number += 1;
            number != lost + 1
        }));
        established(&mut world);
    }
    for doubled in 0..count {
        let mut world = World::pair_with(1, small(), a.clone(), b.clone());
        let copy = Rc::new(RefCell::new(None));
        let (seen, mut number) = (copy.clone(), 0);
        world.filter = Some(Box::new(move |datagram: &Transmit| {
            number += 1;
            if number == doubled + 1 {
                *seen.borrow_mut() = Some(datagram.clone());
            }
            true
        }));
        world.initiate(1, v4(1), v4(2)).unwrap();
        while world.step(world.now + Duration::from_secs(60)) {
            if let Some(datagram) = copy.borrow_mut().take() {
                world.post(datagram);
            }
        }
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
    }
}

#[test]
fn storms_of_pieces_leave_both_ends_or_neither() {
    let ca = root(Kind::P256);
    let both = Policy {
        ike_proposals: vec![proposal(HYBRID)],
        ..certified(&ca, Kind::P256)
    };
    let mut up = 0;
    for seed in 0..300 {
        let mut world = World::pair_with(seed, small(), both.clone(), both.clone());
        world.weather = Weather {
            loss: 60,
            copies: 100,
            jitter: Duration::from_millis(40),
        };
        world.initiate(1, v4(1), v4(2)).unwrap();
        world.run_for(Duration::from_secs(200));
        world.weather = Weather::FAIR;
        world.rest();
        if world.ends.iter().all(|end| end.children.len() == 1) {
            world.assert_mirrored();
            up += 1;
        }
    }
    assert!(up >= 290, "{up} of 300 came up");
}

/// A chain of four RSA certificates: more than five kilobytes each way.
#[test]
fn a_large_chain_passes_in_pieces_and_not_to_a_peer_that_takes_none() {
    let ca = root(Kind::Rsa);
    let one = below(&ca, "one", Kind::Rsa);
    let two = below(&one, "two", Kind::Rsa);
    let three = below(&two, "three", Kind::Rsa);
    let policy = || {
        let mut credential = leaf(&three, "host.test", Kind::Rsa);
        credential
            .chain
            .extend([&three, &two, &one].map(|ca| ca.der().to_vec()));
        Policy {
            auth: trusting(signer(&credential), &ca),
            ..policy()
        }
    };
    let mut world = World::pair(1, policy(), policy());
    established(&mut world);
    let pieces: Vec<_> = world.sent[2..]
        .iter()
        .map(|datagram| datagram.payload.len())
        .collect();
    assert!(
        pieces.len() >= 6 && pieces.iter().all(|len| *len <= 1228),
        "{pieces:?}"
    );
    // Where one side does not take pieces, messages go whole.
    let mut world = World::new(1);
    let whole = Config {
        fragment_size: 0,
        ..quiet()
    };
    world.add(quiet(), Some(policy()), &[v4(1)]);
    world.add(whole, Some(policy()), &[v4(2)]);
    established(&mut world);
    assert_eq!(world.sent.len(), 4);
    assert!(world.sent[2].payload.len() > 3000);
}

/// Every byte of every piece changed once: refused, and the exchange goes on.
#[test]
fn forged_pieces_change_nothing() {
    let ca = root(Kind::P256);
    let both = certified(&ca, Kind::P256);
    let config = Config {
        fragment_size: 500,
        ..quiet()
    };
    let mut world = World::pair_with(1, config, both.clone(), both);
    let forged = Rc::new(RefCell::new(Vec::new()));
    let mut done = BTreeSet::new();
    let sink = forged.clone();
    world.filter = Some(Box::new(move |datagram: &Transmit| {
        if datagram.payload[18] == 35 && done.insert(datagram.payload.clone()) {
            sink.borrow_mut().push(datagram.clone());
        }
        true
    }));
    world.initiate(1, v4(1), v4(2)).unwrap();
    let mut count = 0;
    while world.step(world.now + Duration::from_secs(60)) {
        for datagram in std::mem::take(&mut *forged.borrow_mut()) {
            for at in 0..datagram.payload.len() {
                let mut bad = datagram.clone();
                bad.payload[at] ^= 0x40;
                let end = usize::from(bad.destination.ip() == v4(2));
                world.deliver(end, &bad);
                count += 1;
            }
        }
    }
    assert!(count > 1000);
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
}
