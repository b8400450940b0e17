//! The security policy database (RFC 4301 §4.4.1): ordered entries, the first that matches decides.
//!
//! ```text
//!   packet ─► decision cache ──hit──► entry
//!                  └─miss─► one look-up per shape (source length, destination length) in use
//!                           └─► entries whose addresses are no prefixes, in order, while they can still win
//! ```
//!
//! Entries whose addresses are hosts, prefixes or absent are found by their masked addresses, so the cost
//! depends on how many *shapes* are in use and on the logarithm of their number, not on how many entries there
//! are. The cache is direct-mapped and seeded: it is bounded, and whoever makes it miss gains nothing.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::net::IpAddr;

use towpath_base::policy::{AddressRange, IpsecProtocol, Policy, PolicyAction, PolicySelector};

use crate::locate::Flow;

/// Largest IPv6 flow label.
const MAX_FLOW_LABEL: u32 = (1 << 20) - 1;

/// What a packet shows to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Query {
    /// Addresses, protocol and ports.
    pub flow: Flow,
    /// User, where the sending system says.
    pub user: Option<u32>,
    /// Sensitivity level, where the sending system says.
    pub level: Option<u8>,
    /// IPsec protocol it is protected with.
    pub ipsec: Option<IpsecProtocol>,
    /// IPv4 TOS or IPv6 traffic class.
    pub tos: u8,
    /// IPv6 flow label; 0 for IPv4.
    pub flow_label: u32,
}

impl Query {
    /// A packet of which only the flow is known.
    pub const fn of(flow: Flow) -> Self {
        Self {
            flow,
            user: None,
            level: None,
            ipsec: None,
            tos: 0,
            flow_label: 0,
        }
    }

    /// The flow of `packet`, with TOS or traffic class and flow label from its IP header.
    ///
    /// # Errors
    /// What is wrong with the IP header.
    pub fn of_packet(packet: &[u8]) -> Result<Self, towpath_base::DropReason> {
        let mut query = Self::of(Flow::of(packet)?);
        if let Some(word) = packet.first_chunk::<4>() {
            let word = u32::from_be_bytes(*word);
            if query.flow.source.is_ipv4() {
                query.tos = (word >> 16) as u8;
            } else {
                query.tos = (word >> 20) as u8;
                query.flow_label = word & MAX_FLOW_LABEL;
            }
        }
        Ok(query)
    }
}

/// Whether `selector` is about the packet.
pub fn matches(selector: &PolicySelector, query: &Query) -> bool {
    let flow = &query.flow;
    let v4 = flow.source.is_ipv4();
    fn same<T: PartialEq>(wanted: Option<T>, found: Option<T>) -> bool {
        wanted.is_none() || wanted == found
    }
    let within = |range: Option<AddressRange>, address| range.is_none_or(|range| range.contains(address));
    within(selector.source, flow.source)
        && within(selector.destination, flow.destination)
        && same(selector.protocol, Some(flow.protocol))
        && selector.source_ports.matches(flow.source_port)
        && selector.destination_ports.matches(flow.destination_port)
        && same(selector.user, query.user)
        && same(selector.level, query.level)
        && same(selector.ipsec, query.ipsec)
        && same(selector.tos, v4.then_some(query.tos))
        && same(selector.traffic_class, (!v4).then_some(query.tos))
        && same(selector.flow_label, (!v4).then_some(query.flow_label))
}

/// Why an entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpdError {
    /// The table is full.
    Full,
    /// An entry has this number already.
    Exists,
    /// The entry can match nothing: source and destination, or TOS and an address, are of two families.
    Families,
    /// A flow label has 20 bits.
    FlowLabel,
}

impl fmt::Display for SpdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the policy table is full",
            Self::Exists => "a policy with this number exists",
            Self::Families => "the selectors are of two address families and match nothing",
            Self::FlowLabel => "a flow label has 20 bits, expected 0 to 1048575",
        })
    }
}

impl core::error::Error for SpdError {}

/// Order, then number: the lowest that matches decides.
type Rank = (u32, u32);

/// A packet and what was decided about packets like it.
type Remembered = (Query, Option<Rank>);

/// Family (true: IPv4), leading bits of the source and of the destination that count.
type Shape = (bool, u8, u8);

