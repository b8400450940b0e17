//! A network in virtual time between IKE endpoints.
//!
//! ```text
//!   end A (10.0.0.1) ──┐                        ┌── end B (10.0.0.2)
//!                      ├── delay, loss, copies ─┤
//!          [NAT] ──────┘                        └── …
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant, Spi};
use towpath_crypto::IkeCrypto;
use towpath_ike::{
    Command, Config, Endpoint, IkeProposal, IkeSaId, Initiate, InitiateError, Policy, Transmit,
};

/// An address by its last part: `v4(1)` is 10.0.0.1.
pub(crate) fn v4(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

/// An address by its last part: `v6(1)` is 2001:db8::1.
pub(crate) fn v6(host: u8) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(host)])
}

/// A configuration without liveness checks and IKE rekeying: a world then comes to rest. Rekeyings make no second key
/// exchange.
pub(crate) fn quiet() -> Config {
    Config {
        dpd_after: None,
        ike_rekey_after: None,
        pfs: false,
        ..Config::default()
    }
}

/// What `local` does with any peer, under the key all share.
pub(crate) fn policy() -> Policy {
    Policy {
        local_id: IkeId::Fqdn("host.test".into()),
        remote_id: None,
        psk: Psk::new(b"swordfish".to_vec()),
        ike_proposals: vec![proposal("aes256gcm16-prfsha256-x25519")],
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

/// With ML-KEM-768 after X25519.
pub(crate) const HYBRID: &str = "aes256gcm16-prfsha256-x25519-ke1_mlkem768";

/// As [`policy`], with [`HYBRID`].
pub(crate) fn hybrid() -> Policy {
    Policy {
        ike_proposals: vec![proposal(HYBRID)],
        ..policy()
    }
}

pub(crate) fn proposal(text: &str) -> IkeProposal {
    text.parse().unwrap()
}

pub(crate) fn any_of(text: &str) -> TrafficSelector {
    TrafficSelector::any_of(text.parse().unwrap())
}

/// One endpoint and what became of it.
pub(crate) struct End {
    pub(crate) endpoint: Endpoint<IkeCrypto, SeededRng>,
    /// Given to whoever asks; `None` refuses.
    pub(crate) policy: Option<Policy>,
    /// CHILD SAs as the owner would have installed them.
    pub(crate) children: BTreeMap<(IpAddr, Spi), ChildSa>,
    /// Everything but log lines.
    pub(crate) commands: Vec<Command>,
    pub(crate) drops: Vec<DropReason>,
}

/// What the network does to datagrams; chances in 1/1000.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) copies: u64,
    /// Delays vary up to this, so datagrams overtake each other.
    pub(crate) jitter: Duration,
}

impl Weather {
    pub(crate) const FAIR: Self = Self {
        loss: 0,
        copies: 0,
        jitter: Duration::ZERO,
    };
}

/// Decides whether a datagram passes.
pub(crate) type Filter = Box<dyn FnMut(&Transmit) -> bool>;

/// A NAT in front of one address: the others see `outside` with shifted ports.
pub(crate) struct Nat {
    pub(crate) inside: IpAddr,
    pub(crate) outside: IpAddr,
    pub(crate) shift: u16,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) ends: Vec<End>,
    pub(crate) weather: Weather,
    pub(crate) nat: Option<Nat>,
    /// Who has which address.
    homes: BTreeMap<IpAddr, usize>,
    in_flight: BTreeMap<(Instant, u64), Transmit>,
    sequence: u64,
    rng: SeededRng,
    /// `A --> IKE_SA_INIT request 0 [ … ]`, as sent.
    pub(crate) trace: Vec<String>,
    /// Every datagram that was sent.
    pub(crate) sent: Vec<Transmit>,
    /// Looks at a datagram before it is delivered; false drops it.
    pub(crate) filter: Option<Filter>,
}

