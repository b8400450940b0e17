//! A network of one subscriber for the core to talk to: registry, keyserver, and a peer with its ESP.
//!
//! ```text
//!   Core ── datagrams, ESP ──► Net { registry (keyx::registration), keyserver (keyx::session, transfer),
//!        ◄──────────────────         peer (ipsec, one SA pair per request) }
//! ```
#![allow(dead_code, missing_docs, unreachable_pub)]

mod net;
mod world;

use std::net::IpAddr;

use towpath_base::SubscriberHandle;
use towpath_base::key::SecretKey;
use towpath_base::packet::PacketBuf;
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_common::wire::{fold, pseudo_header_v4, pseudo_header_v6, sum};
use towpath_keyx::ReservedSpi;
use towpath_keyx::registration::Addresses;
use towpath_terminal_core::{
    Action, BUFFER_HEADROOM, BUFFER_TAILROOM, Config, Core, Policy, SoftEsp, Timing,
};

pub use net::*;
pub use world::*;

pub const HANDLE: SubscriberHandle = SubscriberHandle(7);
pub const RESERVED: ReservedSpi = ReservedSpi(100);

pub type Terminal = Core<SoftEsp, 4, 4, 4096>;

pub fn ksub() -> SecretKey<32> {
    SecretKey::new([0x42; 32])
}

pub fn here(v6: bool) -> IpAddr {
    if v6 {
        "fd77:1::2".parse().unwrap()
    } else {
        "10.77.1.2".parse().unwrap()
    }
}

pub fn peer(v6: bool) -> IpAddr {
    if v6 {
        "fd77:9::2".parse().unwrap()
    } else {
        "10.77.9.2".parse().unwrap()
    }
}

pub fn protect(peer: IpAddr) -> Policy {
    Policy::new(
        TrafficSelector::any_of(Prefix::host(peer)),
        Action::Protect { peer: None },
    )
}

pub fn config(counter: u64) -> Config {
    Config {
        subscriber: HANDLE,
        ksub: ksub(),
        addresses: Addresses::of([here(false), here(true)]),
        reserved: RESERVED,
        counter,
        timing: Timing::default(),
    }
}

pub fn terminal(counter: u64) -> Box<Terminal> {
    let policies = [protect(peer(false)), protect(peer(true))];
    Box::new(Core::new(SoftEsp, config(counter), &policies).unwrap())
}

/// A packet of an application, in a buffer with rooms.
pub struct Buffer {
    pub bytes: Vec<u8>,
    pub start: usize,
    pub len: usize,
}

impl Buffer {
    pub fn new(packet: &[u8]) -> Self {
        let mut bytes = vec![0; BUFFER_HEADROOM];
        bytes.extend_from_slice(packet);
        bytes.extend_from_slice(&[0; BUFFER_TAILROOM]);
        Self {
            bytes,
            start: BUFFER_HEADROOM,
            len: packet.len(),
        }
    }

    pub fn with<R>(&mut self, f: impl FnOnce(&mut PacketBuf<'_>) -> R) -> R {
        let mut packet = PacketBuf::new(&mut self.bytes, self.start, self.len).unwrap();
        let result = f(&mut packet);
        (self.start, self.len) = (packet.start(), packet.len());
        result
    }

    pub fn packet(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// A UDP packet with its checksum.
pub fn udp(source: IpAddr, destination: IpAddr, body: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x0f, 0xa0, 0x13, 0x88];
    segment.extend(((body.len() + 8) as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(body);
    let len = segment.len();
    let pseudo = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => pseudo_header_v4(s.octets(), d.octets(), 17, len as u16),
        (IpAddr::V6(s), IpAddr::V6(d)) => pseudo_header_v6(s.octets(), d.octets(), 17, len as u32),
        _ => unreachable!("families never mix"),
    };
    let check = fold(pseudo + sum(&segment)).to_be_bytes();
    segment[6..8].copy_from_slice(&check);
    let mut out = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            out.extend([0x45, 0]);
            out.extend(((segment.len() + 20) as u16).to_be_bytes());
            out.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            out.extend(s.octets());
            out.extend(d.octets());
            let check = towpath_common::wire::checksum(&out).to_be_bytes();
            out[10..12].copy_from_slice(&check);
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend((segment.len() as u16).to_be_bytes());
            out.extend([17, 64]);
            out.extend(s.octets());
            out.extend(d.octets());
        }
        _ => unreachable!("families never mix"),
    }
    out.extend(segment);
    out
}
