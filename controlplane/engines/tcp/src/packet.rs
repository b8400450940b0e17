//! IP packets around segments: addresses, ECN field and checksums. The relay works on whole packets, as
//! they come out of and go into an SA.

use core::net::IpAddr;

use towpath_common::wire::{self, protocol};

use crate::segment::{self, Ecn, Segment};

/// Length of an IPv4 header without options, bytes.
const IPV4_LEN: usize = 20;
/// Length of the IPv6 header, bytes.
const IPV6_LEN: usize = 40;

/// A TCP segment in an IP packet, checksums verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpPacket<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// DSCP, six bits.
    pub dscp: u8,
    /// ECN field.
    pub ecn: Ecn,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The segment.
    pub segment: Segment<'a>,
}

/// Why a packet holds no segment the relay can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTcp {
    /// Shorter than its headers say, or a header that cannot be.
    Malformed,
    /// Another protocol, or IPv6 extension headers: pass it on.
    Other,
    /// A fragment: pass it on.
    Fragment,
    /// The TCP checksum is wrong.
    Checksum,
}

impl<'a> TcpPacket<'a> {
    /// Takes a packet apart. Bytes behind the IP length (link padding) are ignored.
    pub fn parse(packet: &'a [u8]) -> Result<Self, NotTcp> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(NotTcp::Malformed),
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Result<Self, NotTcp> {
        let (fixed, _) = packet.split_first_chunk::<IPV4_LEN>().ok_or(NotTcp::Malformed)?;
        let [
            first,
            tos,
            l0,
            l1,
            _,
            _,
            f0,
            f1,
            ttl,
            proto,
            _,
            _,
            s @ ..,
            d0,
            d1,
            d2,
            d3,
        ] = *fixed;
        let header_len = usize::from(first & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([l0, l1]));
        if header_len < IPV4_LEN {
            return Err(NotTcp::Malformed);
        }
        let bytes = packet.get(header_len..total).ok_or(NotTcp::Malformed)?;
        if proto != protocol::TCP {
            return Err(NotTcp::Other);
        }
        if u16::from_be_bytes([f0, f1]) & 0x3fff != 0 {
            return Err(NotTcp::Fragment);
        }
        let d = [d0, d1, d2, d3];
        let len = u16::try_from(bytes.len()).map_err(|_| NotTcp::Malformed)?;
        let pseudo = wire::pseudo_header_v4(s, d, protocol::TCP, len);
        Self::finish(IpAddr::from(s), IpAddr::from(d), tos, ttl, bytes, pseudo)
    }

    fn parse_v6(packet: &'a [u8]) -> Result<Self, NotTcp> {
        let (fixed, rest) = packet.split_first_chunk::<IPV6_LEN>().ok_or(NotTcp::Malformed)?;
        let [c0, c1, _, _, l0, l1, next, ttl, addresses @ ..] = *fixed;
        let mut s = [0; 16];
        let mut d = [0; 16];
        for (to, from) in s.iter_mut().chain(&mut d).zip(addresses) {
            *to = from;
        }
        let bytes = rest
            .get(..usize::from(u16::from_be_bytes([l0, l1])))
            .ok_or(NotTcp::Malformed)?;
        match next {
            protocol::TCP => {}
            protocol::FRAGMENT => return Err(NotTcp::Fragment),
            _ => return Err(NotTcp::Other),
        }
        let len = u32::try_from(bytes.len()).map_err(|_| NotTcp::Malformed)?;
        let pseudo = wire::pseudo_header_v6(s, d, protocol::TCP, len);
        let class = (c0 << 4) | (c1 >> 4);
        Self::finish(IpAddr::from(s), IpAddr::from(d), class, ttl, bytes, pseudo)
    }

    fn finish(
        source: IpAddr,
        destination: IpAddr,
        tos: u8,
        ttl: u8,
        bytes: &'a [u8],
        pseudo: u32,
    ) -> Result<Self, NotTcp> {
        if !segment::checksum_ok(bytes, pseudo) {
            return Err(NotTcp::Checksum);
        }
        let segment = Segment::parse(bytes).map_err(|segment::Malformed| NotTcp::Malformed)?;
        Ok(Self {
            source,
            destination,
            dscp: tos >> 2,
            ecn: Ecn::from_bits(tos),
            ttl,
            segment,
        })
    }
}

/// What the IP header of an outgoing packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// DSCP, six bits.
    pub dscp: u8,
    /// ECN field.
    pub ecn: Ecn,
    /// TTL or hop limit.
    pub ttl: u8,
}

