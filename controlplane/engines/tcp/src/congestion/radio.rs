//! `radio`: BBR's model for links that lose packets without being full.
//!
//! A radio link loses packets because of noise. CUBIC takes every loss for congestion and collapses; BBR
//! bears 2 % and no more. `radio` asks what a loss coincides with:
//!
//! * **The loss floor** is learnt only from what was sent *below* the path's rate (the phase in which BBR
//!   drains its queue), and only while the round trip is near its minimum. There is no queue then, so the
//!   loss is the link's own. A policer or a short buffer loses nothing at that pace, so its losses are
//!   never mistaken for noise. The first drains last up to eight rounds, until a thousand packets were seen.
//! * **Loss is congestion** when the round trip has grown and the loss is above one and a half times the
//!   floor: then the flight yields at once, to what was just delivered less a margin, and the short-term
//!   model is cut as BBR cuts it. More than BBR's 2 % above it while probing ends the probe and lowers the
//!   long-term bound. A quarter of all packets above the floor is congestion whatever the round trip.
//! * **Loss without a longer round trip changes nothing**: neither window nor pace. When the queue is gone,
//!   so are the cuts.
//! * **The pace is raised** by what the floor takes, 1 / (1 − floor), so that lost packets do not idle the
//!   link; the floor is believed up to 10 %.
//! * **Guards kept from BBR:** an ECN mark is always congestion; the window is bounded by the
//!   bandwidth-delay product (room for others is left only where a queue shows that there are others); the
//!   queue is drained every cycle; the round trip is measured again when
//!   10 s passed without a sample near the minimum.
//! * **Fast start:** on a path of more than 25 ms the initial window grows with the round trip, up to
//!   eightfold, paced; on a path known from before sending starts at three quarters of the remembered rate and
//!   grows by half a round, not to its double.
//!   A queue together with one round without growth ends the start; BBR waits for three such rounds. The start's
//!   window is less than BBR's, so that its end does not overflow a queue of one bandwidth-delay product.
//!
//! **When it falls back.** On a clean path the floor is nil and `radio` is BBR that paces at the full rate
//! and measures the round trip without draining the path as long as it sees it unchanged. Where a queue is
//! always there, kept by others, no floor is learnt and every loss is answered. Losses that depend on the
//! pace, a policer's for one, do not enter the floor either.

use core::time::Duration;

use towpath_base::Instant;

use super::bbr::{Core, Judgement, LOSS_THRESHOLD_PPM, Phase};
use super::{AckEvent, bytes_in};
use crate::codec::record;
use crate::config::PathMemory;

/// Highest floor believed, parts per million.
const MAX_FLOOR_PPM: u64 = 100_000;
/// Loss above the floor that is congestion even if the round trip stands still, parts per million.
const BLIND_THRESHOLD_PPM: u64 = 250_000;

/// Bytes sent while draining from which the floor is known well enough: a thousand packets.
const ENOUGH: u64 = 1_500_000;

/// Learns the loss floor round by round.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct LossFloor {
    /// Parts per million.
    floor: u64,
    /// Bytes delivered and lost in rounds that count, decaying.
    delivered: u64,
    lost: u64,
    /// This round's.
    round_delivered: u64,
    round_lost: u64,
    /// Phase at the start of the last round: what is reported now was sent then.
    sent_draining: bool,
    was_draining: bool,
    /// Smallest round trip of this round and of the last.
    round_min: Option<Duration>,
    last_min: Option<Duration>,
    /// Smallest round trip of the last eight samples begun, and of the eight before.
    newest: (Option<Duration>, Option<Duration>),
    samples: u8,
}
record!(LossFloor {
    floor,
    delivered,
    lost,
    round_delivered,
    round_lost,
    sent_draining,
    was_draining,
    round_min,
    last_min,
    newest,
    samples
});

/// True when `rtt` shows a queue on a path of `min`.
fn grown(rtt: Duration, min: Duration) -> bool {
    rtt > min + (min / 8).max(Duration::from_millis(4))
}

impl LossFloor {
    fn on_sample(&mut self, rtt: Duration) {
        let lower = |min: Option<Duration>| Some(min.map_or(rtt, |min| min.min(rtt)));
        self.round_min = lower(self.round_min);
        self.newest.0 = lower(self.newest.0);
        self.samples += 1;
        if self.samples >= 8 {
            self.samples = 0;
            self.newest = (None, self.newest.0);
        }
    }

    /// Every one of the newest samples shows a queue.
    fn queue_now(&self, min_rtt: Option<Duration>) -> bool {
        let (present, before) = self.newest;
        let Some((before, min)) = before.zip(min_rtt) else {
            return false;
        };
        grown(before.min(present.unwrap_or(before)), min)
    }

    /// The link loses packets of its own, and too few were seen to say how many.
    const fn is_learning(&self) -> bool {
        let (delivered, lost) = (self.delivered + self.round_delivered, self.lost + self.round_lost);
        lost > 0 && delivered + lost < ENOUGH
    }

    fn on_round(&mut self, phase: Phase, min_rtt: Option<Duration>) {
        self.last_min = self.round_min.take().or(self.last_min);
        let quiet = self
            .last_min
            .zip(min_rtt)
            .is_some_and(|(rtt, min)| !grown(rtt, min));
        if self.sent_draining && quiet && self.round_delivered > 0 {
            self.delivered += self.round_delivered;
            self.lost += self.round_lost;
            let total = self.delivered + self.lost;
            self.floor = (self.lost.saturating_mul(1_000_000) / total.max(1)).min(MAX_FLOOR_PPM);
            // Remember a few thousand packets: enough to tell 1 % from 2 %, short enough to follow weather.
            if total > 4 << 20 {
                self.delivered /= 2;
                self.lost /= 2;
            }
        }
        self.round_delivered = 0;
        self.round_lost = 0;
        self.sent_draining = self.was_draining;
        self.was_draining = matches!(phase, Phase::Down | Phase::ProbeRtt);
    }
}

