//! Simulations from the command line: `towpath-sim goodput [seconds]`.
#![forbid(unsafe_code)]

use std::time::Duration;

use towpath_sim::goodput::{Bulk, Path, bulk};
use towpath_sim::scenario::{Scenario, Topology};
use towpath_sim::sharing::share;
use towpath_tcp::{Algorithm, PathMemory};

const USAGE: &str = "usage: towpath-sim goodput [SECONDS]
       towpath-sim scenarios [FIRST] [COUNT]
       towpath-sim share [all]
       towpath-sim megabyte [ROUNDS]
       towpath-sim bulk direct|split|snoop cubic|bbr|radio RTT_MS MBIT LOSS_PERCENT SECONDS [SEED [MBIT LOSS_PERCENT]]
(the last two: as remembered)
TOWPATH_SIM_TRACE=1 prints every packet, TOWPATH_SIM_FLOW=1 the sender's state five times a second,
TOWPATH_SIM_EARLY=0 forbids early repeats.";

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("goodput") => goodput(arguments.next().and_then(|text| text.parse().ok()).unwrap_or(30)),
        Some("scenarios") => {
            let mut number = |default| {
                arguments
                    .next()
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(default)
            };
            let (first, count) = (number(0), number(1000));
            scenarios(first, count);
        }
        Some("share") => sharing(arguments.next().is_some()),
        Some("megabyte") => megabyte(arguments.next().and_then(|text| text.parse().ok()).unwrap_or(101)),
        Some("bulk") => one(&arguments.collect::<Vec<_>>()),
        _ => eprintln!("{USAGE}"),
    }
}

/// Pairs of senders on a clean bottleneck of 20 Mb/s, the second one beginning at many different moments.
fn sharing(all: bool) {
    println!("rtt ms  queue BDP  pair             first  second Mb/s  Jain  (p10)  mean queue BDP");
    for (rtt, queue) in [(40, 1.0), (40, 2.0), (100, 1.0), (100, 2.0)] {
        for pair in [
            [Algorithm::Radio, Algorithm::Cubic],
            [Algorithm::Cubic, Algorithm::Radio],
            [Algorithm::Radio, Algorithm::Radio],
            [Algorithm::Cubic, Algorithm::Cubic],
            [Algorithm::Bbr, Algorithm::Cubic],
        ] {
            if !all && pair[0] != Algorithm::Radio && pair[1] != Algorithm::Radio {
                continue;
            }
            let mut shares: Vec<_> = (0..15)
                .map(|phase| {
                    share(
                        pair,
                        20_000_000,
                        Duration::from_millis(rtt),
                        queue,
                        [Duration::from_secs(10), Duration::from_secs(60)],
                        Duration::from_millis(phase * 137),
                    )
                })
                .collect();
            shares.sort_by(|a, b| a.jain.total_cmp(&b.jain));
            let median = shares[shares.len() / 2];
            println!(
                "{rtt:6}  {queue:9}  {:15}  {:5.1}  {:11.1}  {:4.2}   {:4.2}  {:14.2}",
                format!("{:?} {:?}", pair[0], pair[1]),
                median.goodput[0] / 1e6,
                median.goodput[1] / 1e6,
                median.jain,
                shares[shares.len() / 10].jain,
                median.queue_bdp,
            );
        }
    }
}

/// How long the first megabyte takes: end to end, over a path the relay does not know, and over one it knows.
fn megabyte(rounds: u64) {
    println!("rtt ms  Mb/s  loss %  what              median s  p90 s  BBR ÷ ours  early kB");
    for (rtt, megabits, loss) in [(40, 50, 0.01), (100, 50, 0.01), (100, 50, 0.05), (600, 20, 0.01)] {
        let rtt = Duration::from_millis(rtt);
        let transfer = |algorithm, path, memory, seed, bytes| {
            bulk(Bulk {
                rate: megabits * 1_000_000,
                rtt,
                loss,
                queue_bdp: 1.0,
                algorithm,
                path,
                time: Duration::from_secs(12),
                seed: 1000 + seed,
                memory,
                bytes,
                tuned: true,
                early_repeats: std::env::var_os("TOWPATH_SIM_EARLY").is_none_or(|value| value != "0"),
            })
        };
        let arms = [
            ("end to end BBR", Algorithm::Bbr, Path::Direct, false),
            ("split, unknown", Algorithm::Radio, Path::Split, false),
            ("split, known", Algorithm::Radio, Path::Split, true),
        ];
        let mut bbr = 0.0;
        for (name, algorithm, path, known) in arms {
            // Each connection begins with what the one before it left.
            let mut memory = None;
            if known {
                memory = transfer(algorithm, path, None, rounds, u64::MAX >> 8).learnt;
            }
            let mut times: Vec<f64> = Vec::new();
            let mut early = 0;
            for seed in 0..rounds {
                let result = transfer(algorithm, path, memory, seed, 1 << 20);
                times.push(result.first_megabyte.map_or(f64::NAN, |time| time.as_secs_f64()));
                memory = result.learnt.filter(|_| known);
                early += result.early;
            }
            times.sort_by(f64::total_cmp);
            let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or(f64::NAN);
            let median = at(50);
            if path == Path::Direct {
                bbr = median;
            }
            println!(
                "{:6}  {megabits:4}  {:6}  {name:16}  {median:8.3}  {:5.3}  {:10.2}  {:8}",
                rtt.as_millis(),
                loss * 100.0,
                at(90),
                bbr / median,
                early / rounds / 1000,
            );
            if let Some(memory) = memory {
                println!("        in the end: {memory:?}");
            }
        }
    }
}

