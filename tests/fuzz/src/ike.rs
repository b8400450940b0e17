//! Two IKE endpoints that know each other.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use towpath_base::crypto::{KeyGenerator, SkKeys, SkParts};
use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::testutil::SeededRng;
use towpath_base::{Instant, Spi};
use towpath_crypto::IkeCrypto;
use towpath_ike::wire::{HEADER_LEN, NotifyType, Payload, parse_payloads};
use towpath_ike::{Command, Config, Endpoint, IkeSaKeys, Initiate, Policy, Role, Transmit};

/// One end.
pub const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The other.
pub const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// More IKE SAs than this are memory that grows without bound.
const MANY: usize = 300;

/// How an exchange begins: with ML-KEM-768 after X25519 or not, and how many times each end has spoken before the
/// fuzzer has its say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// IKE_INTERMEDIATE, and IKE_FOLLOWUP_KE in rekeyings.
    pub hybrid: bool,
    /// Rounds of [`Pair::exchange`]; four establish everything.
    pub rounds: u8,
}

/// The parts of a header that say what a message is an answer to: the IKE SA, and whether its initiator speaks.
type Direction = (u64, u64, bool);

fn direction(message: &[u8]) -> Option<(Direction, bool, u32)> {
    let word = |at: usize| Some(u64::from_be_bytes(message.get(at..at + 8)?.try_into().ok()?));
    let flags = *message.get(19)?;
    let id = u32::from_be_bytes(message.get(20..24)?.try_into().ok()?);
    Some(((word(0)?, word(8)?, flags & 0x08 != 0), flags & 0x20 != 0, id))
}

fn policy(hybrid: bool) -> Policy {
    let proposal = match hybrid {
        true => "aes256gcm16-prfsha256-x25519-ke1_mlkem768-ke1_none",
        false => "aes256gcm16-prfsha256-x25519",
    };
    Policy {
        local_id: IkeId::Fqdn("host.test".into()),
        remote_id: None,
        psk: Psk::new(b"swordfish".to_vec()),
        ike_proposals: vec![proposal.parse().expect("a proposal")],
        esp_suites: vec![EspSuite::Aes256Gcm16],
        esn: true,
        mode: Mode::Transport,
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        lifetime: Lifetime::default(),
        force_encap: false,
        auth: Default::default(),
    }
}

struct End {
    endpoint: Endpoint<IkeCrypto, SeededRng>,
    children: Vec<Spi>,
    hybrid: bool,
}

impl End {
    fn new(seed: u64, hybrid: bool) -> Self {
        let config = Config {
            // The fuzzer speaks under the keys that are in use.
            danger_export_keys: true,
            ..Config::default()
        };
        Self {
            endpoint: Endpoint::new(config, IkeCrypto, SeededRng::new(seed)),
            children: Vec::new(),
            hybrid,
        }
    }

    fn obey(&mut self, now: Instant) {
        while let Some(command) = self.endpoint.poll_command() {
            match command {
                Command::NeedPolicy { request, .. } => {
                    let policy = policy(self.hybrid);
                    self.endpoint.provide_policy(now, request, Some(policy));
                }
                Command::ChildEstablished { child, .. } => self.children.push(child.spi_in),
                _ => {}
            }
        }
    }
}

/// What ADDITIONAL_KEY_EXCHANGE says in a message under AES-GCM, if it has one.
fn link(keys: &SkKeys, message: &[u8]) -> Option<Vec<u8>> {
    const IV: usize = HEADER_LEN + 4;
    // In one piece, of an exchange that has one.
    if *message.get(16)? != 46 || *message.get(18)? != 36 {
        return None;
    }
    let (header, rest) = message.split_at_checked(IV)?;
    let (iv, rest) = rest.split_at_checked(8)?;
    let (text, icv) = rest.split_at_checked(rest.len().checked_sub(16)?)?;
    let mut text = text.to_vec();
    let mut icv: [u8; 16] = icv.try_into().ok()?;
    let parts = SkParts {
        header,
        iv,
        text: &mut text,
        icv: &mut icv,
    };
    IkeCrypto.open(keys, parts).ok()?;
    let padding = usize::from(*text.last()?);
    let text = text.get(..text.len().checked_sub(padding + 1)?)?;
    let payloads = parse_payloads(*message.get(HEADER_LEN)?, text).ok()?;
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == NotifyType::ADDITIONAL_KEY_EXCHANGE => {
            Some(notify.data.to_vec())
        }
        _ => None,
    })
}

/// Both ends.
pub struct Pair {
    a: End,
    b: End,
    hybrid: bool,
    /// Number of the next request in each direction, as far as genuine and accepted messages tell.
    next: BTreeMap<Direction, u32>,
    /// What the last ADDITIONAL_KEY_EXCHANGE from A said, and from B.
    links: [Vec<u8>; 2],
    /// What A, and B, is about to send.
    held: [VecDeque<Transmit>; 2],
}

impl Pair {
    /// An exchange begun by A, as far as `start` says.
    pub fn new(start: Start) -> Self {
        let Start { hybrid, rounds } = start;
        let mut pair = Self {
            a: End::new(1, hybrid),
            b: End::new(2, hybrid),
            hybrid,
            next: BTreeMap::new(),
            links: Default::default(),
            held: Default::default(),
        };
        let now = Instant::from_secs(1);
        pair.begin(now, true, 0);
        for _ in 0..rounds.min(4) {
            pair.exchange(now, false);
        }
        if rounds >= 4 {
            assert_eq!((pair.a.children.len(), pair.b.children.len()), (1, 1));
        }
        pair
    }

