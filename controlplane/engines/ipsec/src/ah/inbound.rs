//! The receiving half of an AH SA.

use towpath_base::crypto::{IcvProvider, IcvTransform, InvalidKey};
use towpath_base::packet::PacketBuf;
use towpath_base::replay::ReplayWindow;
use towpath_base::sa::{AhSa, Lifetime, Mode, Selectors};
use towpath_base::{DropReason, Instant, Key, Spi};
use towpath_common::wire::protocol;

use super::{Covered, LocatedAh, locate};
use crate::inbound::{DEFAULT_WINDOW_WORDS, Opened, behind_extensions, tos};
use crate::ip::{self, Ip, Walk};
use crate::lifetime::Meter;
use crate::locate::Flow;
use crate::mode::{came_tunnelled, is_ip};
use crate::outer;

/// One direction of an AH SA at its receiver.
#[derive(Debug)]
pub struct AhInbound<I, const WORDS: usize = DEFAULT_WINDOW_WORDS> {
    icv: I,
    spi: Spi,
    esn: bool,
    mode: Mode,
    bundled: bool,
    window: ReplayWindow<WORDS>,
    sources: Selectors,
    destinations: Selectors,
    meter: Meter,
}

impl<I: IcvTransform, const WORDS: usize> AhInbound<I, WORDS> {
    /// What the local end of `sa` receives with.
    ///
    /// # Errors
    /// [`InvalidKey`] if the key does not fit the algorithm.
    pub fn new<P>(provider: &P, now: Instant, sa: &AhSa) -> Result<Self, InvalidKey>
    where
        P: IcvProvider<Icv = I>,
    {
        let mut inbound = Self::with_key(provider, now, sa, &sa.key_in)?;
        inbound.meter = Meter::new(sa.lifetime, now);
        Ok(inbound)
    }

    /// As [`AhInbound::new`] with another key and without limits: a segment of the same SA.
    pub(super) fn with_key<P>(provider: &P, now: Instant, sa: &AhSa, key: &Key) -> Result<Self, InvalidKey>
    where
        P: IcvProvider<Icv = I>,
    {
        Ok(Self {
            icv: provider.icv(sa.integrity, key)?,
            spi: sa.spi_in,
            esn: sa.esn,
            mode: sa.mode,
            bundled: sa.bundled,
            window: ReplayWindow::new(),
            sources: sa.remote_ts,
            destinations: sa.local_ts,
            meter: Meter::new(Lifetime::default(), now),
        })
    }

    /// The same SA seen from its far end.
    pub(super) const fn reversed(mut self, spi: Spi) -> Self {
        (self.sources, self.destinations) = (self.destinations, self.sources);
        self.spi = spi;
        self
    }

    /// Chooses a replay window of `packets` numbers, 64 to 4096; see
    /// [`InboundSa::set_replay_window`](crate::InboundSa::set_replay_window).
    pub fn set_replay_window(&mut self, packets: u32) -> Option<()> {
        self.window = ReplayWindow::sized(packets)?;
        Some(())
    }

    /// SPI of the packets it opens.
    pub const fn spi(&self) -> Spi {
        self.spi
    }

    /// Transport, tunnel or either.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Accepts nothing up to `highest` any more: a former owner of the same SA may have.
    pub(crate) fn resume_window(&mut self, highest: u64) {
        self.window.resume(highest);
    }

    /// Highest sequence number accepted so far.
    pub const fn highest_sequence(&self) -> u64 {
        self.window.highest()
    }

    /// Limits and counters.
    pub const fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Limits and counters, to take events from.
    pub const fn meter_mut(&mut self) -> &mut Meter {
        &mut self.meter
    }

    /// Turns the AH packet in `packet` into the IP packet it protects. On error the contents are unspecified.
    ///
    /// Of a bundle what remains is an ESP packet, its selectors not looked at yet: open it with its ESP SA.
    ///
    /// # Errors
    /// Reason to drop the packet. [`DropReason::EspDummy`] is no fault of anybody.
    pub fn open(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<Opened, DropReason> {
        let at = locate(packet.bytes())?;
        let (sequence, flow, len) = self.check(now, packet.bytes_mut(), &at)?;
        self.uncover(packet, &at, len)?;
        self.meter.count(now, packet.len());
        Ok(Opened {
            sequence,
            flow,
            tunnelled: came_tunnelled(self.mode, at.next_header),
        })
    }

    /// Checks everything where the packet lies. The last of the result is the length of what AH carries.
    pub(crate) fn check(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        at: &LocatedAh,
    ) -> Result<(u64, Flow, usize), DropReason> {
        if at.spi != self.spi {
            return Err(DropReason::EspUnknownSpi);
        }
        self.meter.check(now)?;
        let sequence = if self.esn {
            self.window.extend(at.sequence)
        } else {
            u64::from(at.sequence)
        };
        self.window.check(sequence).map_err(|_| DropReason::EspReplayed)?;
        let high = self.esn.then_some((sequence >> 32) as u32);
        Covered::of(bytes, at, self.icv.integrity().icv_len(), high)?.verify(&mut self.icv)?;
        // Only now is the sequence number to be believed (RFC 4302 §3.4.3).
        self.window
            .accept(sequence)
            .map_err(|_| DropReason::EspReplayed)?;
        let payload = bytes.get(at.payload_at..at.end).ok_or(DropReason::AhMalformed)?;
        let (flow, len) = self.flow(at, payload)?;
        let selected = if self.bundled {
            at.next_header == protocol::ESP
        } else {
            flow.matches(&self.sources, &self.destinations)
        };
        if !selected {
            return Err(DropReason::EspSelectorMismatch);
        }
        Ok((sequence, flow, len))
    }

    fn flow(&self, at: &LocatedAh, payload: &[u8]) -> Result<(Flow, usize), DropReason> {
        if at.next_header == protocol::NO_NEXT_HEADER {
            return Err(DropReason::EspDummy);
        }
        if !came_tunnelled(self.mode, at.next_header) {
            let flow = behind_extensions(at.source, at.destination, at.next_header, payload)?;
            return Ok((flow, payload.len()));
        }
        if !is_ip(at.next_header) {
            return Err(DropReason::AhMalformed);
        }
        let inner = Ip::parse(payload, Walk::ToUpperLayer)?;
        if inner.is_v4() != (at.next_header == protocol::IPIP) {
            return Err(DropReason::BadIpHeader);
        }
        Ok((Flow::of(payload)?, inner.end))
    }

    fn uncover(&self, packet: &mut PacketBuf<'_>, at: &LocatedAh, len: usize) -> Result<(), DropReason> {
        let malformed = DropReason::AhMalformed;
        let behind = packet.len().checked_sub(at.payload_at + len).ok_or(malformed)?;
        packet.strip_back(behind).ok_or(malformed)?;
        if came_tunnelled(self.mode, at.next_header) {
            let tos = tos(packet.bytes());
            packet.strip_front(at.payload_at).ok_or(malformed)?;
            outer::propagate_ecn(tos, packet.bytes_mut())?;
        } else {
            *packet.bytes_mut().get_mut(at.protocol_at).ok_or(malformed)? = at.next_header;
            let ah_len = at.payload_at.checked_sub(at.ah_at).ok_or(malformed)?;
            packet.cut(at.ah_at, ah_len).ok_or(malformed)?;
            ip::finish_header(packet.bytes_mut());
        }
        Ok(())
    }
}
