//! Two hosts and an emulated link between them, without a gateway.
//!
//! ```text
//!   left  eth0 10.79.0.1 ───── a  em  b ───── 10.79.0.2 eth0  right
//!              fd79::1                          fd79::2
//! ```

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use towpath_linkem::emulator::Setup;

use super::{Links, Running};
use crate::sh::Cmd;

/// A host at either end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Connects.
    Left,
    /// Listens.
    Right,
}

/// The namespaces, removed when dropped.
#[derive(Debug)]
pub struct Row {
    name: String,
}

impl Row {
    /// Makes the namespaces; their names begin with `prefix`. Needs root.
    pub fn new(prefix: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let row = Self {
            name: format!("{prefix}{}-{count}", std::process::id()),
        };
        for role in ["l", "em", "r"] {
            ip(&format!("netns add {}", row.named(role)))?;
        }
        for (role, port, host) in [("l", "a", 1), ("r", "b", 2)] {
            let (far, em) = (row.named(role), row.emulator());
            ip(&format!(
                "-n {em} link add name {port} type veth peer name eth0 netns {far}"
            ))?;
            ip(&format!("-n {far} addr add 10.79.0.{host}/24 dev eth0"))?;
            ip(&format!("-n {far} addr add fd79::{host}/64 dev eth0 nodad"))?;
            ip(&format!(
                "netns exec {far} ethtool -K eth0 tx off tso off gso off gro off"
            ))?;
            ip(&format!(
                "netns exec {em} sysctl -qw net.ipv6.conf.{port}.disable_ipv6=1"
            ))?;
            ip(&format!("-n {far} link set dev lo up"))?;
            ip(&format!("-n {far} link set dev eth0 up"))?;
            ip(&format!("-n {em} link set dev {port} up"))?;
            large_windows(&far)?;
        }
        Ok(row)
    }

    fn named(&self, role: &str) -> String {
        format!("{}-{role}", self.name)
    }

    /// A host's namespace.
    pub fn host(&self, host: Host) -> String {
        self.named(if host == Host::Left { "l" } else { "r" })
    }

    /// The emulator's namespace.
    pub fn emulator(&self) -> String {
        self.named("em")
    }

    /// Starts a link; nothing passes without one. `ab` is from left to right.
    pub fn link(&self, links: &Links) -> Result<Running> {
        let setup = Setup {
            ports: ["a".into(), "b".into()],
            links: links.configs()?,
            seed: links.seed,
        };
        Running::start(&self.emulator(), setup)
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        for role in ["l", "em", "r"] {
            let _ = ip(&format!("netns del {}", self.named(role)));
        }
    }
}

/// Lets TCP in a namespace use windows of many bandwidth-delay products, and remember nothing of earlier connections.
pub fn large_windows(namespace: &str) -> Result<()> {
    for setting in [
        "tcp_rmem=4096 131072 33554432",
        "tcp_wmem=4096 131072 33554432",
        "tcp_no_metrics_save=1",
    ] {
        Cmd::new("ip")
            .args(["netns", "exec", namespace, "sysctl", "-qw"])
            .arg(format!("net.ipv4.{setting}"))
            .run()?;
    }
    Ok(())
}

/// What connections opened from now on in `namespace` can take before anything was read, bytes: the kernel announces half
/// of it at first, and more as its program reads.
pub fn first_window(namespace: &str, bytes: u32) -> Result<()> {
    Cmd::new("ip")
        .args(["netns", "exec", namespace, "sysctl", "-qw"])
        .arg(format!("net.ipv4.tcp_rmem=4096 {bytes} 33554432"))
        .run()?;
    Ok(())
}

fn ip(line: &str) -> Result<()> {
    Cmd::new("ip").args(line.split_whitespace()).run()
}
