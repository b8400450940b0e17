//! UDP datagrams in and out of whole IP packets: the control path, a few packets per exchange.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use towpath_base::DropReason;
use towpath_common::wire::{NON_ESP_MARKER_LEN, PORT_IKE_NATT};
use towpath_fabric::Datagram;

/// Hop limit of packets made here.
const HOP_LIMIT: u8 = 64;

/// Takes the UDP datagram out of an IP packet of either family.
///
/// On port 4500 the non-ESP marker is checked and removed (RFC 3948 §2.2).
///
/// # Errors
/// [`DropReason::IkeMalformed`] unless the packet is one whole UDP datagram with a correct checksum.
pub fn parse(packet: &[u8]) -> Result<Datagram, DropReason> {
    let malformed = DropReason::IkeMalformed;
    let sliced = SlicedPacket::from_ip(packet).map_err(|_| malformed)?;
    let (source, destination) = addresses(sliced.net.as_ref().ok_or(malformed)?).ok_or(malformed)?;
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        return Err(malformed);
    };
    if !checksum_holds(source, destination, &udp) {
        return Err(malformed);
    }
    let mut payload = udp.payload();
    if udp.destination_port() == PORT_IKE_NATT {
        payload = match payload.split_at_checked(NON_ESP_MARKER_LEN) {
            Some(([0, 0, 0, 0], message)) => message,
            _ => return Err(malformed),
        };
    }
    Ok(Datagram {
        source: SocketAddr::new(source, udp.source_port()),
        destination: SocketAddr::new(destination, udp.destination_port()),
        payload: payload.to_vec(),
    })
}

fn addresses(net: &NetSlice<'_>) -> Option<(IpAddr, IpAddr)> {
    match net {
        NetSlice::Ipv4(v4) if !v4.header().is_fragmenting_payload() => Some((
            v4.header().source_addr().into(),
            v4.header().destination_addr().into(),
        )),
        NetSlice::Ipv6(v6) if !v6.is_payload_fragmented() => Some((
            v6.header().source_addr().into(),
            v6.header().destination_addr().into(),
        )),
        _ => None,
    }
}

/// A zero checksum means "none" on IPv4 only (RFC 8200 §8.1).
fn checksum_holds(source: IpAddr, destination: IpAddr, udp: &etherparse::UdpSlice<'_>) -> bool {
    let header = udp.to_header();
    let computed = match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) if header.checksum == 0 => return true,
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            header.calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload())
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            header.calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload())
        }
        _ => return false,
    };
    computed == Ok(header.checksum)
}

/// Builds the IP packet of a datagram, checksums complete, the non-ESP marker added on port 4500.
///
/// `None` when the addresses are of different families or the payload is too long for UDP.
pub fn build(datagram: &Datagram) -> Option<Vec<u8>> {
    let (source, destination) = (datagram.source, datagram.destination);
    let builder = match (source.ip(), destination.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), HOP_LIMIT),
        (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), HOP_LIMIT),
        _ => return None,
    };
    let marked;
    let payload = if source.port() == PORT_IKE_NATT {
        marked = [&[0; NON_ESP_MARKER_LEN][..], &datagram.payload].concat();
        &marked
    } else {
        &datagram.payload
    };
    let builder = builder.udp(source.port(), destination.port());
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).ok()?;
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(source: &str, destination: &str) -> Datagram {
        Datagram {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            payload: (0..77).collect(),
        }
    }

    #[test]
    fn what_is_built_is_parsed_back_on_both_ports_and_families() {
        for (source, destination) in [
            ("10.0.0.1:500", "10.0.0.2:500"),
            ("10.0.0.1:4500", "10.0.0.2:4500"),
            ("[2001:db8::1]:500", "[2001:db8::2]:500"),
            ("[2001:db8::1]:4500", "[2001:db8::2]:4500"),
        ] {
            let sent = datagram(source, destination);
            assert_eq!(parse(&build(&sent).unwrap()), Ok(sent));
        }
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_refused() {
        let packet = build(&datagram("[2001:db8::1]:500", "[2001:db8::2]:500")).unwrap();
        for len in 0..packet.len() {
            assert!(parse(&packet[..len]).is_err(), "{len}");
        }
        for at in 40..packet.len() {
            let mut forged = packet.clone();
            forged[at] ^= 0x10;
            assert!(parse(&forged).is_err(), "{at}");
        }
    }

    #[test]
    fn mixed_families_are_not_built() {
        assert!(build(&datagram("10.0.0.1:500", "[2001:db8::2]:500")).is_none());
    }
}
