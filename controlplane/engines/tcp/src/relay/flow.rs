//! One split connection: an endpoint towards each side, and what passes between them.

use alloc::boxed::Box;
use core::time::Duration;

use towpath_base::Instant;

use super::{FlowKey, Side};
use crate::codec::{Codec, Reader, RestoreError, Writer, record};
use crate::endpoint::{Closed, Endpoint, Outgoing, State};
use crate::segment::{Ecn, Flags, Header, Segment};
use crate::seq::SeqNum;
use crate::timer::Timer;

/// The SYN that waits for the far side to answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct HeldSyn(pub(super) Header);

impl Codec for HeldSyn {
    fn encode(&self, writer: &mut Writer) {
        let mut bytes = [0; 64];
        let len = self.0.write(&mut bytes).unwrap_or(0);
        writer.blob(bytes.get(..len).unwrap_or(&[]));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Segment::parse(reader.blob()?)
            .map(|segment| Self(segment.header))
            .map_err(|_| RestoreError::Invalid("held SYN"))
    }
}

/// What has passed in one direction, from the endpoint of one side to the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Passed {
    finished: bool,
    urgent: u64,
}
record!(Passed { finished, urgent });

/// IP header fields that pass through, as last seen from one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Seen {
    pub(super) dscp: u8,
    pub(super) ttl: u8,
}
record!(Seen { dscp, ttl });

/// A split connection.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) opener: Side,
    pub(super) opened_at: Instant,
    pub(super) active_at: Instant,
    /// Towards the terminal.
    terminal: Option<Box<Endpoint>>,
    /// Towards the network.
    network: Option<Box<Endpoint>>,
    /// The opener's SYN, until its endpoint exists.
    pub(super) held: Option<HeldSyn>,
    /// The opener is told that the far side refused.
    refusal: bool,
    passed: [Passed; 2],
    pub(super) seen: [Seen; 2],
    /// When both ends were closed.
    pub(super) dead_at: Option<Instant>,
    /// No longer counted as half-open.
    pub(super) counted: bool,
}
record!(Flow {
    key,
    opener,
    opened_at,
    active_at,
    terminal,
    network,
    held,
    refusal,
    passed,
    seen,
    dead_at,
    counted
});

impl Flow {
    pub(super) fn new(now: Instant, key: FlowKey, opener: Side, syn: Header) -> Self {
        Self {
            key,
            opener,
            opened_at: now,
            active_at: now,
            terminal: None,
            network: None,
            held: Some(HeldSyn(syn)),
            refusal: false,
            passed: [Passed::default(); 2],
            seen: [Seen { dscp: 0, ttl: 64 }; 2],
            dead_at: None,
            counted: false,
        }
    }

    pub(super) fn end(&self, side: Side) -> Option<&Endpoint> {
        match side {
            Side::Terminal => self.terminal.as_deref(),
            Side::Network => self.network.as_deref(),
        }
    }

    pub(super) fn end_mut(&mut self, side: Side) -> Option<&mut Endpoint> {
        match side {
            Side::Terminal => self.terminal.as_deref_mut(),
            Side::Network => self.network.as_deref_mut(),
        }
    }

    pub(super) fn set_end(&mut self, side: Side, endpoint: Endpoint) {
        let slot = match side {
            Side::Terminal => &mut self.terminal,
            Side::Network => &mut self.network,
        };
        *slot = Some(Box::new(endpoint));
    }

    /// Both handshakes are complete.
    pub(super) fn is_open(&self) -> bool {
        self.held.is_none()
            && Side::BOTH.iter().all(|side| {
                self.end(*side).is_some_and(|end| {
                    !matches!(end.state(), State::SynSent | State::SynReceived | State::Listen)
                })
            })
    }

    /// Nothing of it is left to do.
    pub(super) fn is_dead(&self) -> bool {
        !self.refusal
            && self.held.is_none()
            && Side::BOTH
                .iter()
                .all(|side| self.end(*side).is_none_or(|end| end.state() == State::Closed))
    }

    /// Both sides have said everything and heard that it arrived; at most one of them waits for stragglers.
    pub(super) fn is_over(&self) -> bool {
        self.held.is_none()
            && Side::BOTH.iter().all(|side| {
                self.end(*side)
                    .is_none_or(|end| matches!(end.state(), State::TimeWait | State::Closed))
            })
    }

    /// One side was aborted: stray segments still deserve a reset for a while.
    pub(super) fn lingers(&self) -> bool {
        Side::BOTH.iter().any(|side| {
            self.end(*side)
                .is_some_and(|end| end.closed() == Some(Closed::Aborted))
        })
    }

    /// Moves bytes, ends, urgent pointers and resets across, both ways.
    pub(super) fn pump(&mut self, now: Instant) {
        let (Some(terminal), Some(network)) = (self.terminal.as_deref_mut(), self.network.as_deref_mut())
        else {
            return;
        };
        let [up, down] = &mut self.passed;
        pump_one(now, terminal, network, up);
        pump_one(now, network, terminal, down);
        pass_end(terminal, network);
        pass_end(network, terminal);
    }

