//! What a gateway does with an SA of class `full`: opens with one segment's keys, seals with the other's.
//!
//! ```text
//!   terminal ══ segment keys ══► open | seal ══ peer's keys ══► peer        to_peer
//!   terminal ◄══ segment keys ══ seal | open ◄══ peer's keys ══ peer        to_terminal
//! ```
//!
//! Both segments have the same SPIs, suite, mode and encapsulation, so the packet keeps its length and every
//! byte its place: decrypted, checked, numbered anew and encrypted where it lies. Each of the four halves has
//! its own sequence numbers; the two senders' keys differ, so no nonce can meet its twin (spec row N2).

use towpath_base::crypto::{EspProvider, EspTransform, InvalidKey, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspKeys, Mode};
use towpath_base::{DropReason, Instant};

use crate::checksum::{self, ChecksumRepair};
use crate::highwater::Reserved;
use crate::inbound::{DEFAULT_WINDOW_WORDS, InboundSa, Opened};
pub use crate::lifetime::LifetimeEvent;
use crate::locate;
use crate::outbound::{OutboundSa, Sealed};

/// Both directions of one SA pair at a gateway.
///
/// Build it once per set of keys: a second one would start its counters, hence its nonces, over.
#[derive(Debug)]
pub struct Bridge<T, const WORDS: usize = DEFAULT_WINDOW_WORDS> {
    from_terminal: InboundSa<T, WORDS>,
    to_peer: OutboundSa<T>,
    from_peer: InboundSa<T, WORDS>,
    to_terminal: OutboundSa<T>,
    told: Option<LifetimeEvent>,
}

impl<T: EspTransform, const WORDS: usize> Bridge<T, WORDS> {
    /// `peer`: the SA as negotiated, seen from the terminal. `segment_in`: keys of what the terminal receives,
    /// `segment_out`: of what it sends. Limits are counted on the peer's segment.
    ///
    /// # Errors
    /// [`InvalidKey`] if any keys do not fit the suite.
    pub fn new<P>(
        provider: &P,
        now: Instant,
        peer: &ChildSa,
        segment_in: &EspKeys,
        segment_out: &EspKeys,
    ) -> Result<Self, InvalidKey>
    where
        P: EspProvider<Transform = T>,
    {
        let mut from_peer = InboundSa::with_keys(provider, now, peer, &peer.keys_in)?;
        let mut from_terminal =
            InboundSa::with_keys(provider, now, peer, segment_out)?.reversed(peer.spi_out);
        if peer.encap.is_some() && peer.mode == Mode::Transport {
            // Behind a NAT the sender summed other addresses (RFC 3948 §3.1.2); the relay looks at the sum. What is
            // bridged without being opened keeps it.
            from_peer.set_checksum_repair(ChecksumRepair::Recompute);
            from_terminal.set_checksum_repair(ChecksumRepair::Recompute);
        }
        Ok(Self {
            from_terminal,
            to_peer: OutboundSa::new(provider, now, peer)?,
            from_peer: from_peer.limited(peer.lifetime, now),
            to_terminal: OutboundSa::with_keys(provider, now, peer, segment_in)?.reversed(peer.spi_in),
            told: None,
        })
    }

