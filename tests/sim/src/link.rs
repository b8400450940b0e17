//! One direction of a link: rate, delay, jitter, queue, loss, reordering, duplication, outages.
//!
//! A packet waits in the queue (or is dropped, if that is full), is serialised at the link's rate, and
//! then is lost, duplicated or delivered after the delay. Loss comes after serialisation: noise on a radio
//! link costs the time of the lost packet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use towpath_base::Instant;
use towpath_tcp::packet::TcpPacket;

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

/// What a link is like.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkConfig {
    /// Bits per second of IP packets; zero for infinitely fast.
    pub rate: u64,
    /// One-way delay.
    pub delay: Duration,
    /// Added to the delay, evenly up to this; never reorders by itself.
    pub jitter: Duration,
    /// Bytes that fit the queue.
    pub queue: u64,
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
    /// Lost by noise or outage.
    pub lost: u64,
    /// Dropped because the queue was full or the packet too long.
    pub dropped: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Bytes delivered.
    pub delivered_bytes: u64,
    /// Bytes lost by noise or outage.
    pub lost_bytes: u64,
    /// Sum over packets of bytes found in the queue, for its mean.
    pub queue_sum: u64,
    /// Most bytes in the queue.
    pub queue_max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: Instant,
    order: u64,
    packet: Vec<u8>,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    rng: SimRng,
    busy_until: Instant,
    last_arrival: Instant,
    bad: bool,
    order: u64,
    arrivals: BinaryHeap<Reverse<Arrival>>,
    report: LinkReport,
}

impl Link {
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

    fn is_lost(&mut self, at: Instant) -> bool {
        if self
            .config
            .outages
            .iter()
            .any(|(from, to)| *from <= at && at < *to)
        {
            return true;
        }
        match self.config.loss {
            Loss::None => false,
            Loss::Random(probability) => self.rng.chance(probability),
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
                self.rng.chance(if self.bad { bad } else { good })
            }
        }
    }

    /// Sends a packet.
    pub fn push(&mut self, now: Instant, packet: Vec<u8>) {
        let len = packet.len() as u64;
        self.report.offered += 1;
        trace(now, &packet);
        let waiting = self.busy_until.saturating_since(now);
        let queued = (waiting.as_secs_f64() * self.config.rate as f64 / 8.0) as u64;
        self.report.queue_sum += queued;
        self.report.queue_max = self.report.queue_max.max(queued);
        if queued + len > self.config.queue.max(2 * len) || packet.len() > self.config.mtu {
            self.report.dropped += 1;
            return;
        }
        let serialise = match self.config.rate {
            0 => Duration::ZERO,
            rate => Duration::from_nanos(len * 8 * 1_000_000_000 / rate),
        };
        self.busy_until = self.busy_until.max(now) + serialise;
        let left = self.busy_until;
        if self.is_lost(left) {
            self.report.lost += 1;
            self.report.lost_bytes += len;
            return;
        }
        let mut at = left + self.config.delay + self.rng.duration(self.config.jitter);
        if self.rng.chance(self.config.reorder) {
            self.report.reordered += 1;
            at += self.rng.duration(self.config.reorder_by);
        } else {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        self.report.delivered_bytes += len;
        if self.rng.chance(self.config.duplicate) {
            self.report.duplicated += 1;
            let later = at + self.rng.duration(Duration::from_millis(5));
            self.schedule(later, packet.clone());
        }
        self.schedule(at, packet);
    }

    fn schedule(&mut self, at: Instant, packet: Vec<u8>) {
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

    /// A packet that has arrived by `now`.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_arrival()? > now {
            return None;
        }
        self.arrivals.pop().map(|Reverse(arrival)| arrival.packet)
    }
}

/// With `TOWPATH_SIM_TRACE` set, every packet that enters a link is printed.
fn trace(now: Instant, packet: &[u8]) {
    static ON: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("TOWPATH_SIM_TRACE").is_some());
    if *ON && let Ok(packet) = TcpPacket::parse(packet) {
        let header = &packet.segment.header;
        println!(
            "{:12.6} {} > {} seq {} len {} ack {} flags {:02x} win {} sack {:?}",
            now.as_nanos() as f64 / 1e9,
            packet.source,
            packet.destination,
            header.seq.0,
            packet.segment.payload.len(),
            header.ack.0,
            header.flags.0,
            header.window,
            header.options.sack.as_slice(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            link.push(Instant::ZERO, vec![0; 1000]);
        }
        let mut count = 0;
        while link.pop(Instant::from_millis(5_010)).is_some() {
            count += 1;
        }
        assert!((4_650..=4_850).contains(&count), "{count}");
        assert!(
            (400..=600).contains(&link.report().lost),
            "{}",
            link.report().lost
        );
    }

    #[test]
    fn bursts_lose_as_much_as_the_two_states_say() {
        let loss = Loss::Bursts {
            enter: 0.01,
            leave: 0.2,
            good: 0.0,
            bad: 0.5,
        };
        let mut link = Link::new(
            LinkConfig {
                loss,
                ..LinkConfig::default()
            },
            3,
        );
        for index in 0..100_000 {
            link.push(Instant::from_millis(index), vec![0; 100]);
        }
        let expected = 100_000.0 * 0.5 * 0.01 / 0.21;
        let ratio = link.report().lost as f64 / expected;
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }
}
