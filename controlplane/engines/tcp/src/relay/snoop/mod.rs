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

mod edit;
mod flow;
mod handoff;
mod shape;
#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use core::time::Duration;

use towpath_base::Instant;

pub use self::edit::{Change, apply};
use self::flow::{Cached, Flow, overlaps};
use self::shape::Hello;
use super::{FlowKey, Side, Verdict};
use crate::packet::{NotTcp, TcpPacket};
use crate::segment::Flags;
use crate::seq::Offset;
use crate::timer::Timer;

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

/// A snooped connection, for people to look at (N7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnoopView {
    /// SRTT of the radio.
    pub smoothed_rtt: Option<Duration>,
    /// Bytes in its cache.
    pub cached: usize,
    /// Bytes of data on their way to the terminal.
    pub in_flight: u64,
    /// Segments cached so far.
    pub cached_segments: u64,
    /// Segments repeated.
    pub repeated: u64,
    /// Acknowledgments kept back.
    pub suppressed: u64,
    /// Segments the peer sent again.
    pub peer_retransmits: u64,
    /// Bytes the terminal acknowledged.
    pub delivered: u64,
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

    /// The connections.
    pub fn flows(&self) -> impl Iterator<Item = &FlowKey> {
        self.flows.keys()
    }

    /// Whether anything of a connection is kept.
    pub fn knows(&self, key: &FlowKey) -> bool {
        self.flows.contains_key(key) || self.hellos.contains_key(key)
    }

    /// Bytes in all caches.
    pub const fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// One connection.
    pub fn view(&self, key: &FlowKey) -> Option<SnoopView> {
        let flow = self.flows.get(key)?;
        Some(SnoopView {
            smoothed_rtt: flow.rtt.smoothed(),
            cached: flow.cached_bytes,
            in_flight: flow.outstanding,
            cached_segments: flow.counts.cached,
            repeated: flow.counts.repeated,
            suppressed: flow.counts.suppressed,
            peer_retransmits: flow.counts.peer_retransmits,
            delivered: flow
                .acknowledged
                .map_or(0, |ack| ack.saturating_sub(flow::ORIGIN)),
        })
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
            } else {
                if self.hellos.len() >= self.config.max_flows {
                    // Openings that never led to data make room first come, first gone.
                    self.hellos.pop_first();
                }
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
            flow.counts.peer_retransmits += 1;
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
        flow.counts.cached += 1;
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
            flow.counts.suppressed += 1;
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
                                .is_none_or(|highest| sequence.saturating_add(window) > *highest)
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
                    flow.counts.repeated += 1;
                    self.schedule(now, key);
                    return Some((key, start));
                }
                flow.ready = false;
            }
            self.ready.pop_front();
        }
        None
    }

    /// When `handle_timeout` wants to be called, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let (at, key) = self.deadlines.first()?;
        let waits = self
            .flows
            .get(key)
            .is_some_and(|flow| flow.repeat_at(self.config.min_timeout).is_some());
        Some((*at, if waits { Timer::Retransmit } else { Timer::Idle }))
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
