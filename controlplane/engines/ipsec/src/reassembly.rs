//! Puts fragmented ESP and AH packets together before they are opened (RFC 4303 §3.4.1, RFC 791, RFC 8200 §4.5).
//!
//! Bounded in datagrams, bytes, fragments and time; a source of many half datagrams displaces its own first. Overlapping
//! fragments end their datagram, and all that follows of it (RFC 5722).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use towpath_base::{DropReason, Instant};
use towpath_common::headers::MAX_EXTENSION_HEADERS;
use towpath_common::wire::protocol;

use crate::ip::{self, IPV6_LEN, Ip, Walk, be16, be32};
use crate::outer;

/// Most fragments of one datagram: 64 KiB in pieces of the smallest MTU are 53.
pub const MAX_FRAGMENTS: usize = 64;

/// What each kept fragment counts beside its bytes.
const OVERHEAD: usize = 64;

/// Bounds of a [`Reassembler`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Half datagrams at a time. Finding one costs the logarithm of this, making room all of it.
    pub datagrams: usize,
    /// Half datagrams of one source address at a time.
    pub per_source: usize,
    /// Bytes kept in all, some overhead for each fragment included.
    pub bytes: usize,
    /// How long the rest of a datagram is waited for (RFC 8200 §4.5: at most 60 s).
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            datagrams: 256,
            per_source: 16,
            bytes: 1 << 20,
            lifetime: Duration::from_secs(15),
        }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is no fragment: go on with it as it is.
    Whole,
    /// It is kept, the rest is waited for.
    Kept,
    /// It was the last one missing: the whole IP packet.
    Complete(Vec<u8>),
}

/// Half datagrams.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    slots: BTreeMap<Key, Slot>,
    bytes: usize,
    displaced: u64,
    longest: usize,
}

/// What fragments of one datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    /// IPv4 alone tells datagrams apart by it, too.
    protocol: u8,
}

#[derive(Debug)]
struct Slot {
    deadline: Instant,
    /// In order of their offsets, without overlap.
    pieces: Vec<(usize, Vec<u8>)>,
    /// Headers of the first fragment, without its fragment header.
    head: Option<Vec<u8>>,
    total: Option<usize>,
    /// Bytes of the longest fragment, its headers included.
    longest: usize,
    congested: bool,
    not_capable: bool,
    /// Overlapped: everything else of it is refused until the deadline.
    refused: bool,
}

/// One fragment, taken apart.
struct Fragment<'a> {
    key: Key,
    offset: usize,
    more: bool,
    head: Head<'a>,
    data: &'a [u8],
    /// Of the whole packet.
    len: usize,
    ecn: u8,
}

struct Head<'a> {
    /// IP header and unfragmentable extensions.
    bytes: &'a [u8],
    /// Offset of the byte that named the fragment header, and what it names without it. IPv6.
    next: Option<(usize, u8)>,
}

