//! The relay as the middle of a world.

use std::collections::VecDeque;
use std::net::IpAddr;

use towpath_base::Instant;
use towpath_tcp::packet::TcpPacket;
use towpath_tcp::relay::snoop::{Original, SnoopConfig, SnoopRelay, SnoopStats, apply};
use towpath_tcp::relay::split::{SplitConfig, SplitRelay};
use towpath_tcp::relay::{Side, Verdict};
use towpath_tcp::segment::Flags;
use towpath_tcp::{IsnSecret, PathMemory, SeqNum, State, Stats};

use crate::world::{Middle, Towards};

/// The side that lies towards `towards`, if `left` lies towards A; works both ways.
const fn side_of(left: Side, towards: Towards) -> Side {
    match towards {
        Towards::A => left,
        Towards::B => left.opposite(),
    }
}

fn towards(left: Side, side: Side) -> Towards {
    if side == left { Towards::A } else { Towards::B }
}

const fn across(towards: Towards) -> Towards {
    match towards {
        Towards::A => Towards::B,
        Towards::B => Towards::A,
    }
}

/// A gateway that splits every connection, and may hand all of them to a successor now and then.
pub struct SplitMiddle {
    relay: SplitRelay,
    left: Side,
    config: SplitConfig,
    secret: [u64; 2],
    passed: VecDeque<(Towards, Vec<u8>)>,
    buffer: Vec<u8>,
    /// Hands over each time this many packets arrived.
    handoff_every: u64,
    packets: u64,
}

impl SplitMiddle {
    /// A gateway with `left` towards A; `handoff_every` counts packets, `u64::MAX` for never.
    pub fn new(config: SplitConfig, left: Side, secret: [u64; 2], handoff_every: u64) -> Self {
        Self {
            relay: SplitRelay::new(config.clone(), IsnSecret(secret)),
            left,
            config,
            secret,
            passed: VecDeque::new(),
            buffer: vec![0; 65_600],
            handoff_every,
            packets: 0,
        }
    }

    /// A gateway that remembers what an earlier connection learnt of the path to `host`.
    #[must_use]
    pub fn knowing(mut self, host: IpAddr, memory: Option<PathMemory>) -> Self {
        if let Some(memory) = memory {
            self.relay.know_path(host, memory);
        }
        self
    }

    /// Every connection moves to a new relay by snapshot, as in a handoff.
    fn hand_off(&mut self, now: Instant) {
        let new = || SplitRelay::new(self.config.clone(), IsnSecret(self.secret));
        let mut successor = new();
        let keys: Vec<_> = self.relay.flows().copied().collect();
        for key in keys {
            let bytes = self.relay.snapshot(now, &key).expect("a flow that was listed");
            // Taking over sees to what had arrived and was not passed on yet; from then on nothing may differ.
            let mut between = new();
            between.restore(now, &bytes).expect("a snapshot just taken");
            let settled = between.snapshot(now, &key).expect("a flow just restored");
            successor.restore(now, &settled).expect("a snapshot just taken");
            let same = successor.snapshot(now, &key).as_deref() == Some(&settled[..]);
            // Where one side was just closed by the other's reset, what it had buffered goes with the next turn only.
            let alive = Side::BOTH.iter().all(|side| {
                between
                    .view(&key, *side)
                    .is_none_or(|view| view.state != State::Closed)
            });
            assert!(!alive || same, "the snapshot of a restored flow differs");
        }
        self.relay = successor;
    }
}

impl Middle for SplitMiddle {
    fn input(&mut self, now: Instant, from: Towards, packet: &[u8]) {
        self.packets += 1;
        if self.handoff_every != u64::MAX {
            // Every flow that rests is parked before it is needed again.
            self.relay.trim(now, std::time::Duration::ZERO);
        }
        if self.packets.is_multiple_of(self.handoff_every) {
            self.hand_off(now);
        }
        match self.relay.handle_input(now, side_of(self.left, from), packet) {
            Verdict::Pass | Verdict::PassChanged(_) => {
                self.passed.push_back((across(from), packet.to_vec()));
            }
            Verdict::Consumed | Verdict::Drop => {}
        }
    }

