//! IKE_FOLLOWUP_KE by a peer that knows the keys, but not the rules, in both roles.

use ::core::time::Duration;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::crypto::{DhGroup, KeyGenerator};
use towpath_base::ids::Spi;
use towpath_base::sa::EspSuite;
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_crypto::IkeCrypto;

use super::defects::{chain, deliver, forge, installed, state};
use super::tests::{Ends, NOW, after_with, commands, ends, policy};
use crate::choose::offer_esp;
use crate::command::Command;
use crate::config::{Config, Policy};
use crate::protect::unprotect;
use crate::sa::State;
use crate::wire::{ExchangeType, NotifyType, Payload, Transform, TransformType, parse_payloads};

fn hybrid() -> Policy {
    Policy {
        ike_proposals: vec!["aes256gcm16-prfsha256-x25519-ke1_mlkem768".parse().unwrap()],
        ..policy()
    }
}

/// Established, with nothing left to say.
fn pair() -> Ends {
    let config = Config {
        fragment_size: 0,
        ..Config::default()
    };
    let mut pair = after_with(config, hybrid, 6);
    for end in &mut pair {
        commands(end);
        assert!(end.poll_transmit().is_none());
    }
    pair
}

fn ke(group: u16, data: Vec<u8>) -> Payload<'static> {
    Payload::Ke {
        group,
        data: data.into(),
    }
}

fn add_ke(link: &[u8]) -> Payload<'static> {
    Payload::notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, link.to_vec())
}

fn public(group: DhGroup) -> Vec<u8> {
    IkeCrypto.initiate(group, &mut SeededRng::new(9)).unwrap().1
}

/// CREATE_CHILD_SA for one more CHILD SA, with these additional key exchanges.
fn request(additional: &[(TransformType, u16)]) -> Vec<Payload<'static>> {
    let [ours, theirs] = ends().map(|end| TrafficSelector::host(end.ip()));
    let mut offer = offer_esp(&[EspSuite::Aes256Gcm16], false, Spi(0x1000));
    let ids = [(TransformType::KE, 31)];
    for (kind, id) in ids.iter().chain(additional) {
        offer[0].transforms.push(Transform::new(*kind, *id));
    }
    vec![
        Payload::Sa(offer),
        Payload::Nonce(vec![7; 32].into()),
        ke(31, public(DhGroup::X25519)),
        Payload::TsI(vec![ours]),
        Payload::TsR(vec![theirs]),
    ]
}

const ML_KEM: [(TransformType, u16); 1] = [(TransformType::ADDKE1, 36)];

/// What end `from` says next, opened.
fn said(pair: &mut Ends, from: usize) -> Vec<Payload<'static>> {
    let datagram = pair[from].poll_transmit().unwrap();
    let keys = pair[from].sas.values().next().unwrap().keys.clone().unwrap();
    let sk = if from == 0 { &keys.sk_i } else { &keys.sk_r };
    let inside = unprotect(&IkeCrypto, sk, &datagram.payload).unwrap();
    let payloads = parse_payloads(inside.first, &inside.text).unwrap();
    let owned = payloads.into_iter().filter_map(|payload| match payload {
        Payload::Notify(notify) => Some(Payload::notify(notify.kind, notify.data.to_vec())),
        Payload::Ke { group, data } => Some(ke(group, data.to_vec())),
        Payload::Nonce(nonce) => Some(Payload::Nonce(nonce.to_vec().into())),
        Payload::Sa(proposals) => Some(Payload::Sa(proposals)),
        Payload::TsI(selectors) => Some(Payload::TsI(selectors)),
        Payload::TsR(selectors) => Some(Payload::TsR(selectors)),
        _ => None,
    });
    owned.collect()
}

fn notified(payloads: &[Payload<'_>], wanted: NotifyType) -> Option<Vec<u8>> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == wanted => Some(notify.data.to_vec()),
        _ => None,
    })
}