impl Reassembler {
    /// Keeps nothing yet.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            slots: BTreeMap::new(),
            bytes: 0,
            displaced: 0,
            longest: 0,
        }
    }

    /// Half datagrams at present.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes kept, overhead included.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Half datagrams given up for younger ones.
    pub const fn displaced(&self) -> u64 {
        self.displaced
    }

    /// Longest fragment, in bytes with its IP header, of the datagram completed last: an MTU its path takes.
    pub const fn longest(&self) -> usize {
        self.longest
    }

    /// Takes an IP packet that starts at the first byte of `packet`.
    ///
    /// # Errors
    /// Reason to drop it: [`DropReason::ReassemblyOverlap`], [`DropReason::ReassemblyLimit`],
    /// [`DropReason::EcnNotCapable`] (fragments contradict each other, RFC 3168 §5.3), or what is wrong with its headers.
    pub fn push(&mut self, now: Instant, packet: &[u8]) -> Result<Outcome, DropReason> {
        let Some(fragment) = Fragment::parse(packet)? else {
            return Ok(Outcome::Whole);
        };
        if !self.slots.contains_key(&fragment.key) {
            self.make_room(&fragment.key);
        }
        let deadline = now + self.limits.lifetime;
        let slot = self
            .slots
            .entry(fragment.key)
            .or_insert_with(|| Slot::new(deadline));
        let before = slot.bytes();
        let added = slot.add(&fragment);
        self.bytes = (self.bytes + slot.bytes()).saturating_sub(before);
        added?;
        if slot.is_complete() {
            let whole = self.take(&fragment.key).ok_or(DropReason::ReassemblyLimit)?;
            self.longest = whole.longest;
            return whole.assemble().map(Outcome::Complete);
        }
        while self.bytes > self.limits.bytes {
            // The newcomer's own datagram may be the oldest: then it was too large for what there is.
            let oldest = self.oldest(None).ok_or(DropReason::ReassemblyLimit)?;
            self.take(&oldest);
            self.displaced += 1;
            if oldest == fragment.key {
                return Err(DropReason::ReassemblyLimit);
            }
        }
        Ok(Outcome::Kept)
    }

    /// Gives up what waited too long. Returns how many datagrams: [`DropReason::ReassemblyTimeout`] each.
    pub fn expire(&mut self, now: Instant) -> usize {
        let before = self.slots.len();
        self.slots.retain(|_, slot| slot.deadline > now);
        self.bytes = self.slots.values().map(Slot::bytes).sum();
        before - self.slots.len()
    }

    /// When [`Reassembler::expire`] will next have something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.slots.values().map(|slot| slot.deadline).min()
    }

    fn make_room(&mut self, newcomer: &Key) {
        let of_source = self
            .slots
            .keys()
            .filter(|key| key.source == newcomer.source)
            .count();
        let victim = if of_source >= self.limits.per_source.max(1) {
            self.oldest(Some(newcomer.source))
        } else if self.slots.len() >= self.limits.datagrams.max(1) {
            self.oldest(None)
        } else {
            None
        };
        if let Some(victim) = victim {
            self.take(&victim);
            self.displaced += 1;
        }
    }

    fn oldest(&self, source: Option<IpAddr>) -> Option<Key> {
        self.slots
            .iter()
            .filter(|(key, _)| source.is_none_or(|source| key.source == source))
            .min_by_key(|(_, slot)| slot.deadline)
            .map(|(key, _)| *key)
    }

    fn take(&mut self, key: &Key) -> Option<Slot> {
        let slot = self.slots.remove(key)?;
        self.bytes = self.bytes.saturating_sub(slot.bytes());
        Some(slot)
    }
}

impl Slot {
    const fn new(deadline: Instant) -> Self {
        Self {
            deadline,
            pieces: Vec::new(),
            head: None,
            total: None,
            longest: 0,
            congested: false,
            not_capable: false,
            refused: false,
        }
    }

    fn bytes(&self) -> usize {
        let pieces: usize = self.pieces.iter().map(|(_, data)| data.len() + OVERHEAD).sum();
        OVERHEAD + pieces + self.head.as_ref().map_or(0, Vec::len)
    }

    fn add(&mut self, fragment: &Fragment<'_>) -> Result<(), DropReason> {
        if self.refused {
            return Err(DropReason::ReassemblyOverlap);
        }
        let (start, end) = (fragment.offset, fragment.offset + fragment.data.len());
        let at = self.pieces.partition_point(|(offset, _)| *offset < start);
        if let Some((offset, data)) = self.pieces.get(at)
            && *offset == start
            && data == fragment.data
        {
            // The network repeated it (RFC 8200 §4.5 lets exact duplicates pass).
            return Ok(());
        }
        let overlaps_left = at
            .checked_sub(1)
            .and_then(|left| self.pieces.get(left))
            .is_some_and(|(offset, data)| offset + data.len() > start);
        let overlaps_right = self.pieces.get(at).is_some_and(|(offset, _)| *offset < end);
        let last_end = self.pieces.last().map_or(0, |(offset, data)| offset + data.len());
        let contradicts = match self.total {
            Some(total) => end > total || !fragment.more && end != total,
            None => !fragment.more && last_end > end,
        };
        if overlaps_left || overlaps_right || contradicts {
            self.pieces = Vec::new();
            self.head = None;
            self.refused = true;
            return Err(DropReason::ReassemblyOverlap);
        }
        if self.pieces.len() >= MAX_FRAGMENTS {
            return Err(DropReason::ReassemblyLimit);
        }
        if !fragment.more {
            self.total = Some(end);
        }
        if start == 0 {
            self.head = Some(fragment.head.without_fragment_header());
        }
        self.longest = self.longest.max(fragment.len);
        self.congested |= fragment.ecn == 0b11;
        self.not_capable |= fragment.ecn == 0;
        self.pieces.insert(at, (start, fragment.data.to_vec()));
        Ok(())
    }

