//! Which segment goes next.

use towpath_base::Instant;

use super::{Endpoint, Recovery, State};
use crate::frto::Frto;
use crate::scoreboard::Sent;
use crate::segment::{Ecn, Flags, Header, MAX_SACK_BLOCKS, Options};
use crate::seq::Offset;
use crate::timer::Timer;

/// A segment written into the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// Length of header and data, bytes. The checksum is zero; see [`crate::segment::finish_checksum`].
    pub len: usize,
    /// ECN field for the IP header.
    pub ecn: Ecn,
}

/// Where the data of a segment comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    New,
    Again,
}

impl Endpoint {
    /// Writes the next segment into `out`, which should hold a full one; `None` when nothing may go now.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Outgoing> {
        if core::mem::take(&mut self.owed.reset) {
            let mut header = self.blank(self.send_space.number(self.next), Flags::RST.with(Flags::ACK));
            header.ack = self.receive_space.number(self.incoming.next());
            return self.emit(now, &header, 0, out, Ecn::NotEct);
        }
        if let Some(seq) = self.owed.stray.take() {
            let header = self.blank(seq, Flags::RST);
            return self.emit(now, &header, 0, out, Ecn::NotEct);
        }
        match self.state {
            State::Closed | State::Listen => None,
            State::SynSent | State::SynReceived => self.transmit_syn(now, out),
            _ => self
                .transmit_data(now, out)
                .or_else(|| self.transmit_probe(now, out))
                .or_else(|| self.transmit_ack(now, out)),
        }
    }

    pub(super) fn emit(
        &mut self,
        now: Instant,
        header: &Header,
        data: usize,
        out: &mut [u8],
        ecn: Ecn,
    ) -> Option<Outgoing> {
        let len = header.write(out)? + data;
        self.stats.segments_sent += 1;
        self.last_sent = now;
        Some(Outgoing { len, ecn })
    }

    fn transmit_syn(&mut self, now: Instant, out: &mut [u8]) -> Option<Outgoing> {
        if !core::mem::take(&mut self.owed.syn) {
            return None;
        }
        let answering = self.state == State::SynReceived;
        let mut flags = if answering {
            Flags::SYN.with(Flags::ACK)
        } else {
            Flags::SYN
        };
        if answering && self.negotiated.ecn {
            flags = flags.with(Flags::ECE);
        } else if !answering && self.config.ecn && self.failures == 0 {
            flags = flags.with(Flags::ECE).with(Flags::CWR);
        }
        let mut header = self.blank(self.send_space.number(0), flags);
        header.options = self.syn_options(now);
        if answering {
            header.ack = self.receive_space.number(self.incoming.next());
        }
        // The window of a SYN is never scaled (RFC 7323 §2.2).
        header.window = self.window.announce(self.incoming.next(), 0, 0, 1);
        if self.next == 0 {
            self.next = 1;
            self.syn_sent_at = now;
        }
        self.ack.sent();
        self.timers
            .set_if_clear(Timer::Retransmit, now + self.rtt.timeout());
        self.emit(now, &header, 0, out, Ecn::NotEct)
    }

    /// Options of an ordinary segment.
    fn options(&mut self, now: Instant) -> Options {
        let timestamps = self
            .negotiated
            .timestamps
            .then(|| self.paws.stamp(now, self.incoming.next()));
        let mut options = Options {
            timestamps,
            ..Options::default()
        };
        if self.negotiated.sack {
            let room = if self.negotiated.timestamps {
                MAX_SACK_BLOCKS - 1
            } else {
                MAX_SACK_BLOCKS
            };
            options.sack = self.incoming.sack_blocks(self.receive_space, room);
        }
        options
    }

    /// A header that acknowledges everything received.
    pub(super) fn header(&mut self, now: Instant, offset: Offset, flags: Flags) -> Header {
        let mut flags = flags.with(Flags::ACK);
        if self.ecn.echo && self.negotiated.ecn {
            flags = flags.with(Flags::ECE);
        }
        let mut header = self.blank(self.send_space.number(offset), flags);
        header.ack = self.receive_space.number(self.incoming.next());
        let mss = usize::from(self.negotiated.mss);
        let scale = self.negotiated.receive_scale;
        header.window = self
            .window
            .announce(self.incoming.next(), self.incoming.occupied(), scale, mss);
        header.options = self.options(now);
        if let Some(urgent) = self.urgent_out
            && let Ok(pointer) = u16::try_from(urgent.saturating_sub(offset))
            && pointer > 0
        {
            header.urgent = pointer;
            header.flags = header.flags.with(Flags::URG);
        }
        self.ack.sent();
        self.timers.clear(Timer::DelayedAck);
        header
    }

    // -- data -----------------------------------------------------------------------------------------

    /// Congestion window in force.
    pub(super) fn congestion_window(&self) -> u64 {
        if self.repair.phase == Recovery::Fast && self.controller.uses_prr() {
            self.repair.prr.window()
        } else {
            self.controller.window()
        }
    }

    fn transmit_data(&mut self, now: Instant, out: &mut [u8]) -> Option<Outgoing> {
        if !self.state.can_send() || (self.sent.is_empty() && self.next >= self.write_end()) {
            return None;
        }
        if core::mem::take(&mut self.owed.tail_probe)
            && let Some(outgoing) = self.transmit_tail_probe(now, out)
        {
            return Some(outgoing);
        }
        let in_flight = self.in_flight_estimate();
        let window = self.congestion_window();
        let something_out = in_flight > 0;
        if something_out && in_flight + self.segment_len.min(window) > window {
            self.timers.clear(Timer::Pacing);
            return None;
        }
        if self.config.pacing
            && let Some(at) = self.pacer.blocked_until(now)
        {
            if self.sent.lost_bytes() > 0 || self.new_len() > 0 || self.next_early().is_some() {
                self.timers.set(Timer::Pacing, Some(at));
            }
            return None;
        }
        self.timers.clear(Timer::Pacing);
        let prefer_new = self.repair.frto == Frto::Second && self.new_len() > 0;
        if !prefer_new && let Some(lost) = self.sent.next_lost(self.segment_len) {
            return self.send_range(now, lost, Source::Again, out);
        }
        match self.new_len() {
            0 => {
                // Neither a writer without data nor a peer without room says anything of the path.
                self.sampler.on_app_limited(in_flight);
                self.arm_persist(now);
                self.transmit_early(now, out)
            }
            len => match self.probe_len(now) {
                Some((size, len)) => {
                    self.search.probe = Some((size, (self.next, self.next + len)));
                    self.send_new(now, len, out)
                }
                None => self.send_new(now, len, out),
            },
        }
    }

    /// Data or our FIN waits to be sent for the first time.
    pub(super) fn has_unsent(&self) -> bool {
        self.next < self.write_end()
    }

    /// Offset behind everything written, our FIN included.
    fn write_end(&self) -> Offset {
        self.fin.map_or(self.outgoing.end(), |fin| fin + 1)
    }

    /// How much new data may go in one segment: the peer's window and silly-window avoidance
    /// (RFC 9293 §3.8.6.2.1).
    pub(super) fn new_len(&self) -> u64 {
        let waiting = self.write_end().saturating_sub(self.next);
        let room = (self.unacknowledged + self.peer_window).saturating_sub(self.next);
        let len = waiting.min(room).min(self.segment_len);
        let silly = len < self.segment_len
            && len < waiting
            && len < self.peer_window_max / 2
            && !(self.sent.is_empty() && self.persist_backoff > 0);
        if silly { 0 } else { len }
    }

    fn send_new(&mut self, now: Instant, len: u64, out: &mut [u8]) -> Option<Outgoing> {
        if self.sent.is_empty() && now.saturating_since(self.last_sent) > self.rtt.timeout() {
            self.controller.on_idle(now);
        }
        let sent = Sent {
            start: self.next,
            end: self.next + len,
            sent_at: now,
            place: crate::scoreboard::Place::InFlight,
            retransmits: 0,
            mark: Default::default(),
        };
        self.send_range(now, sent, Source::New, out)
    }

    /// Sends `range`, or as much of it as fits beside the options.
    fn send_range(&mut self, now: Instant, range: Sent, source: Source, out: &mut [u8]) -> Option<Outgoing> {
        let mut header = self.header(now, range.start, Flags::default());
        let fits = u64::from(self.negotiated.mss)
            .saturating_sub(header.options.wire_len() as u64)
            .max(1);
        let probe = self.search.probe.map(|(_, data)| data);
        let mut end = range.end;
        if end - range.start > fits && probe != Some((range.start, range.end)) {
            end = range.start + fits;
        }
        let data_end = self.fin.map_or(end, |fin| end.min(fin));
        if end > data_end {
            header.flags = header.flags.with(Flags::FIN);
        }
        if data_end == self.outgoing.end() && data_end > range.start {
            header.flags = header.flags.with(Flags::PSH);
        }
        if matches!(source, Source::New) && core::mem::take(&mut self.ecn.reduced) {
            header.flags = header.flags.with(Flags::CWR);
        }
        let header_len = header.write(out)?;
        let room = out.get_mut(header_len..header_len + (data_end - range.start) as usize)?;
        let copied = self.outgoing.copy(range.start, room);
        debug_assert_eq!(copied as u64, data_end - range.start);
        if matches!(source, Source::Again) {
            self.probe_lost(now, range.start);
        }
        self.record_sent(now, range.start, end, source);
        let ecn = match source {
            Source::New if self.negotiated.ecn => Ecn::Ect0,
            _ => Ecn::NotEct,
        };
        self.emit(now, &header, copied, out, ecn)
    }

    fn record_sent(&mut self, now: Instant, start: Offset, end: Offset, source: Source) {
        let len = end - start;
        let mark = self.sampler.on_send(now, self.sent.in_flight(), len);
        match source {
            Source::New => {
                self.sent.push(start, end, now, mark);
                self.next = end;
                self.stats.bytes_sent += len;
            }
            Source::Again => {
                self.sent.cut(start, len);
                self.sent.retransmitted(start, now, mark);
                self.repair.first_retransmit.get_or_insert(now);
                self.repair.unproven = self.repair.unproven.saturating_add(1);
                self.stats.bytes_retransmitted += len;
                self.stats.retransmits += 1;
            }
        }
        if self.config.pacing {
            self.pacer
                .on_send(now, len, self.controller.pacing_rate(self.rtt.smoothed()));
        }
        self.repair.prr.on_send(len);
        self.rearm_retransmit(now);
        self.arm_tail_probe(now);
    }

    /// RFC 8985 §7.3: new data if there is any, else the last segment again.
    fn transmit_tail_probe(&mut self, now: Instant, out: &mut [u8]) -> Option<Outgoing> {
        if self.sent.is_empty() || self.tail_probe.is_outstanding() {
            return None;
        }
        self.stats.tail_probes += 1;
        let len = self.new_len();
        let outgoing = if len > 0 {
            let outgoing = self.send_new(now, len, out)?;
            self.tail_probe.sent(self.next, false);
            outgoing
        } else {
            let last = self.sent.last().copied()?;
            if last.place != crate::scoreboard::Place::InFlight {
                return None;
            }
            // Its tail is enough if it is longer than a segment.
            let start = last.end.saturating_sub(self.segment_len).max(last.start);
            if start > last.start {
                self.sent.cut(last.start, start - last.start);
            }
            let outgoing = self.send_range(now, Sent { start, ..last }, Source::Again, out)?;
            self.tail_probe.sent(self.next, true);
            outgoing
        };
        self.timers.clear(Timer::TailProbe);
        Some(outgoing)
    }

    // -- segments without data ------------------------------------------------------------------------

    /// A segment the peer has to answer: one byte left of the window, no data.
    fn transmit_probe(&mut self, now: Instant, out: &mut [u8]) -> Option<Outgoing> {
        if !core::mem::take(&mut self.owed.probe) {
            return None;
        }
        let header = self.header(now, self.unacknowledged.saturating_sub(1), Flags::default());
        self.emit(now, &header, 0, out, Ecn::NotEct)
    }

    fn transmit_ack(&mut self, now: Instant, out: &mut [u8]) -> Option<Outgoing> {
        if !self.ack.is_due() {
            if self.ack.is_pending() {
                self.timers
                    .set_if_clear(Timer::DelayedAck, now + self.config.ack_delay);
            }
            return None;
        }
        let header = self.header(now, self.next, Flags::default());
        self.emit(now, &header, 0, out, Ecn::NotEct)
    }
}
