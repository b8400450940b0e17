//! IP and UDP packets, built and taken apart.

use std::net::{IpAddr, SocketAddr};

use towpath_common::wire::{self, Ipv4, Ipv6, Udp, protocol};
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// An IP packet taken apart.
pub struct Parts<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub next: u8,
    pub payload: &'a [u8],
}

impl<'a> Parts<'a> {
    pub fn udp(&self) -> Option<(&'a Udp, &'a [u8])> {
        (self.next == protocol::UDP).then_some(())?;
        Udp::ref_from_prefix(self.payload).ok()
    }
}

/// Takes an IP packet apart; `None` if it is none.
pub fn take_apart(packet: &[u8]) -> Option<Parts<'_>> {
    match packet.first()? >> 4 {
        4 => {
            let (header, _) = Ipv4::ref_from_prefix(packet).ok()?;
            Some(Parts {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
                next: header.protocol,
                payload: packet.get(header.header_len()..)?,
            })
        }
        6 => {
            let (header, payload) = Ipv6::ref_from_prefix(packet).ok()?;
            Some(Parts {
                source: header.source_addr().into(),
                destination: header.destination_addr().into(),
                next: header.next_header,
                payload,
            })
        }
        _ => None,
    }
}

/// A UDP packet with right checksums.
pub fn udp_packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut udp = Udp {
        source: U16::new(from.port()),
        destination: U16::new(to.port()),
        length: U16::new((payload.len() + 8) as u16),
        checksum: U16::ZERO,
    };
    let mut segment = [udp.as_bytes(), payload].concat();
    let len = segment.len() as u16;
    let pseudo = match (from.ip(), to.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => wire::pseudo_header_v4(a.octets(), b.octets(), protocol::UDP, len),
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            wire::pseudo_header_v6(a.octets(), b.octets(), protocol::UDP, len.into())
        }
        _ => panic!("families differ"),
    };
    udp.checksum = U16::new(match wire::fold(pseudo + wire::sum(&segment)) {
        0 => 0xffff,
        sum => sum,
    });
    segment[..8].copy_from_slice(udp.as_bytes());
    ip_packet(from.ip(), to.ip(), protocol::UDP, &segment)
}

/// An IP packet.
fn ip_packet(from: IpAddr, to: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4 {
                version_ihl: 0x45,
                tos: 0,
                total_length: U16::new(20 + payload.len() as u16),
                identification: U16::new(7),
                flags_fragment: U16::ZERO,
                ttl: 64,
                protocol: next,
                checksum: U16::ZERO,
                source: from.octets(),
                destination: to.octets(),
            };
            header.checksum = U16::new(wire::checksum(header.as_bytes()));
            [header.as_bytes(), payload].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6 {
                version_class_flow: U32::new(6 << 28),
                payload_length: U16::new(payload.len() as u16),
                next_header: next,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
            };
            [header.as_bytes(), payload].concat()
        }
        _ => panic!("families differ"),
    }
}
