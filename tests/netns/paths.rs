//! What paths do to protected packets beside carrying them: cut them, find them too big, and keep NATs' mappings alive.
//!
//! ```text
//!   ta: sealed by the test ──► gw (towpath) ──► peer: opened by the test       and back
//!   ta: agent, TUN device  ══► gw (towpath) ══► a core port that was narrowed ══► peer: charon
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, UdpEncap};
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant};
use towpath_common::wire::checksum;
use towpath_ipsec::reassembly::{Limits, Outcome, Reassembler};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{InboundSa, OutboundSa, fragment, icmp, keepalive, locate};
use xtask::lab::capture::read;
use xtask::lab::state::wait_for;
use xtask::lab::{Family, Frame, Node, PeerKind};
use xtask::proof::stack::{Stack, programs};
use xtask::proof::stack_for_test;
use xtask::sh::Cmd;

use crate::manual::{add_changed, plain};
use crate::ping;

const NOW: Instant = Instant::from_secs(1);
/// How long a packet may take through a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room around a packet that is sealed or opened.
const ROOM: usize = 128;

/// The one at the other end of the SA.
fn other(node: Node) -> Node {
    if node == Node::Ta { Node::Peer } else { Node::Ta }
}

/// One end of the SA.
struct End {
    /// From this node to the gateway.
    ethernet: Vec<u8>,
    outbound: OutboundSa<SoftTransform>,
    inbound: InboundSa<SoftTransform>,
}

/// Both ends, and the lab between them.
struct Wire<'s> {
    stack: &'s Stack,
    family: Family,
    ends: [End; 2],
    rng: SeededRng,
    name: u16,
}

/// The MAC address of an interface.
fn mac(stack: &Stack, node: Node, interface: &str) -> Vec<u8> {
    let cmd = Cmd::line(&format!("ip -o link show dev {interface}"));
    let out = stack.lab.exec(node, &cmd, crate::LIMIT).expect("ip runs").stdout;
    let mut words = out.split_whitespace();
    words
        .find(|word| *word == "link/ether")
        .expect("an Ethernet interface");
    let octets = words.next().expect("an address").split(':');
    octets
        .map(|octet| u8::from_str_radix(octet, 16).expect("hex"))
        .collect()
}

