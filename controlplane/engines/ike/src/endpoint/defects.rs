//! One test for each class of defect that IKE daemons had, by a peer that knows the keys where it helps.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use towpath_base::ids::{MessageId, Spi};
use towpath_base::profile::{IkeId, Psk};
use towpath_base::selector::TrafficSelector;
use towpath_common::DropReason;
use towpath_crypto::IkeCrypto;

use super::tests::{Ends, NOW, after, child_request, commands, ends, policy};
use crate::choose::offer_esp;
use crate::command::{Command, FailReason};
use crate::protect::{Inside, protect};
use crate::sa::State;
use crate::wire::{ExchangeType, HEADER_LEN, Header, Notify, NotifyType, Payload, encode_payloads};

/// A message under the keys of end `from`, its payloads as bytes.
pub(super) fn forge(
    pair: &Ends,
    from: usize,
    exchange: ExchangeType,
    response: bool,
    id: u32,
    inside: Inside,
) -> Vec<u8> {
    let sa = pair[from].sas.values().next().unwrap();
    let header = Header {
        next_payload: 0,
        ..sa.header(exchange, response, MessageId(id))
    };
    let keys = sa.keys.as_ref().unwrap();
    let sk = if from == 0 { &keys.sk_i } else { &keys.sk_r };
    protect(&IkeCrypto, sk, &[0xfe; 8], header, &inside).unwrap()
}

