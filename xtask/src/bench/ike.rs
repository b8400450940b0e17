//! `cargo xtask bench ike`: what an IKE set-up costs the responder, ours and strongSwan's charon.
//!
//! ```text
//!   initiator, processor 1                       responder, processor 0
//!   ┌─────────────────────────┐  veth  ┌──────────────────────────────┐
//!   │ 10.128.0.0/9, one each  ├────────┤ 198.18.0.2                   │
//!   └─────────────────────────┘        └──────────────────────────────┘
//! ```
//!
//! Both responders answer the same initiator (`ike_load`), in turns, in one run. A set-up is IKE_SA_INIT and
//! IKE_AUTH with one CHILD SA. The figure is set-ups per second of the responder's processor time, all its threads
//! and the kernel's work for its system calls included: it does not depend on how fast the initiator is, which has
//! as much to compute. Ours is the engine behind two UDP sockets; it hands its ESP keys to nobody.
//!
//! charon's ESP in user space also installs a route for each SA, which cannot be turned off; this kernel has no ESP of
//! its own. What is not comparable is named in the arms.
//!
//! * `ike.psk_vs_charon`, `ike.ecdsa_vs_charon`: ours ÷ charon's.
//! * `ike.psk_mlkem_per_s`: with ML-KEM-768 as additional key exchange, which charon 5.9 lacks.
//! * `ike.kib_per_sa`: growth of our process per established SA, one CHILD SA included.
//! * `ike.10000th_vs_1st`: median time of a set-up with 10,000 others established ÷ with none.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Args, Better, Record, quantile};
use crate::sh::{Cmd, is_root};
use crate::ui::step;

const RESPONDER: &str = "198.18.0.2";
const PROPOSAL: &str = "aes256gcm16-prfsha256-x25519";
const HYBRID: &str = "aes256gcm16-prfsha256-x25519-ke1_mlkem768";
/// Set-ups under way at a time.
const PARALLEL: usize = 32;
/// SAs held for the figures about many.
const MANY: usize = 10_000;

/// Measures and returns the records.
pub(super) fn run(root: &Path, args: &Args) -> Result<Vec<Record>> {
    if !is_root() {
        bail!("the benchmark makes network namespaces: run as root");
    }
    if !args.as_built {
        step("building both ends, optimised", || {
            Cmd::line("cargo build --release --locked --package towpath-cost --bin ike_load")
                .dir(root)
                .run()
        })?;
    }
    let stage = Stage::new(root.join("target/release/ike_load"))?;
    let (rounds, seconds) = if args.quick { (5, 2) } else { (7, 5) };
    let wanted = |part: &str| args.only.is_empty() || args.only.iter().any(|only| only == part);
    let mut records = Vec::new();
    if wanted("psk") {
        records.push(step("ours and charon, pre-shared key", || {
            stage.versus("ike.psk_vs_charon", "psk", rounds, seconds)
        })?);
    }
    if wanted("ecdsa") {
        stage.certificates()?;
        records.push(step("ours and charon, ECDSA P-256 certificates", || {
            stage.versus("ike.ecdsa_vs_charon", "ecdsa", rounds, seconds)
        })?);
    }
    if wanted("mlkem") {
        records.push(step("ours, pre-shared key, ML-KEM-768", || {
            stage.hybrid(rounds, seconds)
        })?);
    }
    if wanted("many") {
        records.extend(step("ours, ten thousand SAs", || {
            stage.many(if args.quick { 3 } else { 7 })
        })?);
    }
    let conditions = |record: Record| {
        record
            .condition("parallel", PARALLEL)
            .condition("child sa", "aes256gcm16, tunnel, UDP encapsulation")
            .condition("responder", "pinned to processor 0, initiator to processor 1")
    };
    Ok(records.into_iter().map(conditions).collect())
}

/// Namespaces and files of one run, removed when dropped.
struct Stage {
    names: [String; 2],
    dir: PathBuf,
    load: PathBuf,
}

