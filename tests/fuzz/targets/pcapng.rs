//! Captures: whatever is written reads as a chain of whole blocks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_telemetry::pcapng::{Direction, Writer};

/// Time, direction, bytes, comment.
type Packet = (u64, bool, Vec<u8>, Option<String>);

fuzz_target!(|input: (String, Vec<Packet>)| {
    let (interface, packets) = input;
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, &interface).expect("memory takes everything");
    for (time, to_peer, packet, comment) in &packets {
        let direction = if *to_peer {
            Direction::ToPeer
        } else {
            Direction::ToTerminal
        };
        writer
            .packet(*time, direction, packet, comment.as_deref())
            .expect("memory takes everything");
    }
    writer.flush().expect("memory takes everything");
    let word = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().expect("four bytes")) as usize;
    let (mut at, mut blocks) = (0, 0);
    while at < out.len() {
        let len = word(at + 4);
        assert!(len.is_multiple_of(4) && len >= 12 && at + len <= out.len());
        assert_eq!(word(at + len - 4), len, "both lengths agree");
        (at, blocks) = (at + len, blocks + 1);
    }
    assert_eq!(blocks, packets.len() + 2);
});
