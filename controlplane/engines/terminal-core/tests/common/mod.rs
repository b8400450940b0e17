//! A network of one subscriber for the core to talk to: registry, keyserver, and a peer with its ESP.
//!
//! ```text
//!   Core ── datagrams, ESP ──► Net { registry (keyx::registration), keyserver (keyx::session, transfer),
//!        ◄──────────────────         peer (ipsec, one SA pair per request) }
//! ```
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use towpath_base::key::SecretKey;
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, Class, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_common::wire::{fold, pseudo_header_v4, pseudo_header_v6, sum};
use towpath_ipsec::soft::SoftTransform;
use towpath_ipsec::{InboundSa, OutboundSa, locate};
use towpath_keyx::message::{
    self, FromTerminal, MessageType, Operation, Outcome, ProxyReply, RefuseReason, SaName, ToTerminal,
    TransferAck,
};
use towpath_keyx::registration::{Addresses, Terms, open_registration};
use towpath_keyx::transfer::{Backoff, Sender};
use towpath_keyx::{NetworkSession, ReservedSpi, frame};
use towpath_terminal_core::{
    Action, BUFFER_HEADROOM, BUFFER_TAILROOM, Command, Config, Core, Disposition, Event, Policy, SoftEsp,
    Timing, Transmit,
};

pub const HANDLE: SubscriberHandle = SubscriberHandle(7);
pub const RESERVED: ReservedSpi = ReservedSpi(100);

pub type Terminal = Core<SoftEsp, 4, 4, 4096>;

pub fn ksub() -> SecretKey<32> {
    SecretKey::new([0x42; 32])
}

pub fn here(v6: bool) -> IpAddr {
    if v6 {
        "fd77:1::2".parse().unwrap()
    } else {
        "10.77.1.2".parse().unwrap()
    }
}

pub fn peer(v6: bool) -> IpAddr {
    if v6 {
        "fd77:9::2".parse().unwrap()
    } else {
        "10.77.9.2".parse().unwrap()
    }
}

pub fn protect(peer: IpAddr) -> Policy {
    Policy::new(
        TrafficSelector::any_of(Prefix::host(peer)),
        Action::Protect { peer: None },
    )
}

pub fn config(counter: u64) -> Config {
    Config {
        subscriber: HANDLE,
        ksub: ksub(),
        addresses: Addresses::of([here(false), here(true)]),
        reserved: RESERVED,
        counter,
        timing: Timing::default(),
    }
}

pub fn terminal(counter: u64) -> Box<Terminal> {
    let policies = [protect(peer(false)), protect(peer(true))];
    Box::new(Core::new(SoftEsp, config(counter), &policies).unwrap())
}

/// A packet of an application, in a buffer with rooms.
pub struct Buffer {
    pub bytes: Vec<u8>,
    pub start: usize,
    pub len: usize,
}

impl Buffer {
    pub fn new(packet: &[u8]) -> Self {
        let mut bytes = vec![0; BUFFER_HEADROOM];
        bytes.extend_from_slice(packet);
        bytes.extend_from_slice(&[0; BUFFER_TAILROOM]);
        Self {
            bytes,
            start: BUFFER_HEADROOM,
            len: packet.len(),
        }
    }

