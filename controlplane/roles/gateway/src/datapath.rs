//! One packet of a served terminal: which SA, which segment, what becomes of it.
//!
//! Pure and allocation-free per packet. The worker around it moves frames.
//!
//! ```text
//!   terminal ══ segment keys ══► [open | seal] ══ peer's keys ══► peer        to_peer
//!   terminal ◄══ segment keys ══ [seal | open] ◄══ peer's keys ══ peer        to_terminal
//! ```
//!
//! Both segments use the SPIs the peer negotiated, so a packet between two terminals of one gateway
//! simply passes both tables, one after the other (K10).

use std::collections::HashMap;
use std::net::IpAddr;

use slab::Slab;
use towpath_base::crypto::{EspProvider, InvalidKey, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_fabric::{GatewayKeys, GatewaySa};
use towpath_ipsec::bridge::{Bridge, LifetimeEvent};
use towpath_ipsec::locate::{self, Located};

/// Names one SA pair of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SaKey {
    /// Terminal's address.
    pub local: IpAddr,
    /// Peer's address.
    pub remote: IpAddr,
    /// SPI of packets the terminal receives.
    pub spi_in: Spi,
    /// SPI of packets the terminal sends.
    pub spi_out: Spi,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Send it on: opened and re-sealed, or untouched where no SA of class `full` is concerned.
    Forward,
    /// Count and drop.
    Drop(DropReason),
}

/// Something the control part wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An SA reached a limit; told once per limit.
    Expiring {
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// SPI of packets the terminal receives.
        spi_in: Spi,
        /// True at the hard limit.
        hard: bool,
    },
    /// A terminal sends on an SA this gateway was not given: a former process's, perhaps.
    UnknownSa {
        /// The terminal.
        terminal: IpAddr,
    },
}

/// Notices kept between two calls of [`Datapath::drain_notices`]; more are lost, and come again.
const MAX_NOTICES: usize = 64;

/// Packets and bytes of one SA pair so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaCounters {
    /// Packets from the terminal to the peer.
    pub packets_to_peer: u64,
    /// Their bytes, IP headers included, as received.
    pub bytes_to_peer: u64,
    /// Packets from the peer to the terminal.
    pub packets_to_terminal: u64,
    /// Their bytes.
    pub bytes_to_terminal: u64,
    /// Packets refused by either direction.
    pub refused: u64,
}

struct Entry<T> {
    subscriber: SubscriberHandle,
    key: SaKey,
    /// `None` for class `none`: the keys are not here.
    bridge: Option<Bridge<T>>,
    counters: SaCounters,
}

/// The SAs of one worker.
pub struct Datapath<P: EspProvider> {
    provider: P,
    entries: Slab<Entry<P::Transform>>,
    to_peer: HashMap<(IpAddr, IpAddr, Spi), usize>,
    to_terminal: HashMap<(IpAddr, Spi), usize>,
    notices: Vec<Notice>,
    limit: usize,
}

/// Why an SA could not be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallError {
    /// Key lengths do not fit, or the suite is not available.
    Key(InvalidKey),
    /// The table is full.
    Full,
}

impl<P: EspProvider> Datapath<P> {
    /// No SAs yet, at most `limit` of them ever.
    pub fn new(provider: P, limit: usize) -> Self {
        Self {
            provider,
            entries: Slab::new(),
            to_peer: HashMap::default(),
            to_terminal: HashMap::default(),
            notices: Vec::with_capacity(MAX_NOTICES),
            limit,
        }
    }

