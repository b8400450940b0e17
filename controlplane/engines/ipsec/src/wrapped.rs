//! Foreign encapsulation (row T14): an IP packet inside another, as between the agents of Mobile IP.
//!
//! ```text
//!   IP-in-IP   outer IP, protocol 4 or 41 | inner IP …              RFC 2003, 2473, 4213
//!   GRE        outer IP, protocol 47 | flags, type [sum] [key] | inner IP …    RFC 2784, 2890
//! ```
//!
//! A [`Wrap`] is everything in front of the inner packet. It is taken off, the inner packet is worked on, which may change
//! its length, and it is put back with lengths and checksums that are right again. GRE with sequence numbers, routing or
//! another version is not looked into: nobody but its sender can number its packets.

use core::net::IpAddr;
use core::ops::Range;

use towpath_base::packet::PacketBuf;
use towpath_common::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, checksum, protocol};

use crate::ip::{IPV4_LEN, IPV6_LEN, Ip, Walk, be16, finish_header, max_len, put16};

/// Longest encapsulation kept, bytes: IPv4 with all options and GRE with checksum and key.
const MAX_LEN: usize = 72;

/// GRE's flag for a checksum, and for a key; no other may be set (RFC 2784 §2.1, RFC 2890 §2).
const GRE_CHECKSUM: u16 = 0x8000;
const GRE_KEY: u16 = 0x2000;

/// What stands in front of an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrap {
    bytes: [u8; MAX_LEN],
    len: u8,
    v4: bool,
    /// Offset of a GRE header with a checksum.
    summed_at: Option<u8>,
}

/// Whether a packet of this protocol may be an encapsulation.
#[inline]
pub const fn may_be(protocol: u8) -> bool {
    matches!(protocol, protocol::IPIP | protocol::IPV6 | protocol::GRE)
}

/// The encapsulation of `packet`, which starts at the outer IP header, and where the inner packet is. `None` if it is none,
/// is a fragment, or is of a kind that could not be put back.
pub fn unwrap(packet: &[u8]) -> Option<(Wrap, Range<usize>)> {
    let ip = Ip::parse(packet, Walk::ToUpperLayer).ok()?;
    if ip.fragment {
        return None;
    }
    let (inner_v4, len, summed_at) = match ip.protocol {
        protocol::IPIP => (true, ip.payload_at, None),
        protocol::IPV6 => (false, ip.payload_at, None),
        protocol::GRE => gre(packet.get(..ip.end)?, ip.payload_at)?,
        _ => return None,
    };
    let inner = packet.get(len..ip.end)?;
    let version = inner.first()? >> 4;
    let parsed = Ip::parse(inner, Walk::ToUpperLayer).ok()?;
    if (version == 4) != inner_v4 || parsed.end != inner.len() {
        return None;
    }
    let mut bytes = [0; MAX_LEN];
    bytes.get_mut(..len)?.copy_from_slice(packet.get(..len)?);
    let wrap = Wrap {
        bytes,
        len: u8::try_from(len).ok()?,
        v4: ip.is_v4(),
        summed_at,
    };
    Some((wrap, len..ip.end))
}

/// What a GRE header says: whether IPv4 follows, where, and where its checksum is, which is right if it is there.
fn gre(packet: &[u8], at: usize) -> Option<(bool, usize, Option<u8>)> {
    let flags = be16(packet, at)?;
    let v4 = match be16(packet, at + 2)? {
        ETHERTYPE_IPV4 => true,
        ETHERTYPE_IPV6 => false,
        _ => return None,
    };
    if flags & !(GRE_CHECKSUM | GRE_KEY) != 0 {
        return None;
    }
    let summed = flags & GRE_CHECKSUM != 0;
    if summed && checksum(packet.get(at..)?) != 0 {
        return None;
    }
    let len = 4 + usize::from(summed) * 4 + usize::from(flags & GRE_KEY != 0) * 4;
    let summed_at = if summed {
        Some(u8::try_from(at).ok()?)
    } else {
        None
    };
    Some((v4, at + len, summed_at))
}

impl Wrap {
    /// Bytes it adds.
    pub const fn len(&self) -> u16 {
        self.len as u16
    }

    /// Never: a wrap has an IP header.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Family of the outer header.
    pub const fn is_v4(&self) -> bool {
        self.v4
    }

    /// Puts it in front of the inner packet in `packet`. `None` without room, or if the whole is longer than IP allows; the
    /// packet's contents are unspecified then.
    pub fn put(&self, packet: &mut PacketBuf<'_>) -> Option<()> {
        let len = usize::from(self.len);
        if packet.len() + len > max_len(self.v4) {
            return None;
        }
        packet.grow_front(len)?.copy_from_slice(self.bytes.get(..len)?);
        let bytes = packet.bytes_mut();
        finish_header(bytes);
        mend(bytes, self);
        Some(())
    }

    /// The same for a packet that the gateway makes: with a name of its own, and the inner packet's congestion mark, not
    /// that of the packet this was learnt from (RFC 6040 §4.1).
    #[must_use]
    pub fn fresh(mut self, name: u16, inner: &[u8]) -> Self {
        let mark = Ip::parse(inner, Walk::ToUpperLayer).map_or(0, |ip| ip.tos & 3);
        if self.v4 {
            put16(&mut self.bytes, 4, name);
            self.bytes[1] = self.bytes[1] & !3 | mark;
        } else {
            self.bytes[1] = self.bytes[1] & !0x30 | mark << 4;
        }
        self
    }

    /// The same the other way round. `None` with IP options or extension headers, which say more than two addresses.
    pub fn reversed(mut self) -> Option<Self> {
        let (header, at, width) = if self.v4 {
            (IPV4_LEN, 12, 4)
        } else {
            (IPV6_LEN, 8, 16)
        };
        let Self { bytes, v4, .. } = &mut self;
        let plain = if *v4 {
            bytes[0] & 0x0f == 5
        } else {
            may_be(bytes[6])
        };
        let (source, destination) = bytes.get_mut(at..header)?.split_at_mut(width);
        source.swap_with_slice(destination);
        plain.then_some(self)
    }

    /// Outer source and destination.
    pub fn ends(&self) -> Option<(IpAddr, IpAddr)> {
        let octets = |at: usize| self.bytes.get(at..);
        Some(if self.v4 {
            let address = |at| Some(IpAddr::from(*octets(at)?.first_chunk::<4>()?));
            (address(12)?, address(16)?)
        } else {
            let address = |at| Some(IpAddr::from(*octets(at)?.first_chunk::<16>()?));
            (address(8)?, address(24)?)
        })
    }
}

/// Makes the checksum of the encapsulation in `packet` right again after a change of what is inside; lengths are the same.
pub fn mend(packet: &mut [u8], wrap: &Wrap) {
    if let Some(at) = wrap.summed_at.map(usize::from) {
        put16(packet, at + 4, 0);
        let sum = packet.get(at..).map_or(0, checksum);
        put16(packet, at + 4, sum);
    }
}
