//! What relaying costs without any impairment: processor time, connections, latency, idle flows. Beside it a relay
//! that leaves everything to the kernel, in the clear; ours carries ESP on both sides.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::super::receivers::own_receiver;
use super::super::{Better, Record, quantile};
use super::Plan;
use super::stage::{Arm, Stage};
use super::street::{DEVICES, Helper, Street, cpu_seconds, many_connections};
use crate::lab::Node;
use crate::lab::net::EMULATOR_PORTS;
use crate::linkem::Links;
use crate::load::{self, Server};

/// The gateway's interfaces that carry the measured traffic.
const GATEWAY: [&str; 2] = ["acc0", "core0"];
/// Idle connections.
const IDLE: usize = 10_000;
/// Busy connections.
const BUSY: usize = 100;

/// What every arm has to carry when they are compared at the same rate, bytes per second: what costs once per wake-up
/// costs the less per byte the faster the bytes come.
const PACE: u64 = 25_000_000;

/// What carrying cost.
#[derive(Debug, Clone, Copy)]
struct Carried {
    /// Processor seconds per gigabyte.
    per_gb: f64,
    /// Bits per second.
    rate: f64,
}

impl Carried {
    fn describe(all: &[Self]) -> String {
        let median = |value: fn(&Self) -> f64| quantile(&all.iter().map(value).collect::<Vec<_>>(), 0.5);
        format!(
            "{:.2} processor seconds per GB at {:.0} Mb/s",
            median(|it| it.per_gb),
            median(|it| it.rate) / 1e6
        )
    }
}

/// The relays that are compared.
const ARMS: [&str; 4] = [
    "ours through ESP",
    "splice relay, offloads off",
    "splice relay, TSO, GSO and GRO on",
    "ours in the clear, offloads off",
];
const ESP: usize = 0;
const WIRE: usize = 1;
const BEST: usize = 2;
const CLEAR: usize = 3;

/// Where a client connects: its namespace, and the address.
#[derive(Clone)]
struct Target {
    namespace: String,
    address: (IpAddr, u16),
}

/// Whose processor time counts.
struct Gateway<'a> {
    process: u32,
    devices: &'a [&'a str],
}

impl Gateway<'_> {
    /// Processor seconds spent during `work`.
    fn during<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, f64)> {
        let before = cpu_seconds(self.process, self.devices);
        let result = work()?;
        Ok((result, cpu_seconds(self.process, self.devices) - before))
    }
}

fn ours(stage: &Stage, arm: Arm) -> Target {
    Target {
        namespace: stage.terminal().to_owned(),
        address: stage.server(arm),
    }
}

fn kernels(street: &Street, relayed: bool) -> Target {
    let address = street.address(!relayed);
    Target {
        namespace: street.named("l"),
        address: (IpAddr::from(address.0), address.1),
    }
}

fn conditions(record: Record) -> Record {
    record
        .condition("offloads", "TSO, GSO, GRO off unless the arm says otherwise")
        .condition(
            "cc",
            "kernel CUBIC at the server; ours: radio towards the terminal",
        )
        .condition(
            "carried",
            "what goes through ESP: ESP in UDP, AES-256-GCM, on both sides; everything else the clear",
        )
        .condition(
            "processor time",
            "the gateway's process and the receiving threads of its interfaces; what hosts and emulator receive is \
             their own threads'",
        )
}

/// Gives the receivers on the way of our arm threads of their own.
fn own_receivers(stage: &Stage) -> Result<()> {
    let gw = stage.namespace(Node::Gw)?;
    GATEWAY.iter().try_for_each(|device| own_receiver(&gw, device))?;
    let emulator = stage.emulator();
    EMULATOR_PORTS
        .iter()
        .try_for_each(|device| own_receiver(emulator, device))?;
    own_receiver(&stage.namespace(Node::Peer)?, "eth0")
}

/// Where our arm's processor time goes; no figure.
pub(super) fn profile(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    own_receivers(stage)?;
    let file = stage.results().join("tcp-gateway-profile.txt");
    super::profile::write(stage, plan, &GATEWAY, &file)?;
    Ok(Vec::new())
}

