//! Both ends with the gateway between them, in virtual time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use towpath_base::sa::{EspSuite, Mode};
use towpath_base::{DropReason, Instant};
use towpath_common::wire::checksum;
use towpath_gateway::datapath::{Arrival, Datapath, Disposition};
use towpath_gateway::relay::RelayConfig;
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::{locate, wrapped};
use towpath_tcp::{Config, Endpoint, IsnSecret, SeqNum};

use crate::ends::*;

/// Both ends, the gateway, and packets on the way: to an end, or from it.
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) path: Datapath<SoftEsp>,
    pub(crate) ends: [End; 2],
    pub(crate) wire: BTreeMap<(Instant, u64), (usize, bool, Vec<u8>)>,
    pub(crate) serial: u64,
    pub(crate) rng: TestRng,
    pub(crate) loss_per_mille: u64,
    pub(crate) lost: u64,
    /// Packets that were opened by nobody, by reason.
    pub(crate) drops: Vec<DropReason>,
    pub(crate) passed: u64,
    pub(crate) relayed: u64,
    pub(crate) longest: [usize; 2],
    /// Longest packet the path to the peer takes; its router tells.
    pub(crate) narrowest: usize,
    /// Everything travels between agents on both sides of the gateway, family of their addresses: home, foreign.
    pub(crate) agents: Option<(Kind, [IpAddr; 2])>,
    /// Longest packet between the agents.
    pub(crate) between: usize,
}

pub(crate) fn host(local_port: u16, remote_port: u16) -> Config {
    Config {
        local_port,
        remote_port,
        mss: 1460,
        // Some 1.5 MB/s at this round trip: tests that change something in mid-flow need a flow.
        receive_initial: 64 << 10,
        receive_limit: 64 << 10,
        ..Config::default()
    }
}

impl World {
    pub(crate) fn new(shape: Shape, config: RelayConfig) -> Self {
        let [terminal, peer] = addresses(shape.v6);
        let now = Instant::from_secs(1);
        let sa = child(terminal, peer, 0x1000, 1, shape);
        let mut path = Datapath::new(SoftEsp, 16).with_relay(config, IsnSecret([3, 4]));
        path.install(now, &full(&sa, 11)).unwrap();
        let dial = Endpoint::connect(now, host(4000, 80), SeqNum(1));
        let answer = Endpoint::listen(now, host(80, 4000), SeqNum(99));
        let ends = [
            End::new(now, &segment(&sa, 11), dial, true),
            End::new(now, &sa.mirrored(), answer, false),
        ];
        Self::of(now, path, ends)
    }

    pub(crate) fn of(now: Instant, path: Datapath<SoftEsp>, ends: [End; 2]) -> Self {
        Self {
            now,
            path,
            ends,
            wire: BTreeMap::new(),
            serial: 0,
            rng: TestRng(0x5eed),
            loss_per_mille: 0,
            lost: 0,
            drops: Vec::new(),
            passed: 0,
            relayed: 0,
            longest: [0; 2],
            narrowest: usize::MAX,
            agents: None,
            between: 0,
        }
    }

    /// What the router before the peer does with a packet: true if it takes it.
    pub(crate) fn routed(&mut self, packet: &[u8]) -> bool {
        if locate::esp(packet).is_err() {
            // A piece of what the gateway cut: lost, the connection repeats it.
            self.lost += 1;
            return false;
        }
        if self.addressee(packet) == 0 || packet.len() <= self.narrowest {
            return true;
        }
        let router = if packet[0] >> 4 == 4 {
            "10.9.9.9"
        } else {
            "2001:db8:9::9"
        };
        let mut error = vec![0; towpath_ipsec::icmp::MAX_LEN];
        let mtu = self.narrowest as u16;
        let len =
            towpath_ipsec::icmp::write_too_big(&mut error, router.parse().unwrap(), packet, mtu).unwrap();
        let told = self.path.process_too_big(self.now, &mut error[..len]);
        assert_eq!(told, Disposition::Forward);
        false
    }

    pub(crate) fn put(&mut self, end: usize, to_end: bool, bytes: Vec<u8>) {
        if self.ends[end].access && self.rng.next() % 1000 < self.loss_per_mille {
            self.lost += 1;
            return;
        }
        self.serial += 1;
        let at = self.now + self.ends[end].delay;
        self.wire.insert((at, self.serial), (end, to_end, bytes));
    }

    /// The end a packet of the gateway is for.
    pub(crate) fn addressee(&self, packet: &[u8]) -> usize {
        let destination = locate::esp(packet).unwrap().destination;
        self.ends
            .iter()
            .position(|end| end.address == destination)
            .unwrap()
    }

    pub(crate) fn gateway(&mut self, from: usize, bytes: &[u8]) {
        let arrival = Arrival {
            from_access: self.ends[from].access,
            egress: Some(EGRESS),
        };
        let around = self.enclosed(from, bytes);
        let mut packet = Buffer::of(around.as_deref().unwrap_or(bytes));
        let Self { path, rng, now, .. } = self;
        let outcome = packet.with(|packet| match around {
            Some(_) => path.process_wrapped(*now, arrival, arrival.from_access, packet, rng),
            None => path.process(*now, arrival, packet, rng),
        });
        match outcome {
            Disposition::Forward => {
                self.passed += 1;
                self.disclose(&mut packet);
                let to = self.addressee(packet.bytes());
                self.put(to, true, packet.bytes().to_vec());
            }
            Disposition::Taken | Disposition::Queued => {}
            Disposition::Drop(reason) => self.drops.push(reason),
        }
    }

