//! The terminal core against the scripted network in virtual time: loss, duplication, reordering, replay and
//! forgery, with fixed seeds.

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use network::{Dice, Network, Output, Script, take_apart, udp_packet};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{EspCipher, EspSuite, Lifetime, Mode};
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_base::{DropReason, Instant, SecretKey, SubscriberHandle};
use towpath_ipsec::locate;
use towpath_keyx::message::{MessageType, peek};
use towpath_keyx::{ReservedSpi, frame};
use towpath_terminal_core::{
    Action, Addresses, BUFFER_HEADROOM, Command, Config, Core, Disposition, Event, Policy, SoftEsp, Timing,
    Transmit,
};

const TERMINAL: [&str; 2] = ["192.0.2.7", "2001:db8:2::7"];
const PEERS: [&str; 4] = ["198.51.100.1", "198.51.100.2", "2001:db8:51::1", "2001:db8:51::2"];
const KSUB: [u8; 32] = [0x5a; 32];
const HANDLE: u64 = 7;

type Terminal = Core<SoftEsp, 8, 16, 65536>;

/// What the wire does, in per cent of packets.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    loss: u64,
    duplicate: u64,
    /// Extra delay of up to this many milliseconds: reordering.
    jitter: u64,
    /// An old packet comes again.
    replay: u64,
    /// A copy with one bit flipped, or cut short, comes as well.
    forge: u64,
}

const HOSTILE: Faults = Faults {
    loss: 25,
    duplicate: 10,
    jitter: 300,
    replay: 15,
    forge: 15,
};

/// One way of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Terminal,
    Network,
}

/// Terminal, wire, network and applications.
struct World {
    now: Instant,
    terminal: Box<Terminal>,
    network: Network,
    faults: Faults,
    dice: Dice,
    wire: BTreeMap<(Instant, u64), (To, Vec<u8>)>,
    history: Vec<(To, Vec<u8>)>,
    sequence: u64,
    stored: u64,
    events: Vec<Event>,
    sent: u64,
    at_peer: BTreeSet<u64>,
    echoed: BTreeSet<u64>,
    registered_with: BTreeSet<u64>,
    nonces: BTreeSet<(u32, u64)>,
}

fn policies() -> [Policy; 4] {
    PEERS.map(|peer| {
        let peer = Prefix::host(peer.parse().unwrap());
        Policy::new(TrafficSelector::any_of(peer), Action::Protect { peer: None })
    })
}

fn terminal(counter: u64) -> Box<Terminal> {
    let config = Config {
        subscriber: SubscriberHandle(HANDLE),
        ksub: SecretKey::new(KSUB),
        addresses: Addresses::of(TERMINAL.map(|address| address.parse().unwrap())),
        reserved: ReservedSpi::default(),
        counter,
        timing: Timing::default(),
    };
    Box::new(Core::new(SoftEsp, config, &policies()).unwrap())
}

fn marker(number: u64) -> Vec<u8> {
    format!("in the clear: {number:08}").into_bytes()
}

fn number(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).unwrap();
    text.strip_prefix("in the clear: ").unwrap().parse().unwrap()
}

impl World {
    fn new(script: Script, faults: Faults, seed: u64) -> Self {
        let mut world = Self {
            now: Instant::ZERO,
            terminal: terminal(0),
            network: Network::new(SecretKey::new(KSUB), HANDLE, script, seed),
            faults,
            dice: Dice::new(seed ^ 0xdead_beef),
            wire: BTreeMap::new(),
            history: Vec::new(),
            sequence: 0,
            stored: 0,
            events: Vec::new(),
            sent: 0,
            at_peer: BTreeSet::new(),
            echoed: BTreeSet::new(),
            registered_with: BTreeSet::new(),
            nonces: BTreeSet::new(),
        };
        world.flush();
        world
    }

    /// Puts a packet on the wire, with all that can happen to it there.
    fn put(&mut self, to: To, packet: Vec<u8>) {
        if to == To::Terminal && locate::esp(&packet).is_err() && take_apart(&packet).unwrap().udp().is_none()
        {
            panic!("neither ESP nor a message");
        }
        let Faults {
            loss,
            duplicate,
            replay,
            forge,
            ..
        } = self.faults;
        self.history.push((to, packet.clone()));
        if self.dice.chance(replay) {
            let old = self.dice.roll() as usize % self.history.len();
            let (to, packet) = self.history[old].clone();
            self.schedule(to, packet);
        }
        if self.dice.chance(forge) {
            let mut forged = packet.clone();
            let at = self.dice.roll() as usize % forged.len();
            if self.dice.chance(50) {
                forged[at] ^= 1 << (self.dice.roll() % 8);
            } else {
                forged.truncate(at);
            }
            self.schedule(to, forged);
        }
        if self.dice.chance(duplicate) {
            self.schedule(to, packet.clone());
        }
        if !self.dice.chance(loss) {
            self.schedule(to, packet);
        }
    }

