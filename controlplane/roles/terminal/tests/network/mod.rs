//! The network as a script: registry, keyserver and peers in one, without sockets or clock.
//!
//! It answers registrations, grants requests with keys it makes up (class `none`: the peer uses the same ones),
//! retransmits key transfers, and turns the terminal's ESP into the peers' plain packets and back.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

mod packets;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, Class, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_base::{DropReason, Instant, SecretKey, Spi, SubscriberHandle};
use towpath_common::wire;
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{InboundSa, OutboundSa, locate};
use towpath_keyx::message::{
    self, FromTerminal, KeyTransfer, MessageType, Operation, Outcome, ProxyReply, ProxyRequest, RefuseReason,
    SaName, ToTerminal,
};
use towpath_keyx::registration::{Terms, open_registration};
use towpath_keyx::session::NetworkSession;
use towpath_keyx::transfer::{Backoff, Sender};
use towpath_keyx::{ReservedSpi, SessionKeys, frame};

pub use packets::{take_apart, udp_packet};

/// What SAs are like.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    pub suite: EspSuite,
    pub mode: Mode,
    pub encap: bool,
    pub lifetime: Lifetime,
    /// Refuse every request.
    pub refuse: bool,
    pub registration_seconds: u32,
    /// How often the terminal shows that it is there.
    pub keepalive_seconds: u32,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            suite: EspSuite::Aes256Gcm16,
            mode: Mode::Transport,
            encap: false,
            lifetime: Lifetime::default(),
            refuse: false,
            registration_seconds: 3600,
            keepalive_seconds: 10,
        }
    }
}

/// A repeatable source of randomness (xorshift64*).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        (self.roll() >> 32) % 100 < percent
    }
}

impl Rng for Dice {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| (self.roll() >> 40) as u8);
    }
}

/// What comes out of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// An IP packet for the terminal.
    ToTerminal(Vec<u8>),
    /// A plain IP packet for the peer.
    ToPeer(Vec<u8>),
}

struct Sas {
    name: SaName,
    inbound: InboundSa<SoftTransform>,
    outbound: OutboundSa<SoftTransform>,
}

/// A session and its unacknowledged transfers.
struct Session {
    network: NetworkSession,
    transfers: Sender,
}

/// The network.
pub struct Network {
    pub terms: Script,
    pub ksub: SecretKey<32>,
    pub handle: SubscriberHandle,
    pub reserved: ReservedSpi,
    /// Gateway's own addresses, one per family.
    pub gateway: [IpAddr; 2],
    /// Reasons things were refused for.
    pub refused: BTreeMap<DropReason, u64>,
    /// Registrations accepted.
    pub registrations: u64,
    /// Requests understood, retransmissions included.
    pub requests: Vec<ProxyRequest>,
    /// Keys given out so far, for tests that search for them.
    pub keys: Vec<Vec<u8>>,
    terminal: Option<IpAddr>,
    last_counter: u64,
    active: Option<Session>,
    pending: Option<Session>,
    /// By peer, the newest last: it is the one that sends.
    sas: BTreeMap<IpAddr, Vec<Sas>>,
    epoch: u64,
    granted: BTreeMap<u32, IpAddr>,
    next_spi: u32,
    dice: Dice,
}

impl Network {
    pub fn new(ksub: SecretKey<32>, handle: u64, terms: Script, seed: u64) -> Self {
        Self {
            terms,
            ksub,
            handle: SubscriberHandle(handle),
            reserved: ReservedSpi::default(),
            gateway: [IpAddr::from([10, 99, 0, 2]), "2001:db8:99::2".parse().unwrap()],
            refused: BTreeMap::new(),
            registrations: 0,
            requests: Vec::new(),
            keys: Vec::new(),
            terminal: None,
            last_counter: 0,
            active: None,
            pending: None,
            sas: BTreeMap::new(),
            epoch: 1,
            granted: BTreeMap::new(),
            next_spi: 0x1000,
            dice: Dice::new(seed),
        }
    }

