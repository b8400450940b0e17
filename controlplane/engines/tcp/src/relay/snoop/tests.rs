//! Snoop, packet by packet.

use alloc::vec::Vec;

use super::*;
use crate::packet::IpHeader;
use crate::segment::{Header, Options, SackBlocks, Timestamps};
use crate::seq::SeqNum;

fn packet(from: Side, header: Header, data: &[u8]) -> Vec<u8> {
    let (terminal, network) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let (source, destination) = match from {
        Side::Terminal => (terminal, network),
        Side::Network => (network, terminal),
    };
    let ip = IpHeader {
        source,
        destination,
        dscp: 0,
        ecn: Default::default(),
        ttl: 9,
    };
    let mut bytes = alloc::vec![0; 2000];
    let len = header.write(&mut bytes[20..]).unwrap();
    bytes[20 + len..20 + len + data.len()].copy_from_slice(data);
    let total = ip.finish(&mut bytes, len + data.len()).unwrap();
    bytes.truncate(total);
    bytes
}

fn data(relay: &mut SnoopRelay, now: Instant, seq: u32, replay: Option<ReplayPosition>) -> Vec<u8> {
    let header = Header {
        source_port: 80,
        destination_port: 5000,
        seq: SeqNum(seq),
        flags: Flags::ACK,
        ..Header::default()
    };
    let bytes = packet(Side::Network, header, &[7; 100]);
    let original = Original {
        bytes: &bytes,
        replay,
    };
    assert_eq!(
        relay.handle_input(now, Side::Network, &bytes, original),
        Verdict::Pass
    );
    bytes
}

fn ack(relay: &mut SnoopRelay, now: Instant, ack: u32, sack: &[(u32, u32)]) -> Verdict {
    let mut blocks = SackBlocks::default();
    for (left, right) in sack {
        blocks.push(SeqNum(*left), SeqNum(*right));
    }
    let header = Header {
        source_port: 5000,
        destination_port: 80,
        ack: SeqNum(ack),
        flags: Flags::ACK,
        options: Options {
            timestamps: Some(Timestamps { value: 1, echo: 2 }),
            sack: blocks,
            ..Options::default()
        },
        ..Header::default()
    };
    let bytes = packet(Side::Terminal, header, &[]);
    relay.handle_input(
        now,
        Side::Terminal,
        &bytes,
        Original {
            bytes: &bytes,
            replay: None,
        },
    )
}

#[test]
fn a_segment_lost_on_the_radio_is_repeated_and_the_peer_hears_nothing() {
    let mut relay = SnoopRelay::new(SnoopConfig::default());
    let ms = Instant::from_millis;
    data(&mut relay, ms(0), u32::MAX - 99, None);
    let lost = data(&mut relay, ms(10), 0, None);
    data(&mut relay, ms(20), 100, None);
    assert_eq!(ack(&mut relay, ms(30), 0, &[]), Verdict::Pass);
    assert_eq!(ack(&mut relay, ms(50), 0, &[(100, 200)]), Verdict::Consumed);
    let repeat = relay.poll_transmit(ms(50)).expect("the lost segment");
    assert_eq!(repeat.original.bytes, lost);
    assert_eq!(relay.poll_transmit(ms(50)), None);
    assert_eq!(ack(&mut relay, ms(80), 200, &[]), Verdict::Pass);
    assert_eq!(relay.cached_bytes, 0);
}

#[test]
fn what_was_lost_before_the_gateway_is_the_peers_to_repair() {
    let mut relay = SnoopRelay::new(SnoopConfig::default());
    let ms = Instant::from_millis;
    data(&mut relay, ms(0), 1000, None);
    data(&mut relay, ms(1), 1200, None);
    assert_eq!(ack(&mut relay, ms(20), 1100, &[]), Verdict::Pass);
    assert_eq!(ack(&mut relay, ms(21), 1100, &[(1200, 1300)]), Verdict::Pass);
    assert_eq!(relay.poll_transmit(ms(21)), None);
}

#[test]
fn an_original_outside_the_replay_window_is_not_repeated() {
    let mut relay = SnoopRelay::new(SnoopConfig::default());
    let ms = Instant::from_millis;
    let at = |sequence| {
        Some(ReplayPosition {
            sa: 1,
            sequence,
            window: 64,
        })
    };
    data(&mut relay, ms(0), 1000, at(1));
    data(&mut relay, ms(10), 1100, at(2));
    data(&mut relay, ms(20), 1200, at(3));
    ack(&mut relay, ms(30), 1100, &[]);
    relay.note_forwarded(1, 66);
    ack(&mut relay, ms(50), 1100, &[(1200, 1300)]);
    assert_eq!(relay.poll_transmit(ms(50)), None);
    assert_eq!(relay.stats().out_of_window, 1);
}

#[test]
fn a_tail_is_repeated_by_the_timer() {
    let mut relay = SnoopRelay::new(SnoopConfig::default());
    let tail = data(&mut relay, Instant::ZERO, 1000, None);
    let (mut now, mut repeats) = (Instant::ZERO, 0);
    while let Some((at, _)) = relay.poll_timeout().filter(|_| repeats < 3) {
        now = at;
        relay.handle_timeout(now);
        while let Some(repeat) = relay.poll_transmit(now) {
            assert_eq!(repeat.original.bytes, tail);
            repeats += 1;
        }
    }
    assert_eq!(repeats, 3);
    assert!(now < Instant::from_secs(10));
}

#[test]
fn a_changed_acknowledgment_has_a_right_checksum() {
    let mut blocks = SackBlocks::default();
    blocks.push(SeqNum(5), SeqNum(9));
    let header = Header {
        flags: Flags::ACK,
        options: Options {
            sack: blocks,
            ..Options::default()
        },
        ..Header::default()
    };
    let mut bytes = packet(Side::Terminal, header, b"odd");
    assert!(apply(
        Change {
            blank_sack: true,
            window: Some(77)
        },
        &mut bytes
    ));
    let packet = TcpPacket::parse(&bytes).unwrap();
    assert!(packet.segment.header.options.sack.is_empty());
    assert_eq!(packet.segment.header.window, 77);
    assert_eq!(packet.segment.payload, b"odd");
}