    /// A packet of the terminal: in `packet` for the peer afterwards. On error its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn to_peer(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        self.to_peer.meter_mut().check(now)?;
        through(
            &mut self.from_terminal,
            &mut self.to_peer,
            now,
            packet.bytes_mut(),
            rng,
        )
    }

    /// A packet of the peer: in `packet` for the terminal afterwards. On error its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn to_terminal(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        through(
            &mut self.from_peer,
            &mut self.to_terminal,
            now,
            packet.bytes_mut(),
            rng,
        )
    }

    /// A packet of the terminal, opened for the relay: the plain IP packet is in `packet` afterwards. On error its
    /// contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn open_from_terminal(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
    ) -> Result<Opened, DropReason> {
        self.from_terminal.open(now, packet)
    }

    /// As [`Bridge::open_from_terminal`], for a packet of the peer.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn open_from_peer(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<Opened, DropReason> {
        self.from_peer.open(now, packet)
    }

    /// Seals the plain IP packet in `packet` for the peer; see [`OutboundSa::seal`]. Counts in the same sequence as
    /// [`Bridge::to_peer`].
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn seal_to_peer(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Sealed, DropReason> {
        self.to_peer.seal(now, packet, rng)
    }

    /// As [`Bridge::seal_to_peer`], for the terminal.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn seal_to_terminal(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Sealed, DropReason> {
        self.to_terminal.seal(now, packet, rng)
    }

    /// A limit reached by either direction since the last call; each limit once for the pair.
    #[inline]
    pub fn take_event(&mut self) -> Option<LifetimeEvent> {
        let halves = [
            self.to_peer.meter_mut().take_event(),
            self.from_peer.meter_mut().take_event(),
            self.to_terminal.meter_mut().take_event(),
        ];
        let event = halves.into_iter().flatten().max()?;
        (self.told < Some(event)).then(|| {
            self.told = Some(event);
            event
        })
    }

    /// Notices limits in time without a packet; see [`Bridge::take_event`].
    pub fn tick(&mut self, now: Instant) {
        self.to_peer.meter_mut().tick(now);
        self.from_peer.meter_mut().tick(now);
    }

    /// For keys that outlive the process: uses only numbers that are stored; see [`crate::highwater`].
    pub fn start_reserved(&mut self, to_peer: Reserved, to_terminal: Reserved) {
        self.to_peer.start_reserved(to_peer);
        self.to_terminal.start_reserved(to_terminal);
    }

    /// Chooses both replay windows; see [`InboundSa::set_replay_window`].
    pub fn set_replay_window(&mut self, packets: u32) -> Option<()> {
        self.from_terminal.set_replay_window(packets)?;
        self.from_peer.set_replay_window(packets)
    }

    /// The limits to store next, first of the sender to the peer. Asked again until [`Bridge::reserve`]d.
    pub const fn wanted(&self) -> [Option<u64>; 2] {
        [self.to_peer.wants_reserved(), self.to_terminal.wants_reserved()]
    }

    /// `limit` is stored: for the sender to the peer, or to the terminal.
    pub const fn reserve(&mut self, to_peer: bool, limit: u64) {
        if to_peer {
            self.to_peer.reserve(limit);
        } else {
            self.to_terminal.reserve(limit);
        }
    }

    /// The half that sends to the peer.
    pub const fn peer_sender(&self) -> &OutboundSa<T> {
        &self.to_peer
    }

    /// The half that sends to the terminal.
    pub const fn terminal_sender(&self) -> &OutboundSa<T> {
        &self.to_terminal
    }

    /// The half that receives from the peer.
    pub const fn peer_receiver(&self) -> &InboundSa<T, WORDS> {
        &self.from_peer
    }

    /// The half that receives from the terminal.
    pub const fn terminal_receiver(&self) -> &InboundSa<T, WORDS> {
        &self.from_terminal
    }
}

fn through<T: EspTransform, const WORDS: usize>(
    from: &mut InboundSa<T, WORDS>,
    to: &mut OutboundSa<T>,
    now: Instant,
    bytes: &mut [u8],
    rng: &mut (impl Rng + ?Sized),
) -> Result<(), DropReason> {
    let at = locate::esp(bytes)?;
    let plain = from.decrypt(now, bytes, &at)?;
    let len = plain.len(from.mode(), &at);
    from.meter_mut().count(now, len);
    to.reseal(now, bytes, at.esp_at, at.end, len, rng)?;
    if let Some(udp_at) = at.udp_at {
        checksum::finish_udp(bytes, udp_at, at.end);
    }
    Ok(())
}