/// One transfer.
fn one(arguments: &[String]) {
    let [path, algorithm, rest @ ..] = arguments else {
        return eprintln!("{USAGE}");
    };
    let path = match path.as_str() {
        "split" => Path::Split,
        "snoop" => Path::Snoop,
        _ => Path::Direct,
    };
    let algorithm = match algorithm.as_str() {
        "cubic" => Algorithm::Cubic,
        "bbr" => Algorithm::Bbr,
        _ => Algorithm::Radio,
    };
    let number = |index: usize, default: f64| {
        rest.get(index)
            .and_then(|text: &String| text.parse().ok())
            .unwrap_or(default)
    };
    let result = bulk(Bulk {
        rate: (number(1, 50.0) * 1e6) as u64,
        rtt: Duration::from_secs_f64(number(0, 100.0) / 1e3),
        loss: number(2, 1.0) / 100.0,
        queue_bdp: 1.0,
        algorithm,
        path,
        time: Duration::from_secs_f64(number(3, 20.0)),
        seed: number(4, 1.0) as u64,
        bytes: u64::MAX >> 8,
        tuned: true,
        early_repeats: std::env::var_os("TOWPATH_SIM_EARLY").is_none_or(|value| value != "0"),
        memory: (number(5, 0.0) > 0.0).then(|| PathMemory {
            bandwidth: (number(5, 0.0) * 1e6 / 8.0) as u64,
            min_rtt: Duration::from_secs_f64(number(0, 100.0) / 1e3),
            loss_floor_ppm: (number(6, 0.0) * 1e4) as u32,
        }),
    });
    println!("{result:#?}");
}

/// Runs scenarios over every topology and lists all failures.
fn scenarios(first: u64, count: u64) {
    for topology in [Topology::Direct, Topology::Split, Topology::Snoop] {
        let start = std::time::Instant::now();
        let mut failures = 0;
        let mut time = Duration::ZERO;
        for seed in first..first + count {
            let scenario = Scenario::random(seed, topology);
            if count == 1 {
                println!("{scenario:#?}");
            }
            match scenario.run() {
                Ok(summary) => time += summary.time,
                Err(error) => {
                    failures += 1;
                    println!(
                        "{topology:?} seed {seed}: {}",
                        error.chars().take(300).collect::<String>()
                    );
                }
            }
        }
        let took = start.elapsed();
        println!(
            "{topology:?}: {count} scenarios, {failures} failures, {took:.1?} for {time:.0?} of virtual time"
        );
    }
}

/// Goodput ÷ bound for every congestion control, round trip and loss.
fn goodput(seconds: u64) {
    println!("rtt ms  loss %  algorithm      ratio   Mb/s  rtx/loss  queue BDP  drops  timeouts  1 MB s");
    for (rtt, rate) in [(40, 50_000_000), (100, 50_000_000), (600, 20_000_000)] {
        for percent in [0, 1, 2, 5] {
            for (path, algorithm) in [
                (Path::Direct, Algorithm::Cubic),
                (Path::Direct, Algorithm::Bbr),
                (Path::Direct, Algorithm::Radio),
                (Path::Split, Algorithm::Radio),
                (Path::Snoop, Algorithm::Cubic),
            ] {
                let result = bulk(Bulk {
                    rate,
                    rtt: Duration::from_millis(rtt),
                    loss: f64::from(percent) / 100.0,
                    queue_bdp: 1.0,
                    algorithm,
                    path,
                    time: Duration::from_secs(seconds),
                    seed: 1,
                    memory: None,
                    bytes: u64::MAX >> 8,
                    tuned: true,
                    early_repeats: std::env::var_os("TOWPATH_SIM_EARLY").is_none_or(|value| value != "0"),
                });
                println!(
                    "{rtt:6}  {percent:6}  {:13}  {:5.3}  {:5.1}  {:8.2}  {:9.2}  {:5}  {:8}  {:6.2}",
                    format!("{path:?} {algorithm:?}"),
                    result.ratio,
                    result.goodput / 1e6,
                    result.retransmit_ratio,
                    result.queue_bdp,
                    result.queue_drops,
                    result.timeouts,
                    result.first_megabyte.map_or(f64::NAN, |time| time.as_secs_f64()),
                );
            }
        }
    }
}
