//! Seal and open: identity over every suite, mode, family and length; nothing altered gets through.
#![allow(missing_docs)]

mod common;

use common::*;
use proptest::prelude::*;
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::{DropReason, Instant};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{ChecksumRepair, InboundSa, LifetimeEvent, OutboundSa, locate};

const NOW: Instant = Instant::from_secs(1);

type Out = OutboundSa<SoftTransform>;
type In = InboundSa<SoftTransform>;

fn pair(sa: &towpath_base::sa::ChildSa) -> (Out, In) {
    let sender = OutboundSa::new(&SoftEsp, NOW, sa).unwrap();
    let receiver = InboundSa::new(&SoftEsp, NOW, &sa.mirrored()).unwrap();
    (sender, receiver)
}

fn suites() -> impl Strategy<Value = EspSuite> {
    prop::sample::select(EspSuite::ALL)
}

fn modes() -> impl Strategy<Value = Mode> {
    prop::sample::select(Mode::ALL)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn open_undoes_seal(
        suite in suites(), mode in modes(), outer_v6: bool, inner: bool, encap: bool, esn: bool,
        len in prop_oneof![0usize..=2000, 0usize..=9000],
    ) {
        let inner_v6 = if mode == Mode::Tunnel { inner } else { outer_v6 };
        let sa = child(suite, mode, outer_v6, inner_v6, encap, esn);
        let (mut sender, mut receiver) = pair(&sa);
        let plain = udp(local(inner_v6), remote(inner_v6), &vec![0x5a; len]);
        let mut packet = Packet::new(&plain);
        let sealed = packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
        prop_assert!(packet.len > plain.len());
        prop_assert!(etherparse::SlicedPacket::from_ip(packet.bytes()).is_ok());
        let at = locate::esp(packet.bytes()).unwrap();
        prop_assert_eq!((at.spi, at.end), (sa.spi_out, packet.len));
        prop_assert_eq!(at.udp_at.is_some(), encap);
        let opened = packet.with(|p| receiver.open(NOW, p)).unwrap();
        prop_assert_eq!(opened.sequence, sealed.sequence);
        prop_assert_eq!(packet.bytes(), &plain[..]);
        prop_assert_eq!(sender.meter().bytes(), plain.len() as u64);
        prop_assert_eq!(receiver.meter().bytes(), plain.len() as u64);
    }

    #[test]
    fn a_flipped_bit_is_refused(
        suite in suites(), mode in modes(), v6: bool, encap: bool, esn: bool, len in 0usize..200, bit in any::<prop::sample::Index>(),
    ) {
        let sa = child(suite, mode, v6, v6, encap, esn);
        let (mut sender, mut receiver) = pair(&sa);
        let mut packet = Packet::new(&udp(local(v6), remote(v6), &vec![0x5a; len]));
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
        // Every bit ESP protects: from its header on.
        let esp_at = locate::esp(packet.bytes()).unwrap().esp_at;
        let bit = bit.index((packet.len - esp_at) * 8);
        let at = packet.start + esp_at + bit / 8;
        packet.buffer[at] ^= 1 << (bit % 8);
        prop_assert!(packet.with(|p| receiver.open(NOW, p)).is_err());
        prop_assert_eq!(receiver.highest_sequence(), 0);
        prop_assert_eq!(receiver.meter().packets(), 0);
    }

    #[test]
    fn no_bytes_from_the_wire_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool, suite in suites(), mode in modes()) {
        let sa = child(suite, mode, v6, v6, false, true);
        let (mut sender, mut receiver) = pair(&sa);
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        let _ = Packet::new(&bytes).with(|p| receiver.open(NOW, p));
        let _ = Packet::new(&bytes).with(|p| sender.seal(NOW, p, &mut TestRng(7)));
        let _ = towpath_ipsec::Flow::of(&bytes);
    }

    #[test]
    fn truncation_is_refused(suite in suites(), mode in modes(), v6: bool, encap: bool, cut in 1usize..60) {
        let sa = child(suite, mode, v6, v6, encap, false);
        let (mut sender, mut receiver) = pair(&sa);
        let mut packet = Packet::new(&udp(local(v6), remote(v6), &[1; 40]));
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
        packet.len -= cut;
        prop_assert!(packet.with(|p| receiver.open(NOW, p)).is_err());
    }
}

/// Pairs of families over all modes: two in transport mode, four in tunnel mode and as a wildcard.
const SHAPES: usize = 2 + 4 + 4;

