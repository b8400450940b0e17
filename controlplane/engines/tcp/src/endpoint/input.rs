//! Segments in the synchronised states (RFC 9293 §3.10.7.4, RFC 5961, RFC 7323 §5).

use core::time::Duration;

use towpath_base::Instant;

use super::{Closed, Endpoint, State};
use crate::segment::{Ecn, Flags, Segment};
use crate::seq::Offset;

/// Challenge ACKs per second and connection (RFC 5961 §7).
const CHALLENGES_PER_SECOND: u8 = 10;

/// Why a segment changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not valid in the present state.
    Unexpected,
    /// Acknowledges what was never sent.
    BadAck,
    /// Outside the receive window.
    OutsideWindow,
    /// Older than the last timestamp (RFC 7323 §5).
    OldTimestamp,
    /// A SYN or RST inside the window that does not prove itself (RFC 5961 §3, §4).
    Challenged,
    /// No connection any more.
    Gone,
}

/// What became of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Taken.
    Accepted,
    /// Changed nothing, beyond an acknowledgment that may answer it.
    Refused(Refusal),
}

impl Endpoint {
    /// Takes a segment that arrived in a packet marked `ecn`. The checksum has been verified.
    pub fn handle_input(&mut self, now: Instant, segment: &Segment<'_>, ecn: Ecn) -> Disposition {
        self.stats.segments_received += 1;
        let disposition = match self.state {
            State::Closed => self.input_closed(segment),
            State::Listen => self.input_listen(now, segment),
            State::SynSent => self.input_syn_sent(now, segment),
            _ => self
                .input_synchronized(now, segment, ecn)
                .map_or_else(Disposition::Refused, |()| Disposition::Accepted),
        };
        if matches!(disposition, Disposition::Refused(_)) {
            self.stats.refused += 1;
        }
        disposition
    }

    /// A connection we reset goes on answering with resets, aimed by what the peer says it expects.
    fn input_closed(&mut self, segment: &Segment<'_>) -> Disposition {
        let header = &segment.header;
        if self.closed == Some(Closed::Aborted)
            && !header.flags.has(Flags::RST)
            && header.flags.has(Flags::ACK)
        {
            if let Some(ack) = self.send_space.offset(header.ack, self.next) {
                self.next = ack;
            }
            self.owed.reset = true;
        }
        Disposition::Refused(Refusal::Gone)
    }

    fn input_synchronized(&mut self, now: Instant, segment: &Segment<'_>, ecn: Ecn) -> Result<(), Refusal> {
        let header = &segment.header;
        let flags = header.flags;
        let next = self.incoming.next();
        let mut seq = self
            .receive_space
            .offset(header.seq, next)
            .ok_or(Refusal::OutsideWindow)?;
        let mut flags_left = flags;
        if flags.has(Flags::SYN) && self.state == State::SynReceived && seq == 0 {
            if !flags.has(Flags::ACK) {
                // The peer did not get our SYN-ACK.
                self.owed.syn = true;
                return Ok(());
            }
            // The second half of a simultaneous open: what follows the SYN counts.
            seq = 1;
            flags_left = Flags(flags.0 & !Flags::SYN.0);
        }
        self.check_timestamps(now, segment, seq)?;
        self.check_sequence(now, segment, seq)?;
        if flags_left.has(Flags::RST) {
            return self.input_reset(now, seq);
        }
        if flags_left.has(Flags::SYN) {
            // RFC 5961 §4.2.
            self.challenge(now);
            return Err(Refusal::Challenged);
        }
        if !flags_left.has(Flags::ACK) {
            return Err(Refusal::Unexpected);
        }
        let ack = self.check_ack(now, segment)?;
        if let Some(timestamps) = header.options.timestamps.filter(|_| self.negotiated.timestamps) {
            self.paws.update(now, timestamps, seq);
            if !segment.payload.is_empty()
                && let Some(rtt) = self.paws.rtt_of(now, timestamps.echo)
            {
                self.window.sample_rtt(rtt);
            }
        }
        self.note_alive(now);
        self.input_ecn(flags, ecn);
        self.process_ack(now, segment, seq, ack);
        if flags.has(Flags::URG) {
            self.input_urgent(seq, header.urgent);
        }
        self.input_data(segment, seq);
        self.input_fin(now, flags.has(Flags::FIN), seq + segment.payload.len() as u64);
        Ok(())
    }

    /// RFC 7323 §5.3, R1.
    fn check_timestamps(&mut self, now: Instant, segment: &Segment<'_>, seq: Offset) -> Result<(), Refusal> {
        let header = &segment.header;
        if !self.negotiated.timestamps || header.flags.has(Flags::RST) {
            return Ok(());
        }
        match header.options.timestamps {
            Some(timestamps) if self.paws.is_old(now, timestamps) => {
                // A pure, old acknowledgment needs no answer.
                if segment.sequence_len() > 0 || seq != self.incoming.next() {
                    self.ack.now();
                }
                Err(Refusal::OldTimestamp)
            }
            _ => Ok(()),
        }
    }

