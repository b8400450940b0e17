//! The lab's network.
//!
//! ```text
//!   ta  eth0 10.77.1.2/24  fd77:1::2/64 ----- acc0 10.77.1.1 fd77:1::1 +----+
//!                                                                      | gw | core0 10.77.9.1 fd77:9::1 ----- eth0  peer
//!   tb  eth0 10.77.2.2/24  fd77:2::2/64 ----- acc1 10.77.2.1 fd77:2::1 +----+                  10.77.9.2 fd77:9::2
//! ```
//!
//! Where terminal A's link is emulated, the emulator's namespace sits in the middle of it:
//!
//! ```text
//!   ta eth0 ----- ta0 | em | gw0 ----- acc0 gw
//! ```
//!
//! Where the peer is behind a NAT, that sits in the middle of its link and has its address; the peer has that address
//! inside tunnels only:
//!
//! ```text
//!   gw core0 ----- out0 10.77.9.2 | nat | in0 192.168.77.1 ----- eth0 192.168.77.2, lo 10.77.9.2  peer
//!                       fd77:9::2 |     |     fd77:77::1           fd77:77::2         fd77:9::2
//! ```
//!
//! Offloads are off everywhere, so that frames carry finished checksums and fit the wire. The far ends
//! have GRO on, because a veth receives frames redirected by XDP only when it receives through NAPI; its size
//! limit keeps it from merging anything.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::sh::Cmd;

/// A node of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Node {
    /// Terminal A.
    Ta,
    /// Terminal B.
    Tb,
    /// The gateway.
    Gw,
    /// The peer.
    Peer,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Length of a host prefix in bits.
    pub fn host_bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The gateway's interface of a node's link, and the link's number in its addresses.
const LINKS: [(Node, &str, u8); 3] = [
    (Node::Ta, "acc0", 1),
    (Node::Tb, "acc1", 2),
    (Node::Peer, "core0", 9),
];

impl Node {
    /// All nodes.
    pub const ALL: [Self; 4] = [Self::Ta, Self::Tb, Self::Gw, Self::Peer];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ta => "ta",
            Self::Tb => "tb",
            Self::Gw => "gw",
            Self::Peer => "peer",
        }
    }

    /// The node of this name.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "ta" | "a" | "terminal-a" => Some(Self::Ta),
            "tb" | "b" | "terminal-b" => Some(Self::Tb),
            "gw" | "gateway" => Some(Self::Gw),
            "peer" => Some(Self::Peer),
            _ => None,
        }
    }

    fn link(self) -> Option<(&'static str, u8)> {
        LINKS
            .iter()
            .find(|(node, ..)| *node == self)
            .map(|(_, name, number)| (*name, *number))
    }

    /// Its address. The gateway's is the one towards the peer.
    pub fn addr(self, family: Family) -> IpAddr {
        match self.link() {
            Some((_, number)) => addr(family, number, 2),
            None => addr(family, 9, 1),
        }
    }

    /// The gateway's address on this node's link.
    pub fn gateway(self, family: Family) -> IpAddr {
        addr(family, self.link().map_or(9, |(_, number)| number), 1)
    }

    /// The gateway's interface towards this node.
    pub fn gateway_port(self) -> &'static str {
        self.link().map_or("lo", |(name, _)| name)
    }

    /// The identity it authenticates with (RFC 7296 §3.5).
    pub fn identity(self) -> &'static str {
        match self {
            Self::Ta => "terminal-a@towpath.example",
            Self::Tb => "terminal-b@towpath.example",
            Self::Gw => "gateway.towpath.example",
            Self::Peer => "peer.towpath.example",
        }
    }
}

fn addr(family: Family, link: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 77, link, host]),
        Family::V6 => IpAddr::from([0xfd77, link.into(), 0, 0, 0, 0, 0, host.into()]),
    }
}

/// Every address the gateway has.
pub fn gateway_addresses() -> Vec<IpAddr> {
    let link_local = IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]);
    LINKS
        .iter()
        .flat_map(|(node, ..)| Family::ALL.map(|f| node.gateway(f)))
        .chain([link_local])
        .collect()
}

