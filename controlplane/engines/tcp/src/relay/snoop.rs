//! Snoop: one connection end to end, with the radio's losses repaired from a cache (T3, T4).
//!
//! * Data segments towards the terminal are forwarded and remembered, the **original packet** bit for bit.
//! * An acknowledgment of the terminal that asks for a segment in the cache makes the relay send it again,
//!   and does not reach the peer: duplicates are kept back, the SACK option is blanked where the class
//!   permits changing a packet. The peer sees a link that loses nothing.
//! * What is not in the cache was lost before the gateway: the peer hears of it at once.
//! * **The relay never acknowledges.** Every acknowledgment the peer sees was sent by the terminal, and says
//!   no more than the terminal said.
//! * An original under ESP is sent again only while its sequence number is inside the receiver's replay
//!   window; later it would be dropped there as a replay.
//!
//! Loss is told as RACK tells it: a segment sent before one that has arrived, by more than the reordering
//! window, is lost. A tail without acknowledgments is repaired by a timer of the radio's own round trip.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use towpath_base::Instant;

use super::{FlowKey, Side, Verdict};
use crate::packet::{NotTcp, TcpPacket};
use crate::rto::RttEstimator;
use crate::segment::{Flags, HEADER_LEN};
use crate::seq::{Offset, SeqNum, SeqSpace};

/// Where a flow's offsets begin: room for numbers below the first one seen.
const ORIGIN: Offset = 1 << 32;
/// Longest local timeout.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// Repetitions of one segment after which it is left to the peer.
const MAX_REPEATS: u8 = 12;

/// Bounds of Snoop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnoopConfig {
    /// Most connections; further ones are forwarded without help.
    pub max_flows: usize,
    /// Most bytes cached per connection.
    pub flow_cache: usize,
    /// Most bytes cached in all.
    pub total_cache: usize,
    /// Smallest local timeout.
    pub min_timeout: Duration,
    /// Forget a connection silent for this long.
    pub idle_timeout: Duration,
    /// The class permits changing a packet: the SACK option of acknowledgments is blanked while the cache
    /// can repair what they report.
    pub may_modify: bool,
}

impl Default for SnoopConfig {
    fn default() -> Self {
        Self {
            max_flows: 65_536,
            flow_cache: 8 << 20,
            total_cache: 256 << 20,
            min_timeout: Duration::from_millis(50),
            idle_timeout: Duration::from_secs(600),
            may_modify: true,
        }
    }
}

/// The packet as it goes to the terminal, and its place in the SA's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Original<'a> {
    /// The bytes to repeat: the ESP packet in class `inspect`, the inner packet in class `full`, where it
    /// is sealed anew.
    pub bytes: &'a [u8],
    /// Sequence number under ESP and the receiver's replay window, for originals sealed by the peer.
    pub replay: Option<ReplayPosition>,
}

/// Where a sealed original stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayPosition {
    /// Which SA: any number the caller likes.
    pub sa: u64,
    /// Extended sequence number.
    pub sequence: u64,
    /// Width of the receiver's window, packets.
    pub window: u64,
}

/// What Snoop did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnoopStats {
    /// Segments cached.
    pub cached: u64,
    /// Segments repeated.
    pub repeated: u64,
    /// Acknowledgments kept back.
    pub suppressed: u64,
    /// SACK options blanked.
    pub blanked: u64,
    /// Segments that could not be cached for lack of room.
    pub uncached: u64,
    /// Repetitions given up because the replay window had moved on.
    pub out_of_window: u64,
    /// Segments the peer sent again.
    pub peer_retransmits: u64,
}

#[derive(Debug)]
struct Cached {
    end: Offset,
    bytes: Vec<u8>,
    replay: Option<ReplayPosition>,
    sent_at: Instant,
    repeats: u8,
    sacked: bool,
    /// Waits to be repeated.
    queued: bool,
}

