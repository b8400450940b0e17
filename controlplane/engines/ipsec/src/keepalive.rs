//! NAT keep-alives: one byte 0xff behind UDP (RFC 3948 §2.3), so that a NAT keeps its mapping.

use core::net::IpAddr;

use towpath_base::sa::UdpEncap;
use towpath_common::wire::protocol;

use crate::checksum;
use crate::ip::{self, IPV6_LEN, Ip, Walk, put16};
use crate::locate::UDP_LEN;
use crate::outer::{self, Inner};

/// The byte.
const KEEP_ALIVE: u8 = 0xff;

/// Longest keep-alive packet.
pub const MAX_LEN: usize = IPV6_LEN + UDP_LEN + 1;

/// Whether the IP packet is a keep-alive. The receiver drops it, without a word (RFC 3948 §2.3).
pub fn is_keep_alive(packet: &[u8]) -> bool {
    Ip::parse(packet, Walk::ToUpperLayer).is_ok_and(|ip| {
        ip.protocol == protocol::UDP
            && !ip.fragment
            && ip.end == ip.payload_at + UDP_LEN + 1
            && packet.get(ip.payload_at + UDP_LEN) == Some(&KEEP_ALIVE)
    })
}

/// Writes a keep-alive IP packet from `local` to `remote` into `buffer`. Returns its length, `None` if the buffer is
/// too short ([`MAX_LEN`] suffices) or the addresses are of two families.
pub fn write(buffer: &mut [u8], local: IpAddr, remote: IpAddr, encap: UdpEncap) -> Option<usize> {
    if local.is_ipv4() != remote.is_ipv4() {
        return None;
    }
    let udp_at = outer::len(remote);
    let len = udp_at + UDP_LEN + 1;
    let packet = buffer.get_mut(..len)?;
    outer::write(packet, local, remote, protocol::UDP, &Inner::default(), 0);
    ip::finish_header(packet);
    put16(packet, udp_at, encap.local_port);
    put16(packet, udp_at + 2, encap.remote_port);
    put16(packet, udp_at + 4, (UDP_LEN + 1) as u16);
    *packet.last_mut()? = KEEP_ALIVE;
    checksum::finish_udp(packet, udp_at, len);
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_recognised() {
        let encap = UdpEncap {
            local_port: 4500,
            remote_port: 1027,
        };
        for (local, remote, len) in [("10.0.0.1", "192.0.2.1", 29), ("fd00::1", "fd00::2", 49)] {
            let mut buffer = [0; MAX_LEN];
            let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
            assert_eq!(write(&mut buffer, local, remote, encap), Some(len));
            assert!(is_keep_alive(&buffer[..len]));
            assert!(etherparse::SlicedPacket::from_ip(&buffer[..len]).is_ok());
            buffer[len - 1] = 0xfe;
            assert!(!is_keep_alive(&buffer[..len]));
            assert_eq!(write(&mut buffer[..len - 1], local, remote, encap), None);
        }
    }
}
