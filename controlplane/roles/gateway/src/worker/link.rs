//! A frame's surroundings: what the classifier left in front of it, its link header, its hop count.

use towpath_base::DropReason;
use towpath_base::packet::PacketBuf;
use towpath_common::abi::DivertMeta;
use towpath_common::counter::FibStatus;
use towpath_common::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6, checksum_update16};
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use crate::datapath::Arrival;
use crate::relay::Egress;

/// Where the IP header is in a frame.
pub(super) fn l3(meta: &DivertMeta) -> usize {
    usize::from(meta.l3_offset.get())
}

/// How a frame came.
pub(super) fn arrival(meta: &DivertMeta) -> Arrival {
    Arrival {
        from_access: meta.flags.get() & towpath_common::abi::META_ACCESS_PORT != 0,
        egress: egress(meta),
    }
}

/// Where routing sends a packet, if that is known.
pub(super) fn egress(meta: &DivertMeta) -> Option<Egress> {
    (meta.fib_status() == FibStatus::Resolved).then(|| Egress {
        ifindex: meta.egress_ifindex.get(),
        dmac: meta.dmac,
        smac: meta.smac,
    })
}

/// One hop further (RFC 1812 §5.3.1, RFC 8200 §3). A packet that ends here is dropped: the kernel, which
/// would answer with ICMP, was not asked because the packet was ours to open.
pub(crate) fn decrement_ttl(packet: &mut [u8]) -> Result<(), DropReason> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let (header, _) = Ipv4::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
            if header.ttl <= 1 {
                return Err(DropReason::TtlExpired);
            }
            let old = u16::from_be_bytes([header.ttl, header.protocol]);
            header.ttl -= 1;
            let new = u16::from_be_bytes([header.ttl, header.protocol]);
            header
                .checksum
                .set(checksum_update16(header.checksum.get(), old, new));
            Ok(())
        }
        Some(6) => {
            let (header, _) = Ipv6::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
            if header.hop_limit <= 1 {
                return Err(DropReason::TtlExpired);
            }
            header.hop_limit -= 1;
            Ok(())
        }
        _ => Err(DropReason::BadIpHeader),
    }
}

/// Puts the link header of `egress` in front of an IP packet.
pub(super) fn add_ethernet(egress: &Egress, packet: &mut PacketBuf<'_>) -> Option<()> {
    let ethertype = match packet.bytes().first()? >> 4 {
        4 => ETHERTYPE_IPV4,
        _ => ETHERTYPE_IPV6,
    };
    let header = Ethernet {
        destination: egress.dmac,
        source: egress.smac,
        ethertype: U16::new(ethertype),
    };
    packet
        .grow_front(size_of::<Ethernet>())?
        .copy_from_slice(header.as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_common::wire::checksum;

    #[test]
    fn a_hop_is_counted_and_the_checksum_stays_right() {
        let mut packet = [0u8; 20];
        packet[0] = 0x45;
        packet[8] = 2;
        packet[9] = 50;
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        decrement_ttl(&mut packet).unwrap();
        assert_eq!((packet[8], checksum(&packet)), (1, 0));
        assert_eq!(decrement_ttl(&mut packet), Err(DropReason::TtlExpired));
        let mut packet = [0u8; 40];
        packet[0] = 0x60;
        packet[7] = 64;
        decrement_ttl(&mut packet).unwrap();
        assert_eq!(packet[7], 63);
        assert_eq!(decrement_ttl(&mut packet[..39]), Err(DropReason::Truncated));
        assert_eq!(decrement_ttl(&mut []), Err(DropReason::BadIpHeader));
    }
}
