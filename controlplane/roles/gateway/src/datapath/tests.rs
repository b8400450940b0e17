use towpath_base::Key;
use towpath_base::sa::{AhSa, EspIntegrity};
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::esp_keys as keys;
use towpath_fabric::{AhSegments, GatewayKeys};
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::{AhInbound, AhOutbound, InboundSa, OutboundSa};

use super::*;

mod wildcard;

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
        level: Some(0),
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
                level: Some(0),
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

const FORM: EspIntegrity = EspIntegrity::HmacSha256;

fn ah_key(fill: u8) -> Key {
    Key::from_slice(&[fill; 32]).unwrap()
}

fn ah(local: IpAddr, remote: IpAddr, bundled: bool, key_in: u8, key_out: u8) -> AhSa {
    AhSa {
        local,
        remote,
        integrity: FORM,
        mode: Mode::Transport,
        esn: true,
        align8: true,
        bundled,
        spi_in: SPI_IN,
        spi_out: SPI_OUT,
        key_in: ah_key(key_in),
        key_out: ah_key(key_out),
        local_ts: Selectors::one(TrafficSelector::host(local)),
        remote_ts: Selectors::one(TrafficSelector::host(remote)),
        lifetime: Lifetime::default(),
    }
}

fn ah_segments(local: IpAddr, remote: IpAddr, bundled: bool) -> AhSegments {
    AhSegments {
        peer: ah(local, remote, bundled, 1, 2),
        segment_in: ah_key(3),
        segment_out: ah_key(4),
    }
}

fn gateway(local: IpAddr, remote: IpAddr, keys: GatewayKeys) -> GatewaySa {
    GatewaySa {
        level: Some(0),
        subscriber: SubscriberHandle(1),
        local,
        remote,
        spi_in: SPI_IN,
        spi_out: SPI_OUT,
        keys,
    }
}

#[test]
fn ah_alone_is_checked_and_signed_anew_both_ways_and_a_changed_byte_is_refused() {
    for v6 in [false, true] {
        let [terminal, peer] = addresses(v6);
        let (now, mut rng) = (Instant::from_secs(1), Counter(0));
        let mut path = Datapath::new(SoftEsp, 8);
        let keys = GatewayKeys::Ah(ah_segments(terminal, peer, false));
        path.install(now, &gateway(terminal, peer, keys)).unwrap();
        let segment = ah(terminal, peer, false, 3, 4);
        let negotiated = ah(terminal, peer, false, 1, 2);

        let original = plain(terminal, peer);
        let mut frame = Frame::of(&original);
        let mut out = AhOutbound::new(&SoftEsp, now, &segment).unwrap();
        frame.with(|packet| out.seal(now, packet)).unwrap();
        let mut forged = Frame::of(frame.bytes());
        forged.buffer[256 + forged.len - 1] ^= 1;
        let refused = forged.with(|packet| path.process(now, ACCESS, packet, &mut rng));
        assert_eq!(refused, Disposition::Drop(DropReason::EspAuthFailed));
        let passed = frame.with(|packet| path.process(now, ACCESS, packet, &mut rng));
        assert_eq!(passed, Disposition::Forward);
        let ends = negotiated.mirrored();
        let mut inward: AhInbound<_> = AhInbound::new(&SoftEsp, now, &ends).unwrap();
        frame.with(|packet| inward.open(now, packet)).unwrap();
        assert_eq!(frame.bytes(), original, "v6={v6}");

        let original = plain(peer, terminal);
        let mut frame = Frame::of(&original);
        let mut back = AhOutbound::new(&SoftEsp, now, &ends).unwrap();
        frame.with(|packet| back.seal(now, packet)).unwrap();
        let passed = frame.with(|packet| path.process(now, Arrival::default(), packet, &mut rng));
        assert_eq!(passed, Disposition::Forward);
        let mut inward: AhInbound<_> = AhInbound::new(&SoftEsp, now, &segment).unwrap();
        frame.with(|packet| inward.open(now, packet)).unwrap();
        assert_eq!(frame.bytes(), original, "v6={v6}");
        let (_, _, counters) = path.counters().next().unwrap();
        let seen = (
            counters.packets_to_peer,
            counters.packets_to_terminal,
            counters.refused,
        );
        assert_eq!(seen, (1, 1, 1));
    }
}

