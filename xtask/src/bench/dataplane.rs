//! `cargo xtask bench dataplane`: ordinary traffic in XDP, through user space, and in the kernel; the classifier
//! with many profiles; the cost of doing nothing.
//!
//! Load is `BPF_PROG_TEST_RUN` with live frames, so that the source costs the same few nanoseconds in every arm.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::time::{ClockId, clock_gettime};
use towpath_afxdp::{Config, Copying, Engine, PortQueue, Sockets};
use towpath_base::selector::Prefix;
use towpath_bpf::{
    CompiledProfile, Dataplane, Generator, Mode, Options, PortSpec, Role, attach_drop, attach_pass,
    net_device, unload,
};
use towpath_common::abi::ProfileEntry;
use towpath_common::wire::{checksum_update16, fold, sum};

use super::netns::{Stage, pin_to, received};
use super::{Args, Better, Record, quantile};
use crate::ebpf;

/// The terminal whose packets are sent; random bits may be set in its address.
const TERMINAL: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 0);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 200, 9, 2);
/// Subscribers of the large table: every address the spread can make.
const MANY: u32 = 1 << 20;

/// Packets that tell how many fit into a time slice.
const TRIAL: u32 = 1 << 14;
/// Terminals whose packets the classifier gets in turn.
const TERMINALS: u32 = 32;

/// How the gateway treats the packets of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    /// Taken off at its first interface: the cost of the source.
    Source,
    /// `ip_forward`.
    Kernel(Sink),
    /// Forwarded by the XDP program.
    Xdp,
    /// Diverted, and forwarded untouched by a worker.
    AfXdp,
}

/// How the sink takes packets off. Each comparison has one sink, the one that is cheapest for the kernel's packets
/// and ours alike: a program costs nothing on XDP frames nor on forwarded socket buffers, but a copy on those of
/// AF_XDP; the stack costs a socket buffer on XDP frames alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    /// A program that drops.
    Xdp,
    /// The stack, which finds that the packet is for another station.
    Stack,
}

struct Bench {
    stage: Stage,
    object: PathBuf,
    load: PathBuf,
    /// Time of one measurement.
    slice: Duration,
    rounds: usize,
}

/// What one measurement of an arm gave.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Packets per second that reached the sink.
    delivered: f64,
    /// Processor nanoseconds of the sending thread, interrupts inline included, per packet sent.
    nanoseconds: f64,
    /// Processor nanoseconds of the worker per packet that reached the sink; 0 without one.
    worker: f64,
}

/// Measures and returns the records.
pub(super) fn run(root: &Path, args: &Args) -> Result<Vec<Record>> {
    let object = ebpf::build(root)?;
    let bench = Bench {
        stage: Stage::new()?,
        object,
        load: ebpf::load_object_path(root),
        slice: Duration::from_millis(if args.quick { 250 } else { 1000 }),
        rounds: if args.quick { 7 } else { 15 },
    };
    let mut records = Vec::new();
    let mut add = |new: Vec<Record>| {
        for record in new {
            println!("bench: {} {} {}", record.id, record.value, record.unit);
            records.push(record);
        }
    };
    for size in [64, 1400] {
        println!(
            "bench: forwarding of {size}-byte packets, {} rounds",
            bench.rounds
        );
        add(bench.inside(|| bench.forwarding(size))?);
    }
    println!("bench: classifier with {MANY} profiles");
    add(bench.inside(|| bench.classifier())?);
    println!("bench: idle worker");
    add(vec![bench.inside(|| bench.idle())?]);
    Ok(records)
}

