//! BBR version 3 (draft-ietf-ccwg-bbr): a model of the path, its bandwidth and its shortest round trip,
//! decides pace and window; loss only bounds the model.
//!
//! [`Core`] is shared with [`super::radio`], which judges loss differently. Left out of the draft: ACK
//! aggregation as a separate term and packet conservation in the first round of recovery.

use core::time::Duration;

use towpath_base::Instant;

use super::filter::{MaxOfTwo, Stamped};
use super::{AckEvent, bytes_in, rate_of};
use crate::codec::{choice, record};

/// Share of a window that may be lost before it counts as too high, parts per million (BBRLossThresh).
pub(super) const LOSS_THRESHOLD_PPM: u64 = 20_000;
/// How far a loss cuts the short-term model (BBRBeta), percent.
const BETA: u64 = 70;
/// Room left for others while cruising (BBRHeadroom), percent.
const HEADROOM: u64 = 85;
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
const PROBE_RTT_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_RTT_DURATION: Duration = Duration::from_millis(200);
/// Loss events in a round of STARTUP that count as many (BBRStartupFullLossCnt).
const STARTUP_LOSSES: u32 = 6;
const MIN_WINDOW_SEGMENTS: u64 = 4;
/// Pace of STARTUP in percent of the rate so far (BBRStartupPacingGain).
pub(super) const STARTUP_GAIN: u64 = 277;
/// The same on a path whose rate is remembered: enough to find out within a round or two that it has grown.
pub(super) const KNOWN_GAIN: u64 = 150;
/// Window of STARTUP in percent of the bandwidth-delay product so far. The draft has 200: together with what is repeated
/// that is more than a path and a queue of its size hold.
const STARTUP_WINDOW: u64 = 180;
/// Rounds a drain is prolonged at most to learn from it.
const LEARNING_ROUNDS: u64 = 8;

/// Where in its cycle the model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Startup,
    Drain,
    Down,
    Cruise,
    Refill,
    Up,
    ProbeRtt,
}
choice!(Phase { Startup = 0, Drain = 1, Down = 2, Cruise = 3, Refill = 4, Up = 5, ProbeRtt = 6 });

impl Phase {
    /// Gains of pace and window, percent.
    const fn gains(self) -> (u64, u64) {
        match self {
            Self::Startup => (STARTUP_GAIN, STARTUP_WINDOW),
            Self::Drain => (50, 200),
            Self::Down => (90, 200),
            Self::Cruise | Self::Refill => (100, 200),
            Self::Up => (125, 225),
            Self::ProbeRtt => (100, 50),
        }
    }
}

/// How loss at hand is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Judgement {
    /// The flight of the newest sample was more than the path holds.
    pub(super) too_high: bool,
    /// Losses of this acknowledgment are a sign of congestion.
    pub(super) congestive: bool,
    /// No queue is left: what an earlier one imposed in the short term is lifted.
    pub(super) relaxed: bool,
    /// Loss together with a queue makes the flight yield at once, not only while probing.
    pub(super) yields: bool,
    /// The newest round trips show a queue: STARTUP is over.
    pub(super) queue: bool,
    /// Pace multiplier, percent, against loss and rounding.
    pub(super) pace_percent_x100: u64,
    /// Draining goes on, though the queue is gone: what it teaches of the link's own loss is not enough yet.
    pub(super) learning: bool,
    /// The shortest round trip is confirmed without draining the path.
    pub(super) min_rtt_confirmed: bool,
}

