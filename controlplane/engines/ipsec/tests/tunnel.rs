//! Tunnel mode, sizes, fragments and the ICMP errors about them.
#![allow(missing_docs)]

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::*;
use proptest::prelude::*;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform};
use towpath_base::sa::{EspSuite, Mode};
use towpath_base::{DropReason, Instant};
use towpath_common::wire::checksum;
use towpath_ipsec::reassembly::{Limits, Outcome, Reassembler};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{
    InboundSa, OutboundSa, OuterDf, OuterDscp, OuterEcn, OuterPolicy, fragment, icmp, locate, pmtu,
};

const NOW: Instant = Instant::from_secs(1);

fn pair(sa: &towpath_base::sa::ChildSa) -> (OutboundSa<SoftTransform>, InboundSa<SoftTransform>) {
    let sender = OutboundSa::new(&SoftEsp, NOW, sa).unwrap();
    (sender, InboundSa::new(&SoftEsp, NOW, &sa.mirrored()).unwrap())
}

/// A UDP packet that routers may fragment.
fn loose(source: IpAddr, destination: IpAddr, body: &[u8]) -> Vec<u8> {
    let mut packet = udp(source, destination, body);
    if packet[0] >> 4 == 4 {
        packet[6] = 0;
        set_tos(&mut packet, 0);
    }
    packet
}

fn tos_of(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 {
        packet[1]
    } else {
        packet[0] << 4 | packet[1] >> 4
    }
}

fn set_tos(packet: &mut [u8], tos: u8) {
    if packet[0] >> 4 == 4 {
        packet[1] = tos;
        packet[10..12].fill(0);
        let check = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    } else {
        packet[0] = 0x60 | tos >> 4;
        packet[1] = tos << 4 | packet[1] & 0x0f;
    }
}

