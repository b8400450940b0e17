//! Two terminals, the keyserver between them, and a gateway that keeps what it is told.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_base::credentials::Credentials;
use towpath_base::crypto::Rng;
use towpath_base::key::SecretKey;
use towpath_base::profile::{IkeId, PeerPolicy, Psk};
use towpath_base::sa::{ChildSa, Class, EspSuite, Lifetime, Mode};
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_crypto::{IkeCrypto, SystemRng};
use towpath_fabric::{
    Datagram, FromKeyserver, FromRegistry, GatewaySa, NodeName, SessionGrant, SessionId, ToKeyserver,
    ToRegistry,
};
use towpath_ike::IkeSaId;
use towpath_keyserver::{Config, Keyserver};
use towpath_keyx::message::{
    FromTerminal, KeyTransfer, Operation, Outcome, ProxyRequest, RefuseReason, ToTerminal, TransferAck,
    TransferResult,
};
use towpath_keyx::{SessionKeys, TerminalSession};

pub(crate) const A: SubscriberHandle = SubscriberHandle(1);
pub(crate) const B: SubscriberHandle = SubscriberHandle(2);

pub(crate) fn address(subscriber: SubscriberHandle) -> IpAddr {
    IpAddr::from([10, 0, 0, subscriber.0 as u8])
}

