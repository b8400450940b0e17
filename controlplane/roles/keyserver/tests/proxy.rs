//! The keyserver between two terminals, both proxied by it (spec row K10), in virtual time.
//!
//! ```text
//!   terminal a ── sealed ──► ┌───────────┐ ◄── sealed ── terminal b
//!                            │ keyserver │
//!         IKE to b, looped ──► └───────────┘ ──► IKE to a, looped
//! ```

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
    Datagram, FromKeyserver, FromRegistry, GatewayKeys, GatewaySa, NodeName, SessionGrant, SessionId,
    ToKeyserver, ToRegistry,
};
use towpath_keyserver::{Config, Keyserver};
use towpath_keyx::message::{
    FromTerminal, KeyTransfer, Operation, Outcome, ProxyRequest, RefuseReason, ToTerminal, TransferAck,
    TransferResult,
};
use towpath_keyx::{SessionKeys, TerminalSession};

const A: SubscriberHandle = SubscriberHandle(1);
const B: SubscriberHandle = SubscriberHandle(2);

fn address(subscriber: SubscriberHandle) -> IpAddr {
    IpAddr::from([10, 0, 0, subscriber.0 as u8])
}

struct Terminal {
    session: TerminalSession,
    installed: Vec<ChildSa>,
    deleted: usize,
    refused: Vec<RefuseReason>,
    acknowledges: bool,
}

struct World {
    now: Instant,
    keyserver: Keyserver<IkeCrypto, SystemRng>,
    terminals: HashMap<SubscriberHandle, Terminal>,
    gateway: Vec<GatewaySa>,
    drops: Vec<DropReason>,
    events: Vec<String>,
    psk_of: fn(SubscriberHandle) -> Option<&'static [u8]>,
    class: Class,
    esp_suites: Vec<EspSuite>,
    mode: Mode,
    /// What stands behind each terminal, if not the terminal alone.
    behind: fn(SubscriberHandle) -> Vec<TrafficSelector>,
    /// Terminals that are elsewhere than at first.
    moved: HashMap<SubscriberHandle, IpAddr>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Instant::from_secs(1),
            keyserver: Keyserver::new(Config::default(), IkeCrypto, SystemRng),
            terminals: HashMap::new(),
            gateway: Vec::new(),
            drops: Vec::new(),
            events: Vec::new(),
            psk_of: |_| Some(b"a secret of both"),
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

    fn at(&self, subscriber: SubscriberHandle) -> IpAddr {
        let moved = self.moved.get(&subscriber).copied();
        moved.unwrap_or_else(|| address(subscriber))
    }

