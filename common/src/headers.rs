//! The parser of the classifier: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with a bounded walk
//! over extension headers.
//!
//! One source for two worlds. In the kernel every read must be a bounds check against the end of the packet
//! followed by loads at constant offsets, or the verifier refuses the program; in user space it must be safe
//! Rust. [`Packet`] is that difference and nothing else.

use crate::DropReason;
use crate::abi::Address;
use crate::counter::PassReason;
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, protocol};

/// Bytes of a packet, first byte of the Ethernet header at offset 0.
#[expect(
    clippy::len_without_is_empty,
    reason = "the verifier's view has no use for it"
)]
pub trait Packet {
    /// What [`Packet::window`] returns.
    type Window<'a>: Window
    where
        Self: 'a;

    /// Bytes of the packet.
    fn len(&self) -> usize;

    /// `N` bytes at `offset`, or `None` if the packet ends before. `N` is at least 2: what the compiler makes of
    /// a check for a single byte is beyond the verifier.
    fn window<const N: usize>(&self, offset: usize) -> Option<Self::Window<'_>>;
}

/// Bytes known to be there. Reading beyond them is a bug of the caller and yields zero or is refused by the
/// verifier; it is never undefined.
pub trait Window {
    /// The byte at `at`.
    fn u8(&self, at: usize) -> u8;
    /// Big-endian 16 bits at `at`.
    fn be16(&self, at: usize) -> u16;
    /// 32 bits at `at`, bytes in the order of the packet.
    fn word(&self, at: usize) -> u32;
}

impl Packet for [u8] {
    type Window<'a> = &'a [u8];

    fn len(&self) -> usize {
        self.len()
    }

    fn window<const N: usize>(&self, offset: usize) -> Option<&[u8]> {
        self.get(offset..offset.checked_add(N)?)
    }
}

impl Window for &[u8] {
    fn u8(&self, at: usize) -> u8 {
        self.get(at).copied().unwrap_or(0)
    }

    fn be16(&self, at: usize) -> u16 {
        self.get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u16::from_be_bytes(*bytes))
    }

    fn word(&self, at: usize) -> u32 {
        self.get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }
}

/// Extension headers walked before a packet is refused. RFC 8200 §4.1 lists six that may occur once.
pub const MAX_EXTENSION_HEADERS: usize = 6;
/// VLAN tags understood; a frame with more is not ours.
pub const MAX_TAGS: usize = 2;

/// The headers of one IP packet, as far as the classifier needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Offset of the IP header from the start of the frame.
    pub l3_offset: u32,
    /// Offset of the first header that is neither IP nor an extension header.
    pub l4_offset: u32,
    /// Offset of the first byte behind the IP packet (the frame may be longer: padding).
    pub end: u32,
    /// Destination MAC address, first two and last four bytes, in the order of the packet.
    pub dmac: (u16, u32),
    /// UDP ports, host byte order; zero unless [`Headers::protocol`] is UDP and this is no fragment.
    pub source_port: u16,
    /// See [`Headers::source_port`].
    pub destination_port: u16,
    /// Protocol of the header at [`Headers::l4_offset`].
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// VLAN tags of the frame.
    pub tags: u8,
    /// True for IPv4.
    pub v4: bool,
    /// IPv4 options or IPv6 hop-by-hop options are there.
    pub options: bool,
    /// The packet is a fragment, first or later.
    pub fragment: bool,
    /// Routers must not cut it: IPv6, or IPv4's "don't fragment".
    pub whole: bool,
}

/// Why there are no headers to classify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Left to the kernel.
    Pass(PassReason),
    /// Dropped.
    Drop(DropReason),
}

const TRUNCATED: Refused = Refused::Drop(DropReason::Truncated);
const BAD: Refused = Refused::Drop(DropReason::BadIpHeader);

/// Bytes of the headers below: Ethernet, VLAN, IPv4 without options, IPv6.
const ETHERNET: usize = 14;
const VLAN: usize = 4;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Reads the headers of an Ethernet frame.
///
/// # Errors
/// [`Refused`] says whether the kernel may have the packet.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P) -> Result<Headers, Refused> {
    let ethernet = packet.window::<ETHERNET>(0).ok_or(TRUNCATED)?;
    let dmac = (ethernet.be16(0), ethernet.word(2));
    let mut ethertype = ethernet.be16(12);
    let mut offset = ETHERNET;
    let mut tags = 0;
    for _ in 0..MAX_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        let tag = packet.window::<VLAN>(offset).ok_or(TRUNCATED)?;
        ethertype = tag.be16(2);
        offset += VLAN;
        tags += 1;
    }
    let mut headers = match ethertype {
        ETHERTYPE_IPV4 => parse_v4(packet, offset)?,
        ETHERTYPE_IPV6 => parse_v6(packet, offset)?,
        _ => return Err(Refused::Pass(PassReason::NotIp)),
    };
    headers.dmac = dmac;
    headers.tags = tags;
    if !headers.fragment {
        parse_l4(packet, &mut headers)?;
    }
    Ok(headers)
}

