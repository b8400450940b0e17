//! Two senders on one bottleneck: who gets what, and how long the queue gets.

use std::time::Duration;

use towpath_base::Instant;
use towpath_tcp::{Algorithm, Config};

use crate::host::{Script, Socket};
use crate::link::{Link, LinkConfig};
use crate::world::World;

/// What two senders got.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Goodput of each after the start, bits per second.
    pub goodput: [f64; 2],
    /// Jain's index of the two: 1 is equal, 0.5 is all for one.
    pub jain: f64,
    /// Mean queue in bandwidth-delay products.
    pub queue_bdp: f64,
}

/// Two transfers over one clean link of `rate` bits per second, `rtt` and a queue of `queue_bdp`; the second one begins
/// `apart` after the first. What they get is counted from the first of `times` on, until the second.
pub fn share(
    algorithms: [Algorithm; 2],
    rate: u64,
    rtt: Duration,
    queue_bdp: f64,
    times: [Duration; 2],
    apart: Duration,
) -> Share {
    let bdp = rate as f64 / 8.0 * rtt.as_secs_f64();
    let data = LinkConfig {
        rate,
        delay: rtt / 2,
        queue: (bdp * queue_bdp) as u64,
        ..LinkConfig::default()
    };
    let acks = LinkConfig {
        delay: rtt / 2,
        ..LinkConfig::default()
    };
    let (left, right) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let limit = ((bdp * 8.0) as usize).max(4 << 20);
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for (port, algorithm) in (1000..).zip(algorithms) {
        let begin = if port == 1000 {
            Instant::ZERO
        } else {
            Instant::ZERO + apart
        };
        let config = Config {
            local_port: port,
            remote_port: 80,
            algorithm,
            send_limit: limit,
            receive_limit: limit,
            receive_initial: limit / 2,
            ..Config::default()
        };
        let remote = Config {
            local_port: 80,
            remote_port: port,
            ..config.clone()
        };
        let sender = Script::sending(u64::from(port), u64::MAX >> 8);
        let receiver = Script {
            close_after_read: Some(u64::MAX),
            ..Script::sending(1, 0)
        };
        senders.push(Socket::connect(
            begin,
            config,
            7,
            left,
            right,
            (sender.clone(), &receiver),
        ));
        receivers.push(Socket::listen(
            Instant::ZERO,
            remote,
            9,
            right,
            left,
            (receiver, &sender),
        ));
    }
    let second = senders.pop();
    let mut world = World::new(
        senders,
        receivers,
        vec![Link::new(data, 1)],
        vec![Link::new(acks, 2)],
        None,
    );
    let mut run = |until: Duration, second: Option<Socket>| {
        world.a.extend(second);
        assert_eq!(world.run(Instant::ZERO + until, |_| false), Ok(()), "simulation");
        [world.b[0].read, world.b[1].read]
    };
    run(apart, None);
    let before = run(times[0], second);
    let after = run(times[1], None);
    let seconds = (times[1] - times[0]).as_secs_f64();
    let goodput = [0, 1].map(|index| (after[index] - before[index]) as f64 * 8.0 / seconds);
    let [x, y] = goodput;
    let report = world.up[0].report();
    Share {
        goodput,
        jain: (x + y) * (x + y) / (2.0 * (x * x + y * y)),
        queue_bdp: report.queue_mean() / bdp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_a_kind_share_alike() {
        for algorithm in [Algorithm::Cubic, Algorithm::Radio] {
            let share = share(
                [algorithm; 2],
                20_000_000,
                Duration::from_millis(40),
                1.0,
                [Duration::from_secs(15), Duration::from_secs(30)],
                Duration::ZERO,
            );
            assert!(share.jain > 0.85, "{algorithm:?} {share:?}");
        }
    }
}
