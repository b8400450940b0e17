//! "Packet too big" and "fragmentation needed": what we say of inner packets that do not fit, and what we believe
//! about outer ones (RFC 4301 §8.2, RFC 792, RFC 1191, RFC 4443, RFC 8201).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_base::{DropReason, Spi};
use towpath_common::wire::{checksum, fold, protocol, pseudo_header_v6, sum};

use crate::ip::{self, IPV4_LEN, IPV6_LEN, Ip, Walk, be16, be32, put16};
use crate::locate::UDP_LEN;
use crate::outer::{self, Inner};

const ICMP_LEN: usize = 8;
const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;

/// Most bytes of an ICMP error over IPv4 (RFC 1812 §4.3.2.3).
const MAX_V4: usize = 576;
/// Most bytes of an ICMP error over IPv6 (RFC 4443 §2.4 c).
const MAX_V6: usize = 1280;

/// An ICMP error may quote a packet sent this many packets ago, no earlier.
pub const PLAUSIBLE: u64 = 1 << 16;

/// Longest packet [`write_too_big`] makes.
pub const MAX_LEN: usize = MAX_V6;

/// Writes to `buffer` what the sender of `packet`, a plain IP packet larger than `mtu` bytes, is told, in the name of
/// `from`: a whole IP packet. Returns its length.
///
/// `None` where nothing is to be said: the packet may be fragmented (IPv4 without DF), is an ICMP error itself, a later
/// fragment, or has a source nobody can answer (RFC 1122 §3.2.2, RFC 4443 §2.4 e); `from` is of the other family; or
/// `buffer` is too short ([`MAX_LEN`] suffices).
pub fn write_too_big(buffer: &mut [u8], from: IpAddr, packet: &[u8], mtu: u16) -> Option<usize> {
    let ip = Ip::parse(packet, Walk::ToUpperLayer).ok()?;
    let packet = packet.get(..ip.end)?;
    match (from, ip.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => too_big_v4(buffer, from, to, packet, &ip, mtu),
        (IpAddr::V6(from), IpAddr::V6(to)) => too_big_v6(buffer, from, to, packet, &ip, mtu),
        _ => None,
    }
}

fn too_big_v4(
    buffer: &mut [u8],
    from: Ipv4Addr,
    to: Ipv4Addr,
    packet: &[u8],
    ip: &Ip,
    mtu: u16,
) -> Option<usize> {
    let fragment = be16(packet, 6)?;
    let answerable = !(to.is_unspecified() || to.is_broadcast() || to.is_multicast() || to.is_loopback());
    if fragment & 0x4000 == 0 || fragment & 0x1fff != 0 || !answerable || is_error_v4(packet, ip) {
        return None;
    }
    if matches!(ip.destination, IpAddr::V4(address) if address.is_multicast() || address.is_broadcast()) {
        return None;
    }
    let quoted = packet.get(..packet.len().min(MAX_V4 - IPV4_LEN - ICMP_LEN))?;
    let len = IPV4_LEN + ICMP_LEN + quoted.len();
    let out = buffer.get_mut(..len)?;
    outer::write(out, from.into(), to.into(), protocol::ICMP, &Inner::default(), 0);
    ip::finish_header(out);
    let message = out.get_mut(IPV4_LEN..)?;
    let (header, body) = message.split_first_chunk_mut::<ICMP_LEN>()?;
    let [high, low] = mtu.to_be_bytes();
    *header = [
        DESTINATION_UNREACHABLE,
        FRAGMENTATION_NEEDED,
        0,
        0,
        0,
        0,
        high,
        low,
    ];
    body.copy_from_slice(quoted);
    let check = checksum(message);
    put16(message, 2, check);
    Some(len)
}

/// Of ICMP only echo and the other queries may be answered with an error.
fn is_error_v4(packet: &[u8], ip: &Ip) -> bool {
    ip.protocol == protocol::ICMP
        && !matches!(
            packet.get(ip.payload_at),
            Some(0 | 8 | 13 | 14 | 15 | 16 | 17 | 18)
        )
}

