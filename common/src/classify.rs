//! The classifier: which packets are the gateway's business (seed's steps S21 to S26).
//!
//! [`classify`] is compiled into the XDP program and into user space from this one source; [`Tables`] stands
//! for the profile maps. It decides by headers and conditions alone. Whether an ordinary packet can really be
//! forwarded inside XDP is for the routing to say, afterwards.
//!
//! Order of the questions: is the frame for us and unicast; is it whole; does a condition divert it; may it be
//! forwarded here. A packet from a terminal is asked for the terminal's conditions first, then for those of its
//! destination, so that of two terminals talking to each other the sender's side sees it.

use crate::DropReason;
use crate::abi::{
    Address, CONSULT_PAIRS, DIVERT_AH, DIVERT_ESP, DIVERT_TCP, GLOBAL_GATEWAY, GLOBAL_TCP, GatewayCondition,
    GatewayKey, Globals, PairKey, PortInfo, ProfileEntry, Role,
};
use crate::counter::{DivertKind, PassReason};
use crate::headers::{Headers, Packet, Refused, Window, parse};
use crate::wire::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, IKE_HEADER_LEN, NON_ESP_MARKER_LEN, PORT_IKE, PORT_IKE_NATT, protocol,
};

/// The profile maps as the classifier sees them.
pub trait Tables {
    /// Conditions for an address: those of the host, else those of the longest prefix.
    fn profile(&self, address: &Address) -> Option<&ProfileEntry>;
    /// Conditions for a terminal and a peer.
    fn pair(&self, key: &PairKey) -> Option<&ProfileEntry>;
    /// Condition for a message addressed to the gateway.
    fn gateway(&self, key: &GatewayKey) -> Option<&GatewayCondition>;
}

/// What is to be done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Give it to user space.
    Divert {
        /// Why.
        kind: DivertKind,
        /// Subscriber concerned; 0 if unknown.
        handle: u64,
        /// The subscriber's terminal sent it (otherwise it is the destination).
        from_terminal: bool,
    },
    /// Forward it by the routing table.
    Ordinary,
    /// Leave it to the kernel.
    NotOurs(PassReason),
    /// Drop it.
    Drop(DropReason),
}

/// Bytes of the UDP header.
const UDP: usize = 8;

/// Parses and classifies a frame that came in through `port`; the headers are there unless parsing failed.
#[inline(always)]
pub fn classify_frame<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    port: &PortInfo,
    globals: &Globals,
    tables: &T,
) -> (Verdict, Option<Headers>) {
    match parse(packet) {
        Ok(headers) => (classify(packet, &headers, port, globals, tables), Some(headers)),
        Err(Refused::Pass(reason)) => (Verdict::NotOurs(reason), None),
        Err(Refused::Drop(reason)) => (Verdict::Drop(reason), None),
    }
}

/// Decides by headers and conditions.
#[inline(always)]
pub fn classify<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    headers: &Headers,
    port: &PortInfo,
    globals: &Globals,
    tables: &T,
) -> Verdict {
    if !is_for_port(headers, port) {
        return Verdict::NotOurs(PassReason::OtherHost);
    }
    if is_local_scope(headers.v4, &headers.destination) || is_local_scope(headers.v4, &headers.source) {
        return Verdict::NotOurs(PassReason::NotUnicast);
    }
    if headers.ttl == 0 {
        return Verdict::Drop(DropReason::TtlExpired);
    }
    // Only these three can be diverted, or what is around them: nothing else costs a look-up.
    let ipsec = matches!(headers.protocol, protocol::UDP | protocol::ESP | protocol::AH);
    if headers.fragment {
        let whole = if ipsec {
            fragment(headers, port, tables)
        } else {
            None
        };
        return whole.unwrap_or(Verdict::NotOurs(PassReason::Fragment));
    }
    if matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6)
        && let Some(verdict) = too_big(packet, headers, tables)
    {
        return verdict;
    }
    if ipsec && let Some(verdict) = diverted(packet, headers, port, globals, tables) {
        return verdict;
    }
    if matches!(headers.protocol, protocol::IPIP | protocol::IPV6 | protocol::GRE)
        && let Some(verdict) = wrapped(packet, headers, port, tables)
    {
        return verdict;
    }
    if headers.ttl == 1 {
        Verdict::NotOurs(PassReason::TtlExpiring)
    } else if headers.options {
        Verdict::NotOurs(PassReason::Options)
    } else if headers.tags != 0 {
        Verdict::NotOurs(PassReason::Tagged)
    } else if headers.protocol == protocol::TCP
        && globals.flags & GLOBAL_TCP != 0
        && let Some(verdict) = clear_tcp(headers, port, tables)
    {
        verdict
    } else {
        Verdict::Ordinary
    }
}