/// A asks B; gives B's answer.
fn ask(pair: &mut Ends, exchange: ExchangeType, id: u32, payloads: &[Payload<'_>]) -> Vec<Payload<'static>> {
    let message = forge(pair, 0, exchange, false, id, chain(payloads));
    let _ = deliver(pair, 1, &message);
    said(pair, 1)
}

/// B with one CREATE_CHILD_SA answered, message 3, and its link.
fn begun() -> (Ends, Vec<u8>) {
    let mut pair = pair();
    let answer = ask(&mut pair, ExchangeType::CREATE_CHILD_SA, 3, &request(&ML_KEM));
    let link = notified(&answer, NotifyType::ADDITIONAL_KEY_EXCHANGE).unwrap();
    assert_eq!(
        installed(&commands(&mut pair[1])),
        0,
        "nothing before the last secret"
    );
    (pair, link)
}

#[test]
fn a_series_makes_its_sa_once_and_with_its_last_message() {
    let (mut pair, link) = begun();
    let last = [ke(36, public(DhGroup::MlKem768)), add_ke(&link)];
    let answer = ask(&mut pair, ExchangeType::IKE_FOLLOWUP_KE, 4, &last);
    assert!(
        matches!(&answer[..], [Payload::Ke { group: 36, .. }]),
        "{answer:?}"
    );
    assert_eq!(installed(&commands(&mut pair[1])), 1);
    let answer = ask(&mut pair, ExchangeType::IKE_FOLLOWUP_KE, 5, &last);
    assert!(
        notified(&answer, NotifyType::STATE_NOT_FOUND).is_some(),
        "{answer:?}"
    );
    assert_eq!(commands(&mut pair[1]), []);
}

#[test]
fn what_continues_nothing_is_told_so_and_changes_nothing() {
    let (mut pair, link) = begun();
    let mut other = link.clone();
    other[0] ^= 1;
    let key = public(DhGroup::MlKem768);
    let cases = [
        vec![ke(36, key.clone())],
        vec![ke(36, key.clone()), add_ke(&[])],
        vec![ke(36, key.clone()), add_ke(&other)],
        vec![ke(36, key.clone()), add_ke(&[0; 300])],
        vec![],
    ];
    for (id, payloads) in (4..).zip(cases) {
        let answer = ask(&mut pair, ExchangeType::IKE_FOLLOWUP_KE, id, &payloads);
        assert!(
            notified(&answer, NotifyType::STATE_NOT_FOUND).is_some(),
            "{answer:?}"
        );
        assert_eq!(commands(&mut pair[1]), []);
    }
    // The series itself goes on.
    ask(
        &mut pair,
        ExchangeType::IKE_FOLLOWUP_KE,
        9,
        &[ke(36, key), add_ke(&link)],
    );
    assert_eq!(installed(&commands(&mut pair[1])), 1);
}

#[test]
fn a_bad_key_share_ends_its_series() {
    let key = public(DhGroup::MlKem768);
    let cases = [
        vec![],
        vec![ke(36, Vec::new())],
        vec![ke(36, key[..1183].to_vec())],
        vec![ke(36, [&key[..], &[0]].concat())],
        // Coefficients that are not reduced.
        vec![ke(36, vec![0xff; 1184])],
        vec![ke(31, public(DhGroup::X25519))],
        vec![ke(36, key.clone()), ke(36, key.clone())],
    ];
    for payloads in cases {
        let (mut pair, link) = begun();
        let spis = pair[1].core.esp_spis_in_use();
        let bad = [payloads, vec![add_ke(&link)]].concat();
        let answer = ask(&mut pair, ExchangeType::IKE_FOLLOWUP_KE, 4, &bad);
        assert!(
            notified(&answer, NotifyType::INVALID_SYNTAX).is_some(),
            "{answer:?}"
        );
        assert_eq!(commands(&mut pair[1]), []);
        assert_eq!(state(&pair, 1), State::Established);
        let twice = bad
            .iter()
            .filter(|payload| matches!(payload, Payload::Ke { .. }))
            .count()
            > 1;
        // Two of a kind are no message of the series at all.
        assert_eq!(
            pair[1].core.esp_spis_in_use(),
            if twice { spis } else { spis - 1 }
        );
        let good = [ke(36, key.clone()), add_ke(&link)];
        ask(&mut pair, ExchangeType::IKE_FOLLOWUP_KE, 5, &good);
        assert_eq!(installed(&commands(&mut pair[1])), usize::from(twice));
    }
}

/// A peer that begins and begins: a few are kept, for a while.
#[test]
fn series_that_are_not_gone_on_with_cost_little_and_are_forgotten() {
    let mut pair = pair();
    let before = pair[1].core.esp_spis_in_use();
    for id in 3..200 {
        ask(&mut pair, ExchangeType::CREATE_CHILD_SA, id, &request(&ML_KEM));
        assert!(pair[1].sas.values().next().unwrap().followups.len() <= 4);
        assert!(pair[1].core.esp_spis_in_use() <= before + 4);
    }
    pair[1].handle_timeout(NOW + Duration::from_secs(21));
    assert!(pair[1].sas.values().next().unwrap().followups.is_empty());
    assert_eq!(pair[1].core.esp_spis_in_use(), before);
    assert_eq!(installed(&commands(&mut pair[1])), 0);
}

#[test]
fn additional_exchanges_we_do_not_have_are_not_chosen() {
    use TransformType as T;
    let refused: [&[(T, u16)]; 4] = [
        &[(T::ADDKE1, 35)],
        &[(T::ADDKE1, 36), (T::ADDKE[1], 36)],
        &[(T::ADDKE[6], 36)],
        &[(T(13), 36)],
    ];
    for additional in refused {
        let mut pair = pair();
        let answer = ask(&mut pair, ExchangeType::CREATE_CHILD_SA, 3, &request(additional));
        assert!(
            notified(&answer, NotifyType::NO_PROPOSAL_CHOSEN).is_some(),
            "{answer:?}"
        );
        assert_eq!(commands(&mut pair[1]), []);
    }
    // NONE is as good as nothing.
    let mut pair = pair();
    ask(
        &mut pair,
        ExchangeType::CREATE_CHILD_SA,
        3,
        &request(&[(T::ADDKE[1], 0)]),
    );
    assert_eq!(installed(&commands(&mut pair[1])), 1);
}

/// A rekeys, of the CHILD SA or itself; B's answer to CREATE_CHILD_SA.
fn rekeying(ike: bool) -> (Ends, Vec<Payload<'static>>) {
    let mut pair = pair();
    let id = *pair[0].sas.keys().next().unwrap();
    let spi_in = pair[0].sas.values().next().unwrap().children[0].spi_in;
    match ike {
        true => pair[0].rekey_ike(NOW, id).unwrap(),
        false => pair[0].rekey_child(NOW, id, spi_in).unwrap(),
    }
    let request = pair[0].poll_transmit().unwrap();
    deliver(&mut pair, 1, &request.payload).unwrap();
    let answer = said(&mut pair, 1);
    commands(&mut pair[0]);
    (pair, answer)
}

fn nothing_came_of_it(pair: &mut Ends, what: &str) {
    let made = |command: &Command| {
        matches!(
            command,
            Command::ChildEstablished { .. } | Command::IkeRekeyed { .. } | Command::ChildDeleted { .. }
        )
    };
    let told = commands(&mut pair[0]);
    assert!(!told.iter().any(made), "{what}: {told:?}");
    assert_eq!(pair[0].sas.len(), 1, "{what}");
    assert_eq!(state(pair, 0), State::Established, "{what}");
    assert_eq!(pair[0].sas.values().next().unwrap().children.len(), 1, "{what}");
    assert_eq!(pair[0].core.esp_spis_in_use(), 1, "{what}");
}

#[test]
fn a_hostile_responder_makes_nothing_of_the_first_half() {
    type Change = fn(&mut Vec<Payload<'static>>);
    let changes: [(&str, Change); 4] = [
        ("no link", |all| {
            all.retain(|payload| !matches!(payload, Payload::Notify(_)))
        }),
        ("another method", |all| {
            for payload in all {
                if let Payload::Sa(proposals) = payload {
                    for transform in &mut proposals[0].transforms {
                        if transform.kind == TransformType::ADDKE1 {
                            transform.id = 31;
                        }
                    }
                }
            }
        }),
        ("a second additional exchange", |all| {
            for payload in all {
                if let Payload::Sa(proposals) = payload {
                    let more = Transform::new(TransformType::ADDKE[1], 36);
                    proposals[0].transforms.push(more);
                }
            }
        }),
        ("no key share", |all| {
            all.retain(|payload| !matches!(payload, Payload::Ke { .. }))
        }),
    ];
    for ike in [false, true] {
        for (what, change) in changes {
            let (mut pair, mut answer) = rekeying(ike);
            change(&mut answer);
            let message = forge(&pair, 1, ExchangeType::CREATE_CHILD_SA, true, 3, chain(&answer));
            let _ = deliver(&mut pair, 0, &message);
            assert!(pair[0].poll_transmit().is_none(), "{what}");
            nothing_came_of_it(&mut pair, what);
        }
    }
}

#[test]
fn a_hostile_responder_makes_nothing_of_the_second_half() {
    for ike in [false, true] {
        let answers = [
            ("nothing", vec![]),
            ("a short ciphertext", vec![ke(36, vec![7; 1087])]),
            ("a long ciphertext", vec![ke(36, vec![7; 1089])]),
            ("another method", vec![ke(31, public(DhGroup::X25519))]),
            (
                "two key shares",
                vec![ke(36, vec![7; 1088]), ke(36, vec![7; 1088])],
            ),
            (
                "a key share and an error",
                vec![ke(36, vec![7; 1088]), Payload::bare(NotifyType::INVALID_SYNTAX)],
            ),
            ("it forgot", vec![Payload::bare(NotifyType::STATE_NOT_FOUND)]),
        ];
        for (what, answer) in answers {
            let (mut pair, first) = rekeying(ike);
            let message = forge(&pair, 1, ExchangeType::CREATE_CHILD_SA, true, 3, chain(&first));
            deliver(&mut pair, 0, &message).unwrap();
            assert!(pair[0].poll_transmit().is_some(), "IKE_FOLLOWUP_KE");
            let message = forge(&pair, 1, ExchangeType::IKE_FOLLOWUP_KE, true, 4, chain(&answer));
            let _ = deliver(&mut pair, 0, &message);
            nothing_came_of_it(&mut pair, what);
        }
    }
}