    fn register(&mut self, subscriber: SubscriberHandle, session: u64) {
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

    fn seal(&mut self, from: SubscriberHandle, message: &FromTerminal) -> Vec<u8> {
        let terminal = self.terminals.get_mut(&from).unwrap();
        terminal.session.seal(message).unwrap().as_bytes().to_vec()
    }

    fn request(&mut self, from: SubscriberHandle, to: SubscriberHandle, request_id: u32) -> Vec<u8> {
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

    fn deliver(&mut self, from: SubscriberHandle, to: SubscriberHandle, sealed: Vec<u8>) {
        self.deliver_only(from, to, sealed);
        self.run();
    }

    /// As [`Self::deliver`], and nothing more happens.
    fn deliver_only(&mut self, from: SubscriberHandle, to: SubscriberHandle, sealed: Vec<u8>) {
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

    fn ask(&mut self, from: SubscriberHandle, to: SubscriberHandle, request_id: u32) {
        let sealed = self.request(from, to, request_id);
        self.deliver(from, to, sealed);
    }

    /// Carries messages until nobody has one.
    fn run(&mut self) {
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

    fn registry(&mut self, message: ToRegistry) {
        if let ToRegistry::Credential {
            request,
            subscriber,
            peer,
            level,
        } = message
        {
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

    fn policy(&self, subscriber: SubscriberHandle, peer: IpAddr, level: u8) -> PeerPolicy {
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

    fn gateway(&mut self, message: FromKeyserver) {
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

    fn at_terminal(&mut self, subscriber: SubscriberHandle, sealed: &[u8]) {
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

    fn take_over(&mut self, subscriber: SubscriberHandle, transfer: KeyTransfer) {
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
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.keyserver.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.keyserver.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }

    fn sa_of(&self, subscriber: SubscriberHandle) -> &ChildSa {
        let [sa] = self.terminals[&subscriber].installed.as_slice() else {
            panic!(
                "{subscriber} has {} SAs",
                self.terminals[&subscriber].installed.len()
            );
        };
        sa
    }
}

#[test]
fn one_request_gives_both_terminals_an_sa_and_each_segment_its_own_keys() {
    let mut world = World::new();
    world.ask(A, B, 1);
    let (a, b) = (world.sa_of(A), world.sa_of(B));
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    let [at_a, at_b] = world.gateway.as_slice() else {
        panic!("{:?}", world.gateway)
    };
    let mut keys = Vec::new();
    for sa in [at_a, at_b] {
        let GatewayKeys::Full {
            peer,
            segment_in,
            segment_out,
        } = &sa.keys
        else {
            panic!()
        };
        let terminal = if sa.subscriber == A { a } else { b };
        assert_eq!((&terminal.keys_in, &terminal.keys_out), (segment_in, segment_out));
        keys.extend([segment_in.clone(), segment_out.clone(), peer.keys_in.clone()]);
    }
    // Four segment keys and two negotiated ones, no two alike.
    for (index, key) in keys.iter().enumerate() {
        assert!(keys[..index].iter().all(|other| other != key));
    }
    assert_eq!(world.drops, []);
}

#[test]
fn class_inspect_hands_out_cipher_keys_alone_and_falls_to_none_for_an_aead() {
    for suite in [EspSuite::Aes256CbcSha256, EspSuite::Aes256Gcm16] {
        let mut world = World::new();
        world.class = Class::Inspect;
        world.esp_suites = vec![suite];
        world.ask(A, B, 1);
        // The terminals hold the negotiated keys: the gateway can change nothing.
        let (a, b) = (world.sa_of(A).clone(), world.sa_of(B).clone());
        assert_eq!(a.keys_out, b.keys_in);
        assert_eq!(world.gateway.len(), 2);
        for sa in &world.gateway {
            if suite.is_aead() {
                assert_eq!((&sa.keys, sa.class()), (&GatewayKeys::None, Class::None));
                continue;
            }
            let GatewayKeys::Inspect(keys) = &sa.keys else {
                panic!("{:?}", sa.keys)
            };
            let own = if sa.subscriber == A { &a } else { &b };
            assert_eq!(
                (&keys.cipher_in, &keys.cipher_out),
                (&own.keys_in.cipher, &own.keys_out.cipher)
            );
            let bytes = towpath_fabric::encode(sa);
            for integrity in [&own.keys_in.integrity, &own.keys_out.integrity] {
                assert!(
                    !bytes
                        .windows(integrity.len())
                        .any(|window| window == integrity.expose())
                );
            }
        }
    }
}

#[test]
fn class_none_hands_the_negotiated_keys_to_the_terminals_and_none_to_the_gateway() {
    let mut world = World::new();
    world.class = Class::None;
    world.ask(A, B, 1);
    assert_eq!(world.sa_of(A).keys_out, world.sa_of(B).keys_in);
    assert_eq!(world.gateway.len(), 2);
    assert!(world.gateway.iter().all(|sa| sa.keys == GatewayKeys::None));
}

#[test]
fn simultaneous_requests_end_with_one_sa_pair() {
    let mut world = World::new();
    let (from_a, from_b) = (world.request(A, B, 1), world.request(B, A, 1));
    for (from, to, sealed) in [(A, B, from_a), (B, A, from_b)] {
        let datagram = Datagram {
            source: SocketAddr::new(address(from), 500),
            destination: SocketAddr::new(address(to), 500),
            payload: sealed,
        };
        world.keyserver.handle_gateway(
            world.now,
            ToKeyserver::FromTerminal {
                subscriber: from,
                datagram,
            },
        );
    }
    world.run();
    world.pass(Duration::from_secs(30));
    let (a, b) = (world.sa_of(A), world.sa_of(B));
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    assert_eq!(world.gateway.len(), 2);
}

#[test]
fn a_transfer_is_repeated_until_acknowledged_and_given_up_in_the_end() {
    let mut world = World::new();
    world.terminals.get_mut(&A).unwrap().acknowledges = false;
    world.ask(A, B, 1);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.gateway.len(), 2);
    // The terminal answers at last: the next retransmission reaches it.
    world.terminals.get_mut(&A).unwrap().acknowledges = true;
    world.pass(Duration::from_secs(10));
    assert_eq!(world.terminals[&A].installed.len(), 1);

    let mut world = World::new();
    world.terminals.get_mut(&A).unwrap().acknowledges = false;
    world.ask(A, B, 1);
    world.pass(Duration::from_secs(300));
    assert_eq!(world.gateway, []);
    assert!(world.terminals[&B].installed.is_empty());
    assert!(world.events.iter().any(|kind| kind == "key_transfer_failed"));
}

#[test]
fn keys_are_never_handed_out_twice() {
    let mut world = World::new();
    world.ask(A, B, 1);
    let first = world.sa_of(A).clone();
    // The terminal starts over: it registers again and has no SA.
    world.register(A, 2);
    world.ask(A, B, 2);
    world.pass(Duration::from_secs(30));
    let second = world.sa_of(A);
    assert_ne!(first.keys_out, second.keys_out);
    assert_ne!(first.spi_out, second.spi_out);
    assert_eq!(world.gateway.len(), 2);
}

#[test]
fn replayed_forged_truncated_and_misplaced_messages_are_refused() {
    let mut world = World::new();
    let sealed = world.request(A, B, 1);
    for len in 0..sealed.len() {
        world.deliver(A, B, sealed[..len].to_vec());
    }
    for at in 0..sealed.len() {
        let mut forged = sealed.clone();
        forged[at] ^= 1;
        world.deliver(A, B, forged);
    }
    assert_eq!(world.drops.len(), 2 * sealed.len());
    assert!(world.gateway.is_empty());
    // Another subscriber's address, then another peer's.
    world.deliver(B, A, sealed.clone());
    assert_eq!(world.drops.pop(), Some(DropReason::KeyxUnknownSession));
    world.deliver(A, A, sealed);
    assert_eq!(world.drops.pop(), Some(DropReason::KeyxWrongAddress));
    assert!(world.gateway.is_empty());
    let sealed = world.request(A, B, 2);
    world.deliver(A, B, sealed.clone());
    assert_eq!(world.gateway.len(), 2);
    world.deliver(A, B, sealed);
    assert_eq!(world.drops.pop(), Some(DropReason::KeyxReplayed));
}

#[test]
fn a_new_session_takes_over_only_when_the_terminal_uses_it() {
    let mut world = World::new();
    world.ask(A, B, 1);
    // Somebody replays a registration: the registry grants a session the terminal knows nothing of.
    let old = world.terminals.remove(&A).unwrap();
    world.register(A, 2);
    let unknown = world.terminals.insert(A, old).unwrap();
    let hello = world.seal(A, &FromTerminal::Hello);
    world.deliver(A, B, hello);
    assert_eq!(world.drops, []);
    // The terminal itself takes the new one up: the old one is over.
    let mut old = world.terminals.insert(A, unknown).unwrap();
    let hello = world.seal(A, &FromTerminal::Hello);
    world.deliver(A, B, hello);
    let stale = old
        .session
        .seal(&FromTerminal::Hello)
        .unwrap()
        .as_bytes()
        .to_vec();
    world.deliver(A, B, stale);
    assert!(
        matches!(
            world.drops.as_slice(),
            [DropReason::KeyxForged | DropReason::KeyxReplayed]
        ),
        "{:?}",
        world.drops
    );
}

#[test]
fn a_peer_without_policy_or_with_another_secret_is_refused_and_the_terminal_told() {
    let mut world = World::new();
    world.psk_of = |_| None;
    world.ask(A, B, 1);
    assert_eq!(world.terminals[&A].refused, [RefuseReason::NoPolicy]);

    let mut world = World::new();
    world.psk_of = |subscriber| Some(if subscriber == A { b"one" } else { b"two" });
    world.ask(A, B, 1);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.terminals[&A].refused, [RefuseReason::ExchangeFailed]);
    assert!(world.gateway.is_empty() && world.terminals[&A].installed.is_empty());
    // Asking again at once gets "later" instead of another exchange.
    world.ask(A, B, 2);
    assert_eq!(world.keyserver.ike_sas(world.now).count(), 0);
}

#[test]
fn a_subscriber_that_leaves_takes_its_sas_along() {
    let mut world = World::new();
    world.ask(A, B, 1);
    world
        .keyserver
        .handle_registry(world.now, FromRegistry::SessionEnded { subscriber: A });
    world.run();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.gateway, []);
    assert_eq!(world.terminals[&B].installed, []);
}

#[test]
fn the_class_is_the_policys_whoever_starts_and_however_late_the_answer() {
    let mut world = World::new();
    world.ask(A, B, 1);
    // B was the responder: nobody had asked for its pair before.
    let classes: Vec<Class> = world
        .keyserver
        .child_sas()
        .map(|(_, _, child)| child.class)
        .collect();
    assert_eq!(classes, [Class::Full, Class::Full]);
    world.pass(Duration::from_secs(5));
    assert!(world.gateway.iter().all(|sa| sa.class() == Class::Full));
}

/// The IKE SA of `of`, and the SPI of its newest CHILD SA.
fn ike_of(world: &World, of: SubscriberHandle) -> (towpath_ike::IkeSaId, towpath_base::Spi) {
    let mut all = world.keyserver.ike_sas(world.now);
    let info = all.find(|info| info.local.ip() == address(of)).unwrap();
    (info.id, info.children.last().unwrap().0)
}

#[test]
fn a_peer_that_rekeys_is_answered_when_the_terminal_has_the_keys() {
    let mut world = World::new();
    world.ask(A, B, 1);
    world.terminals.get_mut(&B).unwrap().acknowledges = false;
    let (ike, child) = ike_of(&world, A);
    world.keyserver.ike_rekey(world.now, ike, Some(child)).unwrap();
    world.run();
    world.pass(Duration::from_millis(1200));
    // B's side has made the new SA, its terminal has not confirmed it: A, which asked, has not heard of it.
    assert_eq!(world.terminals[&A].installed.len(), 1);
    assert_eq!(world.gateway.len(), 3, "the gateway is ready for B's new SA");
    world.terminals.get_mut(&B).unwrap().acknowledges = true;
    world.pass(Duration::from_secs(2));
    for subscriber in [A, B] {
        let terminal = &world.terminals[&subscriber];
        assert_eq!((terminal.installed.len(), terminal.deleted), (1, 1));
    }
    let new = world.terminals[&A].installed[0].spi_in;
    assert_ne!(new, child);
    // Packets under the old keys are served for a while, and then no more.
    assert_eq!(world.gateway.len(), 4);
    world.pass(Duration::from_secs(6));
    assert_eq!(world.gateway.len(), 2);
    assert!(world.gateway.iter().any(|sa| sa.spi_in == new));
}

#[test]
fn a_terminal_that_never_confirms_holds_a_rekeying_up_for_a_bounded_time() {
    let mut world = World::new();
    world.ask(A, B, 1);
    world.terminals.get_mut(&B).unwrap().acknowledges = false;
    let (ike, child) = ike_of(&world, A);
    world.keyserver.ike_rekey(world.now, ike, Some(child)).unwrap();
    world.run();
    world.pass(towpath_keyserver::READY_WITHIN + Duration::from_secs(1));
    assert_ne!(world.terminals[&A].installed.last().unwrap().spi_in, child);
}

#[test]
fn a_deletion_that_races_a_key_transfer_wins() {
    let mut world = World::new();
    world.terminals.get_mut(&A).unwrap().acknowledges = false;
    world.ask(A, B, 1);
    let (ike, _) = ike_of(&world, A);
    world.keyserver.ike_terminate(world.now, ike, None).unwrap();
    world.run();
    world.terminals.get_mut(&A).unwrap().acknowledges = true;
    world.pass(Duration::from_secs(5));
    assert_eq!(world.terminals[&A].installed, []);
    assert_eq!(world.terminals[&B].installed, []);
    assert_eq!(world.gateway, []);
    assert_eq!(world.keyserver.child_sas().count(), 0);
}

#[test]
fn an_operator_starts_an_exchange_only_for_a_terminal_that_is_here() {
    let mut world = World::new();
    let stranger = IpAddr::from([10, 0, 0, 99]);
    let refused = world.keyserver.ike_initiate(world.now, stranger, address(B));
    assert_eq!(refused, Err(towpath_keyserver::StartError::NotHere));
    world
        .keyserver
        .ike_initiate(world.now, address(A), address(B))
        .unwrap();
    let again = world.keyserver.ike_initiate(world.now, address(A), address(B));
    assert_eq!(again, Err(towpath_keyserver::StartError::InProgress));
    world.run();
    assert_eq!(world.terminals[&A].installed.len(), 1);
    let again = world.keyserver.ike_initiate(world.now, address(A), address(B));
    assert_eq!(again, Err(towpath_keyserver::StartError::Established));
}

/// A registers at another address and says so.
fn move_a(world: &mut World) -> IpAddr {
    let new = IpAddr::from([10, 0, 0, 101]);
    world.moved.insert(A, new);
    world.register(A, 2);
    let hello = world.seal(A, &FromTerminal::Hello);
    world.deliver(A, B, hello);
    world.pass(Duration::from_secs(2));
    new
}

#[test]
fn a_terminal_that_moves_takes_its_sas_along_and_the_other_end_follows() {
    let mut world = World::new();
    world.mode = Mode::Tunnel;
    world.behind = |subscriber| {
        let net = [10, 9, subscriber.0 as u8, 0];
        vec![TrafficSelector::any_of(Prefix::new(net.into(), 24).unwrap())]
    };
    world.ask(A, B, 1);
    let (old_a, old_b) = (world.sa_of(A).clone(), world.sa_of(B).clone());
    let new = move_a(&mut world);
    // Fresh keys between the new ends; the IKE SA is the same.
    let (a, b) = (world.sa_of(A), world.sa_of(B));
    assert_eq!((a.local, b.remote), (new, new));
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    assert_ne!(a.spi_in, old_a.spi_in);
    // What B was told to forget is what it was given.
    assert_eq!((old_b.remote, world.terminals[&B].deleted), (address(A), 1));
    assert!(world.events.iter().filter(|kind| *kind == "ike_moved").count() >= 2);
    assert_eq!(
        world
            .events
            .iter()
            .filter(|kind| *kind == "ike_established")
            .count(),
        2
    );
    world.pass(Duration::from_secs(10));
    assert_eq!(world.gateway.len(), 2, "{:?}", world.gateway);
    assert!(world.gateway.iter().all(|sa| sa.local == new || sa.remote == new));
    // Another rekeying, and the end, work from there.
    let b_ike = world
        .keyserver
        .ike_sas(world.now)
        .find(|info| info.local.ip() == address(B));
    world
        .keyserver
        .ike_rekey(world.now, b_ike.unwrap().id, None)
        .unwrap();
    world.run();
    let b_ike = world
        .keyserver
        .ike_sas(world.now)
        .find(|info| info.local.ip() == address(B));
    world
        .keyserver
        .ike_terminate(world.now, b_ike.unwrap().id, None)
        .unwrap();
    world.run();
    world.pass(Duration::from_secs(10));
    assert_eq!(world.gateway, []);
    assert!(world.terminals[&A].installed.is_empty() && world.terminals[&B].installed.is_empty());
}

/// The traffic is between the addresses themselves: nothing is left to protect, and the next request starts afresh.
#[test]
fn an_sa_of_an_address_ends_with_it() {
    let mut world = World::new();
    world.ask(A, B, 1);
    let new = move_a(&mut world);
    world.pass(Duration::from_secs(120));
    assert_eq!(world.gateway, []);
    assert!(world.terminals[&B].installed.is_empty());
    world.ask(A, B, 2);
    assert_eq!(world.sa_of(B).remote, new);
}

#[test]
fn without_mobike_a_move_ends_the_sas() {
    let mut world = World::new();
    let config = Config {
        ike: towpath_ike::Config {
            mobike: false,
            ..Config::default().ike
        },
        ..Config::default()
    };
    world.keyserver = Keyserver::new(config, IkeCrypto, SystemRng);
    world.register(A, 1);
    world.register(B, 1);
    world.mode = Mode::Tunnel;
    world.behind = |_| {
        vec![TrafficSelector::any_of(
            Prefix::new([10, 9, 0, 0].into(), 16).unwrap(),
        )]
    };
    world.ask(A, B, 1);
    world.sa_of(A);
    move_a(&mut world);
    world.pass(Duration::from_secs(200));
    assert_eq!(world.gateway, []);
}

/// The registry is gone in the middle of an exchange: the terminal is told, and the next attempt works.
#[test]
fn a_registry_that_does_not_answer_delays_and_does_not_block() {
    let mut world = World::new();
    let request = world.request(A, B, 1);
    world.deliver_only(A, B, request);
    let asked = world.keyserver.poll_registry();
    assert!(
        matches!(asked, Some(ToRegistry::SessionConfirmed { .. })),
        "{asked:?}"
    );
    let asked = world.keyserver.poll_registry();
    assert!(matches!(asked, Some(ToRegistry::Credential { .. })), "{asked:?}");
    world.pass(Duration::from_secs(6));
    assert_eq!(world.terminals[&A].refused, [RefuseReason::ExchangeFailed]);
    world.pass(Duration::from_secs(2));
    world.ask(A, B, 2);
    world.sa_of(A);
}

/// Each message goes to the gateway its terminal registered through, whoever brought the question.
#[test]
fn messages_go_to_the_gateway_of_the_terminal() {
    let mut world = World::new();
    let elsewhere = NodeName("gw2".into());
    let request = world.request(A, B, 1);
    let message = ToKeyserver::FromTerminal {
        subscriber: A,
        datagram: Datagram {
            source: SocketAddr::new(address(A), 500),
            destination: SocketAddr::new(address(B), 500),
            payload: request,
        },
    };
    world.keyserver.handle_gateway_of(world.now, &elsewhere, message);
    let (gateway, event) = world.keyserver.poll_gateway_of().unwrap();
    assert!(matches!(event, FromKeyserver::Event(_)));
    assert_eq!(gateway, Some(NodeName::default()));
    // Of a terminal that is not here only the asking gateway is known.
    let stranger = ToKeyserver::FromTerminal {
        subscriber: SubscriberHandle(77),
        datagram: Datagram {
            source: SocketAddr::new(address(A), 500),
            destination: SocketAddr::new(address(B), 500),
            payload: vec![1; 64],
        },
    };
    world.keyserver.handle_gateway_of(world.now, &elsewhere, stranger);
    let of_stranger = std::iter::from_fn(|| world.keyserver.poll_gateway_of())
        .find(|(_, message)| matches!(message, FromKeyserver::Refused(_)));
    assert_eq!(of_stranger.unwrap().0, Some(elsewhere));
    // Whoever is registered no more has no session here when the registry is reached again.
    let registered = FromRegistry::Registered { subscribers: vec![B] };
    world.keyserver.handle_registry(world.now, registered);
    assert!(world.keyserver.addresses_of(&format!("terminal-{A}")).is_empty());
    assert!(!world.keyserver.addresses_of(&format!("terminal-{B}")).is_empty());
}

/// The initiator sends when it has the answer: the answer waits until the other end's terminal has the keys, but not
/// for ever.
#[test]
fn no_packet_overtakes_the_keys_of_a_first_set_up() {
    let mut world = World::new();
    world.terminals.get_mut(&B).unwrap().acknowledges = false;
    world.ask(A, B, 1);
    assert!(world.terminals[&A].installed.is_empty(), "B has not acknowledged");
    world.pass(Duration::from_secs(4));
    world.sa_of(A);
    // The usual case needs no timer.
    let mut world = World::new();
    world.ask(A, B, 1);
    world.sa_of(A);
    world.sa_of(B);
}

/// A request for a connection of the terminal's port 40000 + `port`, at a level where every one has its own SA.
fn ask_for_connection(world: &mut World, request_id: u32, port: u16, replaces: Option<Spi>) {
    let request = ProxyRequest {
        request_id,
        terminal: world.at(A),
        peer: world.at(B),
        protocol: if replaces.is_some() { 0 } else { 6 },
        terminal_port: if replaces.is_some() { 0 } else { 40000 + port },
        peer_port: if replaces.is_some() { 0 } else { 443 },
        replaces,
        level: 5,
    };
    let sealed = world.seal(A, &FromTerminal::ProxyRequest(request));
    world.deliver(A, B, sealed);
}

#[test]
fn a_connection_of_another_level_has_an_sa_of_its_own_beside_the_one_for_everything() {
    let mut world = World::new();
    world.ask(A, B, 1);
    ask_for_connection(&mut world, 2, 1, None);
    ask_for_connection(&mut world, 3, 2, None);
    // Asked again while it is there: it was lost, and the others stay.
    ask_for_connection(&mut world, 4, 2, None);
    // Longer than it takes to find one of two IKE SAs redundant.
    world.pass(Duration::from_secs(60));
    let sas = &world.terminals[&A].installed;
    let ports: Vec<_> = sas
        .iter()
        .map(|sa| {
            let (local, remote) = (sa.local_ts.iter().next(), sa.remote_ts.iter().next());
            let (local, remote) = (local.unwrap(), remote.unwrap());
            (
                (local.protocol, local.first_port, local.last_port),
                (remote.first_port, remote.last_port),
            )
        })
        .collect();
    assert_eq!(
        ports,
        [
            ((0, 0, 65535), (0, 65535)),
            ((6, 40001, 40001), (443, 443)),
            ((6, 40002, 40002), (443, 443)),
        ]
    );
    let (wide, narrow) = (sas[0].clone(), sas[1].clone());
    let at_gateway = |spi_in| {
        let found = world
            .gateway
            .iter()
            .find(|sa| sa.subscriber == A && sa.spi_in == spi_in);
        found.map(|sa| (sa.level, sa.class())).unwrap()
    };
    assert_eq!(at_gateway(wide.spi_in), (Some(0), Class::Full));
    assert_eq!(at_gateway(narrow.spi_in), (Some(5), Class::None));
    assert!(world.terminals[&A].refused.is_empty());
    assert_eq!(world.drops, []);

    // One that is used is replaced when the terminal says so, one that is not ends; the rest goes on.
    let limits = Config::default().connection;
    assert_eq!(narrow.lifetime.soft_seconds, limits.soft_seconds);
    world.pass(Duration::from_secs(u64::from(limits.soft_seconds) - 60));
    ask_for_connection(&mut world, 5, 1, Some(narrow.spi_in));
    world.pass(Duration::from_secs(
        u64::from(limits.hard_seconds - limits.soft_seconds) + 60,
    ));
    let sas = &world.terminals[&A].installed;
    let left: Vec<_> = sas
        .iter()
        .filter_map(|sa| Some(sa.local_ts.iter().next()?.first_port))
        .collect();
    assert_eq!(left, [0, 40001]);
    assert_ne!(sas[1].spi_in, narrow.spi_in);
}

#[test]
fn a_request_of_another_level_that_names_no_connection_is_refused() {
    let mut world = World::new();
    ask_for_connection(&mut world, 1, 1, Some(Spi(77)));
    assert_eq!(world.terminals[&A].refused, [RefuseReason::NoPolicy]);
    assert!(world.gateway.is_empty());
}