/// TCP in the clear of a terminal whose profile has it relayed. Without a process that relays it is ordinary.
#[inline(always)]
fn clear_tcp<T: Tables>(headers: &Headers, port: &PortInfo, tables: &T) -> Option<Verdict> {
    let wanted = |entry: &&ProfileEntry| entry.flags & DIVERT_TCP != 0;
    if Role::from_abi(port.role) == Role::Access
        && let Some(entry) = effective(tables, &headers.source, &headers.destination).filter(wanted)
    {
        return Some(divert(DivertKind::Tcp, entry.handle, true));
    }
    let entry = effective(tables, &headers.destination, &headers.source).filter(wanted)?;
    Some(divert(DivertKind::Tcp, entry.handle, false))
}

#[inline(always)]
fn is_for_port(headers: &Headers, port: &PortInfo) -> bool {
    let [a, b, c, d, e, f] = port.mac;
    let mac = (u16::from_be_bytes([a, b]), u32::from_ne_bytes([c, d, e, f]));
    mac == (0, 0) || mac == headers.dmac
}

/// True for addresses a router does not forward: unspecified, loopback, link-local, multicast, broadcast.
#[inline(always)]
fn is_local_scope(v4: bool, address: &Address) -> bool {
    let [first, second, third, last] = address.words;
    if v4 {
        let value = u32::from_be(last);
        let octet = value >> 24;
        octet == 0 || octet == 127 || octet >= 224 || value >> 16 == 0xa9fe
    } else {
        let value = u32::from_be(first);
        let low = (u32::from_be(third), u32::from_be(last));
        // ff00::/8, fe80::/10, ::/127 (unspecified and loopback), and ::ffff:0:0/96, which must not appear on
        // the wire and would be mistaken for IPv4 in the tables.
        value >> 24 == 0xff
            || value >> 22 == 0x3fa
            || (first | second == 0 && (low.0 == 0xffff || low.0 == 0 && low.1 <= 1))
    }
}

#[inline(always)]
fn diverted<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    headers: &Headers,
    port: &PortInfo,
    globals: &Globals,
    tables: &T,
) -> Option<Verdict> {
    let udp = headers.protocol == protocol::UDP;
    if udp && globals.flags & GLOBAL_GATEWAY != 0 {
        let key = GatewayKey {
            address: headers.destination,
            port: u32::from(headers.destination_port),
        };
        if let Some(condition) = tables.gateway(&key) {
            return Some(divert(DivertKind::ToGateway, condition.handle, false));
        }
    }
    if Role::from_abi(port.role) == Role::Access {
        let terminal = effective(tables, &headers.source, &headers.destination);
        if let Some(entry) = terminal
            && let Some(kind) = from_terminal(packet, headers, entry, globals)
        {
            return Some(unless_expiring(headers, kind, entry.handle, true));
        }
        // A terminal that is not registered yet: its registration is all the network takes from it.
        if udp && headers.destination_port == PORT_IKE && has_reserved_spis(packet, headers, 0, globals) {
            let handle = terminal.map_or(0, |entry| entry.handle);
            return Some(divert(DivertKind::IkeFromTerminal, handle, true));
        }
    }
    let entry = effective(tables, &headers.destination, &headers.source)?;
    let kind = to_terminal(packet, headers, entry)?;
    Some(unless_expiring(headers, kind, entry.handle, false))
}

/// A fragment of a terminal's ESP, AH or UDP: user space puts it together, for neither ports nor SPI are in all of them.
#[inline(always)]
fn fragment<T: Tables>(headers: &Headers, port: &PortInfo, tables: &T) -> Option<Verdict> {
    let wanted = |entry: &&ProfileEntry| entry.flags & (DIVERT_ESP | DIVERT_AH) != 0;
    if Role::from_abi(port.role) == Role::Access
        && let Some(entry) = effective(tables, &headers.source, &headers.destination).filter(wanted)
    {
        return Some(unless_expiring(headers, DivertKind::Fragment, entry.handle, true));
    }
    let entry = effective(tables, &headers.destination, &headers.source).filter(wanted)?;
    Some(unless_expiring(
        headers,
        DivertKind::Fragment,
        entry.handle,
        false,
    ))
}