/// `cpu_vs_splice` and `accept_vs_splice`.
pub(super) fn processor(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    own_receivers(stage)?;
    let link = stage.link(&Links::default())?;
    let root = stage.results().ancestors().nth(2).unwrap_or(Path::new("."));
    let streets = [Street::new(false)?, Street::new(true)?, Street::ours(root)?];
    many_connections(stage.terminal())?;
    many_connections(&stage.namespace(Node::Peer)?)?;
    let servers = streets
        .each_ref()
        .map(|s| Server::start(&s.named("r"), 7300, "cubic"));
    let daemon = stage.daemon()?;
    // Each arm as fast as it goes, then all of them with the same to carry.
    let loads = [None, Some(PACE)];
    let mut carried: [[Vec<Carried>; ARMS.len()]; 2] = Default::default();
    let mut opened: [Vec<f64>; ARMS.len()] = Default::default();
    for _ in 0..plan.rounds.max(3) {
        for (carried, pace) in carried.iter_mut().zip(loads) {
            for (index, carried) in carried.iter_mut().enumerate() {
                let (gateway, target) = arm(stage, &streets, daemon, index);
                let ((bytes, seconds), cpu) = gateway.during(|| bulk(&target, pace, plan.cost))?;
                let (per_gb, rate) = (cpu / (bytes / 1e9), bytes * 8.0 / seconds);
                println!(
                    "bench: {}: {:.0} Mb/s, {per_gb:.2} processor seconds per GB",
                    ARMS[index],
                    rate / 1e6
                );
                carried.push(Carried { per_gb, rate });
            }
        }
        for (index, opened) in opened.iter_mut().enumerate() {
            let (gateway, target) = arm(stage, &streets, daemon, index);
            let (count, cpu) = gateway.during(|| connections(&target, plan.cost))?;
            opened.push(count / cpu.max(0.01));
            println!(
                "bench: {}: {count} connections, {cpu:.2} processor seconds",
                ARMS[index]
            );
        }
    }
    drop(servers);
    drop(link.stop()?);
    let versus = |name: &str, load: usize, ours: usize, other: usize| {
        let [own, theirs] = [ours, other].map(|index| &carried[load][index]);
        let ratios: Vec<f64> = own.iter().zip(theirs).map(|(a, b)| a.per_gb / b.per_gb).collect();
        let record = Record::new(
            format!("tcp.cpu_vs_splice.{name}"),
            "ratio",
            Better::Lower,
            &ratios,
        );
        conditions(
            record
                .arm(ARMS[ours], Carried::describe(own))
                .arm(ARMS[other], Carried::describe(theirs)),
        )
    };
    let accept = |name: &str, ours: usize| {
        let kernels = opened[WIRE].iter().zip(&opened[BEST]).map(|(a, b)| a.max(*b));
        let ratios: Vec<f64> = opened[ours].iter().zip(kernels).map(|(a, b)| a / b).collect();
        let per = |index: usize| format!("{:.0} per processor second", quantile(&opened[index], 0.5));
        conditions(
            Record::new(name, "ratio", Better::Higher, &ratios)
                .arm(ARMS[ours], per(ours))
                .arm(ARMS[WIRE], per(WIRE))
                .arm(ARMS[BEST], per(BEST))
                .condition(
                    "measured",
                    "connections per second of the gateway's processor time ÷ those of the faster baseline of the round",
                )
                .condition(
                    "hosts",
                    "keep 64 connections in TIME_WAIT: the kernel's search for ports is not what is measured",
                ),
        )
    };
    Ok(vec![
        versus("wire", 0, CLEAR, WIRE).goal(1.0),
        versus("best", 0, CLEAR, BEST),
        versus("esp_wire", 0, ESP, WIRE),
        versus("esp_best", 0, ESP, BEST),
        versus("wire_same_rate", 1, CLEAR, WIRE),
        versus("best_same_rate", 1, CLEAR, BEST),
        versus("esp_wire_same_rate", 1, ESP, WIRE),
        accept("tcp.accept_vs_splice", CLEAR).goal(3.0),
        accept("tcp.accept_vs_splice.esp", ESP),
    ])
}

