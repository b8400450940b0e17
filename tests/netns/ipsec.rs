//! Every protocol, mode and family under manual keys, between two real kernels with the gateway in the middle.
//!
//! ```text
//!   ta: Linux XFRM ══ segment keys ══► gw (towpath: open, relay, seal) ══ peer's keys ══► peer: Linux XFRM
//!   (guest kernel)                                                                        (guest kernel)
//! ```
//!
//! In tunnel mode a plain host behind the peer takes part, too: `peer --- host`, a namespace inside the guest.
//!
//! Both ends are kernels of their own (user-mode Linux) that were given keys by `ip xfrm`; neither knows the other's. One
//! pair of guests serves all combinations: SAs and policies are swapped between them.

use std::time::Duration;

use towpath_base::sa::Mode;
use xtask::lab::{Family, Node, PeerKind};
use xtask::proof::stack::{Stack, programs};
use xtask::proof::{runner, stack_for_test_with};
use xtask::sh::Cmd;

/// How long one command may take: a guest's user space is slow, and slower on a loaded machine.
const LIMIT: Duration = Duration::from_secs(60);

/// What the packets are protected with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocols {
    Esp,
    Ah,
    EspInAh,
}

impl Protocols {
    fn has_esp(self) -> bool {
        self != Self::Ah
    }