fn ethernet(stack: &Stack, node: Node, family: Family) -> Vec<u8> {
    let gateway = mac(stack, Node::Gw, node.gateway_port());
    let kind = match family {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    [gateway, mac(stack, node, "eth0"), kind.to_vec()].concat()
}

impl<'s> Wire<'s> {
    fn new(stack: &'s Stack, family: Family, [terminal, peer]: &[ChildSa; 2]) -> Self {
        let end = |node, sa: &ChildSa| End {
            ethernet: ethernet(stack, node, family),
            outbound: OutboundSa::new(&SoftEsp, NOW, sa).expect("keys fit"),
            inbound: InboundSa::new(&SoftEsp, NOW, sa).expect("keys fit"),
        };
        Self {
            stack,
            family,
            ends: [end(Node::Ta, terminal), end(Node::Peer, &peer.mirrored())],
            rng: SeededRng::new(7),
            name: 0,
        }
    }

    fn end(&mut self, node: Node) -> &mut End {
        &mut self.ends[usize::from(node == Node::Peer)]
    }

    fn addr(&self, node: Node) -> IpAddr {
        node.addr(self.family)
    }

    /// A plain UDP packet of `len` bytes from `node` to the other end; over IPv4 with "don't fragment" if asked for.
    fn plain(&self, node: Node, len: usize, whole: bool) -> Vec<u8> {
        let header = if self.family == Family::V4 { 20 } else { 40 };
        let body: Vec<u8> = (0..len - header - 8).map(|at| (at / 7) as u8).collect();
        let mut packet = plain(self.family, &body);
        if self.family == Family::V4 {
            if node == Node::Peer {
                for at in 12..16 {
                    packet.swap(at, at + 4);
                }
            }
            packet[6] = if whole { 0x40 } else { 0 };
            packet[10..12].fill(0);
            let sum = checksum(&packet[..20]).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
        } else if node == Node::Peer {
            for at in 8..24 {
                packet.swap(at, at + 16);
            }
        }
        self.checksum(&mut packet);
        assert_eq!(packet.len(), len);
        packet
    }

    /// Behind UDP in transport mode whoever opens repairs it (RFC 3948 §3.1.2), so it is right from the start.
    fn checksum(&self, packet: &mut [u8]) {
        let (addresses, at) = if self.family == Family::V4 {
            (12, 20)
        } else {
            (8, 40)
        };
        let len = packet.len() - at;
        packet[at + 6..at + 8].fill(0);
        let pseudo = [
            &packet[addresses..at],
            &(len as u32).to_be_bytes(),
            &[0, 0, 0, 17],
        ]
        .concat();
        let sum = checksum(&[&pseudo, &packet[at..]].concat()).to_be_bytes();
        packet[at + 6..at + 8].copy_from_slice(&sum);
    }

    /// Sealed by `node`: the packet outside.
    fn seal(&mut self, node: Node, packet: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; packet.len() + 2 * ROOM];
        buffer[ROOM..ROOM + packet.len()].copy_from_slice(packet);
        let mut sealed = PacketBuf::new(&mut buffer, ROOM, packet.len()).expect("it fits");
        let mut rng = SeededRng::new(11);
        std::mem::swap(&mut rng, &mut self.rng);
        let outcome = self.end(node).outbound.seal(NOW, &mut sealed, &mut rng);
        self.rng = rng;
        outcome.expect("it is sealed");
        sealed.bytes().to_vec()
    }

    /// What `node` finds in a packet of the SA: the plain packet. `None` if it is none or is not accepted.
    fn open(&mut self, node: Node, packet: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = vec![0; packet.len()];
        buffer.copy_from_slice(packet);
        let mut opened = PacketBuf::new(&mut buffer, 0, packet.len())?;
        self.end(node).inbound.open(NOW, &mut opened).ok()?;
        Some(opened.bytes().to_vec())
    }

    /// Sends packets from `from`, and waits until `at` has seen what `enough` looks for. Returns what it has seen.
    fn pass(
        &self,
        from: Node,
        packets: &[Vec<u8>],
        at: Node,
        enough: impl Fn(&[Vec<u8>]) -> bool,
    ) -> Vec<Vec<u8>> {
        let lab = &self.stack.lab;
        let ethernet = &self.ends[usize::from(from == Node::Peer)].ethernet;
        let frames: Vec<Frame> = packets
            .iter()
            .enumerate()
            .map(|(index, packet)| Frame {
                at: Duration::from_millis(5 * index as u64),
                bytes: [ethernet, packet.as_slice()].concat(),
            })
            .collect();
        let capture = lab.capture(at, "eth0").expect("tcpdump starts");
        lab.inject(from, &frames).expect("tcpreplay runs");
        // Frames of the node's own are not what it was sent.
        let to_node = &mac(self.stack, at, "eth0");
        let packets = |frames: Vec<Frame>| -> Vec<Vec<u8>> {
            let frames = frames
                .into_iter()
                .filter(|frame| frame.bytes.starts_with(to_node));
            frames
                .filter_map(|frame| Some(frame.bytes.get(14..)?.to_vec()))
                .collect()
        };
        let seen = || read(capture.file()).map(packets).unwrap_or_default();
        assert!(
            wait_for(PATIENCE, || enough(&seen())),
            "{} {} -> {}: not in {} packets\n{}\n{}",
            self.family,
            from.name(),
            at.name(),
            seen().len(),
            self.stack.tail("towpath", 20),
            self.stack.cli(&["stats"]).expect("the daemon counts")
        );
        seen()
    }

    /// The fragments of `packets` put together, and what is whole as it is.
    fn together(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut reassembler = Reassembler::new(Limits::default());
        let whole = packets
            .iter()
            .filter_map(|packet| match reassembler.push(NOW, packet) {
                Ok(Outcome::Complete(whole)) => Some(whole.to_vec()),
                Ok(Outcome::Whole) => Some(packet.clone()),
                _ => None,
            });
        whole.collect()
    }

    /// Packets of the SA towards `node`, put together where they were cut.
    fn protected(&self, node: Node, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let spi = self.ends[usize::from(node == Node::Peer)].inbound.spi();
        let together = Self::together(packets).into_iter();
        together
            .filter(|packet| locate::esp(packet).is_ok_and(|at| at.spi == spi))
            .collect()
    }

    /// Sends what `from` sealed, in one or more packets; returns the one packet of the SA that the other end got.
    fn one(&self, from: Node, packets: &[Vec<u8>]) -> Vec<u8> {
        let to = other(from);
        let seen = self.pass(from, packets, to, |seen| !self.protected(to, seen).is_empty());
        let mut got = self.protected(to, &seen);
        assert_eq!(got.len(), 1, "{} to {}", self.family, to.name());
        got.remove(0)
    }

    /// Sends a packet of `len` bytes sealed from `from`; it arrives. Returns what was seen of it outside.
    fn arrives(&mut self, from: Node, len: usize, whole: bool) -> Vec<Vec<u8>> {
        let sent = self.plain(from, len, whole);
        let sealed = self.seal(from, &sent);
        let to = other(from);
        let seen = self.pass(from, &[sealed], to, |seen| !self.protected(to, seen).is_empty());
        let got = self.protected(to, &seen).remove(0);
        let opened = self.open(to, &got).expect("it opens");
        self.same(&opened, &sent);
        let ours = |packet: &Vec<u8>| {
            let carried = locate::carried(packet).ok();
            carried.is_some_and(|carried| carried.protocol == 50 || carried.fragment)
        };
        seen.into_iter().filter(ours).collect()
    }

    /// But for hops.
    fn same(&self, got: &[u8], sent: &[u8]) {
        let skip = if self.family == Family::V4 { 12 } else { 8 };
        assert_eq!(got.len(), sent.len(), "{}", self.family);
        assert!(got[skip..] == sent[skip..], "{}: other bytes", self.family);
    }

    fn count(&self, reason: DropReason) -> u64 {
        self.stack.counter(reason.name()).expect("the daemon counts")
    }

    /// Fragments of what `from` sealed, last first: they arrive as one packet, in pieces no longer than those.
    fn fragments(&mut self, from: Node) {
        const PIECE: u16 = 904;
        let sent = self.plain(from, 2500, false);
        let sealed = self.seal(from, &sent);
        self.name += 1;
        let mut pieces = pieces(&sealed, PIECE, self.name.into());
        assert!(pieces.len() >= 3);
        pieces.reverse();
        let to = other(from);
        let seen = self.pass(from, &pieces, to, |seen| !self.protected(to, seen).is_empty());
        let longest = seen.iter().map(Vec::len).max();
        assert!(longest <= Some(PIECE.into()), "{longest:?}");
        let got = self.protected(to, &seen).remove(0);
        let opened = self
            .open(to, &got)
            .expect("fragments are opened when they are together");
        self.same(&opened, &sent);

        // Contradicting fragments end their datagram; the next one is whole.
        let before = self.count(DropReason::ReassemblyOverlap);
        let sealed = self.seal(from, &sent);
        self.name += 1;
        let mut pieces = self::pieces(&sealed, PIECE, self.name.into());
        let mut forged = pieces[0].clone();
        *forged.last_mut().expect("bytes") ^= 1;
        pieces.insert(1, forged);
        let good = self.plain(from, 100, false);
        pieces.push(self.seal(from, &good));
        let got = self.one(from, &pieces);
        let opened = self.open(to, &got).expect("it opens");
        self.same(&opened, &good);
        assert!(self.count(DropReason::ReassemblyOverlap) > before);
    }

    /// A router behind the gateway finds a packet of `from` too big: `from` is told what it can check, and so is the sender
    /// inside the SA of what comes later.
    fn too_big(&mut self, from: Node, mtu: u16) {
        let to = other(from);
        let first = self.plain(from, 1400, true);
        let sealed = self.seal(from, &first);
        let outside = self.one(from, &[sealed]);

        let router = match self.addr(to) {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + 70)),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() + 70)),
        };
        let told = told(router, &outside, mtu);
        // What quotes a packet that was never sent is not believed.
        let mut forged_about = outside.clone();
        let at = locate::esp(&outside).expect("ESP").esp_at + 4;
        forged_about[at..at + 4].copy_from_slice(&0x7fff_0000_u32.to_be_bytes());
        let forged = self::told(router, &forged_about, 600);
        let before = self.count(DropReason::IcmpNotOurs);
        let about = |packets: &[Vec<u8>]| -> Vec<icmp::TooBig> {
            let about = packets
                .iter()
                .filter_map(|packet| icmp::read_too_big(packet).ok());
            about.filter(|told| told.mtu == mtu || told.mtu == 600).collect()
        };
        let seen = self.pass(to, &[forged, told], from, |seen| !about(seen).is_empty());
        let heard = about(&seen);
        assert_eq!(heard.len(), 1, "{}: {heard:?}", self.family);
        let sequence = self.end(from).outbound.last_sequence();
        assert_eq!(u64::from(heard[0].sequence), sequence, "as its sender counts");
        assert_eq!((heard[0].source, heard[0].mtu), (self.addr(from), mtu));
        assert_eq!(self.count(DropReason::IcmpNotOurs), before + 1);

        // From now on a packet that does not fit ends at the gateway, and its sender is told inside the SA.
        let sealed = self.seal(from, &first);
        let seen = self.pass(from, &[sealed], from, |seen| {
            !self.protected(from, seen).is_empty()
        });
        let answer = self.protected(from, &seen).remove(0);
        let answer = self.open(from, &answer).expect("it opens");
        let (source, fitting) = inner_mtu(&answer);
        assert_eq!(source, self.addr(to), "in the name of the far end");
        assert!(fitting < mtu && fitting > mtu - 80, "{fitting}");

        // What it was told fits, and by no byte too little.
        let fitting = usize::from(fitting);
        let seen = self.arrives(from, fitting, true);
        assert!(seen.iter().all(|packet| packet.len() <= mtu.into()) && seen.len() == 1);
        if self.family == Family::V4 {
            // What may be cut is, outside.
            let seen = self.arrives(from, 1400, false);
            assert!(seen.iter().all(|packet| packet.len() <= mtu.into()) && seen.len() == 2);
        }
    }

    /// NAT keep-alives of both ends before and after there is an SA behind UDP.
    fn keep_alives(&mut self) {
        let encap = UdpEncap {
            local_port: 4500,
            remote_port: 4500,
        };
        let message = |wire: &Self, from: Node| {
            let mut buffer = [0; keepalive::MAX_LEN];
            let (source, destination) = (wire.addr(from), wire.addr(other(from)));
            let len = keepalive::write(&mut buffer, source, destination, encap).expect("it fits");
            buffer[..len].to_vec()
        };
        let alive = |seen: &[Vec<u8>]| seen.iter().any(|packet| keepalive::is_keep_alive(packet));
        // Those of an SA the gateway does not know go on.
        for from in [Node::Ta, Node::Peer] {
            self.pass(from, &[message(self, from)], other(from), alive);
        }
        let (spi, fill) = match self.family {
            Family::V4 => (0xa000_0110, 0x80),
            Family::V6 => (0xa000_0120, 0xc0),
        };
        let in_udp = |sa: &mut ChildSa| sa.encap = Some(encap);
        let added = add_changed(self.stack, self.family, spi, fill, in_udp);
        let mut udp = Wire::new(self.stack, self.family, &added);
        let refused = |wire: &Self| {
            let sas = wire.stack.cli(&["sa", "list"]).expect("the SAs are listed");
            let text = sas.to_string();
            let numbers = text.split("\"refused\":").skip(1);
            numbers
                .map(|rest| {
                    rest.split(|c: char| !c.is_ascii_digit())
                        .next()
                        .map(str::to_owned)
                })
                .collect::<Vec<_>>()
        };
        let before = refused(self);
        let counted = self.count(DropReason::NatKeepalive);
        for from in [Node::Ta, Node::Peer] {
            let to = other(from);
            let sent = udp.plain(from, 200, false);
            // A packet of the SA behind it: once that is there, nothing else will come.
            let packets = [message(self, from), message(self, from), udp.seal(from, &sent)];
            let seen = udp.pass(from, &packets, to, |seen| !udp.protected(to, seen).is_empty());
            assert!(!alive(&seen), "{} {}: passed on", self.family, from.name());
            let got = udp.protected(to, &seen).remove(0);
            let opened = udp.open(to, &got).expect("it opens");
            udp.same(&opened, &sent);
        }
        assert_eq!(self.count(DropReason::NatKeepalive), counted + 4);
        assert_eq!(refused(self), before, "a keep-alive is no packet of an SA");
    }
}