/// Every suite, mode and pair of families, packets of these lengths one after the other.
fn lengths_cross(lengths: impl Iterator<Item = usize> + Clone) -> usize {
    let body = [0x5a; 9000];
    let mut count = 0;
    for suite in EspSuite::ALL {
        for mode in Mode::ALL {
            for families in 0..4 {
                let (outer_v6, inner_v6) = (families & 1 != 0, families & 2 != 0);
                if *mode == Mode::Transport && outer_v6 != inner_v6 {
                    continue;
                }
                let sa = child(*suite, *mode, outer_v6, inner_v6, false, true);
                let (mut sender, mut receiver) = pair(&sa);
                for len in lengths.clone() {
                    let plain = udp(local(inner_v6), remote(inner_v6), &body[..len]);
                    let mut packet = Packet::new(&plain);
                    packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
                    packet.with(|p| receiver.open(NOW, p)).unwrap();
                    assert_eq!(packet.bytes(), &plain[..], "{suite} {mode:?} {families} {len}");
                    count += 1;
                }
            }
        }
    }
    count
}

#[test]
fn every_suite_mode_and_family_opens_what_it_sealed_at_lengths_from_0_to_9000() {
    let lengths = (0..=300).chain((300..=9000).step_by(87));
    let each = lengths.clone().count();
    assert_eq!(lengths_cross(lengths), each * EspSuite::ALL.len() * SHAPES);
}

/// The same with every length: a minute.
#[test]
fn long_every_suite_mode_and_family_opens_what_it_sealed_at_every_length() {
    assert_eq!(lengths_cross(0..=9000), 9001 * EspSuite::ALL.len() * SHAPES);
}

/// Every bit of a packet, one at a time, for every suite, in every mode.
#[test]
fn every_flipped_bit_is_refused_by_every_suite() {
    for suite in EspSuite::ALL {
        for mode in Mode::ALL {
            let sa = child(*suite, *mode, false, false, false, true);
            let (mut sender, mut receiver) = pair(&sa);
            let mut packet = Packet::new(&udp(local(false), remote(false), b"some 20 bytes inside"));
            packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
            let esp_at = locate::esp(packet.bytes()).unwrap().esp_at;
            let sealed = packet.bytes().to_vec();
            for bit in esp_at * 8..sealed.len() * 8 {
                let mut altered = sealed.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                let mut packet = Packet::new(&altered);
                assert!(
                    packet.with(|p| receiver.open(NOW, p)).is_err(),
                    "{suite} {mode:?} bit {bit}"
                );
            }
            // None of the forgeries moved the window.
            let mut packet = Packet::new(&sealed);
            packet.with(|p| receiver.open(NOW, p)).unwrap();
        }
    }
}

#[test]
fn extended_sequence_numbers_cross_the_half() {
    for suite in EspSuite::ALL {
        let sa = child(*suite, Mode::Transport, false, false, false, true);
        let (mut sender, mut receiver) = pair(&sa);
        // Receivers learn the high half only by following: in steps of less than 2^32.
        for start in [0u64, 0x8000_0000, 0xffff_fff0, 0x1_0000_0010] {
            sender.skip_to(start);
            for _ in 0..32 {
                let mut packet = Packet::new(&udp(local(false), remote(false), b"x"));
                let sealed = packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
                let opened = packet.with(|p| receiver.open(NOW, p)).unwrap();
                assert_eq!(opened.sequence, sealed.sequence);
            }
        }
        assert!(receiver.highest_sequence() > u64::from(u32::MAX));
    }
}

#[test]
fn a_replay_is_refused_and_a_forgery_does_not_move_the_window() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, false, false);
    let (mut sender, mut receiver) = pair(&sa);
    let mut packet = Packet::new(&udp(local(false), remote(false), b"once"));
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
    let wire = packet.bytes().to_vec();
    let mut forged = wire.clone();
    forged[24] = 0x7f; // a sequence number far ahead
    assert_eq!(
        Packet::new(&forged).with(|p| receiver.open(NOW, p)),
        Err(DropReason::EspAuthFailed)
    );
    assert!(Packet::new(&wire).with(|p| receiver.open(NOW, p)).is_ok());
    assert_eq!(
        Packet::new(&wire).with(|p| receiver.open(NOW, p)),
        Err(DropReason::EspReplayed)
    );
}

#[test]
fn the_sequence_space_ends_without_wrapping() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, false, false);
    let (mut sender, _) = pair(&sa);
    sender.skip_to(u64::from(u32::MAX) - 1);
    let mut packet = Packet::new(&udp(local(false), remote(false), b"last"));
    assert_eq!(
        packet
            .with(|p| sender.seal(NOW, p, &mut TestRng(7)))
            .unwrap()
            .sequence,
        u64::from(u32::MAX)
    );
    assert_eq!(sender.meter_mut().take_event(), Some(LifetimeEvent::Soft));
    let mut packet = Packet::new(&udp(local(false), remote(false), b"one more"));
    let result = packet.with(|p| sender.seal(NOW, p, &mut TestRng(7)));
    assert_eq!(result, Err(DropReason::EspSequenceExhausted));
    sender.skip_to(5);
    assert_eq!(sender.last_sequence(), u64::from(u32::MAX), "never back");
}

