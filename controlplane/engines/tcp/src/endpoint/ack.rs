//! What an acknowledgment does to the sender: the scoreboard, loss detection, recovery, the windows.

use core::time::Duration;

use towpath_base::Instant;

use super::{Endpoint, Recovery, State};
use crate::congestion::AckEvent;
use crate::frto::{Frto, FrtoVerdict};
use crate::prr::Prr;
use crate::rack::ProbeVerdict;
use crate::scoreboard::{Place, Sent};
use crate::segment::{Flags, Segment};
use crate::seq::Offset;
use crate::timer::Timer;

/// What is known about an acknowledgment while it is processed.
struct Progress {
    /// SND.UNA moved.
    advanced: bool,
    /// Bytes newly delivered.
    delivered: u64,
    /// A segment never sent again was among them, sent before the timeout if there was one.
    original: bool,
    /// A D-SACK was reported.
    duplicate: bool,
    /// Round trip of the newest segment delivered that was sent only once.
    rtt: Option<Duration>,
}

impl Endpoint {
    /// Takes the acknowledgment `ack` (at most SND.NXT) of a segment at `seq`.
    pub(super) fn process_ack(&mut self, now: Instant, segment: &Segment<'_>, seq: Offset, ack: Offset) {
        let prior_in_flight = self.in_flight_estimate();
        let mut delivered = core::mem::take(&mut self.scratch.0);
        delivered.clear();
        let duplicate = self.apply_sack(segment, ack, &mut delivered);
        let advanced = ack > self.unacknowledged;
        if advanced {
            self.sent.acknowledge(ack, &mut delivered);
        }
        let progress = self.measure(now, segment, &delivered, advanced, duplicate);
        self.scratch.0 = delivered;
        if advanced {
            self.advance(now, ack);
        }
        let window_changed = self.update_peer_window(now, segment, seq, ack);
        self.count_duplicates(segment, ack, &progress, window_changed);
        let lost = self.detect_losses(now);
        self.judge_recovery(now, segment, ack, &progress, lost, prior_in_flight);
        let marked = self.react_to_ecn(segment, ack);
        self.feed_controller(now, &progress, lost, prior_in_flight, marked);
        if progress.delivered > 0 || advanced {
            self.last_progress = now;
            self.failures = 0;
            self.rearm_retransmit(now);
        }
        self.arm_tail_probe(now);
        if self.fin.is_some_and(|fin| ack > fin) {
            self.fin_acknowledged(now);
        }
    }

    /// Marks what the SACK option reports; returns whether it reports a duplicate (RFC 2883 §4).
    fn apply_sack(
        &mut self,
        segment: &Segment<'_>,
        ack: Offset,
        delivered: &mut alloc::vec::Vec<Sent>,
    ) -> bool {
        if !self.negotiated.sack {
            return false;
        }
        let blocks = segment.header.options.sack.as_slice();
        let space = self.send_space;
        let near = self.unacknowledged;
        let range = |index: usize| {
            let (left, right) = blocks.get(index)?;
            let (left, right) = (space.offset(*left, near)?, space.offset(*right, near)?);
            (left < right).then_some((left, right))
        };
        let mut duplicate = false;
        for index in 0..blocks.len() {
            let Some((left, right)) = range(index) else {
                continue;
            };
            let inside_next = index == 0 && range(1).is_some_and(|(l, r)| left >= l && right <= r);
            if right <= ack || inside_next {
                if index == 0 {
                    duplicate = true;
                }
            } else if right <= self.next && left >= ack {
                self.sent.sack(left, right, delivered);
            }
        }
        if duplicate {
            self.stats.duplicates_reported += 1;
        }
        let duplicate = duplicate && !self.is_of_early();
        if duplicate {
            self.rack.on_duplicate(ack, self.next);
            self.repair.unproven = self.repair.unproven.saturating_sub(1);
        }
        duplicate
    }

