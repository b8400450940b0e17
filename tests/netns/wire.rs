//! Both ends of an SA keyed by hand, played by the test, with the gateway between them.

use std::net::IpAddr;
use std::time::Duration;

use towpath_base::packet::PacketBuf;
use towpath_base::sa::ChildSa;
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant};
use towpath_common::wire::checksum;
use towpath_ipsec::reassembly::{Limits, Outcome, Reassembler};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{InboundSa, OutboundSa, locate};
use xtask::lab::capture::read;
use xtask::lab::state::wait_for;
use xtask::lab::{Family, Frame, Node};
use xtask::proof::stack::Stack;
use xtask::sh::Cmd;

use crate::manual::plain;

const NOW: Instant = Instant::from_secs(1);
/// How long a packet may take through a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room around a packet that is sealed or opened.
const ROOM: usize = 128;

/// The one at the other end of the SA.
pub(crate) fn other(node: Node) -> Node {
    if node == Node::Ta { Node::Peer } else { Node::Ta }
}

/// One end of the SA.
pub(crate) struct End {
    /// From this node to the gateway.
    ethernet: Vec<u8>,
    pub(crate) outbound: OutboundSa<SoftTransform>,
    pub(crate) inbound: InboundSa<SoftTransform>,
}

/// Both ends, and the lab between them.
pub(crate) struct Wire<'s> {
    pub(crate) stack: &'s Stack,
    pub(crate) family: Family,
    pub(crate) ends: [End; 2],
    rng: SeededRng,
    pub(crate) name: u16,
}

/// The MAC address of an interface.
pub(crate) fn mac(stack: &Stack, node: Node, interface: &str) -> Vec<u8> {
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

pub(crate) fn ethernet(stack: &Stack, node: Node, family: Family) -> Vec<u8> {
    let gateway = mac(stack, Node::Gw, node.gateway_port());
    let kind = match family {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    [gateway, mac(stack, node, "eth0"), kind.to_vec()].concat()
}

impl<'s> Wire<'s> {
    pub(crate) fn new(stack: &'s Stack, family: Family, [terminal, peer]: &[ChildSa; 2]) -> Self {
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

    pub(crate) fn end(&mut self, node: Node) -> &mut End {
        &mut self.ends[usize::from(node == Node::Peer)]
    }

    pub(crate) fn addr(&self, node: Node) -> IpAddr {
        node.addr(self.family)
    }

    /// A plain UDP packet of `len` bytes from `node` to the other end; over IPv4 with "don't fragment" if asked for.
    pub(crate) fn plain(&self, node: Node, len: usize, whole: bool) -> Vec<u8> {
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
    pub(crate) fn checksum(&self, packet: &mut [u8]) {
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
    pub(crate) fn seal(&mut self, node: Node, packet: &[u8]) -> Vec<u8> {
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
    pub(crate) fn open(&mut self, node: Node, packet: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = vec![0; packet.len()];
        buffer.copy_from_slice(packet);
        let mut opened = PacketBuf::new(&mut buffer, 0, packet.len())?;
        self.end(node).inbound.open(NOW, &mut opened).ok()?;
        Some(opened.bytes().to_vec())
    }

    /// Sends packets from `from`, and waits until `at` has seen what `enough` looks for. Returns what it has seen.
    pub(crate) fn pass(
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
    pub(crate) fn together(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
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
    pub(crate) fn protected(&self, node: Node, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let spi = self.ends[usize::from(node == Node::Peer)].inbound.spi();
        let together = Self::together(packets).into_iter();
        together
            .filter(|packet| locate::esp(packet).is_ok_and(|at| at.spi == spi))
            .collect()
    }

    /// Sends what `from` sealed, in one or more packets; returns the one packet of the SA that the other end got.
    pub(crate) fn one(&self, from: Node, packets: &[Vec<u8>]) -> Vec<u8> {
        let to = other(from);
        let seen = self.pass(from, packets, to, |seen| !self.protected(to, seen).is_empty());
        let mut got = self.protected(to, &seen);
        assert_eq!(got.len(), 1, "{} to {}", self.family, to.name());
        got.remove(0)
    }

    /// Sends a packet of `len` bytes sealed from `from`; it arrives. Returns what was seen of it outside.
    pub(crate) fn arrives(&mut self, from: Node, len: usize, whole: bool) -> Vec<Vec<u8>> {
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
    pub(crate) fn same(&self, got: &[u8], sent: &[u8]) {
        let skip = if self.family == Family::V4 { 12 } else { 8 };
        assert_eq!(got.len(), sent.len(), "{}", self.family);
        assert!(got[skip..] == sent[skip..], "{}: other bytes", self.family);
    }

    pub(crate) fn count(&self, reason: DropReason) -> u64 {
        self.stack.counter(reason.name()).expect("the daemon counts")
    }
}
