//! IP-in-IP and GRE around packets: what is taken off goes back on, the same or made fresh or the other way round.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_base::packet::PacketBuf;
use towpath_common::wire::checksum;
use towpath_fuzz::ipsec;
use towpath_ipsec::{locate, wrapped};

/// A packet inside another whose fields fit each other, but for what `flags` makes of GRE and `bytes` of the inside.
fn around(flags: u8, bytes: &[u8]) -> Vec<u8> {
    let (outer_v6, inner_v6, gre) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let inner = if flags & 8 != 0 {
        bytes.to_vec()
    } else {
        ipsec::ip(inner_v6, 50, bytes)
    };
    if !gre {
        return ipsec::ip(outer_v6, if inner_v6 { 41 } else { 4 }, &inner);
    }
    let (sum, key) = (flags & 16 != 0, flags & 32 != 0);
    // Sequence numbers, at times: not to be looked into.
    let first = u8::from(sum) << 7 | u8::from(key) << 5 | (flags & 64) >> 2;
    let mut body = vec![first, 0];
    body.extend(if inner_v6 { [0x86, 0xdd] } else { [8, 0] });
    body.extend(vec![0; 4 * (usize::from(sum) + usize::from(key))]);
    body.extend(inner);
    if sum {
        let value = checksum(&body).to_be_bytes();
        body[4..6].copy_from_slice(&value);
    }
    ipsec::ip(outer_v6, 47, &body)
}

/// `inner` with `wrap` around it, in a buffer with room in front.
fn put(wrap: &wrapped::Wrap, inner: &[u8]) -> Option<Vec<u8>> {
    let room = usize::from(wrap.len());
    let mut buffer = vec![0; room + inner.len()];
    buffer[room..].copy_from_slice(inner);
    let mut packet = PacketBuf::new(&mut buffer, room, inner.len())?;
    wrap.put(&mut packet)?;
    Some(packet.bytes().to_vec())
}

fuzz_target!(|input: (bool, u8, u16, &[u8])| {
    let (raw, flags, name, bytes) = input;
    let bytes = bytes.get(..2000).unwrap_or(bytes);
    let mut packet = if raw { bytes.to_vec() } else { around(flags, bytes) };
    let Some((wrap, at)) = wrapped::unwrap(&packet) else {
        return;
    };
    assert!(usize::from(wrap.len()) == at.start && at.end <= packet.len());
    let inner = packet[at.clone()].to_vec();
    let _ = locate::carried(&inner);
    let _ = locate::esp(&inner);
    let whole = put(&wrap, &inner).expect("what was taken off goes back on");
    let (again, same) = wrapped::unwrap(&whole).expect("and comes off again");
    assert!(whole[same] == inner && again.ends() == wrap.ends());
    let fresh = put(&wrap.fresh(name, &inner), &inner).expect("as long as the other");
    assert!(
        wrapped::unwrap(&fresh).is_some(),
        "what is made fresh is looked through again"
    );
    if let Some(back) = wrap.reversed() {
        assert!(wrapped::unwrap(&put(&back, &inner).expect("as long")).is_some());
        let ends = wrap.ends().map(|(source, destination)| (destination, source));
        assert!(back.ends() == ends);
    }
    // The inside changes, as where a gateway seals it anew, and the sum is mended.
    if let Some(last) = packet.get_mut(at.end - 1) {
        *last ^= flags;
    }
    wrapped::mend(&mut packet, &wrap);
    if let Some((_, now)) = wrapped::unwrap(&packet) {
        assert!(now == at, "the same place");
    }
});
