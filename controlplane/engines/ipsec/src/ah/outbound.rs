//! The sending half of an AH SA.

use core::net::IpAddr;

use towpath_base::crypto::{IcvProvider, IcvTransform, InvalidKey};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{AhSa, EspIntegrity, Lifetime, Mode, Selectors};
use towpath_base::{DropReason, Instant, Key, Spi};
use towpath_common::wire::protocol;

use super::{AH_LEN, Covered, LocatedAh};
use crate::highwater::Reserved;
use crate::icmp::TooBig;
use crate::ip::{self, Ip};
use crate::lifetime::Meter;
use crate::locate::Flow;
use crate::mode::reckoned_tunnelled;
use crate::outbound::Sealed;
use crate::outer::{self, Inner, OuterPolicy};
use crate::pmtu::PathMtu;

/// One direction of an AH SA at its sender: the only owner of the sequence counter.
#[derive(Debug)]
pub struct AhOutbound<I> {
    icv: I,
    spi: Spi,
    last_sequence: u64,
    esn: bool,
    mode: Mode,
    align8: bool,
    local: IpAddr,
    remote: IpAddr,
    sources: Selectors,
    destinations: Selectors,
    meter: Meter,
    path_mtu: PathMtu,
    outer: OuterPolicy,
    reserved: Reserved,
    /// Under `wildcard`: whether what it passes on came in tunnels, once that is known.
    tunnels: Option<bool>,
}

impl<I: IcvTransform> AhOutbound<I> {
    /// What the local end of `sa` sends with.
    ///
    /// # Errors
    /// [`InvalidKey`] if the key does not fit the algorithm.
    pub fn new<P>(provider: &P, now: Instant, sa: &AhSa) -> Result<Self, InvalidKey>
    where
        P: IcvProvider<Icv = I>,
    {
        let mut outbound = Self::with_key(provider, now, sa, &sa.key_out)?;
        outbound.meter = Meter::new(sa.lifetime, now);
        Ok(outbound)
    }

    /// As [`AhOutbound::new`] with another key and without limits: a segment of the same SA.
    pub(super) fn with_key<P>(provider: &P, now: Instant, sa: &AhSa, key: &Key) -> Result<Self, InvalidKey>
    where
        P: IcvProvider<Icv = I>,
    {
        Ok(Self {
            icv: provider.icv(sa.integrity, key)?,
            spi: sa.spi_out,
            last_sequence: 0,
            esn: sa.esn,
            mode: sa.mode,
            align8: sa.align8,
            local: sa.local,
            remote: sa.remote,
            sources: sa.local_ts,
            destinations: sa.remote_ts,
            meter: Meter::new(Lifetime::default(), now),
            path_mtu: PathMtu::NONE,
            outer: OuterPolicy::default(),
            reserved: Reserved::EVERYTHING,
            tunnels: None,
        })
    }

    /// The same SA seen from its far end.
    pub(super) const fn reversed(mut self, spi: Spi) -> Self {
        (self.local, self.remote) = (self.remote, self.local);
        (self.sources, self.destinations) = (self.destinations, self.sources);
        self.spi = spi;
        self
    }

    /// SPI of the packets it makes.
    pub const fn spi(&self) -> Spi {
        self.spi
    }

    /// Highest sequence number used so far; 0 before the first packet.
    pub const fn last_sequence(&self) -> u64 {
        self.last_sequence
    }

    /// Continues above `sequence` (hand-over, restart): the counter only ever moves forward.
    pub const fn skip_to(&mut self, sequence: u64) {
        if sequence > self.last_sequence {
            self.last_sequence = sequence;
        }
    }

    /// Uses no number that is not reserved; see [`crate::highwater`]. AH has no nonce, but a receiver drops numbers it
    /// has seen: a successor has to start above what was reserved before.
    pub const fn start_reserved(&mut self, reserved: Reserved) {
        self.skip_to(reserved.after());
        self.reserved = reserved;
    }

    /// Numbers up to `limit` may be used from now on.
    pub const fn reserve(&mut self, limit: u64) {
        self.reserved.extend(limit);
    }

    /// The limit to reserve next, when the present block runs out.
    pub const fn wants_reserved(&self) -> Option<u64> {
        self.reserved.wants(self.last_sequence)
    }

