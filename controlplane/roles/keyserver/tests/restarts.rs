//! A keyserver that dies at any message of an exchange, in virtual time (spec rows K10, K11): what follows starts cleanly,
//! and nothing of the dead one is left over.
//!
//! ```text
//!   terminal a ── sealed ──► keyserver 1 ◄──IKE──► keyserver 2 ◄── sealed ── terminal b
//!                            (dies)                (lives)
//! ```

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_base::credentials::Credentials;
use towpath_base::crypto::Rng;
use towpath_base::key::SecretKey;
use towpath_base::profile::{IkeId, PeerPolicy, Psk};
use towpath_base::sa::{ChildSa, Class, EspSuite, Lifetime, Mode};
use towpath_base::selector::Prefix;
use towpath_base::{Instant, SubscriberHandle};
use towpath_crypto::{IkeCrypto, SystemRng};
use towpath_fabric::{
    Datagram, FromKeyserver, FromRegistry, GatewaySa, NodeName, SessionGrant, SessionId, ToKeyserver,
    ToRegistry,
};
use towpath_keyserver::{Config, Keyserver};
use towpath_keyx::message::{
    FromTerminal, KeyTransfer, Operation, ProxyRequest, ToTerminal, TransferAck, TransferResult,
};
use towpath_keyx::{SessionKeys, TerminalSession};

/// Longer than any exchange here takes in messages.
const MESSAGES: usize = 40;

/// A terminal, its keyserver, and what the gateway holds of both.
struct Side {
    keyserver: Keyserver<IkeCrypto, SystemRng>,
    session: TerminalSession,
    sessions: u64,
    installed: Vec<ChildSa>,
    gateway: Vec<GatewaySa>,
}

/// What is on its way to one side.
enum Message {
    ToKeyserver(ToKeyserver),
    FromRegistry(Box<FromRegistry>),
    ToTerminal(Vec<u8>),
}

struct World {
    now: Instant,
    sides: [Side; 2],
    wires: VecDeque<(usize, Message)>,
    /// Messages until the first keyserver dies; `None`: not any more.
    dies_after: Option<usize>,
    carried: usize,
}

fn handle(side: usize) -> SubscriberHandle {
    SubscriberHandle(side as u64 + 1)
}

fn address(side: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, side as u8 + 1])
}

fn keyserver() -> Keyserver<IkeCrypto, SystemRng> {
    Keyserver::new(Config::default(), IkeCrypto, SystemRng)
}

fn fresh() -> SecretKey<32> {
    let mut key = [0; 32];
    SystemRng.fill(&mut key);
    SecretKey::new(key)
}

impl World {
    fn new(dies_after: Option<usize>) -> Self {
        let side = |side| {
            let keys = SessionKeys {
                t2n: fresh(),
                n2t: fresh(),
            };
            Side {
                keyserver: keyserver(),
                session: TerminalSession::new(handle(side), &keys),
                sessions: 0,
                installed: Vec::new(),
                gateway: Vec::new(),
            }
        };
        let mut world = Self {
            now: Instant::from_secs(1),
            sides: [side(0), side(1)],
            wires: VecDeque::new(),
            dies_after,
            carried: 0,
        };
        world.register(0);
        world.register(1);
        world
    }

    /// The terminal has a session with its keyserver.
    fn register(&mut self, at: usize) {
        let keys = SessionKeys {
            t2n: fresh(),
            n2t: fresh(),
        };
        let side = &mut self.sides[at];
        side.sessions += 1;
        side.session = TerminalSession::new(handle(at), &keys);
        let grant = SessionGrant {
            subscriber: handle(at),
            name: format!("terminal-{at}"),
            operator: "default".into(),
            gateway: NodeName::default(),
            session: SessionId(side.sessions),
            t2n: keys.t2n.clone(),
            n2t: keys.n2t.clone(),
            addresses: vec![address(at)],
            lifetime_seconds: 3600,
        };
        side.keyserver
            .handle_registry(self.now, FromRegistry::Session(grant));
    }

    fn say(&mut self, from: usize, message: &FromTerminal) {
        let sealed = self.sides[from].session.seal(message).unwrap();
        let datagram = Datagram {
            source: SocketAddr::new(address(from), 500),
            destination: SocketAddr::new(address(1 - from), 500),
            payload: sealed.as_bytes().to_vec(),
        };
        let subscriber = handle(from);
        let message = ToKeyserver::FromTerminal { subscriber, datagram };
        self.wires.push_back((from, Message::ToKeyserver(message)));
    }

    fn ask(&mut self, from: usize, request_id: u32) {
        let request = ProxyRequest {
            request_id,
            terminal: address(from),
            peer: address(1 - from),
            protocol: 1,
            terminal_port: 0,
            peer_port: 0,
            replaces: None,
            level: 0,
        };
        self.say(from, &FromTerminal::ProxyRequest(request));
    }

    /// The first keyserver is gone, with all it knew and all that was on its way to it; another takes its place.
    fn die(&mut self) {
        self.sides[0].keyserver = keyserver();
        self.wires
            .retain(|(at, message)| *at != 0 || matches!(message, Message::ToTerminal(_)));
        self.register(0);
    }

    /// Carries messages until nobody has one.
    fn run(&mut self) {
        loop {
            for at in 0..2 {
                self.collect(at);
            }
            let Some((at, message)) = self.wires.pop_front() else {
                return;
            };
            self.carried += 1;
            match message {
                Message::ToKeyserver(message) => self.sides[at].keyserver.handle_gateway(self.now, message),
                Message::FromRegistry(message) => {
                    self.sides[at].keyserver.handle_registry(self.now, *message)
                }
                Message::ToTerminal(sealed) => self.at_terminal(at, &sealed),
            }
            if self.dies_after.is_some_and(|after| self.carried >= after) {
                self.dies_after = None;
                self.die();
            }
        }
    }