/// IP-in-IP or GRE around what may be IPsec or IKE of a served terminal (T14): one level, inner header without options. GRE
/// with sequence numbers or routing is ordinary: nobody could send in its place.
#[inline(always)]
fn wrapped<P: Packet + ?Sized, T: Tables>(
    packet: &P,
    headers: &Headers,
    port: &PortInfo,
    tables: &T,
) -> Option<Verdict> {
    /// GRE's flags for a checksum and a key, 4 bytes each (RFC 2784, RFC 2890).
    const SUM_AND_KEY: u16 = 0xa000;
    let mut at = headers.l4_offset as usize;
    let mut v4 = headers.protocol == protocol::IPIP;
    if headers.protocol == protocol::GRE {
        let gre = packet.window::<4>(at)?;
        let flags = gre.be16(0);
        v4 = gre.be16(2) == ETHERTYPE_IPV4;
        if flags & !SUM_AND_KEY != 0 || !v4 && gre.be16(2) != ETHERTYPE_IPV6 {
            return None;
        }
        at += 4 + usize::from(flags >> 15) * 4 + usize::from(flags >> 13 & 1) * 4;
    }
    let (source, destination, inner, len) = if v4 {
        let ip = packet.window::<20>(at).filter(|ip| ip.u8(0) == 0x45)?;
        let (source, destination) = (Address::mapped(ip.word(12)), Address::mapped(ip.word(16)));
        (source, destination, ip.u8(9), 20)
    } else {
        let ip = packet.window::<40>(at).filter(|ip| ip.u8(0) >> 4 == 6)?;
        let source = Address {
            words: [ip.word(8), ip.word(12), ip.word(16), ip.word(20)],
        };
        let destination = Address {
            words: [ip.word(24), ip.word(28), ip.word(32), ip.word(36)],
        };
        (source, destination, ip.u8(6), 40)
    };
    if at + len + 8 > headers.end as usize {
        return None;
    }
    if inner == protocol::UDP {
        let ports = packet.window::<4>(at + len)?;
        let ike = |port: u16| port == PORT_IKE || port == PORT_IKE_NATT;
        if !ike(ports.be16(0)) && !ike(ports.be16(2)) {
            return None;
        }
    } else if inner != protocol::ESP && inner != protocol::AH {
        return None;
    }
    let wanted = |entry: &&ProfileEntry| entry.flags & (DIVERT_ESP | DIVERT_AH) != 0;
    if Role::from_abi(port.role) == Role::Access
        && let Some(entry) = effective(tables, &source, &destination).filter(wanted)
    {
        return Some(unless_expiring(headers, DivertKind::Wrapped, entry.handle, true));
    }
    let entry = effective(tables, &destination, &source).filter(wanted)?;
    Some(unless_expiring(headers, DivertKind::Wrapped, entry.handle, false))
}

/// "Too big" about a packet between a terminal and its peer that may be IPsec (RFC 792, RFC 4443 §3.2). It is for one of
/// the two: the destination's entry, or that of the other end of the packet it quotes.
#[inline(always)]
fn too_big<P: Packet + ?Sized, T: Tables>(packet: &P, headers: &Headers, tables: &T) -> Option<Verdict> {
    /// ICMP header.
    const ICMP: usize = 8;
    let at = headers.l4_offset as usize;
    let kind = packet.window::<2>(at)?.be16(0);
    let (wanted, quoted, len) = if headers.v4 {
        (0x0304, packet.window::<20>(at + ICMP)?, 20)
    } else {
        (0x0200, packet.window::<20>(at + ICMP + 20)?, 40)
    };
    if kind != wanted || at + ICMP + len > headers.end as usize {
        return None;
    }
    let other = if headers.v4 {
        if !matches!(quoted.u8(9), protocol::UDP | protocol::ESP | protocol::AH) {
            return None;
        }
        Address::mapped(quoted.word(16))
    } else {
        // The destination is the last of the 40 bytes; extension headers are left to user space.
        Address {
            words: [quoted.word(4), quoted.word(8), quoted.word(12), quoted.word(16)],
        }
    };
    let entry = match tables.profile(&headers.destination) {
        Some(entry) => entry,
        None => tables.profile(&other)?,
    };
    if entry.flags & (DIVERT_ESP | DIVERT_AH) == 0 {
        return None;
    }
    Some(unless_expiring(headers, DivertKind::TooBig, entry.handle, false))
}

/// The entry for `terminal`, or the one for the pair where the terminal's entry asks for it.
#[inline(always)]
fn effective<'a, T: Tables>(tables: &'a T, terminal: &Address, peer: &Address) -> Option<&'a ProfileEntry> {
    let entry = tables.profile(terminal)?;
    if entry.flags & CONSULT_PAIRS != 0
        && let Some(pair) = tables.pair(&PairKey {
            terminal: *terminal,
            peer: *peer,
        })
    {
        return Some(pair);
    }
    Some(entry)
}

