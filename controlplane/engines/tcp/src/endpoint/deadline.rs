//! Timers: arming them, and what happens when they expire.

use core::time::Duration;

use towpath_base::Instant;

use super::{Closed, Endpoint, Recovery, State};
use crate::frto::Frto;
use crate::rack::TailLossProbe;
use crate::scoreboard::Place;
use crate::timer::Timer;

/// Longest time between probes of a closed window.
const MAX_PERSIST: Duration = Duration::from_secs(60);

impl Endpoint {
    /// The earliest deadline and its timer; `handle_timeout` wants to be called then.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.timers.next()
    }

    /// Handles every deadline up to `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.expire(now) {
            match timer {
                Timer::Retransmit => self.on_retransmit_timeout(now),
                Timer::TailProbe => self.owed.tail_probe = true,
                Timer::Reorder => self.on_reorder(now),
                Timer::Persist => self.on_persist(now),
                Timer::DelayedAck => {
                    if self.ack.is_pending() {
                        self.ack.now();
                    }
                }
                Timer::KeepAlive => self.on_keep_alive(now),
                Timer::TimeWait => self.finish(self.closed.unwrap_or(Closed::Finished)),
                // Polling for transmission is all it takes.
                Timer::Pacing | Timer::Idle => {}
            }
        }
    }

    fn on_retransmit_timeout(&mut self, now: Instant) {
        if matches!(self.state, State::SynSent | State::SynReceived) {
            self.failures = self.failures.saturating_add(1);
            if self.failures > self.config.syn_retries {
                self.finish(Closed::TimedOut);
                return;
            }
            self.rtt.back_off();
            self.owed.syn = true;
            return;
        }
        if self.sent.is_empty() {
            self.arm_persist(now);
            return;
        }
        // Progress or a retransmission since the timer was set moves the deadline.
        let due = self.retransmit_deadline(now);
        if due > now {
            self.timers.set(Timer::Retransmit, Some(due));
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures > self.config.retries {
            self.finish(Closed::TimedOut);
            return;
        }
        self.stats.timeouts += 1;
        self.suspect_black_hole(now);
        self.enter_timeout_recovery(now);
    }

    /// RFC 6298 §5.4 to §5.6, RFC 8985 §6.3, RFC 5682 §2.1.
    fn enter_timeout_recovery(&mut self, now: Instant) {
        let in_flight = self.in_flight_estimate();
        self.rtt.back_off();
        let window = self.reordering_window();
        // A SACKed first segment means the peer threw away what it had reported (RFC 2018 §8).
        let reneged = self.sent.first().is_some_and(|sent| sent.place == Place::Sacked);
        let rack = &self.rack;
        let lost = self.sent.mark_all_lost(reneged, |index, sent| {
            index == 0 || reneged || rack.expired(now, sent, window)
        });
        self.sampler.lost += lost;
        self.stats.bytes_lost += lost;
        if self.repair.phase != Recovery::Timeout {
            self.repair.frto = if self.negotiated.sack && !reneged {
                Frto::First
            } else {
                Frto::Off
            };
            self.repair.first_retransmit = None;
            self.repair.unproven = 0;
            self.repair.undoable = true;
            self.repair.point = self.next;
        } else {
            self.repair.frto = Frto::Off;
        }
        self.repair.phase = Recovery::Timeout;
        self.repair.duplicates = 0;
        self.controller
            .on_timeout(now, in_flight, self.in_flight_estimate());
        self.tail_probe.cancel();
        self.owed.tail_probe = false;
        self.last_progress = now;
        self.timers.clear(Timer::TailProbe);
        self.timers.clear(Timer::Reorder);
        self.timers.set(Timer::Retransmit, Some(now + self.rtt.timeout()));
    }

    fn on_reorder(&mut self, now: Instant) {
        let prior = self.in_flight_estimate();
        let lost = self.detect_losses(now);
        if lost > 0 {
            self.losses_by_time(now, lost, prior);
        }
    }

    /// The deadline of the retransmission timer: the first segment's last sending, or the last progress,
    /// plus RTO.
    fn retransmit_deadline(&self, now: Instant) -> Instant {
        let start = match self.sent.first() {
            Some(first) if first.place == Place::InFlight => first.sent_at.max(self.last_progress),
            Some(_) => self.last_progress,
            None => now,
        };
        start + self.rtt.timeout()
    }

    pub(super) fn rearm_retransmit(&mut self, now: Instant) {
        if self.sent.is_empty() {
            self.timers.clear(Timer::Retransmit);
        } else {
            let due = self.retransmit_deadline(now).max(now + Duration::from_millis(1));
            self.timers.set(Timer::Retransmit, Some(due));
        }
    }

    /// RFC 8985 §7.2: armed while nothing is being recovered and SACK is in use.
    pub(super) fn arm_tail_probe(&mut self, now: Instant) {
        let useful = self.negotiated.sack
            && self.repair.phase == Recovery::Open
            && self.sent.sacked() == 0
            && !self.sent.is_empty()
            && !self.tail_probe.is_outstanding()
            && !self.owed.tail_probe;
        if !useful {
            self.timers.clear(Timer::TailProbe);
            return;
        }
        let one = self.sent.len() == 1;
        let timeout = TailLossProbe::timeout(self.rtt.smoothed(), one, self.rtt.timeout());
        self.timers.set(Timer::TailProbe, Some(now + timeout));
    }

    /// Armed while data waits, nothing is in flight and the window is closed.
    pub(super) fn arm_persist(&mut self, now: Instant) {
        let waiting =
            self.state.can_send() && self.sent.is_empty() && self.has_unsent() && self.new_len() == 0;
        if !waiting {
            self.timers.clear(Timer::Persist);
            return;
        }
        let timeout = self
            .rtt
            .timeout()
            .saturating_mul(1 << self.persist_backoff.min(10))
            .min(MAX_PERSIST);
        self.timers.set_if_clear(Timer::Persist, now + timeout);
    }

    fn on_persist(&mut self, now: Instant) {
        if !self.sent.is_empty() || !self.has_unsent() {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures > self.config.retries {
            self.finish(Closed::TimedOut);
            return;
        }
        self.persist_backoff = self.persist_backoff.saturating_add(1);
        // After the first wait a sliver of window is used rather than probed (RFC 9293 §3.8.6.2.1).
        if self.new_len() == 0 {
            self.owed.probe = true;
        }
        self.arm_persist(now);
    }

    pub(super) fn arm_keep_alive(&mut self) {
        if let Some(keep_alive) = self.config.keep_alive {
            self.timers
                .set(Timer::KeepAlive, Some(self.last_received + keep_alive.idle));
        }
    }

    fn on_keep_alive(&mut self, now: Instant) {
        let Some(keep_alive) = self.config.keep_alive else {
            return;
        };
        if !self.state.is_synchronized() || self.state == State::TimeWait {
            return;
        }
        if !self.sent.is_empty() {
            // The retransmission timer watches the peer meanwhile.
            self.timers.set(Timer::KeepAlive, Some(now + keep_alive.idle));
            return;
        }
        if self.keep_alive_failures >= keep_alive.probes {
            self.finish(Closed::TimedOut);
            self.owed.reset = true;
            return;
        }
        self.keep_alive_failures += 1;
        self.owed.probe = true;
        self.timers.set(Timer::KeepAlive, Some(now + keep_alive.interval));
    }
}