/// The emulator's interfaces, towards the gateway and towards terminal A.
pub const EMULATOR_PORTS: [&str; 2] = ["gw0", "ta0"];

/// The peer's address behind a NAT.
pub fn behind_nat(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 168, 77, 2]),
        Family::V6 => IpAddr::from([0xfd77, 0x77, 0, 0, 0, 0, 0, 2]),
    }
}

/// The namespaces of one lab.
#[derive(Clone, Debug)]
pub struct Net {
    prefix: String,
}

impl Net {
    /// The namespaces of the instance of this name: `tp-ta` ... for `default`, `tp-NAME-ta` ... otherwise.
    pub fn new(instance: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if instance.is_empty() || instance.len() > 24 || !instance.chars().all(plain) {
            bail!("instance {instance:?}: expected 1 to 24 of a-z, 0-9 and -");
        }
        let prefix = if instance == "default" {
            "tp".to_owned()
        } else {
            format!("tp-{instance}")
        };
        Ok(Self { prefix })
    }

    /// The namespace of a node.
    pub fn namespace(&self, node: Node) -> String {
        format!("{}-{}", self.prefix, node.name())
    }

    /// Where a control socket of a node lies. Not in the lab's folder: a socket's path is short.
    pub fn socket(&self, node: Node, kind: &str) -> PathBuf {
        PathBuf::from(format!("/run/{}.{kind}", self.namespace(node)))
    }

    /// Puts a command into a node's namespace, leaving its view of the file system alone: unlike
    /// `ip netns exec`, bpffs stays visible.
    pub fn inside(&self, node: Node, cmd: Cmd) -> Cmd {
        cmd.behind([
            "nsenter".to_owned(),
            format!("--net=/run/netns/{}", self.namespace(node)),
            "--".to_owned(),
        ])
    }

    /// The namespace of the link emulator.
    pub fn emulator(&self) -> String {
        format!("{}-em", self.prefix)
    }

    /// Puts a command into the link emulator's namespace.
    pub fn inside_emulator(&self, cmd: Cmd) -> Cmd {
        cmd.behind([
            "nsenter".to_owned(),
            format!("--net=/run/netns/{}", self.emulator()),
            "--".to_owned(),
        ])
    }

    /// The namespace of the NAT before the peer.
    pub fn nat(&self) -> String {
        format!("{}-nat", self.prefix)
    }

    /// Puts a command into the NAT's namespace.
    pub fn inside_nat(&self, cmd: Cmd) -> Cmd {
        cmd.behind([
            "nsenter".to_owned(),
            format!("--net=/run/netns/{}", self.nat()),
            "--".to_owned(),
        ])
    }

    /// Takes the peer behind a NAT, which gets its place on the wire. What translates is started on top.
    pub fn put_behind_nat(&self) -> Result<()> {
        let (nat, peer) = (self.nat(), self.namespace(Node::Peer));
        let [v4, v6] = Family::ALL.map(|family| (Node::Peer.addr(family), Node::Peer.gateway(family)));
        Cmd::new("ip").args(["netns", "add", &nat]).run()?;
        let off = "tx off tso off gso off gro on";
        let script = format!(
            "set -e
             for what in all default; do
                 echo 0 >/proc/sys/net/ipv4/conf/$what/rp_filter
                 echo 0 >/proc/sys/net/ipv6/conf/$what/accept_dad
                 echo 0 >/proc/sys/net/ipv6/conf/$what/accept_ra
             done
             ip link set lo up
             ip link add in0 type veth peer name eth0 netns {peer}
             ip link set out0 gro_max_size 1500
             for port in in0 out0; do ethtool -K $port {off} && ip link set $port up; done
             ip addr add 192.168.77.1/24 dev in0
             ip addr add fd77:77::1/64 dev in0 nodad
             ip addr add {}/24 dev out0
             ip addr add {}/64 dev out0 nodad
             ip route add default via {} dev out0
             ip route add default via {} dev out0
             for family in -4 -6; do
                 ip $family rule add iif in0 lookup 100
                 ip $family route add local default dev lo table 100
             done",
            v4.0, v6.0, v4.1, v6.1
        );
        self.ip(Node::Peer, "link set eth0 down")?;
        self.ip(Node::Peer, "link set eth0 name out0")?;
        self.ip(Node::Peer, &format!("link set out0 netns {nat}"))?;
        self.inside_nat(Cmd::new("sh").args(["-c", &script])).run()?;
        self.ethtool(Node::Peer, "eth0", "on")?;
        let inside = Family::ALL.map(behind_nat);
        self.ip(Node::Peer, &format!("addr add {}/24 dev eth0", inside[0]))?;
        self.ip(Node::Peer, &format!("addr add {}/64 dev eth0 nodad", inside[1]))?;
        self.ip(Node::Peer, &format!("addr add {}/32 dev lo", v4.0))?;
        self.ip(Node::Peer, &format!("addr add {}/128 dev lo nodad", v6.0))?;
        self.ip(Node::Peer, "link set eth0 up")?;
        self.ip(Node::Peer, "route add default via 192.168.77.1 dev eth0")?;
        self.ip(Node::Peer, "route add default via fd77:77::1 dev eth0")
    }