    /// Loses everything but subscribers and counters, as a restarted gateway and keyserver do.
    pub fn restart(&mut self) {
        (self.active, self.pending) = (None, None);
        self.sas.clear();
        self.granted.clear();
        self.epoch += 1;
    }

    fn refuse(&mut self, reason: DropReason) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// An IP packet of the terminal's: a sealed message or ESP.
    pub fn handle_terminal(&mut self, now: Instant, packet: &[u8]) -> Vec<Output> {
        let Some(ip) = take_apart(packet) else {
            self.refuse(DropReason::BadIpHeader);
            return Vec::new();
        };
        if let Some((udp, payload)) = ip.udp()
            && udp.destination.get() == wire::PORT_IKE
            && let Some(sealed) = frame::unwrap(self.reserved, payload)
        {
            if udp.source.get() != wire::PORT_IKE {
                self.refuse(DropReason::KeyxMalformed);
                return Vec::new();
            }
            return self.sealed(now, ip.source, sealed);
        }
        if locate::esp(packet).is_ok() {
            return self.esp(now, ip.destination, packet);
        }
        vec![Output::ToPeer(packet.to_vec())]
    }

    fn sealed(&mut self, now: Instant, source: IpAddr, datagram: &[u8]) -> Vec<Output> {
        let header = match message::peek(datagram) {
            Ok(header) => header,
            Err(reason) => {
                self.refuse(reason);
                return Vec::new();
            }
        };
        match header.message_type {
            MessageType::Register | MessageType::Deregister => self.register(source, datagram),
            _ => self.session_message(now, source, datagram, &header),
        }
    }

    fn register(&mut self, source: IpAddr, datagram: &[u8]) -> Vec<Output> {
        let registration = match open_registration(&self.ksub, source, datagram) {
            Ok(registration) => registration,
            Err(reason) => {
                self.refuse(reason);
                return Vec::new();
            }
        };
        if let Err(reason) = registration.check_counter(self.last_counter) {
            self.refuse(reason);
            return Vec::new();
        }
        self.last_counter = registration.counter;
        if registration.leaving {
            (self.active, self.pending) = (None, None);
            self.sas.clear();
            return Vec::new();
        }
        self.registrations += 1;
        let mut nonce = [0; 32];
        self.dice.fill(&mut nonce);
        let terms = Terms {
            lifetime_seconds: self.terms.registration_seconds,
            keepalive_seconds: self.terms.keepalive_seconds,
            epoch: self.epoch,
        };
        let answer = registration.answer(&self.ksub, &nonce, &terms).unwrap();
        self.remember_session_keys(&answer.keys);
        self.pending = Some(Session {
            network: NetworkSession::new(self.handle, &answer.keys),
            transfers: Sender::new(Backoff::default(), 16),
        });
        vec![self.to_terminal(source, answer.datagram.as_bytes())]
    }

    fn remember_session_keys(&mut self, keys: &SessionKeys) {
        self.keys
            .extend([keys.t2n.expose().to_vec(), keys.n2t.expose().to_vec()]);
    }

    fn session_message(
        &mut self,
        now: Instant,
        source: IpAddr,
        datagram: &[u8],
        header: &message::Header,
    ) -> Vec<Output> {
        // A session replaces the one before when the terminal uses it first.
        if let Some(mut pending) = self.pending.take() {
            match pending.network.open(datagram) {
                Ok(message) => {
                    if let Some(older) = self.active.as_mut() {
                        pending.transfers.adopt(now, &mut older.transfers);
                    }
                    self.active = Some(pending);
                    // Requests are numbered within a session.
                    self.granted.clear();
                    return self.message(now, source, &message);
                }
                Err(_) => self.pending = Some(pending),
            }
        }
        let Some(active) = self.active.as_mut() else {
            self.refuse(DropReason::KeyxUnknownSession);
            return vec![self.to_terminal(source, &message::re_register(header))];
        };
        match active.network.open(datagram) {
            Ok(message) => self.message(now, source, &message),
            Err(reason) => {
                self.refuse(reason);
                Vec::new()
            }
        }
    }

