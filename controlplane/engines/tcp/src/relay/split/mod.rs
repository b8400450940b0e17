//! Split relay: the gateway is the other end of the connection towards each side, under the other end's
//! address and port, so that neither notices (T1).
//!
//! * **Handshake.** `Synchronous` (default) opens the far side first and answers the opener only then: a
//!   refused or unreachable peer looks refused or unreachable. `Early` answers at once.
//! * **Back-pressure.** What one side does not take stays in the other side's receive buffer, whose window
//!   closes. Every buffer is bounded.
//! * **Ends.** FIN, half-close, reset and urgent data pass. A timeout on one side is a reset on the other.
//! * **What is not ours passes.** Segments of connections whose SYN was not seen here, and connections over
//!   the bounds, are forwarded untouched: the relay degrades to plain forwarding, never to refusal.

mod backlog;
mod config;
mod handoff;
mod look;
mod paths;
mod store;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use foldhash::quality::FixedState;
use hashbrown::HashMap;
use towpath_base::Instant;

use self::backlog::Backlog;
pub use self::config::{Handshake, Opening, OpeningSide, SideConfig, SideView, SplitConfig, SplitStats};
use self::paths::learnt_of;
use self::store::{Live, Slot};
use super::flow::{Flow, HeldSyn, Seen};
use super::{FlowKey, Side, Transmit, Verdict};
use crate::config::{Config, PathMemory};
use crate::endpoint::{Closed, Command, Endpoint};
use crate::isn::IsnSecret;
use crate::packet::{IpHeader, NotTcp, TcpPacket};
use crate::segment::{Flags, Segment};
use crate::timer::Timer;

/// Receive window a connection keeps when memory is short, bytes.
const MIN_SHARE: usize = 16 << 10;

/// Segments of one flow sent before another one's turn.
const BURST: u32 = 32;

/// A deadline that was registered for a flow.
type Deadlines = BTreeSet<(Instant, FlowKey)>;

/// A flow that is not parked: when it was last known to be busy, its number in this queue, and its key.
type Watch = (Instant, u64, FlowKey);

/// The relay.
pub struct SplitRelay {
    config: SplitConfig,
    secret: IsnSecret,
    flows: HashMap<FlowKey, Slot, FixedState>,
    deadlines: Deadlines,
    ready: VecDeque<FlowKey>,
    awake: VecDeque<Watch>,
    watches: u64,
    burst: u32,
    backlog: Backlog,
    /// Bytes in the buffers of all connections.
    buffered: usize,
    /// Connections of each tag.
    tagged: BTreeMap<u64, usize>,
    /// What connections learnt of the path to a terminal.
    paths: BTreeMap<IpAddr, PathMemory>,
    stats: SplitStats,
}

impl SplitRelay {
    /// A relay without connections.
    pub fn new(config: SplitConfig, secret: IsnSecret) -> Self {
        Self {
            config,
            secret,
            // Whoever opens connections chooses the keys: the hash depends on what is drawn here.
            flows: HashMap::with_hasher(FixedState::with_seed(secret.hash_seed())),
            deadlines: BTreeSet::new(),
            ready: VecDeque::new(),
            awake: VecDeque::new(),
            watches: 0,
            burst: 0,
            backlog: Backlog::new(),
            buffered: 0,
            tagged: BTreeMap::new(),
            paths: BTreeMap::new(),
            stats: SplitStats::NONE,
        }
    }

    // -- input ----------------------------------------------------------------------------------------

    /// Takes an IP packet that came from `from`; every new connection is split.
    pub fn handle_input(&mut self, now: Instant, from: Side, packet: &[u8]) -> Verdict {
        self.handle_tagged(now, from, packet, 0, |_| Some(Opening::default()))
    }