/// Masked source and destination, the family's bits at the low end.
type Masked = (u128, u128);

/// Where an entry is filed.
enum Filing {
    /// Under these shapes with these masked addresses; two where no address is named.
    Exact([Option<(Shape, Masked)>; 2]),
    /// Among those that are looked at one by one.
    Ranges,
}

#[derive(Debug, Default, Clone)]
struct Bucket {
    by_address: BTreeMap<Masked, Vec<Rank>>,
    /// Every rank below, so that the lowest is known: a shape that cannot win is not looked at.
    ranks: BTreeSet<Rank>,
}

/// The table.
#[derive(Debug, Clone)]
pub struct Spd {
    entries: BTreeMap<Rank, Policy>,
    by_id: BTreeMap<u32, Rank>,
    shapes: BTreeMap<Shape, Bucket>,
    ranges: BTreeSet<Rank>,
    cache: Box<[Option<Remembered>]>,
    seed: u64,
    limit: usize,
}

impl Spd {
    /// No entries yet, at most `limit` ever, and room for `cached` decisions. `seed` is random: it keeps senders
    /// from choosing packets that push each other out of the cache.
    pub fn new(limit: usize, cached: usize, seed: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_id: BTreeMap::new(),
            shapes: BTreeMap::new(),
            ranges: BTreeSet::new(),
            cache: alloc::vec![None; cached].into_boxed_slice(),
            seed,
            limit,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries: then every packet is left to its SA.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in the order they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.entries.values()
    }