/// ESP inside AH: the SA at the gateway, and its terminal's halves.
struct Bundle {
    path: Datapath<SoftEsp>,
    esp_out: OutboundSa<towpath_ipsec::soft::SoftTransform>,
    ah_out: AhOutbound<towpath_ipsec::soft::SoftIcv>,
    peer_esp: InboundSa<towpath_ipsec::soft::SoftTransform>,
    peer_ah: AhInbound<towpath_ipsec::soft::SoftIcv>,
    terminal: IpAddr,
    peer: IpAddr,
}

fn bundle(suite: EspSuite, mode: Mode, v6: bool, now: Instant) -> Bundle {
    let [terminal, peer] = addresses(v6);
    let negotiated = ChildSa {
        mode,
        esn: true,
        ..child(suite, terminal, peer, Spi(0x3003), Spi(0x4004))
    };
    let segment = ChildSa {
        keys_in: keys(suite, 3),
        keys_out: keys(suite, 4),
        ..negotiated.clone()
    };
    let mut path = Datapath::new(SoftEsp, 8);
    let given = GatewayKeys::EspInAh {
        segment_in: keys(suite, 3),
        segment_out: keys(suite, 4),
        peer: negotiated.clone(),
        ah: ah_segments(terminal, peer, true),
    };
    path.install(now, &gateway(terminal, peer, given)).unwrap();
    let ends = ah(terminal, peer, true, 1, 2).mirrored();
    Bundle {
        path,
        esp_out: OutboundSa::new(&SoftEsp, now, &segment).unwrap(),
        ah_out: AhOutbound::new(&SoftEsp, now, &ah(terminal, peer, true, 3, 4)).unwrap(),
        peer_esp: InboundSa::new(&SoftEsp, now, &negotiated.mirrored()).unwrap(),
        peer_ah: AhInbound::new(&SoftEsp, now, &ends).unwrap(),
        terminal,
        peer,
    }
}

impl Bundle {
    fn sealed(&mut self, now: Instant, original: &[u8], rng: &mut Counter) -> Frame {
        let mut frame = Frame::of(original);
        frame.with(|packet| self.esp_out.seal(now, packet, rng)).unwrap();
        frame.with(|packet| self.ah_out.seal(now, packet)).unwrap();
        frame
    }

    fn opened(&mut self, now: Instant, frame: &mut Frame) {
        frame.with(|packet| self.peer_ah.open(now, packet)).unwrap();
        frame.with(|packet| self.peer_esp.open(now, packet)).unwrap();
    }
}

#[test]
fn esp_inside_ah_is_opened_and_sealed_in_either_mode() {
    let (now, mut rng) = (Instant::from_secs(1), Counter(0));
    for suite in [EspSuite::Aes256Gcm16, EspSuite::Aes128CbcSha256] {
        for (mode, v6) in [Mode::Transport, Mode::Tunnel]
            .into_iter()
            .flat_map(|mode| [(mode, false), (mode, true)])
        {
            let mut world = bundle(suite, mode, v6, now);
            let original = plain(world.terminal, world.peer);
            let mut frame = world.sealed(now, &original, &mut rng);
            let passed = frame.with(|packet| world.path.process(now, ACCESS, packet, &mut rng));
            assert_eq!(passed, Disposition::Forward, "{suite} {mode} v6={v6}");
            world.opened(now, &mut frame);
            assert_eq!(frame.bytes(), original, "{suite} {mode} v6={v6}");
        }
    }
}

