//! The TCP relay inside SAs of class `full`, on real ESP packets and in virtual time.
//!
//! ```text
//!   terminal ══ segment keys, 20 ms, loss ══ gateway ══ peer's keys, 5 ms ══ peer
//! ```
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::policy::{Policy, PolicyAction, PolicySelector};
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::esp_keys as keys;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_common::wire::checksum;
use towpath_fabric::{GatewayKeys, GatewaySa, InspectKeys};
use towpath_gateway::datapath::{Arrival, Datapath, Disposition, SaKey, StoredStart};
use towpath_gateway::relay::{Egress, RelayConfig};
use towpath_ipsec::shared::SharedStart;
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::spd::Spd;
use towpath_ipsec::{InboundSa, OutboundSa, locate, wrapped};
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::relay::rules::{Action, Rules, Treatment};
use towpath_tcp::{Closed, Config, Ecn, Endpoint, IsnSecret, SeqNum, State};

/// Arrives on the access side; the egress is of no interest here.
const EGRESS: Egress = Egress {
    ifindex: 7,
    dmac: [2; 6],
    smac: [4; 6],
};

struct TestRng(u64);

impl TestRng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

impl Rng for TestRng {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.next() as u8);
    }
}

fn child(local: IpAddr, remote: IpAddr, spi: u32, fill: u8, shape: Shape) -> ChildSa {
    ChildSa {
        local,
        remote,
        suite: shape.suite,
        mode: shape.mode,
        esn: false,
        encap: shape.encap.then_some(UdpEncap {
            local_port: 4500,
            remote_port: 4500,
        }),
        spi_in: Spi(spi),
        spi_out: Spi(spi + 1),
        keys_in: keys(shape.suite, fill),
        keys_out: keys(shape.suite, fill + 1),
        local_ts: Selectors::one(TrafficSelector::host(local)),
        remote_ts: Selectors::one(TrafficSelector::host(remote)),
        lifetime: Lifetime::default(),
    }
}

/// The terminal's view of `sa`: its own segment's keys.
fn segment(sa: &ChildSa, fill: u8) -> ChildSa {
    ChildSa {
        keys_in: keys(sa.suite, fill),
        keys_out: keys(sa.suite, fill + 1),
        ..sa.clone()
    }
}

fn full(sa: &ChildSa, fill: u8) -> GatewaySa {
    GatewaySa {
        level: Some(0),
        subscriber: SubscriberHandle(1),
        local: sa.local,
        remote: sa.remote,
        spi_in: sa.spi_in,
        spi_out: sa.spi_out,
        keys: GatewayKeys::Full {
            peer: sa.clone(),
            segment_in: keys(sa.suite, fill),
            segment_out: keys(sa.suite, fill + 1),
        },
    }
}

#[derive(Clone, Copy)]
struct Shape {
    suite: EspSuite,
    v6: bool,
    mode: Mode,
    encap: bool,
}

const PLAIN: Shape = Shape {
    suite: EspSuite::Aes128Gcm16,
    v6: false,
    mode: Mode::Transport,
    encap: false,
};

fn addresses(v6: bool) -> [IpAddr; 2] {
    if v6 {
        ["2001:db8::a", "2001:db8::b"].map(|text| text.parse().unwrap())
    } else {
        ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap())
    }
}

/// A packet with the rooms a frame has.
struct Buffer(Box<[u8; 4096]>, usize, usize);

impl Buffer {
    fn of(packet: &[u8]) -> Self {
        let mut buffer = Box::new([0; 4096]);
        buffer[256..256 + packet.len()].copy_from_slice(packet);
        Self(buffer, 256, packet.len())
    }

