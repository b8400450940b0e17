//! Where relays are measured in the clear, no impairment: two hosts and a gateway, which is the kernel with the baseline's relay
//! or Towpath.
//!
//! ```text
//!   left  10.81.1.2 ───── bs0  gateway  bs1 ───── 10.81.2.2  right
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use super::super::receivers::{own_receiver, receivers};
use crate::lab::state::{Process, wait_for};
use crate::linkem::row::large_windows;
use crate::proof::stack::programs;
use crate::sh::Cmd;

/// Port of the baseline's relay.
pub(super) const PORT: u16 = 7200;
/// The gateway's interfaces.
pub(super) const DEVICES: [&str; 2] = ["bs0", "bs1"];

/// The namespaces and the relay, removed when dropped.
pub(super) struct Street {
    name: String,
    relay: Relay,
}

/// Who relays.
enum Relay {
    None,
    Splice(Helper),
    Ours(Daemon),
}

impl Street {
    /// Makes it; with `offloads`, the kernel may aggregate as it likes.
    pub(super) fn new(offloads: bool) -> Result<Self> {
        let mut street = Self::built(if offloads { "b" } else { "w" }, offloads)?;
        let (space, port) = (street.named("g"), PORT.to_string());
        street.relay = Relay::Splice(Helper::start(&space, &["splice", &port, "10.81.2.2:7300"])?);
        Ok(street)
    }

    /// Makes it with Towpath as the gateway, which splits what goes from the left to the right.
    pub(super) fn ours(root: &Path) -> Result<Self> {
        let mut street = Self::built("t", false)?;
        street.relay = Relay::Ours(Daemon::start(root, &street.named("g"))?);
        Ok(street)
    }

    fn built(suffix: &str, offloads: bool) -> Result<Self> {
        let name = format!("bs{}{suffix}", std::process::id());
        let street = Self {
            name,
            relay: Relay::None,
        };
        for role in ["l", "g", "r"] {
            ip(&format!("netns add {}", street.named(role)))?;
        }
        for (role, device, net) in [("l", "bs0", 1), ("r", "bs1", 2)] {
            street.wire(role, device, net, offloads)?;
        }
        ip(&format!(
            "netns exec {} sysctl -qw net.ipv4.ip_forward=1",
            street.named("g")
        ))?;
        Ok(street)
    }

    pub(super) fn named(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    fn wire(&self, role: &str, device: &str, net: u8, offloads: bool) -> Result<()> {
        let (far, near) = (self.named(role), self.named("g"));
        ip(&format!(
            "-n {near} link add name {device} type veth peer name eth0 netns {far}"
        ))?;
        for (space, interface, host) in [(&near, device, 1), (&far, "eth0", 2)] {
            ip(&format!(
                "-n {space} addr add 10.81.{net}.{host}/24 dev {interface}"
            ))?;
            let off = "tx off tso off gso off gro on";
            if !offloads {
                ip(&format!("netns exec {space} ethtool -K {interface} {off}"))?;
                ip(&format!("-n {space} link set dev {interface} gro_max_size 1500"))?;
            } else {
                ip(&format!("netns exec {space} ethtool -K {interface} gro on"))?;
            }
            ip(&format!("-n {space} link set dev {interface} up"))?;
            large_windows(space)?;
            many_connections(space)?;
        }
        ip(&format!("-n {far} route add default via 10.81.{net}.1"))?;
        own_receiver(&near, device)?;
        own_receiver(&far, "eth0")
    }

    /// Process id of the relay.
    pub(super) const fn relay(&self) -> u32 {
        match &self.relay {
            Relay::None => 0,
            Relay::Splice(helper) => helper.process.pid,
            Relay::Ours(daemon) => daemon.process.pid,
        }
    }

    /// Where a client on the left connects to be relayed; `directly` leaves the baseline's relay out.
    pub(super) const fn address(&self, directly: bool) -> ([u8; 4], u16) {
        match &self.relay {
            Relay::Splice(_) if !directly => ([10, 81, 1, 1], PORT),
            _ => ([10, 81, 2, 2], 7300),
        }
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        self.relay = Relay::None;
        for role in ["l", "g", "r"] {
            let _ = ip(&format!("netns del {}", self.named(role)));
        }
    }
}

/// Connections by the thousand in a row: what ended is forgotten at once, or the kernel's search for a free port is what
/// is measured.
pub(super) fn many_connections(namespace: &str) -> Result<()> {
    for setting in ["tcp_max_tw_buckets=64", "ip_local_port_range=1024 65000"] {
        let setting = format!("net.ipv4.{setting}");
        Cmd::new("nsenter")
            .args([
                &format!("--net=/run/netns/{namespace}"),
                "--",
                "sysctl",
                "-qw",
                &setting,
            ])
            .run()?;
    }
    Ok(())
}

/// Towpath in the gateway's namespace, ended when dropped.
struct Daemon {
    process: Process,
    dir: PathBuf,
    pins: PathBuf,
}

impl Daemon {
    fn start(root: &Path, namespace: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("{namespace}-towpath"));
        let pins = Path::new("/sys/fs/bpf").join(namespace);
        for old in [&dir, &pins] {
            let _ = std::fs::remove_dir_all(old);
        }
        std::fs::create_dir_all(&dir)?;
        private(&dir.join("store.key"), &"5a".repeat(32))?;
        let config = format!(
            "roles = [\"gateway\", \"keyserver\", \"registry\"]\n[gateway]\npin_dir = {pins:?}\nbpf_object = {object:?}\n\
             [[gateway.port]]\nname = {left:?}\nrole = \"access\"\n[[gateway.port]]\nname = {right:?}\nrole = \"core\"\n\
             [store]\npath = {store:?}\nkek_file = {kek:?}\n[admin]\nsocket = {socket:?}\n\
             [[relay.rule]]\nclass = \"clear\"\naction = \"split\"\n",
            object = crate::ebpf::build(root)?,
            left = DEVICES[0],
            right = DEVICES[1],
            store = dir.join("towpath.redb"),
            kek = dir.join("store.key"),
            socket = dir.join("admin"),
        );
        private(&dir.join("gw.toml"), &config)?;
        let subscriber = format!(
            "{{\"name\": \"left\", \"attachment\": \"fixed\", \"addresses\": [\"10.81.1.2/32\"], \"ksub\": \"{}\"}}",
            "a5".repeat(32)
        );
        private(&dir.join("left.json"), &subscriber)?;
        let log = dir.join("log");
        let run = towpath(namespace)?.args(["run"]);
        let process = Process::note("towpath", configured(run, &dir).spawn(&log)?);
        let daemon = Self { process, dir, pins };
        let cli = |words: &[&str]| {
            let cmd = configured(towpath(namespace)?.args(words), &daemon.dir);
            cmd.limit(Duration::from_secs(10)).output()
        };
        let answers = || cli(&["status"]).is_ok_and(|out| out.ok()) || !daemon.process.alive();
        let up = wait_for(Duration::from_secs(20), answers) && daemon.process.alive();
        let file = daemon.dir.join("left.json").display().to_string();
        let added = cli(&["subscriber", "import", &file])?;
        if !up || !added.ok() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("Towpath does not serve the street: {}\n{said}", added.all());
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.end(Duration::from_secs(2));
        for gone in [&self.dir, &self.pins] {
            let _ = std::fs::remove_dir_all(gone);
        }
    }
}