    fn collect(&mut self, at: usize) {
        while let Some(message) = self.sides[at].keyserver.poll_registry() {
            if let ToRegistry::Credential {
                request,
                subscriber,
                peer,
                ..
            } = message
            {
                let credentials = Credentials::psk(Psk::new(b"a secret of both".to_vec()));
                let answer = FromRegistry::Credential {
                    request,
                    subscriber,
                    credential: Some((policy(at, peer), credentials)),
                };
                self.wires
                    .push_back((at, Message::FromRegistry(Box::new(answer))));
            }
        }
        while let Some(message) = self.sides[at].keyserver.poll_gateway() {
            let gateway = &mut self.sides[at].gateway;
            match message {
                FromKeyserver::IkeToPeer(datagram) => {
                    let to = 1 - at;
                    let subscriber = handle(to);
                    let message = ToKeyserver::IkeFromPeer { subscriber, datagram };
                    self.wires.push_back((to, Message::ToKeyserver(message)));
                }
                FromKeyserver::KeyToTerminal { sealed, .. } => {
                    self.wires.push_back((at, Message::ToTerminal(sealed)));
                }
                FromKeyserver::Install(sa) => gateway.push(*sa),
                FromKeyserver::Remove { spi_in, .. } => gateway.retain(|sa| sa.spi_in != spi_in),
                FromKeyserver::Refused(_) | FromKeyserver::Event(_) => {}
            }
        }
    }

    fn at_terminal(&mut self, at: usize, sealed: &[u8]) {
        let side = &mut self.sides[at];
        let Ok(ToTerminal::KeyTransfer(KeyTransfer {
            transfer_id,
            operation,
            ..
        })) = side.session.open(sealed)
        else {
            return;
        };
        match operation {
            Operation::Install { sa, .. } => {
                side.installed.retain(|other| other.spi_in != sa.spi_in);
                side.installed.push(sa);
            }
            Operation::Delete(name) => side.installed.retain(|sa| sa.spi_in != name.spi_in),
        }
        let ack = TransferAck {
            transfer_id,
            result: TransferResult::Done,
        };
        self.say(at, &FromTerminal::TransferAck(ack));
    }

    /// Lets virtual time pass, timers included.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let due = |world: &Self| {
            let timers = world
                .sides
                .iter()
                .filter_map(|side| side.keyserver.poll_timeout());
            timers.min().filter(|due| *due <= end)
        };
        while let Some(at) = due(self) {
            self.now = self.now.max(at);
            for side in &mut self.sides {
                side.keyserver.handle_timeout(self.now);
            }
            self.run();
        }
        self.now = end;
    }
}

fn policy(at: usize, peer: IpAddr) -> PeerPolicy {
    PeerPolicy {
        peer: Prefix::host(peer),
        local_id: IkeId::Fqdn(format!("terminal-{at}.example")),
        remote_id: None,
        ike_proposals: vec!["aes256gcm16-prfsha256-x25519".into()],
        esp_suites: vec![EspSuite::Aes256Gcm16],
        esn: false,
        mode: Mode::Transport,
        class: Class::Full,
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        lifetime: Lifetime::default(),
        level: 0,
    }
}

/// The terminal of the keyserver that dies asks until it has an SA, as terminals do; how often it had to.
fn asks_until_it_has_one(world: &mut World, from: usize) -> u32 {
    for request in 1..=10 {
        world.ask(from, request);
        world.run();
        // A terminal repeats its request after less than that.
        world.pass(Duration::from_secs(20));
        // What the terminal had of a dead keyserver does not count: the newest is the other end's too.
        let newest = world.sides[from].installed.last();
        if newest.is_some_and(|sa| {
            world.sides[1 - from]
                .installed
                .iter()
                .any(|other| other.spi_in == sa.spi_out)
        }) {
            return request;
        }
    }
    panic!("no SA after ten requests");
}

fn survives(starter: usize) {
    let mut undisturbed = World::new(None);
    undisturbed.ask(starter, 1);
    undisturbed.run();
    let messages = undisturbed.carried;
    assert!((10..MESSAGES).contains(&messages), "{messages} messages");
    for after in 1..=messages + 2 {
        let mut world = World::new(Some(after));
        let requests = asks_until_it_has_one(&mut world, starter);
        // The new keyserver knows nothing of an SA the dead one had finished: the first packet that the other end does
        // not answer has the terminal ask again.
        world.dies_after = None;
        world.ask(0, 77);
        world.run();
        // Longer than it takes to find SAs of the dead one redundant.
        world.pass(Duration::from_secs(120));
        let [first, second] = &world.sides;
        let newest = first.installed.last().unwrap();
        let place = format!("{starter} starts, dead after {after} of {messages}, {requests} requests");
        assert_eq!(second.installed.len(), 1, "{place}: the other terminal");
        assert_eq!(
            (newest.spi_in, newest.spi_out),
            (second.installed[0].spi_out, second.installed[0].spi_in),
            "{place}: both have the same SA"
        );
        for side in &world.sides {
            assert_eq!(side.keyserver.ike_sas(world.now).count(), 1, "{place}: IKE SAs");
            assert_eq!(side.keyserver.child_sas().count(), 1, "{place}: CHILD SAs");
        }
        assert_eq!(second.gateway.len(), 1, "{place}: the other gateway");
    }
}

#[test]
fn whoever_waits_gets_its_sa_from_the_keyserver_that_takes_over() {
    survives(0);
}

#[test]
fn an_exchange_the_other_side_began_starts_again_cleanly() {
    survives(1);
}