#[inline(always)]
fn parse_v4<P: Packet + ?Sized>(packet: &P, offset: usize) -> Result<Headers, Refused> {
    let ip = packet.window::<IPV4>(offset).ok_or(TRUNCATED)?;
    let header_len = usize::from(ip.u8(0) & 0x0f) * 4;
    let total = usize::from(ip.be16(2));
    if ip.u8(0) >> 4 != 4 || header_len < IPV4 || total < header_len {
        return Err(BAD);
    }
    let end = offset + total;
    if end > packet.len() {
        return Err(TRUNCATED);
    }
    Ok(Headers {
        source: Address::mapped(ip.word(12)),
        destination: Address::mapped(ip.word(16)),
        l3_offset: offset as u32,
        l4_offset: (offset + header_len) as u32,
        end: end as u32,
        dmac: (0, 0),
        source_port: 0,
        destination_port: 0,
        protocol: ip.u8(9),
        ttl: ip.u8(8),
        tos: ip.u8(1),
        tags: 0,
        v4: true,
        options: header_len > IPV4,
        fragment: ip.be16(6) & 0x3fff != 0,
        whole: ip.be16(6) & 0x4000 != 0,
    })
}

#[inline(always)]
fn parse_v6<P: Packet + ?Sized>(packet: &P, offset: usize) -> Result<Headers, Refused> {
    let ip = packet.window::<IPV6>(offset).ok_or(TRUNCATED)?;
    if ip.u8(0) >> 4 != 6 {
        return Err(BAD);
    }
    let payload = usize::from(ip.be16(4));
    let next = ip.u8(6);
    if payload == 0 && next == protocol::HOP_BY_HOP {
        // Perhaps a jumbogram (RFC 2675); nothing this program could check the length of.
        return Err(Refused::Pass(PassReason::Options));
    }
    let end = offset + IPV6 + payload;
    if end > packet.len() {
        return Err(TRUNCATED);
    }
    let mut headers = Headers {
        source: Address {
            words: [ip.word(8), ip.word(12), ip.word(16), ip.word(20)],
        },
        destination: Address {
            words: [ip.word(24), ip.word(28), ip.word(32), ip.word(36)],
        },
        l3_offset: offset as u32,
        l4_offset: (offset + IPV6) as u32,
        end: end as u32,
        dmac: (0, 0),
        source_port: 0,
        destination_port: 0,
        protocol: next,
        ttl: ip.u8(7),
        tos: (ip.be16(0) >> 4) as u8,
        tags: 0,
        v4: false,
        options: next == protocol::HOP_BY_HOP,
        fragment: false,
        whole: true,
    };
    walk_extensions(packet, &mut headers)?;
    Ok(headers)
}

/// Moves `l4_offset` and `protocol` behind the extension headers (RFC 8200 §4); stops at a fragment.
#[inline(always)]
fn walk_extensions<P: Packet + ?Sized>(packet: &P, headers: &mut Headers) -> Result<(), Refused> {
    let mut offset = headers.l4_offset as usize;
    let mut next = headers.protocol;
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let header = packet.window::<8>(offset).ok_or(TRUNCATED)?;
        offset += 8;
        if next == protocol::FRAGMENT {
            // Offset and more-fragments bit; an atomic fragment (RFC 6946) has neither and is a whole packet.
            headers.fragment = header.be16(2) & 0xfff9 != 0;
        } else {
            offset += usize::from(header.u8(1)) * 8;
        }
        next = header.u8(0);
        if headers.fragment {
            break;
        }
    }
    if is_extension(next) && !headers.fragment {
        return Err(Refused::Drop(DropReason::TooManyExtensions));
    }
    // The frame may go on behind what the IPv6 header says is the packet's.
    if offset > headers.end as usize {
        return Err(TRUNCATED);
    }
    headers.protocol = next;
    headers.l4_offset = offset as u32;
    Ok(())
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    // AH is left out: to the classifier it is a protocol that can be diverted.
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
    )
}

/// Checks that the header the classifier decides by is inside the packet, and reads the UDP ports.
#[inline(always)]
fn parse_l4<P: Packet + ?Sized>(packet: &P, headers: &mut Headers) -> Result<(), Refused> {
    let offset = headers.l4_offset as usize;
    let end = headers.end as usize;
    match headers.protocol {
        protocol::UDP | protocol::ESP => {
            let header = packet
                .window::<8>(offset)
                .filter(|_| offset + 8 <= end)
                .ok_or(TRUNCATED)?;
            if headers.protocol == protocol::UDP {
                headers.source_port = header.be16(0);
                headers.destination_port = header.be16(2);
            }
        }
        protocol::AH if offset + 12 > end => return Err(TRUNCATED),
        _ => {}
    }
    Ok(())
}