#[inline(always)]
fn divert(kind: DivertKind, handle: u64, from_terminal: bool) -> Verdict {
    Verdict::Divert {
        kind,
        handle,
        from_terminal,
    }
}

/// Packets user space would forward need a hop left; without one, the kernel answers with ICMP.
#[inline(always)]
fn unless_expiring(headers: &Headers, kind: DivertKind, handle: u64, from_terminal: bool) -> Verdict {
    if headers.ttl == 1
        && matches!(
            kind,
            DivertKind::Esp
                | DivertKind::Ah
                | DivertKind::NattEsp
                | DivertKind::Fragment
                | DivertKind::TooBig
                | DivertKind::Wrapped
        )
    {
        Verdict::NotOurs(PassReason::TtlExpiring)
    } else {
        divert(kind, handle, from_terminal)
    }
}

/// Condition list 2.
#[inline(always)]
fn from_terminal<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers,
    entry: &ProfileEntry,
    globals: &Globals,
) -> Option<DivertKind> {
    match headers.protocol {
        protocol::ESP if entry.flags & DIVERT_ESP != 0 => Some(DivertKind::Esp),
        protocol::AH if entry.flags & DIVERT_AH != 0 => Some(DivertKind::Ah),
        protocol::UDP => {
            // Towards a peer behind a NAT the condition's port is the terminal's own.
            let index = port_index(&entry.from_terminal, headers.destination_port)
                .or_else(|| port_index(&entry.from_terminal, headers.source_port))?;
            if entry.natt_from >> index & 1 == 0 {
                return has_reserved_spis(packet, headers, 0, globals).then_some(DivertKind::IkeFromTerminal);
            }
            match natt_kind(packet, headers) {
                // A terminal has no IKE: with other SPIs it is somebody else's, and passes untouched.
                DivertKind::NattIke => has_reserved_spis(packet, headers, NON_ESP_MARKER_LEN, globals)
                    .then_some(DivertKind::IkeFromTerminal),
                kind => Some(kind),
            }
        }
        _ => None,
    }
}

/// Condition list 1.
#[inline(always)]
fn to_terminal<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers,
    entry: &ProfileEntry,
) -> Option<DivertKind> {
    match headers.protocol {
        protocol::ESP if entry.flags & DIVERT_ESP != 0 => Some(DivertKind::Esp),
        protocol::AH if entry.flags & DIVERT_AH != 0 => Some(DivertKind::Ah),
        protocol::UDP => {
            let index = port_index(&entry.to_terminal, headers.destination_port)?;
            if entry.natt_to >> index & 1 == 0 {
                Some(DivertKind::IkeToTerminal)
            } else {
                Some(natt_kind(packet, headers))
            }
        }
        _ => None,
    }
}

#[inline(always)]
fn port_index(ports: &[u16; 4], port: u16) -> Option<u32> {
    let [a, b, c, d] = *ports;
    match port {
        0 => None,
        _ if port == a => Some(0),
        _ if port == b => Some(1),
        _ if port == c => Some(2),
        _ if port == d => Some(3),
        _ => None,
    }
}

/// Tells the three kinds of packet on a port with the framing of RFC 3948 §2 apart.
#[inline(always)]
fn natt_kind<P: Packet + ?Sized>(packet: &P, headers: &Headers) -> DivertKind {
    let payload = headers.l4_offset as usize + UDP;
    let end = headers.end as usize;
    // The byte in front of the payload belongs to the UDP header.
    if payload + 1 == end
        && packet
            .window::<2>(payload - 1)
            .is_some_and(|bytes| bytes.u8(1) == 0xff)
    {
        return DivertKind::NattKeepalive;
    }
    if payload + NON_ESP_MARKER_LEN <= end
        && packet
            .window::<NON_ESP_MARKER_LEN>(payload)
            .is_some_and(|marker| marker.word(0) == 0)
    {
        return DivertKind::NattIke;
    }
    DivertKind::NattEsp
}

/// True if an IKE header stands `skip` bytes into the UDP payload and both its SPIs hold the reserved value.
#[inline(always)]
fn has_reserved_spis<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers,
    skip: usize,
    globals: &Globals,
) -> bool {
    let offset = headers.l4_offset as usize + UDP + skip;
    if offset + IKE_HEADER_LEN > headers.end as usize {
        return false;
    }
    let Some(ike) = packet.window::<IKE_HEADER_LEN>(offset) else {
        return false;
    };
    let high = (globals.reserved_spi >> 32) as u32;
    let low = globals.reserved_spi as u32;
    ike.word(0) == high.to_be()
        && ike.word(4) == low.to_be()
        && ike.word(8) == high.to_be()
        && ike.word(12) == low.to_be()
}