    /// Round trips, RACK and the rate sampler learn from what was delivered.
    fn measure(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        delivered: &[Sent],
        advanced: bool,
        duplicate: bool,
    ) -> Progress {
        let echo = segment
            .header
            .options
            .timestamps
            .filter(|_| self.negotiated.timestamps)
            .map(|t| t.echo);
        let mut progress = Progress {
            advanced,
            delivered: 0,
            original: false,
            duplicate,
            rtt: None,
        };
        let mut newest_once: Option<&Sent> = None;
        for sent in delivered {
            progress.delivered += sent.len();
            if sent.retransmits == 0 {
                progress.original |= sent.start < self.repair.point;
                if newest_once.is_none_or(|newest| sent.sent_at >= newest.sent_at) {
                    newest_once = Some(sent);
                }
            }
            // A SACKed segment's echo is of the last one in order (RFC 7323 §4.3): it tells nothing.
            let cumulative = sent.end
                <= self
                    .send_space
                    .offset(segment.header.ack, self.unacknowledged)
                    .unwrap_or(0);
            let earlier = cumulative && echo.is_some_and(|echo| self.paws.echoes_before(echo, sent.sent_at));
            self.rack.on_delivered(now, sent, self.rtt.min(), earlier);
            self.sampler
                .on_delivered(now, sent.mark, sent.sent_at, sent.end, sent.len());
        }
        // Where a gap was closed without SACK, what lay behind it has waited for that: no measure of the path.
        let waited = !self.negotiated.sack && delivered.iter().any(|sent| sent.retransmits > 0);
        if let Some(sent) = newest_once.filter(|_| !waited) {
            let rtt = now.saturating_since(sent.sent_at);
            progress.rtt = Some(rtt);
            self.rtt.sample(rtt);
        } else if advanced
            && progress.delivered > 0
            && let Some(rtt) = echo.and_then(|echo| self.paws.rtt_of(now, echo))
        {
            // Only retransmissions: the echo tells which copy arrived (RFC 7323 §4.1).
            self.rtt.sample(rtt.max(self.rtt.min().unwrap_or(rtt)));
        }
        progress
    }

    fn advance(&mut self, now: Instant, ack: Offset) {
        let room_before = self.outgoing.free();
        self.unacknowledged = ack;
        self.outgoing.release(ack);
        self.probe_arrived(now, ack);
        self.rtt.reset_backoff();
        if self.outgoing.free() > room_before && self.fin.is_none() {
            self.pending.writable = true;
        }
        if self.urgent_out.is_some_and(|urgent| urgent <= ack) {
            self.urgent_out = None;
        }
        if self.sent.is_empty() {
            self.timers.clear(Timer::Retransmit);
            self.timers.clear(Timer::TailProbe);
            self.timers.clear(Timer::Reorder);
        }
        self.last_progress = now;
    }

    fn fin_acknowledged(&mut self, now: Instant) {
        let state = self.state.after_fin_acknowledged();
        if state == self.state {
            return;
        }
        match state {
            State::TimeWait => self.enter_time_wait(now),
            State::Closed => self.finish(super::Closed::Finished),
            other => {
                self.state = other;
                // RFC 9293 §3.6 leaves FIN-WAIT-2 open-ended: a half-closed connection is legitimate.
            }
        }
    }

    /// SND.WND (RFC 9293 §3.10.7.4); true when it changed.
    fn update_peer_window(&mut self, now: Instant, segment: &Segment<'_>, seq: Offset, ack: Offset) -> bool {
        let (last_seq, last_ack) = self.window_update;
        let newer = seq > last_seq || (seq == last_seq && ack >= last_ack) || ack > last_ack;
        if !newer {
            return false;
        }
        self.window_update = (seq.max(last_seq), ack.max(last_ack));
        let window = self.scaled_window(segment);
        let changed = window != self.peer_window;
        self.set_peer_window(window);
        if self.peer_window == 0 {
            // The peer lives, it only has no room: probing goes on for ever (RFC 9293 §3.8.6.1).
            self.failures = 0;
        } else {
            self.persist_backoff = 0;
            self.timers.clear(Timer::Persist);
        }
        self.arm_persist(now);
        changed
    }

    pub(super) fn set_peer_window(&mut self, window: u64) {
        self.peer_window = window;
        self.peer_window_max = self.peer_window_max.max(window);
    }