const DELAY: Duration = Duration::from_millis(10);

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Instant::from_secs(1),
            ends: Vec::new(),
            weather: Weather::FAIR,
            nat: None,
            homes: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            sequence: 0,
            rng: SeededRng::new(seed),
            trace: Vec::new(),
            sent: Vec::new(),
            filter: None,
        }
    }

    /// Two ends, 10.0.0.1 (also 2001:db8::1) and 10.0.0.2 (also 2001:db8::2).
    pub(crate) fn pair(seed: u64, a: Policy, b: Policy) -> Self {
        Self::pair_with(seed, quiet(), a, b)
    }

    pub(crate) fn pair_with(seed: u64, config: Config, a: Policy, b: Policy) -> Self {
        let mut world = Self::new(seed);
        world.add(config.clone(), Some(a), &[v4(1), v6(1)]);
        world.add(config, Some(b), &[v4(2), v6(2)]);
        world
    }

    pub(crate) fn add(&mut self, config: Config, policy: Option<Policy>, addresses: &[IpAddr]) -> usize {
        let index = self.ends.len();
        let rng = SeededRng::new(self.rng.next_u64());
        self.ends.push(End {
            endpoint: Endpoint::new(config, IkeCrypto, rng),
            policy,
            children: BTreeMap::new(),
            commands: Vec::new(),
            drops: Vec::new(),
        });
        self.homes
            .extend(addresses.iter().map(|address| (*address, index)));
        index
    }

    pub(crate) fn initiate(
        &mut self,
        tag: u64,
        local: IpAddr,
        remote: IpAddr,
    ) -> Result<IkeSaId, InitiateError> {
        let end = self.homes[&local];
        let policy = self.ends[end].policy.clone().unwrap();
        let wish = Initiate {
            tag,
            local,
            remote,
            remote_port: None,
            policy,
        };
        let result = self.ends[end].endpoint.initiate(self.now, wish);
        self.collect(end);
        result
    }

    /// Carries out commands and takes datagrams onto the network.
    pub(crate) fn collect(&mut self, end: usize) {
        while let Some(command) = self.ends[end].endpoint.poll_command() {
            self.carry_out(end, command);
        }
        while let Some(datagram) = self.ends[end].endpoint.poll_transmit() {
            self.sent.push(datagram.clone());
            self.post(datagram);
        }
    }

    fn carry_out(&mut self, end: usize, command: Command) {
        let this = &mut self.ends[end];
        match &command {
            Command::NeedPolicy { request, .. } => {
                this.endpoint
                    .provide_policy(self.now, *request, this.policy.clone());
            }
            Command::ChildEstablished { child, .. } => {
                let old = this.children.insert((child.local, child.spi_in), child.clone());
                assert!(old.is_none(), "SPI used twice");
            }
            Command::AddressesChanged {
                old,
                local,
                remote,
                children,
                ..
            } => {
                for spi_in in children {
                    let mut child = this.children.remove(&(old.0.ip(), *spi_in)).unwrap();
                    (child.local, child.remote) = (local.ip(), remote.ip());
                    this.children.insert((local.ip(), *spi_in), child);
                }
            }
            Command::ChildDeleted { local, spi_in, .. } => {
                assert!(
                    this.children.remove(&(*local, *spi_in)).is_some(),
                    "deleted what was not there"
                );
            }
            Command::Exchange { sent: true, line, .. } => {
                let name = (b'A' + end as u8) as char;
                self.trace.push(format!("{name} --> {line}"));
                return;
            }
            Command::Exchange { .. } => return,
            _ => {}
        }
        self.ends[end].commands.push(command);
    }

    /// Puts a datagram onto the network, as somebody unknown could.
    pub(crate) fn post(&mut self, datagram: Transmit) {
        let weather = self.weather;
        if self.rng.below(1000) < weather.loss {
            return;
        }
        let copies = if self.rng.below(1000) < weather.copies {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let jitter = self.rng.below(weather.jitter.as_nanos() as u64 + 1);
            self.sequence += 1;
            let at = self.now + DELAY + Duration::from_nanos(jitter);
            self.in_flight.insert((at, self.sequence), datagram.clone());
        }
    }

    fn translate(&self, datagram: &mut Transmit) {
        let Some(nat) = &self.nat else { return };
        if datagram.source.ip() == nat.inside {
            datagram.source = SocketAddr::new(nat.outside, datagram.source.port() + nat.shift);
        }
        if datagram.destination.ip() == nat.outside {
            datagram.destination = SocketAddr::new(nat.inside, datagram.destination.port() - nat.shift);
        }
    }

    /// Goes to the next event; false when nothing will ever happen, or not before `until`.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        let timer = |(index, end): (usize, &End)| end.endpoint.poll_timeout().map(|(at, _)| (at, index));
        let timer = self.ends.iter().enumerate().filter_map(timer).min();
        let arrival = self.in_flight.first_key_value().map(|(key, _)| *key);
        let next = [timer.map(|(at, _)| at), arrival.map(|(at, _)| at)]
            .into_iter()
            .flatten()
            .min();
        let Some(at) = next.filter(|at| *at <= until) else {
            return false;
        };
        self.now = self.now.max(at);
        if let Some(key) = arrival.filter(|(arrives, _)| *arrives == at) {
            let mut datagram = self.in_flight.remove(&key).unwrap();
            self.translate(&mut datagram);
            let pass = self.filter.as_mut().is_none_or(|filter| filter(&datagram));
            if let Some(end) = self
                .homes
                .get(&datagram.destination.ip())
                .copied()
                .filter(|_| pass)
            {
                self.deliver(end, &datagram);
            }
        } else if let Some((_, end)) = timer {
            self.ends[end].endpoint.handle_timeout(self.now);
            self.collect(end);
        }
        true
    }

    pub(crate) fn deliver(&mut self, end: usize, datagram: &Transmit) {
        let Transmit {
            source,
            destination,
            payload,
        } = datagram;
        let result = self.ends[end]
            .endpoint
            .handle_datagram(self.now, *source, *destination, payload);
        self.ends[end].drops.extend(result.err());
        self.collect(end);
    }

    /// Until nothing is going on any more, a day at most.
    pub(crate) fn rest(&mut self) {
        let until = self.now + Duration::from_secs(86_400);
        while self.step(until) {}
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Both ends rekey, the second `apart` after the first: `seed` chooses what each replaces, and the weather of the
    /// `foul` time before it is `fair` again.
    pub(crate) fn rekey_twice(&mut self, seed: u64, apart: Duration, foul: Duration, fair: Duration) {
        self.weather = Weather {
            loss: seed % 4 * 80,
            copies: 100,
            jitter: Duration::from_millis(seed % 5 * 20),
        };
        let old = self.only_children();
        let acts: [fn(&mut Self, usize, Spi); 2] = [rekey_child, |world, end, _| rekey_ike(world, end)];
        acts[seed as usize / 2 % 2](self, 0, old[0].spi_in);
        self.run_for(apart);
        acts[seed as usize / 4 % 2](self, 1, old[1].spi_in);
        self.run_for(foul);
        self.weather = Weather::FAIR;
        self.run_for(fair);
    }

    /// The one CHILD SA of each end.
    pub(crate) fn only_children(&self) -> [ChildSa; 2] {
        [0, 1].map(|end| {
            let children = &self.ends[end].children;
            assert_eq!(
                children.len(),
                1,
                "end {end}: {:?}\n{:#?}",
                self.ends[end].commands,
                self.trace
            );
            children.values().next().unwrap().clone()
        })
    }

    /// Every CHILD SA has its mirror image at the other end.
    pub(crate) fn assert_mirrored(&self) {
        for end in &self.ends {
            for child in end.children.values() {
                let home = self.homes.get(&child.remote).copied();
                let home = home.unwrap_or_else(|| self.homes[&self.nat.as_ref().unwrap().inside]);
                let mirror = self.ends[home]
                    .children
                    .values()
                    .find(|other| other.spi_in == child.spi_out);
                let mirror = mirror.unwrap_or_else(|| panic!("{child:?} is alone\n{:#?}", self.trace));
                assert_mirror(child, mirror);
            }
        }
    }
}

