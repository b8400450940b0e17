//! What a gateway does with an AH SA of class `full`: checks with one segment's key, signs with the other's.

use towpath_base::crypto::{IcvProvider, IcvTransform, InvalidKey};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::AhSa;
use towpath_base::{DropReason, Instant, Key};

use super::{AhInbound, AhOutbound, locate};
use crate::inbound::DEFAULT_WINDOW_WORDS;

/// Both directions of one AH SA pair at a gateway; see [`crate::Bridge`] for the picture.
#[derive(Debug)]
pub struct AhBridge<I, const WORDS: usize = DEFAULT_WINDOW_WORDS> {
    from_terminal: AhInbound<I, WORDS>,
    to_peer: AhOutbound<I>,
    from_peer: AhInbound<I, WORDS>,
    to_terminal: AhOutbound<I>,
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
        })
    }

    /// A packet of the terminal: in `packet` for the peer afterwards. On error its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn to_peer(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<(), DropReason> {
        self.to_peer.meter_mut().check(now)?;
        through(&mut self.from_terminal, &mut self.to_peer, now, packet)
    }

    /// A packet of the peer: in `packet` for the terminal afterwards. On error its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn to_terminal(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<(), DropReason> {
        through(&mut self.from_peer, &mut self.to_terminal, now, packet)
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

fn through<I: IcvTransform, const WORDS: usize>(
    from: &mut AhInbound<I, WORDS>,
    to: &mut AhOutbound<I>,
    now: Instant,
    packet: &mut PacketBuf<'_>,
) -> Result<(), DropReason> {
    let at = locate(packet.bytes())?;
    let (_, _, len) = from.check(now, packet.bytes_mut(), &at)?;
    from.meter_mut().count(now, len);
    to.resign(now, packet.bytes_mut(), &at, len)?;
    Ok(())
}
