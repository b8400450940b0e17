use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::esp_keys as keys;
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::{InboundSa, OutboundSa};

use super::*;

const SPI_IN: Spi = Spi(0x1001);
const SPI_OUT: Spi = Spi(0x2002);
const ACCESS: Arrival = Arrival {
    from_access: true,
    egress: None,
};

/// Not random, but never the same twice.
struct Counter(u8);

impl Rng for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0 = self.0.wrapping_add(1);
        bytes.fill(self.0);
    }
}

fn child(suite: EspSuite, local: IpAddr, remote: IpAddr, spi_in: Spi, spi_out: Spi) -> ChildSa {
    ChildSa {
        local,
        remote,
        suite,
        mode: Mode::Transport,
        esn: false,
        encap: None,
        spi_in,
        spi_out,
        keys_in: keys(suite, 1),
        keys_out: keys(suite, 2),
        local_ts: Selectors::one(TrafficSelector::host(local)),
        remote_ts: Selectors::one(TrafficSelector::host(remote)),
        lifetime: Lifetime::default(),
    }
}

fn full(subscriber: u64, peer: ChildSa, segment_in: u8, segment_out: u8) -> GatewaySa {
    GatewaySa {
        subscriber: SubscriberHandle(subscriber),
        local: peer.local,
        remote: peer.remote,
        spi_in: peer.spi_in,
        spi_out: peer.spi_out,
        keys: GatewayKeys::Full {
            segment_in: keys(peer.suite, segment_in),
            segment_out: keys(peer.suite, segment_out),
            peer,
        },
    }
}

fn addresses(v6: bool) -> [IpAddr; 2] {
    if v6 {
        ["2001:db8::a", "2001:db8::b"].map(|text| text.parse().unwrap())
    } else {
        ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap())
    }
}

fn plain(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let source = std::net::SocketAddr::new(source, 7000);
    let destination = std::net::SocketAddr::new(destination, 7001);
    let payload = (0..200).collect();
    crate::datagram::build(&towpath_fabric::Datagram {
        source,
        destination,
        payload,
    })
    .unwrap()
}

struct Frame {
    buffer: [u8; 2048],
    start: usize,
    len: usize,
}

impl Frame {
    fn of(packet: &[u8]) -> Self {
        let mut buffer = [0; 2048];
        buffer[256..256 + packet.len()].copy_from_slice(packet);
        Self {
            buffer,
            start: 256,
            len: packet.len(),
        }
    }