    /// Adds an SA; one with the same addresses and SPIs is replaced.
    pub fn install(&mut self, now: Instant, sa: &GatewaySa) -> Result<(), InstallError> {
        let key = SaKey {
            local: sa.local,
            remote: sa.remote,
            spi_in: sa.spi_in,
            spi_out: sa.spi_out,
        };
        let bridge = match &sa.keys {
            GatewayKeys::None => None,
            GatewayKeys::Full {
                peer,
                segment_in,
                segment_out,
            } => Some(
                Bridge::new(&self.provider, now, peer, segment_in, segment_out).map_err(InstallError::Key)?,
            ),
        };
        self.remove(&key);
        if self.entries.len() >= self.limit {
            return Err(InstallError::Full);
        }
        let counters = SaCounters::default();
        let slot = self.entries.insert(Entry {
            subscriber: sa.subscriber,
            key,
            bridge,
            counters,
        });
        self.to_peer.insert((sa.local, sa.remote, sa.spi_out), slot);
        self.to_terminal.insert((sa.local, sa.spi_in), slot);
        Ok(())
    }

    /// Removes an SA; returns its final counters.
    pub fn remove(&mut self, key: &SaKey) -> Option<SaCounters> {
        let slot = self.to_peer.remove(&(key.local, key.remote, key.spi_out))?;
        self.to_terminal.remove(&(key.local, key.spi_in));
        self.entries.try_remove(slot).map(|entry| entry.counters)
    }

    /// Every SA with its counters.
    pub fn counters(&self) -> impl Iterator<Item = (SubscriberHandle, SaKey, SaCounters)> {
        self.entries
            .iter()
            .map(|(_, entry)| (entry.subscriber, entry.key, entry.counters))
    }

    /// What happened since the last call.
    pub fn drain_notices(&mut self) -> impl Iterator<Item = Notice> {
        self.notices.drain(..)
    }

    /// Notices limits in time on SAs that carry no packets. Call about once a second.
    pub fn tick(&mut self, now: Instant) {
        for (_, entry) in &mut self.entries {
            if let Some(bridge) = &mut entry.bridge {
                bridge.tick(now);
                tell_limit(
                    &mut self.notices,
                    entry.subscriber,
                    entry.key.spi_in,
                    bridge.take_event(),
                );
            }
        }
    }