impl Bench {
    /// Runs `work` on a thread of its own in the gateway's namespace, on the first processor.
    fn inside<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        self.in_namespace("gw", || {
            pin_to(0)?;
            work()
        })
    }

    fn in_namespace<R: Send>(&self, role: &str, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.stage.enter(role)?;
                work()
            });
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a benchmark thread panicked")))
        })
    }

    fn forwarding(&self, size: usize) -> Result<Vec<Record>> {
        const ARMS: [Arm; 5] = [
            Arm::Source,
            Arm::Kernel(Sink::Xdp),
            Arm::Xdp,
            Arm::Kernel(Sink::Stack),
            Arm::AfXdp,
        ];
        let packet = packet(size);
        let mut rounds: [Vec<Sample>; ARMS.len()] = Default::default();
        for _ in 0..self.rounds {
            for (arm, samples) in ARMS.into_iter().zip(&mut rounds) {
                samples.push(self.measure(arm, &packet)?);
            }
        }
        let [source, kernel, xdp, kernel_stack, af_xdp] = rounds;
        let record = |name: &str, ours: &[Sample], other: &[Sample], text: &str, sink: &str| {
            let pairs = ours.iter().zip(other);
            let ratios: Vec<f64> = pairs
                .map(|(ours, other)| ours.delivered / other.delivered)
                .collect();
            let id = format!("dataplane.{name}_vs_kernel.{size}");
            Record::new(id, "ratio", Better::Higher, &ratios)
                .arm("ours", describe(text, ours, &source))
                .arm("other", describe("kernel ip_forward", other, &source))
                .arm("source", describe_source(&source))
                .condition("packet_bytes", size)
                .condition("load", "live frames over veth from one processor, ESP")
                .condition("sink", sink)
                .condition("offloads", "GRO on, others off")
                .condition("queues", 1)
        };
        let text = "AF_XDP copy mode, worker on the other processor";
        Ok(vec![
            record("xdp", &xdp, &kernel, "native XDP", "XDP drop"),
            record("afxdp", &af_xdp, &kernel_stack, text, "stack, other station"),
        ])
    }

    /// Sets gateway and sink up for an arm, sends for a time slice, and tears them down again.
    fn measure(&self, arm: Arm, packet: &[u8]) -> Result<Sample> {
        if matches!(arm, Arm::Source) {
            attach_drop(&self.load, "access", &self.stage.pins("drop"))?;
            let sample = self.send(packet, 0, "access", "gw");
            unload(&self.stage.pins("drop"))?;
            return sample;
        }
        let program_at_sink = matches!(arm, Arm::Xdp | Arm::Kernel(Sink::Xdp));
        let pins = self.stage.pins("sink");
        if program_at_sink {
            self.in_namespace("p", || Ok(attach_drop(&self.load, "p0", &pins)?))?;
        }
        let sample = match arm {
            Arm::Source | Arm::Kernel(_) => self.send(packet, 0, "p0", "p"),
            Arm::Xdp => self.with_gateway(|_| self.send(packet, 0, "p0", "p")),
            Arm::AfXdp => self.with_gateway(|dataplane| {
                dataplane.profiles().insert(&profile(1))?;
                self.with_worker(dataplane, || self.send(packet, 0, "p0", "p"))
            }),
        };
        if program_at_sink {
            unload(&pins)?;
        }
        sample
    }

    fn with_gateway<R>(&self, work: impl FnOnce(&mut Dataplane) -> Result<R>) -> Result<R> {
        let mut dataplane = self.load_gateway()?;
        let result = work(&mut dataplane);
        drop(dataplane);
        unload(&self.stage.pins("gw"))?;
        result
    }

    fn load_gateway(&self) -> Result<Dataplane> {
        let port = |name: &str, role| PortSpec {
            name: name.into(),
            role,
        };
        let options = Options {
            pin_dir: self.stage.pins("gw"),
            ports: vec![port("access", Role::Access), port("core", Role::Core)],
            mode: Mode::Native,
            ..Options::default()
        };
        Ok(Dataplane::load(&self.object, &options)?)
    }

    /// Sends for a time slice and counts what reaches `device` in the namespace of `role`.
    fn send(&self, packet: &[u8], spread: u32, device: &str, role: &str) -> Result<Sample> {
        let count = || self.in_namespace(role, || received(device));
        self.in_namespace("t", || {
            pin_to(0)?;
            attach_pass(&self.object, "t0", &self.stage.pins("source"))?;
            let generator = Generator::new(&self.load, "t0", packet, spread)?;
            // A call sets the kernel up for tens of milliseconds before the first packet leaves.
            let time = |packets: u32| -> Result<Duration> {
                let start = Instant::now();
                generator.send(packets)?;
                Ok(start.elapsed())
            };
            let overhead = time(64)?.min(time(64)?).min(time(64)?);
            let trial = time(TRIAL)?
                .saturating_sub(overhead)
                .max(Duration::from_millis(1));
            let sent = TRIAL * (self.slice.as_nanos() / trial.as_nanos()).clamp(1, 1000) as u32;
            let (before, start_cpu) = (count()?, thread_time()?);
            let elapsed = time(sent)?.saturating_sub(overhead).max(trial);
            let cpu = thread_time()? - start_cpu;
            // A worker may still be at the last packets, which belong to the time before.
            sleep(Duration::from_millis(20));
            let delivered = count()? - before;
            Ok(Sample {
                delivered: delivered as f64 / elapsed.as_secs_f64(),
                nanoseconds: cpu.as_nanos() as f64 / f64::from(sent),
                worker: 0.0,
            })
        })
    }

    /// Measures with `work` while a worker on the second processor forwards what is diverted.
    fn with_worker(
        &self,
        dataplane: &mut Dataplane,
        work: impl FnOnce() -> Result<Sample>,
    ) -> Result<Sample> {
        let sockets = open_sockets(dataplane)?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                pin_to(1)?;
                forward(&mut sockets.start(), &stop)
            });
            let result = work();
            stop.store(true, Ordering::Relaxed);
            let worker = worker.join().map_err(|_| anyhow!("the worker panicked"))??;
            result.map(|sample| Sample { worker, ..sample })
        })
    }

    /// Nanoseconds of the whole program on packets of served terminals, with one profile and with many. They are
    /// dropped for want of a worker, so routing and forwarding are the same few steps in both.
    fn classifier(&self) -> Result<Vec<Record>> {
        let packet = packet(64);
        let mut dataplane = self.load_gateway()?;
        let access = net_device("access")?.ifindex;
        let (mut cached, mut random) = (Vec::new(), Vec::new());
        let mut figures: [Vec<f64>; 4] = Default::default();
        for round in 0..self.rounds {
            let mut measured = Vec::new();
            for count in [MANY, 1] {
                let profile = profile(count);
                dataplane.profiles().insert(&profile)?;
                measured.push(cached_time(&dataplane, access, &packet, count, round)?);
                measured.push(self.random_time(&packet, count - 1)?);
                dataplane.profiles().remove(&profile)?;
            }
            let round: [f64; 4] = measured.try_into().map_err(|_| anyhow!("four figures"))?;
            let [large, large_random, small, small_random] = round;
            cached.push(large / small);
            random.push(large_random / small_random);
            for (figure, value) in figures.iter_mut().zip([large, small, large_random, small_random]) {
                figure.push(value);
            }
        }
        drop(dataplane);
        unload(&self.stage.pins("gw"))?;
        let [large, small, large_random, small_random] = figures.map(|list| quantile(&list, 0.5));
        let record = |id: &str, ratios: &[f64], large: f64, small: f64| {
            Record::new(id, "ratio", Better::Lower, ratios)
                .arm("ours", format!("{MANY} profiles, {large:.0} ns/packet"))
                .arm("other", format!("1 profile, {small:.0} ns/packet"))
                .condition(
                    "packet",
                    "ESP of a served terminal, whole program with fib_lookup, no worker",
                )
        };
        Ok(vec![
            record("dataplane.classify_1m_vs_1", &cached, large, small)
                .goal(1.5)
                .condition(
                    "locality",
                    format!("{TERMINALS} terminals in turn, 20000 packets each (BPF_PROG_TEST_RUN)"),
                ),
            record(
                "dataplane.classify_1m_vs_1_random",
                &random,
                large_random,
                small_random,
            )
            .condition(
                "locality",
                "none: every packet from a terminal drawn at random (live frames)",
            ),
        ])
    }

    /// Nanoseconds per packet where no two packets come from the same terminal, less those of the source.
    fn random_time(&self, packet: &[u8], spread: u32) -> Result<f64> {
        let with = self.send(packet, spread, "access", "gw")?.nanoseconds;
        let source = self.send_dropped(packet, spread)?;
        Ok((with - source).max(1.0))
    }

    /// The source alone: the same packets to an interface where nothing looks at them.
    fn send_dropped(&self, packet: &[u8], spread: u32) -> Result<f64> {
        let mut other = packet.to_vec();
        // Another station's address: the program's first question, and its last.
        other
            .get_mut(..6)
            .context("an Ethernet packet")?
            .copy_from_slice(&[0x02, 0, 0, 0, 0xee, 0xee]);
        // Not IP: passed to the kernel would cost a socket buffer, a broken header is dropped.
        *other.get_mut(14).context("an IPv4 packet")? = 0;
        Ok(self.send(&other, spread, "access", "gw")?.nanoseconds)
    }

    /// Processor time of a worker that has nothing to do.
    fn idle(&self) -> Result<Record> {
        let mut dataplane = self.load_gateway()?;
        let sockets = open_sockets(&mut dataplane)?;
        let (slice, rounds) = (self.slice, self.rounds);
        let (stop, (send, receive)) = (AtomicBool::new(false), mpsc::channel());
        let shares = thread::scope(|scope| -> Result<Vec<f64>> {
            scope.spawn(|| {
                let mut engine = sockets.start();
                for _ in 0..rounds {
                    let (start, cpu) = (Instant::now(), thread_time());
                    let mut batch = Vec::with_capacity(64);
                    while start.elapsed() < slice {
                        poll_once(&mut engine, &mut batch, slice.min(Duration::from_millis(100)));
                    }
                    let used = thread_time().and_then(|end| Ok(end - cpu?));
                    let _ = send
                        .send(used.map(|used| 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64()));
                }
            });
            let shares = (0..rounds)
                .map(|_| receive.recv().map_err(|_| anyhow!("the worker ended"))?)
                .collect();
            stop.store(true, Ordering::Relaxed);
            shares
        })?;
        drop(dataplane);
        unload(&self.stage.pins("gw"))?;
        Ok(
            Record::new("dataplane.idle_cpu", "percent", Better::Lower, &shares)
                .goal(5.0)
                .arm(
                    "ours",
                    "one worker with two ports and no traffic, need_wakeup, no busy polling",
                ),
        )
    }
}

