//! Reading and mending IP headers, both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_base::DropReason;
use towpath_base::sa::Mode;
use towpath_common::headers::MAX_EXTENSION_HEADERS;
use towpath_common::wire::{checksum, protocol};

use crate::mode::needs_tunnel;

pub(crate) const IPV4_LEN: usize = 20;
pub(crate) const IPV6_LEN: usize = 40;

/// One IP packet as far as ESP cares, offsets from the start of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Protocol of what is at `payload_at`.
    pub(crate) protocol: u8,
    /// Offset of the byte that holds `protocol`.
    pub(crate) protocol_at: usize,
    /// Offset behind the headers.
    pub(crate) payload_at: usize,
    /// Offset behind the packet; the buffer may hold more.
    pub(crate) end: usize,
    /// A fragment, first or later.
    pub(crate) fragment: bool,
    /// TOS or traffic class.
    pub(crate) tos: u8,
}

/// How far to walk IPv6 extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walk {
    /// To the upper-layer protocol.
    ToUpperLayer,
    /// To the place where ESP goes in transport mode: behind what routers on the way read, before
    /// destination options for the final destination (RFC 4303 §3.1.1).
    ToEspPlace,
}

#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline]
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *field = value.to_be_bytes();
    }
}

impl Ip {
    /// The header of a packet to be sent by an SA of `mode` between `local` and `remote`, and whether it goes behind a
    /// new one. `follow`: those it belongs to did.
    #[inline]
    pub(crate) fn for_mode(
        packet: &[u8],
        mode: Mode,
        follow: bool,
        local: IpAddr,
        remote: IpAddr,
    ) -> Result<(Self, bool), DropReason> {
        let walk = match mode {
            Mode::Transport => Walk::ToEspPlace,
            Mode::Tunnel | Mode::Wildcard => Walk::ToUpperLayer,
        };
        let ip = Self::parse(packet, walk)?;
        if needs_tunnel(mode, follow, &ip, local, remote) {
            return Ok((ip, true));
        }
        if walk == Walk::ToUpperLayer {
            return Ok((Self::parse(packet, Walk::ToEspPlace)?, false));
        }
        Ok((ip, false))
    }

    #[inline]
    pub(crate) fn parse(packet: &[u8], walk: Walk) -> Result<Self, DropReason> {
        match packet.first().ok_or(DropReason::Truncated)? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet, walk),
            _ => Err(DropReason::BadIpHeader),
        }
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Result<Self, DropReason> {
        let header: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(DropReason::Truncated)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let end = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < IPV4_LEN || end < header_len {
            return Err(DropReason::BadIpHeader);
        }
        if end > packet.len() {
            return Err(DropReason::Truncated);
        }
        let [
            _,
            tos,
            _,
            _,
            _,
            _,
            flags,
            offset,
            _,
            protocol,
            _,
            _,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
        ] = *header;
        Ok(Self {
            source: Ipv4Addr::new(a, b, c, d).into(),
            destination: Ipv4Addr::new(e, f, g, h).into(),
            protocol,
            protocol_at: 9,
            payload_at: header_len,
            end,
            fragment: u16::from_be_bytes([flags, offset]) & 0x3fff != 0,
            tos,
        })
    }

    fn parse_v6(packet: &[u8], walk: Walk) -> Result<Self, DropReason> {
        let header: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(DropReason::Truncated)?;
        let end = IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if end > packet.len() {
            return Err(DropReason::Truncated);
        }
        let address = |at: usize| {
            let octets = header.get(at..).and_then(|rest| rest.first_chunk::<16>());
            Ipv6Addr::from_octets(octets.copied().unwrap_or_default())
        };
        let mut ip = Self {
            source: address(8).into(),
            destination: address(24).into(),
            protocol: header[6],
            protocol_at: 6,
            payload_at: IPV6_LEN,
            end,
            fragment: false,
            tos: (header[0] << 4) | (header[1] >> 4),
        };
        ip.walk(packet, walk)?;
        Ok(ip)
    }

    /// Moves `payload_at` behind the extension headers, at most [`MAX_EXTENSION_HEADERS`] of them.
    fn walk(&mut self, packet: &[u8], walk: Walk) -> Result<(), DropReason> {
        let mut place = *self;
        for _ in 0..MAX_EXTENSION_HEADERS {
            let kind = self.protocol;
            if !is_extension(kind) {
                break;
            }
            let field = packet
                .get(self.payload_at..self.end)
                .and_then(|rest| rest.first_chunk::<4>())
                .ok_or(DropReason::Truncated)?;
            let mut len = 8 + usize::from(field[1]) * 8;
            if kind == protocol::FRAGMENT {
                len = 8;
                // An atomic fragment (RFC 6946) has neither offset nor more-fragments bit.
                self.fragment = u16::from_be_bytes([field[2], field[3]]) & 0xfff9 != 0;
            }
            self.protocol = field[0];
            self.protocol_at = self.payload_at;
            self.payload_at += len;
            if self.payload_at > self.end {
                return Err(DropReason::Truncated);
            }
            if kind != protocol::DESTINATION_OPTIONS {
                place = *self;
            }
            if self.fragment {
                return Ok(());
            }
        }
        if is_extension(self.protocol) {
            return Err(DropReason::TooManyExtensions);
        }
        if walk == Walk::ToEspPlace {
            *self = place;
        }
        Ok(())
    }

    pub(crate) const fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }
}

const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
    )
}

/// Writes the length field of the packet in `bytes`, and the IPv4 header checksum.
///
/// The caller has made sure that the length fits 16 bits.
pub(crate) fn finish_header(bytes: &mut [u8]) {
    let len = bytes.len();
    match bytes
        .first()
        .map(|first| (first >> 4, usize::from(first & 0x0f) * 4))
    {
        Some((4, header_len)) => {
            put16(bytes, 2, len as u16);
            put16(bytes, 10, 0);
            let check = bytes.get(..header_len).map_or(0, checksum);
            put16(bytes, 10, check);
        }
        Some((6, _)) => put16(bytes, 4, len.saturating_sub(IPV6_LEN) as u16),
        _ => {}
    }
}

/// Longest packet the length field of its family can say.
pub(crate) const fn max_len(v4: bool) -> usize {
    if v4 {
        u16::MAX as usize
    } else {
        IPV6_LEN + u16::MAX as usize
    }
}