#[derive(Debug)]
struct Flow {
    space: SeqSpace,
    /// Highest acknowledgment of the terminal.
    acknowledged: Option<Offset>,
    last_window: u16,
    cache: BTreeMap<Offset, Cached>,
    cached_bytes: usize,
    highest: Offset,
    rtt: RttEstimator,
    /// When the newest segment known to have arrived was sent.
    newest_arrival: Option<Instant>,
    duplicates: u32,
    /// Segments to repeat.
    queue: VecDeque<Offset>,
    active_at: Instant,
    progress_at: Instant,
    deadline: Option<Instant>,
    ready: bool,
}

/// A packet to send to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat<'a> {
    /// Its connection.
    pub flow: FlowKey,
    /// The original.
    pub original: Original<'a>,
}

/// Snoop for all connections.
#[derive(Debug)]
pub struct SnoopRelay {
    config: SnoopConfig,
    flows: BTreeMap<FlowKey, Flow>,
    deadlines: BTreeSet<(Instant, FlowKey)>,
    ready: VecDeque<FlowKey>,
    /// Highest ESP sequence number forwarded per SA.
    forwarded: BTreeMap<u64, u64>,
    cached_bytes: usize,
    stats: SnoopStats,
}

impl SnoopRelay {
    /// Snoop without connections.
    pub const fn new(config: SnoopConfig) -> Self {
        Self {
            config,
            flows: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ready: VecDeque::new(),
            forwarded: BTreeMap::new(),
            cached_bytes: 0,
            stats: SnoopStats {
                cached: 0,
                repeated: 0,
                suppressed: 0,
                blanked: 0,
                uncached: 0,
                out_of_window: 0,
                peer_retransmits: 0,
            },
        }
    }

    /// Counters.
    pub const fn stats(&self) -> &SnoopStats {
        &self.stats
    }

    /// Connections known.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// True without connections.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// A packet of the SA left towards the terminal, of whatever connection: the replay window moved.
    pub fn note_forwarded(&mut self, sa: u64, sequence: u64) {
        let highest = self.forwarded.entry(sa).or_insert(sequence);
        *highest = (*highest).max(sequence);
    }

    /// The SA is gone.
    pub fn forget_sa(&mut self, sa: u64) {
        self.forwarded.remove(&sa);
    }

    /// Looks at the IP packet `inner` that came from `from`; `original` is what goes out if it is
    /// forwarded. Never [`Verdict::Consumed`] for data: a packet is forwarded, or is an acknowledgment kept
    /// back.
    pub fn handle_input(
        &mut self,
        now: Instant,
        from: Side,
        inner: &[u8],
        original: Original<'_>,
    ) -> Verdict {
        if from == Side::Network
            && let Some(ReplayPosition { sa, sequence, .. }) = original.replay
        {
            self.note_forwarded(sa, sequence);
        }
        let packet = match TcpPacket::parse(inner) {
            Ok(packet) => packet,
            Err(NotTcp::Other | NotTcp::Fragment) => return Verdict::Pass,
            Err(NotTcp::Malformed | NotTcp::Checksum) => return Verdict::Drop,
        };
        let key = FlowKey::of(from, &packet);
        let flags = packet.segment.header.flags;
        if flags.has(Flags::RST) || flags.has(Flags::SYN) {
            self.remove(&key);
            return Verdict::Pass;
        }
        match from {
            Side::Network => {
                self.input_data(now, key, &packet, original);
                Verdict::Pass
            }
            Side::Terminal => self.input_ack(now, key, &packet),
        }
    }

    // -- data towards the terminal --------------------------------------------------------------------

