//! Where the baseline is measured: two hosts and a gateway in the clear, no impairment.
//!
//! ```text
//!   left  10.81.1.2 ───── bs0  gateway  bs1 ───── 10.81.2.2  right
//! ```

use std::path::PathBuf;
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
    relay: Option<Helper>,
}

impl Street {
    /// Makes it; with `offloads`, the kernel may aggregate as it likes.
    pub(super) fn new(offloads: bool) -> Result<Self> {
        let name = format!("bs{}{}", std::process::id(), if offloads { "b" } else { "w" });
        let mut street = Self { name, relay: None };
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
        street.start_relay()?;
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
        }
        ip(&format!("-n {far} route add default via 10.81.{net}.1"))?;
        own_receiver(&near, device)?;
        own_receiver(&far, "eth0")
    }

    fn start_relay(&mut self) -> Result<()> {
        let port = PORT.to_string();
        self.relay = Some(Helper::start(
            &self.named("g"),
            &["splice", &port, "10.81.2.2:7300"],
        )?);
        Ok(())
    }

    pub(super) fn relay(&self) -> u32 {
        self.relay.as_ref().map_or(0, |helper| helper.process.pid)
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        self.relay = None;
        for role in ["l", "g", "r"] {
            let _ = ip(&format!("netns del {}", self.named(role)));
        }
    }
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