    /// Ends the connection on both sides with resets.
    pub(super) fn abort(&mut self) {
        self.held = None;
        for side in Side::BOTH {
            if let Some(end) = self.end_mut(side) {
                end.abort();
            }
        }
    }

    /// The far side refused the connection: so do we, in its name.
    pub(super) fn refuse(&mut self) {
        match self.held {
            Some(_) => self.refusal = true,
            None => self.abort(),
        }
    }

    /// The far side never answered: neither do we.
    pub(super) fn forget(&mut self) {
        self.held = None;
    }

    /// The reset that answers the held SYN, once.
    pub(super) fn take_refusal(&mut self, out: &mut [u8]) -> Option<Outgoing> {
        if !core::mem::take(&mut self.refusal) {
            return None;
        }
        let HeldSyn(header) = self.held.take()?;
        let reset = Segment { header, payload: &[] }.reset()?;
        reset.write(out).map(|len| Outgoing {
            len,
            ecn: Ecn::NotEct,
        })
    }

    /// True when `header` is the held SYN again, or its sender taking it back.
    pub(super) fn is_of_opener(&self, from: Side) -> bool {
        self.held.is_some() && from == self.opener
    }

    /// True when a SYN with `seq` begins a new connection in place of this one.
    pub(super) fn is_succeeded_by(&self, from: Side, seq: SeqNum) -> bool {
        match (self.end(from), self.held) {
            (_, Some(HeldSyn(held))) => from == self.opener && held.seq != seq,
            (Some(end), None) => matches!(end.state(), State::TimeWait | State::Closed),
            (None, None) => true,
        }
    }

    /// The earliest deadline of its endpoints, and what it is for.
    pub(super) fn next_deadline(&self) -> Option<(Instant, Timer)> {
        Side::BOTH
            .into_iter()
            .filter_map(|side| self.end(side).and_then(Endpoint::poll_timeout))
            .min_by_key(|(at, _)| *at)
    }

    pub(super) fn syn_flag(header: &Header) -> bool {
        header.flags.has(Flags::SYN) && !header.flags.has(Flags::ACK) && !header.flags.has(Flags::RST)
    }

    /// Nothing is under way or waits to be: a deadline far off is all there is.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_open()
            && Side::BOTH.iter().all(|side| {
                self.end(*side)
                    .is_none_or(|end| end.in_flight() == 0 && end.is_quiet())
            })
    }

    /// Bytes in its buffers.
    pub(super) fn buffered(&self) -> usize {
        Side::BOTH
            .iter()
            .filter_map(|side| self.end(*side))
            .map(Endpoint::buffered)
            .sum()
    }

    /// Lets no receive window grow beyond `limit` bytes.
    pub(super) fn bound_windows(&mut self, limit: usize) {
        for side in Side::BOTH {
            if let Some(end) = self.end_mut(side) {
                end.set_receive_limit(limit);
            }
        }
    }

    /// Bytes its endpoints take.
    pub(super) fn memory(&self) -> usize {
        let of = |side| {
            self.end(side)
                .map_or(0, |end| size_of::<Endpoint>() + size_of_val(end.config()))
        };
        of(Side::Terminal) + of(Side::Network)
    }

    /// Frees what an idle connection does not need.
    pub(super) fn trim(&mut self) {
        for side in Side::BOTH {
            if let Some(end) = self.end_mut(side) {
                end.trim();
            }
        }
    }

    /// How long nothing was heard from either side.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_since(self.active_at)
    }
}

fn pump_one(now: Instant, from: &mut Endpoint, to: &mut Endpoint, passed: &mut Passed) {
    // The buffer follows the window: enough to keep it full, no standing queue beyond it. On a link that loses by itself
    // some of a flight is lost three times running: until that has arrived, everything sent since has to be kept.
    let floor = 128 << 10;
    let flights = if to.controller().loss_floor_ppm() > 0 {
        6
    } else {
        3
    };
    let wanted = to.controller().window().saturating_mul(flights);
    let limit = usize::try_from(wanted)
        .unwrap_or(usize::MAX)
        .max(floor)
        .min(to.config().send_limit);
    to.set_send_limit(limit);
    if let Some(urgent) = from.urgent_received().filter(|urgent| *urgent > passed.urgent) {
        passed.urgent = urgent;
        to.set_urgent(urgent);
    }
    let (front, back) = from.readable();
    if !front.is_empty() {
        let mut count = to.write(front);
        if count == front.len() {
            count += to.write(back);
        }
        if to.closed().is_some() {
            // Nobody is left to take it.
            count = front.len() + back.len();
        }
        if count > 0 {
            from.consume(now, count);
        }
    }
    if !passed.finished && from.is_finished() {
        passed.finished = true;
        to.close(now);
    }
}

/// A connection that broke on one side breaks on the other.
fn pass_end(from: &Endpoint, to: &mut Endpoint) {
    match from.closed() {
        Some(Closed::Reset | Closed::TimedOut | Closed::Refused | Closed::Aborted)
            if to.closed().is_none() =>
        {
            to.abort();
        }
        _ => {}
    }
}