    /// Bytes it adds to a packet of this family; under mode `wildcard` a tunnel's.
    pub(crate) fn overhead(&self, inner_v4: bool) -> usize {
        let (outer_len, outer_v4) = if reckoned_tunnelled(self.mode) {
            (outer::len(self.remote), self.remote.is_ipv4())
        } else {
            (0, inner_v4)
        };
        outer_len + len(self.icv.integrity(), outer_v4, self.align8)
    }

    /// Largest plain IP packet that signed is at most `mtu` bytes long; `inner_v4` is its family.
    pub fn largest_plain(&self, mtu: u16, inner_v4: bool) -> u16 {
        mtu.saturating_sub(self.overhead(inner_v4) as u16)
    }

    /// Under mode `wildcard`: seals in tunnels, or as each packet needs it. For whoever passes packets on and knows how they
    /// came; a `guess` gives way to what is known.
    pub(crate) fn follow(&mut self, tunnelled: bool, guess: bool) {
        if !guess || self.tunnels.is_none() {
            self.tunnels = Some(tunnelled);
        }
    }

    /// Limits and counters.
    pub const fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Limits and counters, to take events from.
    pub const fn meter_mut(&mut self) -> &mut Meter {
        &mut self.meter
    }

    /// Refuse packets that signed would be longer than this many bytes (IP header included).
    pub const fn set_path_mtu(&mut self, mtu: Option<u16>) {
        self.path_mtu.configure(mtu);
    }

    /// The path MTU, configured and learnt.
    pub const fn path_mtu(&self) -> &PathMtu {
        &self.path_mtu
    }

    /// Takes another path MTU, and gives the present one back: for a packet that is to be cut afterwards.
    #[cfg(feature = "tables")]
    pub(crate) const fn swap_path_mtu(&mut self, other: PathMtu) -> PathMtu {
        core::mem::replace(&mut self.path_mtu, other)
    }

    /// What tunnel mode takes over into the outer header.
    pub const fn set_outer_policy(&mut self, policy: OuterPolicy) {
        self.outer = policy;
    }

    /// Believes a "too big" that quotes a packet this SA may have sent lately (RFC 4301 §8.2.1): addresses, SPI, and a
    /// sequence number among the last [`icmp::PLAUSIBLE`](crate::icmp::PLAUSIBLE). Returns the new path MTU, `None` if it changes nothing.
    ///
    /// # Errors
    /// [`DropReason::IcmpNotOurs`] if it is not plausible.
    pub fn on_too_big(&mut self, now: Instant, told: &TooBig) -> Result<Option<u16>, DropReason> {
        let ends = (self.local, self.remote, self.spi);
        if !told.is_about(protocol::AH, ends, self.last_sequence) {
            return Err(DropReason::IcmpNotOurs);
        }
        Ok(self.path_mtu.learn(now, told.mtu, self.local.is_ipv4()))
    }

    /// Whether the SA's selectors admit the flow.
    pub fn admits(&self, flow: &Flow) -> bool {
        flow.matches(&self.sources, &self.destinations)
    }

