//! What is known of a snooped connection as bytes, for another gateway.
//!
//! A connection goes on without its cache: Snoop is a help, and forgetting is always allowed. With it, losses of the
//! radio stay hidden from the peer also across a handoff.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use towpath_base::Instant;

use super::flow::{Cached, Counts, Flow};
use super::shape::{Hello, Shaper};
use super::{ReplayPosition, SnoopRelay};
use crate::codec::{Codec, Reader, RestoreError, Writer, record};
use crate::relay::FlowKey;
use crate::seq::Offset;

/// First bytes of a snapshot of a snooped connection.
const MAGIC: u32 = 0x534e_4f50;
/// Version written, and the only one read.
const VERSION: u16 = 1;
/// Offsets and counters of running connections lie below.
const BOUND: Offset = 1 << 48;
/// Most sequence numbers of one IP packet.
const LONGEST: u64 = 1 << 16;

record!(ReplayPosition { sa, sequence, window });
record!(Cached {
    end,
    bytes,
    replay,
    sent_at,
    repeats,
    sacked,
    queued
});
record!(Counts {
    cached,
    repeated,
    suppressed,
    peer_retransmits
});
record!(Hello { terminal, network });
record!(Shaper {
    scale,
    target,
    edge,
    next_update
});

impl Codec for Flow {
    fn encode(&self, writer: &mut Writer) {
        let Self {
            space,
            acknowledged,
            last_window,
            shaper,
            cache,
            // Follow from the cache.
            cached_bytes: _,
            outstanding: _,
            highest,
            rtt,
            newest_arrival,
            duplicates,
            queue,
            active_at,
            progress_at,
            // The relay's own.
            deadline: _,
            ready: _,
            counts,
        } = self;
        space.encode(writer);
        acknowledged.encode(writer);
        last_window.encode(writer);
        shaper.encode(writer);
        cache.encode(writer);
        highest.encode(writer);
        rtt.encode(writer);
        newest_arrival.encode(writer);
        duplicates.encode(writer);
        queue.encode(writer);
        active_at.encode(writer);
        progress_at.encode(writer);
        counts.encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let space = Codec::decode(reader)?;
        let acknowledged = Codec::decode(reader)?;
        let last_window = Codec::decode(reader)?;
        let shaper = Codec::decode(reader)?;
        let cache: BTreeMap<Offset, Cached> = Codec::decode(reader)?;
        let highest = Codec::decode(reader)?;
        check(valid(&cache, highest), "cache")?;
        let flow = Self {
            space,
            acknowledged,
            last_window,
            shaper,
            cached_bytes: cache.values().map(|cached| cached.bytes.len()).sum(),
            outstanding: cache
                .iter()
                .filter(|(_, cached)| !cached.sacked)
                .map(|(start, cached)| cached.end - start)
                .sum(),
            cache,
            highest,
            rtt: Codec::decode(reader)?,
            newest_arrival: Codec::decode(reader)?,
            duplicates: Codec::decode(reader)?,
            queue: Codec::decode(reader)?,
            active_at: Codec::decode(reader)?,
            progress_at: Codec::decode(reader)?,
            deadline: None,
            ready: false,
            counts: Codec::decode(reader)?,
        };
        let acknowledged = flow.acknowledged.unwrap_or(0);
        check(
            acknowledged <= highest && highest < BOUND,
            "acknowledged sequence number",
        )?;
        check(
            flow.shaper.edge < BOUND && flow.shaper.target.unwrap_or(0) < BOUND,
            "granted window",
        )?;
        let counts = flow.counts;
        let counted = [
            counts.cached,
            counts.repeated,
            counts.suppressed,
            counts.peer_retransmits,
        ];
        check(counted.iter().all(|count| *count < BOUND), "counter")?;
        Ok(flow)
    }
}

fn check(valid: bool, what: &'static str) -> Result<(), RestoreError> {
    if valid {
        Ok(())
    } else {
        Err(RestoreError::Invalid(what))
    }
}

