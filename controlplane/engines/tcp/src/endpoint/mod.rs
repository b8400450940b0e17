//! One end of a TCP connection (RFC 9293), sans-IO.
//!
//! | file | what |
//! |---|---|
//! | `mod` | the connection's state, opening, reading, writing, closing |
//! | `state` | the states and their transitions |
//! | `parts` | commands, counters, and the smaller pieces of the state |
//! | `handshake` | segments in LISTEN, SYN-SENT and SYN-RECEIVED; negotiation |
//! | `input` | segments in the synchronised states |
//! | `ack` | what an acknowledgment does to the sender: loss, recovery, window |
//! | `output` | which segment goes next |
//! | `deadline` | timers |
//! | `snapshot` | the whole of it as bytes |

mod ack;
mod deadline;
mod early;
mod handshake;
mod input;
mod output;
mod parts;
mod search;
mod snapshot;
mod state;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use towpath_base::Instant;

use self::early::Early;
pub use self::input::{Disposition, Refusal};
pub use self::output::Outgoing;
pub use self::parts::{Closed, Command, Stats};
use self::parts::{EcnState, Negotiated, Owed, Pending, Recovery, Repair};
use self::search::Search;
pub use self::state::State;
use crate::buffer::SendBuffer;
use crate::config::Config;
use crate::congestion::Controller;
use crate::delayed_ack::DelayedAck;
use crate::pacing::Pacer;
use crate::paws::Paws;
use crate::rack::{Rack, TailLossProbe};
use crate::rate::RateSampler;
use crate::reassembly::Reassembly;
use crate::rto::RttEstimator;
use crate::scoreboard::{Scoreboard, Sent};
use crate::segment::{Flags, Header};
use crate::seq::{Offset, SeqNum, SeqSpace};
use crate::timer::{Timer, TimerTable};
use crate::window::ReceiveWindow;

/// One end of a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    config: Box<Config>,
    state: State,
    closed: Option<Closed>,
    negotiated: Negotiated,

    // Send sequence variables (RFC 9293 §3.3.1), as offsets.
    send_space: SeqSpace,
    /// SND.UNA.
    unacknowledged: Offset,
    /// SND.NXT.
    next: Offset,
    /// SND.WND, bytes.
    peer_window: u64,
    /// Largest SND.WND seen.
    peer_window_max: u64,
    /// SND.WL1 and SND.WL2.
    window_update: (Offset, Offset),
    outgoing: SendBuffer,
    /// Offset of our FIN, once queued.
    fin: Option<Offset>,
    /// SND.UP: offset behind urgent data.
    urgent_out: Option<Offset>,
    sent: Scoreboard,
    segment_len: u64,
    search: Search,
    early: Early,

    receive_space: SeqSpace,
    incoming: Reassembly,
    /// Offset of the peer's FIN.
    peer_fin: Option<Offset>,
    peer_fin_read: bool,
    urgent_in: Option<Offset>,
    window: ReceiveWindow,
    ack: DelayedAck,

    paws: Paws,
    rtt: RttEstimator,
    rack: Rack,
    tail_probe: TailLossProbe,
    repair: Repair,
    sampler: RateSampler,
    controller: Controller,
    pacer: Pacer,
    ecn: EcnState,
    timers: TimerTable,

    owed: Owed,
    pending: Pending,
    /// Timeouts, SYNs or probes without an answer.
    failures: u8,
    persist_backoff: u8,
    keep_alive_failures: u8,
    syn_sent_at: Instant,
    last_sent: Instant,
    last_received: Instant,
    /// When SND.UNA or the scoreboard last moved.
    last_progress: Instant,
    /// Challenge ACKs sent in the second that began then (RFC 5961 §7).
    challenges: (Instant, u8),
    stats: Stats,
    scratch: Scratch,
}

/// Memory reused between acknowledgments; holds nothing across them.
#[derive(Debug, Clone, Default)]
struct Scratch(Vec<Sent>);