fn towpath(namespace: &str) -> Result<Cmd> {
    let enter = format!("--net=/run/netns/{namespace}");
    Ok(Cmd::new("nsenter")
        .args([&enter, "--"])
        .arg(programs()?.join("towpath")))
}

fn configured(cmd: Cmd, dir: &Path) -> Cmd {
    cmd.arg("--config").arg(dir.join("gw.toml"))
}

fn private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// A `pump` of this program in a named namespace, ended when dropped.
pub(super) struct Helper {
    process: Process,
    log: PathBuf,
}

impl Helper {
    /// Starts it and waits until it is ready.
    pub(super) fn start(namespace: &str, words: &[&str]) -> Result<Self> {
        let log = std::env::temp_dir().join(format!("{namespace}.log"));
        let _ = std::fs::remove_file(&log);
        let cmd = Cmd::new("nsenter")
            .args([&format!("--net=/run/netns/{namespace}"), "--"])
            .arg(programs()?.join("xtask"))
            .arg("pump")
            .args(words);
        let process = Process::note("helper", cmd.spawn(&log)?);
        let helper = Self { process, log };
        let said = || std::fs::read_to_string(&helper.log).unwrap_or_default();
        let ready = || said().contains("ready");
        if wait_for(Duration::from_secs(5), || ready() || !helper.process.alive()) && ready() {
            return Ok(helper);
        }
        bail!("pump {} did not start: {}", words.join(" "), said())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.process.end(Duration::from_secs(1));
        let _ = std::fs::remove_file(&self.log);
    }
}

fn ip(line: &str) -> Result<()> {
    Cmd::new("ip").args(line.split_whitespace()).run()
}

/// Processor seconds of a process and of the receiving threads of interfaces, so far.
pub(super) fn cpu_seconds(process: u32, devices: &[&str]) -> f64 {
    let process = cpu_ticks(&process.to_string()).unwrap_or(0);
    let receivers = receivers(devices).filter_map(|pid| cpu_ticks(&pid));
    (process + receivers.sum::<u64>()) as f64 / 100.0
}

/// User and system time of a process, clock ticks of 10 ms (`/proc/PID/stat`, fields 14 and 15).
fn cpu_ticks(pid: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.get(text.rfind(')')? + 1..)?;
    let mut fields = rest.split_whitespace().skip(11);
    let (user, system) = (
        fields.next()?.parse::<u64>().ok()?,
        fields.next()?.parse::<u64>().ok()?,
    );
    Some(user + system)
}
