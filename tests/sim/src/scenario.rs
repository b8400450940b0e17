//! Random scenarios: everything that can differ does, and whatever happens the streams must be right.

use std::net::IpAddr;
use std::time::Duration;

use towpath_base::Instant;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::snoop::SnoopConfig;
use towpath_tcp::relay::split::{Handshake, SideConfig, SplitConfig};
use towpath_tcp::{Algorithm, Closed, Config, Endpoint};

use crate::host::{Script, Socket};
use crate::link::{Link, LinkConfig, Loss};
use crate::relay::{SnoopMiddle, SplitMiddle};
use crate::rng::SimRng;
use crate::world::{Middle, World};

/// No scenario takes longer, in virtual time. A burst of loss lasts a number of packets: where a timeout
/// has backed off to one packet a minute, hours.
const SLOWEST: Instant = Instant::from_secs(7 * 24 * 3600);

/// What stands between the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Nothing: the endpoints face each other.
    Direct,
    /// A split relay.
    Split,
    /// Snoop.
    Snoop,
}

/// A scenario in full; printing it explains a failure.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Where it came from.
    pub seed: u64,
    /// What is between the hosts.
    pub topology: Topology,
    /// Links towards B, then towards A; the first of each pair starts at the sending host.
    pub links: [LinkConfig; 4],
    /// The hosts' connections.
    pub hosts: [Config; 2],
    /// The relay's, towards A and B.
    pub relay: [Config; 2],
    /// How the relay opens.
    pub handshake: Handshake,
    /// What their applications do.
    pub scripts: [Script; 2],
    /// Addresses.
    pub addresses: [IpAddr; 2],
    /// Both open at once.
    pub simultaneous: bool,
    /// Snapshot and restore the endpoints about every so many steps.
    pub restore_every: u64,
}

fn random_link(rng: &mut SimRng, harsh: bool) -> LinkConfig {
    let loss = match rng.below(if harsh { 4 } else { 8 }) {
        0 => Loss::Random(rng.log_between(0.001, 0.30)),
        1 => {
            let (enter, leave) = (rng.log_between(0.001, 0.05), rng.log_between(0.05, 0.5));
            // At most 30 % in the mean.
            let most = 0.3 * (enter + leave) / enter;
            Loss::Bursts {
                enter,
                leave,
                good: 0.0,
                bad: rng.log_between(0.1, 0.9).min(most),
            }
        }
        2 => Loss::Random(0.01),
        _ => Loss::None,
    };
    let delay = Duration::from_secs_f64(rng.log_between(0.0001, 0.4));
    let outages = if rng.chance(0.1) {
        let from = Instant::from_millis(rng.between(1, 4_000));
        vec![(from, from + Duration::from_millis(rng.between(10, 8_000)))]
    } else {
        Vec::new()
    };
    LinkConfig {
        rate: rng.log_between(100_000.0, 100_000_000.0) as u64,
        delay,
        jitter: if rng.chance(0.3) {
            rng.duration(delay)
        } else {
            Duration::ZERO
        },
        queue: rng.log_between(4_000.0, 1_000_000.0) as u64,
        loss,
        reorder: if rng.chance(0.3) {
            rng.log_between(0.001, 0.3)
        } else {
            0.0
        },
        reorder_by: rng.duration(Duration::from_millis(50)),
        duplicate: if rng.chance(0.2) {
            rng.log_between(0.001, 0.2)
        } else {
            0.0
        },
        outages,
        ..LinkConfig::default()
    }
}

fn random_config(rng: &mut SimRng) -> Config {
    let algorithm = match rng.below(3) {
        0 => Algorithm::Cubic,
        1 => Algorithm::Bbr,
        _ => Algorithm::Radio,
    };
    let window = rng.log_between(1_000.0, 4_000_000.0) as usize;
    Config {
        mss: rng.between(100, 1440) as u16,
        send_limit: rng.log_between(1_000.0, 4_000_000.0) as usize,
        receive_initial: window,
        receive_limit: window * rng.between(1, 4) as usize,
        algorithm,
        sack: rng.chance(0.85),
        timestamps: rng.chance(0.8),
        window_scale: rng.chance(0.85),
        ecn: rng.chance(0.3),
        ack_delay: Duration::from_millis(rng.between(1, 200)),
        retries: 40,
        syn_retries: 20,
        pacing: rng.chance(0.9),
        early_repeats: rng.chance(0.5),
        timestamp_offset: rng.next() as u32,
        ..Config::default()
    }
}

