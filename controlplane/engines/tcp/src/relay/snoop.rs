//! Snoop: one connection end to end, with the radio's losses repaired from a cache (T3, T4).
//!
//! * Data segments towards the terminal are forwarded and remembered, the **original packet** bit for bit.
//! * An acknowledgment of the terminal that asks for a segment in the cache makes the relay send it again,
//!   and does not reach the peer: duplicates are kept back, the SACK option is blanked where the class
//!   permits changing a packet. The peer sees a link that loses nothing.
//! * **The window is shaped** where the class permits: the peer is granted what fills the radio and no more,
//!   so that its window, which no loss ever halves, does not fill the radio's queue instead.
//! * While the radio's queue is long all the same, losses are congestion: nothing is repaired or kept back,
//!   and the peer slows down as it should.
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
use crate::segment::{Flags, HEADER_LEN, MAX_OPTIONS_LEN};
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
    /// can repair what they report, and the window is shaped.
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

/// How an acknowledgment is changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// The SACK option is blanked.
    pub blank_sack: bool,
    /// The window field, as it stands on the wire.
    pub window: Option<u16>,
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
    /// Acknowledgments forwarded with a blanked SACK option or another window.
    pub changed: u64,
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
    shaper: Shaper,
    cache: BTreeMap<Offset, Cached>,
    cached_bytes: usize,
    /// Sequence numbers cached and not SACKed.
    outstanding: u64,
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
    /// What the SYNs of a connection said, until its first data.
    hellos: BTreeMap<FlowKey, Hello>,
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
            hellos: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            cached_bytes: 0,
            stats: SnoopStats {
                cached: 0,
                repeated: 0,
                suppressed: 0,
                changed: 0,
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
            if flags.has(Flags::RST) {
                self.hellos.remove(&key);
            } else if self.hellos.len() < self.config.max_flows || self.hellos.contains_key(&key) {
                let scale = packet.segment.header.options.window_scale;
                let hello = self.hellos.entry(key).or_default();
                match from {
                    Side::Terminal => hello.terminal = Some(scale),
                    Side::Network => hello.network = Some(scale.is_some()),
                }
            }
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
            let mut flow = Flow::new(now, seq);
            flow.shaper.scale = self.hellos.remove(&key).and_then(Hello::scale);
            self.flows.insert(key, flow);
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
        flow.outstanding += len;
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
        let window_changed = core::mem::replace(&mut flow.last_window, header.window) != header.window;
        self.cached_bytes = self.cached_bytes.saturating_sub(flow.acknowledge(now, ack));
        let sacks = flow.take_sack(now, header.options.sack.as_slice());
        flow.duplicates = if duplicate && pure {
            flow.duplicates.saturating_add(1)
        } else {
            0
        };
        let congested = flow.is_congested(self.config.may_modify);
        if !congested {
            flow.find_losses(sacks);
        }
        let hides = !congested && flow.can_repair(ack);
        let mut change = Change {
            blank_sack: hides && sacks && self.config.may_modify,
            window: None,
        };
        let mut granted = false;
        if self.config.may_modify {
            (change.window, granted) = flow.shape(now, ack, header.window);
        }
        let asks_only = duplicate && pure && (sacks || flow.duplicates >= 1);
        let news = granted || (window_changed && (!sacks || change.window.is_none()));
        let verdict = if hides && asks_only && !news {
            self.stats.suppressed += 1;
            Verdict::Consumed
        } else if change == Change::default() {
            Verdict::Pass
        } else {
            self.stats.changed += 1;
            Verdict::PassChanged(change)
        };
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

/// What the SYNs said of window scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Hello {
    terminal: Option<Option<u8>>,
    network: Option<bool>,
}

impl Hello {
    /// Shift of the terminal's windows, if both SYNs were seen.
    fn scale(self) -> Option<u8> {
        match (self.terminal?, self.network?) {
            (Some(shift), true) => Some(shift),
            _ => Some(0),
        }
    }
}