    fn schedule(&mut self, to: To, packet: Vec<u8>) {
        let jitter = self.dice.roll() % (self.faults.jitter + 1);
        self.sequence += 1;
        let at = self.now + Duration::from_millis(10 + jitter);
        self.wire.insert((at, self.sequence), (to, packet));
    }

    /// Does what the core wants done, and notes what must not happen twice.
    fn flush(&mut self) {
        let mut buffer = vec![0; 4096];
        loop {
            while let Some(transmit) = self.terminal.poll_transmit(self.now, &mut buffer, &mut self.dice) {
                let packet = match transmit {
                    Transmit::Packet(packet) => packet.bytes().to_vec(),
                    Transmit::Datagram {
                        source,
                        destination,
                        payload,
                    } => udp_packet(source, destination, payload),
                };
                self.note(&packet);
                self.put(To::Network, packet);
            }
            let mut persisted = false;
            while let Some(command) = self.terminal.poll_command() {
                match command {
                    Command::Persist(mark) => {
                        assert!(mark > self.stored, "the mark only ever grows");
                        self.stored = mark;
                        self.terminal.persisted(mark);
                        persisted = true;
                    }
                    Command::Tell(event) => self.events.push(event),
                }
            }
            if !persisted {
                return;
            }
        }
    }

    /// Registration counters and ESP sequence numbers are nonces: never twice.
    fn note(&mut self, packet: &[u8]) {
        let parts = take_apart(packet).unwrap();
        if let Some((_, payload)) = parts.udp()
            && let Some(sealed) = frame::unwrap(ReservedSpi::default(), payload)
        {
            let header = peek(sealed).unwrap();
            if matches!(
                header.message_type,
                MessageType::Register | MessageType::Deregister
            ) {
                assert!(header.counter <= self.stored, "a counter that is not on the disk");
                assert!(
                    self.registered_with.insert(header.counter),
                    "counter {} twice",
                    header.counter
                );
            }
            return;
        }
        let esp = locate::esp(packet).expect("ESP or a message to the network");
        assert!(
            self.nonces.insert((esp.spi.0, esp.sequence.into())),
            "a sequence number twice"
        );
    }

    /// An application sends to a peer.
    fn send(&mut self) {
        let peer = PEERS[self.dice.roll() as usize % PEERS.len()].parse().unwrap();
        self.send_to(peer);
    }

    fn send_to(&mut self, peer: IpAddr) {
        let terminal = TERMINAL[usize::from(peer.is_ipv6())].parse().unwrap();
        let (from, to) = (SocketAddr::new(terminal, 4000), SocketAddr::new(peer, 7));
        let plain = udp_packet(from, to, &marker(self.sent));
        self.sent += 1;
        let mut buffer = vec![0; 4096];
        buffer[BUFFER_HEADROOM..BUFFER_HEADROOM + plain.len()].copy_from_slice(&plain);
        let mut packet = PacketBuf::new(&mut buffer, BUFFER_HEADROOM, plain.len()).unwrap();
        match self.terminal.handle_plain(self.now, &mut packet, &mut self.dice) {
            Disposition::Transmit => {
                let packet = packet.bytes().to_vec();
                self.note(&packet);
                self.put(To::Network, packet);
            }
            Disposition::Consumed | Disposition::Drop(_) => {}
            Disposition::Deliver => panic!("a packet going out comes in"),
            Disposition::Cut(_) => panic!("no router said that a path is narrow"),
        }
        self.flush();
    }