impl IpHeader {
    /// Length of the header, bytes: where the segment begins.
    pub const fn header_len(&self) -> usize {
        match self.source {
            IpAddr::V4(_) => IPV4_LEN,
            IpAddr::V6(_) => IPV6_LEN,
        }
    }

    /// Writes the header in front of a segment of `segment_len` bytes that already lies in `out` behind
    /// it, and finishes the segment's checksum. Returns the length of the packet; `None` if `out` is too
    /// small or the families differ.
    pub fn finish(&self, out: &mut [u8], segment_len: usize) -> Option<usize> {
        let total = self.header_len().checked_add(segment_len)?;
        let tos = (self.dscp << 2) | self.ecn.bits();
        let (header, segment) = out.get_mut(..total)?.split_at_mut_checked(self.header_len())?;
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (s, d) = (source.octets(), destination.octets());
                let len = u16::try_from(total).ok()?;
                // DF: the segment size follows the path MTU (RFC 1191).
                let mut fixed = [0_u8; IPV4_LEN];
                let [
                    first,
                    tos_field,
                    l0,
                    l1,
                    _,
                    _,
                    flags,
                    _,
                    ttl,
                    proto,
                    _,
                    _,
                    addresses @ ..,
                ] = &mut fixed;
                (*first, *tos_field, *flags, *ttl, *proto) = (0x45, tos, 0x40, self.ttl, protocol::TCP);
                [*l0, *l1] = len.to_be_bytes();
                for (to, from) in addresses.iter_mut().zip(s.into_iter().chain(d)) {
                    *to = from;
                }
                let [c0, c1] = wire::checksum(&fixed).to_be_bytes();
                let [.., check0, check1, _, _, _, _, _, _, _, _] = &mut fixed;
                (*check0, *check1) = (c0, c1);
                header.copy_from_slice(&fixed);
                let segment_len = u16::try_from(segment_len).ok()?;
                segment::finish_checksum(segment, wire::pseudo_header_v4(s, d, protocol::TCP, segment_len));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (s, d) = (source.octets(), destination.octets());
                let len = u16::try_from(segment_len).ok()?;
                let mut fixed = [0_u8; IPV6_LEN];
                let [c0, c1, _, _, l0, l1, next, ttl, addresses @ ..] = &mut fixed;
                (*c0, *c1) = (0x60 | (tos >> 4), tos << 4);
                (*next, *ttl) = (protocol::TCP, self.ttl);
                [*l0, *l1] = len.to_be_bytes();
                for (to, from) in addresses.iter_mut().zip(s.into_iter().chain(d)) {
                    *to = from;
                }
                header.copy_from_slice(&fixed);
                let pseudo = wire::pseudo_header_v6(s, d, protocol::TCP, u32::from(len));
                segment::finish_checksum(segment, pseudo);
            }
            _ => return None,
        }
        Some(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Flags, Header};
    use crate::seq::SeqNum;

    #[test]
    fn a_packet_of_either_family_comes_back() {
        let families: [(IpAddr, IpAddr); 2] = [
            ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
            (
                [1, 2, 3, 4, 5, 6, 7, 8_u16].into(),
                [8, 7, 6, 5, 4, 3, 2, 1_u16].into(),
            ),
        ];
        for (source, destination) in families {
            let ip = IpHeader {
                source,
                destination,
                dscp: 10,
                ecn: Ecn::Ect0,
                ttl: 63,
            };
            let header = Header {
                seq: SeqNum(9),
                flags: Flags::SYN,
                window: 7,
                ..Header::default()
            };
            let mut bytes = [0; 100];
            let len = header.write(&mut bytes[ip.header_len()..]).unwrap();
            let total = ip.finish(&mut bytes, len).unwrap();
            let packet = TcpPacket::parse(&bytes[..total]).unwrap();
            assert_eq!((packet.source, packet.destination), (source, destination));
            assert_eq!((packet.dscp, packet.ecn, packet.ttl), (10, Ecn::Ect0, 63));
            assert_eq!(packet.segment.header, header);
            bytes[total - 1] ^= 1;
            assert_eq!(TcpPacket::parse(&bytes[..total]), Err(NotTcp::Checksum));
        }
    }
}