fn too_big_v6(
    buffer: &mut [u8],
    from: Ipv6Addr,
    to: Ipv6Addr,
    packet: &[u8],
    ip: &Ip,
    mtu: u16,
) -> Option<usize> {
    // Multicast destinations are told, too (RFC 4443 §2.4 e.3); errors are those below 128.
    let is_error =
        ip.protocol == protocol::ICMPV6 && packet.get(ip.payload_at).is_none_or(|kind| *kind < 128);
    if is_error || to.is_unspecified() || to.is_multicast() || to.is_loopback() {
        return None;
    }
    let quoted = packet.get(..packet.len().min(MAX_V6 - IPV6_LEN - ICMP_LEN))?;
    let len = IPV6_LEN + ICMP_LEN + quoted.len();
    let out = buffer.get_mut(..len)?;
    outer::write(
        out,
        from.into(),
        to.into(),
        protocol::ICMPV6,
        &Inner::default(),
        0,
    );
    ip::finish_header(out);
    let message = out.get_mut(IPV6_LEN..)?;
    let (header, body) = message.split_first_chunk_mut::<ICMP_LEN>()?;
    let [high, low] = mtu.to_be_bytes();
    *header = [PACKET_TOO_BIG, 0, 0, 0, 0, 0, high, low];
    body.copy_from_slice(quoted);
    let pseudo = pseudo_header_v6(from.octets(), to.octets(), protocol::ICMPV6, message.len() as u32);
    let check = fold(pseudo.wrapping_add(sum(message)));
    put16(message, 2, check);
    Some(len)
}

/// What a router says about an ESP or AH packet of ours. Not to be believed before its numbers are found plausible: see
/// [`OutboundSa::on_too_big`](crate::OutboundSa::on_too_big).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig {
    /// MTU of the next link in bytes, IP header included.
    pub mtu: u16,
    /// Source address of the packet that was too big.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// ESP, or AH.
    pub protocol: u8,
    /// Its SPI.
    pub spi: Spi,
    /// Low 32 bits of its sequence number.
    pub sequence: u32,
}

impl TooBig {
    /// Whether it quotes a packet that a sender may have sent lately (RFC 4301 §8.2.1): its `protocol`, addresses and
    /// SPI, and a number among the last [`PLAUSIBLE`] up to `last_sequence`.
    pub(crate) fn is_about(
        &self,
        protocol: u8,
        (source, destination, spi): (IpAddr, IpAddr, Spi),
        last_sequence: u64,
    ) -> bool {
        let theirs = (self.protocol, self.source, self.destination, self.spi);
        // Only the low half is quoted; the difference is the same.
        let ago = (last_sequence as u32).wrapping_sub(self.sequence);
        theirs == (protocol, source, destination, spi) && u64::from(ago) < PLAUSIBLE.min(last_sequence)
    }
}

/// Reads an ICMP or ICMPv6 packet.
///
/// # Errors
/// [`DropReason::IcmpNotOurs`] if it is anything but a "too big" with checksum right that quotes SPI and sequence number
/// of an ESP or AH packet, raw or UDP-encapsulated; else what is wrong with the IP header.
pub fn read_too_big(packet: &[u8]) -> Result<TooBig, DropReason> {
    let ip = Ip::parse(packet, Walk::ToUpperLayer)?;
    let not_ours = DropReason::IcmpNotOurs;
    let message = packet.get(ip.payload_at..ip.end).ok_or(not_ours)?;
    if ip.fragment {
        return Err(not_ours);
    }
    let (mtu, check) = match (ip.protocol, ip.source, ip.destination, message) {
        (protocol::ICMP, _, _, [DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, ..]) => {
            (u32::from(be16(message, 6).ok_or(not_ours)?), checksum(message))
        }
        (protocol::ICMPV6, IpAddr::V6(from), IpAddr::V6(to), [PACKET_TOO_BIG, 0, ..]) => {
            let len = message.len() as u32;
            let pseudo = pseudo_header_v6(from.octets(), to.octets(), protocol::ICMPV6, len);
            let check = fold(pseudo.wrapping_add(sum(message)));
            (be32(message, 4).ok_or(not_ours)?, check)
        }
        _ => return Err(not_ours),
    };
    let quoted = message.get(ICMP_LEN..).ok_or(not_ours)?;
    // Routers before RFC 1191 say zero: nothing to be learnt.
    if check != 0 || mtu == 0 {
        return Err(not_ours);
    }
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    let (told, _) = quoted_numbers(quoted, ip.is_v4(), mtu).ok_or(not_ours)?;
    Ok(told)
}