/// `packet` in pieces of at most `mtu` bytes.
fn pieces(packet: &[u8], mtu: u16, name: u32) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        // IPv4 names datagrams in its header.
        packet[4..6].copy_from_slice(&(name as u16).to_be_bytes());
    }
    let mut fragments = fragment::fragments(&packet, mtu, name).expect("it may be cut");
    let mut all = Vec::new();
    let mut buffer = vec![0; mtu.into()];
    while let Some(len) = fragments.write_next(&mut buffer) {
        all.push(buffer[..len].to_vec());
    }
    all
}

/// What a router says of a packet.
fn told(router: IpAddr, about: &[u8], mtu: u16) -> Vec<u8> {
    let mut buffer = [0; icmp::MAX_LEN];
    let len = icmp::write_too_big(&mut buffer, router, about, mtu).expect("there is something to say");
    buffer[..len].to_vec()
}

/// Who says "too big" in this plain packet, and what would fit.
fn inner_mtu(packet: &[u8]) -> (IpAddr, u16) {
    let carried = locate::carried(packet).expect("an IP packet");
    let message = &packet[carried.payload_at..carried.end];
    let v4 = packet[0] >> 4 == 4;
    let kind = if v4 { [3, 4] } else { [2, 0] };
    assert_eq!(message[..2], kind, "{message:02x?}");
    (carried.source, u16::from_be_bytes([message[6], message[7]]))
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn fragments_too_big_and_keep_alives_outside() {
    let stack = stack_for_test("outside", PeerKind::Libipsec).expect("lab and towpath");
    for (family, spi, fill, mtus) in [
        (Family::V4, 0xa000_0070, 0x10, [1300, 1200]),
        (Family::V6, 0xa000_0080, 0x60, [1400, 1380]),
    ] {
        let added = add_changed(&stack, family, spi, fill, |_| ());
        let mut wire = Wire::new(&stack, family, &added);
        for (from, mtu) in [Node::Ta, Node::Peer].into_iter().zip(mtus) {
            wire.fragments(from);
            wire.too_big(from, mtu);
        }
        wire.keep_alives();
    }
    stack.stop();
}

/// Twenty seconds: an SA behind UDP that sends nothing keeps its mapping alive (RFC 3948 §4), towards the peer alone.
#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn long_a_quiet_sa_behind_udp_is_kept_alive() {
    let stack = stack_for_test("quiet", PeerKind::Libipsec).expect("lab and towpath");
    let encap = UdpEncap {
        local_port: 4500,
        remote_port: 4500,
    };
    for (family, spi, fill) in [(Family::V4, 0xa000_0130, 0x10), (Family::V6, 0xa000_0140, 0x60)] {
        add_changed(&stack, family, spi, fill, |sa| sa.encap = Some(encap));
    }
    let captures =
        [Node::Peer, Node::Ta].map(|node| stack.lab.capture(node, "eth0").expect("tcpdump starts"));
    let kept = |file: &std::path::Path, family: Family| {
        let frames = read(file).unwrap_or_default().into_iter();
        let mut alive =
            frames.filter(|frame| keepalive::is_keep_alive(frame.bytes.get(14..).unwrap_or_default()));
        alive.any(|frame| {
            let seen = frame.seen();
            seen.is_some_and(|seen| (seen.src, seen.dst) == (Node::Ta.addr(family), Node::Peer.addr(family)))
        })
    };
    for family in Family::ALL {
        let sent = wait_for(Duration::from_secs(60), || kept(captures[0].file(), family));
        assert!(sent, "{family}: {}", stack.tail("towpath", 20));
        assert!(
            !kept(captures[1].file(), family),
            "{family}: the terminal is not behind a NAT"
        );
    }
    stack.stop();
}

