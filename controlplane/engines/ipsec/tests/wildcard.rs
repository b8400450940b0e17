//! Mode `wildcard`: received as it came, sent as the packet needs, handed on as it lies.
#![allow(missing_docs)]

mod common;

use common::*;
use proptest::prelude::*;
use towpath_base::sa::{AhSa, ChildSa, EspIntegrity, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::{DropReason, Instant, Key, Spi};
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::{AhBridge, AhInbound, AhOutbound, Bridge, InboundSa, OutboundSa};

const NOW: Instant = Instant::from_secs(1);

/// A host behind the local end, no end of the SA.
fn behind(v6: bool) -> std::net::IpAddr {
    if v6 { "fd77:5::7" } else { "10.77.5.7" }.parse().unwrap()
}

/// Of `mode`; admits the local end and one host behind it, of either family.
fn sa(suite: EspSuite, mode: Mode, v6: bool, encap: bool) -> ChildSa {
    let hosts = |hosts: [_; 3]| Selectors::from_iter(hosts.map(TrafficSelector::host));
    ChildSa {
        local_ts: hosts([local(v6), behind(v6), behind(!v6)]),
        remote_ts: Selectors::from_iter([remote(v6), remote(!v6)].map(TrafficSelector::host)),
        ..child(suite, mode, v6, v6, encap, true)
    }
}

fn seal(by: &ChildSa, plain: &[u8]) -> Packet {
    let mut sender = OutboundSa::new(&SoftEsp, NOW, by).unwrap();
    let mut packet = Packet::new(plain);
    packet.with(|p| sender.seal(NOW, p, &mut TestRng(5))).unwrap();
    packet
}

fn open(at: &ChildSa, packet: &Packet) -> Result<Vec<u8>, DropReason> {
    let mut receiver = InboundSa::<_>::new(&SoftEsp, NOW, &at.mirrored()).unwrap();
    let mut packet = Packet::new(packet.bytes());
    packet.with(|p| receiver.open(NOW, p))?;
    assert_eq!(receiver.meter().bytes(), packet.len as u64);
    Ok(packet.bytes().to_vec())
}

/// An AH SA that admits the local end and the host behind it.
fn ah_sa(mode: Mode, v6: bool) -> AhSa {
    AhSa {
        local: local(v6),
        remote: remote(v6),
        integrity: EspIntegrity::HmacSha256,
        mode,
        esn: true,
        align8: false,
        bundled: false,
        spi_in: Spi(0x1001),
        spi_out: Spi(0x2002),
        key_in: Key::from_slice(&[1; 32]).unwrap(),
        key_out: Key::from_slice(&[2; 32]).unwrap(),
        local_ts: Selectors::from_iter([local(v6), behind(v6)].map(TrafficSelector::host)),
        remote_ts: Selectors::one(TrafficSelector::host(remote(v6))),
        lifetime: Lifetime::default(),
    }
}

/// The first fragment of a larger packet.
fn fragment(mut v4: Vec<u8>) -> Vec<u8> {
    v4[6] |= 0x20;
    v4[10..12].fill(0);
    let sum = towpath_common::wire::checksum(&v4[..20]).to_be_bytes();
    v4[10..12].copy_from_slice(&sum);
    v4
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn both_encapsulations_open_and_each_packet_is_sealed_in_the_one_it_needs(
        suite in prop::sample::select(EspSuite::ALL), v6: bool, encap: bool, len in 0usize..1500,
    ) {
        let [transport, tunnel, wildcard] = Mode::ALL else { unreachable!("three modes") };
        let [transport, tunnel, wildcard] = [transport, tunnel, wildcard].map(|mode| sa(suite, *mode, v6, encap));
        let own = udp(local(v6), remote(v6), &vec![0x5a; len]);
        let others = [udp(behind(v6), remote(v6), &vec![0x5a; len]), udp(behind(!v6), remote(!v6), &vec![0x5a; len])];

        // In: whatever the far end chose.
        for sender in [&transport, &tunnel] {
            prop_assert_eq!(open(&wildcard, &seal(sender, &own)).unwrap(), own.clone());
        }
        for plain in &others {
            prop_assert_eq!(&open(&wildcard, &seal(&tunnel, plain)).unwrap(), plain);
        }

        // Out: between the SA's own ends in transport mode, byte for byte as an SA that knows no other.
        let (sealed, strict) = (seal(&wildcard, &own), seal(&transport, &own));
        if !suite.is_counter_mode() && suite.iv_len() != 0 {
            prop_assert_eq!(sealed.len, strict.len);
        } else {
            prop_assert_eq!(sealed.bytes(), strict.bytes());
        }
        prop_assert_eq!(open(&transport, &sealed).unwrap(), own.clone());
        prop_assert!(open(&tunnel, &sealed).is_err());
        // Everything else in a tunnel, fragments of the ends' own packets, too: they have no place in transport mode.
        let pieces = if v6 { Vec::new() } else { vec![fragment(own.clone())] };
        for plain in others.iter().chain(&pieces) {
            let sealed = seal(&wildcard, plain);
            prop_assert_eq!(&open(&tunnel, &sealed).unwrap(), plain);
            prop_assert_eq!(&open(&wildcard, &sealed).unwrap(), plain);
        }
    }

    #[test]
    fn a_bridge_hands_on_the_encapsulation_that_came(
        suite in prop::sample::select(EspSuite::ALL), v6: bool, encap: bool, len in 0usize..1500, tunnelled: bool, to_peer: bool,
    ) {
        let peer = sa(suite, Mode::Wildcard, v6, encap);
        let (segment_in, segment_out) = (keys(suite, 0x33), keys(suite, 0x44));
        let mut bridge: Bridge<_> = Bridge::new(&SoftEsp, NOW, &peer, &segment_in, &segment_out).unwrap();
        // Both ends know one mode alone: what would be changed would not be opened.
        let mode = if tunnelled { Mode::Tunnel } else { Mode::Transport };
        let far = ChildSa { mode, ..peer.clone() };
        let near = ChildSa { keys_in: segment_in, keys_out: segment_out, ..far.clone() };
        let mut plain = udp(local(v6), remote(v6), &vec![0xa5; len]);
        let (sender, receiver) = if to_peer {
            (near, far)
        } else {
            plain = udp(remote(v6), local(v6), &vec![0xa5; len]);
            (far.mirrored(), near.mirrored())
        };
        let mut packet = seal(&sender, &plain);
        let before = packet.len;
        packet.with(|p| match to_peer {
            true => bridge.to_peer(NOW, p, &mut TestRng(6)),
            false => bridge.to_terminal(NOW, p, &mut TestRng(6)),
        }).unwrap();
        prop_assert_eq!(packet.len, before);
        let counted = bridge.peer_sender().meter().bytes() + bridge.peer_receiver().meter().bytes();
        prop_assert_eq!(counted, plain.len() as u64);
        prop_assert_eq!(open(&receiver, &packet).unwrap(), plain);
    }

    #[test]
    fn what_is_called_the_largest_fits_either_way(
        suite in prop::sample::select(EspSuite::ALL), v6: bool, encap: bool, mtu in 300u16..1600,
    ) {
        let wildcard = sa(suite, Mode::Wildcard, v6, encap);
        let mut sender = OutboundSa::new(&SoftEsp, NOW, &wildcard).unwrap();
        let largest = sender.largest_plain(mtu, !v6);
        let tunnel = OutboundSa::new(&SoftEsp, NOW, &sa(suite, Mode::Tunnel, v6, encap)).unwrap();
        prop_assert_eq!(largest, tunnel.largest_plain(mtu, !v6));
        sender.set_path_mtu(Some(mtu));
        let headers = if v6 { 48 } else { 28 };
        for source in [local(v6), behind(v6)] {
            let plain = udp(source, remote(v6), &vec![1; usize::from(largest) - headers]);
            let mut packet = Packet::new(&plain);
            packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
            prop_assert!(packet.len <= usize::from(mtu));
        }
    }

    #[test]
    fn ah_does_the_same(v6: bool, len in 0usize..1500) {
        let passes = |from, to, plain: &[u8]| {
            let mut packet = Packet::new(plain);
            let mut sender = AhOutbound::new(&SoftEsp, NOW, &ah_sa(from, v6)).unwrap();
            packet.with(|p| sender.seal(NOW, p)).unwrap();
            let mut receiver = AhInbound::<_>::new(&SoftEsp, NOW, &ah_sa(to, v6).mirrored()).unwrap();
            packet.with(|p| receiver.open(NOW, p)).is_ok() && packet.bytes() == plain
        };
        let own = udp(local(v6), remote(v6), &vec![1; len]);
        let other = udp(behind(v6), remote(v6), &vec![1; len]);
        prop_assert!(passes(Mode::Transport, Mode::Wildcard, &own));
        prop_assert!(passes(Mode::Tunnel, Mode::Wildcard, &own));
        prop_assert!(passes(Mode::Tunnel, Mode::Wildcard, &other));
        prop_assert!(passes(Mode::Wildcard, Mode::Transport, &own));
        prop_assert!(!passes(Mode::Wildcard, Mode::Tunnel, &own));
        prop_assert!(passes(Mode::Wildcard, Mode::Tunnel, &other));
    }
}

#[test]
fn selectors_hold_for_what_lies_inside_and_a_tunnel_of_nonsense_is_refused() {
    let suite = EspSuite::Aes128Gcm16;
    let wildcard = sa(suite, Mode::Wildcard, false, false);
    let anybody = |mode| ChildSa {
        local_ts: Selectors::one("0.0.0.0/0".parse().unwrap()),
        ..sa(suite, mode, false, false)
    };
    // Its outer header is as it should be; inside is a host that the SA does not admit.
    let stranger = udp("10.9.9.9".parse().unwrap(), remote(false), &[1; 8]);
    let sealed = seal(&anybody(Mode::Tunnel), &stranger);
    assert_eq!(open(&wildcard, &sealed), Err(DropReason::EspSelectorMismatch));
    // In transport mode, protocol 4 around what is no IP packet.
    let mut nonsense = udp(local(false), remote(false), &[0xff; 20]);
    nonsense[9] = 4;
    nonsense[20] = 0xff;
    let sealed = seal(&sa(suite, Mode::Transport, false, false), &nonsense);
    assert_eq!(open(&wildcard, &sealed), Err(DropReason::BadIpHeader));
}

#[test]
fn what_is_opened_and_sealed_keeps_the_encapsulation_it_came_in() {
    let suite = EspSuite::Aes256Gcm16;
    for v6 in [false, true] {
        let gateway = sa(suite, Mode::Wildcard, v6, false);
        let keys = |fill| towpath_base::testutil::esp_keys(suite, fill);
        let mut bridge: Bridge<_> = Bridge::new(&SoftEsp, NOW, &gateway, &keys(60), &keys(61)).unwrap();
        let mut ah: AhBridge<_> = AhBridge::shared(&SoftEsp, NOW, &ah_sa(Mode::Wildcard, v6)).unwrap();
        let plain = udp(local(v6), remote(v6), &[1; 300]);
        let answer = udp(remote(v6), local(v6), &[2; 200]);
        for (round, mode) in [Mode::Tunnel, Mode::Transport, Mode::Tunnel]
            .into_iter()
            .enumerate()
        {
            // The ends know this mode alone.
            let end = ChildSa {
                mode,
                ..gateway.clone()
            };
            let segment = ChildSa {
                keys_in: keys(60),
                keys_out: keys(61),
                ..end.clone()
            };
            let mut sender = OutboundSa::new(&SoftEsp, NOW, &segment).unwrap();
            sender.skip_to(round as u64);
            let mut packet = Packet::new(&plain);
            packet.with(|p| sender.seal(NOW, p, &mut TestRng(5))).unwrap();
            packet.with(|p| bridge.open(true, NOW, p)).unwrap();
            packet
                .with(|p| bridge.seal(true, NOW, p, &mut TestRng(6)))
                .unwrap();
            assert_eq!(open(&end, &packet).as_deref(), Ok(&plain[..]), "{mode}");
            if round == 0 {
                // Nothing came that way yet: it is what the other way is.
                let mut packet = Packet::new(&answer);
                packet
                    .with(|p| bridge.seal(false, NOW, p, &mut TestRng(7)))
                    .unwrap();
                let mut receiver = InboundSa::<_>::new(&SoftEsp, NOW, &segment).unwrap();
                packet.with(|p| receiver.open(NOW, p)).unwrap();
                assert_eq!(packet.bytes(), answer);
            }

            let end = ah_sa(mode, v6);
            let mut sender = AhOutbound::new(&SoftEsp, NOW, &end).unwrap();
            sender.skip_to(round as u64);
            let mut packet = Packet::new(&plain);
            packet.with(|p| sender.seal(NOW, p)).unwrap();
            packet.with(|p| ah.open(true, NOW, p)).unwrap();
            packet.with(|p| ah.seal(true, NOW, p)).unwrap();
            let mut receiver = AhInbound::<_>::new(&SoftEsp, NOW, &end.mirrored()).unwrap();
            packet.with(|p| receiver.open(NOW, p)).unwrap();
            assert_eq!(packet.bytes(), plain, "AH {mode}");
        }
    }
}