    fn transmit(&mut self, now: Instant) -> Option<(Towards, Vec<u8>)> {
        if let Some(passed) = self.passed.pop_front() {
            return Some(passed);
        }
        let transmit = self.relay.poll_transmit(now, &mut self.buffer)?;
        Some((
            towards(self.left, transmit.to),
            self.buffer[..transmit.len].to_vec(),
        ))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.relay.poll_timeout().map(|(at, _)| at)
    }

    fn timeout(&mut self, now: Instant) {
        self.relay.handle_timeout(now);
    }

    fn learnt(&mut self, host: IpAddr) -> Option<PathMemory> {
        let keys: Vec<_> = self.relay.flows().copied().collect();
        for key in keys {
            self.relay.remove(&key);
        }
        self.relay.path(host)
    }

    fn sender(&self) -> Option<Stats> {
        let key = self.relay.flows().next()?;
        self.relay.view(key, self.left.opposite()).map(|view| view.stats)
    }
}

/// A gateway that snoops on every connection. It checks what it is there to keep: that no acknowledgment
/// reaches the network that the terminal has not sent.
pub struct SnoopMiddle {
    relay: SnoopRelay,
    left: Side,
    passed: VecDeque<(Towards, Vec<u8>)>,
    /// Highest acknowledgment the terminal sent, and the highest that went on.
    acknowledged: Option<SeqNum>,
    forwarded: Option<SeqNum>,
}

impl SnoopMiddle {
    /// A gateway with `left` towards A.
    pub fn new(config: SnoopConfig, left: Side) -> Self {
        Self {
            relay: SnoopRelay::new(config),
            left,
            passed: VecDeque::new(),
            acknowledged: None,
            forwarded: None,
        }
    }

    /// What Snoop did.
    pub const fn stats(&self) -> &SnoopStats {
        self.relay.stats()
    }
}

fn raise(highest: &mut Option<SeqNum>, packet: &[u8]) {
    if let Ok(packet) = TcpPacket::parse(packet)
        && packet.segment.header.flags.has(Flags::ACK)
        && !packet.segment.header.flags.has(Flags::RST)
        && highest.is_none_or(|old| packet.segment.header.ack.after(old))
    {
        *highest = Some(packet.segment.header.ack);
    }
}

impl Middle for SnoopMiddle {
    fn input(&mut self, now: Instant, from: Towards, packet: &[u8]) {
        let side = side_of(self.left, from);
        if side == Side::Terminal {
            raise(&mut self.acknowledged, packet);
        }
        let mut packet = packet.to_vec();
        match self.relay.handle_input(
            now,
            side,
            &packet,
            Original {
                bytes: &packet,
                replay: None,
            },
        ) {
            Verdict::PassChanged(change) => {
                assert!(
                    apply(change, &mut packet),
                    "an acknowledgment that cannot be changed"
                );
                self.passed.push_back((across(from), packet));
            }
            Verdict::Pass => self.passed.push_back((across(from), packet)),
            Verdict::Consumed | Verdict::Drop => {}
        }
    }

    fn transmit(&mut self, now: Instant) -> Option<(Towards, Vec<u8>)> {
        if let Some((to, packet)) = self.passed.pop_front() {
            if side_of(self.left, to) == Side::Network {
                raise(&mut self.forwarded, &packet);
            }
            return Some((to, packet));
        }
        let repeat = self.relay.poll_transmit(now)?;
        Some((towards(self.left, Side::Terminal), repeat.original.bytes.to_vec()))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.relay.poll_timeout().map(|(at, _)| at)
    }

    fn timeout(&mut self, now: Instant) {
        self.relay.handle_timeout(now);
    }

    fn check(&mut self) -> Result<(), String> {
        match (self.forwarded, self.acknowledged) {
            (Some(forwarded), Some(acknowledged)) if forwarded.after(acknowledged) => {
                Err("an acknowledgment the terminal never sent".into())
            }
            (Some(_), None) => Err("an acknowledgment before the terminal's first".into()),
            _ => Ok(()),
        }
    }
}