/// Segments in order, none on top of another, none beyond the highest number seen.
fn valid(cache: &BTreeMap<Offset, Cached>, highest: Offset) -> bool {
    let mut before = 0;
    cache.iter().all(|(start, cached)| {
        let fits = *start >= before && *start < cached.end && cached.end <= highest;
        before = cached.end;
        fits && cached.end - start <= LONGEST
    })
}

impl SnoopRelay {
    /// The whole state of a connection at `now`, versioned: cache with the originals, places in the SA's sequence, what
    /// was acknowledged, round trips, the window granted.
    pub fn snapshot(&self, now: Instant, key: &FlowKey) -> Option<Vec<u8>> {
        if !self.knows(key) {
            return None;
        }
        let mut writer = Writer::versioned(now, MAGIC, VERSION);
        key.encode(&mut writer);
        self.hellos.get(key).copied().encode(&mut writer);
        let flow = self.flows.get(key);
        flow.is_some().encode(&mut writer);
        let mut forwarded = BTreeMap::new();
        if let Some(flow) = flow {
            flow.encode(&mut writer);
            let positions = flow.cache.values().filter_map(|cached| cached.replay);
            forwarded.extend(positions.filter_map(|at| self.forwarded.get(&at.sa).map(|top| (at.sa, *top))));
        }
        forwarded.encode(&mut writer);
        Some(writer.bytes)
    }

    /// Takes a connection over from another relay, or from this one before an upgrade. Refuses one that is there
    /// already. `sa_here` says which number the SA of an original has at this caller; originals of an SA that is not
    /// here are forgotten: nobody could tell whether they still lie inside the receiver's replay window.
    pub fn restore(
        &mut self,
        now: Instant,
        bytes: &[u8],
        sa_here: impl Fn(u64) -> Option<u64>,
    ) -> Result<FlowKey, RestoreError> {
        let mut reader = Reader::versioned(bytes, now, MAGIC, VERSION)?;
        let key = FlowKey::decode(&mut reader)?;
        let hello = Option::<Hello>::decode(&mut reader)?;
        let flow = Option::<Flow>::decode(&mut reader)?;
        let forwarded = BTreeMap::<u64, u64>::decode(&mut reader)?;
        reader.finish()?;
        check(
            key.terminal.0.is_ipv4() == key.network.0.is_ipv4(),
            "addresses of two families",
        )?;
        let full = self.flows.len().max(self.hellos.len()) >= self.config.max_flows;
        check(!full && !self.knows(&key), "no room for the connection")?;
        let cached = flow.as_ref().map_or(0, |flow| flow.cached_bytes);
        let room = self.config.total_cache.saturating_sub(self.cached_bytes);
        check(
            cached <= self.config.flow_cache.min(room),
            "no room for the cache",
        )?;
        if let Some(hello) = hello {
            self.hellos.insert(key, hello);
        }
        for (sa, highest) in forwarded {
            if let Some(sa) = sa_here(sa) {
                self.note_forwarded(sa, highest);
            }
        }
        if let Some(mut flow) = flow {
            renumber(&mut flow, sa_here);
            self.cached_bytes += flow.cached_bytes;
            self.flows.insert(key, flow);
            self.line_up(key);
            self.schedule(now, key);
        }
        Ok(key)
    }
}

/// Gives the originals the numbers their SAs have here, and forgets those of SAs that are not here.
fn renumber(flow: &mut Flow, sa_here: impl Fn(u64) -> Option<u64>) {
    let mut gone = Vec::new();
    for (start, cached) in &mut flow.cache {
        let Some(at) = &mut cached.replay else { continue };
        match sa_here(at.sa) {
            Some(sa) => at.sa = sa,
            None => gone.push(*start),
        }
    }
    for start in gone {
        flow.drop_cached(start);
    }
}