/// The core link's MTU from now on, at both of its ends.
fn narrow(stack: &Stack, mtu: u16) {
    for (node, interface) in [(Node::Gw, Node::Peer.gateway_port()), (Node::Peer, "eth0")] {
        let line = format!("ip link set {interface} mtu {mtu}");
        stack
            .lab
            .net()
            .inside(node, Cmd::line(&line))
            .run()
            .expect("ip runs");
    }
}

fn pump(stack: &Stack, family: Family, verb: &str) {
    let program = programs().expect("a test has a folder").join("xtask");
    let target = Node::Peer.addr(family).to_string();
    let cmd = Cmd::new(program).args(["pump", verb, &target, "1500000"]);
    let out = stack
        .lab
        .exec(Node::Ta, &cmd, Duration::from_secs(20))
        .expect("it runs");
    assert!(
        out.ok(),
        "{verb} {family}: {}\n{}\n{}",
        out.all(),
        stack.tail("towpath", 20),
        stack.cli(&["stats"]).expect("the daemon counts")
    );
    println!("{family} {verb}: {}", out.stdout.trim());
}

/// What an application is told that sends `len` bytes and forbids to cut them.
fn whole_ping(stack: &Stack, family: Family, len: u16) -> String {
    let headers = if family == Family::V4 { 28 } else { 48 };
    let (target, size) = (Node::Peer.addr(family).to_string(), (len - headers).to_string());
    let cmd = Cmd::new("ping").args(["-M", "do", "-c", "1", "-W", "5", "-s", &size, &target]);
    stack
        .lab
        .exec(Node::Ta, &cmd, crate::LIMIT)
        .expect("ping runs")
        .all()
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_core_port_becomes_narrower_and_everything_goes_on() {
    let stack = stack_for_test("narrower", PeerKind::Libipsec).expect("lab and towpath");
    for family in Family::ALL {
        assert!(ping(
            &stack.lab,
            Node::Ta,
            &Node::Peer.addr(family).to_string(),
            1
        ));
    }
    narrow(&stack, 1400);
    for family in Family::ALL {
        // The terminal's segments, the relay's, and what the peer sends in fragments.
        pump(&stack, family, "put");
        pump(&stack, family, "get");
        let largest = told_mtu(&stack, family);
        assert!(whole_ping(&stack, family, largest).contains(" 0% packet loss"));
    }
    // Over IPv6 no application may be told as little as fits now: packets are cut outside.
    narrow(&stack, 1300);
    for family in Family::ALL {
        pump(&stack, family, "put");
        pump(&stack, family, "get");
        let largest = told_mtu(&stack, family);
        assert!(
            largest < 1300 && (family == Family::V4 || largest == 1280),
            "{largest}"
        );
        assert!(whole_ping(&stack, family, largest).contains(" 0% packet loss"));
    }
    println!("{}", agent_status(&stack));
    stack.stop();
}

/// What the agent of terminal A says of itself.
fn agent_status(stack: &Stack) -> String {
    let socket = stack.lab.net().socket(Node::Ta, "terminal");
    let towpath = programs().expect("programs").join("towpath");
    let cmd = Cmd::new(towpath)
        .args(["terminal", "status", "--json", "--socket"])
        .arg(socket);
    let out = stack
        .lab
        .exec(Node::Ta, &cmd, crate::LIMIT)
        .expect("the agent answers");
    assert!(out.ok(), "{}", out.all());
    out.stdout
}

/// What an application is told that sends as much as its device takes: the MTU.
fn told_mtu(stack: &Stack, family: Family) -> u16 {
    let mut told = String::new();
    let mut mtu = None;
    wait_for(PATIENCE, || {
        told = whole_ping(stack, family, 1390);
        // "ping: local error: message too long, mtu=1338", "Frag needed and DF set (mtu = 1338)"
        let number = told
            .split("mtu")
            .nth(1)
            .map(|rest| rest.trim_start_matches([' ', '=', ':']));
        mtu = number.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        mtu.is_some()
    });
    mtu.unwrap_or_else(|| panic!("{family}: {told}"))
}
