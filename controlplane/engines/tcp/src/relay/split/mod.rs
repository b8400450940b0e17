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

mod config;
mod store;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use towpath_base::Instant;

pub use self::config::{Handshake, SideConfig, SideView, SplitConfig, SplitStats};
use self::store::Slot;
use super::flow::{Flow, HeldSyn, Seen};
use super::{FlowKey, Side, Transmit, Verdict};
use crate::codec::{Codec, Reader, RestoreError, Writer};
use crate::config::{Config, PathMemory};
use crate::endpoint::{Closed, Command, Endpoint};
use crate::isn::IsnSecret;
use crate::packet::{IpHeader, NotTcp, TcpPacket};
use crate::segment::{Flags, Segment};
use crate::timer::Timer;

/// Terminals whose path is remembered.
const MAX_PATHS: usize = 4096;

/// Segments of one flow sent before another one's turn.
const BURST: u32 = 32;

/// A deadline that was registered for a flow.
type Deadlines = BTreeSet<(Instant, FlowKey)>;

/// The relay.
pub struct SplitRelay {
    config: SplitConfig,
    secret: IsnSecret,
    flows: BTreeMap<FlowKey, Slot>,
    deadlines: Deadlines,
    ready: VecDeque<FlowKey>,
    burst: u32,
    half_open: usize,
    /// What connections learnt of the path to a terminal.
    paths: BTreeMap<IpAddr, PathMemory>,
    stats: SplitStats,
}

impl SplitRelay {
    /// A relay without connections.
    pub const fn new(config: SplitConfig, secret: IsnSecret) -> Self {
        Self {
            config,
            secret,
            flows: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ready: VecDeque::new(),
            burst: 0,
            half_open: 0,
            paths: BTreeMap::new(),
            stats: SplitStats {
                opened: 0,
                refused: 0,
                over_limit: 0,
                idle: 0,
                malformed: 0,
            },
        }
    }

    /// Counters.
    pub const fn stats(&self) -> &SplitStats {
        &self.stats
    }

    /// Connections at present.
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

    /// One side of a connection.
    pub fn view(&self, key: &FlowKey, side: Side) -> Option<SideView> {
        let flow = self.flows.get(key)?.look()?;
        let end = flow.end(side)?;
        Some(SideView {
            state: end.state(),
            smoothed_rtt: end.smoothed_rtt(),
            window: end.controller().window(),
            in_flight: end.in_flight(),
            queued: end.unsent_or_unacknowledged(),
            unread: end.readable_len(),
            stats: *end.stats(),
        })
    }

    // -- input ----------------------------------------------------------------------------------------

    /// Takes an IP packet that came from `from`.
    pub fn handle_input(&mut self, now: Instant, from: Side, packet: &[u8]) -> Verdict {
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
            Some(slot) if Flow::syn_flag(header) => slot
                .live()
                .is_some_and(|flow| !flow.is_succeeded_by(from, header.seq)),
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
        self.remove(&key);
        if self.flows.len() >= self.config.max_flows || self.half_open >= self.config.max_half_open {
            self.stats.over_limit += 1;
            return Verdict::Pass;
        }
        self.open(now, from, key, &packet);
        Verdict::Consumed
    }

    fn input_known(&mut self, now: Instant, from: Side, key: FlowKey, packet: &TcpPacket<'_>) {
        let Some(flow) = self.live(&key) else { return };
        note_seen(flow, from, packet);
        if flow.is_of_opener(from) {
            // The SYN again, or its sender gave up.
            if packet.segment.header.flags.has(Flags::RST) {
                self.remove(&key);
            }
            return;
        }
        flow.active_at = now;
        if let Some(end) = flow.end_mut(from) {
            end.handle_input(now, &packet.segment, packet.ecn);
        }
        self.touch(now, key);
    }

    /// Begins a connection with the SYN in `packet`.
    fn open(&mut self, now: Instant, opener: Side, key: FlowKey, packet: &TcpPacket<'_>) {
        let mut flow = Flow::new(now, key, opener, packet.segment.header);
        note_seen(&mut flow, opener, packet);
        let far = self.connection(now, key, opener.opposite());
        let isn = self.isn(now, key, opener.opposite());
        flow.set_end(opener.opposite(), Endpoint::connect(now, far, isn));
        self.stats.opened += 1;
        self.half_open += 1;
        self.flows.insert(key, Slot::new(flow));
        if self.config.handshake == Handshake::Early {
            self.answer(now, key);
        }
        self.touch(now, key);
    }

