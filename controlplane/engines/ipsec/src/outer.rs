//! The outer header of tunnel mode (RFC 4301 §5.1.2).

use core::net::IpAddr;

use towpath_common::wire::checksum;

use crate::ip::{self, IPV4_LEN, IPV6_LEN, Ip};

/// Hop limit of packets made here.
const HOP_LIMIT: u8 = 64;

/// Length of the outer header towards `remote`.
pub(crate) const fn len(remote: IpAddr) -> usize {
    if remote.is_ipv4() { IPV4_LEN } else { IPV6_LEN }
}

/// Everything of the outer header but length and checksum.
///
/// DSCP and ECN are copied from the inner header (RFC 6040 "normal mode"); so is DF, and it is set over an
/// inner IPv6 packet, whose sender expects to be told (RFC 4301 §8.1).
pub(crate) fn write(bytes: &mut [u8], local: IpAddr, remote: IpAddr, protocol: u8, inner: &Inner, id: u16) {
    match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let Some(header) = bytes.first_chunk_mut::<IPV4_LEN>() else {
                return;
            };
            let fragment: u16 = if inner.dont_fragment { 0x4000 } else { 0 };
            let [id_high, id_low] = if inner.dont_fragment {
                [0, 0]
            } else {
                id.to_be_bytes()
            };
            let [flags, offset] = fragment.to_be_bytes();
            let ([a, b, c, d], [e, f, g, h]) = (local.octets(), remote.octets());
            *header = [
                0x45, inner.tos, 0, 0, id_high, id_low, flags, offset, HOP_LIMIT, protocol, 0, 0, a, b, c, d,
                e, f, g, h,
            ];
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let Some(header) = bytes.first_chunk_mut::<IPV6_LEN>() else {
                return;
            };
            let first = 0x6000_0000 | (u32::from(inner.tos) << 20) | inner.flow_label;
            let (fixed, addresses) = header.split_at_mut(8);
            fixed.copy_from_slice(&[0; 8]);
            if let [a, b, c, d, _, _, next, hops] = fixed {
                [*a, *b, *c, *d] = first.to_be_bytes();
                (*next, *hops) = (protocol, HOP_LIMIT);
            }
            let (source, destination) = addresses.split_at_mut(16);
            source.copy_from_slice(&local.octets());
            destination.copy_from_slice(&remote.octets());
        }
        _ => {}
    }
}

/// What the outer header takes over from the inner packet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inner {
    tos: u8,
    dont_fragment: bool,
    flow_label: u32,
}

impl Inner {
    pub(crate) fn of(packet: &[u8], ip: &Ip) -> Self {
        let word = |at| ip::be32(packet, at).unwrap_or(0);
        if ip.is_v4() {
            Self {
                tos: ip.tos,
                dont_fragment: word(4) & 0x4000 != 0,
                flow_label: 0,
            }
        } else {
            Self {
                tos: ip.tos,
                dont_fragment: true,
                flow_label: word(0) & 0x000f_ffff,
            }
        }
    }
}

/// Carries "congestion experienced" from the outer header (its TOS) to the inner packet, if that is
/// ECN-capable (RFC 4301 §5.1.2.1).
pub(crate) fn propagate_ecn(outer_tos: u8, inner: &mut [u8]) {
    const CONGESTION: u8 = 0b11;
    if outer_tos & CONGESTION != CONGESTION {
        return;
    }
    match inner {
        [first, ..] if *first >> 4 == 4 => mark_v4(inner),
        // The ECN bits of the traffic class are bits 5 and 4 of the second byte.
        [_, second, ..] if *second & 0x30 != 0 => *second |= 0x30,
        _ => {}
    }
}

fn mark_v4(inner: &mut [u8]) {
    let [first, tos, ..] = inner else { return };
    if *tos & 0b11 == 0 {
        return;
    }
    *tos |= 0b11;
    let header_len = usize::from(*first & 0x0f) * 4;
    ip::put16(inner, 10, 0);
    let check = inner.get(..header_len).map_or(0, checksum);
    ip::put16(inner, 10, check);
}