    fn has_ah(self) -> bool {
        self != Self::Esp
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cipher {
    Gcm,
    Cbc,
}

/// One combination.
#[derive(Debug, Clone, Copy)]
struct Case {
    family: Family,
    protocols: Protocols,
    mode: Mode,
    cipher: Cipher,
    esn: bool,
    /// First of the two SPIs; the name of the SA.
    spi: u32,
    /// The traffic is that of a plain host behind the peer, which is its security gateway (spec row T13).
    behind: bool,
}

/// Keys of one direction of one segment.
#[derive(Clone)]
struct Keys {
    cipher: String,
    integrity: String,
    ah: String,
}

impl Case {
    fn keys(&self, direction: u8) -> Keys {
        let hex = |salt: u8, len: usize| -> String {
            let seed = (self.spi as u8).wrapping_mul(31) ^ direction.wrapping_mul(67) ^ salt;
            (0..len)
                .map(|i| format!("{:02x}", seed.wrapping_add((i as u8).wrapping_mul(7))))
                .collect()
        };
        match self.cipher {
            Cipher::Gcm => Keys {
                cipher: hex(1, 36),
                integrity: String::new(),
                ah: hex(3, 32),
            },
            Cipher::Cbc => Keys {
                cipher: hex(1, 16),
                integrity: hex(2, 32),
                ah: hex(3, 32),
            },
        }
    }

    fn name(&self) -> String {
        format!("case-{:x}", self.spi)
    }

    fn ends(&self) -> [String; 2] {
        [Node::Ta, Node::Peer].map(|node| node.addr(self.family).to_string())
    }

    /// Where the terminal's packets go, and the selector that says so.
    fn target(&self) -> (String, String) {
        match (self.behind, self.family) {
            (false, _) => {
                let [_, peer] = self.ends();
                (peer.clone(), peer)
            }
            (true, Family::V4) => ("10.88.0.2".into(), "10.88.0.0/24".into()),
            (true, Family::V6) => ("fd88::2".into(), "fd88::/64".into()),
        }
    }

    /// `towpath sa add`.
    fn add(&self, stack: &Stack) {
        let [terminal, peer] = self.ends();
        let (spi_in, spi_out) = (format!("{:x}", self.spi), format!("{:x}", self.spi + 1));
        let name = self.name();
        let mode = self.mode.to_string();
        let mut args = vec![
            "sa",
            "add",
            &name,
            "--subscriber",
            "ta",
            "--terminal",
            &terminal,
            "--peer",
            &peer,
            "--spi-in",
            &spi_in,
            "--spi-out",
            &spi_out,
            "--mode",
            &mode,
        ];
        if self.protocols.has_esp() {
            let suite = match self.cipher {
                Cipher::Gcm => "aes256gcm16",
                Cipher::Cbc => "aes128-sha256",
            };
            args.extend(["--suite", suite]);
        }
        if self.protocols.has_ah() {
            args.extend(["--ah", "sha256", "--ah-align8"]);
        }
        if self.esn {
            args.push("--esn");
        }
        let (_, selector) = self.target();
        if self.behind {
            args.extend(["--remote-ts", &selector]);
        }
        let mut keys = Vec::new();
        for (direction, name) in ["peer_in", "peer_out", "segment_in", "segment_out"]
            .iter()
            .enumerate()
        {
            let key = self.keys(direction as u8);
            if self.protocols.has_esp() {
                keys.push(format!("{name}={}{}", key.cipher, key.integrity));
            }
            if self.protocols.has_ah() {
                keys.push(format!("ah_{name}={}", key.ah));
            }
        }
        args.extend(keys.iter().flat_map(|key| ["--key", key.as_str()]));
        stack.cli(&args).expect("the SA is added");
    }

    /// What a guest's kernel is told. `inward` is the direction of what the terminal receives, `outward` of what it sends.
    fn script(&self, at: Node, inward: u8, outward: u8) -> String {
        let [terminal, peer] = self.ends();
        let mut script = "set -e; ip xfrm policy flush; ip xfrm state flush\n".to_owned();
        let ways = [
            (&peer, &terminal, self.spi, inward),
            (&terminal, &peer, self.spi + 1, outward),
        ];
        let esn = if self.esn {
            "replay-window 64 flag esn"
        } else {
            "replay-window 32"
        };
        for (source, destination, spi, direction) in ways {
            let keys = self.keys(direction);
            let mode = self.mode;
            let sends = *source == at.addr(self.family).to_string();
            let mut template = String::new();
            if self.protocols.has_esp() {
                let algorithms = match self.cipher {
                    Cipher::Gcm => format!("aead 'rfc4106(gcm(aes))' 0x{} 128", keys.cipher),
                    Cipher::Cbc => format!(
                        "auth-trunc 'hmac(sha256)' 0x{} 128 enc 'cbc(aes)' 0x{}",
                        keys.integrity, keys.cipher
                    ),
                };
                script += &format!(
                    "ip xfrm state add src {source} dst {destination} proto esp spi 0x{spi:x} reqid 1 mode {mode} \
                     {esn} {algorithms}\n"
                );
                template += &format!(" tmpl src {source} dst {destination} proto esp reqid 1 mode {mode}");
            }
            if self.protocols.has_ah() {
                // Around ESP, AH is in transport mode in ESP's outer header.
                let mode = if self.protocols.has_esp() {
                    Mode::Transport
                } else {
                    mode
                };
                script += &format!(
                    "ip xfrm state add src {source} dst {destination} proto ah spi 0x{spi:x} reqid 2 mode {mode} {esn} \
                     auth-trunc 'hmac(sha256)' 0x{} 128\n",
                    keys.ah
                );
                template += &format!(" tmpl src {source} dst {destination} proto ah reqid 2 mode {mode}");
            }
            let (_, far) = self.target();
            let (from, to) = if *source == peer {
                (&far, &terminal)
            } else {
                (&terminal, &far)
            };
            // What is forwarded to a host behind is checked on its way there, too.
            let directions: &[&str] = if sends { &["out"] } else { &["in", "fwd"] };
            for direction in directions {
                script +=
                    &format!("ip xfrm policy add src {from} dst {to} dir {direction} priority 1{template}\n");
            }
        }
        script
    }
}

/// Both guests, and Towpath between them.
struct World {
    stack: Stack,
    pump: String,
}

impl World {
    fn up(name: &str) -> Self {
        let mut stack = stack_for_test_with(name, PeerKind::Kernel, "").expect("lab and towpath");
        // The terminal is registered; from here on a kernel takes its place.
        stack
            .lab
            .stand_in(Node::Ta, PeerKind::Kernel)
            .expect("a second guest");
        runner::start_server(&mut stack.lab, Node::Peer).expect("the transfer server starts");
        let xtask = programs().expect("a test has a folder").join("xtask");
        let pump = stack.lab.lend(Node::Ta, &xtask).expect("a program for the guest");
        let pump = pump.display().to_string();
        Self { stack, pump }
    }

    /// A plain host behind the peer: a namespace of the guest's own, behind its forwarding.
    fn host_behind(&self) {
        let xtask = programs().expect("a test has a folder").join("xtask");
        let pump = self
            .stack
            .lab
            .lend(Node::Peer, &xtask)
            .expect("a program for the guest");
        let pump = pump.display();
        self.run(
            Node::Peer,
            format!(
                "set -e; ip netns add inner; ip link add h0 type veth peer name h1 netns inner\n\
                 echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding\n\
                 ethtool -K h0 tx off tso off gso off gro off; ip link set h0 up; ip -n inner link set lo up\n\
                 ip netns exec inner ethtool -K h1 tx off tso off gso off gro off; ip -n inner link set h1 up\n\
                 ip addr add 10.88.0.1/24 dev h0; ip addr add fd88::1/64 dev h0 nodad\n\
                 ip -n inner addr add 10.88.0.2/24 dev h1; ip -n inner addr add fd88::2/64 dev h1 nodad\n\
                 ip -n inner route add default via 10.88.0.1; ip -n inner route add default via fd88::1\n\
                 setsid ip netns exec inner {pump} pump serve >/run/inner.log 2>&1 </dev/null &\n\
                 for i in {{1..400}}; do grep -q ready /run/inner.log && exit 0; sleep .05; done; exit 1"
            ),
        );
    }

    fn run(&self, node: Node, script: String) -> String {
        let out = self
            .stack
            .lab
            .exec(node, &Cmd::new(script.clone()), LIMIT)
            .expect("the guest answers");
        assert!(out.ok(), "{script}\n{}\n{}", out.all(), self.complaints());
        out.stdout
    }

    fn complaints(&self) -> String {
        let counters = self.stack.cli(&["stats"]).map(|stats| stats.to_string());
        format!(
            "{}\n{}",
            counters.unwrap_or_default(),
            self.stack.tail("towpath", 20)
        )
    }

    /// Ping both ways, and TCP both ways with checksums computed at each end.
    fn prove(&self, case: Case, bytes: u32) {
        case.add(&self.stack);
        // Directions of keys: 0 peer_in, 1 peer_out, 2 segment_in, 3 segment_out.
        self.run(Node::Peer, case.script(Node::Peer, 0, 1));
        self.run(Node::Ta, case.script(Node::Ta, 2, 3));
        let [terminal, _] = case.ends();
        let (target, _) = case.target();
        let capture = self
            .stack
            .lab
            .capture(Node::Peer, "eth0")
            .expect("tcpdump starts");
        let ping = "ping -q -c 3 -i 0.1 -W 10";
        let host = if case.behind { "ip netns exec inner " } else { "" };
        for (node, place, to) in [(Node::Ta, "", &target), (Node::Peer, host, &terminal)] {
            let said = self.run(node, format!("{place}{ping} {to}"));
            assert!(
                said.contains(" 0% packet loss"),
                "{case:?}: {said}\n{}",
                self.complaints()
            );
        }
        let pump = &self.pump;
        self.run(
            Node::Ta,
            format!("{pump} pump put {target} {bytes} && {pump} pump get {target} {bytes}"),
        );
        let frames = capture.stop().expect("the capture is readable");
        let expected = if case.protocols.has_ah() { 51 } else { 50 };
        let own = frames
            .iter()
            .filter_map(|frame| outer_protocol(&frame.bytes))
            .collect::<Vec<_>>();
        let protected = own.iter().filter(|protocol| **protocol == expected).count();
        let clear = own
            .iter()
            .filter(|protocol| matches!(protocol, 1 | 6 | 128))
            .count();
        assert!(
            protected > 20 && clear == 0,
            "{case:?}: {protected} protected, {clear} in the clear"
        );
        self.stack
            .cli(&["sa", "remove", &case.name()])
            .expect("the SA is removed");
        println!("{case:?}: {protected} packets");
    }
}

/// Protocol behind the IP header of a frame, ND left out.
fn outer_protocol(frame: &[u8]) -> Option<u8> {
    match (frame.get(12..14)?, frame.get(14..)?) {
        ([0x08, 0x00], ip) => ip.get(9).copied(),
        // ICMPv6 echo as 128; neighbour discovery is not asked for.
        ([0x86, 0xdd], ip) => match ip.get(6)? {
            58 => ip.get(40).copied().filter(|kind| *kind == 128),
            other => Some(*other),
        },
        _ => None,
    }
}

/// All combinations that make a difference, in an order that alternates families.
fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for protocols in [Protocols::Esp, Protocols::Ah, Protocols::EspInAh] {
        for mode in [Mode::Transport, Mode::Tunnel] {
            for cipher in [Cipher::Gcm, Cipher::Cbc] {
                if cipher == Cipher::Cbc && protocols == Protocols::Ah {
                    continue;
                }
                for esn in [false, true] {
                    for family in Family::ALL {
                        let spi = 0xb000_0010 + 4 * cases.len() as u32;
                        cases.push(Case {
                            family,
                            protocols,
                            mode,
                            cipher,
                            esn,
                            spi,
                            behind: false,
                        });
                    }
                }
            }
        }
    }
    cases
}

/// The terminal and a plain host behind the peer (the patent's Fig. 9).
fn behind(family: Family) -> Case {
    Case {
        family,
        protocols: Protocols::Esp,
        mode: Mode::Tunnel,
        cipher: Cipher::Gcm,
        esn: false,
        spi: if family == Family::V4 {
            0xb000_1000
        } else {
            0xb000_1004
        },
        behind: true,
    }
}

#[test]
#[ignore = "needs root: network namespaces, XDP and two guest kernels"]
fn two_kernels_and_a_plain_host_behind_one_talk_through_the_gateway() {
    let world = World::up("ipsec");
    // What no other test of the lab has; the long one has every combination.
    let wanted = [
        (Protocols::Ah, Mode::Transport, Cipher::Gcm, true, Family::V6),
        (Protocols::EspInAh, Mode::Tunnel, Cipher::Gcm, true, Family::V4),
    ];
    for case in all() {
        let of = (case.protocols, case.mode, case.cipher, case.esn, case.family);
        if wanted.contains(&of) {
            world.prove(case, 64 << 10);
        }
    }
    world.host_behind();
    for family in Family::ALL {
        world.prove(behind(family), 64 << 10);
    }
    world.stack.stop();
}

pub(crate) mod long {
    use super::*;

    #[test]
    #[ignore = "needs root: network namespaces, XDP and two guest kernels"]
    fn long_every_protocol_mode_cipher_esn_and_family_between_two_kernels() {
        let world = World::up("ipsecl");
        for case in all() {
            world.prove(case, 256 << 10);
        }
        world.host_behind();
        for family in Family::ALL {
            world.prove(behind(family), 256 << 10);
        }
        world.stack.stop();
    }
}