    fn input_data(&mut self, now: Instant, key: FlowKey, packet: &TcpPacket<'_>, original: Original<'_>) {
        let len = packet.segment.sequence_len();
        if len == 0 {
            return;
        }
        let seq = packet.segment.header.seq;
        if !self.flows.contains_key(&key) {
            if self.flows.len() >= self.config.max_flows {
                self.stats.uncached += 1;
                return;
            }
            self.flows.insert(key, Flow::new(now, seq));
        }
        let room = self.config.total_cache.saturating_sub(self.cached_bytes);
        let Some(flow) = self.flows.get_mut(&key) else {
            return;
        };
        flow.active_at = now;
        let Some(start) = flow.space.offset(seq, flow.highest) else {
            return;
        };
        let end = start + len;
        if flow.acknowledged.is_some_and(|ack| end <= ack) {
            return;
        }
        if start < flow.highest {
            self.stats.peer_retransmits += 1;
        }
        flow.highest = flow.highest.max(end);
        if let Some(old) = flow.cache.get_mut(&start)
            && old.end == end
        {
            // The peer repeated it: the newest original is the one to keep.
            old.bytes = original.bytes.to_vec();
            old.replay = original.replay;
            old.sent_at = now;
            old.repeats = old.repeats.saturating_add(1);
            old.queued = false;
            return;
        }
        let size = original.bytes.len();
        let fits = flow.cached_bytes + size <= self.config.flow_cache && size <= room;
        if !fits || overlaps(&flow.cache, start, end) {
            self.stats.uncached += 1;
            return;
        }
        flow.cached_bytes += size;
        self.cached_bytes += size;
        self.stats.cached += 1;
        flow.cache.insert(
            start,
            Cached {
                end,
                bytes: original.bytes.to_vec(),
                replay: original.replay,
                sent_at: now,
                repeats: 0,
                sacked: false,
                queued: false,
            },
        );
        if flow.cache.len() == 1 {
            flow.progress_at = now;
        }
        self.schedule(now, key);
    }

    // -- acknowledgments of the terminal --------------------------------------------------------------

    fn input_ack(&mut self, now: Instant, key: FlowKey, packet: &TcpPacket<'_>) -> Verdict {
        let header = &packet.segment.header;
        let Some(flow) = self.flows.get_mut(&key) else {
            return Verdict::Pass;
        };
        flow.active_at = now;
        if !header.flags.has(Flags::ACK) {
            return Verdict::Pass;
        }
        let Some(ack) = flow.space.offset(header.ack, flow.highest) else {
            return Verdict::Pass;
        };
        if ack > flow.highest || flow.acknowledged.is_some_and(|old| ack < old) {
            return Verdict::Pass;
        }
        let pure = packet.segment.sequence_len() == 0 && !header.flags.has(Flags::URG);
        let duplicate = flow.acknowledged == Some(ack);
        let window_changed = flow.last_window != header.window;
        flow.last_window = header.window;
        self.cached_bytes = self.cached_bytes.saturating_sub(flow.acknowledge(now, ack));
        let sacks = flow.take_sack(now, header.options.sack.as_slice());
        flow.duplicates = if duplicate && pure {
            flow.duplicates.saturating_add(1)
        } else {
            0
        };
        flow.find_losses(sacks);
        let repairable = flow.can_repair(ack);
        let verdict = match () {
            () if flow.cache.is_empty() || !repairable => Verdict::Pass,
            // A duplicate that only asks for what is in the cache; a moved window is news.
            () if duplicate && pure && (sacks || flow.duplicates >= 1) && (!window_changed || sacks) => {
                if window_changed {
                    Verdict::PassWithoutSack
                } else {
                    Verdict::Consumed
                }
            }
            () if sacks => Verdict::PassWithoutSack,
            () => Verdict::Pass,
        };
        let verdict = match verdict {
            Verdict::PassWithoutSack if !self.config.may_modify => Verdict::Pass,
            other => other,
        };
        match verdict {
            Verdict::Consumed => self.stats.suppressed += 1,
            Verdict::PassWithoutSack => self.stats.blanked += 1,
            _ => {}
        }
        self.line_up(key);
        self.schedule(now, key);
        verdict
    }

    fn line_up(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(&key)
            && !flow.queue.is_empty()
            && !flow.ready
        {
            flow.ready = true;
            self.ready.push_back(key);
        }
    }

    // -- repetition -----------------------------------------------------------------------------------