    /// Number of the message `to_a`'s end waits for: the other's next request, or the response to its own last one.
    pub fn awaited(&self, keys: &IkeSaKeys, from_initiator: bool, response: bool) -> u32 {
        let asks = from_initiator != response;
        let next = self.next.get(&(keys.spi_i.0, keys.spi_r.0, asks)).copied();
        let next = next.unwrap_or(0);
        if response { next.saturating_sub(1) } else { next }
    }

    /// The link that `to_a`'s end gave last.
    pub fn link(&mut self, to_a: bool) -> Vec<u8> {
        self.learn(to_a);
        self.links[usize::from(!to_a)].clone()
    }

    /// Looks into what an end is about to send.
    fn learn(&mut self, a: bool) {
        let end = self.end(a);
        let mut sent = Vec::new();
        while let Some(datagram) = end.endpoint.poll_transmit() {
            sent.push(datagram);
        }
        let newest = end.endpoint.list(Instant::from_secs(1)).last();
        let keys = newest.and_then(|info| Some((info.role, end.endpoint.danger_keys(info.id)?)));
        if let Some((role, keys)) = keys {
            let keys = if role == Role::Initiator {
                keys.initiator
            } else {
                keys.responder
            };
            for datagram in &sent {
                if let Some(link) = link(&keys, &datagram.payload) {
                    self.links[usize::from(!a)] = link;
                }
            }
        }
        self.held[usize::from(!a)].extend(sent);
    }

    /// SPIs of packets to the end that is not `to_a`'s: what REKEY_SA and Delete may name there.
    pub fn child_of_sender(&self, to_a: bool) -> Option<Spi> {
        let end = if to_a { &self.b } else { &self.a };
        end.children.last().copied()
    }

    fn end(&mut self, a: bool) -> &mut End {
        if a { &mut self.a } else { &mut self.b }
    }

    /// A datagram from the other end's address.
    pub fn deliver(&mut self, now: Instant, to_a: bool, bytes: &[u8]) {
        let (to, from) = if to_a { (A, B) } else { (B, A) };
        let end = self.end(to_a);
        let taken =
            end.endpoint
                .handle_datagram(now, SocketAddr::new(from, 500), SocketAddr::new(to, 500), bytes);
        end.obey(now);
        if let (Ok(()), Some((direction, false, id))) = (taken, direction(bytes)) {
            let next = self.next.entry(direction).or_default();
            *next = (*next).max(id.saturating_add(1));
        }
    }

    /// Delivers what both ends have to say, once round.
    pub fn exchange(&mut self, now: Instant, copies: bool) {
        for to_a in [false, true] {
            for _ in 0..64 {
                self.learn(!to_a);
                let Some(datagram) = self.held[usize::from(to_a)].pop_front() else {
                    break;
                };
                if let Some((direction, false, id)) = direction(&datagram.payload) {
                    self.next.insert(direction, id.saturating_add(1));
                }
                for _ in 0..=u8::from(copies) {
                    self.deliver(now, to_a, &datagram.payload);
                }
            }
        }
    }

    /// One side begins an exchange.
    pub fn begin(&mut self, now: Instant, at_a: bool, what: u8) {
        let (local, remote) = if at_a { (A, B) } else { (B, A) };
        let hybrid = self.hybrid;
        let end = self.end(at_a);
        let newest = end.endpoint.list(now).last().map(|info| info.id);
        let child = end.children.last().copied();
        match (what % 7, newest, child) {
            (1, Some(ike), Some(spi)) => {
                let _ = end.endpoint.rekey_child(now, ike, spi);
            }
            (2, Some(ike), _) => {
                let _ = end.endpoint.rekey_ike(now, ike);
            }
            (3, Some(ike), Some(spi)) => {
                let _ = end.endpoint.delete_child(now, ike, spi);
            }
            (4, Some(ike), _) => {
                let _ = end.endpoint.delete_ike(now, ike);
            }
            (5, Some(ike), _) => {
                let _ = end.endpoint.reauthenticate(now, ike);
            }
            _ => {
                let wish = Initiate {
                    tag: 1,
                    local,
                    remote,
                    remote_port: None,
                    policy: policy(hybrid),
                };
                let _ = end.endpoint.initiate(now, wish);
            }
        }
        end.obey(now);
    }

    /// Deadlines that have come.
    pub fn wait(&mut self, now: Instant) {
        for a in [true, false] {
            let end = self.end(a);
            end.endpoint.handle_timeout(now);
            end.obey(now);
        }
    }

    /// Keys of what the other end would send to `to_a`'s end, and whether that end began the SA.
    pub fn keys_towards(&mut self, now: Instant, to_a: bool) -> Option<(IkeSaKeys, bool)> {
        let endpoint = &self.end(to_a).endpoint;
        let info = endpoint.list(now).last()?;
        let keys = endpoint.danger_keys(info.id)?;
        Some((keys, info.role == Role::Responder))
    }

    /// What must hold whatever happened.
    pub fn check(&mut self, now: Instant) {
        for a in [true, false] {
            let end = self.end(a);
            assert!(end.endpoint.list(now).count() < MANY);
            end.children.truncate(64);
        }
    }
}