#[test]
fn a_fragmented_packet_is_put_together_opened_sealed_and_cut_as_it_came() {
    let (now, mut rng) = (Instant::from_secs(1), Counter(0));
    for v6 in [false, true] {
        let mut world = bundle(EspSuite::Aes256Gcm16, Mode::Tunnel, v6, now);
        let original = plain(world.terminal, world.peer);
        let frame = world.sealed(now, &original, &mut rng);
        let mut whole = frame.bytes().to_vec();
        if !v6 {
            whole[6] &= !0x40;
        }
        let mut cut = towpath_ipsec::fragment::fragments(&whole, 200, 7).unwrap();
        let mut buffer = [0; 200];
        let mut pieces = Vec::new();
        while let Some(len) = cut.write_next(&mut buffer) {
            pieces.push(buffer[..len].to_vec());
        }
        assert!(pieces.len() > 1);
        for piece in pieces.iter().rev() {
            let done = world.path.process_fragment(now, ACCESS, true, piece, &mut rng);
            assert_eq!(done, Disposition::Queued);
        }
        let mut back = towpath_ipsec::reassembly::Reassembler::new(Default::default());
        let mut sent = 0;
        let mut complete = None;
        while let Some(Extra::Send { packet, .. }) = world.path.poll_extra() {
            assert!(packet.len() <= 200);
            sent += 1;
            if let towpath_ipsec::reassembly::Outcome::Complete(whole) = back.push(now, &packet).unwrap() {
                complete = Some(whole);
            }
        }
        assert_eq!(sent, pieces.len());
        let mut frame = Frame::of(&complete.unwrap());
        world.opened(now, &mut frame);
        assert_eq!(frame.bytes(), original, "v6={v6}");
    }
}

#[test]
fn half_a_datagram_is_given_up_and_counted() {
    let (now, mut rng) = (Instant::from_secs(1), Counter(0));
    let mut world = bundle(EspSuite::Aes256Gcm16, Mode::Tunnel, true, now);
    let original = plain(world.terminal, world.peer);
    let whole = world.sealed(now, &original, &mut rng).bytes().to_vec();
    let mut cut = towpath_ipsec::fragment::fragments(&whole, 200, 7).unwrap();
    let mut buffer = [0; 200];
    let len = cut.write_next(&mut buffer).unwrap();
    world
        .path
        .process_fragment(now, ACCESS, true, &buffer[..len], &mut rng);
    world.path.tick(Instant::from_secs(2));
    assert_eq!(world.path.take_timeouts(), 0);
    world.path.tick(Instant::from_secs(60));
    assert_eq!((world.path.take_timeouts(), world.path.take_timeouts()), (1, 0));
}

