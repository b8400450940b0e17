//! What a gateway does with an AH SA of class `full`: checks with one segment's key, signs with the other's.

use core::time::Duration;

use towpath_base::crypto::{IcvProvider, IcvTransform, InvalidKey};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::AhSa;
use towpath_base::{DropReason, Instant, Key};

use super::{AhInbound, AhOutbound, LocatedAh, locate};
use crate::highwater::Reserved;
use crate::inbound::{DEFAULT_WINDOW_WORDS, Opened};
use crate::lifetime::LifetimeEvent;
use crate::outbound::Sealed;
use crate::used::Used;

/// Both directions of one AH SA pair at a gateway; see [`crate::Bridge`] for the picture.
#[derive(Debug)]
pub struct AhBridge<I, const WORDS: usize = DEFAULT_WINDOW_WORDS> {
    from_terminal: AhInbound<I, WORDS>,
    to_peer: AhOutbound<I>,
    from_peer: AhInbound<I, WORDS>,
    to_terminal: AhOutbound<I>,
    numbers: Numbers,
    told: Option<LifetimeEvent>,
}

/// Where the sequence numbers of a bridge come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// The gateway's own: the segments have keys of their own.
    Own,
    /// Never below the endpoint's, for the key is the endpoint's, too: then its packets can go by themselves again.
    AboveTheEndpoints,
}

impl<I: IcvTransform, const WORDS: usize> AhBridge<I, WORDS> {
    /// `peer`: the SA seen from the terminal. `segment_in`: key of what the terminal receives, `segment_out`: of what
    /// it sends. Limits are counted on the peer's segment.
    ///
    /// # Errors
    /// [`InvalidKey`] if any key does not fit the algorithm.
    pub fn new<P>(
        provider: &P,
        now: Instant,
        peer: &AhSa,
        segment_in: &Key,
        segment_out: &Key,
    ) -> Result<Self, InvalidKey>
    where
        P: IcvProvider<Icv = I>,
    {
        Ok(Self {
            from_terminal: AhInbound::with_key(provider, now, peer, segment_out)?.reversed(peer.spi_out),
            to_peer: AhOutbound::new(provider, now, peer)?,
            from_peer: AhInbound::new(provider, now, peer)?,
            to_terminal: AhOutbound::with_key(provider, now, peer, segment_in)?.reversed(peer.spi_in),
            numbers: Numbers::Own,
            told: None,
        })
    }

    /// Both ends and the gateway hold the keys of `sa`. An HMAC has no nonce to repeat; while the gateway intervenes it is
    /// the only sender towards each end, so numbers are all that has to be kept in order.
    ///
    /// # Errors
    /// [`InvalidKey`] if any key does not fit the algorithm.
    pub fn shared<P>(provider: &P, now: Instant, sa: &AhSa) -> Result<Self, InvalidKey>
    where
        P: IcvProvider<Icv = I>,
    {
        let mut bridge = Self::new(provider, now, sa, &sa.key_in, &sa.key_out)?;
        bridge.numbers = Numbers::AboveTheEndpoints;
        Ok(bridge)
    }

