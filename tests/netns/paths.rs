//! What paths do to protected packets beside carrying them: cut them, find them too big, and keep NATs' mappings alive.
//!
//! ```text
//!   ta: sealed by the test ──► gw (towpath) ──► peer: opened by the test       and back
//!   ta: agent, TUN device  ══► gw (towpath) ══► a core port that was narrowed ══► peer: charon
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use towpath_base::DropReason;
use towpath_base::sa::{ChildSa, UdpEncap};
use towpath_ipsec::{fragment, icmp, keepalive, locate};
use xtask::lab::capture::read;
use xtask::lab::state::wait_for;
use xtask::lab::{Family, Node, PeerKind};
use xtask::proof::stack::{Stack, programs};
use xtask::proof::stack_for_test;
use xtask::sh::Cmd;

use crate::manual::add_changed;
use crate::ping;
use crate::wire::{Wire, other};

/// How long a packet may take through a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

impl Wire<'_> {
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