pub(super) fn chain(payloads: &[Payload<'_>]) -> Inside {
    let mut text = Vec::new();
    encode_payloads(payloads, &mut text);
    Inside {
        first: payloads.first().map_or(0, |payload| payload.kind().0),
        text,
        place: None,
    }
}

pub(super) fn deliver(pair: &mut Ends, to: usize, message: &[u8]) -> Result<(), DropReason> {
    let [a, b] = ends();
    let (source, destination) = if to == 1 { (a, b) } else { (b, a) };
    pair[to].handle_datagram(NOW, source, destination, message)
}

pub(super) fn installed(commands: &[Command]) -> usize {
    let is = |command: &&Command| matches!(command, Command::ChildEstablished { .. });
    commands.iter().filter(is).count()
}

pub(super) fn state(pair: &Ends, end: usize) -> State {
    pair[end].sas.values().next().unwrap().state
}

/// CVE-2021-45079, CVE-2023-41913 and their kind: nothing but proof leads to an SA, whichever state it is sent in.
#[test]
fn create_child_sa_before_auth_makes_nothing_in_any_state() {
    // Messages delivered, who receives, and the state it is in and stays in.
    let cases = [
        (2, 0, State::AuthSent),
        (2, 1, State::InitAnswered),
        (3, 0, State::AuthSent),
    ];
    for (messages, to, expected) in cases {
        for exchange in [ExchangeType::CREATE_CHILD_SA, ExchangeType::INFORMATIONAL] {
            for response in [false, true] {
                for id in 0..4 {
                    let mut pair = after(messages);
                    commands(&mut pair[to]);
                    assert_eq!(state(&pair, to), expected);
                    let message = forge(&pair, 1 - to, exchange, response, id, chain(&child_request()));
                    let result = deliver(&mut pair, to, &message);
                    assert!(result.is_err(), "{exchange} to {to} after {messages}: {result:?}");
                    assert_eq!(installed(&commands(&mut pair[to])), 0);
                    assert_eq!(state(&pair, to), expected);
                }
            }
        }
    }
}

/// CVE-2022-40617's neighbourhood: nobody asked for EAP.
#[test]
fn unexpected_eap_proves_nothing() {
    let eap = Payload::Unknown {
        kind: 48,
        data: vec![3, 1, 0, 4].into(),
    };
    let id = |name: &str| Payload::IdI((&IkeId::Fqdn(name.into())).into());
    // As initiator: EAP-Success in place of AUTH.
    let mut pair = after(2);
    let message = forge(
        &pair,
        1,
        ExchangeType::IKE_AUTH,
        true,
        1,
        chain(core::slice::from_ref(&eap)),
    );
    let _ = deliver(&mut pair, 0, &message);
    let told = commands(&mut pair[0]);
    assert_eq!(installed(&told), 0);
    assert!(matches!(told.last(), Some(Command::Failed { .. })), "{told:?}");
    // As responder: a request without AUTH asks for EAP, one with EAP goes on with it.
    for request in [
        vec![id("host.test")],
        vec![id("host.test"), eap.clone()],
        vec![eap.clone()],
    ] {
        let mut pair = after(2);
        commands(&mut pair[1]);
        let payloads = [request, child_request()].concat();
        let message = forge(&pair, 0, ExchangeType::IKE_AUTH, false, 1, chain(&payloads));
        let _ = deliver(&mut pair, 1, &message);
        let told = commands(&mut pair[1]);
        assert!(
            matches!(
                told[..],
                [Command::Failed {
                    reason: FailReason::AuthenticationFailed,
                    ..
                }]
            ),
            "{told:?}"
        );
    }
    // Established: nothing happens.
    let mut pair = after(4);
    commands(&mut pair[1]);
    let message = forge(&pair, 0, ExchangeType::INFORMATIONAL, false, 2, chain(&[eap]));
    let _ = deliver(&mut pair, 1, &message);
    assert_eq!(state(&pair, 1), State::Established);
    assert_eq!(commands(&mut pair[1]), []);
}

/// Any two bytes of any message may be a length. 0, 1 and 65,535 in each of them: no panic, and no SA that differs.
#[test]
fn no_length_is_believed() {
    let values = [0u16, 1, 0xffff];
    // IKE_SA_INIT, unprotected, in both directions.
    for to in [1, 0] {
        let mut pair = after(usize::from(to == 0));
        let datagram = pair[1 - to].poll_transmit();
        let whole = datagram.map(|datagram| datagram.payload).unwrap_or_else(|| {
            let sa = pair[1 - to].sas.values().next().unwrap();
            sa.init.as_ref().unwrap().message_i.clone()
        });
        for at in 0..whole.len() - 1 {
            for value in values {
                let mut pair = after(usize::from(to == 0));
                let mut message = whole.clone();
                message[at..at + 2].copy_from_slice(&value.to_be_bytes());
                let _ = deliver(&mut pair, to, &message);
                assert_eq!(installed(&commands(&mut pair[to])), 0);
            }
        }
    }
    // Inside the Encrypted payload of CREATE_CHILD_SA, where a peer with keys may write what it likes.
    let good = chain(&child_request());
    for at in 0..good.text.len() - 1 {
        for value in values {
            let mut pair = after(4);
            commands(&mut pair[1]);
            let mut inside = good.clone();
            inside.text[at..at + 2].copy_from_slice(&value.to_be_bytes());
            let message = forge(&pair, 0, ExchangeType::CREATE_CHILD_SA, false, 2, inside);
            let _ = deliver(&mut pair, 1, &message);
            assert!(pair[1].poll_transmit().is_some(), "a request is answered");
            assert!(installed(&commands(&mut pair[1])) <= 1);
            assert_eq!(state(&pair, 1), State::Established);
        }
    }
}

/// An attribute of length zero, and one that is longer than its transform.
#[test]
fn zero_length_attributes_choose_nothing() {
    let good = chain(&child_request());
    // Key Length, TV: 0x800e. As TLV it is 0x000e and a length.
    let at = good.text.windows(2).position(|two| two == [0x80, 0x0e]).unwrap();
    for length in [0u16, 1, 2, 4, 0xffff] {
        let mut pair = after(4);
        commands(&mut pair[1]);
        let mut inside = good.clone();
        inside.text[at] = 0;
        inside.text[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
        let message = forge(&pair, 0, ExchangeType::CREATE_CHILD_SA, false, 2, inside);
        let _ = deliver(&mut pair, 1, &message);
        assert_eq!(installed(&commands(&mut pair[1])), 0, "length {length}");
    }
}

#[test]
fn rekey_sa_with_odd_protocols_and_spis_replaces_nothing() {
    let spis: [&[u8]; 6] = [&[], &[1], &[1, 2, 3], &[0; 4], &[9; 8], &[7; 255]];
    for protocol in [0, 1, 2, 3, 4, 255] {
        for spi in spis {
            let mut pair = after(4);
            commands(&mut pair[1]);
            let mut notify = Notify::new(NotifyType::REKEY_SA, &[][..]);
            notify.protocol = protocol;
            notify.spi = spi.to_vec().into();
            let payloads = [vec![Payload::Notify(notify)], child_request()].concat();
            let message = forge(
                &pair,
                0,
                ExchangeType::CREATE_CHILD_SA,
                false,
                2,
                chain(&payloads),
            );
            let _ = deliver(&mut pair, 1, &message);
            assert_eq!(commands(&mut pair[1]), [], "protocol {protocol}, SPI {spi:?}");
            assert_eq!(pair[1].sas.values().next().unwrap().children.len(), 1);
        }
    }
}

/// The number of selectors says one thing, the payload holds another.
#[test]
fn selectors_are_counted_not_believed() {
    let good = chain(&child_request());
    let selector = TrafficSelector::host(ends()[0].ip());
    let mut alone = chain(&[Payload::TsI(vec![selector])]).text;
    alone.drain(..4);
    let at = good
        .text
        .windows(alone.len())
        .position(|bytes| bytes == alone)
        .unwrap();
    for count in [0, 2, 3, 255] {
        let mut pair = after(4);
        commands(&mut pair[1]);
        let mut inside = good.clone();
        inside.text[at] = count;
        let message = forge(&pair, 0, ExchangeType::CREATE_CHILD_SA, false, 2, inside);
        let _ = deliver(&mut pair, 1, &message);
        assert_eq!(installed(&commands(&mut pair[1])), 0, "count {count}");
        assert_eq!(state(&pair, 1), State::Established);
    }
}

/// A subscriber's record without a secret, at either end.
#[test]
fn without_a_secret_nobody_is_anybody() {
    for end in [0, 1] {
        let mut pair = after(2);
        let sa = pair[end].sas.values_mut().next().unwrap();
        let mut bare = policy();
        bare.psk = Psk::new(Vec::new());
        sa.policy = Some(Box::new(bare));
        // What the initiator proved with is on its way already.
        for _ in 0..4 {
            for from in [0, 1] {
                while let Some(datagram) = pair[from].poll_transmit() {
                    let _ = deliver(&mut pair, 1 - from, &datagram.payload);
                }
            }
        }
        let told: Vec<_> = pair.iter_mut().map(commands).collect();
        assert_eq!(installed(&told[end]), 0, "end {end}: {told:?}");
    }
}

#[test]
fn control_characters_in_identities_and_notifies_are_shown_not_obeyed() {
    let evil = "\u{1b}[2Jhost\r\nforged line\u{7}\u{202e}";
    for id in [
        IkeId::Fqdn(evil.into()),
        IkeId::Rfc822(evil.into()),
        IkeId::KeyId(evil.into()),
    ] {
        let text = id.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    // What a notify says never reaches the line of the live view, only its number does.
    let mut pair = after(4);
    while pair[1].poll_command().is_some() {}
    let notify = Payload::notify(NotifyType(40_000), evil.as_bytes().to_vec());
    let message = forge(&pair, 0, ExchangeType::INFORMATIONAL, false, 2, chain(&[notify]));
    deliver(&mut pair, 1, &message).unwrap();
    let mut lines = core::iter::from_fn(|| pair[1].poll_command()).filter_map(|command| match command {
        Command::Exchange { line, .. } => Some(line),
        _ => None,
    });
    assert_eq!(lines.next().unwrap(), "INFORMATIONAL request 2 [ N((40000)) ]");
}

/// What a responder that has the keys may answer to IKE_AUTH: nothing beyond what was offered comes of it.
#[test]
fn a_hostile_responder_gets_no_more_than_was_offered() {
    let proof = |pair: &Ends| {
        // Its AUTH is good: it answers our request for real, and the answer is opened and changed.
        let sa = pair[1].sas.values().next().unwrap();
        let (_, packet) = sa.last_response.clone().unwrap();
        let keys = &sa.keys.as_ref().unwrap().sk_r;
        let inside = crate::protect::unprotect(&IkeCrypto, keys, &packet).unwrap();
        let payloads = crate::wire::parse_payloads(inside.first, &inside.text).unwrap();
        let owned: Vec<Payload<'static>> = payloads.into_iter().filter_map(own).collect();
        owned
    };
    let any = |text: &str| TrafficSelector::any_of(text.parse().unwrap());
    type Change = fn(&mut Vec<Payload<'static>>);
    let changes: [(&str, Change); 9] = [
        ("no AUTH", |all| {
            all.retain(|p| !matches!(p, Payload::Auth { .. }))
        }),
        ("AUTH altered", |all| {
            for payload in all {
                if let Payload::Auth { data, .. } = payload {
                    data.to_mut()[0] ^= 1;
                }
            }
        }),
        ("two AUTH", |all| all.extend(all.clone())),
        ("no SA", |all| all.retain(|p| !matches!(p, Payload::Sa(_)))),
        ("another suite", |all| {
            replace_sa(
                all,
                offer_esp(&[towpath_base::sa::EspSuite::Aes128Gcm16], false, Spi(0x2000)),
            );
        }),
        ("a reserved SPI", |all| {
            replace_sa(
                all,
                offer_esp(&[towpath_base::sa::EspSuite::Aes256Gcm16], false, Spi(255)),
            );
        }),
        ("two proposals", |all| {
            let two = [towpath_base::sa::EspSuite::Aes256Gcm16; 2];
            replace_sa(all, offer_esp(&two, false, Spi(0x2000)));
        }),
        ("no selectors", |all| {
            all.retain(|p| !matches!(p, Payload::TsI(_) | Payload::TsR(_)))
        }),
        ("selectors of others", |all| {
            for payload in all {
                if let Payload::TsR(selectors) = payload {
                    *selectors = vec![TrafficSelector::any_of("192.0.2.0/24".parse().unwrap())];
                }
            }
        }),
    ];
    for (name, change) in changes {
        let mut pair = after(3);
        let mut payloads = proof(&pair);
        change(&mut payloads);
        let message = forge(&pair, 1, ExchangeType::IKE_AUTH, true, 1, chain(&payloads));
        let _ = deliver(&mut pair, 0, &message);
        let told = commands(&mut pair[0]);
        assert_eq!(installed(&told), 0, "{name}: {told:?}");
        assert!(
            told.iter()
                .any(|command| matches!(command, Command::Failed { .. })),
            "{name}: {told:?}"
        );
    }
    // Wider selectors than were asked for are cut to size.
    let mut pair = after(3);
    let mut payloads = proof(&pair);
    for payload in &mut payloads {
        if let Payload::TsI(selectors) | Payload::TsR(selectors) = payload {
            *selectors = vec![any("0.0.0.0/0")];
        }
    }
    let message = forge(&pair, 1, ExchangeType::IKE_AUTH, true, 1, chain(&payloads));
    deliver(&mut pair, 0, &message).unwrap();
    let told = commands(&mut pair[0]);
    let child = told.iter().find_map(|command| match command {
        Command::ChildEstablished { child, .. } => Some(child),
        _ => None,
    });
    let child = child.unwrap();
    let [local, remote] = ends().map(|end| TrafficSelector::host(end.ip()));
    assert!(
        child.local_ts.iter().eq([&local]) && child.remote_ts.iter().eq([&remote]),
        "{child:?}"
    );
}

fn replace_sa(all: &mut [Payload<'static>], by: Vec<crate::wire::Proposal>) {
    for payload in all {
        if let Payload::Sa(proposals) = payload {
            proposals.clone_from(&by);
        }
    }
}

/// The payloads of an IKE_AUTH response by pre-shared key, as values of their own.
pub(super) fn own(payload: Payload<'_>) -> Option<Payload<'static>> {
    Some(match payload {
        Payload::IdI(id) => {
            let id = id.to_ike_id()?;
            Payload::IdI((&id).into())
        }
        Payload::IdR(id) => {
            let id = id.to_ike_id()?;
            Payload::IdR((&id).into())
        }
        Payload::Auth { method, data } => Payload::Auth {
            method,
            data: data.into_owned().into(),
        },
        Payload::Sa(proposals) => Payload::Sa(proposals),
        Payload::TsI(selectors) => Payload::TsI(selectors),
        Payload::TsR(selectors) => Payload::TsR(selectors),
        Payload::Notify(notify) => Payload::notify(notify.kind, notify.data.into_owned()),
        _ => return None,
    })
}

/// What a responder without keys, or somebody in its name, may answer to IKE_SA_INIT.
#[test]
fn a_hostile_first_response_makes_no_keys() {
    let mut pair = after(1);
    let good = pair[1].poll_transmit().unwrap().payload;
    let changed = |at: usize, bytes: &[u8]| {
        let mut message = good.clone();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        message
    };
    let mut longer = good.clone();
    longer.extend_from_slice(&[0; 9]);
    let group = good.windows(4).position(|four| four == [0, 31, 0, 0]).unwrap();
    let messages = [
        ("no SPI", changed(8, &[0; 8])),
        ("another group", changed(group, &[0, 19])),
        ("a low-order point", changed(group + 4, &[0; 32])),
        ("trailing bytes", longer),
        ("truncated", good[..good.len() - 3].to_vec()),
        ("empty", good[..HEADER_LEN].to_vec()),
        ("an answer of the initiator", changed(19, &[0x28])),
        ("another message ID", changed(20, &[0, 0, 0, 1])),
    ];
    for (name, message) in messages {
        let mut pair = after(1);
        commands(&mut pair[0]);
        assert!(deliver(&mut pair, 0, &message).is_err(), "{name}");
        assert_eq!(installed(&commands(&mut pair[0])), 0, "{name}");
        let sa = pair[0].sas.values().next().unwrap();
        assert!(sa.keys.is_none(), "{name}");
        assert!(
            !matches!(sa.state, State::AuthSent | State::Established),
            "{name}"
        );
    }
}

/// One payload of those that exchanges know, none of them proof.
fn payload_of(number: usize) -> Payload<'static> {
    let mut all = child_request();
    all.push(Payload::IdI((&IkeId::Fqdn("host.test".into())).into()));
    all.push(Payload::IdR((&IkeId::Fqdn("host.test".into())).into()));
    for (method, len) in [(2, 32), (2, 0), (14, 70), (1, 256), (9, 64)] {
        all.push(Payload::Auth {
            method,
            data: vec![0x5a; len].into(),
        });
    }
    all.push(Payload::Unknown {
        kind: 48,
        data: vec![3, 1, 0, 4].into(),
    });
    for kind in [
        NotifyType::INITIAL_CONTACT,
        NotifyType::MOBIKE_SUPPORTED,
        NotifyType::USE_TRANSPORT_MODE,
        NotifyType::USE_PPK,
        NotifyType::AUTHENTICATION_FAILED,
        NotifyType::UPDATE_SA_ADDRESSES,
    ] {
        all.push(Payload::bare(kind));
    }
    let mut rekey = Notify::new(NotifyType::REKEY_SA, &[][..]);
    rekey.protocol = crate::wire::Protocol::ESP.0;
    rekey.spi = vec![0, 0, 0x10, 0].into();
    all.push(Payload::Notify(rekey));
    all.push(Payload::Delete(crate::wire::Delete {
        protocol: crate::wire::Protocol::IKE,
        spis: Vec::new(),
    }));
    let at = number % all.len();
    all.swap_remove(at)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// RFC 7296's state rules: whatever comes under the right keys, in whichever order and state, as request or
    /// response, no path but a proof leads to an SA. (Who made the exchange of IKE_SA_INIT has the keys: that is
    /// anybody.)
    #[test]
    fn no_sequence_of_messages_without_proof_makes_an_sa(
        to in 0usize..2,
        steps in proptest::collection::vec(
            (0usize..6, any::<bool>(), 0u32..4, proptest::collection::vec(0usize..64, 0..8)),
            1..12,
        ),
    ) {
        let exchanges = [
            ExchangeType::IKE_AUTH,
            ExchangeType::IKE_AUTH,
            ExchangeType::CREATE_CHILD_SA,
            ExchangeType::INFORMATIONAL,
            ExchangeType::IKE_INTERMEDIATE,
            ExchangeType::IKE_FOLLOWUP_KE,
        ];
        let mut pair = after(2);
        commands(&mut pair[to]);
        for (exchange, response, id, payloads) in steps {
            let payloads: Vec<_> = payloads.into_iter().map(payload_of).collect();
            let message = forge(&pair, 1 - to, exchanges[exchange], response, id, chain(&payloads));
            let _ = deliver(&mut pair, to, &message);
            let told = commands(&mut pair[to]);
            let made = |command: &Command| matches!(
                command,
                Command::ChildEstablished { .. } | Command::IkeEstablished { .. } | Command::IkeRekeyed { .. }
            );
            prop_assert!(!told.iter().any(made), "{told:?}");
            prop_assert!(pair[to].sas.values().all(|sa| sa.state != State::Established && sa.children.is_empty()));
        }
    }
}