    /// Takes an IP packet that came from `from` on the path `tag`. A connection belongs to the path of its SYN:
    /// segments that come on another one are not its own and pass.
    ///
    /// `admit` is asked about a new connection; `None` lets it pass untouched.
    pub fn handle_tagged(
        &mut self,
        now: Instant,
        from: Side,
        packet: &[u8],
        tag: u64,
        admit: impl FnOnce(&FlowKey) -> Option<Opening>,
    ) -> Verdict {
        let packet = match TcpPacket::parse(packet) {
            Ok(packet) => packet,
            Err(NotTcp::Other | NotTcp::Fragment) => return Verdict::Pass,
            Err(NotTcp::Malformed | NotTcp::Checksum) => {
                self.stats.malformed += 1;
                return Verdict::Drop;
            }
        };
        let key = FlowKey::of(from, &packet);
        let header = &packet.segment.header;
        let known = match self.flows.get_mut(&key) {
            Some(slot) if slot.tag != tag => return Verdict::Pass,
            Some(slot) if Flow::syn_flag(header) => slot
                .live()
                .is_some_and(|live| !live.flow.is_succeeded_by(from, header.seq)),
            Some(_) => true,
            None => false,
        };
        if known {
            self.input_known(now, from, key, &packet);
            return Verdict::Consumed;
        }
        if !Flow::syn_flag(header) {
            return Verdict::Pass;
        }
        let Some(opening) = admit(&key) else {
            // Whatever it was before, it is not the relay's from now on.
            self.remove(&key);
            return Verdict::Pass;
        };
        self.remove(&key);
        if self.backlog.of(tag) >= self.config.max_half_open_per_tag
            && let Some(oldest) = self.backlog.oldest(tag)
        {
            self.stats.pushed_out += 1;
            self.remove(&oldest);
        }
        if !self.has_room(tag) {
            self.stats.over_limit += 1;
            return Verdict::Pass;
        }
        self.open(now, from, key, &packet, tag, opening);
        Verdict::Consumed
    }

    /// Whether one more connection fits every bound.
    fn has_room(&self, tag: u64) -> bool {
        self.flows.len() < self.config.max_flows
            && self.backlog.len() < self.config.max_half_open
            && self.tagged.get(&tag).copied().unwrap_or(0) < self.config.max_flows_per_tag
            && self.buffered < self.config.max_buffered
    }

    /// A segment of a connection that is there. What follows from it is seen to when the connection's turn to send
    /// comes: segments that arrive together are passed on, and acknowledged, as one.
    fn input_known(&mut self, now: Instant, from: Side, key: FlowKey, packet: &TcpPacket<'_>) {
        let full = self.buffered >= self.config.max_buffered && !packet.segment.payload.is_empty();
        let Some(slot) = self.flows.get_mut(&key) else {
            return;
        };
        let Some(live) = slot.live() else { return };
        let flow = &mut live.flow;
        note_seen(flow, from, packet);
        if flow.is_of_opener(from) {
            // The SYN again, or its sender gave up.
            if packet.segment.header.flags.has(Flags::RST) {
                self.remove(&key);
            }
            return;
        }
        flow.active_at = now;
        let mut segment = packet.segment;
        if full {
            // No memory for the data: what the segment says of ours still counts.
            segment.payload = &[];
            segment.header.flags = segment.header.flags.without(Flags::FIN);
            self.stats.over_memory += 1;
        }
        if let Some(end) = flow.end_mut(from) {
            end.handle_input(now, &segment, packet.ecn);
        }
        // The bound on memory holds for what is not passed on yet, too.
        self.buffered += segment.payload.len();
        live.buffered += segment.payload.len();
        live.changed = true;
        if !live.ready {
            live.ready = true;
            self.ready.push_back(key);
        }
    }

    /// Begins a connection with the SYN in `packet`.
    fn open(
        &mut self,
        now: Instant,
        opener: Side,
        key: FlowKey,
        packet: &TcpPacket<'_>,
        tag: u64,
        opening: Opening,
    ) {
        let mut flow = Flow::new(now, key, opener, packet.segment.header);
        note_seen(&mut flow, opener, packet);
        let far = self.connection(key, opener.opposite(), &opening);
        let (local, remote) = (key.host(opener), key.host(opener.opposite()));
        let isn = self
            .secret
            .number_apart(now, local, remote, packet.segment.header.seq);
        flow.set_end(opener.opposite(), Endpoint::connect(now, far, isn));
        self.stats.opened += 1;
        self.insert(key, Slot::new(flow, tag, opening));
        let pressed = self.backlog.of(tag) > self.config.max_half_open_per_tag / 2;
        if opening.handshake.unwrap_or(self.config.handshake) == Handshake::Early && !pressed {
            self.answer(now, key);
        }
        self.touch(now, key);
    }

    fn insert(&mut self, key: FlowKey, mut slot: Slot) {
        let tag = slot.tag;
        if let Some(live) = slot.awake() {
            live.waits = Some(self.backlog.add(tag, key));
        }
        *self.tagged.entry(slot.tag).or_default() += 1;
        self.flows.insert(key, slot);
    }