    fn message(&mut self, now: Instant, source: IpAddr, message: &FromTerminal) -> Vec<Output> {
        self.terminal = Some(source);
        match message {
            FromTerminal::Hello => Vec::new(),
            FromTerminal::TransferAck(ack) => {
                if let Some(active) = self.active.as_mut() {
                    active.transfers.handle_ack(ack);
                }
                Vec::new()
            }
            FromTerminal::ProxyRequest(request) => self.request(now, request),
        }
    }

    fn request(&mut self, now: Instant, request: &ProxyRequest) -> Vec<Output> {
        self.requests.push(*request);
        let outcome = if self.terms.refuse {
            Outcome::Refused {
                reason: RefuseReason::NoPolicy,
                retry_after: 0,
            }
        } else {
            Outcome::Accepted
        };
        let reply = ToTerminal::ProxyReply(ProxyReply {
            request_id: request.request_id,
            outcome,
        });
        let mut out = self.seal_to(request.terminal, &reply);
        // A retransmission of a request is the same request.
        if !self.terms.refuse && self.granted.insert(request.request_id, request.peer).is_none() {
            let replaces = request.replaces.filter(|spi| {
                self.sas
                    .get(&request.peer)
                    .is_some_and(|sas| sas.iter().any(|sas| sas.name.spi_in == *spi))
            });
            self.install(
                now,
                request.terminal,
                request.peer,
                Some(request.request_id),
                replaces,
            );
            out.extend(self.poll(now));
        }
        out
    }

    /// Makes an SA between terminal and peer and queues its transfer.
    pub fn install(
        &mut self,
        now: Instant,
        terminal: IpAddr,
        peer: IpAddr,
        request_id: Option<u32>,
        replaces: Option<Spi>,
    ) {
        let mut keys = || {
            let mut material = vec![0; self.terms.suite.key_material_len()];
            self.dice.fill(&mut material);
            let keys = EspKeys::split(self.terms.suite, &material).unwrap();
            self.keys.push(keys.cipher.expose().to_vec());
            keys
        };
        let (keys_in, keys_out) = (keys(), keys());
        self.next_spi += 2;
        let sa = ChildSa {
            local: terminal,
            remote: peer,
            suite: self.terms.suite,
            mode: self.terms.mode,
            esn: true,
            encap: self.terms.encap.then_some(UdpEncap {
                local_port: 4500,
                remote_port: 4500,
            }),
            spi_in: Spi(self.next_spi),
            spi_out: Spi(self.next_spi + 1),
            keys_in,
            keys_out,
            local_ts: Selectors::one(TrafficSelector::host(terminal)),
            remote_ts: Selectors::one(TrafficSelector::host(peer)),
            lifetime: self.terms.lifetime,
        };
        let far = sa.mirrored();
        let sas = Sas {
            name: SaName::of(&sa),
            inbound: InboundSa::new(&SoftEsp, now, &far).unwrap(),
            outbound: OutboundSa::new(&SoftEsp, now, &far).unwrap(),
        };
        let all = self.sas.entry(peer).or_default();
        all.push(sas);
        // The one it replaces still receives what is on its way.
        let old = all.len().saturating_sub(2);
        all.drain(..old);
        self.push(
            now,
            request_id,
            Operation::Install {
                class: Class::None,
                level: 0,
                replaces,
                standby: false,
                sa,
            },
        );
    }

    /// Ends the SA with `peer`, as a peer's delete does.
    pub fn delete(&mut self, now: Instant, peer: IpAddr) {
        for sas in self.sas.remove(&peer).unwrap_or_default() {
            self.push(now, None, Operation::Delete(sas.name));
        }
    }

