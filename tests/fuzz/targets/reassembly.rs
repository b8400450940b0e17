//! Reassembly of outer fragments, and ICMP about packets that were too big.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use towpath_base::Instant;
use towpath_fuzz::ipsec;
use towpath_ipsec::icmp;
use towpath_ipsec::reassembly::{Limits, Outcome, Reassembler};

const LIMITS: Limits = Limits {
    datagrams: 8,
    per_source: 4,
    bytes: 20_000,
    lifetime: Duration::from_secs(15),
};

/// A fragment with fields in reach of each other.
fn fragment(v6: bool, [id, offset, more]: [u8; 3], body: &[u8]) -> Vec<u8> {
    if v6 {
        let offset = u16::from(offset % 64) << 3 | u16::from(more & 1);
        let mut bytes = vec![17, 0];
        bytes.extend(offset.to_be_bytes());
        bytes.extend([0, 0, 0, id % 4]);
        bytes.extend(body);
        return ipsec::ip(true, 44, &bytes);
    }
    let mut packet = ipsec::ip(false, 17, body);
    let field = u16::from(offset % 64) | u16::from(more & 1) << 13;
    packet[4..6].copy_from_slice(&u16::from(id % 4).to_be_bytes());
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet
}

fuzz_target!(|input: Vec<(bool, bool, [u8; 3], Vec<u8>)>| {
    let mut now = Instant::from_secs(1);
    let mut reassembler = Reassembler::new(LIMITS);
    for (raw, v6, fields, bytes) in input {
        let bytes = bytes.get(..1500).unwrap_or(&bytes);
        let packet = if raw {
            bytes.to_vec()
        } else {
            fragment(v6, fields, bytes)
        };
        if let Ok(Outcome::Complete(whole)) = reassembler.push(now, &packet) {
            assert!(whole.len() <= 65_575, "no longer than an IP packet");
        }
        assert!(reassembler.len() <= LIMITS.datagrams && reassembler.bytes() <= LIMITS.bytes);
        let _ = icmp::read_too_big(&packet);
        let mut out = [0; 1500];
        let gateway = ipsec::addresses(v6)[0];
        if let Some(len) = icmp::write_too_big(&mut out, gateway, &packet, 1280) {
            assert!(len <= 1280);
        }
        now += Duration::from_millis(u64::from(fields[0]) * 10);
        reassembler.expire(now);
    }
});
