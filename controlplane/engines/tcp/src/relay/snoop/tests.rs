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

/// Two segments of three are here, the first was lost; all under SA 1.
fn in_the_middle() -> (SnoopRelay, Vec<u8>) {
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
    let lost = data(&mut relay, ms(10), 1100, at(2));
    data(&mut relay, ms(20), 1200, at(3));
    ack(&mut relay, ms(30), 1100, &[]);
    (relay, lost)
}

#[test]
fn another_gateway_goes_on_with_the_cache() {
    let (old, lost) = in_the_middle();
    let key = *old.flows().next().expect("a connection");
    let bytes = old.snapshot(Instant::from_millis(30), &key).expect("it is known");
    // Another clock, and another number for the SA.
    let ms = |ms: u64| Instant::from_millis(1_000_000 + ms);
    let mut new = SnoopRelay::new(SnoopConfig::default());
    let seven = |sa| (sa == 1).then_some(7);
    assert_eq!(new.restore(ms(0), &bytes, seven), Ok(key));
    assert_eq!(new.cached_bytes(), old.cached_bytes());
    assert_eq!(new.view(&key), old.view(&key));
    assert!(new.restore(ms(0), &bytes, seven).is_err(), "it is there already");
    assert_eq!(ack(&mut new, ms(20), 1100, &[(1200, 1300)]), Verdict::Consumed);
    let repeat = new.poll_transmit(ms(20)).expect("the lost segment");
    assert_eq!(repeat.original.bytes, lost);
    assert_eq!(repeat.original.replay.map(|at| at.sa), Some(7));
    assert_eq!(ack(&mut new, ms(50), 1300, &[]), Verdict::Pass);
    assert_eq!(new.cached_bytes(), 0);
    // What was restored is written as it was read.
    let mut same = SnoopRelay::new(SnoopConfig::default());
    same.restore(ms(0), &bytes, Some).expect("a snapshot");
    assert_eq!(same.snapshot(ms(0), &key), Some(bytes));
}

#[test]
fn the_replay_window_moves_on_with_the_connection() {
    let (mut old, _) = in_the_middle();
    let key = *old.flows().next().expect("a connection");
    old.note_forwarded(1, 66);
    let now = Instant::from_millis(30);
    let bytes = old.snapshot(now, &key).expect("it is known");
    let mut new = SnoopRelay::new(SnoopConfig::default());
    new.restore(now, &bytes, Some).expect("a snapshot");
    ack(&mut new, Instant::from_millis(50), 1100, &[(1200, 1300)]);
    assert_eq!(new.poll_transmit(Instant::from_millis(50)), None);
    assert_eq!(new.stats().out_of_window, 1);
    // An SA that is not there: its originals are forgotten, the connection goes on.
    let mut without = SnoopRelay::new(SnoopConfig::default());
    without.restore(now, &bytes, |_| None).expect("a snapshot");
    assert_eq!((without.len(), without.cached_bytes()), (1, 0));
}

#[test]
fn a_snapshot_cut_short_or_with_a_bit_changed_is_refused_or_harmless() {
    let (old, _) = in_the_middle();
    let key = *old.flows().next().expect("a connection");
    let now = Instant::from_millis(30);
    let bytes = old.snapshot(now, &key).expect("it is known");
    let restored = |bytes: &[u8]| {
        let mut relay = SnoopRelay::new(SnoopConfig::default());
        relay.restore(now, bytes, Some).map(|_| relay)
    };
    for len in 0..bytes.len() {
        assert!(restored(&bytes[..len]).is_err(), "{len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let Ok(mut relay) = restored(&changed) else {
            continue;
        };
        ack(&mut relay, now, 1100, &[(1200, 1300)]);
        for _ in 0..20 {
            while relay.poll_transmit(now).is_some() {}
            let Some((at, _)) = relay.poll_timeout() else {
                break;
            };
            relay.handle_timeout(at);
        }
    }
}

#[test]
fn the_openings_of_a_connection_without_data_go_along() {
    let mut old = SnoopRelay::new(SnoopConfig::default());
    let syn = Header {
        source_port: 5000,
        destination_port: 80,
        flags: Flags::SYN,
        ..Header::default()
    };
    let bytes = packet(Side::Terminal, syn, &[]);
    let original = Original {
        bytes: &bytes,
        replay: None,
    };
    old.handle_input(Instant::ZERO, Side::Terminal, &bytes, original);
    let key = *old.hellos.keys().next().expect("a SYN was seen");
    let bytes = old.snapshot(Instant::ZERO, &key).expect("it is known");
    let mut new = SnoopRelay::new(SnoopConfig::default());
    assert_eq!(new.restore(Instant::ZERO, &bytes, Some), Ok(key));
    assert!(new.knows(&key) && new.is_empty());
}