    /// Whether the namespaces are there.
    pub fn exists(&self) -> bool {
        Node::ALL.iter().all(|n| {
            std::path::Path::new("/run/netns")
                .join(self.namespace(*n))
                .exists()
        })
    }

    /// Makes the namespaces, links, addresses and routes. With `guest`, the peer's addresses are left
    /// out: the guest kernel behind the interface has them. With `linkem`, a namespace for a link emulator sits
    /// between terminal A and the gateway.
    pub fn up(&self, guest: bool, linkem: bool) -> Result<()> {
        for node in Node::ALL {
            let ns = self.namespace(node);
            Cmd::new("ip")
                .args(["netns", "add", &ns])
                .run()
                .context("cannot make a network namespace (root?)")?;
            self.sysctl(
                node,
                &[
                    "all.accept_dad=0",
                    "default.accept_dad=0",
                    "all.accept_ra=0",
                    "default.accept_ra=0",
                ],
            )?;
            if node == Node::Gw {
                self.sysctl(
                    node,
                    &[
                        "default.addr_gen_mode=1",
                        "all.forwarding=1",
                        "default.forwarding=1",
                    ],
                )?;
            }
            self.ip(node, "link set lo up")?;
        }
        for setting in ["ip_forward=1", "conf/all/rp_filter=0", "conf/default/rp_filter=0"] {
            self.write(Node::Gw, &format!("net/ipv4/{setting}"))?;
        }
        for setting in ["conf/all/send_redirects=0", "conf/default/send_redirects=0"] {
            self.write(Node::Gw, &format!("net/ipv4/{setting}"))?;
        }
        if guest {
            self.sysctl(Node::Peer, &["all.disable_ipv6=1", "default.disable_ipv6=1"])?;
        }
        for (node, port, _) in LINKS {
            self.wire(node, port, linkem && node == Node::Ta)?;
            self.link(node, port, guest && node == Node::Peer)?;
        }
        Ok(())
    }

