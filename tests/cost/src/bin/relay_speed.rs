//! What relaying TCP inside SAs costs a gateway's worker, without the kernel: for `cargo xtask bench tcp`.
//!
//! ```text
//! relay_speed SUITE MEGABYTES ROUNDS    megabytes per second through the relay, nanoseconds per packet,
//!                                       packets per segment of data; one line per round
//! ```
//!
//! A peer sends, a terminal receives, both in this program and in virtual time. Only what the gateway does runs inside
//! `gateway_works` and is timed; `valgrind --tool=callgrind --toggle-collect=*gateway_works*` counts the same.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant as Clock};

use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::esp_keys as keys;
use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_cost::{PEER, TERMINAL};
use towpath_crypto::esp::AwsLcTransform;
use towpath_crypto::{AwsLcEsp, SystemRng};
use towpath_fabric::{GatewayKeys, GatewaySa};
use towpath_gateway::datapath::{Arrival, Datapath, Disposition};
use towpath_gateway::relay::RelayConfig;
use towpath_ipsec::{InboundSa, OutboundSa};
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::{Algorithm, Config, Ecn, Endpoint, IsnSecret, SeqNum};

/// Room of a frame, and in front of a packet in it.
const FRAME: usize = 2048;
const HEADROOM: usize = 256;
/// Packets that arrive together.
const BATCH: usize = 64;
/// Virtual time between two batches.
const STEP: Duration = Duration::from_micros(100);

/// A packet and the rooms around it.
struct Packet {
    bytes: Box<[u8; FRAME]>,
    start: usize,
    len: usize,
}

impl Packet {
    fn empty() -> Self {
        Self {
            bytes: Box::new([0; FRAME]),
            start: HEADROOM,
            len: 0,
        }
    }

    fn with<R>(&mut self, work: impl FnOnce(&mut PacketBuf<'_>) -> R) -> R {
        let mut packet =
            PacketBuf::new(&mut self.bytes[..], self.start, self.len).expect("the packet lies in its frame");
        let result = work(&mut packet);
        (self.start, self.len) = (packet.start(), packet.len());
        result
    }
}

/// One end: its TCP and its IPsec.
struct Host {
    tcp: Endpoint,
    outbound: OutboundSa<AwsLcTransform>,
    inbound: InboundSa<AwsLcTransform>,
    ip: IpHeader,
    rng: SystemRng,
}

impl Host {
    fn new(tcp: Endpoint, sa: &ChildSa) -> Self {
        let now = Instant::ZERO;
        Self {
            tcp,
            outbound: OutboundSa::new(&AwsLcEsp, now, sa).expect("keys fit the suite"),
            inbound: InboundSa::new(&AwsLcEsp, now, sa).expect("keys fit the suite"),
            ip: IpHeader {
                source: sa.local,
                destination: sa.remote,
                dscp: 0,
                ecn: Ecn::NotEct,
                ttl: 64,
            },
            rng: SystemRng,
        }
    }

    /// The packets it sends now, at most `BATCH`.
    fn send(&mut self, now: Instant, pool: &mut Vec<Packet>, batch: &mut Vec<Packet>) {
        while batch.len() < BATCH {
            let mut packet = pool.pop().unwrap_or_else(Packet::empty);
            (packet.start, packet.len) = (HEADROOM, 0);
            let (tcp, ip) = (&mut self.tcp, self.ip);
            let wrote = packet.with(|packet| {
                let out = packet.grow_back(1500)?;
                let segment = tcp.poll_transmit(now, out.get_mut(ip.header_len()..)?)?;
                let len = ip.finish(out, segment.len)?;
                packet.strip_back(1500 - len)?;
                Some(())
            });
            if wrote.is_none() {
                pool.push(packet);
                return;
            }
            let (outbound, rng) = (&mut self.outbound, &mut self.rng);
            packet
                .with(|packet| outbound.seal(now, packet, rng))
                .expect("sealed");
            batch.push(packet);
        }
    }