impl PartialEq for Scratch {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Endpoint {
    fn new(config: Config, initial: SeqNum, state: State, now: Instant) -> Self {
        let segment_len = u64::from(config.mss).saturating_sub(if config.timestamps { 12 } else { 0 });
        Self {
            state,
            closed: None,
            negotiated: Negotiated {
                mss: config.mss,
                send_scale: 0,
                receive_scale: 0,
                sack: false,
                timestamps: false,
                ecn: false,
            },
            send_space: SeqSpace { initial },
            unacknowledged: 0,
            next: 0,
            peer_window: 0,
            peer_window_max: 0,
            window_update: (0, 0),
            outgoing: SendBuffer::new(config.send_limit),
            fin: None,
            urgent_out: None,
            sent: Scoreboard::default(),
            segment_len,
            search: Search::default(),
            early: Early::default(),
            receive_space: SeqSpace::default(),
            incoming: Reassembly::new(0),
            peer_fin: None,
            peer_fin_read: false,
            urgent_in: None,
            window: ReceiveWindow::new(config.receive_initial, config.receive_limit),
            ack: DelayedAck::default(),
            paws: Paws::new(config.timestamp_offset),
            rtt: RttEstimator::new(config.min_rto, config.max_rto),
            rack: Rack::default(),
            tail_probe: TailLossProbe::default(),
            repair: Repair::default(),
            sampler: RateSampler::default(),
            controller: Controller::new(&config, segment_len),
            pacer: Pacer::default(),
            ecn: EcnState::default(),
            timers: TimerTable::default(),
            owed: Owed::default(),
            pending: Pending::default(),
            failures: 0,
            persist_backoff: 0,
            keep_alive_failures: 0,
            syn_sent_at: now,
            last_sent: now,
            last_received: now,
            last_progress: now,
            challenges: (now, 0),
            stats: Stats::default(),
            scratch: Scratch::default(),
            config: Box::new(config),
        }
    }

    /// Active open: the SYN is ready to be polled.
    pub fn connect(now: Instant, config: Config, initial: SeqNum) -> Self {
        let mut endpoint = Self::new(config, initial, State::SynSent, now);
        endpoint.owed.syn = true;
        endpoint
    }

    /// Passive open: the next SYN handed to [`Endpoint::handle_input`] is answered.
    pub fn listen(now: Instant, config: Config, initial: SeqNum) -> Self {
        Self::new(config, initial, State::Listen, now)
    }

    /// State of RFC 9293.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why the connection ended, once it has.
    pub const fn closed(&self) -> Option<Closed> {
        self.closed
    }

    /// Parameters of the connection.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Counters.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Congestion control.
    pub const fn controller(&self) -> &Controller {
        &self.controller
    }

    /// SRTT, once measured.
    pub const fn smoothed_rtt(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// Smallest round trip of the connection.
    pub const fn min_rtt(&self) -> Option<Duration> {
        self.rtt.min()
    }

    /// Bytes in flight.
    pub const fn in_flight(&self) -> u64 {
        self.sent.in_flight()
    }

    /// Receive window the other end announced last, bytes from the first unacknowledged one.
    pub const fn peer_window(&self) -> u64 {
        self.peer_window
    }

    /// When a segment was last accepted.
    pub const fn last_received(&self) -> Instant {
        self.last_received
    }

    /// SND.UNA: offset of the first byte the peer has not acknowledged.
    pub const fn acknowledged(&self) -> Offset {
        self.unacknowledged
    }

    // -- reading --------------------------------------------------------------------------------------

    /// Data in order, as two runs.
    pub fn readable(&self) -> (&[u8], &[u8]) {
        self.incoming.ready().slices()
    }

    /// Bytes that can be read.
    pub fn readable_len(&self) -> usize {
        self.incoming.ready().len()
    }

    /// Marks `count` bytes as read; the window opens accordingly.
    pub fn consume(&mut self, now: Instant, count: usize) {
        self.incoming.consume(count);
        self.window.on_read(now, count);
        let mss = usize::from(self.negotiated.mss);
        if self.state.can_receive()
            && self.state != State::SynReceived
            && self
                .window
                .worth_announcing(self.incoming.next(), self.incoming.occupied(), mss)
        {
            self.ack.now();
        }
    }

    /// The peer finished and everything it sent was read.
    pub fn is_finished(&self) -> bool {
        self.peer_fin.is_some_and(|fin| self.incoming.next() > fin) && self.incoming.ready().is_empty()
    }

    /// Offset behind the peer's urgent data, if it announced any that is not yet read.
    pub const fn urgent_received(&self) -> Option<Offset> {
        self.urgent_in
    }

    // -- writing --------------------------------------------------------------------------------------

    /// Bytes that can be written.
    pub fn writable(&self) -> usize {
        if self.fin.is_some() || self.state.has_closed() {
            0
        } else {
            self.outgoing.free()
        }
    }

    /// Bytes written and not acknowledged.
    pub fn unsent_or_unacknowledged(&self) -> usize {
        self.outgoing.len()
    }

    /// Writes what there is room for; returns how much that was.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        if self.fin.is_some() || self.state.has_closed() {
            return 0;
        }
        self.outgoing.push(bytes)
    }

    /// Announces urgent data up to `offset` (RFC 9293 §3.8.5); offsets count as in [`Offset`].
    pub fn set_urgent(&mut self, offset: Offset) {
        if offset > self.unacknowledged {
            self.urgent_out = Some(offset);
        }
    }

    /// Changes the bound of the send buffer.
    pub const fn set_send_limit(&mut self, limit: usize) {
        self.outgoing.set_limit(limit);
    }

    /// Bytes in its buffers, both directions.
    pub fn buffered(&self) -> usize {
        self.outgoing.len() + self.incoming.memory()
    }