    /// The AH packet in `packet` one segment further: to the peer, or to the terminal. On error its contents are
    /// unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn pass(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
    ) -> Result<(), DropReason> {
        let at = locate(packet.bytes())?;
        let (number, len) = self.check(to_peer, now, packet.bytes_mut(), &at)?;
        self.resign(to_peer, now, packet.bytes_mut(), &at, number, len)
    }

    /// Checks a packet of the terminal, else of the peer, where it lies; returns its number and the length of what AH
    /// carries.
    pub(crate) fn check(
        &mut self,
        to_peer: bool,
        now: Instant,
        bytes: &mut [u8],
        at: &LocatedAh,
    ) -> Result<(u64, usize), DropReason> {
        let from = if to_peer {
            self.to_peer.meter_mut().check(now)?;
            &mut self.from_terminal
        } else {
            &mut self.from_peer
        };
        let (number, _, len) = from.check(now, bytes, at)?;
        from.meter_mut().count(now, len);
        Ok((number, len))
    }

    /// Numbers and signs it for the other end.
    pub(crate) fn resign(
        &mut self,
        to_peer: bool,
        now: Instant,
        bytes: &mut [u8],
        at: &LocatedAh,
        number: u64,
        len: usize,
    ) -> Result<(), DropReason> {
        self.follow(to_peer, number);
        self.sender_mut(to_peer).resign(now, bytes, at, len).map(|_| ())
    }

    /// An endpoint used `number` that way.
    fn follow(&mut self, to_peer: bool, number: u64) {
        if self.numbers == Numbers::AboveTheEndpoints {
            self.sender_mut(to_peer).skip_to(number.saturating_sub(1));
        }
    }

    /// Opens a packet of the terminal, else of the peer; see [`AhInbound::open`].
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn open(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
    ) -> Result<Opened, DropReason> {
        let opened = if to_peer {
            self.from_terminal.open(now, packet)
        } else {
            self.from_peer.open(now, packet)
        }?;
        self.follow(to_peer, opened.sequence);
        // As in a bridge of ESP: on as it came.
        self.to_peer.follow(opened.tunnelled, !to_peer);
        self.to_terminal.follow(opened.tunnelled, to_peer);
        Ok(opened)
    }

    /// Puts AH into a packet for the peer, else for the terminal; see [`AhOutbound::seal`].
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn seal(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
    ) -> Result<Sealed, DropReason> {
        self.sender_mut(to_peer).seal(now, packet)
    }

    /// A limit reached by either direction since the last call; each limit once for the pair.
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

    /// Notices limits in time without a packet.
    pub fn tick(&mut self, now: Instant) {
        self.to_peer.meter_mut().tick(now);
        self.from_peer.meter_mut().tick(now);
    }

    /// For keys that outlive the process: uses only numbers that are stored; see [`crate::highwater`].
    pub fn start_reserved(&mut self, to_peer: Reserved, to_terminal: Reserved) {
        self.to_peer.start_reserved(to_peer);
        self.to_terminal.start_reserved(to_terminal);
    }

    /// Chooses both replay windows; see [`AhInbound::set_replay_window`].
    pub fn set_replay_window(&mut self, packets: u32) -> Option<()> {
        self.from_terminal.set_replay_window(packets)?;
        self.from_peer.set_replay_window(packets)
    }

    /// What it has used up.
    pub const fn used(&self) -> Used {
        let (to_peer, to_terminal) = (self.to_peer.meter(), self.from_peer.meter());
        Used {
            received: [
                self.from_terminal.highest_sequence(),
                self.from_peer.highest_sequence(),
            ],
            packets: [to_peer.packets(), to_terminal.packets()],
            bytes: [to_peer.bytes(), to_terminal.bytes()],
        }
    }

    /// Goes on where a former owner of the same SA was, `age` old. After [`AhBridge::set_replay_window`].
    pub fn resume(&mut self, used: &Used, age: Duration) {
        let Used {
            received: [terminal, peer],
            packets,
            bytes,
        } = *used;
        self.from_terminal.resume_window(terminal);
        self.from_peer.resume_window(peer);
        self.to_peer.meter_mut().resume(age, packets[0], bytes[0]);
        self.from_peer.meter_mut().resume(age, packets[1], bytes[1]);
    }

    /// The limits to store next, first of the sender to the peer.
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

    /// The half that sends to the peer, else the one to the terminal.
    pub const fn sender(&self, to_peer: bool) -> &AhOutbound<I> {
        if to_peer { &self.to_peer } else { &self.to_terminal }
    }

    /// As [`AhBridge::sender`], to tell it of a path MTU.
    pub const fn sender_mut(&mut self, to_peer: bool) -> &mut AhOutbound<I> {
        if to_peer {
            &mut self.to_peer
        } else {
            &mut self.to_terminal
        }
    }

    /// The half that receives from the terminal.
    pub const fn terminal_receiver(&self) -> &AhInbound<I, WORDS> {
        &self.from_terminal
    }

    /// The half that sends to the peer.
    pub const fn peer_sender(&self) -> &AhOutbound<I> {
        &self.to_peer
    }

    /// The half that sends to the terminal.
    pub const fn terminal_sender(&self) -> &AhOutbound<I> {
        &self.to_terminal
    }

    /// The half that receives from the peer.
    pub const fn peer_receiver(&self) -> &AhInbound<I, WORDS> {
        &self.from_peer
    }
}
