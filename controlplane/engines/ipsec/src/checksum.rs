//! Transport checksums of packets that crossed a NAT inside ESP, and of the UDP header around ESP.

use towpath_base::sa::{ChildSa, Mode};
use towpath_common::wire::{fold, protocol, pseudo_header_v4, pseudo_header_v6, sum};

use crate::ip::{IPV4_LEN, IPV6_LEN, Ip, Walk, be16, put16};
use crate::locate::UDP_LEN;

/// What to do with TCP and UDP checksums of packets opened in transport mode (RFC 3948 §3.1.2).
///
/// A NAT on the path changes addresses which the checksum inside ESP still covers as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumRepair {
    /// Leave them: no NAT, or somebody further on repairs them.
    #[default]
    Keep,
    /// Compute them anew. The ICV has already vouched for the bytes.
    Recompute,
    /// As [`ChecksumRepair::Recompute`] for TCP; UDP over IPv4 gets zero, "no checksum".
    ZeroUdp,
}

impl ChecksumRepair {
    /// What packets of `sa` need: behind a NAT, in transport mode, the sender summed other addresses.
    pub(crate) const fn wanted(sa: &ChildSa) -> Self {
        if sa.encap.is_some() && !matches!(sa.mode, Mode::Tunnel) {
            Self::Recompute
        } else {
            Self::Keep
        }
    }
}

/// Mends the transport checksum of the plain IP packet in `packet`. Anything but whole TCP or UDP is left alone.
pub(crate) fn repair(packet: &mut [u8], how: ChecksumRepair) {
    if how == ChecksumRepair::Keep {
        return;
    }
    let Ok(ip) = Ip::parse(packet, Walk::ToUpperLayer) else {
        return;
    };
    if ip.fragment {
        return;
    }
    let field = match ip.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return,
    };
    if ip.end < ip.payload_at + field + 2 {
        return;
    }
    let at = ip.payload_at + field;
    if ip.protocol == protocol::UDP && ip.is_v4() {
        if be16(packet, at) == Some(0) {
            return;
        }
        if how == ChecksumRepair::ZeroUdp {
            put16(packet, at, 0);
            return;
        }
    }
    put16(packet, at, 0);
    let check = transport(packet, ip.protocol, ip.payload_at, ip.end);
    put16(packet, at, check);
}

/// Writes the checksum of the UDP header at `udp_at` around ESP: zero over IPv4 (RFC 3948 §2.1), computed over
/// IPv6, where zero would be dropped by hosts that follow RFC 8200 §8.1 to the letter.
pub(crate) fn finish_udp(packet: &mut [u8], udp_at: usize, end: usize) {
    put16(packet, udp_at + 6, 0);
    if packet.first().is_some_and(|first| first >> 4 == 6) {
        let check = transport(packet, protocol::UDP, udp_at, end);
        put16(packet, udp_at + 6, check);
    }
}

/// Checksum of the segment `packet[from..end]`, ready for its header; for UDP never zero.
fn transport(packet: &[u8], protocol: u8, from: usize, end: usize) -> u16 {
    debug_assert!(end >= from + UDP_LEN);
    let segment = packet.get(from..end).unwrap_or(&[]);
    let pseudo = match (packet.first_chunk::<IPV4_LEN>(), packet.first_chunk::<IPV6_LEN>()) {
        (Some(header), _) if header[0] >> 4 == 4 => {
            let [.., a, b, c, d, e, f, g, h] = *header;
            pseudo_header_v4([a, b, c, d], [e, f, g, h], protocol, segment.len() as u16)
        }
        (_, Some(header)) => {
            let half = |at: usize| {
                header
                    .get(at..)
                    .and_then(|rest| rest.first_chunk::<16>())
                    .copied()
            };
            let (source, destination) = (half(8).unwrap_or_default(), half(24).unwrap_or_default());
            pseudo_header_v6(source, destination, protocol, segment.len() as u32)
        }
        _ => 0,
    };
    match fold(pseudo.wrapping_add(sum(segment))) {
        0 if protocol == protocol::UDP => 0xffff,
        check => check,
    }
}