    /// Connects the gateway's interface with the node's, directly or through the emulator.
    fn wire(&self, node: Node, port: &str, linkem: bool) -> Result<()> {
        let far = self.namespace(node);
        if !linkem {
            return self.ip(
                Node::Gw,
                &format!("link add {port} type veth peer name eth0 netns {far}"),
            );
        }
        let em = self.emulator();
        let [near, terminal] = EMULATOR_PORTS;
        Cmd::new("ip").args(["netns", "add", &em]).run()?;
        self.ip(
            Node::Gw,
            &format!("link add {port} type veth peer name {near} netns {em}"),
        )?;
        self.ip(
            node,
            &format!("link add eth0 type veth peer name {terminal} netns {em}"),
        )?;
        for interface in EMULATOR_PORTS {
            let quiet = format!("echo 1 >/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            let off = format!("ethtool -K {interface} tx off tso off gso off gro on");
            let up = format!("ip link set {interface} gro_max_size 1500 && ip link set {interface} up");
            let script = format!("{quiet} && {off} && {up}");
            self.inside_emulator(Cmd::new("sh").args(["-c", &script])).run()?;
        }
        Ok(())
    }

    fn link(&self, node: Node, port: &str, bare: bool) -> Result<()> {
        self.ethtool(Node::Gw, port, "off")?;
        self.ethtool(node, "eth0", "on")?;
        self.ip(node, "link set eth0 gro_max_size 1500")?;
        for family in Family::ALL {
            let bits = if family == Family::V4 { 24 } else { 64 };
            let nodad = if family == Family::V4 { "" } else { "nodad" };
            self.ip(
                Node::Gw,
                &format!("addr add {}/{bits} dev {port} {nodad}", node.gateway(family)),
            )?;
            if !bare {
                self.ip(
                    node,
                    &format!("addr add {}/{bits} dev eth0 {nodad}", node.addr(family)),
                )?;
            }
        }
        // Neighbour discovery for packets of others starts from a link-local address (RFC 4861 §7.2.2).
        self.ip(Node::Gw, &format!("addr add fe80::1/64 dev {port} nodad"))?;
        self.ip(node, "link set eth0 up")?;
        self.ip(Node::Gw, &format!("link set {port} up"))?;
        if !bare {
            for family in Family::ALL {
                self.ip(
                    node,
                    &format!("route add default via {} dev eth0", node.gateway(family)),
                )?;
            }
        }
        Ok(())
    }

    /// Checksum and segmentation offloads off; GRO as told.
    fn ethtool(&self, node: Node, interface: &str, gro: &str) -> Result<()> {
        let off = [
            "-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", gro,
        ];
        self.inside(node, Cmd::new("ethtool").args(off)).run()
    }

    fn ip(&self, node: Node, line: &str) -> Result<()> {
        self.inside(node, Cmd::new("ip").args(line.split_whitespace()))
            .run()
    }

    /// Sets `net.ipv6.conf.SCOPE.KEY=VALUE` entries.
    fn sysctl(&self, node: Node, settings: &[&str]) -> Result<()> {
        settings
            .iter()
            .try_for_each(|s| self.write(node, &format!("net/ipv6/conf/{}", s.replacen('.', "/", 1))))
    }

    /// Writes `PATH=VALUE` under /proc/sys, in the node's namespace.
    fn write(&self, node: Node, setting: &str) -> Result<()> {
        let (path, value) = setting.split_once('=').unwrap_or((setting, "1"));
        let script = format!("echo {value} >/proc/sys/{path}");
        self.inside(node, Cmd::new("sh").args(["-c", &script])).run()
    }

    /// Process ids inside the namespaces.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        let all = Node::ALL.map(|node| self.namespace(node));
        for namespace in all.into_iter().chain([self.emulator(), self.nat()]) {
            if let Ok(out) = Cmd::new("ip").args(["netns", "pids", &namespace]).output() {
                found.extend(
                    out.stdout
                        .split_whitespace()
                        .filter_map(|w| w.parse::<u32>().ok()),
                );
            }
        }
        found
    }

    /// Removes the namespaces that are there.
    pub fn down(&self) -> Result<()> {
        let all = Node::ALL.map(|node| self.namespace(node));
        for ns in all.into_iter().chain([self.emulator(), self.nat()]) {
            if std::path::Path::new("/run/netns").join(&ns).exists() {
                Cmd::new("ip").args(["netns", "del", &ns]).run()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_plan_is_the_drawn_one() {
        assert_eq!(Node::Ta.addr(Family::V4).to_string(), "10.77.1.2");
        assert_eq!(Node::Tb.addr(Family::V6).to_string(), "fd77:2::2");
        assert_eq!(Node::Peer.addr(Family::V6).to_string(), "fd77:9::2");
        assert_eq!(Node::Tb.gateway(Family::V4).to_string(), "10.77.2.1");
        assert_eq!(Node::Gw.addr(Family::V4).to_string(), "10.77.9.1");
        assert_eq!(gateway_addresses().len(), 7);
    }

    #[test]
    fn instances_have_namespaces_of_their_own() {
        assert_eq!(
            Net::new("default").expect("a good name").namespace(Node::Gw),
            "tp-gw"
        );
        assert_eq!(
            Net::new("t-7").expect("a good name").namespace(Node::Ta),
            "tp-t-7-ta"
        );
        assert!(Net::new("../x").is_err() && Net::new("").is_err());
    }
}