    pub fn with<R>(&mut self, f: impl FnOnce(&mut PacketBuf<'_>) -> R) -> R {
        let mut packet = PacketBuf::new(&mut self.bytes, self.start, self.len).unwrap();
        let result = f(&mut packet);
        (self.start, self.len) = (packet.start(), packet.len());
        result
    }

    pub fn packet(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// A UDP packet with its checksum.
pub fn udp(source: IpAddr, destination: IpAddr, body: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x0f, 0xa0, 0x13, 0x88];
    segment.extend(((body.len() + 8) as u16).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(body);
    let len = segment.len();
    let pseudo = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => pseudo_header_v4(s.octets(), d.octets(), 17, len as u16),
        (IpAddr::V6(s), IpAddr::V6(d)) => pseudo_header_v6(s.octets(), d.octets(), 17, len as u32),
        _ => unreachable!("families never mix"),
    };
    let check = fold(pseudo + sum(&segment)).to_be_bytes();
    segment[6..8].copy_from_slice(&check);
    let mut out = Vec::new();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            out.extend([0x45, 0]);
            out.extend(((segment.len() + 20) as u16).to_be_bytes());
            out.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
            out.extend(s.octets());
            out.extend(d.octets());
            let check = towpath_common::wire::checksum(&out).to_be_bytes();
            out[10..12].copy_from_slice(&check);
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend((segment.len() as u16).to_be_bytes());
            out.extend([17, 64]);
            out.extend(s.octets());
            out.extend(d.octets());
        }
        _ => unreachable!("families never mix"),
    }
    out.extend(segment);
    out
}

/// What the keyserver does with requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Keys,
    Silence,
    Refuse(RefuseReason, u16),
}

pub struct PeerSa {
    pub name: SaName,
    pub outbound: OutboundSa<SoftTransform>,
    pub inbound: InboundSa<SoftTransform>,
}

pub struct Net {
    pub rng: SeededRng,
    pub answer: Answer,
    pub suite: EspSuite,
    pub mode: Mode,
    pub encap: bool,
    pub lifetime: Lifetime,
    pub epoch: u64,
    pub last_counter: u64,
    pub session: Option<NetworkSession>,
    pub pending: Option<NetworkSession>,
    pub sender: Sender,
    pub sas: Vec<PeerSa>,
    pub requests: Vec<message::ProxyRequest>,
    pub acks: Vec<TransferAck>,
    pub hellos: usize,
    pub left: bool,
    pub refused: Vec<DropReason>,
    pub to_terminal: VecDeque<Vec<u8>>,
    next_spi: u32,
    /// SAs of connections: the terminal's inbound SPI, both ports.
    connections: Vec<(Spi, u16, u16)>,
}

