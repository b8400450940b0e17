//! The network as a terminal sees it: registry, keyserver and peers in one.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use towpath_base::sa::{ChildSa, Class, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant, Spi};
use towpath_ipsec::soft::SoftTransform;
use towpath_ipsec::{InboundSa, OutboundSa, locate};
use towpath_keyx::message::{
    self, FromTerminal, MessageType, Operation, Outcome, ProxyReply, RefuseReason, SaName, ToTerminal,
    TransferAck,
};
use towpath_keyx::registration::{Terms, open_registration};
use towpath_keyx::transfer::{Backoff, Sender};
use towpath_keyx::{NetworkSession, frame};
use towpath_terminal_core::SoftEsp;

use super::*;

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