    fn receive(&mut self, now: Instant, packet: &mut Packet) {
        let inbound = &mut self.inbound;
        let tcp = &mut self.tcp;
        packet.with(|packet| {
            inbound.open(now, packet).expect("the gateway's packet opens");
            let packet = TcpPacket::parse(packet.bytes()).expect("the gateway's packet is TCP");
            tcp.handle_input(now, &packet.segment, packet.ecn);
        });
        while self.tcp.poll_command().is_some() {}
    }
}

/// The gateway, and what it spent.
struct Gateway {
    path: Datapath<AwsLcEsp>,
    rng: SystemRng,
    spent: Duration,
    packets: u64,
}

impl Gateway {
    /// Takes a batch from either side and says what it has to say.
    #[inline(never)]
    fn gateway_works(
        &mut self,
        now: Instant,
        from_access: bool,
        batch: &mut [Packet],
        pool: &mut Vec<Packet>,
        out: &mut Vec<Packet>,
    ) {
        let arrival = Arrival {
            from_access,
            egress: None,
        };
        let start = Clock::now();
        for packet in batch {
            let (path, rng) = (&mut self.path, &mut self.rng);
            let disposition = packet.with(|packet| path.process(now, arrival, packet, rng));
            assert_eq!(disposition, Disposition::Taken, "the relay takes everything");
            self.packets += 1;
        }
        self.path.handle_timeout(now);
        loop {
            let mut packet = pool.pop().unwrap_or_else(Packet::empty);
            (packet.start, packet.len) = (HEADROOM, 0);
            let (path, rng) = (&mut self.path, &mut self.rng);
            match packet.with(|packet| path.relay_transmit(now, packet, rng)) {
                Some(sent) => {
                    sent.expect("the relay's packet is sealed");
                    self.packets += 1;
                    out.push(packet);
                }
                None => {
                    pool.push(packet);
                    break;
                }
            }
        }
        self.spent += start.elapsed();
    }
}

fn negotiated(suite: EspSuite, fill: u8) -> ChildSa {
    ChildSa {
        local: TERMINAL,
        remote: PEER,
        suite,
        mode: Mode::Tunnel,
        esn: false,
        encap: None,
        spi_in: Spi(0x1001),
        spi_out: Spi(0x2002),
        keys_in: keys(suite, fill),
        keys_out: keys(suite, fill + 1),
        local_ts: Selectors::one(TrafficSelector::host(TERMINAL)),
        remote_ts: Selectors::one(TrafficSelector::host(PEER)),
        lifetime: Lifetime::default(),
    }
}

fn tcp(local_port: u16, remote_port: u16) -> Config {
    Config {
        local_port,
        remote_port,
        mss: 1360,
        send_limit: 4 << 20,
        receive_initial: 4 << 20,
        receive_limit: 8 << 20,
        algorithm: Algorithm::Cubic,
        pacing: false,
        ..Config::default()
    }
}

/// Relays `megabytes` and returns nanoseconds the gateway spent, and packets it handled.
fn relay(suite: EspSuite, megabytes: u64) -> (Duration, u64) {
    let now = Instant::from_secs(1);
    let peer_sa = negotiated(suite, 1);
    let segment = negotiated(suite, 3);
    let mut path = Datapath::new(AwsLcEsp, 8).with_relay(RelayConfig::default(), IsnSecret([1, 2]));
    let sa = GatewaySa {
        level: Some(0),
        subscriber: SubscriberHandle(1),
        local: TERMINAL,
        remote: PEER,
        spi_in: peer_sa.spi_in,
        spi_out: peer_sa.spi_out,
        keys: GatewayKeys::Full {
            peer: peer_sa.clone(),
            segment_in: keys(suite, 3),
            segment_out: keys(suite, 4),
        },
    };
    path.install(now, &sa).expect("the SA is installed");
    let mut gateway = Gateway {
        path,
        rng: SystemRng,
        spent: Duration::ZERO,
        packets: 0,
    };
    let mut terminal = Host::new(Endpoint::connect(now, tcp(4000, 80), SeqNum(1)), &segment);
    let mut peer = Host::new(
        Endpoint::listen(now, tcp(80, 4000), SeqNum(9)),
        &peer_sa.mirrored(),
    );
    let (mut pool, mut batch, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let chunk = vec![0x55; 1 << 20];
    let (mut now, mut got) = (now, 0);
    let mut started = false;
    let mut sides = [(&mut terminal, true), (&mut peer, false)];
    while got < megabytes << 20 {
        now += STEP;
        for index in 0..2 {
            let (host, from_access) = &mut sides[index];
            host.tcp.handle_timeout(now);
            if *from_access {
                let count = host.tcp.readable_len();
                got += count as u64;
                host.tcp.consume(now, count);
            } else {
                let room = host.tcp.writable().min(chunk.len());
                host.tcp.write(&chunk[..room]);
            }
            host.send(now, &mut pool, &mut batch);
            // Where connections begin is not what is measured.
            if !started && got > 1 << 20 {
                started = true;
                (gateway.spent, gateway.packets, got) = (Duration::ZERO, 0, 0);
            }
            gateway.gateway_works(now, *from_access, &mut batch, &mut pool, &mut out);
            pool.append(&mut batch);
            for mut packet in out.drain(..) {
                // The outer destination of the tunnel tells where it goes.
                let header = &packet.bytes[packet.start..];
                let to_terminal = header[16..20] == [10, 77, 1, 2];
                sides[usize::from(!to_terminal)].0.receive(now, &mut packet);
                pool.push(packet);
            }
        }
    }
    (gateway.spent, gateway.packets)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [suite, megabytes, rounds] = arguments.as_slice() else {
        panic!("relay_speed SUITE MEGABYTES ROUNDS");
    };
    let suite = EspSuite::ALL
        .iter()
        .find(|known| known.to_string() == *suite)
        .expect("a suite that exists");
    let number = |text: &String| text.parse::<u64>().expect("a number");
    for _ in 0..number(rounds) {
        let (spent, packets) = relay(*suite, number(megabytes));
        let bytes = (number(megabytes) << 20) as f64;
        println!(
            "{:.1} {:.0} {:.3}",
            bytes / 1e6 / spent.as_secs_f64(),
            spent.as_nanos() as f64 / packets as f64,
            packets as f64 / bytes * 1360.0,
        );
    }
}