    /// Answers the held SYN.
    fn answer(&mut self, now: Instant, key: FlowKey) {
        let Some(slot) = self.flows.get(&key) else { return };
        let Some(opener) = slot.look().map(|flow| flow.opener) else {
            return;
        };
        let near = self.connection(now, key, opener);
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
    fn connection(&self, now: Instant, key: FlowKey, side: Side) -> Config {
        let side_config = self.config.side(side);
        let headers = if key.terminal.0.is_ipv4() { 40 } else { 60 };
        let (_, remote_port) = key.host(side);
        let (_, local_port) = key.host(side.opposite());
        Config {
            local_port,
            remote_port,
            mss: side_config.mtu.saturating_sub(headers).max(88),
            path: self
                .paths
                .get(&key.host(side).0)
                .copied()
                .filter(|_| side == Side::Terminal),
            timestamp_offset: self.isn(Instant::ZERO, key, side).0 ^ self.isn(now, key, side.opposite()).0,
            ..side_config.connection.clone()
        }
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
            let Some(flow) = slot.live() else { continue };
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
        let Some(flow) = self.flows.get_mut(&key).and_then(Slot::live) else {
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
        let Some(slot) = self.flows.get_mut(&key) else {
            return;
        };
        if let Some(flow) = slot.live() {
            flow.pump(now);
        }
        if !slot.ready {
            slot.ready = true;
            self.ready.push_back(key);
        }
    }

    /// Writes the next packet into `out`; `None` when nothing may go now.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        while let Some(key) = self.ready.front().copied() {
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
        let flow = self.flows.get_mut(&key)?.live()?;
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
                return Some(Transmit { to, len, flow: key });
            }
        }
        None
    }

    /// A flow has nothing to send for now: note when it wants attention, and whether it is over.
    fn settle(&mut self, now: Instant, key: FlowKey) {
        let Some(slot) = self.flows.get_mut(&key) else {
            return;
        };
        slot.ready = false;
        let Some(flow) = slot.live() else { return };
        if flow.is_dead() {
            if !flow.lingers() {
                self.remove(&key);
                return;
            }
            flow.dead_at.get_or_insert(now);
        }
        let opened = !flow.counted && (flow.is_open() || flow.dead_at.is_some());
        flow.counted |= opened;
        let watch = match flow.dead_at {
            Some(dead) => dead + self.config.linger,
            None if !flow.is_open() => flow.opened_at + self.config.open_timeout,
            None => flow.active_at + self.config.idle_timeout,
        };
        let watch = (watch, Timer::Idle);
        let deadline = flow
            .next_deadline()
            .filter(|(at, _)| *at <= watch.0)
            .unwrap_or(watch);
        if slot.deadline != Some(deadline) {
            if let Some((old, _)) = slot.deadline.replace(deadline) {
                self.deadlines.remove(&(old, key));
            }
            self.deadlines.insert((deadline.0, key));
        }
        if opened {
            self.half_open = self.half_open.saturating_sub(1);
        }
    }

    /// Forgets a connection without a word to either side: it lives on elsewhere, or is over.
    pub fn remove(&mut self, key: &FlowKey) -> bool {
        let Some(slot) = self.flows.remove(key) else {
            return false;
        };
        let Some(flow) = slot.look() else { return false };
        self.remember_path(key, &flow);
        if let Some((deadline, _)) = slot.deadline {
            self.deadlines.remove(&(deadline, *key));
        }
        if !flow.counted {
            self.half_open = self.half_open.saturating_sub(1);
        }
        true
    }

    /// Keeps what a connection learnt of the radio for the terminal's next one. A short connection sees
    /// less than the path gives, so a remembered rate fades rather than falls.
    fn remember_path(&mut self, key: &FlowKey, flow: &Flow) {
        let Some(learnt) = flow
            .end(Side::Terminal)
            .and_then(|end| end.controller().path_memory())
        else {
            return;
        };
        let terminal = key.terminal.0;
        let bandwidth = match self.paths.get(&terminal) {
            Some(old) => learnt.bandwidth.max(old.bandwidth / 8 * 7),
            None => learnt.bandwidth,
        };
        if self.paths.len() >= MAX_PATHS && !self.paths.contains_key(&terminal) {
            self.paths.pop_first();
        }
        self.paths.insert(terminal, PathMemory { bandwidth, ..learnt });
    }

    /// Parks connections on which nothing has happened for `silent_for`: they are kept as their snapshot,
    /// a third of the size, and wake with the next packet or deadline. Worth calling every few seconds.
    /// Returns how many were parked.
    pub fn trim(&mut self, now: Instant, silent_for: Duration) -> usize {
        self.flows
            .values_mut()
            .filter_map(|slot| {
                slot.park(now, |flow| flow.silence(now) >= silent_for && flow.is_quiet())
                    .then_some(())
            })
            .count()
    }

    /// Bytes of memory a connection takes, buffers of a busy one not counted.
    pub fn memory(&self, key: &FlowKey) -> Option<usize> {
        self.flows
            .get(key)
            .map(|slot| size_of::<Slot>() + size_of::<FlowKey>() + slot.memory())
    }

    /// The flow of `key`, woken if it was parked.
    fn live(&mut self, key: &FlowKey) -> Option<&mut Flow> {
        self.flows.get_mut(key)?.live()
    }

    // -- handoff --------------------------------------------------------------------------------------

    /// The whole state of a connection at `now`, versioned: sequence numbers, windows, options, congestion
    /// and RTT state, buffered bytes, SACK scoreboard.
    pub fn snapshot(&self, now: Instant, key: &FlowKey) -> Option<Vec<u8>> {
        let flow = self.flows.get(key)?.look()?;
        let mut writer = Writer::new(now);
        MAGIC.encode(&mut writer);
        VERSION.encode(&mut writer);
        now.as_nanos().encode(&mut writer);
        flow.encode(&mut writer);
        Some(writer.bytes)
    }

    /// Takes a connection over from another relay, or from this one before an upgrade. Refuses one that is
    /// there already.
    pub fn restore(&mut self, now: Instant, bytes: &[u8]) -> Result<FlowKey, RestoreError> {
        let mut reader = Reader::new(bytes, now);
        if u32::decode(&mut reader)? != MAGIC {
            return Err(RestoreError::Magic);
        }
        let version = u16::decode(&mut reader)?;
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        let then = Instant::from_nanos(u64::decode(&mut reader)?);
        let mut flow = Flow::decode(&mut reader)?;
        reader.finish()?;
        let key = flow.key;
        let ports_match = Side::BOTH.iter().all(|side| {
            flow.end(*side).is_none_or(|end| {
                end.config().remote_port == key.host(*side).1
                    && end.config().local_port == key.host(side.opposite()).1
            })
        });
        if !ports_match || key.terminal.0.is_ipv4() != key.network.0.is_ipv4() {
            return Err(RestoreError::Invalid("addresses"));
        }
        if self.flows.contains_key(&key) || self.flows.len() >= self.config.max_flows {
            return Err(RestoreError::Invalid("no room for the connection"));
        }
        for side in Side::BOTH {
            if let Some(end) = flow.end_mut(side) {
                end.rebase_clock(then, now);
            }
        }
        if !flow.counted {
            self.half_open += 1;
        }
        self.flows.insert(key, Slot::new(flow));
        self.touch(now, key);
        Ok(key)
    }
}

/// First bytes of a snapshot of a flow.
const MAGIC: u32 = 0x464c_4f57;
/// Version written, and the only one read.
const VERSION: u16 = 1;

fn note_seen(flow: &mut Flow, from: Side, packet: &TcpPacket<'_>) {
    let [terminal, network] = &mut flow.seen;
    let seen = if from == Side::Terminal { terminal } else { network };
    *seen = Seen {
        dscp: packet.dscp,
        ttl: packet.ttl.saturating_sub(1).max(1),
    };
}
