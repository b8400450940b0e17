//! Every deadline of an endpoint, by name.

use towpath_base::Instant;

use crate::codec::{choice, record};

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// Retransmission timeout (RFC 6298).
    Retransmit,
    /// Tail loss probe (RFC 8985 §7).
    TailProbe,
    /// Reordering window of RACK (RFC 8985 §6.2).
    Reorder,
    /// Zero-window probe (RFC 9293 §3.8.6.1).
    Persist,
    /// Delayed acknowledgment.
    DelayedAck,
    /// Keep-alive (RFC 9293 §3.8.4).
    KeepAlive,
    /// 2 MSL in TIME-WAIT, or the bound on FIN-WAIT-2.
    TimeWait,
    /// The next segment may leave.
    Pacing,
    /// A relay's own bound: a connection that does not open, or is silent, or lingers. Endpoints have none.
    Idle,
}
choice!(Timer {
    Retransmit = 0,
    TailProbe = 1,
    Reorder = 2,
    Persist = 3,
    DelayedAck = 4,
    KeepAlive = 5,
    TimeWait = 6,
    Pacing = 7,
    Idle = 8,
});

impl Timer {
    /// Every timer.
    pub const ALL: [Self; 9] = [
        Self::Retransmit,
        Self::TailProbe,
        Self::Reorder,
        Self::Persist,
        Self::DelayedAck,
        Self::KeepAlive,
        Self::TimeWait,
        Self::Pacing,
        Self::Idle,
    ];
}

/// One deadline per timer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TimerTable {
    deadlines: [Option<Instant>; Timer::ALL.len()],
}
record!(TimerTable { deadlines });

impl TimerTable {
    /// The deadline of `timer`.
    pub(crate) fn get(&self, timer: Timer) -> Option<Instant> {
        self.deadlines.get(timer as usize).copied().flatten()
    }

    /// Sets or clears a deadline.
    pub(crate) fn set(&mut self, timer: Timer, deadline: Option<Instant>) {
        if let Some(slot) = self.deadlines.get_mut(timer as usize) {
            *slot = deadline;
        }
    }

    /// Sets a deadline unless there is one.
    pub(crate) fn set_if_clear(&mut self, timer: Timer, deadline: Instant) {
        if self.get(timer).is_none() {
            self.set(timer, Some(deadline));
        }
    }

    /// Clears a deadline.
    pub(crate) fn clear(&mut self, timer: Timer) {
        self.set(timer, None);
    }

    /// Clears all deadlines.
    pub(crate) fn clear_all(&mut self) {
        *self = Self::default();
    }

    /// The earliest deadline and its timer.
    pub(crate) fn next(&self) -> Option<(Instant, Timer)> {
        Timer::ALL
            .into_iter()
            .filter_map(|timer| self.get(timer).map(|at| (at, timer)))
            .min_by_key(|(at, _)| *at)
    }

    /// Takes one expired timer off the table.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = self.next()?;
        (at <= now).then(|| {
            self.clear(timer);
            timer
        })
    }
}