fn arm<'a>(stage: &Stage, streets: &[Street], daemon: u32, index: usize) -> (Gateway<'a>, Target) {
    match index.checked_sub(1).and_then(|index| streets.get(index)) {
        None => {
            let gateway = Gateway {
                process: daemon,
                devices: &GATEWAY,
            };
            (gateway, ours(stage, Arm::Split))
        }
        Some(street) => {
            let gateway = Gateway {
                process: street.relay(),
                devices: &DEVICES,
            };
            (gateway, kernels(street, true))
        }
    }
}

/// Bytes fetched, at most `pace` per second, and in how many seconds.
fn bulk(target: &Target, pace: Option<u64>, time: Duration) -> Result<(f64, f64)> {
    let seen = load::download_at(&target.namespace, target.address, u64::MAX, pace, time)?;
    Ok((seen.bytes() as f64, seen.took.as_secs_f64()))
}

/// Connections opened, used for one byte and closed, sixteen at a time.
fn connections(target: &Target, time: Duration) -> Result<f64> {
    let count = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let (target, count) = (target.clone(), Arc::clone(&count));
            thread::spawn(move || {
                load::inside(&target.namespace, move || {
                    let start = Instant::now();
                    while start.elapsed() < time {
                        let mut stream = TcpStream::connect(SocketAddr::from(target.address))?;
                        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                        stream.write_all(b"1\n")?;
                        let mut byte = [0];
                        stream.read_exact(&mut byte)?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| anyhow!("a client panicked"))??;
    }
    Ok(count.load(Ordering::Relaxed) as f64)
}

/// `latency_vs_kernel`: what a relay adds to a one-byte request and answer.
pub(super) fn latency(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    let link = stage.link(&Links::default())?;
    let street = Street::new(false)?;
    let server = Server::start(&street.named("r"), 7300, "cubic")?;
    let targets = [
        ours(stage, Arm::Split),
        ours(stage, Arm::Cubic),
        kernels(&street, true),
        kernels(&street, false),
    ];
    let mut added: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..plan.rounds.max(3) {
        let mut seen = Vec::new();
        for target in &targets {
            seen.push(round_trips(target, plan.cost)?);
        }
        for (quantile_index, at) in [0.5, 0.99].into_iter().enumerate() {
            let of = |index: usize| seen.get(index).map_or(f64::NAN, |times| quantile(times, at));
            added[0][quantile_index].push(of(0) - of(1));
            added[1][quantile_index].push(of(2) - of(3));
        }
    }
    drop(server);
    drop(link.stop()?);
    let record = |index: usize, name: &str| {
        let [ours, kernel] = [&added[0][index], &added[1][index]];
        let ratios: Vec<f64> = ours.iter().zip(kernel).map(|(a, b)| a / b.max(1e-6)).collect();
        let micros = |values: &[f64]| format!("{:.0} µs", quantile(values, 0.5) * 1e6);
        conditions(
            Record::new(
                format!("tcp.latency_vs_kernel.{name}"),
                "ratio",
                Better::Lower,
                &ratios,
            )
            .arm("ours", format!("splitting adds {} to passing", micros(ours)))
            .arm(
                "splice relay",
                format!("relaying adds {} to forwarding", micros(kernel)),
            ),
        )
    };
    Ok(vec![record(0, "p50"), record(1, "p99")])
}

/// Times of one-byte requests on one connection, seconds.
fn round_trips(target: &Target, time: Duration) -> Result<Vec<f64>> {
    let address = target.address;
    load::inside(&target.namespace, move || {
        let mut stream = TcpStream::connect(SocketAddr::from(address))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed() < time {
            let sent = Instant::now();
            stream.write_all(b"1\n")?;
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            times.push(sent.elapsed().as_secs_f64());
        }
        Ok(times)
    })
}

/// `10k_idle` and `bytes_per_idle_flow`.
pub(super) fn idle(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    let link = stage.link(&Links::default())?;
    let daemon = stage.daemon()?;
    let holder = Helper::start(&stage.namespace(Node::Peer)?, &["hold", &Arm::HELD.to_string()])?;
    // Whatever busy connections leave behind in the process, idle ones would move into: these come first.
    stage.fetch(Arm::Split, 1 << 20, Duration::from_secs(10))?;
    let before = memory(daemon)?;
    let held = hold(&ours(stage, Arm::Split).namespace, stage.server(Arm::Split).0)?;
    println!("bench: {} idle connections are open", held.len());
    // They are parked after two seconds without a packet.
    thread::sleep(Duration::from_secs(5));
    let after = memory(daemon)?;
    // Not counted: the first hundred connections there are also teach everybody their buffers and paths.
    busy(stage, plan.cost)?;
    let rounds = if plan.quick { 1 } else { plan.rounds };
    own_receivers(stage)?;
    let gateway = Gateway {
        process: daemon,
        devices: &GATEWAY,
    };
    let busy_rounds = || -> Result<Vec<(f64, f64)>> {
        (0..rounds)
            .map(|_| gateway.during(|| busy(stage, plan.cost)))
            .collect()
    };
    let beside = busy_rounds()?;
    let count = held.len();
    drop(held);
    drop(holder);
    // Closing them takes the relay a moment.
    thread::sleep(Duration::from_secs(5));
    let alone = busy_rounds()?;
    drop(link.stop()?);
    let pairs = || beside.iter().zip(&alone);
    let ratios: Vec<f64> = pairs().map(|(a, b)| a.0 / b.0).collect();
    let per_cpu: Vec<f64> = pairs().map(|(a, b)| (a.0 / a.1) / (b.0 / b.1)).collect();
    let alone = quantile(&alone.iter().map(|(rate, _)| *rate).collect::<Vec<_>>(), 0.5);
    let each = (after.saturating_sub(before)) as f64 / count.max(1) as f64;
    Ok(vec![
        conditions(
            Record::new("tcp.10k_idle", "ratio", Better::Higher, &ratios)
                .goal(0.9)
                .arm(
                    "busy alone",
                    format!("{BUSY} connections: {:.1} Mb/s", alone / 1e6),
                )
                .arm("beside", format!("{count} idle connections")),
        ),
        conditions(
            Record::new("tcp.10k_idle.per_cpu", "ratio", Better::Higher, &per_cpu).condition(
                "measured",
                "the same, per processor second of the gateway: the hosts' kernels have the idle connections, too",
            ),
        ),
        conditions(
            Record::new("tcp.bytes_per_idle_flow", "bytes", Better::Lower, &[each])
                .goal(1024.0)
                .arm(
                    "ours",
                    "growth of the daemon's resident memory ÷ idle connections, two TCP endpoints each",
                ),
        ),
    ])
}

/// Goodput of all busy connections together, bits per second.
fn busy(stage: &Stage, time: Duration) -> Result<f64> {
    let total = thread::scope(|scope| {
        let threads: Vec<_> = (0..BUSY)
            .map(|_| {
                scope.spawn(|| {
                    stage
                        .fetch(Arm::Split, u64::MAX, time)
                        .map(|seen| seen.rate_from(Duration::ZERO))
                })
            })
            .collect();
        let rates = threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a transfer panicked"))));
        rates.sum::<Result<f64>>()
    })?;
    // The connections must be gone before memory is looked at.
    thread::sleep(Duration::from_secs(1));
    Ok(total)
}

/// Opens the idle connections, eight at a time.
fn hold(namespace: &str, server: IpAddr) -> Result<Vec<TcpStream>> {
    load::many_files()?;
    let failed = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (namespace, failed) = (namespace.to_owned(), Arc::clone(&failed));
            thread::spawn(move || {
                load::inside(&namespace, move || {
                    let mut held = Vec::new();
                    while held.len() < IDLE / 8 && !failed.load(Ordering::Relaxed) {
                        let address = SocketAddr::from((server, Arm::HELD));
                        match TcpStream::connect_timeout(&address, Duration::from_secs(10)) {
                            Ok(stream) => held.push(stream),
                            Err(_) => failed.store(true, Ordering::Relaxed),
                        }
                    }
                    Ok(held)
                })
            })
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.join().map_err(|_| anyhow!("a client panicked"))??);
    }
    Ok(all)
}

/// Resident memory of a process, bytes.
fn memory(process: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kibibytes.ok_or_else(|| anyhow!("the daemon has no resident memory"))? * 1024)
}
