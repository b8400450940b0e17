//! The gateway's daemon under ESP traffic, in namespaces, beside itself without cipher and beside strongSwan's
//! user-space ESP.
//!
//! ```text
//!   ta: sealed beforehand ──► acc0 [gw: XDP, AF_XDP, worker on processor 1] core0 ──► peer: counted
//!       on processor 0
//!   ta ◄── acc0 [gw] core0 ◄── peer: charon, ESP in UDP, kernel-libipsec ◄── plain UDP
//! ```
//!
//! * `esp.gateway_vs_null.BYTES`: packets per second, class `full` with aes256gcm16 ÷ with null-sha256. There is no suite
//!   without integrity: the denominator hashes every byte twice.
//! * `esp.gateway_vs_none.BYTES`: the same ÷ class `none`, where nothing is opened.
//! * `esp.gateway_vs_libipsec.BYTES`: the same, which opens and seals ÷ what charon in user space seals.
//!
//! A rate is packets that arrived per second of the processor that worked on them: the sender shares this machine, and
//! may be the slower one. What is counted is the same in every arm: the threads of the program that is measured, which read,
//! seal and send. What interfaces *receive* is worked on by threads of their own, on the sender's processor, and not
//! counted: neither what the program's neighbours receive of it, which on veth would otherwise be done on its time, nor
//! what comes to it (an XDP program and a copy for the gateway, a TUN device for charon). The gateway's is told beside.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::receivers::{own_receiver, pin_receivers, receivers};
use super::{Args, Better, Record, quantile};
use crate::ebpf;
use crate::lab::{Family, Lab, Node, PeerKind};
use crate::proof::stack::Stack;
use crate::sh::Cmd;
use crate::ui;

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The suite of the figures, and the one that does not encrypt.
const SUITES: [&str; 2] = ["aes256gcm16", "null-sha256"];
/// First SPI; each SA has two.
const SPI: u32 = 0xb000_0000;

/// Where the load goes: an address of the peer's network whose station is not there, so that the peer's stack drops the
/// packets where it has counted them. What it did with them would be done on the worker's time.
const NOBODY: &str = "10.77.9.99";
/// Its station.
const NOBODYS_MAC: &str = "02:00:00:00:09:99";

struct Bench {
    stack: Stack,
    load: PathBuf,
    /// Packets of one measurement.
    count: u64,
    /// Next sequence number.
    next: u64,
    /// The worker's thread.
    thread: PathBuf,
    /// What receives on the access port.
    receiver: PathBuf,
}

/// What one measurement gave.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Packets that arrived per second of the processor.
    rate: f64,
    /// Packets that arrived per second of the clock.
    arrived: f64,
    /// Share of one processor that was used.
    busy: f64,
    /// Processor seconds per packet of receiving, where a thread of its own does it; not part of the rate.
    receiving: f64,
}

/// Measures and returns the records.
pub(super) fn run(root: &Path, args: &Args, load: &Path) -> Result<Vec<Record>> {
    let object = ebpf::build(root)?;
    let mut bench = Bench::new(root, &object, load, if args.quick { 60_000 } else { 200_000 })?;
    let rounds = if args.quick { 5 } else { 15 };
    let mut records = Vec::new();
    for bytes in [64, 1400] {
        let title = format!("the gateway with packets of {bytes} bytes, {rounds} rounds");
        records.extend(ui::step(&title, || bench.compare(bytes, rounds))?);
    }
    let profile = root.join("target/bench/esp-gateway-profile.txt");
    bench.profile(&profile)?;
    println!("profile of the worker: {}", profile.display());
    bench.stack.stop().down()?;
    Ok(records)
}