    /// The next packet to repeat towards the terminal.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Repeat<'_>> {
        let (key, start) = self.next_repeat(now)?;
        let flow = self.flows.get(&key)?;
        let cached = flow.cache.get(&start)?;
        Some(Repeat {
            flow: key,
            original: Original {
                bytes: &cached.bytes,
                replay: cached.replay,
            },
        })
    }

    fn next_repeat(&mut self, now: Instant) -> Option<(FlowKey, Offset)> {
        while let Some(key) = self.ready.front().copied() {
            if let Some(flow) = self.flows.get_mut(&key) {
                while let Some(start) = flow.queue.pop_front() {
                    let Some(cached) = flow.cache.get_mut(&start).filter(|cached| cached.queued) else {
                        continue;
                    };
                    cached.queued = false;
                    let alive = cached
                        .replay
                        .is_none_or(|ReplayPosition { sa, sequence, window }| {
                            self.forwarded
                                .get(&sa)
                                .is_none_or(|highest| sequence + window > *highest)
                        });
                    if !alive {
                        // The receiver would take it for a replay: the peer has to send it anew.
                        self.stats.out_of_window += 1;
                        self.cached_bytes = self.cached_bytes.saturating_sub(flow.drop_cached(start));
                        continue;
                    }
                    cached.sent_at = now;
                    cached.repeats = cached.repeats.saturating_add(1);
                    self.stats.repeated += 1;
                    self.schedule(now, key);
                    return Some((key, start));
                }
                flow.ready = false;
            }
            self.ready.pop_front();
        }
        None
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Handles every deadline up to `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, key)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.remove(&(at, key));
            let Some(flow) = self.flows.get_mut(&key) else {
                continue;
            };
            flow.deadline = None;
            if now.saturating_since(flow.active_at) >= self.config.idle_timeout {
                self.remove(&key);
                continue;
            }
            let due = flow
                .repeat_at(self.config.min_timeout)
                .is_some_and(|at| at <= now);
            if due {
                self.cached_bytes = self.cached_bytes.saturating_sub(flow.on_timeout(now));
            }
            self.line_up(key);
            self.schedule(now, key);
        }
    }

    fn schedule(&mut self, now: Instant, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(&key) else {
            return;
        };
        let idle = flow.active_at + self.config.idle_timeout;
        let deadline = flow
            .repeat_at(self.config.min_timeout)
            .map_or(idle, |at| at.min(idle))
            .max(now);
        if flow.deadline != Some(deadline) {
            if let Some(old) = flow.deadline.replace(deadline) {
                self.deadlines.remove(&(old, key));
            }
            self.deadlines.insert((deadline, key));
        }
    }

    /// Forgets a connection: it goes on end to end.
    pub fn remove(&mut self, key: &FlowKey) {
        if let Some(flow) = self.flows.remove(key) {
            self.cached_bytes = self.cached_bytes.saturating_sub(flow.cached_bytes);
            if let Some(deadline) = flow.deadline {
                self.deadlines.remove(&(deadline, *key));
            }
        }
    }
}

fn overlaps(cache: &BTreeMap<Offset, Cached>, start: Offset, end: Offset) -> bool {
    cache
        .range(..end)
        .next_back()
        .is_some_and(|(_, cached)| cached.end > start)
}

impl Flow {
    fn new(now: Instant, first: SeqNum) -> Self {
        // The first number seen gets offset ORIGIN, so that there is room below it.
        Self {
            space: SeqSpace {
                initial: first - ORIGIN as u32,
            },
            acknowledged: None,
            last_window: 0,
            cache: BTreeMap::new(),
            cached_bytes: 0,
            highest: ORIGIN,
            rtt: RttEstimator::new(Duration::ZERO, MAX_TIMEOUT),
            newest_arrival: None,
            duplicates: 0,
            queue: VecDeque::new(),
            active_at: now,
            progress_at: now,
            deadline: None,
            ready: false,
        }
    }

    fn drop_cached(&mut self, start: Offset) -> usize {
        let size = self.cache.remove(&start).map_or(0, |cached| cached.bytes.len());
        self.cached_bytes = self.cached_bytes.saturating_sub(size);
        size
    }

    /// Everything before `ack` arrived; returns the bytes freed.
    fn acknowledge(&mut self, now: Instant, ack: Offset) -> usize {
        let mut freed = 0;
        while let Some(first) = self.cache.first_entry() {
            if first.get().end > ack {
                break;
            }
            let cached = first.remove();
            freed += cached.bytes.len();
            self.note_arrival(now, &cached);
        }
        if self.acknowledged.is_none_or(|old| ack > old) {
            self.acknowledged = Some(ack);
            self.progress_at = now;
            self.rtt.reset_backoff();
        }
        self.cached_bytes = self.cached_bytes.saturating_sub(freed);
        freed
    }

    fn note_arrival(&mut self, now: Instant, cached: &Cached) {
        if cached.sacked {
            return;
        }
        let rtt = now.saturating_since(cached.sent_at);
        if cached.repeats == 0 {
            self.rtt.sample(rtt);
        }
        // An acknowledgment sooner than the radio can answer is of an earlier copy.
        let of_this_copy = cached.repeats == 0 || self.rtt.min().is_none_or(|min| rtt >= min);
        if of_this_copy {
            self.newest_arrival = Some(
                self.newest_arrival
                    .map_or(cached.sent_at, |at| at.max(cached.sent_at)),
            );
        }
    }

    /// Marks what the SACK blocks report; true if they report anything.
    fn take_sack(&mut self, now: Instant, blocks: &[(SeqNum, SeqNum)]) -> bool {
        let mut any = false;
        for (left, right) in blocks {
            let (Some(left), Some(right)) = (
                self.space.offset(*left, self.highest),
                self.space.offset(*right, self.highest),
            ) else {
                continue;
            };
            if left >= right || right > self.highest || self.acknowledged.is_some_and(|ack| right <= ack) {
                continue;
            }
            any = true;
            let starts: Vec<Offset> = self
                .cache
                .range(left..right)
                .filter(|(_, cached)| cached.end <= right && !cached.sacked)
                .map(|(start, _)| *start)
                .collect();
            for start in starts {
                let Some(mut cached) = self.cache.remove(&start) else {
                    continue;
                };
                self.note_arrival(now, &cached);
                cached.sacked = true;
                cached.queued = false;
                self.cache.insert(start, cached);
            }
        }
        any
    }

    /// Lines up what RACK would call lost, or, without SACK, the first segment on a duplicate.
    fn find_losses(&mut self, sacks: bool) {
        let window = self.rtt.min().unwrap_or_default() / 8;
        let Some(newest) = self.newest_arrival else { return };
        let highest_sacked = self
            .cache
            .iter()
            .rev()
            .find(|(_, cached)| cached.sacked)
            .map(|(start, _)| *start);
        if sacks && let Some(top) = highest_sacked {
            for (start, cached) in self.cache.range_mut(..top) {
                let lost = !cached.sacked
                    && !cached.queued
                    && cached.repeats < MAX_REPEATS
                    && cached.sent_at + window < newest;
                // A segment repeated is judged against what was sent after the repetition.
                if lost {
                    cached.queued = true;
                    self.queue.push_back(*start);
                }
            }
        } else if self.duplicates >= 2
            && let Some(ack) = self.acknowledged
            && let Some(cached) = self.cache.get_mut(&ack)
            && cached.repeats == 0
            && !cached.queued
        {
            cached.queued = true;
            self.queue.push_back(ack);
        }
    }

    /// The segment the terminal waits for is here, and not given up.
    fn can_repair(&self, ack: Offset) -> bool {
        self.cache
            .get(&ack)
            .is_some_and(|cached| cached.repeats < MAX_REPEATS)
    }

    /// When the first segment is repeated unasked.
    fn repeat_at(&self, min_timeout: Duration) -> Option<Instant> {
        let first = self.cache.values().find(|cached| !cached.sacked)?;
        if first.repeats >= MAX_REPEATS {
            return None;
        }
        let timeout = self.rtt.timeout().max(min_timeout);
        Some(first.sent_at.max(self.progress_at) + timeout)
    }

    /// The first segment's timer expired; returns the bytes freed if it is given up.
    fn on_timeout(&mut self, now: Instant) -> usize {
        self.rtt.back_off();
        self.progress_at = now;
        let Some((&start, cached)) = self.cache.iter_mut().find(|(_, cached)| !cached.sacked) else {
            return 0;
        };
        if cached.repeats + 1 >= MAX_REPEATS {
            return self.drop_cached(start);
        }
        if !cached.queued {
            cached.queued = true;
            self.queue.push_back(start);
        }
        0
    }
}

/// Blanks the SACK option of the segment in an IP packet with NOPs and corrects the checksum. False if
/// there is none.
pub fn blank_sack(packet: &mut [u8]) -> bool {
    let Some(ip_len) = packet.first().map(|first| match first >> 4 {
        4 => usize::from(first & 0x0f) * 4,
        _ => 40,
    }) else {
        return false;
    };
    let Some(segment) = packet.get_mut(ip_len..) else {
        return false;
    };
    let Some(header_len) = segment.get(12).map(|offset| usize::from(offset >> 4) * 4) else {
        return false;
    };
    let Some((start, len)) = find_sack(segment, header_len) else {
        return false;
    };
    let Some(field) = segment
        .get(16..18)
        .and_then(|field| field.first_chunk::<2>().copied())
    else {
        return false;
    };
    let mut check = u16::from_be_bytes(field);
    // Word by word, so that the checksum can be corrected rather than computed.
    let first = start & !1;
    let end = (start + len).next_multiple_of(2).min(segment.len());
    for at in (first..end).step_by(2) {
        let Some(word) = segment.get_mut(at..at + 2) else {
            return false;
        };
        let old = word
            .first_chunk::<2>()
            .map_or(0, |word| u16::from_be_bytes(*word));
        for (index, byte) in word.iter_mut().enumerate() {
            if (start..start + len).contains(&(at + index)) {
                *byte = 1;
            }
        }
        let new = word
            .first_chunk::<2>()
            .map_or(0, |word| u16::from_be_bytes(*word));
        check = towpath_common::wire::checksum_update16(check, old, new);
    }
    if let Some(field) = segment.get_mut(16..18) {
        field.copy_from_slice(&check.to_be_bytes());
    }
    true
}

/// Start and length of the SACK option.
fn find_sack(segment: &[u8], header_len: usize) -> Option<(usize, usize)> {
    let mut at = HEADER_LEN;
    while at < header_len {
        match *segment.get(at)? {
            0 => return None,
            1 => at += 1,
            kind => {
                let len = usize::from(*segment.get(at + 1)?);
                if len < 2 || at + len > header_len {
                    return None;
                }
                if kind == 5 {
                    return Some((at, len));
                }
                at += len;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::IpHeader;
    use crate::segment::{Header, Options, SackBlocks, Timestamps};

    fn packet(from: Side, header: Header, data: &[u8]) -> Vec<u8> {
        let (terminal, network) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let (source, destination) = match from {
            Side::Terminal => (terminal, network),
            Side::Network => (network, terminal),
        };
        let ip = IpHeader {
            source,
            destination,
            dscp: 0,
            ecn: Default::default(),
            ttl: 9,
        };
        let mut bytes = alloc::vec![0; 2000];
        let len = header.write(&mut bytes[20..]).unwrap();
        bytes[20 + len..20 + len + data.len()].copy_from_slice(data);
        let total = ip.finish(&mut bytes, len + data.len()).unwrap();
        bytes.truncate(total);
        bytes
    }

    fn data(relay: &mut SnoopRelay, now: Instant, seq: u32, replay: Option<ReplayPosition>) -> Vec<u8> {
        let header = Header {
            source_port: 80,
            destination_port: 5000,
            seq: SeqNum(seq),
            flags: Flags::ACK,
            ..Header::default()
        };
        let bytes = packet(Side::Network, header, &[7; 100]);
        let original = Original {
            bytes: &bytes,
            replay,
        };
        assert_eq!(
            relay.handle_input(now, Side::Network, &bytes, original),
            Verdict::Pass
        );
        bytes
    }

    fn ack(relay: &mut SnoopRelay, now: Instant, ack: u32, sack: &[(u32, u32)]) -> Verdict {
        let mut blocks = SackBlocks::default();
        for (left, right) in sack {
            blocks.push(SeqNum(*left), SeqNum(*right));
        }
        let header = Header {
            source_port: 5000,
            destination_port: 80,
            ack: SeqNum(ack),
            flags: Flags::ACK,
            options: Options {
                timestamps: Some(Timestamps { value: 1, echo: 2 }),
                sack: blocks,
                ..Options::default()
            },
            ..Header::default()
        };
        let bytes = packet(Side::Terminal, header, &[]);
        relay.handle_input(
            now,
            Side::Terminal,
            &bytes,
            Original {
                bytes: &bytes,
                replay: None,
            },
        )
    }

    #[test]
    fn a_segment_lost_on_the_radio_is_repeated_and_the_peer_hears_nothing() {
        let mut relay = SnoopRelay::new(SnoopConfig::default());
        let ms = Instant::from_millis;
        data(&mut relay, ms(0), u32::MAX - 99, None);
        let lost = data(&mut relay, ms(10), 0, None);
        data(&mut relay, ms(20), 100, None);
        assert_eq!(ack(&mut relay, ms(30), 0, &[]), Verdict::Pass);
        assert_eq!(ack(&mut relay, ms(50), 0, &[(100, 200)]), Verdict::Consumed);
        let repeat = relay.poll_transmit(ms(50)).expect("the lost segment");
        assert_eq!(repeat.original.bytes, lost);
        assert_eq!(relay.poll_transmit(ms(50)), None);
        assert_eq!(ack(&mut relay, ms(80), 200, &[]), Verdict::Pass);
        assert_eq!(relay.cached_bytes, 0);
    }

    #[test]
    fn what_was_lost_before_the_gateway_is_the_peers_to_repair() {
        let mut relay = SnoopRelay::new(SnoopConfig::default());
        let ms = Instant::from_millis;
        data(&mut relay, ms(0), 1000, None);
        data(&mut relay, ms(1), 1200, None);
        assert_eq!(ack(&mut relay, ms(20), 1100, &[]), Verdict::Pass);
        assert_eq!(ack(&mut relay, ms(21), 1100, &[(1200, 1300)]), Verdict::Pass);
        assert_eq!(relay.poll_transmit(ms(21)), None);
    }

    #[test]
    fn an_original_outside_the_replay_window_is_not_repeated() {
        let mut relay = SnoopRelay::new(SnoopConfig::default());
        let ms = Instant::from_millis;
        let at = |sequence| {
            Some(ReplayPosition {
                sa: 1,
                sequence,
                window: 64,
            })
        };
        data(&mut relay, ms(0), 1000, at(1));
        data(&mut relay, ms(10), 1100, at(2));
        data(&mut relay, ms(20), 1200, at(3));
        ack(&mut relay, ms(30), 1100, &[]);
        relay.note_forwarded(1, 66);
        ack(&mut relay, ms(50), 1100, &[(1200, 1300)]);
        assert_eq!(relay.poll_transmit(ms(50)), None);
        assert_eq!(relay.stats().out_of_window, 1);
    }

    #[test]
    fn a_tail_is_repeated_by_the_timer() {
        let mut relay = SnoopRelay::new(SnoopConfig::default());
        let tail = data(&mut relay, Instant::ZERO, 1000, None);
        let (mut now, mut repeats) = (Instant::ZERO, 0);
        while let Some(at) = relay.poll_timeout().filter(|_| repeats < 3) {
            now = at;
            relay.handle_timeout(now);
            while let Some(repeat) = relay.poll_transmit(now) {
                assert_eq!(repeat.original.bytes, tail);
                repeats += 1;
            }
        }
        assert_eq!(repeats, 3);
        assert!(now < Instant::from_secs(10));
    }

    #[test]
    fn a_blanked_option_leaves_a_right_checksum() {
        let mut blocks = SackBlocks::default();
        blocks.push(SeqNum(5), SeqNum(9));
        let header = Header {
            flags: Flags::ACK,
            options: Options {
                sack: blocks,
                ..Options::default()
            },
            ..Header::default()
        };
        let mut bytes = packet(Side::Terminal, header, b"odd");
        assert!(blank_sack(&mut bytes));
        let packet = TcpPacket::parse(&bytes).unwrap();
        assert!(packet.segment.header.options.sack.is_empty());
        assert_eq!(packet.segment.payload, b"odd");
        assert!(!blank_sack(&mut bytes));
    }
}