    /// Answers the held SYN.
    fn answer(&mut self, now: Instant, key: FlowKey) {
        let Some(live) = self.flows.get(&key).and_then(Slot::seen_awake) else {
            return;
        };
        let (opener, opening) = (live.flow.opener, live.opening);
        let near = self.connection(key, opener, &opening);
        let isn = self.isn(now, key, opener);
        let Some(flow) = self.live(&key) else { return };
        let Some(HeldSyn(header)) = flow.held.take() else {
            return;
        };
        let mut endpoint = Endpoint::listen(now, near, isn);
        endpoint.handle_input(now, &Segment { header, payload: &[] }, Default::default());
        flow.set_end(opener, endpoint);
    }

    /// Parameters of the endpoint towards `side`: it speaks as the host on the other side.
    fn connection(&self, key: FlowKey, side: Side, opening: &Opening) -> Config {
        let side_config = self.config.side(side);
        let chosen = opening.side(side);
        let headers = if key.terminal.0.is_ipv4() { 40 } else { 60 };
        let (_, remote_port) = key.host(side);
        let (_, local_port) = key.host(side.opposite());
        let mtu = chosen.mtu.unwrap_or(side_config.mtu);
        Config {
            local_port,
            remote_port,
            mss: mtu.saturating_sub(headers).max(88),
            algorithm: chosen.algorithm.unwrap_or(side_config.connection.algorithm),
            path: self.paths.get(&key.host(side).0).copied(),
            timestamp_offset: self.clock_offset(key, side),
            ..side_config.connection.clone()
        }
    }

    /// The same for every connection between these ports: whoever remembers the last one refuses a SYN whose clock
    /// stands before that one's (RFC 7323 §5.5, RFC 6191).
    fn clock_offset(&self, key: FlowKey, side: Side) -> u32 {
        self.isn(Instant::ZERO, key, side).0 ^ self.isn(Instant::ZERO, key, side.opposite()).0
    }

    fn isn(&self, now: Instant, key: FlowKey, side: Side) -> crate::seq::SeqNum {
        self.secret.number(now, key.host(side.opposite()), key.host(side))
    }

    // -- time -----------------------------------------------------------------------------------------