    /// Advances to the next thing that happens, at most to `end`.
    fn step(&mut self, end: Instant) {
        let wire = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timer = self.terminal.poll_timeout().map(|(at, _)| at);
        let next = [wire, timer, self.network.poll_timeout(), Some(end)]
            .into_iter()
            .flatten()
            .min()
            .unwrap();
        self.now = self.now.max(next);
        if timer.is_some_and(|at| at <= self.now) {
            self.terminal.handle_timeout(self.now);
            self.flush();
        }
        let due = self.network.poll(self.now);
        self.out_of_network(due);
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (to, packet) = entry.remove();
            match to {
                To::Network => {
                    let out = self.network.handle_terminal(self.now, &packet);
                    self.out_of_network(out);
                }
                To::Terminal => self.terminal_receives(&packet),
            }
        }
    }

    fn out_of_network(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::ToTerminal(packet) => self.put(To::Terminal, packet),
                Output::ToPeer(plain) => self.at_peer(&plain),
            }
        }
    }

    /// The peer returns what reaches it. Forged packets that are neither ESP nor messages come here as well.
    fn at_peer(&mut self, plain: &[u8]) {
        let Some(parts) = take_apart(plain) else { return };
        let Some((udp, payload)) = parts.udp().filter(|(udp, _)| udp.destination.get() == 7) else {
            return;
        };
        assert!(self.at_peer.insert(number(payload)), "delivered twice");
        let from = SocketAddr::new(parts.destination, 7);
        let echo = udp_packet(from, SocketAddr::new(parts.source, udp.source.get()), payload);
        if let Some(sealed) = self.network.handle_peer(self.now, &echo) {
            self.put(To::Terminal, sealed);
        }
    }

    fn terminal_receives(&mut self, packet: &[u8]) {
        let mut buffer = vec![0; 4096];
        buffer[BUFFER_HEADROOM..BUFFER_HEADROOM + packet.len()].copy_from_slice(packet);
        let mut buf = PacketBuf::new(&mut buffer, BUFFER_HEADROOM, packet.len()).unwrap();
        match self.terminal.handle_network(self.now, &mut buf) {
            Disposition::Deliver => self.deliver(buf.bytes()),
            Disposition::Consumed | Disposition::Drop(_) => {}
            Disposition::Transmit | Disposition::Cut(_) => panic!("a packet coming in goes out"),
        }
        self.flush();
    }

    /// What reaches an application is what a peer sent, once. A forged header may make a packet of the network's
    /// look like one of a host that no policy is about: that one is not protected and proves nothing.
    fn deliver(&mut self, plain: &[u8]) {
        let parts = take_apart(plain).unwrap();
        if PEERS.iter().any(|peer| peer.parse() == Ok(parts.source)) {
            let (_, payload) = parts.udp().expect("what the peer sent");
            assert!(self.echoed.insert(number(payload)), "delivered twice");
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    /// Sends a packet every 50 ms for `time`.
    fn run_with_traffic(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.send();
            self.run(Duration::from_millis(50));
        }
    }

    /// On a wire without faults, `count` packets go and all of them come back.
    fn assert_works(&mut self, count: u64) {
        self.faults = Faults::default();
        self.run(Duration::from_secs(40));
        let first = self.sent;
        for _ in 0..count {
            self.send();
            self.run(Duration::from_millis(50));
        }
        self.run(Duration::from_secs(20));
        let lost: Vec<u64> = (first..self.sent)
            .filter(|number| !self.echoed.contains(number))
            .collect();
        assert!(lost.is_empty(), "lost {lost:?}");
        assert_eq!(self.network.unacknowledged(), 0);
    }

    fn assert_nothing_leaked(&self) {
        let secrets = self
            .network
            .keys
            .iter()
            .map(Vec::as_slice)
            .chain([&KSUB[..], b"in the clear"]);
        for secret in secrets {
            // The salt of a GCM key is part of it: eight bytes are enough to be sure.
            let secret = &secret[..secret.len().min(12)];
            let leaked = self
                .history
                .iter()
                .any(|(_, packet)| packet.windows(secret.len()).any(|w| w == secret));
            assert!(!leaked, "a secret on the wire");
        }
    }

    fn drops(&self, reasons: &[DropReason]) -> u32 {
        reasons.iter().map(|reason| self.terminal.drops(*reason)).sum()
    }
}

#[test]
fn whatever_the_wire_does_the_terminal_gets_its_sas_and_nothing_comes_twice() {
    // Without a cipher there is nothing to keep from the wire.
    let encrypts = |suite: &EspSuite| suite.cipher() != EspCipher::Null;
    let suites: Vec<_> = EspSuite::ALL.iter().copied().filter(encrypts).collect();
    for seed in 1..=24 {
        let script = Script {
            suite: suites[seed as usize % suites.len()],
            mode: [Mode::Transport, Mode::Tunnel][seed as usize / 2 % 2],
            encap: seed % 3 == 0,
            ..Script::default()
        };
        let mut world = World::new(script, HOSTILE, seed);
        world.run_with_traffic(Duration::from_secs(60));
        world.assert_works(40);
        world.assert_nothing_leaked();
        let refused = [
            DropReason::KeyxReplayed,
            DropReason::KeyxForged,
            DropReason::KeyxMalformed,
            DropReason::EspReplayed,
            DropReason::EspAuthFailed,
        ];
        assert!(
            world.drops(&refused) > 0,
            "seed {seed}: attacks leave a count at the terminal"
        );
        assert!(
            refused
                .iter()
                .any(|reason| world.network.refused.contains_key(reason)),
            "seed {seed}: and there"
        );
    }
}