/// The state of `radio`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Radio {
    core: Core,
    floor: LossFloor,
    mss: u64,
    initial: u64,
    memory: Option<PathMemory>,
    started: bool,
}
record!(Radio {
    core,
    floor,
    mss,
    initial,
    memory,
    started
});

impl Radio {
    /// Starts with a window of at least `initial` bytes.
    pub fn new(mss: u64, initial: u64, memory: Option<PathMemory>) -> Self {
        let mut floor = LossFloor::default();
        if let Some(memory) = memory {
            floor.floor = u64::from(memory.loss_floor_ppm).min(MAX_FLOOR_PPM);
            // What was learnt before weighs as much as a third of what is enough: a few packets do not undo it.
            floor.lost = ENOUGH / 3 * floor.floor / 1_000_000;
            floor.delivered = ENOUGH / 3 - floor.lost;
        }
        Self {
            core: Core::new(mss, initial),
            floor,
            mss,
            initial,
            memory,
            started: false,
        }
    }

    pub(super) const fn window(&self) -> u64 {
        self.core.window()
    }

    pub(super) fn pacing_rate(&self, smoothed_rtt: Option<Duration>) -> u64 {
        self.core.pacing_rate(smoothed_rtt)
    }

    /// The handshake told the round trip: choose how to start.
    pub(crate) fn on_connected(&mut self, rtt: Duration) {
        if core::mem::replace(&mut self.started, true) {
            return;
        }
        let fold = u64::try_from(rtt.as_millis() / 25).unwrap_or(1).clamp(1, 8);
        let mut window = self.initial.saturating_mul(fold);
        if let Some(memory) = self.memory
            && memory.bandwidth > 0
            && rtt < memory.min_rtt.saturating_mul(2)
            && memory.min_rtt < rtt.saturating_mul(2)
        {
            let rate = memory.bandwidth / 4 * 3;
            self.core.start_at(rate);
            window = window.max(bytes_in(rate, rtt));
        }
        self.core.set_initial(window);
    }

    pub(super) fn on_ack(&mut self, event: &AckEvent) {
        let min_rtt = self.core.min_rtt();
        self.floor.round_delivered += event.delivered;
        self.floor.round_lost += event.lost;
        if let Some(rtt) = event.rtt {
            self.floor.on_sample(rtt);
        }
        let present = self.floor.round_min.or(self.floor.last_min);
        let queue = present.zip(min_rtt).is_some_and(|(rtt, min)| grown(rtt, min));
        let loss = event.sample.map_or(0, |sample| {
            sample.lost.saturating_mul(1_000_000) / sample.tx_in_flight.max(16 * self.mss)
        });
        let above = loss.saturating_sub(self.floor.floor * 3 / 2);
        let too_high = (queue && above > LOSS_THRESHOLD_PPM) || above > BLIND_THRESHOLD_PPM;
        let congestive = too_high || (queue && above > 0);
        let confirmed = event
            .rtt
            .zip(min_rtt)
            .is_some_and(|(rtt, min)| rtt <= min + (min / 20).max(Duration::from_millis(1)));
        let judgement = Judgement {
            too_high,
            congestive,
            relaxed: !queue,
            yields: queue,
            queue: self.floor.queue_now(min_rtt),
            learning: self.floor.is_learning(),
            pace_percent_x100: 10_000 * 1_000_000 / (1_000_000 - self.floor.floor.min(MAX_FLOOR_PPM)),
            min_rtt_confirmed: confirmed,
        };
        self.core.on_ack(event, judgement);
        if self.core.is_round_start() {
            self.floor.on_round(self.core.phase(), self.core.min_rtt());
        }
    }

    pub(super) const fn on_congestion(&mut self, _now: Instant, _in_flight: u64) {}

    pub(super) fn on_timeout(&mut self, _now: Instant, _prior: u64, left: u64) {
        self.core.on_timeout(left);
    }

    pub(super) fn on_recovered(&mut self, _now: Instant) {
        self.core.restore_window();
    }

    pub(super) fn undo(&mut self) {
        self.core.restore_window();
    }

    pub(super) const fn on_idle(&mut self, _now: Instant) {}

    pub(super) fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1);
        self.core.set_mss(mss);
    }

    /// What the path holds, bytes; nothing while it shows a queue: then there is nothing to spare.
    pub(crate) fn spare(&self) -> u64 {
        let min_rtt = self.core.min_rtt();
        if self.floor.queue_now(min_rtt) {
            return 0;
        }
        let remembered = self.memory.map_or(0, |memory| memory.bandwidth);
        bytes_in(
            self.core.max_bandwidth().max(remembered),
            min_rtt.unwrap_or_default(),
        )
    }

    /// The loss floor inferred, parts per million.
    pub const fn loss_floor_ppm(&self) -> u64 {
        self.floor.floor
    }

    pub(super) fn path_memory(&self) -> Option<PathMemory> {
        let min_rtt = self.core.min_rtt()?;
        // A short connection never fills the path: what it was told of the rate still holds.
        let told = self
            .memory
            .filter(|_| !self.core.is_full())
            .map_or(0, |memory| memory.bandwidth);
        Some(PathMemory {
            bandwidth: self.core.max_bandwidth().max(told),
            min_rtt,
            loss_floor_ppm: u32::try_from(self.floor.floor).unwrap_or(u32::MAX),
        })
    }
}