    /// Without SACK, duplicate acknowledgments stand for it (RFC 5681 §2, §3.2; RFC 6582 §3.2).
    fn count_duplicates(
        &mut self,
        segment: &Segment<'_>,
        ack: Offset,
        progress: &Progress,
        window_changed: bool,
    ) {
        if self.negotiated.sack {
            return;
        }
        let flags = segment.header.flags;
        if progress.advanced {
            let partial = self.repair.phase != Recovery::Open && ack < self.repair.point;
            self.repair.duplicates = if partial {
                self.repair.duplicates.saturating_sub(1)
            } else {
                0
            };
            if partial && let Some(start) = self.sent.first().map(|sent| sent.start) {
                self.sent.mark_lost(start);
            }
            return;
        }
        let duplicate = segment.payload.is_empty()
            && !window_changed
            && !flags.has(Flags::FIN)
            && ack == self.unacknowledged
            && !self.sent.is_empty();
        if duplicate {
            self.repair.duplicates = self.repair.duplicates.saturating_add(1);
        }
    }

    /// Bytes in flight, with what duplicate acknowledgments say has left.
    pub(super) fn in_flight_estimate(&self) -> u64 {
        let left = u64::from(self.repair.duplicates).saturating_mul(self.segment_len);
        self.sent
            .in_flight()
            .saturating_sub(if self.negotiated.sack { 0 } else { left })
    }

    /// Marks segments lost (RFC 8985 §6.2, step 5); returns how many bytes.
    pub(super) fn detect_losses(&mut self, now: Instant) -> u64 {
        let mut lost = 0;
        if self.negotiated.sack {
            let window = self.reordering_window();
            self.timers.clear(Timer::Reorder);
            while let Some(oldest) = self.sent.oldest_sent() {
                match self.rack.time_to_loss(now, &oldest, window) {
                    Some(Duration::ZERO) => {
                        self.sent.mark_lost(oldest.start);
                        lost += oldest.len();
                    }
                    Some(wait) => {
                        self.timers.set(Timer::Reorder, Some(now + wait));
                        break;
                    }
                    None => break,
                }
            }
        } else if self.repair.duplicates >= 3
            && self.repair.phase == Recovery::Open
            && let Some(first) = self.sent.first().copied()
            && first.place == Place::InFlight
            && first.retransmits == 0
        {
            self.sent.mark_lost(first.start);
            lost = first.len();
        }
        self.sampler.lost += lost;
        self.stats.bytes_lost += lost;
        lost
    }

    pub(super) fn reordering_window(&self) -> Duration {
        let hurry = self.repair.phase != Recovery::Open || self.sent.sacked() >= 3 * self.segment_len;
        self.rack
            .reordering_window(self.rtt.min(), self.rtt.smoothed(), hurry)
    }

    /// Enters, continues, ends or takes back recovery.
    fn judge_recovery(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        ack: Offset,
        progress: &Progress,
        lost: u64,
        prior_in_flight: u64,
    ) {
        match self.tail_probe.on_ack(ack, progress.duplicate) {
            ProbeVerdict::Repaired if self.repair.phase == Recovery::Open => {
                self.controller.on_congestion(now, prior_in_flight);
                self.controller.on_recovered(now);
            }
            _ => {}
        }
        match self.repair.phase {
            Recovery::Open => {}
            Recovery::Fast | Recovery::Timeout if self.is_spurious(segment, progress) => self.undo(now),
            Recovery::Timeout => self.judge_timeout(now, ack, progress),
            Recovery::Fast => {}
        }
        if self.repair.phase != Recovery::Open && ack >= self.repair.point {
            self.end_recovery(now);
        }
        let unrepaired = lost > 0 || (!self.negotiated.sack && self.sent.lost_bytes() > 0);
        if self.repair.phase == Recovery::Open && unrepaired {
            self.enter_recovery(now, prior_in_flight);
        }
        if self.repair.phase == Recovery::Fast {
            let good = progress.advanced && lost == 0;
            let threshold = self.controller.threshold();
            let in_flight = self.in_flight_estimate();
            self.repair
                .prr
                .on_ack(progress.delivered, in_flight, threshold, self.segment_len, good);
        }
    }

