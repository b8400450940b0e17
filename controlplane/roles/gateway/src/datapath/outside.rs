//! What happens to protected packets beside opening and sealing: fragments, "too big", keep-alives of NATs.
//!
//! ```text
//!   fragments ─► reassembly (bounded) ─► SA ─► cut again as the path showed it takes ─► extra packets
//!   "too big" about a packet of ours ─► path MTU of the SA; passed on with the number its reader knows
//!   a packet larger than the path MTU ─► its sender is told, inside the SA; or cut outside, where it may be
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use towpath_base::crypto::{EspTransform, IcvTransform, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant};
use towpath_common::wire::protocol;
use towpath_ipsec::crossing::Crossing;
use towpath_ipsec::locate::{self, Carried, Flow};
use towpath_ipsec::reassembly::Outcome;
use towpath_ipsec::{fragment, icmp, keepalive};
use towpath_tcp::relay::Side;

use super::relayed::Place;
use super::{Arrival, Datapath, Disposition, Passage, SaKey, Suites};
use crate::relay::Egress;
use crate::worker::decrement_ttl;

/// Extra packets kept; more are lost, as in any full queue.
pub(super) const MAX_EXTRA: usize = 1024;
/// Rooms around a reassembled packet: what an SA may add.
const ROOM: usize = 256;
/// An SA behind UDP that sent nothing for so long says so (RFC 3948 §4: 20 s).
const QUIET: Duration = Duration::from_secs(20);
/// Smallest packet a sender over IPv6 is asked for (RFC 8200 §5); below, the outer packet is cut.
const MIN_IPV6: u16 = 1280;
/// Port of UDP encapsulation, and of IKE behind it.
const PORT_NATT: u16 = 4500;
/// IKE's own.
const PORT_IKE: u16 = 500;

/// A packet that did not come as it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extra {
    /// Send it.
    Send {
        /// The IP packet.
        packet: Vec<u8>,
        /// Where routing sends it, if that is known.
        egress: Option<Egress>,
    },
    /// A message for the control path: it came in fragments.
    Control(Vec<u8>),
}

/// Where pieces go.
pub(super) struct Cut<'a> {
    pub(super) extra: &'a mut VecDeque<Extra>,
    pub(super) id: &'a mut u32,
}

impl Cut<'_> {
    fn send(&mut self, packet: Vec<u8>, egress: Option<Egress>) {
        if self.extra.len() < MAX_EXTRA {
            self.extra.push_back(Extra::Send { packet, egress });
        }
    }

    /// Sends `packet` in pieces of at most `mtu` bytes; whole if it fits.
    pub(super) fn pieces(
        &mut self,
        packet: &[u8],
        mtu: u16,
        egress: Option<Egress>,
    ) -> Result<(), DropReason> {
        if packet.len() <= mtu.into() {
            self.send(packet.to_vec(), egress);
            return Ok(());
        }
        *self.id = self.id.wrapping_add(1);
        let mut fragments = fragment::fragments(packet, mtu, *self.id)?;
        let mut buffer = vec![0; mtu.into()];
        while let Some(len) = fragments.write_next(&mut buffer) {
            self.send(buffer.get(..len).unwrap_or_default().to_vec(), egress);
        }
        Ok(())
    }
}

impl Cut<'_> {
    /// As [`Cut::pieces`], but the first piece stays in `packet`.
    pub(super) fn first(
        &mut self,
        packet: &mut PacketBuf<'_>,
        mtu: u16,
        egress: Option<Egress>,
    ) -> Result<(), DropReason> {
        if packet.len() <= mtu.into() {
            return Ok(());
        }
        let mut pieces = VecDeque::new();
        let mut own = Cut {
            extra: &mut pieces,
            id: self.id,
        };
        own.pieces(packet.bytes(), mtu, egress)?;
        if let Some(Extra::Send { packet: first, .. }) = pieces.pop_front() {
            let behind = packet
                .len()
                .checked_sub(first.len())
                .ok_or(DropReason::NoHeadroom)?;
            packet.strip_back(behind).ok_or(DropReason::NoHeadroom)?;
            packet.bytes_mut().copy_from_slice(&first);
        }
        self.extra.append(&mut pieces);
        Ok(())
    }
}

