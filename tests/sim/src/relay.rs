//! The relay as the middle of a world: the terminal on the left, the network on the right.

use towpath_base::Instant;
use towpath_tcp::IsnSecret;
use towpath_tcp::relay::split::{SplitConfig, SplitRelay};
use towpath_tcp::relay::{Side, Verdict};

use crate::world::{Middle, Towards};

const fn side_of(towards: Towards) -> Side {
    match towards {
        Towards::A => Side::Terminal,
        Towards::B => Side::Network,
    }
}

const fn towards(side: Side) -> Towards {
    match side {
        Side::Terminal => Towards::A,
        Side::Network => Towards::B,
    }
}

/// A gateway that splits every connection, and may hand all of them to a successor now and then.
pub struct SplitMiddle {
    relay: SplitRelay,
    config: SplitConfig,
    secret: [u64; 2],
    passed: Vec<(Towards, Vec<u8>)>,
    buffer: Vec<u8>,
    /// Hands over each time this many packets arrived.
    handoff_every: u64,
    packets: u64,
}

impl SplitMiddle {
    /// A gateway; `handoff_every` counts packets, `u64::MAX` for never.
    pub fn new(config: SplitConfig, secret: [u64; 2], handoff_every: u64) -> Self {
        Self {
            relay: SplitRelay::new(config.clone(), IsnSecret(secret)),
            config,
            secret,
            passed: Vec::new(),
            buffer: vec![0; 65_600],
            handoff_every,
            packets: 0,
        }
    }

    /// Every connection moves to a new relay by snapshot, as in a handoff.
    fn hand_off(&mut self, now: Instant) {
        let mut successor = SplitRelay::new(self.config.clone(), IsnSecret(self.secret));
        let keys: Vec<_> = self.relay.flows().copied().collect();
        for key in keys {
            let bytes = self.relay.snapshot(now, &key).expect("a flow that was listed");
            successor.restore(now, &bytes).expect("a snapshot just taken");
            assert_eq!(
                successor.snapshot(now, &key).as_deref(),
                Some(&bytes[..]),
                "snapshot of a restored flow"
            );
        }
        self.relay = successor;
    }
}

impl Middle for SplitMiddle {
    fn input(&mut self, now: Instant, from: Towards, packet: &[u8]) {
        self.packets += 1;
        if self.packets.is_multiple_of(self.handoff_every) {
            self.hand_off(now);
        }
        match self.relay.handle_input(now, side_of(from), packet) {
            Verdict::Pass | Verdict::PassWithoutSack => {
                let to = if from == Towards::A {
                    Towards::B
                } else {
                    Towards::A
                };
                self.passed.push((to, packet.to_vec()));
            }
            Verdict::Consumed | Verdict::Drop => {}
        }
    }

    fn transmit(&mut self, now: Instant) -> Option<(Towards, Vec<u8>)> {
        if let Some(passed) = self.passed.pop() {
            return Some(passed);
        }
        let transmit = self.relay.poll_transmit(now, &mut self.buffer)?;
        Some((towards(transmit.to), self.buffer[..transmit.len].to_vec()))
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.relay.poll_timeout()
    }

    fn timeout(&mut self, now: Instant) {
        self.relay.handle_timeout(now);
    }
}