    fn with<O>(&mut self, work: impl FnOnce(&mut PacketBuf<'_>) -> O) -> O {
        let mut packet = PacketBuf::new(&mut self.buffer, self.start, self.len).unwrap();
        let outcome = work(&mut packet);
        (self.start, self.len) = (packet.start(), packet.len());
        outcome
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

#[test]
fn class_full_opens_one_segment_and_seals_the_other_both_ways() {
    for (suite, v6) in EspSuite::ALL
        .iter()
        .flat_map(|suite| [(*suite, false), (*suite, true)])
    {
        let [terminal, peer] = addresses(v6);
        let negotiated = child(suite, terminal, peer, SPI_IN, SPI_OUT);
        let segment = ChildSa {
            keys_in: keys(suite, 3),
            keys_out: keys(suite, 4),
            ..negotiated.clone()
        };
        let (now, mut rng) = (Instant::from_secs(1), Counter(0));
        let mut path = Datapath::new(SoftEsp, 8);
        path.install(now, &full(1, negotiated.clone(), 3, 4)).unwrap();

        let original = plain(terminal, peer);
        let mut frame = Frame::of(&original);
        let mut terminal_out = OutboundSa::new(&SoftEsp, now, &segment).unwrap();
        frame
            .with(|packet| terminal_out.seal(now, packet, &mut rng))
            .unwrap();
        let on_access = frame.bytes().to_vec();
        let disposition = frame.with(|packet| path.process(now, ACCESS, packet, &mut rng));
        assert_eq!(disposition, Disposition::Forward);
        assert_ne!(frame.bytes(), on_access);
        let mut peer_in: InboundSa<_> = InboundSa::new(&SoftEsp, now, &negotiated.mirrored()).unwrap();
        frame.with(|packet| peer_in.open(now, packet)).unwrap();
        assert_eq!(frame.bytes(), original, "{suite} v6={v6}");

        let original = plain(peer, terminal);
        let mut frame = Frame::of(&original);
        let mut peer_out = OutboundSa::new(&SoftEsp, now, &negotiated.mirrored()).unwrap();
        frame.with(|packet| peer_out.seal(now, packet, &mut rng)).unwrap();
        let disposition = frame.with(|packet| path.process(now, Arrival::default(), packet, &mut rng));
        assert_eq!(disposition, Disposition::Forward);
        let mut terminal_in: InboundSa<_> = InboundSa::new(&SoftEsp, now, &segment).unwrap();
        frame.with(|packet| terminal_in.open(now, packet)).unwrap();
        assert_eq!(frame.bytes(), original, "{suite} v6={v6}");

        let (_, _, counters) = path.counters().next().unwrap();
        assert_eq!((counters.packets_to_peer, counters.packets_to_terminal), (1, 1));
    }
}

#[test]
fn a_packet_between_two_terminals_passes_both_tables() {
    let suite = EspSuite::Aes256Gcm16;
    let [a, b] = addresses(false);
    let negotiated = child(suite, a, b, SPI_IN, SPI_OUT);
    let (now, mut rng) = (Instant::from_secs(1), Counter(0));
    let mut path = Datapath::new(SoftEsp, 8);
    path.install(now, &full(1, negotiated.clone(), 3, 4)).unwrap();
    path.install(now, &full(2, negotiated.mirrored(), 5, 6)).unwrap();

    let original = plain(a, b);
    let mut frame = Frame::of(&original);
    let a_segment = ChildSa {
        keys_out: keys(suite, 4),
        ..negotiated.clone()
    };
    let mut a_out = OutboundSa::new(&SoftEsp, now, &a_segment).unwrap();
    frame.with(|packet| a_out.seal(now, packet, &mut rng)).unwrap();
    assert_eq!(
        frame.with(|packet| path.process(now, ACCESS, packet, &mut rng)),
        Disposition::Forward
    );
    let b_segment = ChildSa {
        keys_in: keys(suite, 5),
        ..negotiated.mirrored()
    };
    let mut b_in: InboundSa<_> = InboundSa::new(&SoftEsp, now, &b_segment).unwrap();
    frame.with(|packet| b_in.open(now, packet)).unwrap();
    assert_eq!(frame.bytes(), original);
}

#[test]
fn class_none_and_unknown_sas_pass_untouched() {
    let suite = EspSuite::Aes128Gcm16;
    let [terminal, peer] = addresses(true);
    let negotiated = child(suite, terminal, peer, SPI_IN, SPI_OUT);
    let (now, mut rng) = (Instant::from_secs(1), Counter(0));
    let mut sealed = Frame::of(&plain(terminal, peer));
    let mut out = OutboundSa::new(&SoftEsp, now, &negotiated).unwrap();
    sealed.with(|packet| out.seal(now, packet, &mut rng)).unwrap();
    let before = sealed.bytes().to_vec();

    let mut path = Datapath::new(SoftEsp, 8);
    for known in [false, true] {
        if known {
            let sa = GatewaySa {
                keys: GatewayKeys::None,
                ..full(1, negotiated.clone(), 3, 4)
            };
            path.install(now, &sa).unwrap();
        }
        assert_eq!(
            sealed.with(|packet| path.process(now, ACCESS, packet, &mut rng)),
            Disposition::Forward
        );
        assert_eq!(sealed.bytes(), before);
    }
    assert_eq!(path.counters().next().unwrap().2.packets_to_peer, 1);
}

#[test]
fn a_forged_packet_is_dropped_and_counted_and_a_core_port_cannot_speak_for_a_terminal() {
    let suite = EspSuite::Aes128Gcm16;
    let [terminal, peer] = addresses(false);
    let negotiated = child(suite, terminal, peer, SPI_IN, SPI_OUT);
    let (now, mut rng) = (Instant::from_secs(1), Counter(0));
    let mut path = Datapath::new(SoftEsp, 8);
    path.install(now, &full(1, negotiated.clone(), 3, 4)).unwrap();
    let mut frame = Frame::of(&plain(terminal, peer));
    // Sealed under the wrong key: the peer's instead of the segment's.
    let mut out = OutboundSa::new(&SoftEsp, now, &negotiated).unwrap();
    frame.with(|packet| out.seal(now, packet, &mut rng)).unwrap();
    let before = frame.bytes().to_vec();
    assert_eq!(
        frame.with(|packet| path.process(now, Arrival::default(), packet, &mut rng)),
        Disposition::Forward
    );
    assert_eq!(frame.bytes(), before);
    assert_eq!(
        frame.with(|packet| path.process(now, ACCESS, packet, &mut rng)),
        Disposition::Drop(DropReason::EspAuthFailed)
    );
    assert_eq!(path.counters().next().unwrap().2.refused, 1);
}

#[test]
fn the_table_is_bounded_and_a_removed_sa_is_gone() {
    let [terminal, peer] = addresses(false);
    let now = Instant::from_secs(1);
    let mut path = Datapath::new(SoftEsp, 2);
    let sa = |spi| {
        full(
            1,
            child(EspSuite::Aes128Gcm16, terminal, peer, Spi(spi), Spi(spi + 1)),
            3,
            4,
        )
    };
    path.install(now, &sa(1000)).unwrap();
    path.install(now, &sa(2000)).unwrap();
    // The same one again replaces, another one does not fit.
    path.install(now, &sa(2000)).unwrap();
    assert_eq!(path.install(now, &sa(3000)), Err(InstallError::Full));
    let key = SaKey {
        local: terminal,
        remote: peer,
        spi_in: Spi(1000),
        spi_out: Spi(1001),
    };
    assert!(path.remove(&key).is_some());
    assert!(path.remove(&key).is_none());
    path.install(now, &sa(3000)).unwrap();
}
