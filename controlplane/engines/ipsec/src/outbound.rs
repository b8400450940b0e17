//! The sending half of an SA: plain IP packet → ESP packet, in place.

use core::net::IpAddr;

use towpath_base::crypto::{EspParts, EspProvider, EspTransform, InvalidKey, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspKeys, Mode, UdpEncap};
use towpath_base::{DropReason, Instant, Spi};
use towpath_common::wire::protocol;

use crate::checksum;
use crate::ends::Ends;
use crate::highwater::Reserved;
use crate::icmp::TooBig;
use crate::ip::{self, Ip, put16};
use crate::lifetime::Meter;
use crate::locate::{ESP_LEN, Flow, Located, UDP_LEN};
use crate::mode::reckoned_tunnelled;
use crate::outer::{self, Inner, OuterPolicy};
use crate::pmtu::PathMtu;
use crate::shape::Shape;

/// Last number used with ESN: one bit is left for the half of the IV space, nobody gets that far.
const LAST_ESN: u64 = u64::MAX >> 1;
/// Longest IV of any suite.
const MAX_IV: usize = 16;

/// What became of a sealed packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Its sequence number, 64 bits even where 32 are sent.
    pub sequence: u64,
}

/// One direction of an SA at its sender: the only owner of the sequence counter, hence of the IVs, of its key.
#[derive(Debug)]
pub struct OutboundSa<T> {
    transform: T,
    shape: Shape,
    spi: Spi,
    last_sequence: u64,
    esn: bool,
    mode: Mode,
    encap: Option<UdpEncap>,
    local: IpAddr,
    remote: IpAddr,
    ends: Ends,
    meter: Meter,
    path_mtu: PathMtu,
    outer: OuterPolicy,
    reserved: Reserved,
    /// Under `wildcard`: whether what it passes on came in tunnels, once that is known.
    tunnels: Option<bool>,
    /// Top bit of the counter IVs, the half of their space this sender keeps to; see [`crate::shared`].
    iv_half: u64,
}

impl<T: EspTransform> OutboundSa<T> {
    /// What the local end of `sa` sends with.
    ///
    /// # Errors
    /// [`InvalidKey`] if the keys do not fit the suite.
    pub fn new<P>(provider: &P, now: Instant, sa: &ChildSa) -> Result<Self, InvalidKey>
    where
        P: EspProvider<Transform = T>,
    {
        let meter = Meter::new(sa.lifetime, now);
        Self::with_keys(provider, meter, sa, &sa.keys_out, Ends::outward(sa))
    }

    /// As [`OutboundSa::new`] with other keys and limits: a segment of the same SA. `ends` are those of `sa`.
    pub(crate) fn with_keys<P>(
        provider: &P,
        meter: Meter,
        sa: &ChildSa,
        keys: &EspKeys,
        ends: Ends,
    ) -> Result<Self, InvalidKey>
    where
        P: EspProvider<Transform = T>,
    {
        Ok(Self {
            transform: provider.transform(sa.suite, keys)?,
            shape: Shape::of(sa.suite),
            spi: sa.spi_out,
            last_sequence: 0,
            esn: sa.esn,
            mode: sa.mode,
            encap: sa.encap,
            local: sa.local,
            remote: sa.remote,
            ends,
            meter,
            path_mtu: PathMtu::NONE,
            outer: OuterPolicy::default(),
            reserved: Reserved::EVERYTHING,
            tunnels: None,
            iv_half: 0,
        })
    }