#[test]
fn packets_outside_the_selectors_are_refused_after_decryption() {
    let mut sa = child(
        EspSuite::Aes256CbcSha256,
        Mode::Transport,
        false,
        false,
        false,
        false,
    );
    let (mut sender, _) = pair(&sa);
    sa.remote_ts = Selectors::one(TrafficSelector {
        protocol: 17,
        first_port: 5001,
        last_port: 5001,
        ..TrafficSelector::host(remote(false))
    });
    let (_, mut receiver) = pair(&sa);
    let mut packet = Packet::new(&udp(local(false), remote(false), b"port 5000"));
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
    assert_eq!(
        packet.with(|p| receiver.open(NOW, p)),
        Err(DropReason::EspSelectorMismatch)
    );
}

#[test]
fn a_tunnel_does_not_let_other_hosts_in() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Tunnel, false, false, false, false);
    let (mut sender, mut receiver) = pair(&sa);
    let mut packet = Packet::new(&udp("10.9.9.9".parse().unwrap(), remote(false), b"spoofed"));
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(7))).unwrap();
    assert_eq!(
        packet.with(|p| receiver.open(NOW, p)),
        Err(DropReason::EspSelectorMismatch)
    );
}

#[test]
fn limits_stop_the_sender_and_the_receiver() {
    let mut sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, false, false);
    sa.lifetime = Lifetime {
        soft_seconds: 0,
        hard_seconds: 60,
        soft_bytes: 40,
        hard_bytes: 100,
    };
    let (mut sender, _) = pair(&sa);
    let mut send = |now| {
        Packet::new(&udp(local(false), remote(false), &[0; 22]))
            .with(|p| sender.seal(now, p, &mut TestRng(1)))
    };
    assert!(send(NOW).is_ok());
    assert!(send(NOW).is_ok());
    assert_eq!(send(NOW), Err(DropReason::EspLifetimeExpired));
    let (mut sender, mut receiver) = pair(&sa);
    let mut packet = Packet::new(&udp(local(false), remote(false), b""));
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
    let late = Instant::from_secs(61);
    assert_eq!(
        packet.with(|p| receiver.open(late, p)),
        Err(DropReason::EspLifetimeExpired)
    );
}

#[test]
fn size_and_room_are_checked_before_anything_is_spent() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, false, false);
    let (mut sender, _) = pair(&sa);
    let plain = udp(local(false), remote(false), &[0; 1400]);
    sender.set_path_mtu(Some(1430));
    let mut packet = Packet::new(&plain);
    assert_eq!(
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))),
        Err(DropReason::TooBig)
    );
    sender.set_path_mtu(None);
    let mut bare = plain.clone();
    let len = bare.len();
    let mut packet = PacketBuf::new(&mut bare, 0, len).unwrap();
    assert_eq!(
        sender.seal(NOW, &mut packet, &mut TestRng(1)),
        Err(DropReason::NoHeadroom)
    );
    assert_eq!(packet.bytes(), &plain[..]);
    assert_eq!(sender.last_sequence(), 0);
}

#[test]
fn fragments_are_not_for_transport_mode() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, false, false);
    let (mut sender, mut receiver) = pair(&sa);
    let mut plain = udp(local(false), remote(false), b"first fragment");
    plain[6] |= 0x20;
    assert_eq!(
        Packet::new(&plain).with(|p| sender.seal(NOW, p, &mut TestRng(1))),
        Err(DropReason::EspFragment)
    );
    let mut packet = Packet::new(&udp(local(false), remote(false), b"whole"));
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
    packet.buffer[HEADROOM - 16 + 6] |= 0x20;
    assert_eq!(
        packet.with(|p| receiver.open(NOW, p)),
        Err(DropReason::EspFragment)
    );
}

#[test]
fn ipv6_esp_goes_behind_hop_by_hop_and_routing_headers() {
    let sa = child(EspSuite::Aes256Gcm16, Mode::Transport, true, true, false, false);
    let (mut sender, mut receiver) = pair(&sa);
    let inner = udp(local(true), remote(true), b"behind options");
    let mut plain = inner[..40].to_vec();
    plain[6] = 0;
    plain.extend([60, 0, 1, 4, 0, 0, 0, 0]); // hop-by-hop
    plain.extend([17, 0, 1, 4, 0, 0, 0, 0]); // destination options: for the final destination, protected
    plain.extend(&inner[40..]);
    let payload_len = (plain.len() - 40) as u16;
    plain[4..6].copy_from_slice(&payload_len.to_be_bytes());
    let mut packet = Packet::new(&plain);
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
    assert_eq!(packet.bytes()[6], 0, "hop-by-hop stays in the clear");
    assert_eq!(packet.bytes()[40], 50, "then ESP");
    let opened = packet.with(|p| receiver.open(NOW, p)).unwrap();
    assert_eq!(opened.flow.protocol, 17);
    assert_eq!(opened.flow.destination_port, Some(5000));
    assert_eq!(packet.bytes(), &plain[..]);
}