    fn with<O>(&mut self, work: impl FnOnce(&mut PacketBuf<'_>) -> O) -> O {
        let mut packet = PacketBuf::new(&mut self.0[..], self.1, self.2).unwrap();
        let outcome = work(&mut packet);
        (self.1, self.2) = (packet.start(), packet.len());
        outcome
    }

    fn bytes(&self) -> &[u8] {
        &self.0[self.1..self.1 + self.2]
    }
}

/// A host with one connection and its SAs, newest last.
struct End {
    address: IpAddr,
    remote: IpAddr,
    endpoint: Endpoint,
    out: Vec<OutboundSa<SoftTransform>>,
    inbound: Vec<InboundSa<SoftTransform>>,
    to_write: Vec<u8>,
    written: usize,
    read: Vec<u8>,
    closed: bool,
    access: bool,
    delay: Duration,
    /// Its TCP travels inside other packets, inside the SA.
    inside: Option<Kind>,
}

/// Foreign encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    IpInIp,
    Gre,
}

/// `inner` inside a packet between two hosts.
fn enclose(kind: Kind, source: IpAddr, destination: IpAddr, inner: &[u8]) -> Vec<u8> {
    let v4 = inner[0] >> 4 == 4;
    let (protocol, mut body) = match (kind, v4) {
        (Kind::IpInIp, true) => (4, Vec::new()),
        (Kind::IpInIp, false) => (41, Vec::new()),
        // With a checksum and a key.
        (Kind::Gre, true) => (47, vec![0xa0, 0, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0, 42]),
        (Kind::Gre, false) => (47, vec![0xa0, 0, 0x86, 0xdd, 0, 0, 0, 0, 0, 0, 0, 42]),
    };
    body.extend_from_slice(inner);
    if kind == Kind::Gre {
        let sum = checksum(&body).to_be_bytes();
        body[4..6].copy_from_slice(&sum);
    }
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let len = (body.len() as u16 + 20).to_be_bytes();
            let mut packet = vec![0x45, 0, len[0], len[1], 0, 9, 0, 0, 60, protocol, 0, 0];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
            [packet, body].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let len = (body.len() as u16).to_be_bytes();
            let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], protocol, 60];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            [packet, body].concat()
        }
        _ => unreachable!("one family"),
    }
}

impl End {
    fn new(now: Instant, sa: &ChildSa, endpoint: Endpoint, access: bool) -> Self {
        let mut end = Self {
            address: sa.local,
            remote: sa.remote,
            endpoint,
            out: Vec::new(),
            inbound: Vec::new(),
            to_write: Vec::new(),
            written: 0,
            read: Vec::new(),
            closed: false,
            access,
            delay: Duration::from_millis(if access { 20 } else { 5 }),
            inside: None,
        };
        end.give(now, sa);
        end
    }

    fn give(&mut self, now: Instant, sa: &ChildSa) {
        self.out.push(OutboundSa::new(&SoftEsp, now, sa).unwrap());
        self.inbound.push(InboundSa::new(&SoftEsp, now, sa).unwrap());
    }

    fn work(&mut self, now: Instant) {
        self.endpoint.handle_timeout(now);
        if self.endpoint.state().can_send() {
            self.written += self.endpoint.write(&self.to_write[self.written..]);
            if self.written == self.to_write.len() && !self.closed && !self.to_write.is_empty() {
                self.closed = true;
                self.endpoint.close(now);
            }
        }
        let (front, back) = self.endpoint.readable();
        let count = front.len() + back.len();
        self.read.extend_from_slice(front);
        self.read.extend_from_slice(back);
        self.endpoint.consume(now, count);
    }

    fn packet(&mut self, now: Instant, rng: &mut TestRng) -> Option<Vec<u8>> {
        let mut ip = IpHeader {
            source: self.address,
            destination: self.remote,
            dscp: 0,
            ecn: Ecn::NotEct,
            ttl: 64,
        };
        let mut plain = vec![0; 1600];
        let outgoing = self.endpoint.poll_transmit(now, &mut plain[ip.header_len()..])?;
        ip.ecn = outgoing.ecn;
        let len = ip.finish(&mut plain, outgoing.len)?;
        plain.truncate(len);
        if let Some(kind) = self.inside {
            plain = enclose(kind, self.address, self.remote, &plain);
        }
        let mut packet = Buffer::of(&plain);
        packet.with(|packet| self.out.last_mut().unwrap().seal(now, packet, rng).unwrap());
        Some(packet.bytes().to_vec())
    }