    fn push(&mut self, now: Instant, request_id: Option<u32>, operation: Operation) {
        let active = self.active.as_mut().expect("a session");
        active.transfers.push(now, request_id, operation).unwrap();
    }

    /// Key transfers that are due.
    pub fn poll(&mut self, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        while let Some(transfer) = self.due_transfer(now) {
            let Some(terminal) = self.terminal else { break };
            out.extend(self.seal_to(terminal, &ToTerminal::KeyTransfer(transfer)));
        }
        out
    }

    fn due_transfer(&mut self, now: Instant) -> Option<KeyTransfer> {
        let active = self.active.as_mut()?;
        while active.transfers.poll_failed(now).is_some() {}
        active.transfers.poll_transmit(now).cloned()
    }

    /// When [`Network::poll`] has something next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.active.as_ref()?.transfers.poll_timeout()
    }

    /// Transfers the terminal did not acknowledge yet.
    pub fn unacknowledged(&self) -> usize {
        self.active
            .as_ref()
            .map_or(0, |active| active.transfers.outstanding().count())
    }

    fn seal_to(&mut self, terminal: IpAddr, message: &ToTerminal) -> Vec<Output> {
        let Some(active) = self.active.as_mut() else {
            return Vec::new();
        };
        let sealed = active.network.seal(message).unwrap();
        vec![self.to_terminal(terminal, sealed.as_bytes())]
    }

    fn to_terminal(&self, terminal: IpAddr, sealed: &[u8]) -> Output {
        let gateway = self.gateway[usize::from(terminal.is_ipv6())];
        let payload = frame::wrap(self.reserved, sealed);
        let (from, to) = (SocketAddr::new(gateway, 500), SocketAddr::new(terminal, 500));
        Output::ToTerminal(udp_packet(from, to, &payload))
    }

    fn esp(&mut self, now: Instant, peer: IpAddr, packet: &[u8]) -> Vec<Output> {
        let spi = locate::esp(packet).map(|at| at.spi).unwrap_or_default();
        let all = self.sas.get_mut(&peer).map(Vec::as_mut_slice).unwrap_or_default();
        let Some(sas) = all.iter_mut().find(|sas| sas.name.spi_out == spi) else {
            self.refuse(DropReason::EspUnknownSpi);
            return Vec::new();
        };
        let mut buffer = packet.to_vec();
        let mut buf = PacketBuf::new(&mut buffer, 0, packet.len()).unwrap();
        match sas.inbound.open(now, &mut buf) {
            Ok(_) => vec![Output::ToPeer(buf.bytes().to_vec())],
            Err(reason) => {
                self.refuse(reason);
                Vec::new()
            }
        }
    }

    /// A plain packet of a peer to the terminal: sealed, where there is an SA.
    pub fn handle_peer(&mut self, now: Instant, plain: &[u8]) -> Option<Vec<u8>> {
        let peer = take_apart(plain)?.source;
        let sas = self.sas.get_mut(&peer)?.last_mut()?;
        let mut buffer = vec![0; plain.len() + 256];
        buffer[128..128 + plain.len()].copy_from_slice(plain);
        let mut buf = PacketBuf::new(&mut buffer, 128, plain.len())?;
        sas.outbound.seal(now, &mut buf, &mut self.dice).ok()?;
        Some(buf.bytes().to_vec())
    }

    /// Packets opened from and sealed for the terminal on the newest SA with `peer`.
    pub fn carried(&self, peer: IpAddr) -> (u64, u64) {
        self.sas
            .get(&peer)
            .and_then(|all| all.last())
            .map_or((0, 0), |sas| {
                (sas.inbound.meter().packets(), sas.outbound.meter().packets())
            })
    }
}

/// Waits of the tests' own, well above any of the protocol's.
pub const PATIENCE: Duration = Duration::from_secs(20);