/// Nanoseconds per packet where a terminal's packets come one after the other, for some of `count` terminals.
fn cached_time(dataplane: &Dataplane, access: u32, packet: &[u8], count: u32, seed: usize) -> Result<f64> {
    let mut total = Duration::ZERO;
    for terminal in 0..TERMINALS {
        // Far apart in the table, others in every round.
        let number = (terminal + TERMINALS * seed as u32).wrapping_mul(0x9e37_79b1) % count;
        let source = Ipv4Addr::from_bits(TERMINAL.to_bits() | number);
        let mut packet = packet.to_vec();
        packet
            .get_mut(26..30)
            .context("an IPv4 packet")?
            .copy_from_slice(&source.octets());
        total += dataplane.test_run(access, &packet, 20_000)?.duration;
    }
    Ok(total.as_nanos() as f64 / f64::from(TERMINALS))
}

fn open_sockets(dataplane: &mut Dataplane) -> Result<Sockets> {
    let ports: Vec<PortQueue> = dataplane
        .ports()
        .iter()
        .map(|port| PortQueue {
            ifindex: port.device.ifindex,
            queue: 0,
        })
        .collect();
    let sockets = Sockets::open(
        &Config {
            copying: Copying::Always,
            ..Config::default()
        },
        &ports,
    )?;
    for (port, socket) in sockets.descriptors() {
        dataplane.set_xsk(port.ifindex, port.queue, socket)?;
    }
    Ok(sockets)
}