    /// Puts AH into the IP packet in `packet`, in tunnel mode behind a new IP header: at most 88 bytes in front. The
    /// packet may carry ESP already (an SA bundle).
    ///
    /// On error the packet is as it was, unless the reason is [`DropReason::AhHeaderUnsupported`],
    /// [`DropReason::BadIpHeader`] or [`DropReason::EspAuthFailed`]. Selectors are the caller's business: see
    /// [`AhOutbound::admits`].
    ///
    /// # Errors
    /// Reason to drop the packet: limits, sequence space, size, rooms, fragments in transport mode, headers that AH
    /// cannot foretell.
    pub fn seal(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<Sealed, DropReason> {
        self.meter.check(now)?;
        let (ip, tunnel) = Ip::for_mode(
            packet.bytes(),
            self.mode,
            self.tunnels == Some(true),
            self.local,
            self.remote,
        )?;
        let outer_len = if tunnel { outer::len(self.remote) } else { 0 };
        packet
            .strip_back(packet.len() - ip.end)
            .ok_or(DropReason::Truncated)?;
        let (kept, next_header, outer_v4) = match tunnel {
            false if ip.fragment => return Err(DropReason::EspFragment),
            false => (ip.payload_at, ip.protocol, ip.is_v4()),
            true if ip.is_v4() => (0, protocol::IPIP, self.remote.is_ipv4()),
            true => (0, protocol::IPV6, self.remote.is_ipv4()),
        };
        let ah_len = len(self.icv.integrity(), outer_v4, self.align8);
        let front = outer_len + ah_len;
        let limit = self.path_mtu.at(now).map_or(ip::max_len(outer_v4), usize::from);
        if ip.end + front > limit {
            return Err(DropReason::TooBig);
        }
        if packet.headroom() < front {
            return Err(DropReason::NoHeadroom);
        }
        let inner = Inner::of(packet.bytes(), &ip, self.outer);
        let sequence = self.next_sequence()?;
        let plain_len = packet.len();
        packet.open_gap(kept, front).ok_or(DropReason::NoHeadroom)?;
        let bytes = packet.bytes_mut();
        if tunnel {
            outer::write(
                bytes,
                self.local,
                self.remote,
                protocol::AH,
                &inner,
                sequence as u16,
            );
        } else if let Some(field) = bytes.get_mut(ip.protocol_at) {
            *field = protocol::AH;
        }
        ip::finish_header(bytes);
        let ah_at = kept + outer_len;
        let at = LocatedAh {
            source: self.local,
            destination: self.remote,
            spi: self.spi,
            sequence: sequence as u32,
            next_header,
            ah_at,
            payload_at: ah_at + ah_len,
            end: bytes.len(),
            protocol_at: 0,
        };
        let ah = bytes
            .get_mut(ah_at..at.payload_at)
            .ok_or(DropReason::AhMalformed)?;
        ah.fill(0);
        if let [next, words, ..] = ah {
            (*next, *words) = (next_header, (ah_len / 4 - 2) as u8);
        }
        self.sign(bytes, &at, sequence)?;
        self.meter.count(now, plain_len);
        Ok(Sealed { sequence })
    }

    /// Numbers and signs the AH packet at `at` where it lies; for the bridge.
    pub(crate) fn resign(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        at: &LocatedAh,
        plain_len: usize,
    ) -> Result<Sealed, DropReason> {
        let sequence = self.next_sequence()?;
        self.sign(bytes, at, sequence)?;
        self.meter.count(now, plain_len);
        Ok(Sealed { sequence })
    }

    fn sign(&mut self, bytes: &mut [u8], at: &LocatedAh, sequence: u64) -> Result<(), DropReason> {
        let numbers = bytes
            .get_mut(at.ah_at + 4..)
            .and_then(|rest| rest.first_chunk_mut::<8>())
            .ok_or(DropReason::AhMalformed)?;
        let [a, b, c, d] = self.spi.0.to_be_bytes();
        let [e, f, g, h] = (sequence as u32).to_be_bytes();
        *numbers = [a, b, c, d, e, f, g, h];
        let high = self.esn.then_some((sequence >> 32) as u32);
        Covered::of(bytes, at, self.icv.integrity().icv_len(), high)?.sign(&mut self.icv)
    }

    /// The next number; never the same twice, never zero (RFC 4302 §3.3.2).
    fn next_sequence(&mut self) -> Result<u64, DropReason> {
        let last = if self.esn { u64::MAX } else { u64::from(u32::MAX) };
        if self.last_sequence >= last {
            return Err(DropReason::EspSequenceExhausted);
        }
        if !self.reserved.covers(self.last_sequence + 1) {
            return Err(DropReason::SequenceNotReserved);
        }
        self.last_sequence += 1;
        if self.last_sequence > last - last / 8 {
            self.meter.want_replacement();
        }
        Ok(self.last_sequence)
    }
}

/// Bytes of AH: a multiple of 4 in IPv4, of 8 in IPv6 (RFC 4302 §2.6), and where the far end insists.
const fn len(integrity: EspIntegrity, v4: bool, align8: bool) -> usize {
    let unit = if v4 && !align8 { 4 } else { 8 };
    (AH_LEN + integrity.icv_len()).next_multiple_of(unit)
}
