//! Goodput of one bulk transfer against the bound C·(1 − p)·η.

use std::time::Duration;

use towpath_base::Instant;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::snoop::SnoopConfig;
use towpath_tcp::relay::split::{SideConfig, SplitConfig};
use towpath_tcp::{Algorithm, Config, PathMemory};

use crate::host::{Script, Socket};
use crate::link::{Link, LinkConfig, Loss};
use crate::relay::{SnoopMiddle, SplitMiddle};
use crate::world::{Middle, World};

/// What stands between sender and receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Nothing: `algorithm` works end to end.
    Direct,
    /// A split relay: CUBIC before it, `algorithm` behind it.
    Split,
    /// Snoop: `algorithm` works end to end.
    Snoop,
}

/// Round trip between sender and relay.
const WIRED_RTT: Duration = Duration::from_millis(10);

/// A bulk transfer over a lossy link.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    /// Bits per second.
    pub rate: u64,
    /// Round trip without queue.
    pub rtt: Duration,
    /// Loss probability of data; acknowledgments are not lost.
    pub loss: f64,
    /// Queue in bandwidth-delay products.
    pub queue_bdp: f64,
    /// Congestion control of the sender.
    pub algorithm: Algorithm,
    /// What stands in between.
    pub path: Path,
    /// Length of the measurement.
    pub time: Duration,
    /// Seed.
    pub seed: u64,
    /// What an earlier connection learnt of the radio.
    pub memory: Option<PathMemory>,
    /// How much there is to send; the sender closes then.
    pub bytes: u64,
    /// `radio` may repeat early.
    pub early_repeats: bool,
    /// The receiver's window grows as Linux' does, rather than being wide from the start.
    pub tuned: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct BulkResult {
    /// Goodput ÷ bound.
    pub ratio: f64,
    /// The same without the first quarter of the time.
    pub late_ratio: f64,
    /// Goodput, bits per second.
    pub goodput: f64,
    /// Retransmitted bytes ÷ bytes lost by the link.
    pub retransmit_ratio: f64,
    /// Bytes of early repeats.
    pub early: u64,
    /// Mean queue in BDP, as arriving packets saw it.
    pub queue_bdp: f64,
    /// Packets dropped by a full queue.
    pub queue_drops: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Time to the first megabyte.
    pub first_megabyte: Option<Duration>,
    /// What the next connection over the same relay would know of the radio.
    pub learnt: Option<PathMemory>,
}

/// Share of a packet that is data: MSS without timestamps ÷ packet, IPv4.
pub const EFFICIENCY: f64 = 1448.0 / 1500.0;

/// The world of a transfer, and which of its links towards the receiver is the radio.
fn world_of(setup: Bulk, bdp: f64) -> (World, usize) {
    let relayed = setup.path != Path::Direct;
    let wired = if relayed { WIRED_RTT } else { Duration::ZERO };
    let delay = setup.rtt.saturating_sub(wired) / 2;
    let data = LinkConfig {
        rate: setup.rate,
        delay,
        queue: ((bdp * setup.queue_bdp) as u64).max(30_000),
        loss: Loss::Random(setup.loss),
        ..LinkConfig::default()
    };
    let acks = LinkConfig {
        delay,
        ..LinkConfig::default()
    };
    let limit = ((bdp * 6.0) as usize).max(4 << 20);
    let config = Config {
        algorithm: setup.algorithm,
        send_limit: limit,
        receive_limit: limit,
        receive_initial: limit / 2,
        path: setup.memory,
        early_repeats: setup.early_repeats,
        ..Config::default()
    };
    let own = if setup.path == Path::Split {
        Algorithm::Cubic
    } else {
        setup.algorithm
    };
    let local = Config {
        local_port: 1000,
        remote_port: 80,
        algorithm: own,
        ..config.clone()
    };
    let remote = Config {
        local_port: 80,
        remote_port: 1000,
        ..local.clone()
    };
    let (left, right) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let sender = Script::sending(setup.seed, setup.bytes);
    let receiver = Script {
        close_after_read: Some(u64::MAX),
        ..Script::sending(1, 0)
    };
    let a = Socket::connect(Instant::ZERO, local, 7, left, right, (sender.clone(), &receiver));
    let b = Socket::listen(Instant::ZERO, remote, 9, right, left, (receiver, &sender));
    let wire = LinkConfig {
        rate: 1_000_000_000,
        delay: wired / 2,
        queue: 4 << 20,
        ..LinkConfig::default()
    };
    let link = |config: &LinkConfig, salt| Link::new(config.clone(), setup.seed + salt);
    let middle: Option<Box<dyn Middle>> = match setup.path {
        Path::Direct => None,
        Path::Snoop => {
            let snoop = SnoopConfig {
                flow_cache: limit,
                ..SnoopConfig::default()
            };
            Some(Box::new(SnoopMiddle::new(snoop, Side::Network)))
        }
        Path::Split => {
            let network = Config {
                algorithm: Algorithm::Cubic,
                ..config.clone()
            };
            let side = |connection| SideConfig {
                mtu: 1500,
                connection,
            };
            let split = SplitConfig {
                terminal: side(config),
                network: side(network),
                ..SplitConfig::default()
            };
            let relay = SplitMiddle::new(split, Side::Network, [1, 2], u64::MAX);
            Some(Box::new(relay.knowing(right, setup.memory)))
        }
    };
    if relayed {
        let (up, down) = (
            vec![link(&wire, 0), link(&data, 1)],
            vec![link(&acks, 2), link(&wire, 3)],
        );
        (World::new(vec![a], vec![b], up, down, middle), 1)
    } else {
        (
            World::new(vec![a], vec![b], vec![link(&data, 0)], vec![link(&acks, 1)], None),
            0,
        )
    }
}