fn random_script(rng: &mut SimRng, limit: f64) -> Script {
    let send = if rng.chance(0.15) {
        0
    } else {
        rng.log_between(1.0, limit) as u64
    };
    Script {
        seed: rng.next(),
        send,
        chunk: rng.log_between(10.0, 60_000.0) as usize,
        close_after_read: None,
        abort_after_read: rng.chance(0.05).then(|| rng.below(send + 1)),
        pause: rng
            .chance(0.1)
            .then(|| (rng.below(50_000), Duration::from_millis(rng.below(90_000)))),
        urgent_at: rng.chance(0.1).then(|| rng.below(send + 1)),
    }
}

impl Scenario {
    /// The scenario of `seed`.
    pub fn random(seed: u64, topology: Topology) -> Self {
        let mut rng = SimRng::new(seed);
        let harsh = rng.chance(0.5);
        let links = core::array::from_fn(|_| random_link(&mut rng, harsh));
        let limit = if harsh { 120_000.0 } else { 1_000_000.0 };
        let mut hosts = [random_config(&mut rng), random_config(&mut rng)];
        hosts[0].local_port = rng.between(1024, 65_535) as u16;
        hosts[0].remote_port = rng.between(1, 1023) as u16;
        hosts[1].local_port = hosts[0].remote_port;
        hosts[1].remote_port = hosts[0].local_port;
        let mut scripts = [random_script(&mut rng, limit), random_script(&mut rng, limit)];
        // One side may wait for the other's last byte before it finishes.
        let other = scripts[1].send;
        if rng.chance(0.3) {
            scripts[0].close_after_read = Some(other);
        }
        let addresses = if rng.chance(0.5) {
            [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]
        } else {
            [
                [0xfd00, 0, 0, 0, 0, 0, 0, 1_u16].into(),
                [0xfd00, 0, 0, 0, 0, 0, 0, 2_u16].into(),
            ]
        };
        Self {
            seed,
            topology,
            links,
            hosts,
            relay: core::array::from_fn(|_| random_config(&mut rng)),
            handshake: if rng.chance(0.7) {
                Handshake::Synchronous
            } else {
                Handshake::Early
            },
            scripts,
            addresses,
            simultaneous: topology == Topology::Direct && rng.chance(0.05),
            restore_every: if rng.chance(0.3) {
                rng.between(5, 200)
            } else {
                u64::MAX
            },
        }
    }

    fn sockets(&self, rng: &mut SimRng) -> [Socket; 2] {
        let [left, right] = self.addresses;
        let [a, b] = &self.scripts;
        let open = if self.simultaneous {
            Endpoint::connect
        } else {
            Endpoint::listen
        };
        let isn = |rng: &mut SimRng| towpath_tcp::SeqNum(rng.next() as u32);
        let first = Endpoint::connect(Instant::ZERO, self.hosts[0].clone(), isn(rng));
        let second = open(Instant::ZERO, self.hosts[1].clone(), isn(rng));
        [
            Socket::new(first, left, right, a.clone(), b),
            Socket::new(second, right, left, b.clone(), a),
        ]
    }

    fn middle(&self) -> Option<Box<dyn Middle>> {
        match self.topology {
            Topology::Direct => None,
            Topology::Snoop => {
                let config = SnoopConfig {
                    flow_cache: self.relay[0].send_limit,
                    may_modify: self.handshake == Handshake::Early,
                    ..SnoopConfig::default()
                };
                Some(Box::new(SnoopMiddle::new(config, Side::Terminal)))
            }
            Topology::Split => {
                let [terminal, network] = self.relay.clone();
                let config = SplitConfig {
                    terminal: SideConfig {
                        mtu: 1500,
                        connection: terminal,
                    },
                    network: SideConfig {
                        mtu: 1500,
                        connection: network,
                    },
                    handshake: self.handshake,
                    // A burst of loss lasts a number of packets: giving up an opening would be right, and is
                    // tested elsewhere.
                    open_timeout: SLOWEST - Instant::ZERO,
                    ..SplitConfig::default()
                };
                Some(Box::new(SplitMiddle::new(
                    config,
                    Side::Terminal,
                    [self.seed, 1],
                    self.restore_every,
                )))
            }
        }
    }

