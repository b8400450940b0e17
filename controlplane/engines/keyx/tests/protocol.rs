//! Both ends against each other, and against what an attacker may send.
#![cfg(feature = "alloc")]
#![allow(missing_docs)]

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use towpath_base::key::SecretKey;
use towpath_base::sa::{ChildSa, Class, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_keyx::message::{
    FromTerminal, KeyTransfer, Operation, Outcome, ProxyReply, ProxyRequest, RefuseReason, SaName,
    ToTerminal, TransferAck, TransferResult, peek, re_register,
};
use towpath_keyx::registration::{Addresses, Attempt, Terms, deregister, open_registration};
use towpath_keyx::transfer::{Backoff, Receiver, Sender};
use towpath_keyx::{
    MAX_DATAGRAM, MessageType, NetworkSession, RegistrationKeys, SessionKeys, TerminalSession,
};

const HANDLE: SubscriberHandle = SubscriberHandle(42);
const TERMS: Terms = Terms {
    lifetime_seconds: 3600,
    keepalive_seconds: 60,
    epoch: 7,
};

fn ksub() -> SecretKey<32> {
    SecretKey::new([0x5b; 32])
}

fn terminal() -> IpAddr {
    "10.77.1.2".parse().unwrap()
}

fn sessions() -> (TerminalSession, NetworkSession) {
    let keys = SessionKeys::derive(&ksub(), HANDLE, &[1; 32], &[2; 32]);
    (
        TerminalSession::new(HANDLE, &keys),
        NetworkSession::new(HANDLE, &keys),
    )
}

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
    ]
}

fn selectors() -> impl Strategy<Value = Selectors> {
    prop::collection::vec((addresses(), any::<u8>(), any::<(u16, u16)>()), 0..=4).prop_map(|items| {
        Selectors::from_iter(
            items
                .into_iter()
                .map(|((a, b), protocol, (p, q))| TrafficSelector {
                    first: a.min(b),
                    last: a.max(b),
                    protocol,
                    first_port: p.min(q),
                    last_port: p.max(q),
                }),
        )
    })
}

prop_compose! {
    fn child_sa()(
        suite in prop::sample::select(EspSuite::ALL), mode in prop::sample::select(Mode::NEGOTIATED), esn: bool,
        encap in prop::option::of(any::<(u16, u16)>()), (spi_in, spi_out) in any::<(u32, u32)>(),
        (local, remote) in addresses(), seed: u8, (local_ts, remote_ts) in (selectors(), selectors()),
        (soft_seconds, hard_seconds, soft_bytes, hard_bytes) in any::<(u32, u32, u64, u64)>(),
    ) -> ChildSa {
        let material = vec![seed; suite.key_material_len()];
        let keys = EspKeys::split(suite, &material).unwrap();
        ChildSa {
            local, remote, suite, mode, esn,
            encap: encap.map(|(local_port, remote_port)| UdpEncap { local_port, remote_port }),
            spi_in: Spi(spi_in), spi_out: Spi(spi_out), keys_in: keys.clone(), keys_out: keys, local_ts, remote_ts,
            lifetime: Lifetime { soft_seconds, hard_seconds, soft_bytes, hard_bytes },
        }
    }
}

fn to_terminal() -> impl Strategy<Value = ToTerminal> {
    let outcome = prop_oneof![
        Just(Outcome::Accepted),
        (prop::sample::select(RefuseReason::ALL), any::<u16>())
            .prop_map(|(reason, retry_after)| Outcome::Refused { reason, retry_after }),
    ];
    let install = (
        child_sa(),
        prop::sample::select(Class::ALL),
        prop::option::of(1u32..),
        any::<u8>(),
    )
        .prop_map(|(sa, class, replaces, level)| Operation::Install {
            class,
            level,
            replaces: replaces.map(Spi),
            standby: false,
            sa,
        });
    let delete = (addresses(), any::<(u32, u32)>()).prop_map(|((local, remote), (spi_in, spi_out))| {
        Operation::Delete(SaName {
            local,
            remote,
            spi_in: Spi(spi_in),
            spi_out: Spi(spi_out),
        })
    });
    prop_oneof![
        (any::<u32>(), outcome)
            .prop_map(|(request_id, outcome)| { ToTerminal::ProxyReply(ProxyReply { request_id, outcome }) }),
        (
            any::<u64>(),
            prop::option::of(any::<u32>()),
            prop_oneof![install, delete]
        )
            .prop_map(|(transfer_id, request_id, operation)| {
                ToTerminal::KeyTransfer(KeyTransfer {
                    transfer_id,
                    request_id,
                    operation,
                })
            }),
    ]
}