/// All 16 combinations of inner and outer ECN field in all four combinations of families: RFC 6040 §4.1 on the way in,
/// figure 4 on the way out.
#[test]
fn congestion_marks_cross_the_tunnel_as_rfc_6040_says() {
    let table: [[Option<u8>; 4]; 4] = [
        // outer: not-ECT, ECT(1), ECT(0), CE
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (outer_v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let sa = child(
            EspSuite::Aes128Gcm16,
            Mode::Tunnel,
            outer_v6,
            inner_v6,
            false,
            false,
        );
        for (inner, row) in table.iter().enumerate() {
            for (outer, expected) in row.iter().enumerate() {
                for (ecn, arrives_outside) in [(OuterEcn::Normal, inner as u8), (OuterEcn::Compatibility, 0)]
                {
                    let (mut sender, mut receiver) = pair(&sa);
                    sender.set_outer_policy(OuterPolicy {
                        ecn,
                        ..OuterPolicy::default()
                    });
                    let mut plain = udp(local(inner_v6), remote(inner_v6), b"marked");
                    set_tos(&mut plain, 0xb8 | inner as u8);
                    let mut packet = Packet::new(&plain);
                    packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
                    assert_eq!(tos_of(packet.bytes()), 0xb8 | arrives_outside);
                    let (start, len) = (packet.start, packet.len);
                    // A network in between changes the mark, and the DSCP, which stays outside.
                    set_tos(&mut packet.buffer[start..start + len], 0x20 | outer as u8);
                    let result = packet.with(|p| receiver.open(NOW, p));
                    match expected {
                        None => assert_eq!(result, Err(DropReason::EcnNotCapable)),
                        Some(ecn) => {
                            set_tos(&mut plain, 0xb8 | ecn);
                            assert!(result.is_ok());
                            assert_eq!(packet.bytes(), &plain[..], "{inner:02b} in {outer:02b}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_outer_header_follows_the_policy() {
    let sa = child(EspSuite::Aes128Gcm16, Mode::Tunnel, false, false, false, false);
    for inner_df in [false, true] {
        for (df, expected) in [
            (OuterDf::Copy, inner_df),
            (OuterDf::Set, true),
            (OuterDf::Clear, false),
        ] {
            let (mut sender, _) = pair(&sa);
            let mut plain = udp(local(false), remote(false), b"df");
            plain[6] = if inner_df { 0x40 } else { 0 };
            set_tos(&mut plain, 0xb8);
            sender.set_outer_policy(OuterPolicy {
                df,
                dscp: OuterDscp::Set(10),
                ..OuterPolicy::default()
            });
            let mut packet = Packet::new(&plain);
            packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
            assert_eq!((packet.bytes()[6] & 0x40 != 0, packet.bytes()[1]), (expected, 40));
            assert_eq!(checksum(&packet.bytes()[..20]), 0);
        }
    }
}

/// Seals `payload` with a trailer of our own making, as no sender of ours does.
fn sealed_by_hand(sa: &towpath_base::sa::ChildSa, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut outer = udp(local(false), remote(false), &[])[..20].to_vec();
    let mut body = payload.to_vec();
    let padding = (4 - (body.len() + 2) % 4) % 4;
    body.extend(1..=padding as u8);
    body.extend([padding as u8, next_header]);
    let header = [0, 0, 0x20, 0x02, 0, 0, 0, 1];
    let (iv, mut icv) = ([0, 0, 0, 0, 0, 0, 0, 1], [0; 16]);
    let mut transform = SoftEsp.transform(sa.suite, &sa.keys_out).unwrap();
    let parts = EspParts {
        header,
        esn_high: None,
        iv: &iv,
        payload: &mut body,
        icv: &mut icv,
    };
    transform.seal(parts).unwrap();
    outer[9] = 50;
    let len = (20 + 16 + body.len() + 16) as u16;
    outer[2..4].copy_from_slice(&len.to_be_bytes());
    set_tos(&mut outer, 0);
    [&outer[..], &header, &iv, &body, &icv].concat()
}

#[test]
fn traffic_flow_padding_and_dummies_are_taken() {
    let tunnel = child(EspSuite::Aes256Gcm16, Mode::Tunnel, false, false, false, false);
    let plain = udp(local(false), remote(false), b"padded to hide its length");
    for padding in [0usize, 1, 3, 500] {
        let mut payload = plain.clone();
        payload.extend(vec![0xa5; padding]);
        let (_, mut receiver) = pair(&tunnel);
        let mut packet = Packet::new(&sealed_by_hand(&tunnel, 4, &payload));
        packet.with(|p| receiver.open(NOW, p)).unwrap();
        assert_eq!(packet.bytes(), &plain[..]);
    }
    for mode in Mode::ALL {
        let sa = child(EspSuite::Aes256Gcm16, *mode, false, false, false, false);
        for len in [0usize, 2, 1000] {
            let (_, mut receiver) = pair(&sa);
            let mut packet = Packet::new(&sealed_by_hand(&sa, 59, &vec![0xa5; len]));
            assert_eq!(packet.with(|p| receiver.open(NOW, p)), Err(DropReason::EspDummy));
            // It counts for the replay window all the same.
            assert_eq!(receiver.highest_sequence(), 1);
        }
    }
}

#[test]
fn inner_fragments_cross_a_tunnel() {
    let sa = child(EspSuite::Aes256CbcSha512, Mode::Tunnel, true, false, false, true);
    let (mut sender, mut receiver) = pair(&sa);
    let plain = loose(local(false), remote(false), &[7; 3000]);
    let mut cut = fragment::fragments(&plain, 1280, 0).unwrap();
    let mut buffer = [0; 1280];
    let mut whole = Reassembler::new(Limits::default());
    let mut count = 0;
    let assembled = loop {
        let len = cut.write_next(&mut buffer).expect("not complete yet");
        count += 1;
        let mut packet = Packet::new(&buffer[..len]);
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(count))).unwrap();
        packet.with(|p| receiver.open(NOW, p)).unwrap();
        assert_eq!(packet.bytes(), &buffer[..len]);
        if let Outcome::Complete(bytes) = whole.push(NOW, packet.bytes()).unwrap() {
            break bytes;
        }
    };
    assert_eq!((count, assembled), (3, plain));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_sealed_packet_exceeds_the_path_mtu(
        suite in prop::sample::select(EspSuite::ALL), mode in prop::sample::select(Mode::NEGOTIATED), outer_v6: bool, inner: bool, encap: bool,
        mtu in 300u16..9100, around in -40isize..40,
    ) {
        let inner_v6 = if mode == Mode::Tunnel { inner } else { outer_v6 };
        let sa = child(suite, mode, outer_v6, inner_v6, encap, false);
        let (mut sender, mut receiver) = pair(&sa);
        sender.set_path_mtu(Some(mtu));
        let largest = usize::from(sender.largest_plain(mtu, !inner_v6));
        let headers = if inner_v6 { 48 } else { 28 };
        let len = largest.saturating_add_signed(around).max(headers);
        let plain = udp(local(inner_v6), remote(inner_v6), &vec![1; len - headers]);
        prop_assert_eq!(plain.len(), len);
        let mut packet = Packet::new(&plain);
        let result = packet.with(|p| sender.seal(NOW, p, &mut TestRng(1)));
        if len <= largest {
            prop_assert!(result.is_ok());
            prop_assert!(packet.len <= mtu.into());
            packet.with(|p| receiver.open(NOW, p)).unwrap();
            prop_assert_eq!(packet.bytes(), &plain[..]);
        } else {
            prop_assert_eq!(result.err(), Some(DropReason::TooBig));
            prop_assert_eq!((packet.bytes(), sender.last_sequence()), (&plain[..], 0));
        }
    }

    #[test]
    fn fragments_fit_and_come_together_again_in_any_order(
        v6: bool, options: bool, len in 0usize..9000, mtu in 1280u16..1600, seed: u64, repeat: bool,
    ) {
        let mut plain = loose(local(v6), remote(v6), &(0..len).map(|i| i as u8).collect::<Vec<_>>());
        if options && !v6 {
            plain = with_router_alert_and_record_route(&plain);
        }
        let mut cut = fragment::fragments(&plain, mtu, 77).unwrap();
        let mut pieces = Vec::new();
        let mut buffer = vec![0; mtu.into()];
        while let Some(len) = cut.write_next(&mut buffer) {
            prop_assert!(len <= mtu.into());
            prop_assert!(etherparse::SlicedPacket::from_ip(&buffer[..len]).is_ok());
            pieces.push(buffer[..len].to_vec());
        }
        if repeat && pieces.len() > 1 {
            pieces.push(pieces[0].clone());
            pieces.swap_remove(0);
        }
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(seed | 1) >> 7);
        let mut whole = Reassembler::new(Limits::default());
        for (n, at) in order.iter().enumerate() {
            match whole.push(NOW, &pieces[*at]).unwrap() {
                Outcome::Complete(bytes) => {
                    prop_assert_eq!(n + 1, pieces.len());
                    prop_assert_eq!(&bytes, &plain);
                }
                Outcome::Kept => prop_assert!(n + 1 < pieces.len()),
                Outcome::Whole => prop_assert_eq!(pieces.len(), 1),
            }
        }
        if pieces.len() > 1 {
            prop_assert_eq!((whole.len(), whole.bytes()), (0, 0));
        }
    }

    #[test]
    fn no_bytes_from_the_wire_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool, kind: u8, mtu: u16) {
        let mut bytes = bytes;
        let len = bytes.len() as u16;
        if let Some(header) = bytes.first_chunk_mut::<40>() {
            header[0] = if v6 { 0x60 } else { 0x46 };
            let (len, at) = if v6 { (len - 40, 4) } else { (len, 2) };
            header[at..at + 2].copy_from_slice(&len.to_be_bytes());
            header[if v6 { 6 } else { 9 }] = [44, 1, 58, 50, 0, 60][usize::from(kind) % 6];
        }
        let mut whole = Reassembler::new(Limits { datagrams: 2, per_source: 1, bytes: 200, ..Limits::default() });
        let _ = whole.push(NOW, &bytes);
        let _ = icmp::read_too_big(&bytes);
        let mut buffer = [0; icmp::MAX_LEN];
        let _ = icmp::write_too_big(&mut buffer, local(v6), &bytes, mtu);
        if let Ok(mut cut) = fragment::fragments(&bytes, mtu, 1) {
            while cut.write_next(&mut buffer).is_some() {}
        }
    }
}

fn with_router_alert_and_record_route(plain: &[u8]) -> Vec<u8> {
    let mut packet = plain[..20].to_vec();
    packet.extend([0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0]);
    packet.extend(&plain[20..]);
    packet[0] = 0x48;
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[10..12].fill(0);
    let check = checksum(&packet[..32]);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}

/// Fragments of `plain` at `mtu`.
fn cut(plain: &[u8], mtu: u16, id: u32) -> Vec<Vec<u8>> {
    let mut cut = fragment::fragments(plain, mtu, id).unwrap();
    let mut buffer = vec![0; mtu.into()];
    std::iter::from_fn(|| cut.write_next(&mut buffer).map(|len| buffer[..len].to_vec())).collect()
}

#[test]
fn a_fragmented_esp_packet_opens_once_it_is_whole() {
    for (v6, encap) in [(false, false), (false, true), (true, false), (true, true)] {
        let sa = child(EspSuite::Aes128Gcm16, Mode::Transport, v6, v6, encap, false);
        let (mut sender, mut receiver) = pair(&sa);
        let plain = loose(local(v6), remote(v6), &[3; 1472]);
        let mut packet = Packet::new(&plain);
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
        let mut whole = Reassembler::new(Limits::default());
        let mut pieces = cut(packet.bytes(), 1400, 5);
        pieces.reverse();
        assert_eq!(pieces.len(), 2);
        assert_eq!(locate::esp(&pieces[0]).err(), Some(DropReason::EspFragment));
        assert_eq!(whole.push(NOW, &pieces[0]), Ok(Outcome::Kept));
        let Ok(Outcome::Complete(bytes)) = whole.push(NOW, &pieces[1]) else {
            panic!()
        };
        let mut packet = Packet::new(&bytes);
        packet.with(|p| receiver.open(NOW, p)).unwrap();
        assert_eq!(packet.bytes(), &plain[..]);
    }
}

#[test]
fn overlapping_fragments_end_their_datagram() {
    for v6 in [false, true] {
        let plain = loose(local(v6), remote(v6), &[3; 4000]);
        let pieces = cut(&plain, 1300, 9);
        let at = if v6 { 42 } else { 6 };
        // The second fragment again, eight bytes further to the left, and with other bytes at its own place.
        let mut moved = pieces[1].clone();
        let offset = u16::from_be_bytes([moved[at], moved[at + 1]]) - if v6 { 8 } else { 1 };
        moved[at..at + 2].copy_from_slice(&offset.to_be_bytes());
        let mut changed = pieces[1].clone();
        *changed.last_mut().unwrap() ^= 1;
        // One that ends beyond the last.
        let mut beyond = pieces[1].clone();
        let offset = if v6 { 8000 | 1 } else { 0x2000 | 1000u16 };
        beyond[at..at + 2].copy_from_slice(&offset.to_be_bytes());
        for bad in [&moved, &changed, &beyond] {
            let mut whole = Reassembler::new(Limits::default());
            assert_eq!(whole.push(NOW, pieces.last().unwrap()), Ok(Outcome::Kept));
            assert_eq!(whole.push(NOW, &pieces[1]), Ok(Outcome::Kept));
            assert_eq!(
                whole.push(NOW, &pieces[1]),
                Ok(Outcome::Kept),
                "an exact duplicate is no attack"
            );
            assert_eq!(whole.push(NOW, bad), Err(DropReason::ReassemblyOverlap));
            // What is left of the datagram does not come through either.
            for piece in &pieces {
                assert_eq!(whole.push(NOW, piece), Err(DropReason::ReassemblyOverlap));
            }
            assert!(whole.bytes() < 200);
            assert_eq!(whole.expire(NOW + Duration::from_secs(15)), 1);
        }
    }
}

#[test]
fn half_datagrams_are_bounded_in_number_bytes_and_time() {
    let limits = Limits {
        datagrams: 8,
        per_source: 3,
        bytes: 6000,
        lifetime: Duration::from_secs(5),
    };
    let mut whole = Reassembler::new(limits);
    let from = |last: u8, id: u16| {
        let source: IpAddr = std::net::Ipv4Addr::new(192, 0, 2, last).into();
        let mut pieces = cut(&loose(source, remote(false), &[1; 1200]), 700, 0);
        for piece in &mut pieces {
            piece[4..6].copy_from_slice(&id.to_be_bytes());
        }
        pieces
    };
    for n in 0..1000u16 {
        let now = NOW + Duration::from_millis(n.into());
        assert_eq!(whole.push(now, &from((n % 2) as u8, n)[0]), Ok(Outcome::Kept));
        assert!(whole.len() <= 6 && whole.bytes() <= 6000);
    }
    // Two noisy sources do not keep a third from its datagram.
    let pieces = from(99, 1);
    let now = NOW + Duration::from_secs(1);
    assert_eq!(whole.push(now, &pieces[1]), Ok(Outcome::Kept));
    assert!(matches!(whole.push(now, &pieces[0]), Ok(Outcome::Complete(_))));
    for n in 0..200u8 {
        let _ = whole.push(now + Duration::from_millis(n.into()), &from(n, 1)[0]);
        assert!(
            whole.len() <= 8 && whole.bytes() <= 6000,
            "{} {}",
            whole.len(),
            whole.bytes()
        );
    }
    assert!(whole.displaced() > 1000);
    assert!(whole.poll_timeout().unwrap() <= now + Duration::from_secs(6));
    whole.expire(NOW + Duration::from_secs(60));
    assert_eq!((whole.len(), whole.bytes(), whole.poll_timeout()), (0, 0, None));
}

#[test]
fn too_big_is_said_and_believed_only_of_packets_sent_lately() {
    for (mode, v6, encap) in [
        (Mode::Transport, false, false),
        (Mode::Tunnel, true, false),
        (Mode::Transport, false, true),
        (Mode::Tunnel, true, true),
    ] {
        let sa = child(EspSuite::Aes256Gcm16, mode, v6, v6, encap, false);
        let (mut sender, _) = pair(&sa);
        let router: IpAddr = if v6 { "fd77:5::1" } else { "10.5.5.5" }.parse().unwrap();
        let mut plain = udp(local(v6), remote(v6), &[1; 1300]);
        if !v6 {
            plain[6] = 0x40;
            set_tos(&mut plain, 0);
        }
        let mut packet = Packet::new(&plain);
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
        // What a router would say of the sealed packet.
        let mut buffer = [0; icmp::MAX_LEN];
        let len = icmp::write_too_big(&mut buffer, router, packet.bytes(), 1300).unwrap();
        let sliced = etherparse::SlicedPacket::from_ip(&buffer[..len]);
        assert!(sliced.is_ok_and(|packet| packet.transport.is_some()));
        assert!(len <= if v6 { 1280 } else { 576 });
        let told = icmp::read_too_big(&buffer[..len]).unwrap();
        assert_eq!((told.mtu, told.spi, told.sequence), (1300, sa.spi_out, 1));
        // Another SA, a number not yet sent, other addresses: made up.
        for made_up in [
            icmp::TooBig {
                spi: sa.spi_in,
                ..told
            },
            icmp::TooBig { sequence: 2, ..told },
            icmp::TooBig { sequence: 0, ..told },
            icmp::TooBig {
                destination: router,
                ..told
            },
            icmp::TooBig { protocol: 51, ..told },
        ] {
            assert_eq!(sender.on_too_big(NOW, &made_up), Err(DropReason::IcmpNotOurs));
        }
        assert_eq!(sender.on_too_big(NOW, &told), Ok(Some(1300)));
        assert_eq!(sender.on_too_big(NOW, &told), Ok(None));
        let tiny = icmp::TooBig { mtu: 100, ..told };
        let floor = if v6 { pmtu::MIN_IPV6 } else { pmtu::MIN_IPV4 };
        assert_eq!(sender.on_too_big(NOW, &tiny), Ok(Some(floor)));
        assert_eq!(sender.path_mtu().at(NOW), Some(floor));
        let mut packet = Packet::new(&plain);
        assert_eq!(
            packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))),
            Err(DropReason::TooBig)
        );
        // The sender of the plain packet is told what fits, and that does fit.
        let fits = sender.largest_plain(floor, !v6);
        let len = icmp::write_too_big(&mut buffer, router, packet.bytes(), fits).unwrap();
        // That quotes a packet of the application: what it says is not about this SA.
        let of_the_plain = icmp::read_too_big(&buffer[..len]).unwrap();
        assert_eq!(
            sender.on_too_big(NOW, &of_the_plain),
            Err(DropReason::IcmpNotOurs)
        );
        // The path is tried again in ten minutes.
        let later = NOW + pmtu::DEFAULT_AGE;
        assert!(packet.with(|p| sender.seal(later, p, &mut TestRng(1))).is_ok());
        // An old number is not believed any more.
        sender.skip_to(100_000);
        assert_eq!(sender.on_too_big(later, &told), Err(DropReason::IcmpNotOurs));
    }
}

#[test]
fn nothing_is_said_of_packets_nobody_may_be_told_about() {
    let mut buffer = [0; icmp::MAX_LEN];
    let mut say =
        |packet: &[u8], v6: bool| icmp::write_too_big(&mut buffer, local(v6), packet, 1280).is_some();
    let mut plain = loose(local(false), remote(false), &[1; 1400]);
    assert!(!say(&plain, false), "may be fragmented");
    plain[6] = 0x40;
    assert!(say(&plain, false));
    assert!(!say(&plain, true), "the other family");
    let mut error = plain.clone();
    (error[9], error[20]) = (1, 3);
    assert!(!say(&error, false), "an ICMP error");
    error[20] = 8;
    assert!(say(&error, false), "an echo request");
    let mut nobody = plain.clone();
    nobody[12..16].copy_from_slice(&[224, 0, 0, 1]);
    assert!(!say(&nobody, false));
    let mut plain = udp(local(true), remote(true), &[1; 1400]);
    assert!(say(&plain, true));
    (plain[6], plain[40]) = (58, 1);
    assert!(!say(&plain, true), "an ICMPv6 error");
    plain[40] = 128;
    assert!(say(&plain, true));
    plain[8..24].fill(0);
    assert!(!say(&plain, true));
}