/// Writes `sequence` where the "too big" in `packet` quotes a sequence number, and repairs the checksum: each segment
/// counts on its own, and the sender shall recognise its packet. `None` and unchanged if [`read_too_big`] refuses it.
pub fn renumber(packet: &mut [u8], sequence: u32) -> Option<()> {
    read_too_big(packet).ok()?;
    let ip = Ip::parse(packet, Walk::ToUpperLayer).ok()?;
    let message = packet.get_mut(ip.payload_at..ip.end)?;
    let (_, at) = quoted_numbers(message.get(ICMP_LEN..)?, ip.is_v4(), 1)?;
    let field = message.get_mut(ICMP_LEN + at + 4..)?.first_chunk_mut::<4>()?;
    *field = sequence.to_be_bytes();
    put16(message, 2, 0);
    let check = match (ip.source, ip.destination) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let len = message.len() as u32;
            let pseudo = pseudo_header_v6(from.octets(), to.octets(), protocol::ICMPV6, len);
            fold(pseudo.wrapping_add(sum(message)))
        }
        _ => checksum(message),
    };
    put16(message, 2, check);
    Some(())
}

/// The beginning of a packet, as much of it as the router sent back; and where its SPI is.
fn quoted_numbers(quoted: &[u8], v4: bool, mtu: u16) -> Option<(TooBig, usize)> {
    let version = quoted.first()? >> 4;
    let (source, destination, mut carried, mut at): (IpAddr, IpAddr, u8, usize) = if v4 && version == 4 {
        let header = quoted.first_chunk::<IPV4_LEN>()?;
        let address = |at: usize| be32(header, at).map(Ipv4Addr::from_bits);
        let len = usize::from(header[0] & 0x0f) * 4;
        (address(12)?.into(), address(16)?.into(), header[9], len)
    } else if !v4 && version == 6 {
        let header = quoted.first_chunk::<IPV6_LEN>()?;
        let address = |at: usize| {
            header
                .get(at..)?
                .first_chunk()
                .copied()
                .map(Ipv6Addr::from_octets)
        };
        (address(8)?.into(), address(24)?.into(), header[6], IPV6_LEN)
    } else {
        return None;
    };
    for _ in 0..towpath_common::headers::MAX_EXTENSION_HEADERS {
        if v4
            || !matches!(
                carried,
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS
            )
        {
            break;
        }
        let [next, words, ..] = *quoted.get(at..)? else {
            return None;
        };
        (carried, at) = (next, at + 8 + usize::from(words) * 8);
    }
    let numbers_at = match carried {
        protocol::ESP => at,
        protocol::AH => at + 4,
        protocol::UDP => at + UDP_LEN,
        _ => return None,
    };
    let told = TooBig {
        mtu,
        source,
        destination,
        protocol: if carried == protocol::AH {
            protocol::AH
        } else {
            protocol::ESP
        },
        spi: Spi(be32(quoted, numbers_at).filter(|spi| *spi > 255)?),
        sequence: be32(quoted, numbers_at + 4)?,
    };
    Some((told, numbers_at))
}