/// The model and its state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Core {
    mss: u64,
    initial: u64,
    phase: Phase,
    bandwidth: MaxOfTwo,
    bandwidth_short: Option<u64>,
    inflight_short: Option<u64>,
    inflight_long: Option<u64>,
    bandwidth_latest: u64,
    inflight_latest: u64,
    round_end: u64,
    round_start: bool,
    rounds: u64,
    loss_in_round: bool,
    losses_in_round: u32,
    full_bandwidth: u64,
    full_rounds: u8,
    full: bool,
    min_rtt: Option<Stamped<Duration>>,
    probe_rtt_min: Option<Stamped<Duration>>,
    probe_rtt_done: Option<Instant>,
    cycle_at: Instant,
    cycle_round: u64,
    probe_wait: Duration,
    up_growth: u64,
    /// Samples at hand are of what was sent while probing: only these can prove a flight too high.
    probe_samples: bool,
    window: u64,
    prior_window: u64,
    /// Highest pace of STARTUP: it never falls there (BBRSetPacingRateWithGain).
    startup_pace: u64,
    /// Pace of STARTUP, percent.
    startup_gain: u64,
    pace_percent_x100: u64,
    noise: u32,
}
record!(Core {
    mss,
    initial,
    phase,
    bandwidth,
    bandwidth_short,
    inflight_short,
    inflight_long,
    bandwidth_latest,
    inflight_latest,
    round_end,
    round_start,
    rounds,
    loss_in_round,
    losses_in_round,
    full_bandwidth,
    full_rounds,
    full,
    min_rtt,
    probe_rtt_min,
    probe_rtt_done,
    cycle_at,
    cycle_round,
    probe_wait,
    up_growth,
    probe_samples,
    window,
    prior_window,
    startup_pace,
    startup_gain,
    pace_percent_x100,
    noise,
});

impl Core {
    pub(super) fn new(mss: u64, initial: u64) -> Self {
        Self {
            mss: mss.max(1),
            initial,
            phase: Phase::Startup,
            bandwidth: MaxOfTwo::default(),
            bandwidth_short: None,
            inflight_short: None,
            inflight_long: None,
            bandwidth_latest: 0,
            inflight_latest: 0,
            round_end: 0,
            round_start: false,
            rounds: 0,
            loss_in_round: false,
            losses_in_round: 0,
            full_bandwidth: 0,
            full_rounds: 0,
            full: false,
            min_rtt: None,
            probe_rtt_min: None,
            probe_rtt_done: None,
            cycle_at: Instant::ZERO,
            cycle_round: 0,
            probe_wait: Duration::from_secs(2),
            up_growth: mss,
            probe_samples: true,
            window: initial,
            prior_window: 0,
            startup_pace: 0,
            startup_gain: STARTUP_GAIN,
            pace_percent_x100: 9_900,
            noise: 0x9e37_79b9,
        }
    }

    pub(super) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    pub(super) const fn is_round_start(&self) -> bool {
        self.round_start
    }