/// Runs a transfer.
pub fn bulk(setup: Bulk) -> BulkResult {
    let bdp = setup.rate as f64 / 8.0 * setup.rtt.as_secs_f64();
    let (mut world, radio) = world_of(setup, bdp);
    if setup.tuned {
        world.b[0].tune_window(setup.rtt);
    }
    let mut first_megabyte = None;
    let end = Instant::ZERO + setup.time;
    let mut next = Instant::ZERO;
    let (quarter, mut early) = (Instant::ZERO + setup.time / 4, 0);
    let outcome = world.run(end, |world| {
        if std::env::var_os("TOWPATH_SIM_FLOW").is_some() && world.now >= next {
            next = world.now + Duration::from_millis(200);
            let e = &world.a[0].endpoint;
            let text = format!("{:?}", e.controller());
            let phase = text.split("phase: ").nth(1).and_then(|t| t.split(',').next()).unwrap_or("");
            let floor = text.split("floor: LossFloor { floor: ").nth(1).and_then(|t| t.split(',').next()).unwrap_or("");
            println!("{:8.3} {phase:8} cwnd {:8} inflight {:8} pace {:6.2} Mb/s srtt {:?} floor {floor} read {:5.2} Mb rtx {}", world.now.as_nanos() as f64/1e9, e.controller().window(), e.in_flight(), e.controller().pacing_rate(e.smoothed_rtt()) as f64*8.0/1e6, e.smoothed_rtt(), world.b[0].read as f64*8.0/1e6, e.stats().retransmits);
        }
        if world.now <= quarter {
            early = world.b[0].read;
        }
        if first_megabyte.is_none() && world.b[0].read >= 1 << 20 {
            first_megabyte = Some(world.now.saturating_since(Instant::ZERO));
        }
        setup.bytes <= 1 << 20 && first_megabyte.is_some()
    });
    assert_eq!(outcome, Ok(()), "simulation");
    assert_eq!(world.b[0].fault, None, "stream");
    let goodput = world.b[0].read as f64 * 8.0 / setup.time.as_secs_f64();
    let report = world.up[radio].report();
    // Who sends over the radio: the relay, if there is one.
    let middle = world.middle.as_ref().and_then(|middle| middle.sender());
    let stats = middle.unwrap_or(*world.a[0].endpoint.stats());
    let bound = setup.rate as f64 * (1.0 - setup.loss) * EFFICIENCY;
    let late = (world.b[0].read - early) as f64 * 8.0 / (setup.time.as_secs_f64() * 0.75);
    BulkResult {
        ratio: goodput / bound,
        late_ratio: late / bound,
        goodput,
        retransmit_ratio: stats.bytes_retransmitted as f64 / (report.lost_bytes as f64 * EFFICIENCY).max(1.0),
        early: stats.bytes_early,
        queue_bdp: report.queue_mean() / bdp,
        queue_drops: report.dropped(),
        timeouts: stats.timeouts,
        first_megabyte,
        learnt: world
            .middle
            .as_mut()
            .and_then(|middle| middle.learnt([10, 0, 0, 2].into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lossy(path: Path, algorithm: Algorithm, rtt: u64, loss: f64) -> BulkResult {
        bulk(Bulk {
            rate: 20_000_000,
            rtt: Duration::from_millis(rtt),
            loss,
            queue_bdp: 1.0,
            algorithm,
            path,
            time: Duration::from_secs(15),
            seed: 3,
            memory: None,
            bytes: u64::MAX >> 8,
            tuned: false,
            early_repeats: true,
        })
    }

    #[test]
    fn radio_fills_a_lossy_link_on_which_cubic_collapses() {
        let cubic = lossy(Path::Direct, Algorithm::Cubic, 100, 0.02);
        let split = lossy(Path::Split, Algorithm::Radio, 100, 0.02);
        assert!(split.ratio > 0.90, "{split:?}");
        assert!(split.goodput > 10.0 * cubic.goodput, "{split:?} {cubic:?}");
        assert!(split.queue_bdp < 1.25, "{split:?}");
        let direct = lossy(Path::Direct, Algorithm::Radio, 100, 0.02);
        assert!((0.9..1.1).contains(&direct.retransmit_ratio), "{direct:?}");
    }

    #[test]
    fn the_relay_repeats_what_the_link_lost_whether_it_knows_the_path_or_not() {
        let remembered = |megabits: u64, loss_floor_ppm| PathMemory {
            bandwidth: megabits * 125_000,
            min_rtt: Duration::from_millis(100),
            loss_floor_ppm,
        };
        for (rtt, memory) in [
            (40, None),
            (100, None),
            (100, Some(remembered(50, 10_000))),
            (100, Some(remembered(20, 50_000))),
            (600, None),
        ] {
            let result = bulk(Bulk {
                rate: if rtt == 600 { 20_000_000 } else { 50_000_000 },
                rtt: Duration::from_millis(rtt),
                loss: 0.01,
                queue_bdp: 1.0,
                algorithm: Algorithm::Radio,
                path: Path::Split,
                time: Duration::from_secs(20),
                seed: 5,
                memory,
                bytes: u64::MAX >> 8,
                tuned: false,
                early_repeats: true,
            });
            assert!(
                (0.8..1.1).contains(&result.retransmit_ratio),
                "{rtt} {memory:?} {result:?}"
            );
        }
    }

    /// A megabyte over a path the relay knows, to a receiver whose window grows as Linux' does.
    fn megabyte(loss: f64, early_repeats: bool, seed: u64) -> BulkResult {
        bulk(Bulk {
            rate: 50_000_000,
            rtt: Duration::from_millis(100),
            loss,
            queue_bdp: 1.0,
            algorithm: Algorithm::Radio,
            path: Path::Split,
            time: Duration::from_secs(12),
            seed,
            memory: Some(PathMemory {
                bandwidth: 6_000_000,
                min_rtt: Duration::from_millis(90),
                loss_floor_ppm: (loss * 1e6) as u32,
            }),
            bytes: 1 << 20,
            tuned: true,
            early_repeats,
        })
    }

    #[test]
    fn early_repeats_shorten_a_megabyte_and_are_bounded() {
        let times = |early_repeats| {
            let mut times: Vec<_> = (0..15)
                .map(|seed| {
                    let result = megabyte(0.02, early_repeats, seed);
                    // One and a half times what the path holds, a sixteenth of what was sent, and one segment.
                    let most = 6_000_000 * 92 / 1000 * 3 / 2 + (1 << 20) / 16 + 1448;
                    assert!(result.early <= most, "{result:?}");
                    assert!(early_repeats == (result.early > 0), "{result:?}");
                    result.first_megabyte.expect("a megabyte arrives")
                })
                .collect();
            times.sort();
            times[7]
        };
        let (with, without) = (times(true), times(false));
        assert!(with * 100 < without * 93, "{with:?} {without:?}");
    }

    #[test]
    fn nothing_is_repeated_early_where_nothing_is_lost() {
        let result = megabyte(0.0, true, 3);
        assert_eq!(result.early, 0, "{result:?}");
    }

    #[test]
    fn under_snoop_the_sender_repeats_nothing_and_fills_the_link() {
        let result = lossy(Path::Snoop, Algorithm::Cubic, 40, 0.01);
        assert!(result.ratio > 0.90, "{result:?}");
        assert!(result.retransmit_ratio <= 0.01, "{result:?}");
    }

    #[test]
    fn a_clean_link_is_filled() {
        for algorithm in [Algorithm::Cubic, Algorithm::Bbr, Algorithm::Radio] {
            let result = bulk(Bulk {
                rate: 20_000_000,
                rtt: Duration::from_millis(40),
                loss: 0.0,
                queue_bdp: 1.0,
                algorithm,
                path: Path::Direct,
                time: Duration::from_secs(8),
                seed: 1,
                memory: None,
                bytes: u64::MAX >> 8,
                tuned: false,
                early_repeats: true,
            });
            assert!(result.ratio > 0.9, "{algorithm:?} {result:?}");
        }
    }
}