#[test]
fn on_a_quiet_wire_the_first_packet_of_a_flow_is_held_and_arrives() {
    let mut world = World::new(Script::default(), Faults::default(), 1);
    for peer in PEERS {
        world.send_to(peer.parse().unwrap());
    }
    assert_eq!(world.terminal.held(), 4);
    world.run(Duration::from_secs(2));
    assert_eq!((world.terminal.held(), world.echoed.len()), (0, 4));
    assert_eq!(world.network.requests.len(), 4, "one request per peer");
    assert_eq!(world.network.registrations, 1);
}

#[test]
fn a_terminal_that_crashes_never_uses_a_counter_twice() {
    for seed in 1..=12 {
        let mut world = World::new(Script::default(), HOSTILE, seed);
        for _ in 0..20 {
            let time = Duration::from_millis(200 + world.dice.roll() % 8000);
            world.run_with_traffic(time);
            // Gone are SAs, sessions and held packets; the mark on the disk is all there is.
            world.terminal = terminal(world.stored);
            world.flush();
        }
        world.assert_works(20);
        world.assert_nothing_leaked();
    }
}

#[test]
fn a_network_that_lost_its_state_is_found_again() {
    for seed in 1..=12 {
        let mut world = World::new(
            Script::default(),
            Faults {
                jitter: 50,
                loss: 10,
                ..Faults::default()
            },
            seed,
        );
        for _ in 0..3 {
            world.run_with_traffic(Duration::from_secs(15));
            world.network.restart();
        }
        // The next sign of life meets no session: the terminal registers again, learns that the network is
        // another, and asks for new SAs.
        world.assert_works(20);
        assert!(world.events.contains(&Event::NetworkRestarted));
    }
}

#[test]
fn sas_are_renewed_before_they_end_and_no_packet_is_lost() {
    let lifetime = Lifetime {
        soft_seconds: 20,
        hard_seconds: 40,
        ..Lifetime::default()
    };
    let script = Script {
        lifetime,
        ..Script::default()
    };
    let mut world = World::new(script, Faults::default(), 5);
    world.run_with_traffic(Duration::from_secs(300));
    world.run(Duration::from_secs(2));
    assert_eq!(world.echoed.len() as u64, world.sent);
    let renewed = world
        .events
        .iter()
        .filter(|event| matches!(event, Event::Installed { rekey: true, .. }))
        .count();
    assert!(renewed >= 40, "{renewed} times");
    assert!(
        world.terminal.sas().count() <= 2 * PEERS.len(),
        "replaced ones are forgotten"
    );
}

#[test]
fn an_sa_the_peer_deletes_is_asked_for_again() {
    let mut world = World::new(
        Script::default(),
        Faults {
            loss: 20,
            ..Faults::default()
        },
        9,
    );
    let peer: IpAddr = PEERS[0].parse().unwrap();
    for round in 1..=5 {
        while world.terminal.sas().all(|sa| sa.name.remote != peer) {
            world.send_to(peer);
            world.run(Duration::from_millis(500));
        }
        let now = world.now;
        world.network.delete(now, peer);
        world.run(Duration::from_secs(30));
        assert!(
            world.terminal.sas().all(|sa| sa.name.remote != peer),
            "round {round}"
        );
    }
    world.assert_works(20);
}

#[test]
fn a_refusal_costs_the_network_little_and_lets_nothing_out() {
    let mut world = World::new(
        Script {
            refuse: true,
            ..Script::default()
        },
        Faults::default(),
        3,
    );
    world.run_with_traffic(Duration::from_secs(120));
    assert!(world.at_peer.is_empty() && world.nonces.is_empty());
    // Four peers, held off for five seconds after each refusal.
    let requests = world.network.requests.len();
    assert!((4..=4 * 26).contains(&requests), "{requests} requests");
    world.network.terms.refuse = false;
    world.assert_works(20);
}

#[test]
fn a_network_that_is_silent_is_asked_ever_more_rarely() {
    let mut world = World::new(
        Script::default(),
        Faults {
            loss: 100,
            ..Faults::default()
        },
        4,
    );
    world.run_with_traffic(Duration::from_secs(600));
    let registrations = world.registered_with.len();
    assert!(
        (15..=40).contains(&registrations),
        "{registrations} registrations in ten minutes"
    );
    assert!(world.nonces.is_empty());
    let given_up = world.drops(&[DropReason::HoldTimeout, DropReason::HoldQueueFull]);
    assert!(u64::from(given_up) + world.terminal.held() as u64 + 600 >= world.sent);
    world.assert_works(20);
}