#[test]
fn ipv4_options_stay_in_front_of_esp() {
    let sa = child(
        EspSuite::Aes128CbcSha256,
        Mode::Transport,
        false,
        false,
        true,
        false,
    );
    let (mut sender, mut receiver) = pair(&sa);
    let inner = udp(local(false), remote(false), b"router alert");
    let mut plain = inner[..20].to_vec();
    plain.extend([0x94, 4, 0, 0]);
    plain.extend(&inner[20..]);
    plain[0] = 0x46;
    let len = plain.len() as u16;
    plain[2..4].copy_from_slice(&len.to_be_bytes());
    plain[10..12].fill(0);
    let check = towpath_common::wire::checksum(&plain[..24]);
    plain[10..12].copy_from_slice(&check.to_be_bytes());
    let mut packet = Packet::new(&plain);
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
    assert_eq!(locate::esp(packet.bytes()).unwrap().udp_at, Some(24));
    packet.with(|p| receiver.open(NOW, p)).unwrap();
    assert_eq!(packet.bytes(), &plain[..]);
}

#[test]
fn the_outer_header_takes_over_what_rfc_4301_says() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Tunnel, false, false, false, false);
    let (mut sender, mut receiver) = pair(&sa);
    let mut plain = udp(local(false), remote(false), b"tos");
    plain[1] = 0xb8 | 0b10; // EF, ECT(0)
    plain[6] = 0x40; // DF
    plain[10..12].fill(0);
    let check = towpath_common::wire::checksum(&plain[..20]);
    plain[10..12].copy_from_slice(&check.to_be_bytes());
    let mut packet = Packet::new(&plain);
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
    assert_eq!(packet.bytes()[1], 0xba);
    assert_eq!(packet.bytes()[6], 0x40);
    // A router on the way marks congestion in the outer header.
    packet.buffer[packet.start + 1] |= 0b11;
    packet.with(|p| receiver.open(NOW, p)).unwrap();
    assert_eq!(packet.bytes()[1], 0xbb);
    assert_eq!(towpath_common::wire::checksum(&packet.bytes()[..20]), 0);
    assert_eq!(&packet.bytes()[20..], &plain[20..]);
}

#[test]
fn transport_checksums_are_mended_behind_a_nat() {
    for how in [ChecksumRepair::Recompute, ChecksumRepair::ZeroUdp] {
        let mut sa = child(EspSuite::Aes128Gcm16, Mode::Transport, false, false, true, false);
        let (mut sender, _) = pair(&sa);
        sa.local = "192.0.2.77".parse().unwrap(); // what the far end sees of the sender
        sa.local_ts = Selectors::one(TrafficSelector::host(sa.local));
        let (_, mut receiver) = pair(&sa);
        receiver.set_checksum_repair(how);
        let mut packet = Packet::new(&udp(local(false), remote(false), b"translated"));
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
        let at = packet.start + 12;
        packet.buffer[at..at + 4].copy_from_slice(&[192, 0, 2, 77]);
        packet.with(|p| receiver.open(NOW, p)).unwrap();
        let expected = udp("192.0.2.77".parse().unwrap(), remote(false), b"translated");
        match how {
            ChecksumRepair::Recompute => assert_eq!(packet.bytes()[20..], expected[20..]),
            _ => assert_eq!(packet.bytes()[26..28], [0, 0]),
        }
    }
}

#[test]
fn udp_encapsulation_has_a_checksum_over_ipv6_and_none_over_ipv4() {
    for v6 in [false, true] {
        let sa = child(EspSuite::Aes128Gcm16, Mode::Transport, v6, v6, true, false);
        let (mut sender, _) = pair(&sa);
        let mut packet = Packet::new(&udp(local(v6), remote(v6), b"encapsulated"));
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
        let sliced = etherparse::SlicedPacket::from_ip(packet.bytes()).unwrap();
        let Some(etherparse::TransportSlice::Udp(header)) = sliced.transport else {
            panic!("no UDP")
        };
        assert_eq!((header.source_port(), header.destination_port()), (4500, 4500));
        if v6 {
            let (std::net::IpAddr::V6(s), std::net::IpAddr::V6(d)) = (local(v6), remote(v6)) else {
                panic!()
            };
            let sum = header
                .to_header()
                .calc_checksum_ipv6_raw(s.octets(), d.octets(), header.payload())
                .unwrap();
            assert_eq!(header.checksum(), sum);
        } else {
            assert_eq!(header.checksum(), 0);
        }
    }
}
