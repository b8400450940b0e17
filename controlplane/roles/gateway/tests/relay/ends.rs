//! Keys, packets, and the hosts at both ends.

use std::net::IpAddr;
use std::time::Duration;

use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::esp_keys as keys;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_common::wire::checksum;
use towpath_fabric::{GatewayKeys, GatewaySa};
use towpath_gateway::relay::Egress;
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{InboundSa, OutboundSa, locate, wrapped};
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::{Ecn, Endpoint};

/// Arrives on the access side; the egress is of no interest here.
pub(crate) const EGRESS: Egress = Egress {
    ifindex: 7,
    dmac: [2; 6],
    smac: [4; 6],
};

pub(crate) struct TestRng(pub(crate) u64);

impl TestRng {
    pub(crate) fn next(&mut self) -> u64 {
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

pub(crate) fn child(local: IpAddr, remote: IpAddr, spi: u32, fill: u8, shape: Shape) -> ChildSa {
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
pub(crate) fn segment(sa: &ChildSa, fill: u8) -> ChildSa {
    ChildSa {
        keys_in: keys(sa.suite, fill),
        keys_out: keys(sa.suite, fill + 1),
        ..sa.clone()
    }
}

pub(crate) fn full(sa: &ChildSa, fill: u8) -> GatewaySa {
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
pub(crate) struct Shape {
    pub(crate) suite: EspSuite,
    pub(crate) v6: bool,
    pub(crate) mode: Mode,
    pub(crate) encap: bool,
}

pub(crate) const PLAIN: Shape = Shape {
    suite: EspSuite::Aes128Gcm16,
    v6: false,
    mode: Mode::Transport,
    encap: false,
};

pub(crate) fn addresses(v6: bool) -> [IpAddr; 2] {
    if v6 {
        ["2001:db8::a", "2001:db8::b"].map(|text| text.parse().unwrap())
    } else {
        ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap())
    }
}

/// A packet with the rooms a frame has.
pub(crate) struct Buffer(Box<[u8; 4096]>, usize, usize);

impl Buffer {
    pub(crate) fn of(packet: &[u8]) -> Self {
        let mut buffer = Box::new([0; 4096]);
        buffer[256..256 + packet.len()].copy_from_slice(packet);
        Self(buffer, 256, packet.len())
    }

    pub(crate) fn with<O>(&mut self, work: impl FnOnce(&mut PacketBuf<'_>) -> O) -> O {
        let mut packet = PacketBuf::new(&mut self.0[..], self.1, self.2).unwrap();
        let outcome = work(&mut packet);
        (self.1, self.2) = (packet.start(), packet.len());
        outcome
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[self.1..self.1 + self.2]
    }
}

/// A host with one connection and its SAs, newest last.
pub(crate) struct End {
    pub(crate) address: IpAddr,
    pub(crate) remote: IpAddr,
    pub(crate) endpoint: Endpoint,
    pub(crate) out: Vec<OutboundSa<SoftTransform>>,
    pub(crate) inbound: Vec<InboundSa<SoftTransform>>,
    pub(crate) to_write: Vec<u8>,
    pub(crate) written: usize,
    pub(crate) read: Vec<u8>,
    pub(crate) closed: bool,
    pub(crate) access: bool,
    pub(crate) delay: Duration,
    /// Its TCP travels inside other packets, inside the SA.
    pub(crate) inside: Option<Kind>,
}

/// Foreign encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    IpInIp,
    Gre,
}

/// `inner` inside a packet between two hosts.
pub(crate) fn enclose(kind: Kind, source: IpAddr, destination: IpAddr, inner: &[u8]) -> Vec<u8> {
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
    pub(crate) fn new(now: Instant, sa: &ChildSa, endpoint: Endpoint, access: bool) -> Self {
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

    pub(crate) fn give(&mut self, now: Instant, sa: &ChildSa) {
        self.out.push(OutboundSa::new(&SoftEsp, now, sa).unwrap());
        self.inbound.push(InboundSa::new(&SoftEsp, now, sa).unwrap());
    }

    pub(crate) fn work(&mut self, now: Instant) {
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

    pub(crate) fn packet(&mut self, now: Instant, rng: &mut TestRng) -> Option<Vec<u8>> {
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

    pub(crate) fn receive(&mut self, now: Instant, sealed: &[u8]) -> Result<(), DropReason> {
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