    fn receive(&mut self, now: Instant, sealed: &[u8]) -> Result<(), DropReason> {
        let spi = locate::esp(sealed)?.spi;
        let sa = self.inbound.iter_mut().find(|sa| sa.spi() == spi);
        let mut packet = Buffer::of(sealed);
        packet.with(|packet| sa.ok_or(DropReason::EspUnknownSpi)?.open(now, packet))?;
        let mut plain = packet.bytes();
        if self.inside.is_some() {
            let (wrap, inner) = wrapped::unwrap(plain).expect("it is still inside");
            assert_eq!(wrap.ends(), Some((self.remote, self.address)));
            plain = &plain[inner];
        }
        let packet = TcpPacket::parse(plain).unwrap();
        assert_eq!(
            (packet.source, packet.destination),
            (self.remote, self.address),
            "the relay shows itself"
        );
        self.endpoint.handle_input(now, &packet.segment, packet.ecn);
        Ok(())
    }
}

/// Both ends, the gateway, and packets on the way: to an end, or from it.
struct World {
    now: Instant,
    path: Datapath<SoftEsp>,
    ends: [End; 2],
    wire: BTreeMap<(Instant, u64), (usize, bool, Vec<u8>)>,
    serial: u64,
    rng: TestRng,
    loss_per_mille: u64,
    lost: u64,
    /// Packets that were opened by nobody, by reason.
    drops: Vec<DropReason>,
    passed: u64,
    relayed: u64,
    longest: [usize; 2],
    /// Longest packet the path to the peer takes; its router tells.
    narrowest: usize,
    /// Everything travels between agents on both sides of the gateway, family of their addresses: home, foreign.
    agents: Option<(Kind, [IpAddr; 2])>,
    /// Longest packet between the agents.
    between: usize,
}

