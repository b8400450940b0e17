//! IP and UDP headers in front of what sockets hand over without them.

use core::net::IpAddr;

use towpath_base::packet::PacketBuf;
use towpath_common::wire::{checksum, protocol};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;

/// Puts an IP header in front of `packet`; `None` if there is no room, or the families differ.
pub(crate) fn prepend_ip(
    packet: &mut PacketBuf<'_>,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
) -> Option<()> {
    let payload = u16::try_from(packet.len()).ok()?;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = payload.checked_add(IPV4_LEN as u16)?;
            let header = packet.grow_front(IPV4_LEN)?;
            header.fill(0);
            let [len_high, len_low] = total.to_be_bytes();
            for (to, from) in header
                .iter_mut()
                .zip([0x45, 0, len_high, len_low, 0, 0, 0, 0, 64, protocol])
            {
                *to = from;
            }
            header.get_mut(12..16)?.copy_from_slice(&source.octets());
            header.get_mut(16..20)?.copy_from_slice(&destination.octets());
            let check = checksum(header).to_be_bytes();
            header.get_mut(10..12)?.copy_from_slice(&check);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = packet.grow_front(IPV6_LEN)?;
            header.fill(0);
            let [len_high, len_low] = payload.to_be_bytes();
            for (to, from) in header
                .iter_mut()
                .zip([0x60, 0, 0, 0, len_high, len_low, protocol, 64])
            {
                *to = from;
            }
            header.get_mut(8..24)?.copy_from_slice(&source.octets());
            header.get_mut(24..40)?.copy_from_slice(&destination.octets());
        }
        _ => return None,
    }
    Some(())
}

/// Puts a UDP header without checksum in front of `packet`, then an IP header: for packets that go no further.
pub(crate) fn prepend_udp(
    packet: &mut PacketBuf<'_>,
    source: core::net::SocketAddr,
    destination: core::net::SocketAddr,
) -> Option<()> {
    let len = u16::try_from(packet.len() + UDP_LEN).ok()?;
    let header = packet.grow_front(UDP_LEN)?;
    header.fill(0);
    header
        .get_mut(0..2)?
        .copy_from_slice(&source.port().to_be_bytes());
    header
        .get_mut(2..4)?
        .copy_from_slice(&destination.port().to_be_bytes());
    header.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
    prepend_ip(packet, source.ip(), destination.ip(), protocol::UDP)
}
