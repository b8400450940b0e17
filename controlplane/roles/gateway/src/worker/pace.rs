//! How many packets come, and whether to let some gather.
//!
//! A worker that is woken for every packet spends more on waking up than on the packet. Where packets come in such numbers that
//! several are there after a moment's [rest](REST), it rests instead of waiting for the first: what a network card calls
//! interrupt moderation. Below that rate nobody waits: the next packet wakes it at once.

use std::time::Duration;

use towpath_base::Instant;

/// How long packets may gather. The kernel's timers add up to 50 µs of slack.
pub(super) const REST: Duration = Duration::from_micros(20);
/// Packets that make resting needless: there is enough to do.
pub(super) const ENOUGH: usize = 16;
/// Packets are counted for this long before the next judgement.
const WINDOW: Duration = Duration::from_micros(250);
/// Packets of a window from which on it is worth it: one every 10 µs. One connection that waits for each answer never has
/// as many.
const MANY: usize = 25;

/// Counts packets.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    packets: usize,
    dense: bool,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            since: now,
            packets: 0,
            dense: false,
        }
    }

    /// A round that began at `now` found `packets`; true if a rest before the next one pays.
    pub(super) fn rest_after(&mut self, now: Instant, packets: usize) -> bool {
        self.packets += packets;
        let spent = now.saturating_since(self.since);
        if spent >= WINDOW {
            // The rate counts, not the number: the last window may have been long.
            self.dense = self.packets as u128 * WINDOW.as_nanos() >= MANY as u128 * spent.as_nanos();
            self.since = now;
            self.packets = 0;
        }
        self.dense && packets < ENOUGH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(us: u64) -> Instant {
        Instant::from_nanos(us * 1000)
    }

    #[test]
    fn few_packets_wake_the_worker_each_and_many_gather() {
        let mut pace = Pace::new(micros(0));
        // A round trip every 25 µs, a packet there and one back.
        assert!((1..100).all(|round| !pace.rest_after(micros(round * 25), 2)));
        // Three packets every 10 µs: after a window it rests, after a full batch it does not.
        let start = 2_500;
        let rests = (1..100).map(|round| pace.rest_after(micros(start + round * 10), 3));
        let rests: Vec<bool> = rests.collect();
        assert!(!rests[0] && rests[60..].iter().all(|rest| *rest));
        assert!(!pace.rest_after(micros(3_500), ENOUGH));
        // Silence: the first packet after it is at once followed by waiting.
        assert!(!pace.rest_after(micros(1_000_000), 1));
        assert!(!pace.rest_after(micros(1_000_030), 1));
    }
}
