//! Terminal ══ segment keys ══ bridge ══ peer's keys ══ peer, and back.
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;

use common::*;
use proptest::prelude::*;
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode};
use towpath_base::{DropReason, Instant};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{Bridge, InboundSa, LifetimeEvent, OutboundSa, locate};

const NOW: Instant = Instant::from_secs(1);

struct Chain {
    terminal: (OutboundSa<SoftTransform>, InboundSa<SoftTransform>),
    bridge: Bridge<SoftTransform>,
    peer: (OutboundSa<SoftTransform>, InboundSa<SoftTransform>),
}

fn chain(peer_sa: &ChildSa) -> Chain {
    let (segment_in, segment_out) = (keys(peer_sa.suite, 0x33), keys(peer_sa.suite, 0x44));
    let terminal_sa = ChildSa {
        keys_in: segment_in.clone(),
        keys_out: segment_out.clone(),
        ..peer_sa.clone()
    };
    let far = peer_sa.mirrored();
    Chain {
        terminal: (
            OutboundSa::new(&SoftEsp, NOW, &terminal_sa).unwrap(),
            InboundSa::new(&SoftEsp, NOW, &terminal_sa).unwrap(),
        ),
        bridge: Bridge::new(&SoftEsp, NOW, peer_sa, &segment_in, &segment_out).unwrap(),
        peer: (
            OutboundSa::new(&SoftEsp, NOW, &far).unwrap(),
            InboundSa::new(&SoftEsp, NOW, &far).unwrap(),
        ),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn both_directions_arrive_as_sent(
        suite in prop::sample::select(EspSuite::ALL), mode in prop::sample::select(Mode::ALL),
        v6: bool, encap: bool, esn: bool, len in 0usize..2000,
    ) {
        let mut chain = chain(&child(suite, mode, v6, v6, encap, esn));
        let mut rng = TestRng(3);
        for _ in 0..3 {
            let plain = udp(local(v6), remote(v6), &vec![0xa5; len]);
            let mut packet = Packet::new(&plain);
            packet.with(|p| chain.terminal.0.seal(NOW, p, &mut rng)).unwrap();
            let before = packet.bytes().to_vec();
            packet.with(|p| chain.bridge.to_peer(NOW, p, &mut rng)).unwrap();
            prop_assert_eq!(packet.len, before.len());
            prop_assert!(packet.bytes() != &before[..]);
            prop_assert!(etherparse::SlicedPacket::from_ip(packet.bytes()).is_ok());
            packet.with(|p| chain.peer.1.open(NOW, p)).unwrap();
            prop_assert_eq!(packet.bytes(), &plain[..]);

            let plain = udp(remote(v6), local(v6), &vec![0x5a; len]);
            let mut packet = Packet::new(&plain);
            packet.with(|p| chain.peer.0.seal(NOW, p, &mut rng)).unwrap();
            packet.with(|p| chain.bridge.to_terminal(NOW, p, &mut rng)).unwrap();
            packet.with(|p| chain.terminal.1.open(NOW, p)).unwrap();
            prop_assert_eq!(packet.bytes(), &plain[..]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_opened_for_the_relay_and_sealed_again_arrives_as_sent_and_in_one_sequence(
        suite in prop::sample::select(EspSuite::ALL), mode in prop::sample::select(Mode::ALL),
        v6: bool, encap: bool, esn: bool, len in 0usize..2000,
    ) {
        let mut chain = chain(&child(suite, mode, v6, v6, encap, esn));
        let mut rng = TestRng(3);
        for round in 1..4 {
            let plain = udp(local(v6), remote(v6), &vec![0xa5; len]);
            let mut packet = Packet::new(&plain);
            packet.with(|p| chain.terminal.0.seal(NOW, p, &mut rng)).unwrap();
            packet.with(|p| chain.bridge.open(true, NOW, p)).unwrap();
            prop_assert_eq!(packet.bytes(), &plain[..]);
            let sealed = packet.with(|p| chain.bridge.seal(true, NOW, p, &mut rng)).unwrap();
            prop_assert_eq!(sealed.sequence, round * 2 - 1);
            packet.with(|p| chain.peer.1.open(NOW, p)).unwrap();
            prop_assert_eq!(packet.bytes(), &plain[..]);
            // The next one is bridged in place: the counter is the same.
            let mut packet = Packet::new(&plain);
            packet.with(|p| chain.terminal.0.seal(NOW, p, &mut rng)).unwrap();
            packet.with(|p| chain.bridge.to_peer(NOW, p, &mut rng)).unwrap();
            packet.with(|p| chain.peer.1.open(NOW, p)).unwrap();
            prop_assert_eq!(chain.bridge.peer_sender().last_sequence(), round * 2);

            let plain = udp(remote(v6), local(v6), &vec![0x5a; len]);
            let mut packet = Packet::new(&plain);
            packet.with(|p| chain.peer.0.seal(NOW, p, &mut rng)).unwrap();
            packet.with(|p| chain.bridge.open(false, NOW, p)).unwrap();
            packet.with(|p| chain.bridge.seal(false, NOW, p, &mut rng)).unwrap();
            packet.with(|p| chain.terminal.1.open(NOW, p)).unwrap();
            prop_assert_eq!(packet.bytes(), &plain[..]);
        }
    }

    #[test]
    fn the_largest_plain_packet_fits_and_one_more_byte_does_not(
        suite in prop::sample::select(EspSuite::ALL), mode in prop::sample::select(Mode::NEGOTIATED),
        v6: bool, encap: bool, mtu in 300u16..1600,
    ) {
        let mut chain = chain(&child(suite, mode, v6, v6, encap, false));
        let mut rng = TestRng(3);
        let fits = usize::from(chain.bridge.peer_sender().largest_plain(mtu, !v6));
        let headers = if v6 { 48 } else { 28 };
        for (len, held) in [(fits, true), (fits + 1, false)] {
            let mut packet = Packet::new(&udp(local(v6), remote(v6), &vec![1; len - headers]));
            packet.with(|p| chain.bridge.seal(true, NOW, p, &mut rng)).unwrap();
            prop_assert_eq!(packet.len <= usize::from(mtu), held, "{} plain, {} sealed", len, packet.len);
        }
    }
}

#[test]
fn a_packet_of_the_wrong_segment_or_direction_is_refused() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, false, false);
    let mut chain = chain(&sa);
    let mut rng = TestRng(3);
    let mut packet = Packet::new(&udp(local(false), remote(false), b"mine"));
    packet.with(|p| chain.terminal.0.seal(NOW, p, &mut rng)).unwrap();
    let wire = packet.bytes().to_vec();
    // The terminal's segment keys mean nothing to the peer.
    assert_eq!(
        Packet::new(&wire).with(|p| chain.peer.1.open(NOW, p)),
        Err(DropReason::EspAuthFailed)
    );
    let wrong_way = Packet::new(&wire).with(|p| chain.bridge.to_terminal(NOW, p, &mut rng));
    assert_eq!(wrong_way, Err(DropReason::EspUnknownSpi));
    assert_eq!(
        Packet::new(&wire).with(|p| chain.bridge.to_peer(NOW, p, &mut rng)),
        Ok(())
    );
    let replayed = Packet::new(&wire).with(|p| chain.bridge.to_peer(NOW, p, &mut rng));
    assert_eq!(replayed, Err(DropReason::EspReplayed));
}

#[test]
fn loss_and_reordering_on_one_segment_leave_no_hole_on_the_other() {
    let sa = child(
        EspSuite::Aes256CbcSha256,
        Mode::Transport,
        true,
        true,
        false,
        false,
    );
    let mut chain = chain(&sa);
    let mut rng = TestRng(3);
    let mut packets: Vec<Packet> = (0..100u8)
        .map(|n| {
            let mut packet = Packet::new(&udp(local(true), remote(true), &[n]));
            packet.with(|p| chain.terminal.0.seal(NOW, p, &mut rng)).unwrap();
            packet
        })
        .collect();
    packets.swap(10, 60);
    let mut sequences = Vec::new();
    for packet in packets.iter_mut().step_by(3) {
        packet.with(|p| chain.bridge.to_peer(NOW, p, &mut rng)).unwrap();
        sequences.push(locate::esp(packet.bytes()).unwrap().sequence);
    }
    assert_eq!(sequences, (1..=34).collect::<Vec<_>>());
}

#[test]
fn no_key_and_nonce_meet_twice() {
    let mut seen = HashSet::new();
    let sa = child(EspSuite::Aes256Gcm16, Mode::Transport, false, false, false, false);
    let mut chain = chain(&sa);
    let mut rng = TestRng(3);
    let mut record = |key: &str, packet: &Packet| {
        let at = locate::esp(packet.bytes()).unwrap().esp_at;
        assert!(
            seen.insert((key.to_owned(), packet.bytes()[at + 8..at + 16].to_vec())),
            "nonce twice under {key}"
        );
    };
    for n in 0..200u8 {
        let mut packet = Packet::new(&udp(local(false), remote(false), &[n]));
        packet.with(|p| chain.terminal.0.seal(NOW, p, &mut rng)).unwrap();
        record("segment_out", &packet);
        packet.with(|p| chain.bridge.to_peer(NOW, p, &mut rng)).unwrap();
        record("keys_out", &packet);
        let mut packet = Packet::new(&udp(remote(false), local(false), &[n]));
        packet.with(|p| chain.peer.0.seal(NOW, p, &mut rng)).unwrap();
        record("keys_in", &packet);
        packet
            .with(|p| chain.bridge.to_terminal(NOW, p, &mut rng))
            .unwrap();
        record("segment_in", &packet);
    }
}

#[test]
fn limits_are_told_once_for_the_pair() {
    let mut sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, false, false);
    sa.lifetime = Lifetime {
        soft_seconds: 10,
        hard_seconds: 20,
        soft_bytes: 0,
        hard_bytes: 0,
    };
    let mut chain = chain(&sa);
    let mut rng = TestRng(3);
    let mut send = |chain: &mut Chain, now| {
        let mut packet = Packet::new(&udp(local(false), remote(false), b"x"));
        packet.with(|p| chain.terminal.0.seal(NOW, p, &mut rng)).unwrap();
        packet.with(|p| chain.bridge.to_peer(now, p, &mut TestRng(1)))
    };
    send(&mut chain, NOW).unwrap();
    assert_eq!(chain.bridge.take_event(), None);
    send(&mut chain, Instant::from_secs(12)).unwrap();
    chain.bridge.tick(Instant::from_secs(12));
    assert_eq!(chain.bridge.take_event(), Some(LifetimeEvent::Soft));
    assert_eq!(chain.bridge.take_event(), None);
    assert_eq!(
        send(&mut chain, Instant::from_secs(21)),
        Err(DropReason::EspLifetimeExpired)
    );
    assert_eq!(chain.bridge.take_event(), Some(LifetimeEvent::Hard));
    assert_eq!(chain.bridge.take_event(), None);
}