pub(crate) struct Terminal {
    pub(crate) session: TerminalSession,
    pub(crate) installed: Vec<ChildSa>,
    pub(crate) deleted: usize,
    pub(crate) refused: Vec<RefuseReason>,
    pub(crate) acknowledges: bool,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) keyserver: Keyserver<IkeCrypto, SystemRng>,
    pub(crate) terminals: HashMap<SubscriberHandle, Terminal>,
    pub(crate) gateway: Vec<GatewaySa>,
    pub(crate) drops: Vec<DropReason>,
    pub(crate) events: Vec<String>,
    /// Questions to the registry.
    pub(crate) asked: usize,
    pub(crate) psk_of: fn(SubscriberHandle) -> Option<&'static [u8]>,
    pub(crate) operator_of: fn(SubscriberHandle) -> &'static str,
    pub(crate) class: Class,
    pub(crate) esp_suites: Vec<EspSuite>,
    pub(crate) mode: Mode,
    /// What stands behind each terminal, if not the terminal alone.
    pub(crate) behind: fn(SubscriberHandle) -> Vec<TrafficSelector>,
    /// Terminals that are elsewhere than at first.
    pub(crate) moved: HashMap<SubscriberHandle, IpAddr>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            now: Instant::from_secs(1),
            keyserver: Keyserver::new(Config::default(), IkeCrypto, SystemRng),
            terminals: HashMap::new(),
            gateway: Vec::new(),
            drops: Vec::new(),
            events: Vec::new(),
            asked: 0,
            psk_of: |_| Some(b"a secret of both"),
            operator_of: |subscriber| if subscriber == A { "north" } else { "south" },
            class: Class::Full,
            esp_suites: vec![EspSuite::Aes256Gcm16],
            mode: Mode::Transport,
            behind: |_| Vec::new(),
            moved: HashMap::new(),
        };
        world.register(A, 1);
        world.register(B, 1);
        world
    }

    pub(crate) fn at(&self, subscriber: SubscriberHandle) -> IpAddr {
        let moved = self.moved.get(&subscriber).copied();
        moved.unwrap_or_else(|| address(subscriber))
    }

    /// Whether the terminal confirms key transfers.
    pub(crate) fn acknowledges(&mut self, subscriber: SubscriberHandle, does: bool) {
        self.terminals.get_mut(&subscriber).unwrap().acknowledges = does;
    }

    /// The IKE SA of a terminal, and the SPI of its newest CHILD SA.
    pub(crate) fn ike_of(&self, subscriber: SubscriberHandle) -> (IkeSaId, Spi) {
        let mut all = self.keyserver.ike_sas(self.now);
        let info = all.find(|info| info.local.ip() == self.at(subscriber)).unwrap();
        (info.id, info.children.last().unwrap().0)
    }

    pub(crate) fn register(&mut self, subscriber: SubscriberHandle, session: u64) {
        let fresh = || {
            let mut key = [0; 32];
            SystemRng.fill(&mut key);
            SecretKey::new(key)
        };
        let keys = SessionKeys {
            t2n: fresh(),
            n2t: fresh(),
        };
        let terminal = Terminal {
            session: TerminalSession::new(subscriber, &keys),
            installed: Vec::new(),
            deleted: 0,
            refused: Vec::new(),
            acknowledges: true,
        };
        self.terminals.insert(subscriber, terminal);
        let grant = SessionGrant {
            subscriber,
            name: format!("terminal-{subscriber}"),
            operator: (self.operator_of)(subscriber).into(),
            gateway: NodeName::default(),
            session: SessionId(session),
            t2n: keys.t2n.clone(),
            n2t: keys.n2t.clone(),
            addresses: vec![self.at(subscriber)],
            lifetime_seconds: 3600,
        };
        self.keyserver
            .handle_registry(self.now, FromRegistry::Session(grant));
    }

    pub(crate) fn seal(&mut self, from: SubscriberHandle, message: &FromTerminal) -> Vec<u8> {
        let terminal = self.terminals.get_mut(&from).unwrap();
        terminal.session.seal(message).unwrap().as_bytes().to_vec()
    }

    pub(crate) fn request(
        &mut self,
        from: SubscriberHandle,
        to: SubscriberHandle,
        request_id: u32,
    ) -> Vec<u8> {
        let request = ProxyRequest {
            request_id,
            terminal: self.at(from),
            peer: self.at(to),
            protocol: 1,
            terminal_port: 0,
            peer_port: 0,
            replaces: None,
            level: 0,
        };
        self.seal(from, &FromTerminal::ProxyRequest(request))
    }

    pub(crate) fn deliver(&mut self, from: SubscriberHandle, to: SubscriberHandle, sealed: Vec<u8>) {
        self.deliver_only(from, to, sealed);
        self.run();
    }

    /// As [`Self::deliver`], and nothing more happens.
    pub(crate) fn deliver_only(&mut self, from: SubscriberHandle, to: SubscriberHandle, sealed: Vec<u8>) {
        let datagram = Datagram {
            source: SocketAddr::new(self.at(from), 500),
            destination: SocketAddr::new(self.at(to), 500),
            payload: sealed,
        };
        let message = ToKeyserver::FromTerminal {
            subscriber: from,
            datagram,
        };
        self.keyserver.handle_gateway(self.now, message);
    }

    pub(crate) fn ask(&mut self, from: SubscriberHandle, to: SubscriberHandle, request_id: u32) {
        let sealed = self.request(from, to, request_id);
        self.deliver(from, to, sealed);
    }

    /// Carries messages until nobody has one.
    pub(crate) fn run(&mut self) {
        loop {
            if let Some(message) = self.keyserver.poll_registry() {
                self.registry(message);
            } else if let Some(message) = self.keyserver.poll_gateway() {
                self.gateway(message);
            } else {
                return;
            }
        }
    }

    pub(crate) fn registry(&mut self, message: ToRegistry) {
        if let ToRegistry::Credential {
            request,
            subscriber,
            peer,
            level,
        } = message
        {
            self.asked += 1;
            let psk = (self.psk_of)(subscriber);
            let credentials = |psk: &[u8]| Credentials::psk(Psk::new(psk.to_vec()));
            let credential = psk.map(|psk| (self.policy(subscriber, peer, level), credentials(psk)));
            let answer = FromRegistry::Credential {
                request,
                subscriber,
                credential,
            };
            self.keyserver.handle_registry(self.now, answer);
        }
    }

    pub(crate) fn policy(&self, subscriber: SubscriberHandle, peer: IpAddr, level: u8) -> PeerPolicy {
        PeerPolicy {
            peer: Prefix::host(peer),
            local_id: IkeId::Fqdn(format!("terminal-{subscriber}.example")),
            remote_id: None,
            ike_proposals: vec!["aes256gcm16-prfsha256-x25519".into()],
            esp_suites: self.esp_suites.clone(),
            esn: false,
            mode: self.mode,
            class: if level == 0 { self.class } else { Class::None },
            local_ts: (self.behind)(subscriber),
            remote_ts: (self.behind)(if subscriber == A { B } else { A }),
            lifetime: Lifetime::default(),
            level,
        }
    }

    pub(crate) fn gateway(&mut self, message: FromKeyserver) {
        match message {
            FromKeyserver::IkeToPeer(datagram) => {
                let owner = [A, B]
                    .into_iter()
                    .find(|owner| self.at(*owner) == datagram.destination.ip());
                // Where nobody is any more nothing arrives.
                if let Some(subscriber) = owner {
                    let message = ToKeyserver::IkeFromPeer { subscriber, datagram };
                    self.keyserver.handle_gateway(self.now, message);
                }
            }
            FromKeyserver::KeyToTerminal {
                subscriber, sealed, ..
            } => self.at_terminal(subscriber, &sealed),
            FromKeyserver::Install(sa) => self.gateway.push(*sa),
            FromKeyserver::Remove { local, spi_in, .. } => {
                self.gateway.retain(|sa| (sa.local, sa.spi_in) != (local, spi_in));
            }
            FromKeyserver::Refused(code) => self.drops.extend(code.reason()),
            FromKeyserver::Event(event) => self.events.push(event.kind),
        }
    }

    pub(crate) fn at_terminal(&mut self, subscriber: SubscriberHandle, sealed: &[u8]) {
        let terminal = self.terminals.get_mut(&subscriber).unwrap();
        match terminal.session.open(sealed) {
            Ok(ToTerminal::ProxyReply(reply)) => {
                if let Outcome::Refused { reason, .. } = reply.outcome {
                    terminal.refused.push(reason);
                }
            }
            Ok(ToTerminal::KeyTransfer(transfer)) if terminal.acknowledges => {
                self.take_over(subscriber, transfer)
            }
            _ => {}
        }
    }

    pub(crate) fn take_over(&mut self, subscriber: SubscriberHandle, transfer: KeyTransfer) {
        let terminal = self.terminals.get_mut(&subscriber).unwrap();
        match transfer.operation {
            Operation::Install { sa, .. } => terminal.installed.push(sa),
            Operation::Delete(name) => {
                terminal.deleted += 1;
                terminal.installed.retain(|sa| sa.spi_in != name.spi_in);
            }
        }
        let ack = TransferAck {
            transfer_id: transfer.transfer_id,
            result: TransferResult::Done,
        };
        let sealed = self.seal(subscriber, &FromTerminal::TransferAck(ack));
        let other = if subscriber == A { B } else { A };
        self.deliver(subscriber, other, sealed);
    }

    /// Lets virtual time pass, timers included.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.keyserver.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.keyserver.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }

    pub(crate) fn sa_of(&self, subscriber: SubscriberHandle) -> &ChildSa {
        let [sa] = self.terminals[&subscriber].installed.as_slice() else {
            panic!(
                "{subscriber} has {} SAs",
                self.terminals[&subscriber].installed.len()
            );
        };
        sa
    }
}