    /// A packet of this end as it comes between agents, if it does.
    pub(crate) fn enclosed(&self, from: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        let (kind, [home, foreign]) = self.agents?;
        let (source, destination) = if from == 0 {
            (foreign, home)
        } else {
            (home, foreign)
        };
        Some(enclose(kind, source, destination, bytes))
    }

    /// Takes off what is around a packet of the gateway between agents: that of the right way, as its agent would make it.
    pub(crate) fn disclose(&mut self, packet: &mut Buffer) {
        let Some((kind, [home, foreign])) = self.agents else {
            return;
        };
        let bytes = packet.bytes().to_vec();
        self.between = self.between.max(bytes.len());
        let (wrap, inner) =
            wrapped::unwrap(&bytes).expect("it is between the agents, whole, and its sums are right");
        assert_eq!(inner.end, bytes.len());
        packet.with(|packet| packet.strip_front(inner.start)).unwrap();
        let to_peer = self.addressee(packet.bytes()) == 1;
        let ends = if to_peer { (foreign, home) } else { (home, foreign) };
        assert_eq!(wrap.ends(), Some(ends));
        let mut expected = enclose(kind, ends.0, ends.1, packet.bytes());
        if bytes[0] >> 4 == 4 {
            // Its name, hence its header's sum, is its sender's.
            expected[4..6].copy_from_slice(&bytes[4..6]);
            expected[10..12].fill(0);
            let sum = checksum(&expected[..20]).to_be_bytes();
            expected[10..12].copy_from_slice(&sum);
        }
        assert_eq!(bytes, expected);
    }

    pub(crate) fn transmit(&mut self) {
        for index in 0..2 {
            let now = self.now;
            self.ends[index].work(now);
            while let Some(packet) = self.ends[index].packet(now, &mut self.rng) {
                self.put(index, false, packet);
            }
        }
        self.path.handle_timeout(self.now);
        loop {
            let mut packet = Buffer::of(&[]);
            let Self { path, rng, now, .. } = self;
            match packet.with(|packet| path.relay_transmit(*now, packet, rng)) {
                None => return,
                Some(Err(reason)) => self.drops.push(reason),
                Some(Ok(departure)) => {
                    self.relayed += 1;
                    assert!(departure.egress.is_none_or(|egress| egress == EGRESS));
                    self.disclose(&mut packet);
                    let bytes = packet.bytes().to_vec();
                    if self.narrowest < usize::MAX && !self.routed(&bytes) {
                        while self.path.poll_extra().is_some() {}
                        continue;
                    }
                    let to = self.addressee(packet.bytes());
                    self.longest[to] = self.longest[to].max(packet.bytes().len());
                    self.put(to, true, packet.bytes().to_vec());
                }
            }
        }
    }

    pub(crate) fn step(&mut self) {
        self.transmit();
        let tick = self.now + Duration::from_millis(50);
        let next = [
            self.wire.keys().next().map(|(at, _)| *at),
            self.path.poll_timeout(),
            self.ends[0].endpoint.poll_timeout().map(|(at, _)| at),
            self.ends[1].endpoint.poll_timeout().map(|(at, _)| at),
        ]
        .into_iter()
        .flatten()
        .fold(tick, Instant::min);
        self.now = self.now.max(next);
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (end, to_end, bytes) = entry.remove();
            if to_end {
                let now = self.now;
                if let Err(reason) = self.ends[end].receive(now, &bytes) {
                    self.drops.push(reason);
                }
            } else {
                self.gateway(end, &bytes);
            }
        }
    }

    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while self.now < end && !done(self) {
            self.step();
        }
        assert!(done(self), "not done at {:?}: {}", self.now, self.story());
    }

    pub(crate) fn story(&self) -> String {
        format!(
            "{:?} {:?}, read {} and {}, passed {}, relayed {}, lost {}, drops {:?}",
            self.ends[0].endpoint.state(),
            self.ends[1].endpoint.state(),
            self.ends[0].read.len(),
            self.ends[1].read.len(),
            self.passed,
            self.relayed,
            self.lost,
            self.drops
        )
    }

    pub(crate) fn load(&mut self, bytes: usize) {
        self.ends[0].to_write = pattern(bytes, 1);
        self.ends[1].to_write = pattern(bytes, 2);
    }

    pub(crate) fn has_everything(&self) -> bool {
        (0..2).all(|end| self.ends[end].read.len() == self.ends[1 - end].to_write.len())
    }

    pub(crate) fn check(&self) {
        for end in 0..2 {
            assert!(
                self.ends[end].read == self.ends[1 - end].to_write,
                "bytes differ: {}",
                self.story()
            );
        }
    }
}

pub(crate) fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = TestRng(seed * 0x9e37_79b9);
    (0..bytes).map(|_| rng.next() as u8).collect()
}

pub(crate) const SHAPES: [Shape; 6] = [
    PLAIN,
    Shape { v6: true, ..PLAIN },
    Shape { encap: true, ..PLAIN },
    Shape {
        mode: Mode::Tunnel,
        ..PLAIN
    },
    Shape {
        mode: Mode::Wildcard,
        ..PLAIN
    },
    Shape {
        suite: EspSuite::Aes256CbcSha256,
        mode: Mode::Tunnel,
        v6: true,
        encap: true,
    },
];
