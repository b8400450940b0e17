//! TCP in the clear through the relay, in virtual time: which packets it takes, and which it must not.
#![allow(missing_docs)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use towpath_base::packet::PacketBuf;
use towpath_base::testutil::SeededRng;
use towpath_base::{Instant, SubscriberHandle};
use towpath_gateway::datapath::{Arrival, Datapath, Disposition};
use towpath_gateway::relay::{Egress, RelayConfig};
use towpath_ipsec::soft::SoftEsp;
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::relay::rules::{Action, Class, Rule, Rules, Treatment};
use towpath_tcp::{Config, Ecn, Endpoint, IsnSecret, SeqNum};

const WHOSE: SubscriberHandle = SubscriberHandle(7);

fn egress(ifindex: u32) -> Egress {
    Egress {
        ifindex,
        dmac: [2; 6],
        smac: [4; 6],
    }
}

fn ends(v6: bool) -> [IpAddr; 2] {
    let text = if v6 {
        ["2001:db8::a", "2001:db8::b"]
    } else {
        ["10.0.0.1", "10.0.0.2"]
    };
    text.map(|text| text.parse().unwrap())
}

fn gateway(class: Option<Class>) -> Datapath<SoftEsp> {
    let rule = Rule {
        class,
        opener: None,
        network: None,
        network_port: Some(80..=80),
        terminal_port: None,
        action: Action::of(Treatment::Split),
    };
    let rules = Rules {
        rules: vec![rule],
        ..Rules::default()
    };
    let config = RelayConfig {
        terminal_mtu: 1400,
        rules: Arc::new(rules),
        ..RelayConfig::default()
    };
    Datapath::new(SoftEsp, 4).with_relay(config, IsnSecret([3, 4]))
}

struct World {
    now: Instant,
    path: Datapath<SoftEsp>,
    address: [IpAddr; 2],
    ends: [Endpoint; 2],
    read: [Vec<u8>; 2],
    /// Packets the relay made, per side, and where they left.
    made: [u64; 2],
    left: Vec<Option<Egress>>,
    passed: u64,
    longest: usize,
}

impl World {
    fn new(v6: bool, class: Option<Class>, port: u16) -> Self {
        let now = Instant::from_secs(1);
        let config = |local_port, remote_port| Config {
            local_port,
            remote_port,
            mss: 1460,
            ..Config::default()
        };
        Self {
            now,
            path: gateway(class),
            address: ends(v6),
            ends: [
                Endpoint::connect(now, config(4000, port), SeqNum(1)),
                Endpoint::listen(now, config(port, 4000), SeqNum(900_000)),
            ],
            read: [Vec::new(), Vec::new()],
            made: [0; 2],
            left: Vec::new(),
            passed: 0,
            longest: 0,
        }
    }

    /// What an end says, as a packet.
    fn say(&mut self, from: usize) -> Option<Vec<u8>> {
        let mut ip = IpHeader {
            source: self.address[from],
            destination: self.address[1 - from],
            dscp: 0,
            ecn: Ecn::NotEct,
            ttl: 64,
        };
        let mut packet = vec![0; 1600];
        let outgoing = self.ends[from].poll_transmit(self.now, &mut packet[ip.header_len()..])?;
        ip.ecn = outgoing.ecn;
        let len = ip.finish(&mut packet, outgoing.len)?;
        packet.truncate(len);
        Some(packet)
    }

    fn hear(&mut self, to: usize, packet: &[u8]) {
        let tcp = TcpPacket::parse(packet).expect("a sound packet");
        assert_eq!(
            (tcp.source, tcp.destination),
            (self.address[1 - to], self.address[to])
        );
        let end = &mut self.ends[to];
        end.handle_input(self.now, &tcp.segment, tcp.ecn);
        let (front, back) = end.readable();
        self.read[to].extend_from_slice(front);
        self.read[to].extend_from_slice(back);
        let count = front.len() + back.len();
        self.ends[to].consume(self.now, count);
    }

    fn arrive(&mut self, from: usize, packet: &mut [u8]) -> Disposition {
        let arrival = Arrival {
            from_access: from == 0,
            egress: Some(egress(if from == 0 { 9 } else { 5 })),
        };
        self.path
            .process_clear(self.now, arrival, WHOSE, from == 0, packet)
    }