    /// When `handle_timeout` wants to be called, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let (at, key) = self.deadlines.first()?;
        let timer = self
            .flows
            .get(key)
            .and_then(|slot| slot.deadline)
            .map_or(Timer::Idle, |(_, timer)| timer);
        Some((*at, timer))
    }

    /// Handles every deadline up to `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, key)) = self.deadlines.first().copied() {
            if at > now {
                break;
            }
            self.deadlines.remove(&(at, key));
            let Some(slot) = self.flows.get_mut(&key) else {
                continue;
            };
            slot.deadline = None;
            let Some(Live { flow, .. }) = slot.live() else {
                continue;
            };
            for side in Side::BOTH {
                if let Some(end) = flow.end_mut(side) {
                    end.handle_timeout(now);
                }
            }
            if flow.dead_at.is_some_and(|dead| now >= dead + self.config.linger) {
                self.remove(&key);
                continue;
            }
            if flow.dead_at.is_none() && !flow.is_open() && now >= flow.opened_at + self.config.open_timeout {
                flow.abort();
            } else if flow.dead_at.is_none() && flow.silence(now) >= self.config.idle_timeout {
                self.stats.idle += 1;
                flow.abort();
            }
            self.touch(now, key);
        }
    }

    /// The path to the host on `side` takes packets of `mtu` bytes only (from an ICMP message that quoted
    /// a segment of this connection).
    pub fn path_mtu(&mut self, now: Instant, key: &FlowKey, side: Side, mtu: u16) {
        if let Some(flow) = self.live(key)
            && let Some(end) = flow.end_mut(side)
        {
            let headers = if key.terminal.0.is_ipv4() { 40 } else { 60 };
            end.set_path_mss(mtu.saturating_sub(headers));
            self.touch(now, *key);
        }
    }

    // -- what follows from input and time -------------------------------------------------------------

    /// Lets a flow act on what changed, and lines it up for transmission.
    fn touch(&mut self, now: Instant, key: FlowKey) {
        let Some(Live { flow, .. }) = self.flows.get_mut(&key).and_then(Slot::live) else {
            return;
        };
        let was_open = flow.held.is_none();
        let mut answer = false;
        for side in Side::BOTH {
            let opener = flow.opener;
            let Some(end) = flow.end_mut(side) else { continue };
            while let Some(command) = end.poll_command() {
                if side == opener {
                    continue;
                }
                match command {
                    Command::Connected if !was_open => answer = true,
                    Command::Closed(Closed::Refused) => {
                        self.stats.refused += 1;
                        flow.refuse();
                        break;
                    }
                    Command::Closed(Closed::TimedOut) if !was_open => {
                        flow.forget();
                        break;
                    }
                    _ => {}
                }
            }
        }
        if answer {
            self.answer(now, key);
        }
        let Some(live) = self.flows.get_mut(&key).and_then(Slot::live) else {
            return;
        };
        live.changed = false;
        let used = self.buffered - live.buffered;
        let room = self.config.max_buffered.saturating_sub(used);
        // A connection's share shrinks as the memory fills: no reader can make the others starve.
        live.flow.bound_windows((room / 4).max(MIN_SHARE));
        live.flow.pump(now);
        live.buffered = live.flow.buffered();
        self.buffered = used + live.buffered;
        if !live.ready {
            live.ready = true;
            self.ready.push_back(key);
        }
    }

    /// Writes the next packet into `out`; `None` when nothing may go now.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        while let Some(key) = self.ready.front().copied() {
            let changed = |slot: &Slot| slot.seen_awake().is_some_and(|live| live.changed);
            if self.flows.get(&key).is_some_and(changed) {
                self.touch(now, key);
            }
            if let Some(transmit) = self.transmit_flow(now, key, out) {
                self.burst += 1;
                if self.burst >= BURST {
                    self.burst = 0;
                    self.ready.rotate_left(1);
                }
                return Some(transmit);
            }
            self.burst = 0;
            self.ready.pop_front();
            self.settle(now, key);
        }
        None
    }

    fn transmit_flow(&mut self, now: Instant, key: FlowKey, out: &mut [u8]) -> Option<Transmit> {
        let slot = self.flows.get_mut(&key)?;
        let tag = slot.tag;
        let flow = &mut slot.live()?.flow;
        for to in Side::BOTH {
            let (source, _) = key.host(to.opposite());
            let (destination, _) = key.host(to);
            let [terminal, network] = flow.seen;
            let Seen { dscp, ttl } = if to == Side::Terminal { network } else { terminal };
            let mut ip = IpHeader {
                source,
                destination,
                dscp,
                ecn: Default::default(),
                ttl,
            };
            let room = out.get_mut(ip.header_len()..)?;
            let mut outgoing = None;
            if to == flow.opener {
                outgoing = flow.take_refusal(room);
            }
            if outgoing.is_none() {
                outgoing = flow.end_mut(to).and_then(|end| end.poll_transmit(now, room));
            }
            if let Some(outgoing) = outgoing {
                ip.ecn = outgoing.ecn;
                let len = ip.finish(out, outgoing.len)?;
                return Some(Transmit {
                    to,
                    len,
                    flow: key,
                    tag,
                });
            }
        }
        None
    }

    /// A flow has nothing to send for now: note when it wants attention, and whether it is over.
    fn settle(&mut self, now: Instant, key: FlowKey) {
        let Some(slot) = self.flows.get_mut(&key) else {
            return;
        };
        let Some(live) = slot.live() else { return };
        live.ready = false;
        if live.watch == 0 {
            self.watches += 1;
            live.watch = self.watches;
            self.awake.push_back((now, live.watch, key));
        }
        let flow = &mut live.flow;
        // Whoever ended it, the next connection may begin before this one is forgotten.
        let mut learnt = [None; 2];
        if !live.learnt && flow.is_over() {
            live.learnt = true;
            learnt = learnt_of(&key, flow);
        }
        if flow.is_dead() {
            if !flow.lingers() {
                self.remove(&key);
                self.remember(learnt);
                return;
            }
            flow.dead_at.get_or_insert(now);
        }
        let opened = !flow.counted && (flow.is_open() || flow.dead_at.is_some());
        flow.counted |= opened;
        let deadline = deadline_of(&self.config, flow);
        if opened && let Some(place) = live.waits.take() {
            self.backlog.remove(slot.tag, place);
        }
        // A deadline that moved later is left where it is: it expires without effect and is set anew, which is less work
        // than moving it with every segment.
        if slot.deadline.is_none_or(|(due, _)| deadline.0 < due) {
            register(&mut self.deadlines, key, slot, deadline);
        }
        self.remember(learnt);
    }

    /// Forgets a connection without a word to either side: it lives on elsewhere, or is over.
    pub fn remove(&mut self, key: &FlowKey) -> bool {
        let Some(mut slot) = self.flows.remove(key) else {
            return false;
        };
        let mut noted = None;
        if let Some(live) = slot.awake() {
            noted = Some(live.learnt);
            self.buffered = self.buffered.saturating_sub(live.buffered);
            if let Some(place) = live.waits {
                self.backlog.remove(slot.tag, place);
            }
        }
        if let Some(count) = self.tagged.get_mut(&slot.tag) {
            *count -= 1;
            if *count == 0 {
                self.tagged.remove(&slot.tag);
            }
        }
        if let Some((deadline, _)) = slot.deadline {
            self.deadlines.remove(&(deadline, *key));
        }
        let Some(flow) = slot.look() else { return false };
        // What a finished connection learnt was noted when it finished.
        if !noted.unwrap_or_else(|| flow.is_over()) {
            self.remember(learnt_of(key, &flow));
        }
        true
    }

    /// Whether any connection is of the path `tag`.
    pub fn has_tagged(&self, tag: u64) -> bool {
        self.tagged.contains_key(&tag)
    }

    /// Forgets every connection of `tag`: their path is gone. Returns how many there were.
    pub fn remove_tagged(&mut self, tag: u64) -> usize {
        if !self.tagged.contains_key(&tag) {
            return 0;
        }
        let gone: Vec<FlowKey> = self
            .flows
            .iter()
            .filter(|(_, slot)| slot.tag == tag)
            .map(|(key, _)| *key)
            .collect();
        gone.iter().filter(|key| self.remove(key)).count()
    }

    /// Parks connections on which nothing has happened for `silent_for`: they are kept as their snapshot,
    /// a sixth of the size, and wake with the next packet or deadline. Returns how many were parked.
    pub fn trim(&mut self, now: Instant, silent_for: Duration) -> usize {
        self.trim_some(now, silent_for, usize::MAX)
    }

    /// As [`SplitRelay::trim`], and looks at `most` connections at most. Costs next to nothing when none is due; the
    /// sooner the silent are parked, the fewer are ever alive at once.
    pub fn trim_some(&mut self, now: Instant, silent_for: Duration, most: usize) -> usize {
        let mut parked = 0;
        for _ in 0..self.awake.len().min(most) {
            let due = |(since, ..): &mut Watch| *since + silent_for <= now;
            let Some((_, watch, key)) = self.awake.pop_front_if(due) else {
                break;
            };
            let Some(slot) = self.flows.get_mut(&key) else {
                continue;
            };
            let Some(live) = slot.awake().filter(|live| live.watch == watch) else {
                continue;
            };
            let flow = &live.flow;
            if live.ready || flow.silence(now) < silent_for || !flow.is_quiet() {
                let since = if flow.is_quiet() { flow.active_at } else { now };
                self.awake.push_back((since, watch, key));
                continue;
            }
            self.buffered = self.buffered.saturating_sub(live.buffered);
            let deadline = deadline_of(&self.config, flow);
            // Whatever was left to expire without effect would wake it.
            register(&mut self.deadlines, key, slot, deadline);
            slot.park(now);
            parked += 1;
        }
        parked
    }

    /// Bytes of memory a connection takes, buffers of a busy one not counted.
    pub fn memory(&self, key: &FlowKey) -> Option<usize> {
        self.flows
            .get(key)
            .map(|slot| size_of::<Slot>() + size_of::<FlowKey>() + slot.memory())
    }

    /// The flow of `key`, woken if it was parked.
    fn live(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.flows.get_mut(key)?.live().map(|live| &mut live.flow)
    }
}

/// When a flow wants attention next, and what for.
fn deadline_of(config: &SplitConfig, flow: &Flow) -> (Instant, Timer) {
    let watch = match flow.dead_at {
        Some(dead) => dead + config.linger,
        None if !flow.is_open() => flow.opened_at + config.open_timeout,
        None => flow.active_at + config.idle_timeout,
    };
    flow.next_deadline()
        .filter(|(at, _)| *at <= watch)
        .unwrap_or((watch, Timer::Idle))
}

/// Registers `deadline` in place of the one there is.
fn register(deadlines: &mut Deadlines, key: FlowKey, slot: &mut Slot, deadline: (Instant, Timer)) {
    if let Some((old, _)) = slot.deadline.replace(deadline) {
        deadlines.remove(&(old, key));
    }
    deadlines.insert((deadline.0, key));
}

fn note_seen(flow: &mut Flow, from: Side, packet: &TcpPacket<'_>) {
    let [terminal, network] = &mut flow.seen;
    let seen = if from == Side::Terminal { terminal } else { network };
    *seen = Seen {
        dscp: packet.dscp,
        ttl: packet.ttl.saturating_sub(1).max(1),
    };
}