impl Bench {
    fn new(root: &Path, object: &Path, load: &Path, count: u64) -> Result<Self> {
        let lab = Lab::ephemeral(root, "be", PeerKind::Libipsec)?;
        let stack = Stack::start(lab, object)?;
        let target = Node::Peer.addr(Family::V4).to_string();
        let ping = Cmd::line("ping -c 3 -i 0.2 -W 5 -q").arg(target);
        if !stack.lab.exec(Node::Ta, &ping, LIMIT)?.ok() {
            bail!("no security association:\n{}", stack.tail("towpath", 20));
        }
        let port = Node::Peer.gateway_port();
        let neighbour = Cmd::line("ip neigh replace").args([NOBODY, "lladdr", NOBODYS_MAC, "dev", port]);
        let out = stack
            .lab
            .exec(Node::Gw, &neighbour.args(["nud", "permanent"]), LIMIT)?;
        if !out.ok() {
            bail!("{}", out.all());
        }
        for (index, suite) in SUITES.into_iter().enumerate() {
            let keys = keys(suite)?;
            let keys: Vec<String> = ["peer_in", "peer_out", "segment_in", "segment_out"]
                .iter()
                .enumerate()
                .map(|(fill, name)| format!("--key={name}={}", hex(keys, fill as u8 + 1)))
                .collect();
            add(&stack, index as u32, suite, &keys)?;
        }
        add(&stack, SUITES.len() as u32, SUITES[0], &[])?;
        let daemon = stack.lab.processes().iter().find(|it| it.name == "towpath");
        let pid = daemon.context("the daemon runs")?.pid;
        let thread = threads(pid)?
            .into_iter()
            .find(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim() == "worker"))
            .context("the daemon has a worker")?;
        pin(&thread)?;
        let net = stack.lab.net();
        own_receiver(&net.namespace(Node::Peer), "eth0")?;
        let ports = [Node::Ta.gateway_port(), Node::Peer.gateway_port()];
        for port in ports {
            own_receiver(&net.namespace(Node::Gw), port)?;
        }
        pin_receivers(&[ports[0], ports[1], "eth0"], 0)?;
        let receiver = receivers(&ports[..1])
            .next()
            .context("the access port has a thread")?;
        Ok(Self {
            stack,
            load: load.to_owned(),
            count,
            next: 1,
            thread,
            receiver: PathBuf::from(format!("/proc/{receiver}")),
        })
    }

    fn compare(&mut self, bytes: u32, rounds: usize) -> Result<Vec<Record>> {
        let mut samples: [Vec<Sample>; 4] = Default::default();
        for _ in 0..rounds {
            samples[0].push(self.through(0, bytes, Some(SUITES[0]))?);
            samples[1].push(self.through(1, bytes, Some(SUITES[1]))?);
            samples[2].push(self.through(2, bytes, None)?);
            samples[3].push(self.libipsec(bytes)?);
        }
        let [full, null, none, libipsec] = samples;
        let record = |name: &str, other: &[Sample], text: &str| {
            let pairs = full.iter().zip(other);
            let ratios: Vec<f64> = pairs.map(|(ours, other)| ours.rate / other.rate).collect();
            Record::new(format!("esp.{name}.{bytes}"), "ratio", Better::Higher, &ratios)
                .arm("ours", describe("class full, aes256gcm16", &full))
                .arm("other", describe(text, other))
                .condition("bytes", format!("{bytes}, the plain IP packet"))
                .condition("rate", "packets that arrived per second of the processor at work")
                .condition(
                    "counted",
                    "threads of the program alone, in every arm; what any interface receives is a thread's of its own",
                )
                .condition(
                    "gateway",
                    "daemon with its TCP relay on, native XDP and AF_XDP (copy mode) on veth",
                )
                .condition("load", "UDP, sealed beforehand, one SA per arm")
        };
        let null = record(
            "gateway_vs_null",
            &null,
            "class full, null-sha256 (HMAC checked and made)",
        );
        let libipsec = record(
            "gateway_vs_libipsec",
            &libipsec,
            "charon with kernel-libipsec, seals alone, ESP in UDP, aes256gcm16",
        );
        let (null, libipsec) = if bytes == 1400 {
            (null.goal(0.75), libipsec.goal(5.0))
        } else {
            (null, libipsec)
        };
        let none = record("gateway_vs_none", &none, "class none, forwarded untouched");
        Ok(vec![null, none, libipsec])
    }

    /// The command that sends one measurement's packets through an SA.
    fn sender(&mut self, index: u32, bytes: u32, suite: Option<&str>) -> Result<Cmd> {
        let ours = Node::Ta.addr(Family::V4).to_string();
        let smac = self.address(Node::Ta, "eth0")?;
        let dmac = self.address(Node::Gw, Node::Ta.gateway_port())?;
        let first = self.next;
        self.next += self.count;
        let cmd = Cmd::line("taskset -c 0")
            .arg(&self.load)
            .args(["esp", "eth0", &smac, &dmac, &ours, NOBODY])
            .args([format!("{:x}", SPI + 2 * index + 1), first.to_string()])
            .args([self.count.to_string(), bytes.to_string()]);
        Ok(match suite {
            // The terminal's segment has the fourth key.
            Some(suite) => cmd.args([suite, "4"]),
            None => cmd,
        })
    }

    fn through(&mut self, index: u32, bytes: u32, suite: Option<&str>) -> Result<Sample> {
        let cmd = self.sender(index, bytes, suite)?;
        let (before, work, receiving) = (
            self.arrived(Node::Peer, "eth0")?,
            busy(std::slice::from_ref(&self.thread))?,
            busy(std::slice::from_ref(&self.receiver))?,
        );
        let seconds = self.send(Node::Ta, &cmd)?;
        let arrived = self.settled(Node::Peer, "eth0")? - before;
        let work = busy(std::slice::from_ref(&self.thread))? - work;
        let receiving = busy(std::slice::from_ref(&self.receiver))? - receiving;
        if arrived < self.count / 20 {
            bail!(
                "{arrived} of {} packets arrived:\n{}\n{}",
                self.count,
                self.stack.tail("towpath", 20),
                self.stack.cli(&["stats"])?
            );
        }
        let sample = sample(arrived, seconds, work);
        Ok(Sample {
            receiving: receiving / arrived as f64,
            ..sample
        })
    }

    /// What charon at the peer seals of plain UDP packets.
    fn libipsec(&mut self, bytes: u32) -> Result<Sample> {
        let target = Node::Ta.addr(Family::V4).to_string();
        let cmd = Cmd::line("taskset -c 0")
            .arg(&self.load)
            .args(["udp", &target, &bytes.to_string(), "1"]);
        let charon = self
            .stack
            .lab
            .processes()
            .iter()
            .find(|it| it.name.contains("charon"));
        let charon = threads(charon.context("charon runs at the peer")?.pid)?;
        let port = Node::Peer.gateway_port();
        let (before, work) = (self.arrived(Node::Gw, port)?, busy(&charon)?);
        let seconds = self.send(Node::Peer, &cmd)?;
        let arrived = self.settled(Node::Gw, port)? - before;
        let work = busy(&charon)? - work;
        if arrived == 0 {
            bail!("charon sealed nothing");
        }
        Ok(sample(arrived, seconds, work))
    }

    /// Sends, and returns the seconds it took.
    fn send(&self, node: Node, cmd: &Cmd) -> Result<f64> {
        let out = self.stack.lab.exec(node, cmd, LIMIT)?;
        let seconds = out
            .stdout
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok());
        seconds.with_context(|| format!("{}: {}", cmd.shown(), out.all()))
    }

    fn read(&self, node: Node, line: &str) -> Result<String> {
        let out = self.stack.lab.exec(node, &Cmd::line(line), LIMIT)?;
        if !out.ok() {
            bail!("{line}: {}", out.all());
        }
        Ok(out.stdout)
    }

    fn address(&self, node: Node, device: &str) -> Result<String> {
        let shown = self.read(node, &format!("ip -o link show dev {device}"))?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
        let address = words.nth(1).map(str::to_owned);
        address.with_context(|| format!("no address of {device}"))
    }

    /// Packets `device` received so far.
    fn arrived(&self, node: Node, device: &str) -> Result<u64> {
        let text = self.read(node, "cat /proc/self/net/dev")?;
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        packets.with_context(|| format!("no counters of {device}"))
    }

    /// As [`Bench::arrived`], once no more come.
    fn settled(&self, node: Node, device: &str) -> Result<u64> {
        let mut last = self.arrived(node, device)?;
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = self.arrived(node, device)?;
            // Beside the load there is a packet now and then.
            if now < last + 20 {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Where the worker's time goes, as text. Without `perf` there is none.
    fn profile(&mut self, file: &Path) -> Result<()> {
        let cmd = self.sender(0, 1400, Some(SUITES[0]))?;
        let data = file.with_extension("data");
        let thread = self.thread.file_name().and_then(|name| name.to_str());
        let (thread, shown) = (
            thread.context("a thread has a number")?,
            data.display().to_string(),
        );
        let perf = [
            "perf",
            "record",
            "-q",
            "-e",
            "cpu-clock",
            "-F",
            "4999",
            "-t",
            thread,
            "-o",
            &shown,
            "--",
        ];
        let inside = self.stack.lab.net().inside(Node::Ta, cmd);
        let recorded = inside.behind(perf).limit(LIMIT).output();
        if !recorded.is_ok_and(|out| out.ok()) {
            println!("no profile: perf does not run here");
            return Ok(());
        }
        let report = Cmd::line("perf report --stdio --no-children --percent-limit 0.5 -i").arg(&data);
        fs::write(file, report.limit(LIMIT).output()?.stdout)?;
        let _ = fs::remove_file(data);
        Ok(())
    }
}

fn sample(arrived: u64, seconds: f64, work: f64) -> Sample {
    Sample {
        rate: arrived as f64 / work,
        arrived: arrived as f64 / seconds,
        busy: work / seconds,
        receiving: 0.0,
    }
}

fn describe(text: &str, samples: &[Sample]) -> String {
    let median = |value: fn(&Sample) -> f64| quantile(&samples.iter().map(value).collect::<Vec<_>>(), 0.5);
    let receiving = match median(|it| it.receiving) {
        0.0 => String::new(),
        seconds => format!(" (and {:.0} ns receiving it, not counted)", 1e9 * seconds),
    };
    format!(
        "{text}: {:.0} ns of the processor per packet{receiving}, {:.0} kpps arrived, {:.0} % busy",
        1e9 / median(|it| it.rate),
        median(|it| it.arrived) / 1000.0,
        100.0 * median(|it| it.busy)
    )
}

fn threads(pid: u32) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Processor seconds of threads so far.
fn busy(threads: &[PathBuf]) -> Result<f64> {
    let mut total = 0;
    for thread in threads {
        let text = fs::read_to_string(thread.join("schedstat"))?;
        let nanoseconds: u64 = text.split_whitespace().next().context("schedstat")?.parse()?;
        total += nanoseconds;
    }
    Ok(total as f64 / 1e9)
}

/// Keeps a thread on the second processor.
fn pin(thread: &Path) -> Result<()> {
    let number = thread.file_name().context("a thread has a number")?;
    Cmd::line("taskset -cp 1").arg(number).output()?;
    Ok(())
}

/// Bytes of key material of a suite.
fn keys(suite: &str) -> Result<usize> {
    let suite: towpath_base::sa::EspSuite = suite.parse().map_err(|_| anyhow::anyhow!("suite {suite}"))?;
    Ok(suite.key_material_len())
}

/// The key `esp_load` makes for `fill`.
fn hex(len: usize, fill: u8) -> String {
    (0..len).map(|i| format!("{:02x}", fill ^ i as u8)).collect()
}

fn add(stack: &Stack, index: u32, suite: &str, keys: &[String]) -> Result<()> {
    let (terminal, peer) = (Node::Ta.addr(Family::V4).to_string(), NOBODY);
    let (name, spi_in) = (format!("bench{index}"), format!("{:x}", SPI + 2 * index));
    let spi_out = format!("{:x}", SPI + 2 * index + 1);
    let mut args = vec![
        "sa",
        "add",
        &name,
        "--subscriber",
        "ta",
        "--terminal",
        &terminal,
        "--peer",
        peer,
    ];
    args.extend(["--spi-in", &spi_in, "--spi-out", &spi_out, "--suite", suite]);
    args.extend(keys.iter().map(String::as_str));
    stack.cli(&args)?;
    Ok(())
}