impl Net {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: SeededRng::new(seed),
            answer: Answer::Keys,
            suite: EspSuite::Aes128Gcm16,
            mode: Mode::Transport,
            encap: false,
            lifetime: Lifetime::default(),
            epoch: 1,
            last_counter: 0,
            session: None,
            pending: None,
            sender: Sender::new(
                Backoff {
                    transmissions: 40,
                    ..Backoff::default()
                },
                16,
            ),
            sas: Vec::new(),
            requests: Vec::new(),
            acks: Vec::new(),
            hellos: 0,
            left: false,
            refused: Vec::new(),
            to_terminal: VecDeque::new(),
            next_spi: 0x1000,
            connections: Vec::new(),
        }
    }

    pub fn datagram(&mut self, now: Instant, source: SocketAddr, payload: &[u8]) {
        let sealed = frame::unwrap(RESERVED, payload).expect("the terminal frames what it sends");
        if let Err(reason) = self.sealed(now, source.ip(), sealed) {
            self.refused.push(reason);
        }
    }

    fn sealed(&mut self, now: Instant, source: IpAddr, sealed: &[u8]) -> Result<(), DropReason> {
        let header = message::peek(sealed)?;
        if matches!(
            header.message_type,
            MessageType::Register | MessageType::Deregister
        ) {
            let registration = open_registration(&ksub(), source, sealed)?;
            registration.check_counter(self.last_counter)?;
            self.last_counter = registration.counter;
            if registration.leaving {
                self.left = true;
                return Ok(());
            }
            let mut nonce = [0; 32];
            towpath_base::crypto::Rng::fill(&mut self.rng, &mut nonce);
            let terms = Terms {
                lifetime_seconds: 600,
                keepalive_seconds: 60,
                epoch: self.epoch,
            };
            let answer = registration.answer(&ksub(), &nonce, &terms).unwrap();
            self.pending = Some(NetworkSession::new(HANDLE, &answer.keys));
            self.to_terminal
                .push_back(frame::wrap(RESERVED, answer.datagram.as_bytes()));
            return Ok(());
        }
        let opened = match self.pending.as_mut().map(|pending| pending.open(sealed)) {
            Some(Ok(message)) => {
                self.session = self.pending.take();
                Ok(message)
            }
            _ => match self.session.as_mut() {
                Some(session) => session.open(sealed),
                None => Err(DropReason::KeyxUnknownSession),
            },
        };
        match opened {
            Ok(message) => self.act(now, message),
            Err(reason @ (DropReason::KeyxUnknownSession | DropReason::KeyxForged)) => {
                let hint = message::re_register(&header);
                self.to_terminal.push_back(frame::wrap(RESERVED, &hint));
                return Err(reason);
            }
            Err(reason) => return Err(reason),
        }
        Ok(())
    }

    fn act(&mut self, now: Instant, message: FromTerminal) {
        match message {
            FromTerminal::Hello => self.hellos += 1,
            FromTerminal::TransferAck(ack) => {
                self.acks.push(ack);
                self.sender.handle_ack(&ack);
            }
            FromTerminal::ProxyRequest(request) => {
                self.requests.push(request);
                match self.answer {
                    Answer::Silence => {}
                    Answer::Refuse(reason, retry_after) => {
                        let outcome = Outcome::Refused { reason, retry_after };
                        let reply = ProxyReply {
                            request_id: request.request_id,
                            outcome,
                        };
                        self.send(&ToTerminal::ProxyReply(reply));
                    }
                    Answer::Keys if request.level != 0 => self.install_connection(now, &request),
                    Answer::Keys => {
                        let busy = self
                            .sender
                            .outstanding()
                            .any(|transfer| match &transfer.operation {
                                Operation::Install { level: 1.., .. } => false,
                                operation => operation.name().remote == request.peer,
                            });
                        if !busy {
                            self.install(now, request.peer, Some(request.request_id), request.replaces);
                        }
                    }
                }
            }
        }
    }

    /// Makes an SA pair with `remote` and transfers the terminal's half.
    pub fn install(
        &mut self,
        now: Instant,
        remote: IpAddr,
        request_id: Option<u32>,
        replaces: Option<Spi>,
    ) -> SaName {
        self.install_as(now, remote, request_id, replaces, false)
    }

    /// An SA for the connection of a request, once.
    fn install_connection(&mut self, now: Instant, request: &message::ProxyRequest) {
        let id = Some(request.request_id);
        if self
            .sender
            .outstanding()
            .any(|transfer| transfer.request_id == id)
        {
            return;
        }
        let ports = request
            .replaces
            .map_or((request.terminal_port, request.peer_port), |old| {
                let old = self.connections.iter().find(|(spi, ..)| *spi == old);
                old.map(|(_, terminal, peer)| (*terminal, *peer))
                    .expect("an SA of ours")
            });
        let side = |host, port| TrafficSelector {
            protocol: 17,
            first_port: port,
            last_port: port,
            ..TrafficSelector::host(host)
        };
        let (local, remote) = (side(request.terminal, ports.0), side(request.peer, ports.1));
        let sa = self.make_sa_for(request.peer, local, remote);
        self.connections.push((sa.spi_in, ports.0, ports.1));
        let operation = Operation::Install {
            class: Class::None,
            level: request.level,
            replaces: request.replaces,
            standby: false,
            sa,
        };
        self.sender.push(now, id, operation).unwrap();
    }

    /// As [`Self::install`], to be used for sending at once or when the peer is known to have it.
    pub fn install_as(
        &mut self,
        now: Instant,
        remote: IpAddr,
        request_id: Option<u32>,
        replaces: Option<Spi>,
        standby: bool,
    ) -> SaName {
        let sa = self.make_sa(remote);
        let name = SaName::of(&sa);
        let operation = Operation::Install {
            class: Class::Full,
            level: 0,
            replaces,
            standby,
            sa,
        };
        self.sender.push(now, request_id, operation).unwrap();
        name
    }

    pub fn make_sa(&mut self, remote: IpAddr) -> ChildSa {
        let local = TrafficSelector::host(here(remote.is_ipv6()));
        self.make_sa_for(remote, local, TrafficSelector::host(remote))
    }

    fn make_sa_for(
        &mut self,
        remote: IpAddr,
        local_ts: TrafficSelector,
        remote_ts: TrafficSelector,
    ) -> ChildSa {
        let local = here(remote.is_ipv6());
        let mut key = || {
            let mut material = vec![0; self.suite.key_material_len()];
            towpath_base::crypto::Rng::fill(&mut self.rng, &mut material);
            EspKeys::split(self.suite, &material).unwrap()
        };
        self.next_spi += 2;
        let sa = ChildSa {
            local,
            remote,
            suite: self.suite,
            mode: self.mode,
            esn: false,
            encap: self.encap.then_some(UdpEncap {
                local_port: 4500,
                remote_port: 4500,
            }),
            spi_in: Spi(self.next_spi),
            spi_out: Spi(self.next_spi + 1),
            keys_in: key(),
            keys_out: key(),
            local_ts: Selectors::one(local_ts),
            remote_ts: Selectors::one(remote_ts),
            lifetime: self.lifetime,
        };
        let far = ChildSa {
            lifetime: Lifetime::default(),
            ..sa.mirrored()
        };
        self.sas.push(PeerSa {
            name: SaName::of(&sa),
            outbound: OutboundSa::new(&SoftEsp, Instant::ZERO, &far).unwrap(),
            inbound: InboundSa::new(&SoftEsp, Instant::ZERO, &far).unwrap(),
        });
        sa
    }

    pub fn delete(&mut self, now: Instant, name: SaName) {
        self.sender.push(now, None, Operation::Delete(name)).unwrap();
    }

    pub fn send(&mut self, message: &ToTerminal) {
        if let Some(session) = self.session.as_mut() {
            let sealed = session.seal(message).unwrap();
            self.to_terminal
                .push_back(frame::wrap(RESERVED, sealed.as_bytes()));
        }
    }

    /// Sends what is due.
    pub fn poll(&mut self, now: Instant) {
        while self.session.is_some()
            && let Some(transfer) = self.sender.poll_transmit(now)
        {
            let message = ToTerminal::KeyTransfer(transfer.clone());
            self.send(&message);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.session.as_ref().and_then(|_| self.sender.poll_timeout())
    }

    /// The peer opens an ESP packet.
    pub fn open(&mut self, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
        let at = locate::esp(packet)?;
        let sa = self
            .sas
            .iter_mut()
            .find(|sa| sa.name.spi_out == at.spi)
            .ok_or(DropReason::EspUnknownSpi)?;
        let mut buffer = Buffer::new(packet);
        buffer.with(|p| sa.inbound.open(Instant::ZERO, p))?;
        Ok(buffer.packet().to_vec())
    }

    /// The peer seals a packet on its newest SA.
    pub fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let sa = self.sas.last_mut().unwrap();
        let mut buffer = Buffer::new(packet);
        buffer
            .with(|p| sa.outbound.seal(Instant::ZERO, p, &mut SeededRng::new(5)))
            .unwrap();
        buffer.packet().to_vec()
    }
}