/// The two descriptions are of one pair of SAs.
pub(crate) fn assert_mirror(a: &ChildSa, b: &ChildSa) {
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    assert_eq!((&a.keys_in, &a.keys_out), (&b.keys_out, &b.keys_in));
    assert_ne!(a.keys_in, a.keys_out);
    assert_eq!((a.suite, a.mode, a.esn), (b.suite, b.mode, b.esn));
    assert_eq!((&a.local_ts, &a.remote_ts), (&b.remote_ts, &b.local_ts));
    assert_eq!(a.encap.is_some(), b.encap.is_some());
}

/// The commands that say how attempts ended.
pub(crate) fn failures(end: &End) -> Vec<(Option<u64>, towpath_ike::FailReason)> {
    let failure = |command: &Command| match command {
        Command::Failed { tag, reason, .. } => Some((*tag, *reason)),
        _ => None,
    };
    end.commands.iter().filter_map(failure).collect()
}

/// Reasons of closed IKE SAs.
pub(crate) fn closed(end: &End) -> Vec<towpath_ike::FailReason> {
    let reason = |command: &Command| match command {
        Command::IkeClosed { reason, .. } => Some(*reason),
        _ => None,
    };
    end.commands.iter().filter_map(reason).collect()
}

/// The established IKE SA of an end.
pub(crate) fn ike_of(end: &End, now: Instant) -> IkeSaId {
    end.endpoint
        .list(now)
        .find(|sa| sa.state == towpath_ike::IkeState::Established)
        .unwrap()
        .id
}

/// Replaces a CHILD SA of the only IKE SA of `end`.
pub(crate) fn rekey_child(world: &mut World, end: usize, spi_in: Spi) {
    let ike = ike_of(&world.ends[end], world.now);
    // Too late where the other's rekeying is already through.
    let _ = world.ends[end].endpoint.rekey_child(world.now, ike, spi_in);
    world.collect(end);
}

/// Replaces the only IKE SA of `end`.
pub(crate) fn rekey_ike(world: &mut World, end: usize) {
    let ike = ike_of(&world.ends[end], world.now);
    world.ends[end].endpoint.rekey_ike(world.now, ike).unwrap();
    world.collect(end);
}
