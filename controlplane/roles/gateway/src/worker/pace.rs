//! How many packets come, and whether to let some gather.
//!
//! A worker that is woken for every packet spends more on waking up than on the packet, and so does the kernel that hands
//! it over. Where packets come in such numbers that several are there after a moment's [rest](REST), they gather before
//! the worker looks: what a network card calls interrupt moderation. Below that rate nobody waits: the next packet
//! wakes it at once.
//!
//! The rate before does not say that it helps. A connection that waits for each answer has as many packets as its round
//! trip allows, and fewer when each of them rests: so it is tried, and given up for a growing while if the packets
//! become few by it.

use std::time::Duration;

use towpath_base::Instant;

/// How long packets may gather.
pub(super) const REST: Duration = Duration::from_micros(100);
/// Packets of a round that make resting needless: there is enough to do.
const ENOUGH: usize = 32;
/// Packets per [`REST`] that are worth it.
const WORTH: usize = 2;
/// Packets are counted for this long before it is tried.
const WINDOW: Duration = Duration::from_micros(500);
/// For this long packets gather before it is judged.
const TRIAL: Duration = Duration::from_micros(1600);
/// How long it is not tried again after it came to nothing: at first, and at most.
const BAN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait for a packet, if there was none.
    Wait,
    /// Let packets gather.
    Rest,
    /// Take more at once.
    Go,
}

/// Counts packets.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    packets: usize,
    gathers: bool,
    not_before: Instant,
    ban: Duration,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            since: now,
            packets: 0,
            gathers: false,
            not_before: now,
            ban: BAN.0,
        }
    }

    /// Whether packets are let gather.
    pub(super) const fn gathers(&self) -> bool {
        self.gathers
    }

    /// A round that began at `now` found `packets`.
    pub(super) fn after(&mut self, now: Instant, packets: usize) -> Next {
        self.packets += packets;
        let spent = now.saturating_since(self.since);
        if spent >= if self.gathers { TRIAL } else { WINDOW } {
            // The rate counts, not the number: the last window may have been long.
            let many = self.packets as u128 * REST.as_nanos() >= WORTH as u128 * spent.as_nanos();
            self.judge(now, many);
        }
        match self.gathers {
            false => Next::Wait,
            true if packets >= ENOUGH => Next::Go,
            true => Next::Rest,
        }
    }

    fn judge(&mut self, now: Instant, many: bool) {
        if self.gathers && many {
            self.ban = BAN.0;
        } else if self.gathers {
            self.not_before = now + self.ban;
            self.ban = (self.ban * 2).min(BAN.1);
        }
        self.begin(now, many && now >= self.not_before);
    }

    const fn begin(&mut self, now: Instant, gathers: bool) {
        self.since = now;
        self.packets = 0;
        self.gathers = gathers;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(us: u64) -> Instant {
        Instant::from_nanos(us * 1000)
    }

    /// Rounds a worker makes in `for_us` microseconds of a load, and how many of them it rested before; `arrived(t)` packets
    /// have come by `t`.
    fn rounds(pace: &mut Pace, from: u64, for_us: u64, arrived: impl Fn(u64) -> u64) -> (u64, u64) {
        let (mut at, mut taken, mut rounds, mut rests) = (from, arrived(from), 0, 0);
        while at < from + for_us {
            let packets = arrived(at) - taken;
            taken += packets;
            rounds += 1;
            at += packets;
            match pace.after(micros(at), usize::try_from(packets).unwrap()) {
                Next::Go => {}
                Next::Rest => {
                    rests += 1;
                    at += u64::try_from(REST.as_micros()).unwrap();
                }
                Next::Wait => {
                    while arrived(at) == taken && at < from + for_us {
                        at += 1;
                    }
                }
            }
        }
        (rounds, rests)
    }

    #[test]
    fn many_packets_gather() {
        let mut pace = Pace::new(micros(0));
        // One every 5 µs: 200,000 per second.
        let (count, rests) = rounds(&mut pace, 0, 100_000, |at| at / 5);
        assert!(pace.gathers());
        assert!(count < 1_200 && rests > 700, "{count} rounds, {rests} rests");
    }

    #[test]
    fn few_packets_wake_the_worker_each() {
        let mut pace = Pace::new(micros(0));
        // One every 100 µs.
        let (count, rests) = rounds(&mut pace, 0, 100_000, |at| at / 100);
        assert_eq!(rests, 0);
        assert!(count > 990, "{count} rounds");
    }

    #[test]
    fn an_answer_is_not_waited_for_longer_because_its_question_rested() {
        // The next packet comes 20 µs after the last one was taken: resting gains nothing, and is hardly ever tried.
        let mut pace = Pace::new(micros(0));
        let (mut at, mut rests, mut round_trips) = (0, 0, 0);
        while at < 3_000_000 {
            at += 20;
            round_trips += 1;
            if pace.after(micros(at), 1) == Next::Rest {
                rests += 1;
                at += 80;
            }
        }
        assert!(rests < 200, "{rests} rests in {round_trips} round trips");
        // When many come, after the ban it is found out.
        let (_, rests) = rounds(&mut pace, at, 2_000_000, |at| at / 5);
        assert!(pace.gathers() && rests > 5_000, "{rests}");
    }

    #[test]
    fn silence_ends_it() {
        let mut pace = Pace::new(micros(0));
        rounds(&mut pace, 0, 10_000, |at| at / 5);
        assert!(pace.gathers());
        let mut at = 10_000;
        let mut rests = 0;
        while pace.after(micros(at), 0) != Next::Wait {
            rests += 1;
            at += 100;
        }
        assert!(rests <= 32, "{rests}");
    }
}
