//! Packets, SAs and randomness for the tests of this crate.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::net::IpAddr;

use towpath_base::Spi;
use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;

pub const HEADROOM: usize = 128;
pub const TAILROOM: usize = 64;

/// SplitMix64: repeatable, and good enough to tell IVs apart.
pub struct TestRng(pub u64);

impl Rng for TestRng {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = (z >> 32) as u8;
        }
    }
}

/// An IP packet in a buffer with rooms.
pub struct Packet {
    pub buffer: Vec<u8>,
    pub start: usize,
    pub len: usize,
}

impl Packet {
    pub fn new(bytes: &[u8]) -> Self {
        let mut buffer = vec![0xee; HEADROOM];
        buffer.extend_from_slice(bytes);
        buffer.extend_from_slice(&[0xee; TAILROOM]);
        Self {
            buffer,
            start: HEADROOM,
            len: bytes.len(),
        }
    }

    pub fn with<R>(&mut self, f: impl FnOnce(&mut PacketBuf<'_>) -> R) -> R {
        let mut packet = PacketBuf::new(&mut self.buffer, self.start, self.len).unwrap();
        let result = f(&mut packet);
        (self.start, self.len) = (packet.start(), packet.len());
        result
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

pub fn local(v6: bool) -> IpAddr {
    if v6 {
        "fd77:1::2".parse().unwrap()
    } else {
        "10.77.1.2".parse().unwrap()
    }
}

pub fn remote(v6: bool) -> IpAddr {
    if v6 {
        "fd77:9::2".parse().unwrap()
    } else {
        "10.77.9.2".parse().unwrap()
    }
}

pub fn keys(suite: EspSuite, seed: u8) -> EspKeys {
    let material: Vec<u8> = (0..suite.key_material_len())
        .map(|i| (i as u8).wrapping_mul(7) ^ seed)
        .collect();
    EspKeys::split(suite, &material).unwrap()
}

pub fn child(suite: EspSuite, mode: Mode, outer_v6: bool, inner_v6: bool, encap: bool, esn: bool) -> ChildSa {
    ChildSa {
        local: local(outer_v6),
        remote: remote(outer_v6),
        suite,
        mode,
        esn,
        encap: encap.then_some(UdpEncap {
            local_port: 4500,
            remote_port: 4500,
        }),
        spi_in: Spi(0x1001),
        spi_out: Spi(0x2002),
        keys_in: keys(suite, 0x11),
        keys_out: keys(suite, 0x22),
        local_ts: Selectors::one(TrafficSelector::host(local(inner_v6))),
        remote_ts: Selectors::one(TrafficSelector::host(remote(inner_v6))),
        lifetime: Lifetime::default(),
    }
}

/// A whole UDP packet with correct checksums.
pub fn udp(source: IpAddr, destination: IpAddr, body: &[u8]) -> Vec<u8> {
    use etherparse::PacketBuilder;
    let mut out = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            PacketBuilder::ipv4(s.octets(), d.octets(), 63)
                .udp(4000, 5000)
                .write(&mut out, body)
                .unwrap();
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            PacketBuilder::ipv6(s.octets(), d.octets(), 63)
                .udp(4000, 5000)
                .write(&mut out, body)
                .unwrap();
        }
        _ => unreachable!("families never mix"),
    }
    out
}

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap() as u8)
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