    /// Runs it; the error says what was wrong.
    pub fn run(&self) -> Result<Summary, String> {
        let mut rng = SimRng::new(self.seed ^ 0x5eed);
        let [a, b] = self.sockets(&mut rng);
        let [u0, u1, d0, d1] = self.links.clone().map(|config| Link::new(config, rng.next()));
        let middle = self.middle();
        let (up, down) = if middle.is_some() {
            (vec![u0, u1], vec![d0, d1])
        } else {
            (vec![u0], vec![d0])
        };
        let mut world = World::new(vec![a], vec![b], up, down, middle);
        world.restore_every = self.restore_every;
        let aborts = self
            .scripts
            .iter()
            .any(|script| script.abort_after_read.is_some());
        world.run(SLOWEST, |world| {
            [&world.a[0], &world.b[0]]
                .iter()
                .all(|s| s.ended.is_some() && (s.saw_end || aborts))
        })?;
        for (name, socket) in [("A", &world.a[0]), ("B", &world.b[0])] {
            if let Some(fault) = &socket.fault
                && !(aborts && matches!(fault, crate::host::Fault::EarlyEnd { .. }))
            {
                return Err(format!("{name}: {fault:?} at {:?}", world.now));
            }
            let complete = socket.is_complete() && socket.ended == Some(Closed::Finished);
            if !aborts && !complete {
                return Err(format!(
                    "{name}: stalled at {:?}: {:?}, {:?}, ended {:?}, read {}, written {}, end {}",
                    world.now,
                    socket.endpoint.state(),
                    socket.endpoint.poll_timeout(),
                    socket.ended,
                    socket.read,
                    socket.written,
                    socket.saw_end,
                ));
            }
        }
        Ok(Summary {
            steps: world.steps,
            time: world.now.saturating_since(Instant::ZERO),
            bytes: world.a[0].read + world.b[0].read,
        })
    }
}

/// What a scenario took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Events.
    pub steps: u64,
    /// Virtual time.
    pub time: Duration,
    /// Bytes read by both applications.
    pub bytes: u64,
}

/// Many connections at once through one split relay, all of them of one random scenario's links and relay.
pub fn crowd(seed: u64, connections: u16) -> Result<Summary, String> {
    let mut rng = SimRng::new(seed);
    let template = Scenario::random(seed, Topology::Split);
    let [left, right] = template.addresses;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for index in 0..connections {
        let mut configs = [random_config(&mut rng), random_config(&mut rng)];
        let ports = [10_000 + index, 80];
        [configs[0].local_port, configs[0].remote_port] = ports;
        [configs[1].remote_port, configs[1].local_port] = ports;
        let [first, second] = configs;
        let scripts = [0, 1].map(|_| Script {
            abort_after_read: None,
            ..random_script(&mut rng, 30_000.0)
        });
        let isn = towpath_tcp::SeqNum(rng.next() as u32);
        let [one, two] = &scripts;
        let opened = Endpoint::connect(Instant::ZERO, first, isn);
        let waiting = Endpoint::listen(Instant::ZERO, second, isn + 77);
        a.push(Socket::new(opened, left, right, one.clone(), two));
        b.push(Socket::new(waiting, right, left, two.clone(), one));
    }
    let [u0, u1, d0, d1] = template.links.clone().map(|config| Link::new(config, rng.next()));
    let mut world = World::new(a, b, vec![u0, u1], vec![d0, d1], template.middle());
    world.run(SLOWEST, |world| {
        world
            .a
            .iter()
            .chain(&world.b)
            .all(|socket| socket.ended.is_some() && socket.saw_end)
    })?;
    for (index, socket) in world.a.iter().chain(&world.b).enumerate() {
        if socket.fault.is_some() || !socket.is_complete() {
            return Err(format!(
                "socket {index}: {:?} {:?}",
                socket.fault,
                socket.endpoint.state()
            ));
        }
    }
    Ok(Summary {
        steps: world.steps,
        time: world.now.saturating_since(Instant::ZERO),
        bytes: world.a.iter().chain(&world.b).map(|socket| socket.read).sum(),
    })
}

/// Runs `count` scenarios from `first` on; the first failure is returned with its seed.
pub fn run_many(topology: Topology, first: u64, count: u64) -> Result<Summary, String> {
    let mut total = Summary::default();
    for seed in first..first + count {
        let summary = Scenario::random(seed, topology)
            .run()
            .map_err(|error| format!("seed {seed} {topology:?}: {error}"))?;
        total.steps += summary.steps;
        total.time += summary.time;
        total.bytes += summary.bytes;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_connection_delivers_both_streams_whatever_the_network_does() {
        assert!(
            run_many(Topology::Split, 0, 150)
                .map_err(|error| panic!("{error}"))
                .is_ok()
        );
    }

    #[test]
    fn a_snooped_connection_delivers_both_streams_and_nothing_is_acknowledged_for_the_terminal() {
        assert!(
            run_many(Topology::Snoop, 0, 150)
                .map_err(|error| panic!("{error}"))
                .is_ok()
        );
    }

    #[test]
    fn a_crowd_shares_one_relay_and_every_stream_arrives() {
        for seed in 0..4 {
            assert!(
                crowd(seed, 40)
                    .map_err(|error| panic!("seed {seed}: {error}"))
                    .is_ok()
            );
        }
    }

    #[test]
    fn endpoints_deliver_both_streams_whatever_the_network_does() {
        assert!(
            run_many(Topology::Direct, 0, 150)
                .map_err(|error| panic!("{error}"))
                .is_ok()
        );
    }
}