/// Terminal and network with a link between them.
pub struct World {
    pub now: Instant,
    pub terminal: Box<Terminal>,
    pub net: Net,
    pub rng: SeededRng,
    /// Of 100 datagrams, in each direction: lost, duplicated.
    pub loss: u64,
    pub duplication: u64,
    pub reordering: bool,
    /// Of the terminal, to applications and as received by the peer.
    pub delivered: Vec<Vec<u8>>,
    pub received: Vec<Vec<u8>>,
    pub clear: Vec<Vec<u8>>,
    pub events: Vec<Event>,
    pub persisted: u64,
    pub persist: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            now: Instant::from_secs(1),
            terminal: terminal(0),
            net: Net::new(seed),
            rng: SeededRng::new(seed ^ 0xdead),
            loss: 0,
            duplication: 0,
            reordering: false,
            delivered: Vec::new(),
            received: Vec::new(),
            clear: Vec::new(),
            events: Vec::new(),
            persisted: 0,
            persist: true,
        }
    }

    pub fn application(&mut self, packet: &[u8]) -> Disposition {
        self.application_at(0, packet)
    }

    pub fn application_at(&mut self, level: u8, packet: &[u8]) -> Disposition {
        let mut buffer = Buffer::new(packet);
        let rng = &mut self.rng;
        let disposition = buffer.with(|p| self.terminal.handle_plain_at(self.now, level, p, rng));
        if disposition == Disposition::Transmit {
            self.peer_takes(buffer.packet().to_vec());
        }
        disposition
    }

    pub fn network(&mut self, packet: &[u8]) -> Disposition {
        let mut buffer = Buffer::new(packet);
        let disposition = buffer.with(|p| self.terminal.handle_network(self.now, p));
        if disposition == Disposition::Deliver {
            self.delivered.push(buffer.packet().to_vec());
        }
        disposition
    }

    fn peer_takes(&mut self, packet: Vec<u8>) {
        match self.net.open(&packet) {
            Ok(plain) => self.received.push(plain),
            Err(_) => self.clear.push(packet),
        }
    }

    fn copies(&mut self) -> u64 {
        if self.rng.below(100) < self.loss {
            0
        } else if self.rng.below(100) < self.duplication {
            2
        } else {
            1
        }
    }

    /// Exchanges messages until both sides are silent. Time stands still.
    pub fn settle(&mut self) {
        loop {
            while let Some(command) = self.terminal.poll_command() {
                match command {
                    Command::Persist(mark) if self.persist => {
                        self.persisted = mark;
                        self.terminal.persisted(mark);
                    }
                    Command::Persist(_) => break,
                    Command::Tell(event) => self.events.push(event),
                }
            }
            let mut quiet = true;
            let mut buffer = vec![0; 2048];
            while let Some(transmit) = self.terminal.poll_transmit(self.now, &mut buffer, &mut self.rng) {
                quiet = false;
                match transmit {
                    Transmit::Packet(packet) => {
                        let packet = packet.bytes().to_vec();
                        self.peer_takes(packet);
                    }
                    Transmit::Datagram {
                        source,
                        payload,
                        destination,
                    } => {
                        assert_eq!((source.port(), destination.port()), (500, 500));
                        let payload = payload.to_vec();
                        for _ in 0..self.copies() {
                            self.net.datagram(self.now, source, &payload);
                        }
                    }
                }
            }
            self.net.poll(self.now);
            while !self.net.to_terminal.is_empty() {
                quiet = false;
                let len = self.net.to_terminal.len() as u64;
                let at = if self.reordering { self.rng.below(len) } else { 0 };
                let payload = self.net.to_terminal.remove(at as usize).unwrap();
                for _ in 0..self.copies() {
                    self.terminal
                        .handle_datagram(self.now, "10.77.1.1".parse().unwrap(), &payload);
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Lets time pass until `until`, deadline by deadline.
    pub fn run_until(&mut self, until: Instant) {
        self.settle();
        for _ in 0..100_000 {
            let next = [
                self.terminal.poll_timeout().map(|(at, _)| at),
                self.net.poll_timeout(),
            ];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            self.terminal.handle_timeout(self.now);
            self.settle();
        }
        panic!(
            "deadlines that do not pass: {:?} at {:?}",
            self.terminal.poll_timeout(),
            self.now
        );
    }

    pub fn run_for(&mut self, seconds: u64) {
        self.run_until(self.now + std::time::Duration::from_secs(seconds));
    }
}