/// A running responder.
struct Responder {
    child: Child,
    /// The process whose time counts.
    pid: u32,
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the initiator reports of a phase.
#[derive(Clone, Copy, Debug)]
struct Phase {
    done: u64,
    failed: u64,
    seconds: f64,
    median: f64,
}

/// One round of one arm.
#[derive(Clone, Copy, Debug)]
struct Reached {
    /// Set-ups per second of processor time.
    per_processor: f64,
    /// Set-ups per second of the clock.
    per_second: f64,
}

impl Stage {
    fn new(load: PathBuf) -> Result<Self> {
        let tag = std::process::id();
        let names = ["a", "b"].map(|end| format!("tpike{tag}{end}"));
        let dir = std::env::temp_dir().join(format!("tpike{tag}"));
        fs::create_dir_all(&dir)?;
        let stage = Self { names, dir, load };
        let [a, b] = &stage.names;
        let lines = [
            format!("ip netns add {a}"),
            format!("ip netns add {b}"),
            format!("ip -n {a} link add v0 type veth peer name v0 netns {b}"),
            format!("ip -n {a} link set lo up"),
            format!("ip -n {b} link set lo up"),
            format!("ip -n {a} link set v0 up"),
            format!("ip -n {b} link set v0 up"),
            format!("ip -n {a} addr add 198.18.0.1/24 dev v0"),
            format!("ip -n {b} addr add {RESPONDER}/24 dev v0"),
            // Its ESP in user space wants an address inside what it protects.
            format!("ip -n {b} addr add 10.200.0.1/32 dev lo"),
            format!("ip -n {a} route add local 10.128.0.0/9 dev lo"),
            format!("ip -n {b} route add 10.128.0.0/9 via 198.18.0.1"),
        ];
        lines.iter().try_for_each(|line| Cmd::line(line).run())?;
        Ok(stage)
    }

    fn auth(&self, auth: &str) -> String {
        match auth {
            "psk" => auth.to_owned(),
            _ => self.dir.display().to_string(),
        }
    }

    /// One authority, and a certificate for each end, for both programs.
    fn certificates(&self) -> Result<()> {
        let script = "set -e; cd \"$1\"; p='-pkeyopt ec_paramgen_curve:P-256'
            openssl req -x509 -newkey ec $p -nodes -keyout ca.pem -out ca.crt -subj /CN=ca -days 30 \\
              -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
            openssl x509 -in ca.crt -outform der -out ca.der
            for end in a b; do
              openssl req -newkey ec $p -nodes -keyout $end.pem -out $end.csr -subj /CN=$end.test
              printf 'subjectAltName=DNS:%s.test\\n' $end >$end.ext
              openssl x509 -req -in $end.csr -CA ca.crt -CAkey ca.pem -CAcreateserial -days 30 -extfile $end.ext -out $end.crt
              openssl x509 -in $end.crt -outform der -out $end.der
              openssl pkcs8 -topk8 -nocrypt -in $end.pem -outform der -out $end.key
            done
            mkdir private; cp b.pem private/b.pem";
        Cmd::new("sh").args(["-c", script, "sh"]).arg(&self.dir).run()
    }