fn host(local_port: u16, remote_port: u16) -> Config {
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
    fn new(shape: Shape, config: RelayConfig) -> Self {
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

    fn of(now: Instant, path: Datapath<SoftEsp>, ends: [End; 2]) -> Self {
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
    fn routed(&mut self, packet: &[u8]) -> bool {
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

    fn put(&mut self, end: usize, to_end: bool, bytes: Vec<u8>) {
        if self.ends[end].access && self.rng.next() % 1000 < self.loss_per_mille {
            self.lost += 1;
            return;
        }
        self.serial += 1;
        let at = self.now + self.ends[end].delay;
        self.wire.insert((at, self.serial), (end, to_end, bytes));
    }

    /// The end a packet of the gateway is for.
    fn addressee(&self, packet: &[u8]) -> usize {
        let destination = locate::esp(packet).unwrap().destination;
        self.ends
            .iter()
            .position(|end| end.address == destination)
            .unwrap()
    }

    fn gateway(&mut self, from: usize, bytes: &[u8]) {
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
    fn enclosed(&self, from: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        let (kind, [home, foreign]) = self.agents?;
        let (source, destination) = if from == 0 {
            (foreign, home)
        } else {
            (home, foreign)
        };
        Some(enclose(kind, source, destination, bytes))
    }

    /// Takes off what is around a packet of the gateway between agents: that of the right way, as its agent would make it.
    fn disclose(&mut self, packet: &mut Buffer) {
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

    fn transmit(&mut self) {
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

    fn step(&mut self) {
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

    fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while self.now < end && !done(self) {
            self.step();
        }
        assert!(done(self), "not done at {:?}: {}", self.now, self.story());
    }

    fn story(&self) -> String {
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

    fn load(&mut self, bytes: usize) {
        self.ends[0].to_write = pattern(bytes, 1);
        self.ends[1].to_write = pattern(bytes, 2);
    }

    fn has_everything(&self) -> bool {
        (0..2).all(|end| self.ends[end].read.len() == self.ends[1 - end].to_write.len())
    }

    fn check(&self) {
        for end in 0..2 {
            assert!(
                self.ends[end].read == self.ends[1 - end].to_write,
                "bytes differ: {}",
                self.story()
            );
        }
    }
}

fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = TestRng(seed * 0x9e37_79b9);
    (0..bytes).map(|_| rng.next() as u8).collect()
}

const SHAPES: [Shape; 6] = [
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

#[test]
fn bytes_pass_both_ways_through_a_lossy_radio_in_every_shape_of_sa() {
    for shape in SHAPES {
        let mut world = World::new(shape, RelayConfig::default());
        world.loss_per_mille = 20;
        world.load(1 << 20);
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert!(world.lost > 20, "{}", world.story());
        // Nothing of the connection passed: it was split from the first segment on.
        assert_eq!((world.passed, &world.drops[..]), (0, &[][..]));
        // Segments are as large as fits, and no larger; those of a wildcard would fit behind a second IP header, too.
        let spare = if shape.mode == Mode::Wildcard { 20 } else { 0 };
        for longest in world.longest {
            assert!((1480 - spare..=1500 - spare).contains(&longest), "{longest}");
        }
        world.run_until(Duration::from_secs(60), |world| {
            world.path.flows(world.now, 9).is_empty()
        });
    }
}

/// T14: between home and foreign agent, and inside the SA; every pair of families, both kinds.
#[test]
fn the_relay_works_inside_other_packets() {
    let agents = [["192.0.2.1", "192.0.2.2"], ["2001:db8:1::1", "2001:db8:1::2"]]
        .map(|pair| pair.map(|text| text.parse().unwrap()));
    for v6 in [false, true] {
        for kind in [Kind::IpInIp, Kind::Gre] {
            let shape = Shape { v6, ..PLAIN };
            for case in [Some(agents[0]), Some(agents[1]), None] {
                let mut world = World::new(shape, RelayConfig::default());
                world.agents = case.map(|pair| (kind, pair));
                if case.is_none() {
                    for end in &mut world.ends {
                        end.inside = Some(kind);
                    }
                }
                world.loss_per_mille = 10;
                world.load(150_000);
                world.run_until(Duration::from_secs(60), World::has_everything);
                world.check();
                let story = world.story();
                assert!(world.relayed > 200 && world.passed < 20, "relayed: {story}");
                assert!(world.between <= 1500, "{} bytes: {story}", world.between);
                assert!(world.longest.iter().all(|len| *len <= 1500), "{story}");
                assert!(world.drops.is_empty(), "{story}");
            }
        }
    }
}

#[test]
fn the_loss_is_repaired_on_the_radio_and_the_peer_never_repeats() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.loss_per_mille = 50;
    world.ends[1].to_write = pattern(1 << 20, 7);
    world.run_until(Duration::from_secs(60), World::has_everything);
    world.check();
    assert_eq!(world.ends[1].endpoint.stats().retransmits, 0);
    assert!(world.lost > 20);
}

#[test]
fn a_connection_goes_on_through_a_rekeying_and_no_packet_is_lost() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.load(3 << 20);
    let [terminal, peer] = addresses(false);
    let old = child(terminal, peer, 0x1000, 1, PLAIN);
    for round in 1..4_u8 {
        let new = child(terminal, peer, 0x1000 + u32::from(round) * 16, 20 * round, PLAIN);
        let before = world.ends[0].read.len();
        world.run_until(Duration::from_secs(20), |world| {
            world.ends[0].read.len() > before + 300_000
        });
        // The peer has it first, the terminal after its key transfer; the old one goes last.
        let now = world.now;
        world.ends[1].give(now, &new.mirrored());
        world.path.install(now, &full(&new, 20 * round + 10)).unwrap();
        let ack = world.now + Duration::from_millis(60);
        world.run_until(Duration::from_secs(1), |world| world.now >= ack);
        let now = world.now;
        world.ends[0].give(now, &segment(&new, 20 * round + 10));
        let gone = world.now + Duration::from_millis(200);
        world.run_until(Duration::from_secs(1), |world| world.now >= gone);
        let removed = if round == 1 {
            old.clone()
        } else {
            child(
                terminal,
                peer,
                0x1000 + u32::from(round - 1) * 16,
                20 * (round - 1),
                PLAIN,
            )
        };
        let key = SaKey {
            local: terminal,
            remote: peer,
            spi_in: removed.spi_in,
            spi_out: removed.spi_out,
        };
        assert!(world.path.remove(&key).is_some());
    }
    world.run_until(Duration::from_secs(60), World::has_everything);
    world.check();
    assert_eq!(world.drops, []);
    assert_eq!(world.ends[0].endpoint.stats().retransmits, 0);
}

#[test]
fn between_two_terminals_the_connection_is_relayed_once_and_both_sides_are_radio() {
    for (first, second) in [(0, 1), (1, 0)] {
        let [a, b] = addresses(false);
        let now = Instant::from_secs(1);
        let sa = child(a, b, 0x1000, 1, PLAIN);
        let mut path = Datapath::new(SoftEsp, 16).with_relay(RelayConfig::default(), IsnSecret([3, 4]));
        let mut far = full(&sa.mirrored(), 21);
        far.subscriber = SubscriberHandle(2);
        path.install(now, &full(&sa, 11)).unwrap();
        path.install(now, &far).unwrap();
        let dial = Endpoint::connect(now, host(4000, 80), SeqNum(1));
        let answer = Endpoint::listen(now, host(80, 4000), SeqNum(99));
        let mut endpoints = [Some(dial), Some(answer)];
        let ends = [
            End::new(now, &segment(&sa, 11), endpoints[first].take().unwrap(), true),
            End::new(
                now,
                &segment(&sa.mirrored(), 21),
                endpoints[second].take().unwrap(),
                true,
            ),
        ];
        let mut world = World::of(now, path, ends);
        world.loss_per_mille = 20;
        world.load(1 << 19);
        world.run_until(Duration::from_millis(500), |world| {
            world.ends[0].endpoint.state() == State::Established
        });
        let flows = world.path.flows(world.now, 9);
        assert_eq!(flows.len(), 1);
        for side in [&flows[0].terminal, &flows[0].network] {
            assert_eq!(side.as_ref().unwrap().algorithm, towpath_tcp::Algorithm::Radio);
        }
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert_eq!((world.passed, &world.drops[..]), (0, &[][..]));
    }
}

#[test]
fn what_a_rule_lets_pass_and_what_is_no_tcp_is_sealed_again_by_the_same_sender() {
    let rules = Arc::new(Rules {
        default: Action::of(Treatment::Pass),
        ..Rules::default()
    });
    for own in [false, true] {
        let mut config = RelayConfig::default();
        if !own {
            config.rules = Arc::clone(&rules);
        }
        let mut world = World::new(PLAIN, config);
        if own {
            // Given while the SA is there: it holds for the next connection.
            world
                .path
                .set_rules(SubscriberHandle(1), Some(Arc::clone(&rules)));
        }
        world.load(1 << 18);
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert!(world.passed > 300 && world.relayed == 0, "{}", world.story());
        assert_eq!(world.drops, []);
    }
}

#[test]
fn segments_of_a_connection_that_was_there_before_pass() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.path.set_rules(
        SubscriberHandle(1),
        Some(Arc::new(Rules {
            default: Action::of(Treatment::Pass),
            ..Rules::default()
        })),
    );
    world.load(1 << 18);
    world.run_until(Duration::from_secs(5), |world| world.ends[0].read.len() > 10_000);
    // The rule changes in mid-flow.
    world.path.set_rules(SubscriberHandle(1), None);
    world.run_until(Duration::from_secs(60), World::has_everything);
    world.check();
    assert_eq!(world.relayed, 0);
}

#[test]
fn without_an_sa_the_relay_waits_and_at_last_forgets() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.load(1 << 20);
    world.run_until(Duration::from_secs(5), |world| world.ends[0].read.len() > 100_000);
    let [terminal, peer] = addresses(false);
    let key = SaKey {
        local: terminal,
        remote: peer,
        spi_in: Spi(0x1000),
        spi_out: Spi(0x1001),
    };
    world.path.remove(&key);
    let later = world.now + Duration::from_millis(500);
    world.run_until(Duration::from_secs(1), |world| world.now >= later);
    assert_eq!(world.path.flows(world.now, 9).len(), 1);
    // What passes the gateway now is sealed under the other segment's keys.
    let expected = |reason: &DropReason| {
        use DropReason::{EspAuthFailed, EspReplayed, RelayNoSa};
        matches!(reason, RelayNoSa | EspAuthFailed | EspReplayed)
    };
    assert!(world.drops.iter().all(expected), "{}", world.story());
    world.path.tick(world.now);
    world.path.tick(world.now + Duration::from_secs(61));
    assert_eq!(world.path.flows(world.now, 9), []);
    assert_eq!(world.path.relay_totals().buffered, 0);
}

#[test]
fn connections_whose_relay_died_are_reset_at_both_ends_at_once() {
    let mut world = World::new(PLAIN, RelayConfig::default());
    world.load(1 << 20);
    world.run_until(Duration::from_secs(5), |world| world.ends[0].read.len() > 100_000);
    // Another process takes over: it negotiates anew and knows of no connection.
    let [terminal, peer] = addresses(false);
    let new = child(terminal, peer, 0x5000, 70, PLAIN);
    let now = world.now;
    world.path = Datapath::new(SoftEsp, 16).with_relay(RelayConfig::default(), IsnSecret([8, 9]));
    world.path.install(now, &full(&new, 80)).unwrap();
    world.ends[1].give(now, &new.mirrored());
    world.ends[0].give(now, &segment(&new, 80));
    world.run_until(Duration::from_secs(5), |world| {
        world
            .ends
            .iter()
            .all(|end| end.endpoint.closed() == Some(Closed::Reset))
    });
    assert_eq!(world.path.relay_totals().orphans, 1);
}

fn snooping() -> RelayConfig {
    RelayConfig {
        rules: Arc::new(Rules {
            default: Action::of(Treatment::Snoop),
            ..Rules::default()
        }),
        ..RelayConfig::default()
    }
}

fn snooped(mut world: World, share: u64) {
    // Longer than the radio's loss could be hidden by luck.
    world.loss_per_mille = 30;
    world.ends[1].to_write = pattern(1 << 20, 3);
    world.run_until(Duration::from_millis(400), |world| {
        world.ends[0].read.len() > 1000
    });
    let flows = world.path.flows(world.now, 9);
    assert!(flows.len() == 1 && flows[0].snoop.is_some(), "{flows:?}");
    world.run_until(Duration::from_secs(120), World::has_everything);
    world.check();
    let totals = world.path.relay_totals();
    assert!(world.lost > 20 && totals.snoop.repeated > 10, "{totals:?}");
    assert_eq!(world.relayed, totals.snoop.repeated);
    assert_eq!(totals.flows, 0, "nothing was split");
    // What the radio lost, the peer heard of but rarely.
    let again = world.ends[1].endpoint.stats().retransmits;
    assert!(
        again * share < world.lost,
        "the peer repeated {again} of {}",
        world.lost
    );
    let strange = |reason: &&DropReason| **reason != DropReason::EspReplayed;
    assert_eq!(world.drops.iter().find(strange), None, "{}", world.story());
}

#[test]
fn snoop_repairs_the_radio_in_class_full() {
    snooped(World::new(PLAIN, snooping()), 4);
    snooped(World::new(Shape { v6: true, ..PLAIN }, snooping()), 4);
}

#[test]
fn snoop_repeats_the_peers_own_packet_where_the_gateway_may_only_look() {
    for v6 in [false, true] {
        let shape = Shape {
            suite: EspSuite::Aes128CbcSha256,
            v6,
            ..PLAIN
        };
        let [terminal, peer] = addresses(v6);
        let now = Instant::from_secs(1);
        let sa = child(terminal, peer, 0x1000, 1, shape);
        let mut path = Datapath::new(SoftEsp, 16).with_relay(snooping(), IsnSecret([3, 4]));
        let seen = GatewaySa {
            level: Some(0),
            keys: GatewayKeys::Inspect(InspectKeys::of(&sa).unwrap()),
            ..full(&sa, 1)
        };
        path.install(now, &seen).unwrap();
        let dial = Endpoint::connect(now, host(4000, 80), SeqNum(1));
        let answer = Endpoint::listen(now, host(80, 4000), SeqNum(99));
        // The keys of the two ends are the same: nobody sits between them.
        let ends = [
            End::new(now, &sa, dial, true),
            End::new(now, &sa.mirrored(), answer, false),
        ];
        // An acknowledgment that says something new has to pass as it is, with what it says of holes.
        snooped(World::of(now, path, ends), 2);
    }
}

#[test]
fn a_router_s_too_big_reaches_the_connections_that_are_open() {
    for v6 in [false, true] {
        let mut world = World::new(Shape { v6, ..PLAIN }, RelayConfig::default());
        world.load(400_000);
        world.run_until(Duration::from_secs(5), |world| world.ends[1].read.len() > 50_000);
        assert!(world.longest[1] > 1400);
        world.narrowest = 1300;
        let narrowed = world.now;
        world.run_until(Duration::from_secs(20), World::has_everything);
        world.check();
        // What was on its way is lost; nobody had to find out by silence.
        let took = world.now.saturating_since(narrowed);
        assert!(
            took < Duration::from_secs(2),
            "v6={v6}: {took:?}, {}",
            world.story()
        );
    }
}

#[test]
fn a_relayed_connection_leaves_by_the_sa_its_policy_names() {
    for v6 in [false, true] {
        let mut world = World::new(Shape { v6, ..PLAIN }, RelayConfig::default());
        let [terminal, peer] = addresses(v6);
        // Another suite: its packets are longer, which the connection did not reckon with.
        let shape = Shape {
            v6,
            suite: EspSuite::Aes256CbcSha512,
            ..PLAIN
        };
        let named = child(terminal, peer, 0x3000, 70, shape);
        let start = SharedStart {
            limit: 1 << 32,
            ..SharedStart::default()
        };
        let start = StoredStart {
            to_peer: start,
            to_terminal: start,
            number: 9,
            ..StoredStart::default()
        };
        world
            .path
            .install_stored(world.now, &full(&named, 80), &start)
            .unwrap();
        // The ends send by the other SA, and know this one for what comes.
        for (end, sa) in [(0, segment(&named, 80)), (1, named.mirrored())] {
            world.ends[end].inbound = vec![InboundSa::new(&SoftEsp, world.now, &sa).unwrap()];
        }
        let mut policies = Spd::new(4, 16, 1);
        let policy = Policy {
            id: 1,
            order: 1,
            name: String::new(),
            selector: PolicySelector {
                protocol: Some(6),
                ..PolicySelector::default()
            },
            action: PolicyAction::Protect {
                sas: vec![9],
                class: None,
            },
        };
        policies.insert(policy).unwrap();
        world.path.set_policies(Box::new(policies));
        world.load(200_000);
        world.narrowest = 1500;
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        // The first long segments find out that they are too long; the connection then makes them shorter.
        let too_long = |reason: &DropReason| *reason == DropReason::TooBig;
        assert!(
            world.drops.iter().all(too_long) && world.drops.len() <= 8,
            "{:?}",
            world.drops
        );
        assert!(
            world.relayed > 200 && world.longest[1] <= 1500,
            "{:?}",
            world.longest
        );
    }
}

#[test]
fn ends_that_know_tunnels_alone_are_relayed_under_a_wildcard() {
    for v6 in [false, true] {
        let shape = Shape {
            v6,
            mode: Mode::Wildcard,
            ..PLAIN
        };
        let mut world = World::new(shape, RelayConfig::default());
        let [terminal, peer] = addresses(v6);
        let tunnel = Shape {
            mode: Mode::Tunnel,
            ..shape
        };
        let sa = child(terminal, peer, 0x1000, 1, tunnel);
        for (end, sa) in [(0, segment(&sa, 11)), (1, sa.mirrored())] {
            world.ends[end].out.clear();
            world.ends[end].inbound.clear();
            world.ends[end].give(world.now, &sa);
        }
        world.loss_per_mille = 20;
        world.load(200_000);
        world.run_until(Duration::from_secs(60), World::has_everything);
        world.check();
        assert_eq!(world.drops, []);
    }
}