/// The plain packet in `packet` does not fit the path that way once it is sealed. Its sender is told, in the name of the
/// far end and inside the SA; where no sender may be told, the packet is sealed whole and cut outside.
pub(super) fn too_big<T: EspTransform, I: IcvTransform>(
    cut: &mut Cut<'_>,
    crossing: &mut Crossing<T, I>,
    place: Place,
    now: Instant,
    packet: &mut PacketBuf<'_>,
    rng: &mut impl Rng,
) -> Result<Passage, DropReason> {
    let to_peer = place.from == Side::Terminal;
    let path = crossing.path_mtu(to_peer, now).ok_or(DropReason::TooBig)?;
    let flow = Flow::of(packet.bytes())?;
    let v4 = flow.source.is_ipv4();
    let fitting = crossing.largest_plain(to_peer, now, path, v4);
    let may_tell = v4 || fitting >= MIN_IPV6;
    let mut told = [0; icmp::MAX_LEN];
    let len = may_tell
        .then(|| icmp::write_too_big(&mut told, flow.destination, packet.bytes(), fitting))
        .flatten();
    let answer = len.and_then(|len| told.get(..len));
    if let Some(answer) = answer
        && Flow::of(answer).is_ok_and(|flow| crossing.admits(!to_peer, &flow))
    {
        let len = packet.len();
        packet.strip_back(len).ok_or(DropReason::NoHeadroom)?;
        let room = packet.grow_back(answer.len()).ok_or(DropReason::NoHeadroom)?;
        room.copy_from_slice(answer);
        crossing.seal_whole(!to_peer, now, packet, rng)?;
        // Back where it came from: the kernel knows the way.
        cut.send(packet.bytes().to_vec(), None);
        return Ok(Passage::Queued);
    }
    crossing.seal_whole(to_peer, now, packet, rng)?;
    cut.pieces(packet.bytes(), path, place.egress)?;
    Ok(Passage::Queued)
}

impl<P: Suites> Datapath<P> {
    /// The next packet that did not come as it goes. Ask after every packet and every tick.
    pub fn poll_extra(&mut self) -> Option<Extra> {
        self.extra.pop_front()
    }

    /// How many half datagrams were given up since the last call: [`DropReason::ReassemblyTimeout`] each.
    pub fn take_timeouts(&mut self) -> usize {
        std::mem::take(&mut self.timeouts)
    }

    /// A fragment of a packet that may be protected; `packet` starts at the IP header. `from_terminal`: the classifier
    /// knows its source as a terminal.
    pub fn process_fragment(
        &mut self,
        now: Instant,
        arrival: Arrival,
        from_terminal: bool,
        packet: &[u8],
        rng: &mut impl Rng,
    ) -> Disposition {
        let outcome = match self.reassembler.push(now, packet) {
            Ok(Outcome::Complete(whole)) => self.reassembled(now, arrival, from_terminal, &whole, rng),
            Ok(Outcome::Kept) => Ok(()),
            Ok(Outcome::Whole) => Err(DropReason::EspFragment),
            Err(reason) => Err(reason),
        };
        match outcome {
            Ok(()) => Disposition::Queued,
            Err(reason) => Disposition::Drop(reason),
        }
    }

    fn reassembled(
        &mut self,
        now: Instant,
        arrival: Arrival,
        from_terminal: bool,
        whole: &[u8],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let mtu = u16::try_from(self.reassembler.longest()).unwrap_or(u16::MAX);
        let mut buffer = vec![0; whole.len() + 2 * ROOM];
        if let Some(room) = buffer.get_mut(ROOM..ROOM + whole.len()) {
            room.copy_from_slice(whole);
        }
        let mut packet = PacketBuf::new(&mut buffer, ROOM, whole.len()).ok_or(DropReason::NoHeadroom)?;
        match Contents::of(whole, from_terminal)? {
            Contents::Protected => match self.process(now, arrival, &mut packet, rng) {
                Disposition::Forward => {}
                Disposition::Taken | Disposition::Queued => return Ok(()),
                Disposition::Drop(reason) => return Err(reason),
            },
            Contents::Control => {
                if self.extra.len() < MAX_EXTRA {
                    self.extra.push_back(Extra::Control(whole.to_vec()));
                }
                return Ok(());
            }
            Contents::Other => {}
        }
        decrement_ttl(packet.bytes_mut())?;
        let mut cut = Cut {
            extra: &mut self.extra,
            id: &mut self.fragment_id,
        };
        cut.pieces(packet.bytes(), mtu, arrival.egress)
    }