    fn ours(&self, auth: &str, proposal: &str) -> Result<Responder> {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.names[1], "taskset", "-c", "0"])
            .arg(&self.load)
            .args(["respond", RESPONDER, &self.auth(auth), proposal])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start our responder")?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        // `ip netns exec` and `taskset` become the program.
        let responder = Responder {
            pid: child.id(),
            child,
        };
        if line.trim() != "ready" {
            bail!("our responder did not start");
        }
        Ok(responder)
    }

    fn charon(&self, auth: &str) -> Result<Responder> {
        let base = self.dir.display();
        let _ = fs::remove_file(self.dir.join("vici"));
        let configuration = format!(
            "charon-systemd {{
  load = random nonce pem pkcs1 pkcs8 x509 pubkey openssl kdf hmac sha2 gcm aes curve25519 kernel-libipsec kernel-netlink socket-default vici
  install_virtual_ip = no
  dos_protection = no
  half_open_timeout = 10
  ikesa_table_size = 4096
  ikesa_table_segments = 4
  plugins {{
    vici {{ socket = unix://{base}/vici }}
    kernel-libipsec {{ allow_peer_ts = yes }}
  }}
  filelog {{ l {{ path = {base}/charon.log
    default = 0 }} }}
  journal {{ default = -1 }}
}}
swanctl {{ load = random pem pkcs1 pkcs8 x509 pubkey openssl }}
"
        );
        fs::write(self.dir.join("strongswan.conf"), configuration)?;
        let (local, remote, secret) = if auth == "psk" {
            let local = "auth = psk\n   id = b.test".to_owned();
            let secret = "secrets { ike-1 { secret = \"swordfish\" } }\n".to_owned();
            (local, "auth = psk\n   id = a.test".to_owned(), secret)
        } else {
            let local = format!("auth = pubkey\n   id = b.test\n   certs = {base}/b.crt");
            let remote = format!("auth = pubkey\n   id = a.test\n   cacerts = {base}/ca.crt");
            // Its key is in the folder that SWANCTL_DIR names.
            (local, remote, String::new())
        };
        let connection = format!(
            "connections {{ t {{
  version = 2
  local_addrs = {RESPONDER}
  remote_addrs = %any
  proposals = {PROPOSAL}
  encap = yes
  mobike = no
  unique = never
  local {{ {local}
  }}
  remote {{ {remote}
  }}
  children {{ c {{ esp_proposals = aes256gcm16
    mode = tunnel
    local_ts = 10.200.0.0/24
    remote_ts = 10.64.0.0/10 }} }}
}} }}
{secret}"
        );
        fs::write(self.dir.join("swanctl.conf"), connection)?;
        let inside = |program: &str| {
            let mut command = Command::new("ip");
            command
                .args(["netns", "exec", &self.names[1], "taskset", "-c", "0", program])
                .env("STRONGSWAN_CONF", self.dir.join("strongswan.conf"))
                .env("SWANCTL_DIR", &self.dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        };
        let child = inside("/usr/sbin/charon-systemd")
            .spawn()
            .context("cannot start charon")?;
        let responder = Responder {
            pid: child.id(),
            child,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.dir.join("vici").exists() {
            if Instant::now() > deadline {
                bail!("charon did not start");
            }
            sleep(Duration::from_millis(50));
        }
        let load = inside("swanctl")
            .args(["--load-all", "--clear", "--noprompt", "--uri"])
            .arg(format!("unix://{base}/vici"))
            .arg("--file")
            .arg(self.dir.join("swanctl.conf"))
            .status()?;
        if !load.success() {
            bail!("charon does not take its connection");
        }
        Ok(responder)
    }

    fn initiate(&self, auth: &str, proposal: &str, phases: &[&str]) -> Result<Vec<Phase>> {
        let output = Cmd::new("ip")
            .args(["netns", "exec", &self.names[0], "taskset", "-c", "1"])
            .arg(&self.load)
            .args(["initiate", RESPONDER, &self.auth(auth), proposal])
            .args(phases)
            .limit(Duration::from_secs(300))
            .output()?;
        if !output.ok() {
            bail!("the initiator failed: {}", output.all());
        }
        output.stdout.lines().map(read_phase).collect()
    }

    /// Sets up as many as fit in a time.
    fn round(&self, responder: &Responder, auth: &str, proposal: &str, seconds: u64) -> Result<Reached> {
        let before = processor_seconds(responder.pid)?;
        let timed = format!("{seconds}sx{PARALLEL}");
        let phases = self.initiate(auth, proposal, &[&timed])?;
        let spent = processor_seconds(responder.pid)? - before;
        let [phase] = phases[..] else {
            bail!("the initiator reports {phases:?}")
        };
        if phase.done == 0 || phase.failed * 100 > phase.done {
            bail!("{} set-ups succeeded and {} failed", phase.done, phase.failed);
        }
        Ok(Reached {
            per_processor: phase.done as f64 / spent,
            per_second: phase.done as f64 / phase.seconds,
        })
    }

    fn versus(&self, id: &str, auth: &str, rounds: usize, seconds: u64) -> Result<Record> {
        let (mut ratios, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let a = self.round(&self.ours(auth, PROPOSAL)?, auth, PROPOSAL, seconds)?;
            let b = self.round(&self.charon(auth)?, auth, PROPOSAL, seconds)?;
            ratios.push(a.per_processor / b.per_processor);
            ours.push(a);
            theirs.push(b);
        }
        Ok(Record::new(id, "ratio", Better::Higher, &ratios)
            .goal(3.0)
            .arm("ours, engine behind UDP sockets", shown(&ours))
            .arm(
                "charon 5.9 with kernel-libipsec, hash table of 4096, log level 0; it also installs a route per SA",
                shown(&theirs),
            )
            .condition("proposal", PROPOSAL)
            .condition(
                "authentication",
                if auth == "psk" {
                    "pre-shared key"
                } else {
                    "ECDSA P-256, one CA"
                },
            ))
    }

    fn hybrid(&self, rounds: usize, seconds: u64) -> Result<Record> {
        let mut reached = Vec::new();
        for _ in 0..rounds {
            reached.push(self.round(&self.ours("psk", HYBRID)?, "psk", HYBRID, seconds)?);
        }
        let values: Vec<f64> = reached.iter().map(|round| round.per_processor).collect();
        Ok(
            Record::new("ike.psk_mlkem_per_s", "set-ups/s", Better::Higher, &values)
                .arm("ours, engine behind UDP sockets", shown(&reached))
                .condition("proposal", HYBRID),
        )
    }

    /// Memory per SA, and what the last of many costs.
    fn many(&self, rounds: usize) -> Result<[Record; 2]> {
        let (mut sizes, mut ratios, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let bulk = format!("{}x{PARALLEL}", MANY - 400);
        for _ in 0..rounds {
            let responder = self.ours("psk", PROPOSAL)?;
            // What is allocated once is not counted against the SAs.
            self.initiate("psk", PROPOSAL, &["1x1"])?;
            let before = resident(responder.pid)?;
            let phases = self.initiate("psk", PROPOSAL, &["200x1", &bulk, "200x1"])?;
            let [first, _, last] = phases[..] else {
                bail!("the initiator reports {phases:?}")
            };
            let done: u64 = phases.iter().map(|phase| phase.done).sum();
            sizes.push((resident(responder.pid)? - before) / done as f64);
            ratios.push(last.median / first.median);
            times.push((first.median, last.median));
        }
        let (first, last): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
        let micro = |seconds: &[f64]| format!("{:.0} µs", quantile(seconds, 0.5) * 1e6);
        Ok([
            Record::new("ike.kib_per_sa", "KiB", Better::Lower, &sizes)
                .goal(5.0)
                .condition("sas", MANY)
                .condition("measure", "growth of the responder's resident memory"),
            Record::new("ike.10000th_vs_1st", "ratio", Better::Lower, &ratios)
                .goal(1.2)
                .arm("first 200, one at a time", micro(&first))
                .arm("last 200, one at a time", micro(&last))
                .condition(
                    "measure",
                    "median time of one set-up, initiator's work and its own table included",
                ),
        ])
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn shown(rounds: &[Reached]) -> String {
    let median = |pick: fn(&Reached) -> f64| {
        let values: Vec<f64> = rounds.iter().map(pick).collect();
        super::quantile(&values, 0.5)
    };
    format!(
        "{:.0} per processor second, {:.0} per second",
        median(|round| round.per_processor),
        median(|round| round.per_second)
    )
}

fn read_phase(line: &str) -> Result<Phase> {
    let fields: Vec<f64> = line
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [done, failed, seconds, median] = fields[..] else {
        bail!("the initiator says {line:?}")
    };
    Ok(Phase {
        done: done as u64,
        failed: failed as u64,
        seconds,
        median,
    })
}

/// Processor time of a process, all threads, user and system, in seconds.
fn processor_seconds(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    // Nanoseconds run, of every thread: finer than the ticks of `stat`.
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let nanos: Option<f64> = text.split_whitespace().next().and_then(|word| word.parse().ok());
        total += nanos.unwrap_or(0.0) / 1e9;
    }
    if total > 0.0 {
        return Ok(total);
    }
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the responder ended")?;
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<f64>().ok())
        .sum();
    Ok(ticks / 100.0)
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the responder ended")?;
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .context("no VmRSS")?;
    line.split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("VmRSS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_read() {
        let phase = read_phase("200 0 0.251000 0.001230000").unwrap();
        assert_eq!((phase.done, phase.failed, phase.seconds), (200, 0, 0.251));
        assert!(read_phase("nothing").is_err());
    }
}
