//! What the path to a peer takes: learnt from routers, told to applications.

use towpath_base::crypto::{EspProvider, EspTransform, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant};
use towpath_ipsec::icmp::{self, TooBig};
use towpath_ipsec::{Flow, OutboundSa, pmtu};

use crate::face::{Core, Disposition};

impl<P: EspProvider, const POLICIES: usize, const SAS: usize, const HOLD: usize>
    Core<P, POLICIES, SAS, HOLD>
{
    /// An ICMP packet for this host, for hosts that see more than [`Core::handle_network`] is shown. What is no "too big"
    /// about a packet of an SA is left to the host without a word.
    pub fn handle_error(&mut self, now: Instant, packet: &[u8]) {
        if let Some(Err(reason)) = self.told_too_big(now, packet) {
            self.count(reason);
        }
    }

    /// Believes a router about a packet that an SA may have sent lately (RFC 4301 §8.2.1). `None` if it concerns none.
    pub(crate) fn told_too_big(&mut self, now: Instant, packet: &[u8]) -> Option<Result<(), DropReason>> {
        let told = icmp::read_too_big(packet).ok()?;
        let TooBig {
            source,
            destination,
            spi,
            ..
        } = told;
        let pair = self.sad.sender(source, destination, spi)?;
        Some(pair.outbound.on_too_big(now, &told).map(drop))
    }
}

/// The packet does not fit the path once it is sealed: its sender is told, in the name of the far end. Where no sender may be
/// told (IPv4 without DF, what every IPv6 path has to take) it is sealed, to be cut outside.
// Rare, and its buffer is large: not on the stack of every packet.
#[cold]
#[inline(never)]
pub(crate) fn too_big<T: EspTransform>(
    outbound: &mut OutboundSa<T>,
    now: Instant,
    flow: &Flow,
    packet: &mut PacketBuf<'_>,
    rng: &mut (impl Rng + ?Sized),
) -> Result<Disposition, DropReason> {
    let path = outbound.path_mtu().at(now).ok_or(DropReason::TooBig)?;
    let v4 = flow.source.is_ipv4();
    let fitting = outbound.largest_plain(path, v4);
    let fitting = if v4 { fitting } else { fitting.max(pmtu::MIN_IPV6) };
    let mut answer = [0; icmp::MAX_LEN];
    let len = if packet.len() > fitting.into() {
        icmp::write_too_big(&mut answer, flow.destination, packet.bytes(), fitting)
    } else {
        None
    };
    if let Some(answer) = len.and_then(|len| answer.get(..len)) {
        let len = packet.len();
        packet.strip_back(len).ok_or(DropReason::NoHeadroom)?;
        let room = packet.grow_back(answer.len()).ok_or(DropReason::NoHeadroom)?;
        room.copy_from_slice(answer);
        return Ok(Disposition::Deliver);
    }
    outbound.seal_whole(now, packet, rng)?;
    Ok(Disposition::Cut(path))
}