    /// A "too big" that quotes a packet of a terminal or of its peer; `packet` starts at the IP header. What concerns no
    /// SA of class `full` goes on as it is.
    pub fn process_too_big(&mut self, now: Instant, packet: &mut [u8]) -> Disposition {
        let Ok(told) = icmp::read_too_big(packet) else {
            return Disposition::Forward;
        };
        let outward = self.to_peer.get(&(told.source, told.destination, told.spi));
        let inward = self.to_terminal.get(&(told.destination, told.spi));
        let (slot, to_peer) = match (outward, inward) {
            (Some(slot), _) => (slot, true),
            (None, Some(slot)) => (slot, false),
            (None, None) => return Disposition::Forward,
        };
        let Some(entry) = self.entries.get_mut(slot) else {
            return Disposition::Forward;
        };
        let Some(crossing) = &mut entry.bridge else {
            return Disposition::Forward;
        };
        match crossing.on_too_big(to_peer, now, &told) {
            Ok(number) => match icmp::renumber(packet, number as u32) {
                Some(()) => Disposition::Forward,
                None => Disposition::Drop(DropReason::IcmpNotOurs),
            },
            Err(reason) => {
                entry.counters.refused += 1;
                Disposition::Drop(reason)
            }
        }
    }

    /// A NAT keep-alive; `packet` starts at the IP header. Where the gateway keeps the mapping alive itself, it has
    /// reached its reader (RFC 3948 §2.3: dropped without a word).
    pub fn process_keep_alive(&self, packet: &[u8]) -> Disposition {
        let Ok(Carried {
            source, destination, ..
        }) = locate::carried(packet)
        else {
            return Disposition::Drop(DropReason::Truncated);
        };
        let ours = self.entries.iter().any(|entry| {
            let SaKey { local, remote, .. } = entry.key;
            let pair = (local, remote) == (source, destination) || (local, remote) == (destination, source);
            pair && entry.quiet.is_some()
        });
        if ours {
            Disposition::Drop(DropReason::NatKeepalive)
        } else {
            Disposition::Forward
        }
    }

    /// Largest plain IP packet the pair's SAs carry to `to`, whose segment takes `mtu` bytes, as far as the path is known.
    /// `None` without an SA of class `full`. For whoever makes packets of its own.
    pub fn plain_mtu(
        &self,
        (local, remote): (IpAddr, IpAddr),
        to: Side,
        now: Instant,
        mtu: u16,
        v4: bool,
    ) -> Option<u16> {
        let entries = self.entries.iter();
        entries
            .filter(|entry| (entry.key.local, entry.key.remote) == (local, remote))
            .filter_map(|entry| entry.bridge.as_ref())
            .map(|crossing| crossing.largest_plain(to == Side::Network, now, mtu, v4))
            .min()
    }

    /// Keeps the mappings of NATs alive on the peers' side.
    pub(super) fn keep_alive(&mut self, now: Instant) {
        for entry in self.entries.iter_mut() {
            let SaKey { local, remote, .. } = entry.key;
            let Some(quiet) = &mut entry.quiet else { continue };
            if now.saturating_since(quiet.since) < QUIET || self.extra.len() >= MAX_EXTRA {
                continue;
            }
            quiet.since = now;
            let mut buffer = [0; keepalive::MAX_LEN];
            let len = keepalive::write(&mut buffer, local, remote, quiet.encap);
            if let Some(packet) = len.and_then(|len| buffer.get(..len)) {
                self.extra.push_back(Extra::Send {
                    packet: packet.to_vec(),
                    egress: None,
                });
            }
        }
    }
}

/// What was in the fragments, or in another packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    Protected,
    Control,
    Other,
}

impl Contents {
    pub(super) fn of(packet: &[u8], from_terminal: bool) -> Result<Self, DropReason> {
        let carried = locate::carried(packet)?;
        if matches!(carried.protocol, protocol::ESP | protocol::AH) {
            return Ok(Self::Protected);
        }
        let udp = packet.get(carried.payload_at..carried.end).unwrap_or_default();
        let port = |at: usize| {
            udp.get(at..)
                .and_then(|rest| rest.first_chunk())
                .map(|b| u16::from_be_bytes(*b))
        };
        let (Some(source), Some(destination)) = (port(0), port(2)) else {
            return Ok(Self::Other);
        };
        let natt = source == PORT_NATT || destination == PORT_NATT;
        let marker = udp.get(8..12) == Some(&[0; 4]);
        // A terminal has no IKE: what it sends of it is somebody else's.
        Ok(if natt && !marker {
            Self::Protected
        } else if !from_terminal && (natt || destination == PORT_IKE) {
            Self::Control
        } else {
            Self::Other
        })
    }
}