fn from_terminal() -> impl Strategy<Value = FromTerminal> {
    let request = (
        addresses(),
        any::<(u32, u8, u16, u16)>(),
        (prop::option::of(1u32..), any::<u8>()),
    );
    prop_oneof![
        request.prop_map(
            |((terminal, peer), (request_id, protocol, terminal_port, peer_port), (replaces, level))| {
                FromTerminal::ProxyRequest(ProxyRequest {
                    request_id,
                    terminal,
                    peer,
                    protocol,
                    terminal_port,
                    peer_port,
                    replaces: replaces.map(Spi),
                    level,
                })
            }
        ),
        (any::<u64>(), prop::sample::select(TransferResult::ALL))
            .prop_map(|(transfer_id, result)| FromTerminal::TransferAck(TransferAck { transfer_id, result })),
        Just(FromTerminal::Hello),
    ]
}

proptest! {
    #[test]
    fn every_message_arrives_as_sent(down in to_terminal(), up in from_terminal()) {
        let (mut terminal, mut network) = sessions();
        let sealed = network.seal(&down).unwrap();
        prop_assert_eq!(terminal.open(sealed.as_bytes()).unwrap(), down);
        let sealed = terminal.seal(&up).unwrap();
        prop_assert_eq!(network.open(sealed.as_bytes()).unwrap(), up);
        prop_assert!(network.is_confirmed());
    }

    #[test]
    fn one_flipped_bit_is_refused(down in to_terminal(), bit in any::<prop::sample::Index>()) {
        let (mut terminal, mut network) = sessions();
        let mut bytes = network.seal(&down).unwrap().as_bytes().to_vec();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(terminal.open(&bytes).is_err());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(terminal.open(&bytes).unwrap(), down, "the forgery left no trace");
    }

    #[test]
    fn truncation_is_refused(down in to_terminal(), cut in any::<prop::sample::Index>()) {
        let (mut terminal, mut network) = sessions();
        let bytes = network.seal(&down).unwrap().as_bytes().to_vec();
        prop_assert!(terminal.open(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(terminal.open(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn no_bytes_from_the_wire_panic(bytes in prop::collection::vec(any::<u8>(), 0..MAX_DATAGRAM + 20), kind in 0u8..12) {
        let (mut terminal, mut network) = sessions();
        let mut bytes = bytes;
        for (to, from) in bytes.iter_mut().zip([1, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 42]) {
            *to = from;
        }
        prop_assert!(terminal.open(&bytes).is_err());
        prop_assert!(network.open(&bytes).is_err());
        prop_assert!(open_registration(&ksub(), crate::terminal(), &bytes).is_err());
        let _ = towpath_keyx::frame::unwrap(towpath_keyx::ReservedSpi(100), &bytes);
    }
}

#[test]
fn the_longest_transfer_fits_exactly() {
    let everything = |v6: &str| TrafficSelector {
        first: v6.parse().unwrap(),
        last: v6.parse().unwrap(),
        protocol: 6,
        first_port: 1,
        last_port: 2,
    };
    let selectors = Selectors::from_iter(["fd01::1", "fd02::1", "fd03::1", "fd04::1"].map(everything));
    let lengths = EspSuite::ALL.iter().map(|suite| {
        let keys = EspKeys::split(*suite, &vec![7; suite.key_material_len()]).unwrap();
        let down = ToTerminal::KeyTransfer(KeyTransfer {
            transfer_id: u64::MAX,
            request_id: Some(u32::MAX),
            operation: Operation::Install {
                class: Class::Full,
                level: 255,
                replaces: Some(Spi(u32::MAX)),
                standby: true,
                sa: ChildSa {
                    local: "fd77:1::2".parse().unwrap(),
                    remote: "fd77:2::2".parse().unwrap(),
                    suite: *suite,
                    mode: Mode::Tunnel,
                    esn: true,
                    encap: Some(UdpEncap {
                        local_port: 4500,
                        remote_port: 4500,
                    }),
                    spi_in: Spi(256),
                    spi_out: Spi(257),
                    keys_in: keys.clone(),
                    keys_out: keys,
                    local_ts: selectors,
                    remote_ts: selectors,
                    lifetime: Lifetime::default(),
                },
            },
        });
        let (mut terminal, mut network) = sessions();
        let sealed = network.seal(&down).unwrap();
        assert_eq!(terminal.open(sealed.as_bytes()).unwrap(), down, "{suite:?}");
        sealed.as_bytes().len()
    });
    assert_eq!(
        lengths.max(),
        Some(MAX_DATAGRAM),
        "no byte too few, none too many"
    );
}

#[test]
fn a_registration_gives_both_sides_the_same_session() {
    let keys = RegistrationKeys::derive(&ksub(), HANDLE);
    let here = Addresses::of([terminal(), "fd77:1::2".parse().unwrap()]);
    let mut attempt = Attempt::new([9; 32]);
    let sealed = attempt.register(&keys, 1001, &here).unwrap();
    let registration = open_registration(&ksub(), terminal(), sealed.as_bytes()).unwrap();
    assert_eq!(
        (
            registration.subscriber,
            registration.counter,
            registration.leaving
        ),
        (HANDLE, 1001, false)
    );
    assert_eq!(registration.addresses, here);
    registration.check_counter(1000).unwrap();
    let answer = registration.answer(&ksub(), &[8; 32], &TERMS).unwrap();
    let granted = attempt
        .acknowledged(&ksub(), &keys, answer.datagram.as_bytes())
        .unwrap();
    assert_eq!((granted.terms, &granted.keys), (TERMS, &answer.keys));
    assert_ne!(granted.keys.t2n, granted.keys.n2t);
}

#[test]
fn replayed_forged_and_moved_registrations_are_refused() {
    let keys = RegistrationKeys::derive(&ksub(), HANDLE);
    let here = Addresses::of([terminal()]);
    let mut attempt = Attempt::new([9; 32]);
    let sealed = attempt.register(&keys, 5, &here).unwrap();
    let open = |ksub: &SecretKey<32>, source, bytes: &[u8]| {
        open_registration(ksub, source, bytes).map(|r| r.counter)
    };
    assert_eq!(open(&ksub(), terminal(), sealed.as_bytes()), Ok(5));
    let registration = open_registration(&ksub(), terminal(), sealed.as_bytes()).unwrap();
    assert_eq!(registration.check_counter(5), Err(DropReason::KeyxReplayed));
    assert_eq!(registration.check_counter(6), Err(DropReason::KeyxReplayed));
    let elsewhere = "10.77.1.66".parse().unwrap();
    assert_eq!(
        open(&ksub(), elsewhere, sealed.as_bytes()),
        Err(DropReason::KeyxWrongAddress)
    );
    let wrong = SecretKey::new([1; 32]);
    assert_eq!(
        open(&wrong, terminal(), sealed.as_bytes()),
        Err(DropReason::KeyxForged)
    );
    for len in 0..sealed.as_bytes().len() {
        assert!(
            open(&ksub(), terminal(), &sealed.as_bytes()[..len]).is_err(),
            "{len}"
        );
    }
    let leave = deregister(&keys, 6, &[3; 32], &here).unwrap();
    assert!(
        open_registration(&ksub(), terminal(), leave.as_bytes())
            .unwrap()
            .leaving
    );
}

#[test]
fn an_answer_counts_for_its_own_attempt_and_the_latest_counts_most() {
    let keys = RegistrationKeys::derive(&ksub(), HANDLE);
    let here = Addresses::of([terminal()]);
    let answer = |datagram: &[u8], nonce: u8| {
        let registration = open_registration(&ksub(), terminal(), datagram).unwrap();
        registration.answer(&ksub(), &[nonce; 32], &TERMS).unwrap()
    };
    let mut attempt = Attempt::new([9; 32]);
    let first = attempt.register(&keys, 10, &here).unwrap();
    let second = attempt.register(&keys, 11, &here).unwrap();
    let (to_first, to_second) = (answer(first.as_bytes(), 1), answer(second.as_bytes(), 2));
    let mut other = Attempt::new([7; 32]);
    other.register(&keys, 12, &here).unwrap();
    let result = other
        .acknowledged(&ksub(), &keys, to_first.datagram.as_bytes())
        .map(|g| g.terms);
    assert_eq!(result, Err(DropReason::KeyxReplayed));
    assert!(
        attempt
            .acknowledged(&ksub(), &keys, to_first.datagram.as_bytes())
            .is_ok()
    );
    let granted = attempt
        .acknowledged(&ksub(), &keys, to_second.datagram.as_bytes())
        .unwrap();
    assert_eq!(granted.keys, to_second.keys);
    for late in [&to_first, &to_second] {
        let result = attempt
            .acknowledged(&ksub(), &keys, late.datagram.as_bytes())
            .map(|g| g.terms);
        assert_eq!(result, Err(DropReason::KeyxReplayed));
    }
}

#[test]
fn a_session_message_is_taken_once_and_only_in_its_direction() {
    let (mut terminal, mut network) = sessions();
    let sealed = terminal.seal(&FromTerminal::Hello).unwrap();
    assert_eq!(
        terminal.open(sealed.as_bytes()),
        Err(DropReason::KeyxForged),
        "reflected"
    );
    assert!(!network.is_confirmed());
    assert_eq!(network.open(sealed.as_bytes()), Ok(FromTerminal::Hello));
    assert_eq!(network.open(sealed.as_bytes()), Err(DropReason::KeyxReplayed));
    let keys = SessionKeys::derive(&ksub(), SubscriberHandle(43), &[1; 32], &[2; 32]);
    let mut other = NetworkSession::new(SubscriberHandle(43), &keys);
    assert_eq!(other.open(sealed.as_bytes()), Err(DropReason::KeyxUnknownSession));
}

#[test]
fn a_hint_to_register_again_names_the_message_it_answers() {
    let (mut terminal, _) = sessions();
    let sealed = terminal.seal(&FromTerminal::Hello).unwrap();
    let hint = re_register(&peek(sealed.as_bytes()).unwrap());
    let header = peek(&hint).unwrap();
    assert_eq!(header.message_type, MessageType::ReRegister);
    assert_eq!(
        (header.subscriber, header.counter),
        (HANDLE, terminal.last_sent())
    );
    assert_eq!(peek(&[&hint[..], &[0]].concat()), Err(DropReason::KeyxMalformed));
}

fn install(n: u32) -> Operation {
    let keys = EspKeys::split(EspSuite::Aes128Gcm16, &[n as u8; 20]).unwrap();
    let peer: IpAddr = "10.77.9.2".parse().unwrap();
    Operation::Install {
        class: Class::Full,
        level: 0,
        replaces: None,
        standby: false,
        sa: ChildSa {
            local: terminal(),
            remote: peer,
            suite: EspSuite::Aes128Gcm16,
            mode: Mode::Transport,
            esn: false,
            encap: None,
            spi_in: Spi(0x1000 + n),
            spi_out: Spi(0x2000 + n),
            keys_in: keys.clone(),
            keys_out: keys,
            local_ts: Selectors::one(TrafficSelector::host(terminal())),
            remote_ts: Selectors::one(TrafficSelector::host(peer)),
            lifetime: Lifetime::default(),
        },
    }
}

/// Transfers over a link that loses, duplicates and reorders: each is taken over exactly once.
#[test]
fn transfers_arrive_exactly_once_over_a_bad_link() {
    for seed in 0..20 {
        let mut rng = SeededRng::new(seed);
        let (mut terminal, mut network) = sessions();
        let mut sender = Sender::new(
            Backoff {
                transmissions: 40,
                ..Backoff::default()
            },
            8,
        );
        let mut receiver = Receiver::<8>::new();
        let (mut installed, mut done) = (Vec::new(), 0);
        let mut flying: Vec<Vec<u8>> = Vec::new();
        for n in 0..5 {
            sender.push(Instant::ZERO, None, install(n)).unwrap();
        }
        let mut now = Instant::ZERO;
        while let Some(due) = sender.poll_timeout() {
            now = due.max(now);
            assert!(sender.poll_failed(now).is_none(), "seed {seed}");
            while let Some(transfer) = sender.poll_transmit(now) {
                let message = ToTerminal::KeyTransfer(transfer.clone());
                let sealed = network.seal(&message).unwrap().as_bytes().to_vec();
                for _ in 0..rng.below(3) {
                    flying.push(sealed.clone());
                }
            }
            while !flying.is_empty() && rng.below(8) != 0 {
                let datagram = flying.swap_remove(rng.below(flying.len() as u64) as usize);
                let Ok(ToTerminal::KeyTransfer(transfer)) = terminal.open(&datagram) else {
                    continue;
                };
                let result = receiver.seen(transfer.transfer_id).unwrap_or_else(|| {
                    installed.push(transfer.transfer_id);
                    TransferResult::Done
                });
                receiver.record(transfer.transfer_id, result);
                let ack = TransferAck {
                    transfer_id: transfer.transfer_id,
                    result,
                };
                let sealed = terminal.seal(&FromTerminal::TransferAck(ack)).unwrap();
                if rng.below(3) != 0
                    && let Ok(FromTerminal::TransferAck(ack)) = network.open(sealed.as_bytes())
                {
                    done += usize::from(sender.handle_ack(&ack).is_some());
                }
            }
        }
        installed.sort_unstable();
        assert_eq!((installed, done), (vec![1, 2, 3, 4, 5], 5), "seed {seed}");
    }
}

#[test]
fn a_silent_terminal_is_given_up_and_the_queue_is_bounded() {
    let backoff = Backoff {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(2),
        transmissions: 3,
    };
    let mut sender = Sender::new(backoff, 2);
    sender.push(Instant::ZERO, Some(1), install(0)).unwrap();
    sender.push(Instant::ZERO, None, install(1)).unwrap();
    assert!(sender.push(Instant::ZERO, None, install(2)).is_err());
    let mut sent = Vec::new();
    let mut failed = 0;
    while let Some(now) = sender.poll_timeout() {
        while sender.poll_transmit(now).is_some() {
            sent.push(now.as_nanos() / 1_000_000_000);
        }
        while sender.poll_failed(now).is_some() {
            failed += 1;
        }
    }
    assert_eq!((sent, failed), (vec![0, 0, 1, 1, 3, 3], 2));
}

#[test]
fn a_deletion_takes_the_place_of_an_installation_not_yet_acknowledged() {
    let mut sender = Sender::new(Backoff::default(), 8);
    sender.push(Instant::ZERO, None, install(0)).unwrap();
    sender
        .push(Instant::ZERO, None, Operation::Delete(install(0).name()))
        .unwrap();
    let left: Vec<_> = sender
        .outstanding()
        .map(|transfer| transfer.transfer_id)
        .collect();
    assert_eq!(left, [2]);
    let mut receiver = Receiver::<4>::new();
    receiver.record_deleted(&install(0).name());
    assert!(receiver.was_deleted(&install(0).name()));
    assert!(!receiver.was_deleted(&install(1).name()));
}

#[test]
fn keys_sent_once_are_not_sent_again_in_a_new_session() {
    let mut older = Sender::new(Backoff::default(), 8);
    older.push(Instant::ZERO, None, install(0)).unwrap();
    older.poll_transmit(Instant::ZERO).unwrap();
    older.push(Instant::ZERO, None, install(1)).unwrap();
    older
        .push(Instant::ZERO, None, Operation::Delete(install(2).name()))
        .unwrap();
    let mut newer = Sender::new(Backoff::default(), 8);
    let lost = newer.adopt(Instant::ZERO, &mut older);
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].transfer.operation.name(), install(0).name());
    let names: Vec<_> = newer
        .outstanding()
        .map(|transfer| transfer.operation.name().spi_in.0)
        .collect();
    assert_eq!(names, [0x1001, 0x1002]);
}