    /// Losses found by the reordering timer, not by an acknowledgment.
    pub(super) fn losses_by_time(&mut self, now: Instant, lost: u64, prior_in_flight: u64) {
        if self.repair.phase == Recovery::Open {
            self.enter_recovery(now, prior_in_flight);
        }
        let nothing = Progress {
            advanced: false,
            delivered: 0,
            original: false,
            duplicate: false,
            rtt: None,
        };
        self.feed_controller(now, &nothing, lost, prior_in_flight, false);
    }

    fn enter_recovery(&mut self, now: Instant, prior_in_flight: u64) {
        self.tail_probe.cancel();
        self.controller.on_congestion(now, prior_in_flight);
        self.repair.phase = Recovery::Fast;
        self.repair.point = self.next;
        self.repair.first_retransmit = None;
        self.repair.unproven = 0;
        self.repair.undoable = true;
        self.repair.prr = Prr::start(prior_in_flight, self.in_flight_estimate(), self.segment_len);
    }

    fn end_recovery(&mut self, now: Instant) {
        self.repair.phase = Recovery::Open;
        self.repair.frto = Frto::Off;
        self.repair.duplicates = 0;
        self.rack.on_recovery_end();
        self.controller.on_recovered(now);
    }

    /// RFC 5682 §3.1.
    fn judge_timeout(&mut self, now: Instant, ack: Offset, progress: &Progress) {
        let past = ack >= self.repair.point;
        match self
            .repair
            .frto
            .on_ack(progress.advanced, progress.original, progress.duplicate, past)
        {
            FrtoVerdict::Spurious => self.undo(now),
            FrtoVerdict::SendNew | FrtoVerdict::Undecided | FrtoVerdict::Genuine => {}
        }
    }

    /// All retransmissions turned out needless: by the echo of the acknowledgment (RFC 3522), or because
    /// every one was reported as a duplicate (RFC 3708).
    fn is_spurious(&self, segment: &Segment<'_>, progress: &Progress) -> bool {
        let Some(first) = self.repair.first_retransmit.filter(|_| self.repair.undoable) else {
            return false;
        };
        let echoed = progress.advanced
            && self.negotiated.timestamps
            && segment.header.options.timestamps.is_some_and(|timestamps| {
                timestamps.echo != 0 && self.paws.echoes_before(timestamps.echo, first)
            })
            && self
                .scratch
                .0
                .first()
                .is_some_and(|sent| sent.retransmits > 0 && !self.was_copied(sent.start));
        echoed || (progress.duplicate && self.repair.unproven == 0)
    }

    fn undo(&mut self, now: Instant) {
        self.stats.undos += 1;
        self.sent.unmark_lost();
        self.sent.rebuild_order();
        self.controller.undo();
        self.repair.undoable = false;
        self.repair.phase = Recovery::Open;
        self.repair.frto = Frto::Off;
        self.failures = 0;
        self.rearm_retransmit(now);
    }

    /// RFC 3168 §6.1.2: one reduction per window. True if this acknowledgment asks for it.
    fn react_to_ecn(&mut self, segment: &Segment<'_>, ack: Offset) -> bool {
        let echoed = self.negotiated.ecn && segment.header.flags.has(Flags::ECE);
        if !echoed || ack < self.ecn.reduced_until || self.sent.is_empty() {
            return false;
        }
        self.ecn.reduced_until = self.next;
        self.ecn.reduced = true;
        true
    }

    fn feed_controller(&mut self, now: Instant, progress: &Progress, lost: u64, prior: u64, marked: bool) {
        let sample = self.sampler.sample(self.rtt.min());
        if progress.delivered == 0 && lost == 0 && !marked {
            return;
        }
        self.controller.on_ack(&AckEvent {
            now,
            delivered: progress.delivered,
            lost,
            prior_in_flight: prior,
            in_flight: self.in_flight_estimate(),
            rtt: progress.rtt,
            smoothed_rtt: self.rtt.smoothed(),
            sample,
            total_delivered: self.sampler.delivered,
            recovering: self.repair.phase == Recovery::Fast,
            marked,
        });
    }
}