    /// RFC 9293 §3.10.7.4, first check: the four cases of acceptability.
    fn check_sequence(&mut self, now: Instant, segment: &Segment<'_>, seq: Offset) -> Result<(), Refusal> {
        let len = segment.sequence_len();
        let next = self.incoming.next();
        let edge = self.window.edge().max(next);
        let window = edge - next;
        let acceptable = if len == 0 {
            seq == next || (seq > next && seq < edge)
        } else {
            (seq < edge || (seq == next && window == 0)) && seq + len > next
        };
        if acceptable {
            return Ok(());
        }
        if !segment.header.flags.has(Flags::RST) {
            if len > 0 && seq + len <= next {
                // All of it was received before: report it (RFC 2883 §4).
                self.incoming.insert(seq, segment.payload, 0);
            }
            if self.state == State::TimeWait && segment.header.flags.has(Flags::FIN) {
                self.enter_time_wait(now);
            }
            if len > 0 || seq < next {
                // Data or a probe: answer at once.
                self.ack.now();
                // The acknowledgment it carries is still good if it is an old duplicate.
                if let Some(ack) = self.send_space.offset(segment.header.ack, self.unacknowledged)
                    && segment.header.flags.has(Flags::ACK)
                    && ack > self.unacknowledged
                    && ack <= self.next
                    && self.state.is_synchronized()
                    && self.receive_space.number(next).distance(segment.header.seq) < 1 << 30
                {
                    self.note_alive(now);
                    self.process_ack(now, segment, seq, ack);
                }
            } else {
                self.challenge(now);
            }
        }
        Err(Refusal::OutsideWindow)
    }

    /// RFC 5961 §3.2.
    fn input_reset(&mut self, now: Instant, seq: Offset) -> Result<(), Refusal> {
        if seq == self.incoming.next() {
            let closed = match self.state {
                State::SynReceived => Closed::Refused,
                State::TimeWait | State::LastAck | State::Closing => self.closed.unwrap_or(Closed::Finished),
                _ => Closed::Reset,
            };
            self.finish(closed);
            return Ok(());
        }
        self.challenge(now);
        Err(Refusal::Challenged)
    }

    /// RFC 5961 §5.2 and, in SYN-RECEIVED, RFC 9293 §3.10.7.4, fifth check.
    fn check_ack(&mut self, now: Instant, segment: &Segment<'_>) -> Result<Offset, Refusal> {
        let ack = self
            .send_space
            .offset(segment.header.ack, self.unacknowledged)
            .ok_or(Refusal::BadAck)?;
        if self.state == State::SynReceived {
            if ack == 0 || ack > self.next {
                self.owed.stray = Some(segment.header.ack);
                return Err(Refusal::BadAck);
            }
            let window = self.scaled_window(segment);
            self.acknowledge_syn(now);
            self.set_peer_window(window);
            self.window_update = (self.incoming.next(), ack);
            return Ok(ack);
        }
        if ack > self.next || ack + self.peer_window_max.max(65_535) < self.unacknowledged {
            self.challenge(now);
            return Err(Refusal::BadAck);
        }
        Ok(ack)
    }

    /// An ACK that makes the sender prove itself, rate limited.
    fn challenge(&mut self, now: Instant) {
        let (since, count) = self.challenges;
        if now.saturating_since(since) >= Duration::from_secs(1) {
            self.challenges = (now, 1);
            self.ack.now();
        } else if count < CHALLENGES_PER_SECOND {
            self.challenges.1 += 1;
            self.ack.now();
        }
    }

    const fn input_ecn(&mut self, flags: Flags, ecn: Ecn) {
        if !self.negotiated.ecn {
            return;
        }
        if flags.has(Flags::CWR) {
            self.ecn.echo = false;
        }
        if matches!(ecn, Ecn::Ce) {
            self.ecn.echo = true;
            self.ack.now();
        }
    }

    fn input_urgent(&mut self, seq: Offset, pointer: u16) {
        let offset = seq + u64::from(pointer);
        if self.state.can_receive() && self.urgent_in.is_none_or(|urgent| offset > urgent) {
            self.urgent_in = Some(offset);
            self.pending.urgent = true;
        }
    }

    fn input_data(&mut self, segment: &Segment<'_>, seq: Offset) {
        if segment.payload.is_empty() {
            return;
        }
        if !self.state.can_receive() {
            self.ack.now();
            return;
        }
        let edge = self.window.edge();
        let room = usize::try_from(edge.saturating_sub(seq)).unwrap_or(0);
        let data = segment
            .payload
            .get(..segment.payload.len().min(room))
            .unwrap_or(&[]);
        if data.len() < segment.payload.len() {
            self.ack.now();
        }
        let limit = self.window.limit().saturating_mul(2);
        let outcome = self.incoming.insert(seq, data, limit);
        if outcome.in_order > 0 {
            self.stats.bytes_received += outcome.in_order as u64;
            self.pending.readable = true;
            let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
            self.ack.on_data(count, self.segment_len as u32);
        }
        if outcome.gap || outcome.duplicate.is_some() || outcome.refused {
            self.ack.now();
        }
    }

    fn input_fin(&mut self, now: Instant, fin: bool, end: Offset) {
        if fin && self.peer_fin.is_none() && self.state.can_receive() {
            self.peer_fin = Some(end);
        } else if fin {
            self.ack.now();
        }
        if self.peer_fin == Some(self.incoming.next()) {
            self.incoming.skip_control();
            self.ack.now();
            self.pending.readable = true;
            let state = self.state.after_fin_received();
            if state == State::TimeWait {
                self.enter_time_wait(now);
            } else {
                self.state = state;
            }
        } else if fin {
            self.ack.now();
        }
    }

    fn note_alive(&mut self, now: Instant) {
        self.last_received = now;
        self.keep_alive_failures = 0;
        self.arm_keep_alive();
    }

    /// The window of a segment, scaled (RFC 7323 §2.3).
    pub(super) fn scaled_window(&self, segment: &Segment<'_>) -> u64 {
        let shift = match self.negotiated.send_scale {
            u8::MAX => 0,
            shift => shift.min(14),
        };
        u64::from(segment.header.window) << shift
    }
}
