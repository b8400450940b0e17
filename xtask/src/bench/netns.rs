//! The stage of the data plane's benchmarks.
//!
//! ```text
//!   source            gateway                    sink
//!   ┌────┐  access ┌────────────┐ core     ┌────┐
//!   │ t0 ├─────────┤            ├──────────┤ p0 │  its MAC is not the neighbour's
//!   └────┘         └────────────┘          └────┘
//! ```
//!
//! Live frames leave t0 as XDP frames, cross the gateway, and reach the sink's stack; everything runs inline on the
//! processor that sends, except the AF_XDP worker, which has the other one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Namespaces of one benchmark run, removed when dropped.
pub(super) struct Stage {
    name: String,
}

impl Stage {
    pub(super) fn new() -> Result<Self> {
        let stage = Self {
            name: format!("tpb{}", std::process::id()),
        };
        for role in ["gw", "t", "p"] {
            ip(&["netns", "add", &stage.namespace(role)])?;
        }
        stage.link("access", "02:00:00:00:01:01", "t", "t0")?;
        stage.link("core", "02:00:00:00:09:01", "p", "p0")?;
        let gw = stage.namespace("gw");
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.access.rp_filter=0",
        ] {
            ip(&["netns", "exec", &gw, "sysctl", "-q", "-w", setting])?;
        }
        ip(&["-n", &gw, "addr", "add", "10.64.0.1/10", "dev", "access"])?;
        ip(&["-n", &gw, "addr", "add", "10.200.9.1/24", "dev", "core"])?;
        let neighbour = [
            "-n",
            &gw,
            "neigh",
            "replace",
            "10.200.9.2",
            "dev",
            "core",
            "lladdr",
            "02:00:00:00:09:99",
        ];
        ip(&[&neighbour[..], &["nud", "permanent"]].concat())?;
        Ok(stage)
    }

    fn link(&self, name: &str, mac: &str, far: &str, far_name: &str) -> Result<()> {
        let (gw, far) = (self.namespace("gw"), self.namespace(far));
        let near = ["-n", &gw, "link", "add", name, "address", mac, "type", "veth"];
        ip(&[&near[..], &["peer", "name", far_name, "netns", &far]].concat())?;
        for (namespace, device) in [(&gw, name), (&far, far_name)] {
            // No neighbour discovery between the measured packets.
            let setting = format!("net.ipv6.conf.{device}.disable_ipv6=1");
            ip(&["netns", "exec", namespace, "sysctl", "-q", "-w", &setting])?;
            ip(&["-n", namespace, "link", "set", device, "up"])?;
            // With GRO on a veth receives redirected frames even without a program.
            ip(&[
                "netns", "exec", namespace, "ethtool", "-K", device, "gro", "on", "tx", "off",
            ])?;
        }
        Ok(())
    }

    fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    /// A directory for pins, below the gateway's.
    pub(super) fn pins(&self, name: &str) -> PathBuf {
        Path::new("/sys/fs/bpf").join(format!("{}-{name}", self.name))
    }

    /// Moves the calling thread into a namespace.
    pub(super) fn enter(&self, role: &str) -> Result<()> {
        let path = format!("/run/netns/{}", self.namespace(role));
        let namespace = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for name in ["gw", "drop", "source", "sink"] {
            let _ = towpath_bpf::unload(&self.pins(name));
        }
        for role in ["gw", "t", "p"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(role)])
                .status();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot start ip (iproute2)")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Packets an interface of the calling thread's namespace received so far.
pub(super) fn received(device: &str) -> Result<u64> {
    let text =
        fs::read_to_string("/proc/thread-self/net/dev").context("cannot read /proc/thread-self/net/dev")?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    packets.with_context(|| format!("no counters of {device}"))
}

/// Keeps the calling thread on a processor; with only one, it stays where it is.
pub(super) fn pin_to(processor: usize) -> Result<()> {
    // Not `available_parallelism`: it counts what the calling thread may use, and a pinned one starts others.
    let processors = sysconf(SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(1);
    let mut set = CpuSet::new();
    set.set(processor % processors.max(1))?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot choose the processor")
}
