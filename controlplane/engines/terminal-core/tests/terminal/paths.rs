//! What a terminal does about paths that take less than its packets.

use crate::common::*;
use towpath_base::DropReason;
use towpath_base::sa::Mode;
use towpath_ipsec::reassembly::{Limits, Outcome, Reassembler};
use towpath_ipsec::{icmp, locate};
use towpath_terminal_core::{Disposition, fragments};

/// A packet of `len` bytes to the peer, over IPv4 with "don't fragment" if asked for.
fn plain(v6: bool, len: usize, whole: bool) -> Vec<u8> {
    let header = if v6 { 48 } else { 28 };
    let mut packet = udp(here(v6), peer(v6), &vec![7; len - header]);
    if !v6 {
        packet[6] = if whole { 0x40 } else { 0 };
        packet[10..12].fill(0);
        let sum = towpath_common::wire::checksum(&packet[..20]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
    }
    packet
}

/// What becomes of it at the terminal.
fn outgoing(world: &mut World, packet: &[u8]) -> (Disposition, Vec<u8>) {
    let mut buffer = Buffer::new(packet);
    let disposition = buffer.with(|p| world.terminal.handle_plain(world.now, p, &mut world.rng));
    (disposition, buffer.packet().to_vec())
}

/// What a router on the way says of it.
fn told(about: &[u8], mtu: u16) -> Vec<u8> {
    let router = match about[0] >> 4 {
        4 => "192.0.2.77".parse().unwrap(),
        _ => "2001:db8::77".parse().unwrap(),
    };
    let mut buffer = [0; icmp::MAX_LEN];
    let len = icmp::write_too_big(&mut buffer, router, about, mtu).unwrap();
    buffer[..len].to_vec()
}

/// Who tells an application that its packet is too big, and what would fit.
fn answer(packet: &[u8]) -> (std::net::IpAddr, u16) {
    let at = locate::carried(packet).unwrap();
    let message = &packet[at.payload_at..];
    assert!(matches!(message, [3, 4, ..] | [2, 0, ..]), "{message:02x?}");
    (at.source, u16::from_be_bytes([message[6], message[7]]))
}

fn with_sa(v6: bool, mode: Mode, encap: bool) -> World {
    let mut world = World::new(1);
    (world.net.mode, world.net.encap) = (mode, encap);
    world.settle();
    world.application(&plain(v6, 100, true));
    world.settle();
    assert_eq!(world.received.len(), 1);
    world
}

#[test]
fn applications_are_told_what_a_router_told_of_the_path() {
    for v6 in [false, true] {
        for (mode, encap) in [
            (Mode::Transport, false),
            (Mode::Transport, true),
            (Mode::Tunnel, true),
        ] {
            let mut world = with_sa(v6, mode, encap);
            let long = plain(v6, 1390, true);
            let (disposition, sealed) = outgoing(&mut world, &long);
            assert_eq!(disposition, Disposition::Transmit);
            assert_eq!(world.network(&told(&sealed, 1400)), Disposition::Consumed);

            // The next one does not fit; what is told does, and one byte more does not.
            let (disposition, said) = outgoing(&mut world, &long);
            assert_eq!(disposition, Disposition::Deliver);
            let (from, fitting) = answer(&said);
            assert!(from == peer(v6) && (1280..1390).contains(&fitting), "{fitting}");
            let (disposition, sealed) = outgoing(&mut world, &plain(v6, fitting.into(), true));
            assert!(disposition == Disposition::Transmit && sealed.len() <= 1400);
            let (disposition, _) = outgoing(&mut world, &plain(v6, usize::from(fitting) + 4, true));
            assert_eq!(disposition, Disposition::Deliver);
            // It is forgotten in time (RFC 8201: 10 minutes).
            world.run_for(601);
            let (disposition, _) = outgoing(&mut world, &long);
            assert_eq!(disposition, Disposition::Transmit);
        }
    }
}

#[test]
fn what_nobody_may_be_told_of_is_cut_outside() {
    // IPv4 that may be cut; IPv6 that every path has to take.
    for (v6, len) in [(false, 1390), (true, 1280)] {
        for mode in [Mode::Transport, Mode::Tunnel] {
            let mut world = with_sa(v6, mode, false);
            let (_, sealed) = outgoing(&mut world, &plain(v6, 1390, true));
            assert_eq!(world.network(&told(&sealed, 1280)), Disposition::Consumed);
            let packet = plain(v6, len, false);
            let (disposition, sealed) = outgoing(&mut world, &packet);
            assert_eq!(disposition, Disposition::Cut(1280));
            let mut pieces = fragments(&sealed, 1280, 7).unwrap();
            let mut reassembler = Reassembler::new(Limits::default());
            let mut piece = [0; 1280];
            let mut whole = None;
            while let Some(len) = pieces.write_next(&mut piece) {
                if let Ok(Outcome::Complete(all)) = reassembler.push(world.now, &piece[..len]) {
                    whole = Some(all.to_vec());
                }
            }
            let opened = world.net.open(&whole.expect("all fragments")).unwrap();
            assert_eq!(opened, packet);
        }
    }
    // Over IPv6 a longer one is told the least that there is.
    let mut world = with_sa(true, Mode::Transport, false);
    let (_, sealed) = outgoing(&mut world, &plain(true, 1390, true));
    world.network(&told(&sealed, 1280));
    let (disposition, said) = outgoing(&mut world, &plain(true, 1390, true));
    assert_eq!((disposition, answer(&said).1), (Disposition::Deliver, 1280));
}

#[test]
fn what_quotes_no_packet_of_an_sa_is_not_believed() {
    for v6 in [false, true] {
        let mut world = with_sa(v6, Mode::Transport, false);
        let long = plain(v6, 1390, true);
        let (_, sealed) = outgoing(&mut world, &long);
        // A number that was never sent.
        let mut other = sealed.clone();
        let at = locate::esp(&sealed).unwrap().esp_at + 4;
        other[at] ^= 0x40;
        let refused = Disposition::Drop(DropReason::IcmpNotOurs);
        assert_eq!(world.network(&told(&other, 1280)), refused);
        world.terminal.handle_error(world.now, &told(&other, 1280));
        assert_eq!(world.terminal.drops(DropReason::IcmpNotOurs), 2);
        // An SPI of nobody's: some other traffic's of this host.
        let mut other = sealed.clone();
        other[at - 1] ^= 0x40;
        assert_eq!(world.network(&told(&other, 1280)), Disposition::Deliver);
        world.terminal.handle_error(world.now, &told(&other, 1280));
        assert_eq!(world.terminal.drops(DropReason::IcmpNotOurs), 2);
        assert_eq!(outgoing(&mut world, &long).0, Disposition::Transmit);
    }
}