    /// Works on one ESP (or UDP-encapsulated ESP) packet in place; `packet` starts at the IP header.
    ///
    /// `from_access`: it came in on a port that faces terminals. Only there may a packet claim to be a
    /// terminal's.
    pub fn process(
        &mut self,
        now: Instant,
        from_access: bool,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Disposition {
        match self.bridge_packet(now, from_access, packet, rng) {
            Ok(()) => Disposition::Forward,
            Err(reason) => Disposition::Drop(reason),
        }
    }

    fn bridge_packet(
        &mut self,
        now: Instant,
        from_access: bool,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let Located {
            source,
            destination,
            spi,
            ..
        } = locate::esp(packet.bytes())?;
        if from_access {
            match self.to_peer.get(&(source, destination, spi)) {
                Some(&slot) => self.through(slot, Direction::ToPeer, now, packet, rng)?,
                None => tell(&mut self.notices, Notice::UnknownSa { terminal: source }),
            }
        }
        if let Some(&slot) = self.to_terminal.get(&(destination, spi)) {
            self.through(slot, Direction::ToTerminal, now, packet, rng)?;
        }
        Ok(())
    }

    fn through(
        &mut self,
        slot: usize,
        direction: Direction,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let entry = self.entries.get_mut(slot).ok_or(DropReason::EspUnknownSpi)?;
        let len = packet.len() as u64;
        if let Some(bridge) = &mut entry.bridge {
            let outcome = match direction {
                Direction::ToPeer => bridge.to_peer(now, packet, rng),
                Direction::ToTerminal => bridge.to_terminal(now, packet, rng),
            };
            tell_limit(
                &mut self.notices,
                entry.subscriber,
                entry.key.spi_in,
                bridge.take_event(),
            );
            outcome.inspect_err(|_| entry.counters.refused += 1)?;
        }
        match direction {
            Direction::ToPeer => {
                entry.counters.packets_to_peer += 1;
                entry.counters.bytes_to_peer += len;
            }
            Direction::ToTerminal => {
                entry.counters.packets_to_terminal += 1;
                entry.counters.bytes_to_terminal += len;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Direction {
    ToPeer,
    ToTerminal,
}

/// A notice that waits already, or finds no room, is not added: whatever caused it will cause it again.
fn tell(notices: &mut Vec<Notice>, notice: Notice) {
    if notices.len() < MAX_NOTICES && !notices.contains(&notice) {
        notices.push(notice);
    }
}

fn tell_limit(
    notices: &mut Vec<Notice>,
    subscriber: SubscriberHandle,
    spi_in: Spi,
    event: Option<LifetimeEvent>,
) {
    if let Some(event) = event {
        // A limit is told once by the SA, so it must not get lost here; it is at most two per SA.
        notices.push(Notice::Expiring {
            subscriber,
            spi_in,
            hard: event == LifetimeEvent::Hard,
        });
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::sa::{ChildSa, EspKeys, EspSuite, Lifetime, Mode, Selectors};
    use towpath_base::selector::TrafficSelector;
    use towpath_ipsec::soft::SoftEsp;
    use towpath_ipsec::{InboundSa, OutboundSa};

    use super::*;

    const SPI_IN: Spi = Spi(0x1001);
    const SPI_OUT: Spi = Spi(0x2002);

    /// Not random, but never the same twice.
    struct Counter(u8);

    impl Rng for Counter {
        fn fill(&mut self, bytes: &mut [u8]) {
            self.0 = self.0.wrapping_add(1);
            bytes.fill(self.0);
        }
    }

    fn keys(suite: EspSuite, fill: u8) -> EspKeys {
        EspKeys::split(suite, &vec![fill; suite.key_material_len()]).unwrap()
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

    fn reversed(sa: &ChildSa) -> ChildSa {
        ChildSa {
            local: sa.remote,
            remote: sa.local,
            spi_in: sa.spi_out,
            spi_out: sa.spi_in,
            keys_in: sa.keys_out.clone(),
            keys_out: sa.keys_in.clone(),
            local_ts: sa.remote_ts,
            remote_ts: sa.local_ts,
            ..sa.clone()
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
            let disposition = frame.with(|packet| path.process(now, true, packet, &mut rng));
            assert_eq!(disposition, Disposition::Forward);
            assert_ne!(frame.bytes(), on_access);
            let mut peer_in: InboundSa<_> = InboundSa::new(&SoftEsp, now, &reversed(&negotiated)).unwrap();
            frame.with(|packet| peer_in.open(now, packet)).unwrap();
            assert_eq!(frame.bytes(), original, "{suite} v6={v6}");

            let original = plain(peer, terminal);
            let mut frame = Frame::of(&original);
            let mut peer_out = OutboundSa::new(&SoftEsp, now, &reversed(&negotiated)).unwrap();
            frame.with(|packet| peer_out.seal(now, packet, &mut rng)).unwrap();
            let disposition = frame.with(|packet| path.process(now, false, packet, &mut rng));
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
        path.install(now, &full(2, reversed(&negotiated), 5, 6)).unwrap();

        let original = plain(a, b);
        let mut frame = Frame::of(&original);
        let a_segment = ChildSa {
            keys_out: keys(suite, 4),
            ..negotiated.clone()
        };
        let mut a_out = OutboundSa::new(&SoftEsp, now, &a_segment).unwrap();
        frame.with(|packet| a_out.seal(now, packet, &mut rng)).unwrap();
        assert_eq!(
            frame.with(|packet| path.process(now, true, packet, &mut rng)),
            Disposition::Forward
        );
        let b_segment = ChildSa {
            keys_in: keys(suite, 5),
            ..reversed(&negotiated)
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
                sealed.with(|packet| path.process(now, true, packet, &mut rng)),
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
            frame.with(|packet| path.process(now, false, packet, &mut rng)),
            Disposition::Forward
        );
        assert_eq!(frame.bytes(), before);
        assert_eq!(
            frame.with(|packet| path.process(now, true, packet, &mut rng)),
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
}