    fn step(&mut self) {
        for from in [0, 1] {
            while let Some(mut packet) = self.say(from) {
                match self.arrive(from, &mut packet) {
                    Disposition::Forward => {
                        self.passed += 1;
                        self.hear(1 - from, &packet);
                    }
                    Disposition::Taken => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        self.path.handle_timeout(self.now);
        let mut room = vec![0; 4096];
        loop {
            let mut packet = PacketBuf::new(&mut room, 256, 0).unwrap();
            let Some(outcome) = self
                .path
                .relay_transmit(self.now, &mut packet, &mut SeededRng::new(1))
            else {
                break;
            };
            self.left.push(outcome.expect("nothing to seal").egress);
            let packet = packet.bytes().to_vec();
            let to = usize::from(TcpPacket::parse(&packet).unwrap().destination == self.address[1]);
            self.made[to] += 1;
            self.longest = self.longest.max(packet.len());
            self.hear(to, &packet);
        }
        self.now += Duration::from_millis(1);
        self.ends.iter_mut().for_each(|end| end.handle_timeout(self.now));
    }

    fn transfer(&mut self, bytes: usize) {
        let data: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / 251) as u8).collect();
        let mut written = 0;
        for _ in 0..20_000 {
            if self.ends[0].state().can_send() && written < bytes {
                written += self.ends[0].write(&data[written..]);
            }
            self.step();
            if self.read[1].len() == bytes {
                break;
            }
        }
        assert!(self.read[1] == data, "{} of {bytes} bytes", self.read[1].len());
    }
}

#[test]
fn a_rule_has_tcp_in_the_clear_split_in_both_families() {
    for v6 in [false, true] {
        let mut world = World::new(v6, Some(Class::Clear), 80);
        world.transfer(300_000);
        assert_eq!(world.passed, 0);
        assert!(world.made[0] > 2 && world.made[1] > 200, "{:?}", world.made);
        // Neither link takes more, whichever it is.
        assert_eq!(world.longest, 1400);
        // Where its packets leave is learnt from those that came the other way.
        let known = |ifindex| {
            world
                .left
                .iter()
                .flatten()
                .any(|egress| egress.ifindex == ifindex)
        };
        assert!(known(9) && known(5));
        assert_eq!(world.path.relay_totals().flows, 1);
    }
}

#[test]
fn no_rule_no_relay() {
    // A rule about SAs, and one about another port.
    for (class, port) in [(None, 80), (Some(Class::Full), 80), (Some(Class::Clear), 81)] {
        let mut world = World::new(false, class, port);
        world.transfer(100_000);
        assert_eq!(
            (world.made, world.path.relay_totals().flows),
            ([0, 0], 0),
            "{class:?} {port}"
        );
        assert!(world.passed > 60);
    }
}

#[test]
fn a_connection_whose_beginning_was_not_seen_passes() {
    let mut world = World::new(false, Some(Class::Clear), 80);
    world.transfer(50_000);
    // Another process: it knows nothing of it.
    world.path = gateway(Some(Class::Clear));
    let made = world.made;
    world.ends[0].write(&[1; 100]);
    let mut packet = world.say(0).expect("data");
    assert_eq!(world.arrive(0, &mut packet), Disposition::Forward);
    assert_eq!(world.made, made);
    // A broken one is nobody's.
    packet[30] ^= 1;
    assert_eq!(world.arrive(0, &mut packet), Disposition::Forward);
}

#[test]
fn silent_pairs_are_forgotten_and_take_no_memory() {
    let mut world = World::new(false, Some(Class::Clear), 80);
    world.transfer(10_000);
    world.ends[0].close(world.now);
    for _ in 0..50 {
        world.step();
    }
    world.ends[1].close(world.now);
    for _ in 0..200 {
        world.now += Duration::from_secs(1);
        world.path.tick(world.now);
        world.step();
    }
    assert_eq!(world.path.relay_totals().flows, 0);
    // The next connection between the same two is relayed as the first one was.
    let mut next = World::new(false, Some(Class::Clear), 80);
    std::mem::swap(&mut next.path, &mut world.path);
    next.now = world.now;
    next.ends[0] = Endpoint::connect(
        next.now,
        Config {
            local_port: 4000,
            remote_port: 80,
            mss: 1460,
            ..Config::default()
        },
        SeqNum(77),
    );
    next.transfer(10_000);
    assert_eq!(next.passed, 0);
}