    /// The same SA seen from its far end: what the remote end sends with, hence what a gateway sends with towards
    /// the local one.
    pub(crate) fn reversed(self, spi: Spi) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            ends: self.ends.reversed(),
            encap: self.encap.map(UdpEncap::mirrored),
            spi,
            ..self
        }
    }

    /// Where a part of it lies that every packet needs.
    #[inline]
    pub(crate) const fn spi_ref(&self) -> &Spi {
        &self.spi
    }

    /// SPI of the packets it makes.
    pub const fn spi(&self) -> Spi {
        self.spi
    }

    /// Outer address of the far end.
    pub const fn remote(&self) -> IpAddr {
        self.remote
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

    /// Uses no number that is not reserved; see [`crate::highwater`]. Starts above what was reserved before.
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

    /// Keeps its counter IVs to one half of their space: the upper, or the lower.
    pub(crate) const fn keep_to_half(&mut self, upper: bool) {
        self.iv_half = if upper { 1 << 63 } else { 0 };
    }

    /// Encrypts `bytes` anew exactly as they came: same number, same IV, same plaintext, hence the same packet.
    pub(crate) fn restore(
        &mut self,
        bytes: &mut [u8],
        at: &Located,
        sequence: u64,
    ) -> Result<(), DropReason> {
        let suite = self.shape;
        let malformed = DropReason::EspMalformed;
        let esp = bytes.get_mut(at.esp_at..at.end).ok_or(malformed)?;
        let (header, rest) = esp.split_first_chunk_mut::<ESP_LEN>().ok_or(malformed)?;
        let (iv, rest) = rest.split_at_mut_checked(suite.iv_len()).ok_or(malformed)?;
        let body = rest.len().checked_sub(suite.icv_len()).ok_or(malformed)?;
        let (payload, icv) = rest.split_at_mut_checked(body).ok_or(malformed)?;
        let parts = EspParts {
            header: *header,
            esn_high: self.esn.then_some((sequence >> 32) as u32),
            iv,
            payload,
            icv,
        };
        self.transform.seal(parts).map_err(|_| DropReason::EspAuthFailed)
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

    /// Refuse packets that sealed would be longer than this many bytes (IP header included): the hook of path
    /// MTU discovery. `None` refuses nothing.
    pub const fn set_path_mtu(&mut self, mtu: Option<u16>) {
        self.path_mtu.configure(mtu);
    }

    /// The path MTU, configured and learnt.
    pub const fn path_mtu(&self) -> &PathMtu {
        &self.path_mtu
    }

    /// Takes another path MTU, and gives the present one back: for a packet that is to be cut afterwards.
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
        if !told.is_about(protocol::ESP, ends, self.last_sequence) {
            return Err(DropReason::IcmpNotOurs);
        }
        Ok(self.path_mtu.learn(now, told.mtu, self.local.is_ipv4()))
    }

    /// Largest plain IP packet that sealed is at most `mtu` bytes long; `inner_v4` is its family, which transport
    /// mode keeps. Headers without options or extensions are assumed. Under mode `wildcard` it is what a tunnel holds.
    pub fn largest_plain(&self, mtu: u16, inner_v4: bool) -> u16 {
        let suite = self.shape;
        let (kept, outer) = match (reckoned_tunnelled(self.mode), inner_v4) {
            (true, _) => (0, outer::len(self.remote)),
            (false, true) => (ip::IPV4_LEN, ip::IPV4_LEN),
            (false, false) => (ip::IPV6_LEN, ip::IPV6_LEN),
        };
        let udp = if self.encap.is_some() { UDP_LEN } else { 0 };
        let fixed = outer + udp + ESP_LEN + suite.iv_len() + suite.icv_len();
        let room = usize::from(mtu).saturating_sub(fixed);
        let body = room - room % suite.block_len();
        (kept + body.saturating_sub(2)) as u16
    }

    /// Whether the SA's selectors admit the flow.
    pub fn admits(&self, flow: &Flow) -> bool {
        self.ends.admit(flow)
    }

    /// Turns the plain IP packet in `packet` into an ESP packet. The rooms of `packet` must hold what is added:
    /// at most 84 bytes in front and 49 behind.
    ///
    /// On error the packet is as it was, unless the reason is [`DropReason::EspAuthFailed`] (the provider
    /// failed). Selectors are the caller's business: see [`OutboundSa::admits`].
    ///
    /// # Errors
    /// Reason to drop the packet: limits, sequence space, size, rooms, fragments in transport mode.
    pub fn seal(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Sealed, DropReason> {
        self.meter.check(now)?;
        let plan = self.plan(now, packet)?;
        let sequence = self.next_sequence()?;
        let plain_len = packet.len();
        self.lay_out(packet, &plan, sequence)
            .ok_or(DropReason::NoHeadroom)?;
        let bytes = packet.bytes_mut();
        let end = bytes.len();
        self.encrypt(bytes, plan.esp_at, end, sequence, rng)?;
        if self.encap.is_some() {
            checksum::finish_udp(bytes, plan.esp_at - UDP_LEN, end);
        }
        self.meter.count(now, plain_len);
        Ok(Sealed { sequence })
    }

    /// As [`OutboundSa::seal`] whatever the path takes: the caller cuts the packet.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn seal_whole(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Sealed, DropReason> {
        let known = self.swap_path_mtu(PathMtu::NONE);
        let sealed = self.seal(now, packet, rng);
        self.swap_path_mtu(known);
        sealed
    }

    /// Measures the packet to be made, and checks that it can be.
    fn plan(&self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<Plan, DropReason> {
        let suite = self.shape;
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
        let (kept, next_header) = match tunnel {
            false if ip.fragment => return Err(DropReason::EspFragment),
            false => (ip.payload_at, ip.protocol),
            true if ip.is_v4() => (0, protocol::IPIP),
            true => (0, protocol::IPV6),
        };
        let udp_len = if self.encap.is_some() { UDP_LEN } else { 0 };
        let front = outer_len + udp_len + ESP_LEN + suite.iv_len();
        // Payload, padding, pad length and next header fill whole blocks (RFC 4303 §2.4).
        let padding = (ip.end - kept + 2).next_multiple_of(suite.block_len()) - (ip.end - kept + 2);
        let back = padding + 2 + suite.icv_len();
        let total = ip.end + front + back;
        let outer_v4 = if tunnel { self.remote.is_ipv4() } else { ip.is_v4() };
        let limit = self.path_mtu.at(now).map_or(ip::max_len(outer_v4), usize::from);
        if total > limit {
            return Err(DropReason::TooBig);
        }
        if packet.headroom() < front || packet.tailroom() < back {
            return Err(DropReason::NoHeadroom);
        }
        Ok(Plan {
            kept,
            tunnel,
            protocol_at: if tunnel { 0 } else { ip.protocol_at },
            esp_at: kept + outer_len + udp_len,
            front,
            padding,
            back,
            next_header,
            inner: Inner::of(packet.bytes(), &ip, self.outer),
        })
    }

    /// Makes room and writes everything but the ESP header and what the transform writes.
    fn lay_out(&self, packet: &mut PacketBuf<'_>, plan: &Plan, sequence: u64) -> Option<()> {
        packet.open_gap(plan.kept, plan.front)?;
        let trailer = packet.grow_back(plan.back)?;
        for (byte, value) in trailer.iter_mut().zip(1..=plan.padding) {
            *byte = value as u8;
        }
        *trailer.get_mut(plan.padding)? = plan.padding as u8;
        *trailer.get_mut(plan.padding + 1)? = plan.next_header;
        let bytes = packet.bytes_mut();
        let carried = if self.encap.is_some() {
            protocol::UDP
        } else {
            protocol::ESP
        };
        if plan.tunnel {
            outer::write(
                bytes,
                self.local,
                self.remote,
                carried,
                &plan.inner,
                sequence as u16,
            );
        } else {
            *bytes.get_mut(plan.protocol_at)? = carried;
        }
        ip::finish_header(bytes);
        if let Some(encap) = self.encap {
            let at = plan.esp_at - UDP_LEN;
            let len = bytes.len() - at;
            put16(bytes, at, encap.local_port);
            put16(bytes, at + 2, encap.remote_port);
            put16(bytes, at + 4, len as u16);
        }
        Some(())
    }

    /// Writes ESP header and IV for `sequence`, encrypts payload and trailer, writes the ICV.
    fn encrypt(
        &mut self,
        bytes: &mut [u8],
        esp_at: usize,
        end: usize,
        sequence: u64,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        let suite = self.shape;
        let malformed = DropReason::EspMalformed;
        let esp = bytes.get_mut(esp_at..end).ok_or(malformed)?;
        let (header, rest) = esp.split_first_chunk_mut::<ESP_LEN>().ok_or(malformed)?;
        let (iv, rest) = rest.split_at_mut_checked(suite.iv_len()).ok_or(malformed)?;
        let body = rest.len().checked_sub(suite.icv_len()).ok_or(malformed)?;
        let (payload, icv) = rest.split_at_mut_checked(body).ok_or(malformed)?;
        // One store, which the cipher then reads in one piece.
        let numbers = (u64::from(self.spi.0) << 32 | (sequence & 0xffff_ffff)).to_be_bytes();
        *header = numbers;
        if suite.counter {
            // RFC 4106 §3.1: a counter; ours is the sequence number, all 64 bits, ESN or not. It stays below 2^63,
            // so the half does not disturb it.
            let iv = <&mut [u8; 8]>::try_from(&mut *iv).map_err(|_| malformed)?;
            *iv = (sequence | self.iv_half).to_be_bytes();
        } else {
            let mut fresh = [0; MAX_IV];
            let fresh = fresh.get_mut(..iv.len()).ok_or(malformed)?;
            rng.fill(fresh);
            iv.copy_from_slice(fresh);
        }
        let parts = EspParts {
            header: numbers,
            esn_high: self.esn.then_some((sequence >> 32) as u32),
            iv,
            payload,
            icv,
        };
        self.transform.seal(parts).map_err(|_| DropReason::EspAuthFailed)
    }

    /// Seals the plain ESP packet at `esp_at..end` of `bytes` where it lies; for the bridge.
    pub(crate) fn reseal(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        esp_at: usize,
        end: usize,
        plain_len: usize,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Sealed, DropReason> {
        let sequence = self.next_sequence()?;
        self.encrypt(bytes, esp_at, end, sequence, rng)?;
        self.meter.count(now, plain_len);
        Ok(Sealed { sequence })
    }

    /// The next number; never the same twice, never zero (RFC 4303 §3.3.3).
    fn next_sequence(&mut self) -> Result<u64, DropReason> {
        let last = if self.esn { LAST_ESN } else { u64::from(u32::MAX) };
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

/// The packet to be made.
struct Plan {
    /// Bytes of IP header that stay in front of ESP.
    kept: usize,
    /// Behind a new IP header.
    tunnel: bool,
    protocol_at: usize,
    /// Offset of the ESP header in the packet to be made.
    esp_at: usize,
    front: usize,
    padding: usize,
    back: usize,
    next_header: u8,
    inner: Inner,
}