    /// The entry with this number.
    pub fn get(&self, id: u32) -> Option<&Policy> {
        self.entries.get(self.by_id.get(&id)?)
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Why not; nothing was changed.
    pub fn insert(&mut self, policy: Policy) -> Result<(), SpdError> {
        let filing = file(&policy.selector)?;
        if self.by_id.contains_key(&policy.id) {
            return Err(SpdError::Exists);
        }
        if self.entries.len() >= self.limit {
            return Err(SpdError::Full);
        }
        let rank = (policy.order, policy.id);
        match filing {
            Filing::Ranges => {
                self.ranges.insert(rank);
            }
            Filing::Exact(places) => {
                for (shape, masked) in places.into_iter().flatten() {
                    let bucket = self.shapes.entry(shape).or_default();
                    bucket.ranks.insert(rank);
                    let ranks = bucket.by_address.entry(masked).or_default();
                    let at = ranks.partition_point(|other| *other < rank);
                    ranks.insert(at, rank);
                }
            }
        }
        self.by_id.insert(policy.id, rank);
        self.entries.insert(rank, policy);
        self.forget_decisions();
        Ok(())
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: u32) -> Option<Policy> {
        let rank = self.by_id.remove(&id)?;
        let policy = self.entries.remove(&rank)?;
        match file(&policy.selector) {
            Ok(Filing::Exact(places)) => {
                for (shape, masked) in places.into_iter().flatten() {
                    self.unfile(shape, masked, rank);
                }
            }
            _ => {
                self.ranges.remove(&rank);
            }
        }
        self.forget_decisions();
        Some(policy)
    }

    fn unfile(&mut self, shape: Shape, masked: Masked, rank: Rank) {
        let Some(bucket) = self.shapes.get_mut(&shape) else {
            return;
        };
        bucket.ranks.remove(&rank);
        if let Some(ranks) = bucket.by_address.get_mut(&masked) {
            ranks.retain(|other| *other != rank);
            if ranks.is_empty() {
                bucket.by_address.remove(&masked);
            }
        }
        if bucket.ranks.is_empty() {
            self.shapes.remove(&shape);
        }
    }

    /// The entry that decides about the packet, remembered for the next packet alike. No allocation.
    pub fn decide(&mut self, query: &Query) -> Option<&Policy> {
        let slot = self.slot(query);
        let rank = match slot.and_then(|slot| self.cache.get(slot)) {
            Some(Some((known, rank))) if known == query => *rank,
            _ => {
                let rank = self.search(query);
                if let Some(remembered) = slot.and_then(|slot| self.cache.get_mut(slot)) {
                    *remembered = Some((*query, rank));
                }
                rank
            }
        };
        self.entries.get(&rank?)
    }

    /// As [`Spd::decide`] without the cache.
    pub fn lookup(&self, query: &Query) -> Option<&Policy> {
        self.entries.get(&self.search(query)?)
    }

    fn search(&self, query: &Query) -> Option<Rank> {
        self.search_counted(query).0
    }

    /// What [`Spd::lookup`] does for this packet: look-ups by address and entries compared. For tests and benchmarks.
    pub fn effort(&self, query: &Query) -> usize {
        self.search_counted(query).1
    }

    fn search_counted(&self, query: &Query) -> (Option<Rank>, usize) {
        let mut effort = 0;
        let mut best: Option<Rank> = None;
        let beats = |rank: &Rank, best: &Option<Rank>| best.is_none_or(|best| *rank < best);
        let v4 = query.flow.source.is_ipv4();
        let (source, destination) = (bits(query.flow.source), bits(query.flow.destination));
        for (shape, bucket) in self.shapes.range((v4, 0, 0)..=(v4, u8::MAX, u8::MAX)) {
            if !bucket.ranks.first().is_some_and(|rank| beats(rank, &best)) {
                continue;
            }
            effort += 1;
            let masked = (mask(v4, source, shape.1), mask(v4, destination, shape.2));
            let found = bucket
                .by_address
                .get(&masked)
                .into_iter()
                .flatten()
                .take_while(|rank| beats(rank, &best))
                .inspect(|_| effort += 1)
                .find(|rank| self.concerns(rank, query));
            best = found.copied().or(best);
        }
        let among_ranges = self
            .ranges
            .iter()
            .take_while(|rank| beats(rank, &best))
            .inspect(|_| effort += 1)
            .find(|rank| self.concerns(rank, query));
        (among_ranges.copied().or(best), effort)
    }

    fn concerns(&self, rank: &Rank, query: &Query) -> bool {
        self.entries
            .get(rank)
            .is_some_and(|policy| matches(&policy.selector, query))
    }

    fn slot(&self, query: &Query) -> Option<usize> {
        let mut hasher = Mixer(self.seed);
        query.hash(&mut hasher);
        (hasher.finish() as usize).checked_rem(self.cache.len())
    }

    fn forget_decisions(&mut self) {
        self.cache.fill(None);
    }
}

/// Every entry that is not a discard lets a packet pass; without an entry the SA alone decides.
pub fn discards(policy: Option<&Policy>) -> bool {
    policy.is_some_and(|policy| policy.action == PolicyAction::Discard)
}

fn file(selector: &PolicySelector) -> Result<Filing, SpdError> {
    if selector.flow_label.is_some_and(|label| label > MAX_FLOW_LABEL) {
        return Err(SpdError::FlowLabel);
    }
    let v4 = |range: Option<AddressRange>| range.map(|range| range.first().is_ipv4());
    let families = [
        v4(selector.source),
        v4(selector.destination),
        selector.tos.map(|_| true),
        selector.traffic_class.map(|_| false),
        selector.flow_label.map(|_| false),
    ];
    let family = families.into_iter().flatten().next();
    if families.into_iter().flatten().any(|other| Some(other) != family) {
        return Err(SpdError::Families);
    }
    let mut places = [None; 2];
    for (place, v4) in places.iter_mut().zip([true, false]) {
        if family.is_some_and(|family| family != v4) {
            continue;
        }
        let side = |range: Option<AddressRange>| match range {
            None => Some((0, 0)),
            Some(range) => {
                let prefix = range.as_prefix()?;
                Some((prefix.bits(), bits(prefix.address())))
            }
        };
        let (Some(source), Some(destination)) = (side(selector.source), side(selector.destination)) else {
            return Ok(Filing::Ranges);
        };
        *place = Some(((v4, source.0, destination.0), (source.1, destination.1)));
    }
    Ok(Filing::Exact(places))
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(v4: bool, bits: u128, len: u8) -> u128 {
    let width: u32 = if v4 { 32 } else { 128 };
    let host = width.saturating_sub(len.into());
    bits.checked_shr(host)
        .and_then(|kept| kept.checked_shl(host))
        .unwrap_or(0)
}

/// A seeded hash for cache slots: a collision costs a search, nothing else.
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.0 = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.0 ^= self.0 >> 29;
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}
