//! One direction of a link: rate, delay, jitter, queue, loss, reordering, duplication, outages.
//!
//! A packet waits in the queue (or is dropped, if that is full), is serialised at the link's rate, and
//! then is lost, duplicated or delivered after the delay. Loss comes after serialisation: noise on a radio
//! link costs the time of the lost packet.
//!
//! The model knows neither clock nor socket: time is handed in, and never backwards.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use towpath_base::Instant;

use crate::rng::SimRng;

/// How packets get lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Never.
    None,
    /// Each with this probability.
    Random(f64),
    /// Gilbert-Elliott: two states, left with a probability per packet, each with a loss of its own.
    Bursts {
        /// Good to bad.
        enter: f64,
        /// Bad to good.
        leave: f64,
        /// Loss in the good state.
        good: f64,
        /// Loss in the bad state.
        bad: f64,
    },
}

impl Loss {
    /// The share that is lost in the mean, 0 to 1.
    pub fn mean(self) -> f64 {
        match self {
            Self::None => 0.0,
            Self::Random(probability) => probability,
            Self::Bursts {
                enter,
                leave,
                good,
                bad,
            } => {
                let share = enter / (enter + leave).max(f64::MIN_POSITIVE);
                good * (1.0 - share) + bad * share
            }
        }
    }
}

/// What a link is like.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkConfig {
    /// Bits per second of IP packets; zero for infinitely fast.
    pub rate: u64,
    /// One-way delay.
    pub delay: Duration,
    /// Added to the delay, evenly up to this; never reorders by itself.
    pub jitter: Duration,
    /// Bytes that fit the queue; never less than two packets.
    pub queue: u64,
    /// Packets that fit the queue; zero for no such limit.
    pub queue_packets: usize,
    /// Loss.
    pub loss: Loss,
    /// Probability of a packet to be held back by `reorder_by`, so that later ones overtake it.
    pub reorder: f64,
    /// How long.
    pub reorder_by: Duration,
    /// Probability of a packet to arrive twice.
    pub duplicate: f64,
    /// Times at which everything is lost.
    pub outages: Vec<(Instant, Instant)>,
    /// Packets longer than this are dropped, bytes.
    pub mtu: usize,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            rate: 0,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            queue: 1 << 30,
            queue_packets: 0,
            loss: Loss::None,
            reorder: 0.0,
            reorder_by: Duration::ZERO,
            duplicate: 0.0,
            outages: Vec::new(),
            mtu: 1500,
        }
    }
}

/// What a link really did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkReport {
    /// Packets handed to the link.
    pub offered: u64,
    /// Their bytes.
    pub offered_bytes: u64,
    /// Lost by noise: random, or in the good state of bursts.
    pub lost_noise: u64,
    /// Lost in the bad state.
    pub lost_burst: u64,
    /// Lost in an outage.
    pub lost_outage: u64,
    /// Bytes lost by noise, bursts or outage.
    pub lost_bytes: u64,
    /// Dropped because the queue was full.
    pub dropped_queue: u64,
    /// Dropped because it was longer than the MTU.
    pub dropped_mtu: u64,
    /// Sent on towards the far end, copies not counted.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Sum over packets of bytes found in the queue, for its mean.
    pub queue_sum: u64,
    /// Most bytes in the queue.
    pub queue_max: u64,
}

impl LinkReport {
    /// Lost by noise, bursts or outage.
    pub const fn lost(&self) -> u64 {
        self.lost_noise + self.lost_burst + self.lost_outage
    }

    /// Dropped because the queue was full or the packet too long.
    pub const fn dropped(&self) -> u64 {
        self.dropped_queue + self.dropped_mtu
    }

    /// Mean of the bytes a packet found in the queue.
    pub fn queue_mean(&self) -> f64 {
        self.queue_sum as f64 / self.offered.max(1) as f64
    }
}

/// A packet on its way. Ordered by arrival, then by entry.
#[derive(Debug, Clone)]
struct Arrival<P> {
    at: Instant,
    order: u64,
    packet: P,
}

impl<P> PartialEq for Arrival<P> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<P> Eq for Arrival<P> {}