    fn is_complete(&self) -> bool {
        let mut reached = 0;
        for (offset, data) in &self.pieces {
            if *offset != reached {
                return false;
            }
            reached += data.len();
        }
        self.total == Some(reached)
    }

    fn assemble(self) -> Result<Vec<u8>, DropReason> {
        let mut packet = self.head.ok_or(DropReason::BadIpHeader)?;
        let total = self.total.unwrap_or(0);
        let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        if packet.len() + total > ip::max_len(v4) {
            return Err(DropReason::BadIpHeader);
        }
        packet.reserve_exact(total);
        for (_, data) in &self.pieces {
            packet.extend_from_slice(data);
        }
        ip::finish_header(&mut packet);
        if self.congested {
            if self.not_capable {
                return Err(DropReason::EcnNotCapable);
            }
            outer::propagate_ecn(0b11, &mut packet)?;
        }
        Ok(packet)
    }
}

impl Head<'_> {
    fn without_fragment_header(&self) -> Vec<u8> {
        let mut head = self.bytes.to_vec();
        match self.next {
            Some((at, next)) => {
                if let Some(field) = head.get_mut(at) {
                    *field = next;
                }
            }
            None => ip::put16(&mut head, 6, 0),
        }
        head
    }
}

impl<'a> Fragment<'a> {
    /// `None` for a packet that is no fragment (an atomic one is none, RFC 6946).
    fn parse(packet: &'a [u8]) -> Result<Option<Self>, DropReason> {
        let ip = Ip::parse(packet, Walk::ToUpperLayer)?;
        if !ip.fragment {
            return Ok(None);
        }
        let fragment = if ip.is_v4() {
            Self::parse_v4(packet, &ip)
        } else {
            Self::parse_v6(packet, &ip)
        };
        let fragment = fragment.ok_or(DropReason::Truncated)?;
        let whole_units = !fragment.more || fragment.data.len().is_multiple_of(8);
        let end = fragment.offset + fragment.data.len();
        if fragment.data.is_empty() || !whole_units || end > usize::from(u16::MAX) {
            return Err(DropReason::BadIpHeader);
        }
        Ok(Some(fragment))
    }

    fn parse_v4(packet: &'a [u8], ip: &Ip) -> Option<Self> {
        let flags = be16(packet, 6)?;
        Some(Self {
            key: Key {
                source: ip.source,
                destination: ip.destination,
                id: be16(packet, 4)?.into(),
                protocol: ip.protocol,
            },
            offset: usize::from(flags & 0x1fff) * 8,
            more: flags & 0x2000 != 0,
            head: Head {
                bytes: packet.get(..ip.payload_at)?,
                next: None,
            },
            data: packet.get(ip.payload_at..ip.end)?,
            len: ip.end,
            ecn: ip.tos & 0b11,
        })
    }

    fn parse_v6(packet: &'a [u8], ip: &Ip) -> Option<Self> {
        let (mut kind, mut named_at, mut at) = (*packet.get(6)?, 6, IPV6_LEN);
        for _ in 0..MAX_EXTENSION_HEADERS {
            if kind == protocol::FRAGMENT {
                break;
            }
            let [next, words, ..] = *packet.get(at..)? else {
                return None;
            };
            (kind, named_at, at) = (next, at, at + 8 + usize::from(words) * 8);
        }
        let header = packet.get(at..)?.first_chunk::<8>()?;
        let offset = be16(header, 2)?;
        Some(Self {
            key: Key {
                source: ip.source,
                destination: ip.destination,
                id: be32(header, 4)?,
                protocol: 0,
            },
            offset: usize::from(offset & 0xfff8),
            more: offset & 1 != 0,
            head: Head {
                bytes: packet.get(..at)?,
                next: Some((named_at, header[0])),
            },
            data: packet.get(at + 8..ip.end)?,
            len: ip.end,
            ecn: ip.tos & 0b11,
        })
    }
}