/// Forwards untouched what is diverted, as a router does: TTL, checksum, MAC addresses. Returns processor
/// nanoseconds per packet.
fn forward(engine: &mut Engine, stop: &AtomicBool) -> Result<f64> {
    let mut batch = Vec::with_capacity(64);
    let start = thread_time()?;
    while !stop.load(Ordering::Relaxed) {
        poll_once(engine, &mut batch, Duration::from_millis(10));
    }
    let sent: u64 = engine
        .ports()
        .map(|(port, _)| engine.statistics(port))
        .map(|it| it.transmitted)
        .sum();
    Ok((thread_time()? - start).as_nanos() as f64 / sent.max(1) as f64)
}

fn poll_once(engine: &mut Engine, batch: &mut Vec<towpath_afxdp::Frame>, patience: Duration) {
    let ports = engine.ports().count();
    let mut any = 0;
    for port in 0..ports {
        any += engine.receive(towpath_afxdp::PortId(port), batch);
        for mut frame in batch.drain(..) {
            let Some(meta) = frame.meta() else { continue };
            let Some(egress) = engine.port_on(meta.egress_ifindex.get()) else {
                continue;
            };
            if rewrite(frame.bytes_mut(), meta.dmac, meta.smac).is_some() {
                // A full ring drops the packet, which the sink then misses.
                let _ = engine.transmit(egress, frame);
            }
        }
    }
    engine.flush();
    if any == 0 {
        // An error of the wait shows as packets that do not arrive.
        let _ = engine.wait(None, patience);
    }
}