    pub(super) fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt.map(|min| min.value)
    }

    pub(super) fn max_bandwidth(&self) -> u64 {
        self.bandwidth.get()
    }

    /// Begins with another window than was said at first.
    pub(super) const fn set_initial(&mut self, window: u64) {
        self.window = window;
        self.initial = window;
    }

    /// A path known from before: begin at `rate` instead of searching for it.
    pub(super) fn start_at(&mut self, rate: u64) {
        self.startup_gain = KNOWN_GAIN;
        // A share that the gain brings back to the rate.
        self.bandwidth.update(rate.saturating_mul(100) / KNOWN_GAIN);
    }

    /// Gains of pace and window, percent.
    const fn gains(&self) -> (u64, u64) {
        match self.phase {
            Phase::Startup => (self.startup_gain, STARTUP_WINDOW),
            phase => phase.gains(),
        }
    }

    /// STARTUP found the rate of the path.
    pub(super) const fn is_full(&self) -> bool {
        self.full
    }

    fn model_bandwidth(&self) -> u64 {
        let bandwidth = self.bandwidth.get();
        self.bandwidth_short
            .map_or(bandwidth, |short| bandwidth.min(short))
    }

    /// Bandwidth-delay product times `percent` / 100.
    fn bdp(&self, percent: u64) -> u64 {
        match self.min_rtt {
            Some(min) => bytes_in(self.model_bandwidth(), min.value).saturating_mul(percent) / 100,
            None => self.initial.saturating_mul(percent) / 100,
        }
    }

    pub(super) fn pacing_rate(&self, smoothed_rtt: Option<Duration>) -> u64 {
        let (gain, _) = self.gains();
        let bandwidth = match self.model_bandwidth() {
            0 => match smoothed_rtt {
                Some(rtt) => rate_of(self.window.max(self.initial), rtt),
                None => return 0,
            },
            bandwidth => bandwidth,
        };
        let compensation = if self.phase == Phase::Down {
            self.pace_percent_x100.min(10_000)
        } else {
            self.pace_percent_x100
        };
        let rate = u128::from(bandwidth) * u128::from(gain) * u128::from(compensation) / 1_000_000;
        // Until the path is full the pace never falls: samples of short flights say little.
        let floor = match smoothed_rtt {
            Some(rtt) if !self.full => {
                // A window chosen by a remembered rate is paced at that rate.
                let gain = if self.startup_gain == KNOWN_GAIN {
                    100
                } else {
                    gain
                };
                let initial = self.initial.saturating_mul(gain) / 100;
                self.startup_pace.max(rate_of(initial, rtt))
            }
            _ => self.mss,
        };
        u64::try_from(rate).unwrap_or(u64::MAX).max(floor)
    }

    pub(super) fn on_ack(&mut self, event: &AckEvent, judgement: Judgement) {
        self.pace_percent_x100 = judgement.pace_percent_x100;
        self.update_signals(event, judgement);
        self.update_long_term(event, judgement);
        if self.phase == Phase::Startup {
            self.startup_pace = self.startup_pace.max(self.pacing_rate(event.smoothed_rtt));
        }
        match self.phase {
            Phase::Startup => self.check_full(event, judgement),
            Phase::Drain if event.in_flight <= self.bdp(100) => self.enter_down(event.now),
            Phase::Drain => {}
            Phase::Down | Phase::Cruise | Phase::Refill | Phase::Up => self.cycle(event, judgement),
            Phase::ProbeRtt => {}
        }
        self.update_min_rtt(event, judgement);
        self.update_window(event, judgement);
    }

    /// Rounds, bandwidth, and the short-term bounds loss imposes.
    fn update_signals(&mut self, event: &AckEvent, judgement: Judgement) {
        self.round_start = false;
        if event.lost > 0 && judgement.congestive || event.marked {
            self.loss_in_round = true;
            self.losses_in_round += 1;
        }
        let Some(sample) = event.sample else { return };
        self.round_start = sample.prior_delivered >= self.round_end;
        if sample.rate > 0 && (sample.rate >= self.bandwidth.get() || !sample.app_limited) {
            self.bandwidth.update(sample.rate);
        }
        self.bandwidth_latest = self.bandwidth_latest.max(sample.rate);
        self.inflight_latest = self.inflight_latest.max(sample.delivered);
        if !self.round_start {
            return;
        }
        self.round_end = event.total_delivered;
        self.rounds += 1;
        let probing = matches!(self.phase, Phase::Startup | Phase::Refill | Phase::Up);
        if self.loss_in_round && !probing {
            let short = self.bandwidth_short.unwrap_or(self.bandwidth.get());
            self.bandwidth_short = Some(self.bandwidth_latest.max(short / 100 * BETA));
            let short = self.inflight_short.unwrap_or(self.window);
            self.inflight_short = Some(self.inflight_latest.max(short / 100 * BETA));
        }
        if self.loss_in_round && judgement.yields && self.full {
            self.inflight_long = Some((self.inflight_latest / 100 * HEADROOM).max(self.bdp(100)));
        }
        if judgement.relaxed && !self.loss_in_round {
            self.bandwidth_short = None;
            self.inflight_short = None;
        }
        self.bandwidth_latest = sample.rate;
        self.inflight_latest = sample.delivered;
    }

    /// `inflight_longterm`: down when a flight proves too high, up while probing shows room.
    fn update_long_term(&mut self, event: &AckEvent, judgement: Judgement) {
        let Some(sample) = event.sample else { return };
        if judgement.too_high && self.probe_samples {
            self.probe_samples = false;
            if !sample.app_limited {
                self.inflight_long = Some(sample.tx_in_flight.max(self.bdp(BETA)));
            }
            if self.phase == Phase::Up {
                self.enter_down(event.now);
            }
        } else if let Some(long) = self.inflight_long.filter(|_| !judgement.too_high) {
            if sample.tx_in_flight > long {
                self.inflight_long = Some(sample.tx_in_flight);
            }
            if self.phase == Phase::Up && event.prior_in_flight + self.mss >= self.window {
                self.inflight_long = Some(long.saturating_add(event.delivered.min(self.up_growth)));
                if self.round_start {
                    self.up_growth = self.up_growth.saturating_mul(2);
                }
            }
        }
    }

    fn check_full(&mut self, event: &AckEvent, judgement: Judgement) {
        let app_limited = event.sample.is_none_or(|sample| sample.app_limited);
        if self.round_start && !app_limited {
            if self.bandwidth.get() >= self.full_bandwidth.saturating_mul(5) / 4 {
                self.full_bandwidth = self.bandwidth.get();
                self.full_rounds = 0;
            } else {
                self.full_rounds += 1;
                self.full |= self.full_rounds >= 3;
            }
        }
        if judgement.too_high && self.losses_in_round >= STARTUP_LOSSES {
            self.full = true;
            self.inflight_long = Some(self.bdp(100).max(self.inflight_latest));
        }
        if self.round_start {
            self.losses_in_round = 0;
            self.loss_in_round = false;
        }
        if self.full {
            self.phase = Phase::Drain;
        } else if judgement.queue && self.full_rounds >= 1 {
            // A queue and one round without growth tell what three such rounds tell. Samples still average
            // over the time before: one gentle round gives the filter the full rate.
            self.full = true;
            self.phase = Phase::Up;
            self.cycle_at = event.now;
        }
    }

    fn random(&mut self, bound: u64) -> u64 {
        self.noise = self.noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u64::from(self.noise >> 8) % bound.max(1)
    }

    fn enter_down(&mut self, now: Instant) {
        self.phase = Phase::Down;
        self.cycle_at = now;
        self.cycle_round = self.rounds;
        self.probe_wait = Duration::from_millis(2_000 + self.random(1_000));
        self.bandwidth.advance();
    }

    fn cycle(&mut self, event: &AckEvent, judgement: Judgement) {
        let now = event.now;
        let min_rtt = self.min_rtt().unwrap_or_default();
        let elapsed = now.saturating_since(self.cycle_at);
        match self.phase {
            Phase::Down | Phase::Cruise => {
                // As often as Reno would on a small path (BBRIsRenoCoexistenceProbeTime).
                let reno = (self.bdp(100) / self.mss).clamp(1, 63);
                if elapsed > self.probe_wait || self.rounds.saturating_sub(self.cycle_round) >= reno {
                    self.phase = Phase::Refill;
                    self.bandwidth_short = None;
                    self.inflight_short = None;
                    self.up_growth = self.mss;
                    self.round_end = event.total_delivered;
                } else if self.phase == Phase::Down
                    && self.rounds > self.cycle_round + 1
                    && !(judgement.learning && self.rounds <= self.cycle_round + LEARNING_ROUNDS)
                    && event.in_flight <= self.bdp(100).min(self.with_headroom())
                {
                    self.phase = Phase::Cruise;
                }
            }
            Phase::Refill if self.round_start => {
                self.probe_samples = true;
                self.phase = Phase::Up;
                self.cycle_at = now;
                self.full_bandwidth = self.bandwidth.get();
            }
            Phase::Up if elapsed > min_rtt && event.prior_in_flight >= self.bdp(125) => self.enter_down(now),
            // Not even the window lets more out: the sender itself is the limit.
            Phase::Up if elapsed > min_rtt * 4 => self.enter_down(now),
            _ => {}
        }
        if self.round_start {
            self.loss_in_round = false;
            self.losses_in_round = 0;
            if matches!(self.phase, Phase::Down | Phase::Cruise) && self.rounds > self.cycle_round + 1 {
                self.probe_samples = false;
            }
        }
    }

    fn with_headroom(&self) -> u64 {
        self.inflight_long.map_or(u64::MAX, |long| {
            (long / 100 * HEADROOM).max(MIN_WINDOW_SEGMENTS * self.mss)
        })
    }

    fn update_min_rtt(&mut self, event: &AckEvent, judgement: Judgement) {
        let now = event.now;
        if let Some(rtt) = event.rtt {
            let sample = Stamped { value: rtt, at: now };
            let stale = |stamp: Option<Stamped<Duration>>, window| {
                stamp.is_none_or(|min| rtt <= min.value || now.saturating_since(min.at) > window)
            };
            if stale(self.min_rtt, MIN_RTT_WINDOW) {
                self.min_rtt = Some(sample);
            }
            if judgement.min_rtt_confirmed {
                for min in [&mut self.min_rtt, &mut self.probe_rtt_min].into_iter().flatten() {
                    min.at = now;
                }
            }
            if self.probe_rtt_min.is_none_or(|min| rtt <= min.value) {
                self.probe_rtt_min = Some(sample);
            }
        }
        let due = self
            .probe_rtt_min
            .is_some_and(|min| now.saturating_since(min.at) > PROBE_RTT_INTERVAL);
        if due && self.full && self.phase != Phase::ProbeRtt {
            self.phase = Phase::ProbeRtt;
            self.prior_window = self.prior_window.max(self.window);
            self.probe_rtt_done = None;
        }
        if self.phase == Phase::ProbeRtt {
            self.hold_probe_rtt(event);
        }
    }

    fn hold_probe_rtt(&mut self, event: &AckEvent) {
        let now = event.now;
        match self.probe_rtt_done {
            None if event.in_flight <= self.bdp(50).max(MIN_WINDOW_SEGMENTS * self.mss) => {
                let round_trip = self.min_rtt().unwrap_or_default();
                self.probe_rtt_done = Some(now + PROBE_RTT_DURATION.max(round_trip));
            }
            Some(done) if now > done => {
                let value = event.rtt.or(self.min_rtt()).unwrap_or_default();
                self.probe_rtt_min = Some(Stamped { value, at: now });
                self.min_rtt = Some(Stamped {
                    value: value.min(self.min_rtt().unwrap_or(value)),
                    at: now,
                });
                self.window = self.window.max(self.prior_window);
                self.prior_window = 0;
                self.bandwidth_short = None;
                self.inflight_short = None;
                self.enter_down(now);
                self.phase = Phase::Cruise;
            }
            _ => {}
        }
    }

    fn update_window(&mut self, event: &AckEvent, judgement: Judgement) {
        let (_, gain) = self.gains();
        let quantum = bytes_in(self.pacing_rate(event.smoothed_rtt), Duration::from_millis(1))
            .clamp(2 * self.mss, 64 << 10);
        // While the path is searched for, everything beyond the gain is lost at its end.
        let slack = if self.full { 3 * quantum } else { 2 * self.mss };
        let target = self.bdp(gain).saturating_add(slack);
        if self.full {
            self.window = (self.window.saturating_add(event.delivered)).min(target);
        } else if self.window < target || event.total_delivered < self.initial {
            self.window = self.window.saturating_add(event.delivered);
        }
        let cap = match self.phase {
            // Nobody waits for the room: the path shows no queue.
            Phase::Cruise if judgement.relaxed => {
                let path = self
                    .bdp(self.pace_percent_x100.div_ceil(100))
                    .saturating_add(3 * quantum);
                self.with_headroom().max(path)
            }
            Phase::Cruise | Phase::ProbeRtt => self.with_headroom(),
            Phase::Down | Phase::Refill | Phase::Up => self.inflight_long.unwrap_or(u64::MAX),
            Phase::Startup | Phase::Drain => u64::MAX,
        };
        let cap = cap.min(self.inflight_short.unwrap_or(u64::MAX));
        let mut window = self.window.min(cap);
        if self.phase == Phase::ProbeRtt {
            window = window.min(self.bdp(50));
        }
        self.window = window.max(MIN_WINDOW_SEGMENTS * self.mss);
    }

    pub(super) fn on_timeout(&mut self, in_flight: u64) {
        self.prior_window = self.prior_window.max(self.window);
        self.window = (in_flight + self.mss).max(MIN_WINDOW_SEGMENTS * self.mss);
    }

    pub(super) fn restore_window(&mut self) {
        if self.phase != Phase::ProbeRtt {
            self.window = self.window.max(self.prior_window);
            self.prior_window = 0;
        }
    }

    pub(super) fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1);
    }
}

/// BBR's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bbr {
    core: Core,
}
record!(Bbr { core });

impl Bbr {
    /// Starts with a window of `initial` bytes.
    pub fn new(mss: u64, initial: u64) -> Self {
        Self {
            core: Core::new(mss, initial),
        }
    }

    pub(super) const fn window(&self) -> u64 {
        self.core.window()
    }

    pub(super) fn pacing_rate(&self, smoothed_rtt: Option<Duration>) -> u64 {
        self.core.pacing_rate(smoothed_rtt)
    }

    pub(super) fn on_ack(&mut self, event: &AckEvent) {
        let too_high = event.sample.is_some_and(|sample| {
            sample.lost.saturating_mul(1_000_000) > sample.tx_in_flight.saturating_mul(LOSS_THRESHOLD_PPM)
        });
        self.core.on_ack(
            event,
            Judgement {
                too_high,
                congestive: true,
                relaxed: false,
                yields: false,
                queue: false,
                learning: false,
                pace_percent_x100: 9_900,
                min_rtt_confirmed: false,
            },
        );
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
        self.core.set_mss(mss);
    }
}
