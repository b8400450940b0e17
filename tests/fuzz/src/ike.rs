//! Two IKE endpoints that know each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::testutil::SeededRng;
use towpath_base::{Instant, Spi};
use towpath_crypto::IkeCrypto;
use towpath_ike::{Command, Config, Endpoint, IkeSaKeys, Initiate, Policy, Role};

/// One end.
pub const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The other.
pub const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// More IKE SAs than this are memory that grows without bound.
const MANY: usize = 300;

fn policy() -> Policy {
    Policy {
        local_id: IkeId::Fqdn("host.test".into()),
        remote_id: None,
        psk: Psk::new(b"swordfish".to_vec()),
        ike_proposals: vec!["aes256gcm16-prfsha256-x25519".parse().expect("a proposal")],
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
}

impl End {
    fn new(seed: u64) -> Self {
        Self {
            endpoint: Endpoint::new(Config::default(), IkeCrypto, SeededRng::new(seed)),
            children: Vec::new(),
        }
    }

    fn obey(&mut self, now: Instant) {
        while let Some(command) = self.endpoint.poll_command() {
            match command {
                Command::NeedPolicy { request, .. } => {
                    self.endpoint.provide_policy(now, request, Some(policy()));
                }
                Command::ChildEstablished { child, .. } => self.children.push(child.spi_in),
                _ => {}
            }
        }
    }
}

/// Both ends.
pub struct Pair {
    a: End,
    b: End,
}

impl Pair {
    /// With one IKE SA and one CHILD SA, begun by A.
    pub fn established() -> Self {
        let mut pair = Self {
            a: End::new(1),
            b: End::new(2),
        };
        let now = Instant::from_secs(1);
        pair.begin(now, true, 0);
        for _ in 0..4 {
            pair.exchange(now, false);
        }
        assert_eq!((pair.a.children.len(), pair.b.children.len()), (1, 1));
        pair
    }

    fn end(&mut self, a: bool) -> &mut End {
        if a { &mut self.a } else { &mut self.b }
    }

    /// A datagram from the other end's address.
    pub fn deliver(&mut self, now: Instant, to_a: bool, bytes: &[u8]) {
        let (to, from) = if to_a { (A, B) } else { (B, A) };
        let end = self.end(to_a);
        let _ =
            end.endpoint
                .handle_datagram(now, SocketAddr::new(from, 500), SocketAddr::new(to, 500), bytes);
        end.obey(now);
    }

    /// Delivers what both ends have to say, once round.
    pub fn exchange(&mut self, now: Instant, copies: bool) {
        for to_a in [false, true] {
            for _ in 0..64 {
                let Some(datagram) = self.end(!to_a).endpoint.poll_transmit() else {
                    break;
                };
                for _ in 0..=u8::from(copies) {
                    self.deliver(now, to_a, &datagram.payload);
                }
            }
        }
    }

    /// One side begins an exchange.
    pub fn begin(&mut self, now: Instant, at_a: bool, what: u8) {
        let (local, remote) = if at_a { (A, B) } else { (B, A) };
        let end = self.end(at_a);
        let newest = end.endpoint.list(now).last().map(|info| info.id);
        let child = end.children.last().copied();
        match (what % 6, newest, child) {
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
            _ => {
                let wish = Initiate {
                    tag: 1,
                    local,
                    remote,
                    remote_port: None,
                    policy: policy(),
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
