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

use core::time::Duration;

use towpath_base::crypto::{EspProvider, EspTransform, InvalidKey, Rng, Whereabouts};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspKeys, Lifetime};
use towpath_base::{DropReason, Instant};

use crate::checksum::{self, ChecksumRepair};
use crate::ends::Ends;
use crate::highwater::Reserved;
use crate::inbound::{DEFAULT_WINDOW_WORDS, InboundSa, Opened};
pub use crate::lifetime::LifetimeEvent;
use crate::lifetime::Meter;
use crate::locate::{self, Located};
use crate::outbound::{OutboundSa, Sealed};
use crate::used::Used;

/// Both directions of one SA pair at a gateway.
///
/// Build it once per set of keys: a second one would start its counters, hence its nonces, over.
#[derive(Debug)]
#[repr(C)] // The fields both directions look at lie between them, beside either.
pub struct Bridge<T, const WORDS: usize = DEFAULT_WINDOW_WORDS> {
    to_peer: Way<T, WORDS>,
    /// Reached and not yet told.
    pending: Option<LifetimeEvent>,
    told: Option<LifetimeEvent>,
    /// Bytes of other SAs to ask for between opening and sealing.
    later: Option<Whereabouts>,
    to_terminal: Way<T, WORDS>,
}

/// One direction: all that a packet needs, side by side.
#[derive(Debug)]
struct Way<T, const WORDS: usize> {
    from: InboundSa<T, WORDS>,
    to: OutboundSa<T>,
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
        let ends = Ends::outward(peer);
        let (limited, endless) = (
            Meter::new(peer.lifetime, now),
            Meter::new(Lifetime::default(), now),
        );
        // The relay looks at the sum inside. What is bridged without being opened keeps it.
        let repair = ChecksumRepair::wanted(peer);
        let from_peer = InboundSa::with_keys(
            provider,
            limited.clone(),
            peer,
            &peer.keys_in,
            ends.clone(),
            repair,
        )?;
        let from_terminal =
            InboundSa::with_keys(provider, endless.clone(), peer, segment_out, ends.clone(), repair)?
                .reversed(peer.spi_out);
        let to_peer = OutboundSa::with_keys(provider, limited, peer, &peer.keys_out, ends.clone())?;
        let to_terminal =
            OutboundSa::with_keys(provider, endless, peer, segment_in, ends)?.reversed(peer.spi_in);
        Ok(Self {
            to_peer: Way {
                from: from_terminal,
                to: to_peer,
            },
            pending: None,
            told: None,
            later: None,
            to_terminal: Way {
                from: from_peer,
                to: to_terminal,
            },
        })
    }

    /// Tells the processor that a packet is coming, some packets from now: to the peer, or to the terminal. It finds out
    /// where in memory the SA is, which with many SAs takes longer than to fetch it: ask about a whole batch at once, so
    /// that it looks for several at a time. Changes nothing but time.
    #[inline]
    pub fn announce(&self, to_peer: bool) {
        let way = if to_peer { &self.to_peer } else { &self.to_terminal };
        // One place of either half: a direction lies on two pages at most.
        T::prefetch(way.from.spi_ref());
        T::prefetch(way.to.spi_ref());
    }

    /// Tells the processor that a packet is coming, next or soon after; see [`Bridge::announce`]. Asks for the half that
    /// opens, and returns where the one that seals is, to be asked for [a little later](Bridge::meanwhile): a processor keeps
    /// some twenty lines of memory in flight, and whoever asks for more waits.
    #[inline]
    pub fn expect(&self, to_peer: bool) -> Whereabouts {
        let way = if to_peer { &self.to_peer } else { &self.to_terminal };
        T::prefetch(&way.from);
        T::prefetch(&self.pending);
        Whereabouts::of(&way.to)
    }

    /// Once the next packet is opened and not yet sealed, these bytes are asked for. Changes nothing but time.
    #[inline]
    pub const fn meanwhile(&mut self, bytes: Option<Whereabouts>) {
        self.later = bytes;
    }

    /// Works on one direction, and keeps what it has to tell.
    #[inline]
    fn on<R>(&mut self, to_peer: bool, work: impl FnOnce(&mut Way<T, WORDS>) -> R) -> R {
        let way = if to_peer {
            &mut self.to_peer
        } else {
            &mut self.to_terminal
        };
        let result = work(way);
        if let Some(event) = way.take_event() {
            self.pending = self.pending.max(Some(event));
        }
        result
    }

    /// The ESP packet in `packet`, which is at `at`, one segment further: to the peer, or to the terminal. On error its
    /// contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    #[inline]
    pub fn pass(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        at: &Located,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        let bytes = packet.bytes_mut();
        let later = self.later.take();
        self.on(to_peer, |way| {
            let len = way.open_in_place(now, bytes, at)?;
            later.into_iter().for_each(T::fetch);
            way.seal_in_place(now, bytes, at, len, rng)
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
        let at = locate::esp(packet.bytes())?;
        self.pass(true, now, packet, &at, rng)
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
        let at = locate::esp(packet.bytes())?;
        self.pass(false, now, packet, &at, rng)
    }

    /// A packet on its way to the peer, or to the terminal, opened for the relay: the plain IP packet is in `packet`
    /// afterwards. On error its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn open(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
    ) -> Result<Opened, DropReason> {
        let later = self.later.take();
        let opened = self.on(to_peer, |way| way.from.open(now, packet));
        later.into_iter().for_each(T::fetch);
        if let Ok(opened) = &opened {
            // What this end sends goes on as it came; what is said to it in another's name, too, until that one sends.
            self.to_peer.to.follow(opened.tunnelled, !to_peer);
            self.to_terminal.to.follow(opened.tunnelled, to_peer);
        }
        opened
    }

    /// Seals the plain IP packet in `packet` for the peer, or for the terminal; see [`OutboundSa::seal`]. Counts in the
    /// same sequence as [`Bridge::pass`].
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn seal(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Sealed, DropReason> {
        self.on(to_peer, |way| way.to.seal(now, packet, rng))
    }

    /// A limit reached by either direction since the last call; each limit once for the pair.
    #[inline]
    pub fn take_event(&mut self) -> Option<LifetimeEvent> {
        let event = self.pending.take()?;
        (self.told < Some(event)).then(|| {
            self.told = Some(event);
            event
        })
    }

    /// Notices limits in time without a packet; see [`Bridge::take_event`].
    pub fn tick(&mut self, now: Instant) {
        self.on(true, |way| way.to.meter_mut().tick(now));
        self.on(false, |way| way.from.meter_mut().tick(now));
    }

    /// For keys that outlive the process: uses only numbers that are stored; see [`crate::highwater`].
    pub fn start_reserved(&mut self, to_peer: Reserved, to_terminal: Reserved) {
        self.to_peer.to.start_reserved(to_peer);
        self.to_terminal.to.start_reserved(to_terminal);
    }

    /// Chooses both replay windows; see [`InboundSa::set_replay_window`].
    pub fn set_replay_window(&mut self, packets: u32) -> Option<()> {
        self.to_peer.from.set_replay_window(packets)?;
        self.to_terminal.from.set_replay_window(packets)
    }

    /// What it has used up.
    pub const fn used(&self) -> Used {
        let (to_peer, to_terminal) = (self.to_peer.to.meter(), self.to_terminal.from.meter());
        Used {
            received: [
                self.to_peer.from.highest_sequence(),
                self.to_terminal.from.highest_sequence(),
            ],
            packets: [to_peer.packets(), to_terminal.packets()],
            bytes: [to_peer.bytes(), to_terminal.bytes()],
        }
    }

    /// Goes on where a former owner of the same SA was, `age` old. After [`Bridge::set_replay_window`].
    pub fn resume(&mut self, used: &Used, age: Duration) {
        let Used {
            received: [terminal, peer],
            packets,
            bytes,
        } = *used;
        self.to_peer.from.resume_window(terminal);
        self.to_terminal.from.resume_window(peer);
        self.to_peer.to.meter_mut().resume(age, packets[0], bytes[0]);
        let meter = self.to_terminal.from.meter_mut();
        meter.resume(age, packets[1], bytes[1]);
    }

    /// The limits to store next, first of the sender to the peer. Asked again until [`Bridge::reserve`]d.
    pub const fn wanted(&self) -> [Option<u64>; 2] {
        [
            self.to_peer.to.wants_reserved(),
            self.to_terminal.to.wants_reserved(),
        ]
    }

    /// `limit` is stored: for the sender to the peer, or to the terminal.
    pub const fn reserve(&mut self, to_peer: bool, limit: u64) {
        if to_peer {
            self.to_peer.to.reserve(limit);
        } else {
            self.to_terminal.to.reserve(limit);
        }
    }

    /// The half that sends to the peer, else the one to the terminal.
    pub const fn sender(&self, to_peer: bool) -> &OutboundSa<T> {
        if to_peer {
            &self.to_peer.to
        } else {
            &self.to_terminal.to
        }
    }

    /// As [`Bridge::sender`], to tell it of a path MTU.
    pub const fn sender_mut(&mut self, to_peer: bool) -> &mut OutboundSa<T> {
        if to_peer {
            &mut self.to_peer.to
        } else {
            &mut self.to_terminal.to
        }
    }

    /// The half that sends to the peer.
    pub const fn peer_sender(&self) -> &OutboundSa<T> {
        &self.to_peer.to
    }

    /// The half that sends to the terminal.
    pub const fn terminal_sender(&self) -> &OutboundSa<T> {
        &self.to_terminal.to
    }

    /// The half that receives from the peer.
    pub const fn peer_receiver(&self) -> &InboundSa<T, WORDS> {
        &self.to_terminal.from
    }

    /// The half that receives from the terminal.
    pub const fn terminal_receiver(&self) -> &InboundSa<T, WORDS> {
        &self.to_peer.from
    }
}

impl<T: EspTransform, const WORDS: usize> Way<T, WORDS> {
    /// Returns the length of the plain IP packet.
    #[inline]
    fn open_in_place(&mut self, now: Instant, bytes: &mut [u8], at: &Located) -> Result<usize, DropReason> {
        self.to.meter_mut().check(now)?;
        let plain = self.from.decrypt(now, bytes, at)?;
        let len = plain.len(self.from.mode(), at);
        self.from.meter_mut().count(now, len);
        Ok(len)
    }

    #[inline]
    fn seal_in_place(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        at: &Located,
        len: usize,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        self.to.reseal(now, bytes, at.esp_at, at.end, len, rng)?;
        if let Some(udp_at) = at.udp_at {
            checksum::finish_udp(bytes, udp_at, at.end);
        }
        Ok(())
    }

    #[inline]
    fn take_event(&mut self) -> Option<LifetimeEvent> {
        let to = self.to.meter_mut().take_event();
        to.max(self.from.meter_mut().take_event())
    }
}