/// Grants the peer what fills the radio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Shaper {
    /// Shift of the terminal's windows; without it nothing is shaped.
    scale: Option<u8>,
    /// Bytes that may be on the radio; unbounded until a queue was seen.
    target: Option<u64>,
    /// Right edge granted.
    edge: Offset,
    next_update: Instant,
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
            shaper: Shaper::default(),
            cache: BTreeMap::new(),
            cached_bytes: 0,
            outstanding: 0,
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
        let Some(cached) = self.cache.remove(&start) else {
            return 0;
        };
        if !cached.sacked {
            self.outstanding = self.outstanding.saturating_sub(cached.end - start);
        }
        self.cached_bytes = self.cached_bytes.saturating_sub(cached.bytes.len());
        cached.bytes.len()
    }

    /// Everything before `ack` arrived; returns the bytes freed.
    fn acknowledge(&mut self, now: Instant, ack: Offset) -> usize {
        let mut freed = 0;
        while let Some(first) = self.cache.first_entry() {
            if first.get().end > ack {
                break;
            }
            let (start, cached) = first.remove_entry();
            freed += cached.bytes.len();
            if !cached.sacked {
                self.outstanding = self.outstanding.saturating_sub(cached.end - start);
            }
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
                self.outstanding = self.outstanding.saturating_sub(cached.end - start);
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

    /// Bytes on the radio: cached, and not known to have arrived.
    fn pipe(&self) -> u64 {
        self.outstanding
    }

    /// The radio's queue is longer than its own round trip explains.
    fn is_congested(&self, shaped: bool) -> bool {
        let Some((smoothed, min)) = self.rtt.smoothed().zip(self.rtt.min()) else {
            return false;
        };
        let bound = if shaped && self.shaper.scale.is_some() {
            min * 2
        } else {
            min * 3 / 2
        };
        smoothed > bound + Duration::from_millis(10)
    }

    /// The window field for an acknowledgment of `ack` that says `window`, if it is to be another one; and
    /// whether the right edge moved enough to be worth telling.
    fn shape(&mut self, now: Instant, ack: Offset, window: u16) -> (Option<u16>, bool) {
        let pipe = self.pipe();
        let Some(scale) = self.shaper.scale else {
            return (None, false);
        };
        let Some((smoothed, min)) = self.rtt.smoothed().zip(self.rtt.min()) else {
            return (None, false);
        };
        let slack = Duration::from_millis(2);
        if now >= self.shaper.next_update {
            self.shaper.next_update = now + smoothed;
            if smoothed > min * 13 / 10 + slack {
                // A quarter of the round trip may be queue.
                let ratio = (min * 5 / 4 + slack).as_secs_f64() / smoothed.as_secs_f64();
                let base = self.shaper.target.unwrap_or(pipe).min(pipe.max(1));
                self.shaper.target = Some(((base as f64 * ratio) as u64).max(10 * 1460));
            } else if let Some(target) = &mut self.shaper.target
                && smoothed < min * 23 / 20 + slack
                && pipe * 4 >= *target * 3
            {
                *target += *target / 16;
            }
        }
        let Some(target) = self.shaper.target else {
            return (None, false);
        };
        let wanted = self.highest + target.saturating_sub(pipe);
        let edge = wanted.max(self.shaper.edge).max(ack);
        let granted = edge >= self.shaper.edge + 2 * 1460;
        let offered = ack + (u64::from(window) << scale.min(14));
        if edge >= offered {
            self.shaper.edge = self.shaper.edge.max(offered.min(edge));
            return (None, false);
        }
        let field = (edge - ack) >> scale.min(14);
        if granted {
            self.shaper.edge = edge;
        }
        (u16::try_from(field).ok(), granted)
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

/// Carries out `change` on the segment in an IP packet and corrects the checksum. False if the packet is
/// not what it was taken for; then it is unchanged or partly changed and must be dropped.
pub fn apply(change: Change, packet: &mut [u8]) -> bool {
    let ip_len = match packet
        .first()
        .map(|first| (first >> 4, usize::from(first & 0x0f) * 4))
    {
        Some((4, len)) => len,
        Some((6, _)) => 40,
        _ => return false,
    };
    let Some(segment) = packet.get_mut(ip_len..) else {
        return false;
    };
    if let Some(window) = change.window
        && !replace(segment, 14, &window.to_be_bytes())
    {
        return false;
    }
    if change.blank_sack {
        let Some(header_len) = segment.get(12).map(|offset| usize::from(offset >> 4) * 4) else {
            return false;
        };
        if let Some((start, len)) = find_sack(segment, header_len) {
            // NOPs, RFC 9293 §3.1.
            return [1_u8; MAX_OPTIONS_LEN]
                .get(..len)
                .is_some_and(|nops| replace(segment, start, nops));
        }
    }
    true
}

/// Writes `bytes` at `start` of a segment, word by word, so that the checksum can be corrected rather than
/// computed (RFC 1624).
fn replace(segment: &mut [u8], start: usize, bytes: &[u8]) -> bool {
    let Some(field) = segment
        .get(16..18)
        .and_then(|field| field.first_chunk::<2>().copied())
    else {
        return false;
    };
    let mut check = u16::from_be_bytes(field);
    let end = (start + bytes.len()).next_multiple_of(2);
    for at in (start & !1..end).step_by(2) {
        let Some(word) = segment.get_mut(at..at + 2) else {
            return false;
        };
        let old = word
            .first_chunk::<2>()
            .map_or(0, |word| u16::from_be_bytes(*word));
        for (index, byte) in word.iter_mut().enumerate() {
            if let Some(new) = (at + index).checked_sub(start).and_then(|from| bytes.get(from)) {
                *byte = *new;
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
    fn a_changed_acknowledgment_has_a_right_checksum() {
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
        assert!(apply(
            Change {
                blank_sack: true,
                window: Some(77)
            },
            &mut bytes
        ));
        let packet = TcpPacket::parse(&bytes).unwrap();
        assert!(packet.segment.header.options.sack.is_empty());
        assert_eq!(packet.segment.header.window, 77);
        assert_eq!(packet.segment.payload, b"odd");
    }
}