#[test]
fn a_router_s_too_big_sets_the_path_and_the_sender_inside_is_told() {
    let (now, mut rng) = (Instant::from_secs(1), Counter(0));
    let suite = EspSuite::Aes256Gcm16;
    for v6 in [false, true] {
        let [terminal, peer] = addresses(v6);
        let negotiated = ChildSa {
            mode: Mode::Tunnel,
            ..child(suite, terminal, peer, SPI_IN, SPI_OUT)
        };
        let segment = ChildSa {
            keys_in: keys(suite, 3),
            keys_out: keys(suite, 4),
            ..negotiated.clone()
        };
        let mut path = Datapath::new(SoftEsp, 8);
        path.install(now, &full(1, negotiated, 3, 4)).unwrap();
        let mut out = OutboundSa::new(&SoftEsp, now, &segment).unwrap();
        let big = |len: usize| {
            let mut packet = plain(terminal, peer);
            packet.resize(len, 0);
            let field = if v6 { 4..6 } else { 2..4 };
            let told = if v6 { len - 40 } else { len } as u16;
            packet[field].copy_from_slice(&told.to_be_bytes());
            if !v6 {
                packet[6] |= 0x40;
                packet[10..12].fill(0);
                let sum = towpath_common::wire::checksum(&packet[..20]).to_be_bytes();
                packet[10..12].copy_from_slice(&sum);
            }
            packet
        };
        // Three packets pass; a router then says that the last one did not.
        let mut last = Vec::new();
        for _ in 0..3 {
            let mut frame = Frame::of(&big(1400));
            frame.with(|packet| out.seal(now, packet, &mut rng)).unwrap();
            let passed = frame.with(|packet| path.process(now, ACCESS, packet, &mut rng));
            assert_eq!(passed, Disposition::Forward);
            last = frame.bytes().to_vec();
        }
        let router: IpAddr = if v6 { "2001:db8::ff" } else { "10.9.9.9" }.parse().unwrap();
        let mut error = [0; towpath_ipsec::icmp::MAX_LEN];
        let len = towpath_ipsec::icmp::write_too_big(&mut error, router, &last, 1380).unwrap();
        let told = path.process_too_big(now, &mut error[..len]);
        assert_eq!(told, Disposition::Forward, "v6={v6}");
        assert!(
            towpath_ipsec::icmp::read_too_big(&error[..len]).is_ok(),
            "its checksum is right"
        );
        assert_eq!(
            path.plain_mtu((terminal, peer), Side::Network, now, 1500, !v6),
            Some(out.largest_plain(1380, !v6))
        );
        // The next one of that size is not sent: its sender gets an answer, inside the SA.
        let mut frame = Frame::of(&big(1400));
        frame.with(|packet| out.seal(now, packet, &mut rng)).unwrap();
        let passed = frame.with(|packet| path.process(now, ACCESS, packet, &mut rng));
        assert_eq!(passed, Disposition::Queued);
        let Some(Extra::Send { packet, .. }) = path.poll_extra() else {
            panic!("an answer")
        };
        let mut frame = Frame::of(&packet);
        let mut inward: InboundSa<_> = InboundSa::new(&SoftEsp, now, &segment).unwrap();
        let opened = frame.with(|packet| inward.open(now, packet)).unwrap();
        assert_eq!((opened.flow.source, opened.flow.destination), (peer, terminal));
        assert_eq!(opened.flow.protocol, if v6 { 58 } else { 1 });
        // A quotation of a packet never sent is not believed.
        let at = locate::esp(&last).unwrap().esp_at;
        last[at + 4] ^= 0x40;
        let len = towpath_ipsec::icmp::write_too_big(&mut error, router, &last, 1300).unwrap();
        let told = path.process_too_big(now, &mut error[..len]);
        assert_eq!(told, Disposition::Drop(DropReason::IcmpNotOurs));
    }
}

#[test]
fn a_quiet_sa_behind_udp_keeps_the_nat_awake_and_keep_alives_end_here() {
    let [terminal, peer] = addresses(false);
    let encap = Some(towpath_base::sa::UdpEncap {
        local_port: 4500,
        remote_port: 4500,
    });
    let start = Instant::from_secs(1);
    let mut path = Datapath::new(SoftEsp, 8);
    let sa = ChildSa {
        encap,
        ..child(EspSuite::Aes256Gcm16, terminal, peer, SPI_IN, SPI_OUT)
    };
    path.install(start, &full(1, sa, 3, 4)).unwrap();
    let mut sent = Vec::new();
    for second in 1..=61 {
        path.tick(Instant::from_secs(second));
        while let Some(Extra::Send { packet, .. }) = path.poll_extra() {
            assert!(towpath_ipsec::keepalive::is_keep_alive(&packet));
            sent.push(packet);
        }
    }
    assert_eq!(sent.len(), 3);
    let ours = path.process_keep_alive(&sent[0]);
    assert_eq!(ours, Disposition::Drop(DropReason::NatKeepalive));
    path.remove(&SaKey {
        local: terminal,
        remote: peer,
        spi_in: SPI_IN,
        spi_out: SPI_OUT,
    });
    assert_eq!(path.process_keep_alive(&sent[0]), Disposition::Forward);
}