    /// Lets the receive window be at most `limit` bytes, or what the configuration says if that is less. What
    /// was announced already stays granted.
    pub fn set_receive_limit(&mut self, limit: usize) {
        self.window.set_limit(limit.min(self.config.receive_limit));
    }

    /// Largest segment sent, options included, bytes.
    pub const fn mss(&self) -> u16 {
        self.negotiated.mss
    }

    // -- closing --------------------------------------------------------------------------------------

    /// No more data from us: a FIN follows what was written (RFC 9293 §3.10.4).
    pub fn close(&mut self, now: Instant) {
        if self.fin.is_some() {
            return;
        }
        match self.state {
            State::Listen => self.finish(Closed::Aborted),
            // RFC 9293 §3.10.4 deletes a connection in SYN-SENT; the relay has promised to deliver what was
            // written, so here the FIN waits as it does in SYN-RECEIVED. `abort` deletes.
            State::SynSent | State::SynReceived => self.fin = Some(self.outgoing.end()),
            State::Established | State::CloseWait => {
                self.fin = Some(self.outgoing.end());
                self.state = self.state.after_close();
                self.last_received = now;
            }
            _ => {}
        }
    }

    /// Ends the connection at once and resets the peer (RFC 9293 §3.10.5).
    pub fn abort(&mut self) {
        if self.state == State::Closed {
            return;
        }
        let tell = self.state.is_synchronized() || self.state == State::SynReceived;
        let tell = tell && self.state != State::TimeWait;
        self.finish(Closed::Aborted);
        self.owed.reset = tell;
    }

    fn finish(&mut self, closed: Closed) {
        self.state = State::Closed;
        self.closed = Some(closed);
        self.timers.clear_all();
        self.owed = Owed::default();
        self.sent = Scoreboard::default();
        self.outgoing = SendBuffer::new(0);
        self.pending.closed = true;
    }

    fn enter_time_wait(&mut self, now: Instant) {
        self.state = State::TimeWait;
        self.timers.clear_all();
        self.timers
            .set(Timer::TimeWait, Some(now + self.config.time_wait));
        if self.closed.is_none() {
            self.closed = Some(Closed::Finished);
            self.pending.closed = true;
        }
    }

    // -- commands -------------------------------------------------------------------------------------

    /// What the owner should look at next.
    pub fn poll_command(&mut self) -> Option<Command> {
        let pending = &mut self.pending;
        if core::mem::take(&mut pending.connected) {
            return Some(Command::Connected);
        }
        if core::mem::take(&mut pending.urgent) {
            return Some(Command::Urgent);
        }
        if core::mem::take(&mut pending.readable) {
            return Some(Command::Readable);
        }
        if core::mem::take(&mut pending.writable) {
            return Some(Command::Writable);
        }
        if core::mem::take(&mut pending.closed) {
            return self.closed.map(Command::Closed);
        }
        None
    }

    /// The path takes only segments of `mss` bytes, options included (RFC 1191, RFC 8201). What is in
    /// flight and too large counts as lost.
    pub fn set_path_mss(&mut self, mss: u16) {
        let mss = self.config.segment_size(mss);
        if self.search.before > mss {
            // Told, not guessed: what was tried beyond it is out of the question.
            self.search = Search::default();
        }
        self.shorten(mss);
    }

    /// Sends segments of `mss` bytes at most from now on.
    fn shorten(&mut self, mss: u16) {
        if mss >= self.negotiated.mss {
            return;
        }
        self.negotiated.mss = mss;
        let old = self.segment_len;
        self.update_segment_len();
        let len = self.segment_len;
        if len < old {
            self.sent.mark_all_lost(false, |_, sent| sent.len() > len);
        }
    }

    fn update_segment_len(&mut self) {
        let options = if self.negotiated.timestamps { 12 } else { 0 };
        self.segment_len = u64::from(self.negotiated.mss).saturating_sub(options).max(1);
        self.controller.set_mss(self.segment_len);
    }

    /// Nothing is unacknowledged, unread or owed.
    pub fn is_quiet(&self) -> bool {
        self.sent.is_empty()
            && self.outgoing.len() == 0
            && self.incoming.ready().is_empty()
            && !self.incoming.has_gap()
            && !self.ack.is_due()
            && !self.ack.is_pending()
            && self.owed == Owed::default()
    }

    /// Gives memory back that an idle connection does not need.
    pub fn trim(&mut self) {
        self.outgoing.trim();
        self.incoming.trim();
        self.sent.trim();
        self.scratch.0 = Vec::new();
    }

    /// A header with our ports, everything else empty.
    fn blank(&self, seq: SeqNum, flags: Flags) -> Header {
        Header {
            source_port: self.config.local_port,
            destination_port: self.config.remote_port,
            seq,
            flags,
            ..Header::default()
        }
    }
}