fn rewrite(bytes: &mut [u8], dmac: [u8; 6], smac: [u8; 6]) -> Option<()> {
    let header: &mut [u8; 34] = bytes.first_chunk_mut()?;
    header[..6].copy_from_slice(&dmac);
    header[6..12].copy_from_slice(&smac);
    let old = u16::from_be_bytes([header[22], header[23]]);
    let new = old.checked_sub(0x0100)?;
    let check = u16::from_be_bytes([header[24], header[25]]);
    header[22..24].copy_from_slice(&new.to_be_bytes());
    header[24..26].copy_from_slice(&checksum_update16(check, old, new).to_be_bytes());
    Some(())
}

/// Profiles of `count` terminals, as one subscriber: the maps do not care.
fn profile(count: u32) -> CompiledProfile {
    let entries = (0..count).map(|number| {
        let address = Ipv4Addr::from_bits(TERMINAL.to_bits() | number);
        (Prefix::host(IpAddr::V4(address)), ProfileEntry::standard(1))
    });
    CompiledProfile {
        handle: 1,
        entries: entries.collect(),
        ..CompiledProfile::default()
    }
}

/// An ESP packet from the terminal to the peer: an IP packet of `size` bytes, or the 64-byte frame.
fn packet(size: usize) -> Vec<u8> {
    let ip_len = if size == 64 { 50 } else { size };
    let mut packet = vec![0; 14 + ip_len];
    packet[..6].copy_from_slice(&[0x02, 0, 0, 0, 0x01, 0x01]);
    packet[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0x01, 0x02]);
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14..26].copy_from_slice(&[
        0x45,
        0,
        (ip_len >> 8) as u8,
        ip_len as u8,
        0,
        1,
        0,
        0,
        64,
        50,
        0,
        0,
    ]);
    packet[26..30].copy_from_slice(&TERMINAL.octets());
    packet[30..34].copy_from_slice(&PEER.octets());
    let check = fold(sum(&packet[14..34]));
    packet[24..26].copy_from_slice(&check.to_be_bytes());
    packet
}

fn describe(text: &str, samples: &[Sample], source: &[Sample]) -> String {
    let median =
        |value: fn(&Sample) -> f64, of: &[Sample]| quantile(&of.iter().map(value).collect::<Vec<_>>(), 0.5);
    let rate = median(|sample| sample.delivered, samples) / 1000.0;
    let worker = median(|sample| sample.worker, samples);
    if worker > 0.0 {
        return format!("{text}, {rate:.0} kpps, {worker:.0} ns of the worker per packet");
    }
    // Everything happens on the sending processor: what exceeds the source alone is the gateway's and the sink's.
    let cost = median(|sample| sample.nanoseconds, samples) - median(|sample| sample.nanoseconds, source);
    format!("{text}, {rate:.0} kpps, {cost:.0} ns per packet beyond the source")
}

fn describe_source(samples: &[Sample]) -> String {
    let median = |value: fn(&Sample) -> f64| quantile(&samples.iter().map(value).collect::<Vec<_>>(), 0.5);
    let (rate, cost) = (
        median(|sample| sample.delivered),
        median(|sample| sample.nanoseconds),
    );
    format!("alone, {:.0} kpps, {cost:.0} ns per packet", rate / 1000.0)
}

fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("no processor time of the thread")?
        .into())
}