impl<P> PartialOrd for Arrival<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for Arrival<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// One direction of a link that carries packets of type `P`.
#[derive(Debug)]
pub struct Link<P> {
    config: LinkConfig,
    rng: SimRng,
    busy_until: Instant,
    last_arrival: Instant,
    bad: bool,
    order: u64,
    arrivals: BinaryHeap<Reverse<Arrival<P>>>,
    /// When each waiting packet is through; kept only where packets are counted.
    departures: VecDeque<Instant>,
    report: LinkReport,
}

/// Why a packet is lost.
enum Lost {
    Noise,
    Burst,
    Outage,
}

impl<P: Clone> Link<P> {
    /// A link with a random stream of its own.
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            config,
            rng: SimRng::new(seed),
            busy_until: Instant::ZERO,
            last_arrival: Instant::ZERO,
            bad: false,
            order: 0,
            arrivals: BinaryHeap::new(),
            departures: VecDeque::new(),
            report: LinkReport::default(),
        }
    }

    /// What it did so far.
    pub const fn report(&self) -> &LinkReport {
        &self.report
    }

    /// What it is like.
    pub const fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Changes the longest packet it carries.
    pub const fn set_mtu(&mut self, mtu: usize) {
        self.config.mtu = mtu;
    }

    /// Packets on their way.
    pub fn in_flight(&self) -> usize {
        self.arrivals.len()
    }

    fn loss(&mut self, at: Instant) -> Option<Lost> {
        let outages = &self.config.outages;
        if outages.iter().any(|(from, to)| *from <= at && at < *to) {
            return Some(Lost::Outage);
        }
        match self.config.loss {
            Loss::None => None,
            Loss::Random(probability) => self.rng.chance(probability).then_some(Lost::Noise),
            Loss::Bursts {
                enter,
                leave,
                good,
                bad,
            } => {
                let change = if self.bad { leave } else { enter };
                if self.rng.chance(change) {
                    self.bad = !self.bad;
                }
                let (probability, why) = if self.bad {
                    (bad, Lost::Burst)
                } else {
                    (good, Lost::Noise)
                };
                self.rng.chance(probability).then_some(why)
            }
        }
    }

    /// Whether the queue takes a packet of `len` bytes; counts what it holds.
    fn has_room(&mut self, now: Instant, len: u64) -> bool {
        let waiting = self.busy_until.saturating_since(now);
        let queued = (waiting.as_secs_f64() * self.config.rate as f64 / 8.0) as u64;
        self.report.queue_sum += queued;
        self.report.queue_max = self.report.queue_max.max(queued);
        while self.departures.front().is_some_and(|at| *at <= now) {
            self.departures.pop_front();
        }
        let most = self.config.queue_packets;
        queued + len <= self.config.queue.max(2 * len) && (most == 0 || self.departures.len() < most.max(2))
    }

    /// Sends a packet of `len` bytes, which is its IP packet's length.
    pub fn push(&mut self, now: Instant, len: usize, packet: P) {
        let bytes = len as u64;
        self.report.offered += 1;
        self.report.offered_bytes += bytes;
        let room = self.has_room(now, bytes);
        if len > self.config.mtu {
            self.report.dropped_mtu += 1;
            return;
        }
        if !room {
            self.report.dropped_queue += 1;
            return;
        }
        let serialise = match self.config.rate {
            0 => Duration::ZERO,
            rate => Duration::from_nanos(bytes * 8 * 1_000_000_000 / rate),
        };
        self.busy_until = self.busy_until.max(now) + serialise;
        let left = self.busy_until;
        if self.config.queue_packets > 0 {
            self.departures.push_back(left);
        }
        if let Some(lost) = self.loss(left) {
            let counter = match lost {
                Lost::Noise => &mut self.report.lost_noise,
                Lost::Burst => &mut self.report.lost_burst,
                Lost::Outage => &mut self.report.lost_outage,
            };
            *counter += 1;
            self.report.lost_bytes += bytes;
            return;
        }
        self.deliver(left, bytes, packet);
    }

    fn deliver(&mut self, left: Instant, bytes: u64, packet: P) {
        let mut at = left + self.config.delay + self.rng.duration(self.config.jitter);
        if self.rng.chance(self.config.reorder) {
            self.report.reordered += 1;
            at += self.rng.duration(self.config.reorder_by);
        } else {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        self.report.delivered += 1;
        self.report.delivered_bytes += bytes;
        if self.rng.chance(self.config.duplicate) {
            self.report.duplicated += 1;
            let later = at + self.rng.duration(Duration::from_millis(5));
            self.schedule(later, packet.clone());
        }
        self.schedule(at, packet);
    }

    fn schedule(&mut self, at: Instant, packet: P) {
        self.order += 1;
        self.arrivals.push(Reverse(Arrival {
            at,
            order: self.order,
            packet,
        }));
    }

    /// When the next packet arrives.
    pub fn next_arrival(&self) -> Option<Instant> {
        self.arrivals.peek().map(|Reverse(arrival)| arrival.at)
    }

    /// A packet that has arrived by `now`, and when it did.
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, P)> {
        if self.next_arrival()? > now {
            return None;
        }
        self.arrivals
            .pop()
            .map(|Reverse(arrival)| (arrival.at, arrival.packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(link: &mut Link<()>, until: Instant) -> u64 {
        std::iter::from_fn(|| link.pop(until)).count() as u64
    }

    #[test]
    fn a_link_delivers_at_its_rate_and_loses_its_share() {
        let config = LinkConfig {
            rate: 8_000_000,
            delay: Duration::from_millis(10),
            loss: Loss::Random(0.05),
            ..LinkConfig::default()
        };
        let mut link = Link::new(config, 1);
        for _ in 0..10_000 {
            link.push(Instant::ZERO, 1000, ());
        }
        let arrived = count(&mut link, Instant::from_millis(5_010));
        assert!((4_650..=4_850).contains(&arrived), "{arrived}");
        assert!((400..=600).contains(&link.report().lost()), "{:?}", link.report());
    }

    #[test]
    fn bursts_lose_as_much_as_the_two_states_say() {
        let loss = Loss::Bursts {
            enter: 0.01,
            leave: 0.2,
            good: 0.0,
            bad: 0.5,
        };
        let config = LinkConfig {
            loss,
            ..LinkConfig::default()
        };
        let mut link = Link::new(config, 3);
        for index in 0..100_000 {
            link.push(Instant::from_millis(index), 100, ());
        }
        assert_eq!(link.report().lost_noise, 0);
        let ratio = link.report().lost_burst as f64 / (100_000.0 * loss.mean());
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_full_queue_drops_by_bytes_or_by_packets() {
        for (queue, queue_packets) in [(10_000, 0), (1 << 30, 10)] {
            let config = LinkConfig {
                rate: 8_000_000,
                queue,
                queue_packets,
                ..LinkConfig::default()
            };
            let mut link = Link::new(config, 1);
            for _ in 0..25 {
                link.push(Instant::ZERO, 1000, ());
            }
            assert_eq!((link.report().delivered, link.report().dropped_queue), (10, 15));
            // One packet a millisecond leaves; then there is room for one more.
            link.push(Instant::from_millis(1), 1000, ());
            assert_eq!(link.report().delivered, 11);
        }
    }

    #[test]
    fn an_outage_loses_all_and_a_long_packet_never_passes() {
        let config = LinkConfig {
            outages: vec![(Instant::from_millis(10), Instant::from_millis(20))],
            ..LinkConfig::default()
        };
        let mut link = Link::new(config, 1);
        for at in 0..30 {
            link.push(Instant::from_millis(at), 100, ());
        }
        link.push(Instant::from_millis(30), 1501, ());
        let report = *link.report();
        assert_eq!(
            (report.lost_outage, report.delivered, report.dropped_mtu),
            (10, 20, 1)
        );
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let config = |reorder| LinkConfig {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(10),
            reorder,
            reorder_by: Duration::from_millis(5),
            ..LinkConfig::default()
        };
        for (reorder, ordered) in [(0.0, true), (0.2, false)] {
            let mut link = Link::new(config(reorder), 5);
            for at in 0..1000_u64 {
                link.push(Instant::from_millis(at), 100, at);
            }
            let got: Vec<u64> = std::iter::from_fn(|| link.pop(Instant::from_secs(9)))
                .map(|(_, packet)| packet)
                .collect();
            assert_eq!(got.len(), 1000);
            assert_eq!(got.is_sorted(), ordered);
        }
    }
}
