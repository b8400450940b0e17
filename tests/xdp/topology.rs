//! A gateway in a network namespace of its own, with the XDP program on it.
//!
//! ```text
//!   terminal 10.77.1.2                gateway                     peer 10.77.9.2
//!   fd77:1::2  ┌────────┐   access ┌───────────┐ core   ┌────────┐ fd77:9::2
//!              │   t0 ──┼──────────┤           ├────────┼── p0   │
//!              └────────┘ .1 /24   │           │ .1 /24 └────────┘
//!                         mtu 1400 ├── bare    │   port without AF_XDP socket, 10.77.5.1
//!                                  └── other ──┘   no port at all, 10.77.8.1
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, thread};

use nix::sched::{CloneFlags, setns};
use towpath_afxdp::{Config, Copying, PortQueue, Sockets};
use towpath_bpf::{Dataplane, Mode, Options, PortSpec, Role, net_device, unload};

pub(crate) const TERMINAL_MAC: &str = "02:00:00:00:01:02";
pub(crate) const PEER_MAC: &str = "02:00:00:00:09:02";

/// The namespaces of one test; removed when dropped.
pub(crate) struct Topology {
    name: String,
}

impl Topology {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "tpx{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let topology = Self { name };
        for role in ["gw", "t", "p"] {
            run("ip", &["netns", "add", &topology.namespace(role)]);
        }
        topology.link("access", "02:00:00:00:01:01", Some(("t", "t0", TERMINAL_MAC)));
        topology.link("core", "02:00:00:00:09:01", Some(("p", "p0", PEER_MAC)));
        topology.link("bare", "02:00:00:00:05:01", None);
        topology.link("other", "02:00:00:00:08:01", None);
        topology.addresses();
        topology
    }

    /// Name of a namespace: `gw`, `t` or `p`.
    pub(crate) fn namespace(&self, role: &str) -> String {
        format!("{}{role}", self.name)
    }

    /// Where the gateway of this test pins its maps.
    pub(crate) fn pin_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// Runs `work` on a thread inside a namespace.
    pub(crate) fn inside<R: Send>(&self, role: &str, work: impl FnOnce() -> R + Send) -> R {
        let path = format!("/run/netns/{}", self.namespace(role));
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let namespace = fs::File::open(path).expect("the namespace was made above");
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
                work()
            });
            match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// `ip` inside a namespace.
    pub(crate) fn ip(&self, role: &str, arguments: &str) {
        let namespace = self.namespace(role);
        let mut all = vec!["-n", namespace.as_str()];
        all.extend(arguments.split(' '));
        run("ip", &all);
    }

    fn link(&self, name: &str, mac: &str, far: Option<(&str, &str, &str)>) {
        let (far_role, far_name, far_mac) = far.unwrap_or(("gw", "", "02:00:00:00:ff:01"));
        let far_name = if far_name.is_empty() {
            format!("{name}x")
        } else {
            far_name.to_owned()
        };
        let far_namespace = self.namespace(far_role);
        let far_part = format!("peer name {far_name} address {far_mac} netns {far_namespace}");
        self.ip(
            "gw",
            &format!("link add {name} address {mac} type veth {far_part}"),
        );
        self.ip("gw", &format!("link set {name} up"));
        self.ip(far_role, &format!("link set {far_name} up"));
        for (role, device) in [("gw", name), (far_role, far_name.as_str())] {
            // Frames of local sockets would carry unfinished checksums.
            let namespace = self.namespace(role);
            let off = ["tx", "off", "tso", "off", "gso", "off"];
            let mut all = vec!["netns", "exec", namespace.as_str(), "ethtool", "-K", device];
            all.extend(off);
            run("ip", &all);
        }
    }

    fn addresses(&self) {
        let gw = self.namespace("gw");
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
        ] {
            run("ip", &["netns", "exec", &gw, "sysctl", "-q", "-w", setting]);
        }
        for (device, net) in [("access", 1), ("core", 9), ("bare", 5), ("other", 8)] {
            self.ip("gw", &format!("addr add 10.77.{net}.1/24 dev {device}"));
            self.ip("gw", &format!("addr add fd77:{net}::1/64 dev {device} nodad"));
        }
        self.ip("gw", "link set access mtu 1400");
        for (address, device, mac) in [
            ("10.77.1.2", "access", TERMINAL_MAC),
            ("fd77:1::2", "access", TERMINAL_MAC),
            ("10.77.1.3", "access", "02:00:00:00:01:03"),
            ("10.77.9.2", "core", PEER_MAC),
            ("fd77:9::2", "core", PEER_MAC),
            ("10.77.8.2", "other", "02:00:00:00:08:02"),
        ] {
            self.ip(
                "gw",
                &format!("neigh replace {address} dev {device} lladdr {mac} nud permanent"),
            );
        }
        for (role, device, net, gateway_mac) in [
            ("t", "t0", 1, "02:00:00:00:01:01"),
            ("p", "p0", 9, "02:00:00:00:09:01"),
        ] {
            self.ip(role, &format!("addr add 10.77.{net}.2/24 dev {device}"));
            self.ip(role, &format!("addr add fd77:{net}::2/64 dev {device} nodad"));
            self.ip(role, &format!("link set {device} mtu 1400"));
            self.ip(role, &format!("route add default via 10.77.{net}.1"));
            self.ip(role, &format!("-6 route add default via fd77:{net}::1"));
            for address in [format!("10.77.{net}.1"), format!("fd77:{net}::1")] {
                self.ip(
                    role,
                    &format!("neigh replace {address} dev {device} lladdr {gateway_mac} nud permanent"),
                );
            }
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for dir in ["t", "p", ""] {
            let _ = unload(&self.pin_dir().join(dir));
        }
        for role in ["gw", "t", "p"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(role)])
                .status();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("iproute2 and ethtool are installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {}: {errors}",
        arguments.join(" ")
    );
}

/// The object `cargo xtask build-ebpf` builds.
pub(crate) fn object() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests is a folder of the repository");
    let object = xtask::ebpf::object_path(root);
    assert!(
        object.is_file(),
        "{} is missing: run `cargo xtask build-ebpf`",
        object.display()
    );
    object
}

/// A gateway's data plane on the topology, to be called inside `gw`.
pub(crate) fn load(topology: &Topology, mode: Mode) -> Dataplane {
    let port = |name: &str, role| PortSpec {
        name: name.into(),
        role,
    };
    let options = Options {
        pin_dir: topology.pin_dir(),
        ports: vec![
            port("access", Role::Access),
            port("core", Role::Core),
            port("bare", Role::Access),
        ],
        mode,
        ..Options::default()
    };
    Dataplane::load(&object(), &options).unwrap_or_else(|error| panic!("{error}"))
}

/// AF_XDP sockets on `access` and `core`, known to the program.
pub(crate) fn open_sockets(dataplane: &mut Dataplane) -> Sockets {
    let config = Config {
        copying: Copying::Always,
        ..Config::default()
    };
    let ports = ["access", "core"].map(|name| {
        let device = net_device(name).expect("made by the topology");
        PortQueue {
            ifindex: device.ifindex,
            queue: 0,
        }
    });
    let sockets = Sockets::open(&config, &ports).unwrap_or_else(|error| panic!("{error}"));
    for (port, socket) in sockets.descriptors() {
        dataplane
            .set_xsk(port.ifindex, port.queue, socket)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    sockets
}
