//! An SA pair at a gateway, whatever protects it: ESP, AH, or ESP inside AH, each segment under keys of its own.
//!
//! ```text
//!   ESP         IP | ESP | payload                in place, see `bridge`
//!   AH          IP | AH | payload                 in place, see `ah::bridge`
//!   ESP in AH   IP | AH | ESP | payload           AH checked, ESP opened and sealed, AH signed: in place
//! ```
//!
//! "Way" is where a packet goes: `to_peer`, else to the terminal.

use alloc::boxed::Box;
use core::time::Duration;

use towpath_base::crypto::{EspTransform, IcvTransform, Rng, Whereabouts};
use towpath_base::packet::PacketBuf;
use towpath_base::policy::IpsecProtocol;
use towpath_base::{DropReason, Instant};
use towpath_common::wire::protocol;

use crate::ah::{self, AhBridge};
use crate::bridge::Bridge;
use crate::highwater::Reserved;
use crate::icmp::TooBig;
use crate::inbound::Opened;
use crate::ip;
use crate::lifetime::LifetimeEvent;
use crate::locate::{self, ESP_LEN, Flow, Located};
use crate::outbound::Sealed;
use crate::pmtu::PathMtu;
use crate::used::Used;

/// Both directions of an SA pair of class `full` at a gateway.
///
/// Build it once per set of keys: a second one would start its counters, hence its nonces, over.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the common case lies where it is used")]
pub enum Crossing<T, I> {
    /// ESP.
    Esp(Bridge<T>),
    /// AH.
    Ah(Box<AhBridge<I>>),
    /// ESP inside AH; AH in transport mode, whatever the mode of ESP.
    EspInAh(Box<Bundle<T, I>>),
}

/// ESP inside AH.
#[derive(Debug)]
pub struct Bundle<T, I> {
    /// Inside.
    pub esp: Bridge<T>,
    /// Around it.
    pub ah: AhBridge<I>,
}

impl<T: EspTransform, I: IcvTransform> Crossing<T, I> {
    /// A packet of one end: in `packet` for the other afterwards, not a byte of it moved. On error its contents are
    /// unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    #[inline]
    pub fn pass(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        match self {
            Self::Esp(bridge) => {
                let at = locate::esp(packet.bytes())?;
                bridge.pass(to_peer, now, packet, &at, rng)
            }
            Self::Ah(bridge) => bridge.pass(to_peer, now, packet),
            Self::EspInAh(bundle) => bundle.pass(to_peer, now, packet, rng),
        }
    }

    /// As [`Crossing::pass`] for an ESP packet that was found at `at` already.
    ///
    /// # Errors
    /// Reason to drop the packet.
    #[inline]
    pub fn pass_at(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        at: &Located,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        match self {
            Self::Esp(bridge) => bridge.pass(to_peer, now, packet, at, rng),
            Self::Ah(_) | Self::EspInAh(_) => Err(DropReason::AhMalformed),
        }
    }

    /// Tells the processor that packets are coming; see [`Bridge::announce`].
    #[inline]
    pub fn announce(&self, to_peer: bool) {
        if let Self::Esp(bridge) = self {
            bridge.announce(to_peer);
        }
    }

    /// Tells the processor that a packet is coming; see [`Bridge::expect`].
    #[inline]
    pub fn expect(&self, to_peer: bool) -> Option<Whereabouts> {
        match self {
            Self::Esp(bridge) => Some(bridge.expect(to_peer)),
            Self::Ah(_) | Self::EspInAh(_) => None,
        }
    }

    /// What to ask for while the next packet is opened and not yet sealed; see [`Bridge::meanwhile`].
    #[inline]
    pub const fn meanwhile(&mut self, bytes: Option<Whereabouts>) {
        if let Self::Esp(bridge) = self {
            bridge.meanwhile(bytes);
        }
    }

    /// A packet on its way `to_peer`, or to the terminal, opened: the plain IP packet is in `packet` afterwards. On error
    /// its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn open(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
    ) -> Result<Opened, DropReason> {
        match self {
            Self::Esp(bridge) => bridge.open(to_peer, now, packet),
            Self::Ah(bridge) => bridge.open(to_peer, now, packet),
            Self::EspInAh(bundle) => {
                bundle.ah.open(to_peer, now, packet)?;
                bundle.esp.open(to_peer, now, packet)
            }
        }
    }

    /// Protects the plain IP packet in `packet`. It counts in the same sequence as [`Crossing::pass`]. With
    /// [`DropReason::TooBig`] the packet is as it was.
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
        match self {
            Self::Esp(bridge) => bridge.seal(to_peer, now, packet, rng),
            Self::Ah(bridge) => bridge.seal(to_peer, now, packet),
            Self::EspInAh(bundle) => {
                bundle.fits(to_peer, now, packet)?;
                bundle.esp.seal(to_peer, now, packet, rng)?;
                bundle.ah.seal(to_peer, now, packet)
            }
        }
    }

    /// As [`Crossing::seal`] whatever the path takes: the caller cuts the packet.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn seal_whole(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Sealed, DropReason> {
        let known = self.swap_path_mtu(to_peer, PathMtu::NONE);
        let sealed = self.seal(to_peer, now, packet, rng);
        self.swap_path_mtu(to_peer, known);
        sealed
    }

    fn swap_path_mtu(&mut self, to_peer: bool, other: PathMtu) -> PathMtu {
        match self {
            Self::Esp(bridge) => bridge.sender_mut(to_peer).swap_path_mtu(other),
            Self::Ah(bridge) => bridge.sender_mut(to_peer).swap_path_mtu(other),
            Self::EspInAh(bundle) => bundle.ah.sender_mut(to_peer).swap_path_mtu(other),
        }
    }

    /// What protects it: what policies ask for.
    pub const fn protocol(&self) -> IpsecProtocol {
        match self {
            Self::Esp(_) => IpsecProtocol::Esp,
            Self::Ah(_) => IpsecProtocol::Ah,
            Self::EspInAh(_) => IpsecProtocol::EspAh,
        }
    }

    /// Whether the selectors of that way admit the flow.
    pub fn admits(&self, to_peer: bool, flow: &Flow) -> bool {
        match self {
            Self::Esp(bridge) => bridge.sender(to_peer).admits(flow),
            Self::Ah(bridge) => bridge.sender(to_peer).admits(flow),
            Self::EspInAh(bundle) => bundle.esp.sender(to_peer).admits(flow),
        }
    }

    /// Largest plain IP packet that protected is at most `mtu` bytes long, and fits the path that way as far as it is
    /// known; `inner_v4` is its family.
    pub fn largest_plain(&self, to_peer: bool, now: Instant, mtu: u16, inner_v4: bool) -> u16 {
        let mtu = self.path_mtu(to_peer, now).map_or(mtu, |path| path.min(mtu));
        match self {
            Self::Esp(bridge) => bridge.sender(to_peer).largest_plain(mtu, inner_v4),
            Self::Ah(bridge) => bridge.sender(to_peer).largest_plain(mtu, inner_v4),
            Self::EspInAh(bundle) => bundle.largest_plain(to_peer, mtu, inner_v4),
        }
    }

    /// What is known of the path that way: longest protected packet in bytes, IP header included.
    #[inline]
    pub fn path_mtu(&self, to_peer: bool, now: Instant) -> Option<u16> {
        match self {
            Self::Esp(bridge) => bridge.sender(to_peer).path_mtu().at(now),
            Self::Ah(bridge) => bridge.sender(to_peer).path_mtu().at(now),
            Self::EspInAh(bundle) => bundle.ah.sender(to_peer).path_mtu().at(now),
        }
    }

    /// Believes a router's "too big" about a packet this gateway may have sent lately that way. Returns the highest number
    /// the endpoint behind has sent on the SA: what its own quotation should hold.
    ///
    /// # Errors
    /// [`DropReason::IcmpNotOurs`] if it is not plausible.
    pub fn on_too_big(&mut self, to_peer: bool, now: Instant, told: &TooBig) -> Result<u64, DropReason> {
        match self {
            Self::Esp(bridge) => {
                bridge.sender_mut(to_peer).on_too_big(now, told)?;
                Ok(if to_peer {
                    bridge.terminal_receiver().highest_sequence()
                } else {
                    bridge.peer_receiver().highest_sequence()
                })
            }
            Self::Ah(bridge) => told_of_ah(bridge, to_peer, now, told),
            Self::EspInAh(bundle) => told_of_ah(&mut bundle.ah, to_peer, now, told),
        }
    }

    /// A limit reached by either direction since the last call; each limit once for the pair.
    #[inline]
    pub fn take_event(&mut self) -> Option<LifetimeEvent> {
        match self {
            Self::Esp(bridge) => bridge.take_event(),
            Self::Ah(bridge) => bridge.take_event(),
            // Limits of the bundle are ESP's.
            Self::EspInAh(bundle) => bundle.esp.take_event(),
        }
    }

    /// Notices limits in time without a packet.
    pub fn tick(&mut self, now: Instant) {
        match self {
            Self::Esp(bridge) => bridge.tick(now),
            Self::Ah(bridge) => bridge.tick(now),
            Self::EspInAh(bundle) => bundle.esp.tick(now),
        }
    }

    /// For keys that outlive the process: uses only numbers that are stored; see [`crate::highwater`]. Of a bundle both
    /// halves use the same.
    pub fn start_reserved(&mut self, to_peer: Reserved, to_terminal: Reserved) {
        match self {
            Self::Esp(bridge) => bridge.start_reserved(to_peer, to_terminal),
            Self::Ah(bridge) => bridge.start_reserved(to_peer, to_terminal),
            Self::EspInAh(bundle) => {
                bundle.esp.start_reserved(to_peer, to_terminal);
                bundle.ah.start_reserved(to_peer, to_terminal);
            }
        }
    }

    /// Chooses the replay windows. `None`: there is none of this size.
    pub fn set_replay_window(&mut self, packets: u32) -> Option<()> {
        match self {
            Self::Esp(bridge) => bridge.set_replay_window(packets),
            Self::Ah(bridge) => bridge.set_replay_window(packets),
            Self::EspInAh(bundle) => {
                bundle.ah.set_replay_window(packets)?;
                bundle.esp.set_replay_window(packets)
            }
        }
    }

    /// What it has used up. Of a bundle the numbers are AH's, which nobody gets around, and the limits ESP's.
    pub const fn used(&self) -> Used {
        match self {
            Self::Esp(bridge) => bridge.used(),
            Self::Ah(bridge) => bridge.used(),
            Self::EspInAh(bundle) => Used {
                received: bundle.ah.used().received,
                ..bundle.esp.used()
            },
        }
    }

    /// Goes on where a former owner of the same SA was, `age` old. After [`Crossing::set_replay_window`].
    pub fn resume(&mut self, used: &Used, age: Duration) {
        match self {
            Self::Esp(bridge) => bridge.resume(used, age),
            Self::Ah(bridge) => bridge.resume(used, age),
            Self::EspInAh(bundle) => {
                bundle.ah.resume(used, age);
                let inside = Used {
                    received: [0; 2],
                    ..*used
                };
                bundle.esp.resume(&inside, age);
            }
        }
    }

    /// The limits to store next, first of the sender to the peer. Asked again until [`Crossing::reserve`]d.
    pub const fn wanted(&self) -> [Option<u64>; 2] {
        match self {
            Self::Esp(bridge) => bridge.wanted(),
            Self::Ah(bridge) => bridge.wanted(),
            // AH never counts further than ESP.
            Self::EspInAh(bundle) => bundle.esp.wanted(),
        }
    }

    /// `limit` is stored: for the sender to the peer, or to the terminal.
    pub const fn reserve(&mut self, to_peer: bool, limit: u64) {
        match self {
            Self::Esp(bridge) => bridge.reserve(to_peer, limit),
            Self::Ah(bridge) => bridge.reserve(to_peer, limit),
            Self::EspInAh(bundle) => {
                bundle.esp.reserve(to_peer, limit);
                bundle.ah.reserve(to_peer, limit);
            }
        }
    }
}

impl<T: EspTransform, I: IcvTransform> Bundle<T, I> {
    fn pass(
        &mut self,
        to_peer: bool,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<(), DropReason> {
        let bytes = packet.bytes_mut();
        let outside = ah::locate(bytes)?;
        let (number, len) = self.ah.check(to_peer, now, bytes, &outside)?;
        let esp_at = outside.payload_at;
        let numbers = ip::be32(bytes, esp_at).zip(ip::be32(bytes, esp_at + 4));
        let (spi, sequence) = numbers.ok_or(DropReason::EspMalformed)?;
        if outside.next_header != protocol::ESP || outside.end < esp_at + ESP_LEN {
            return Err(DropReason::EspMalformed);
        }
        let inside = Located {
            source: outside.source,
            destination: outside.destination,
            spi: towpath_base::Spi(spi),
            sequence,
            udp_at: None,
            esp_at,
            end: outside.end,
            protocol_at: outside.ah_at,
        };
        self.esp.pass(to_peer, now, packet, &inside, rng)?;
        self.ah
            .resign(to_peer, now, packet.bytes_mut(), &outside, number, len)
    }

    /// ESP's number must not be spent on a packet that AH then refuses.
    fn fits(&self, to_peer: bool, now: Instant, packet: &PacketBuf<'_>) -> Result<(), DropReason> {
        let Some(path) = self.ah.sender(to_peer).path_mtu().at(now) else {
            return Ok(());
        };
        let v4 = packet.bytes().first().is_some_and(|first| first >> 4 == 4);
        if packet.len() > usize::from(self.largest_plain(to_peer, path, v4)) {
            return Err(DropReason::TooBig);
        }
        Ok(())
    }

    fn largest_plain(&self, to_peer: bool, mtu: u16, inner_v4: bool) -> u16 {
        let esp = self.esp.sender(to_peer);
        // AH is in the header ESP is behind: the outer one.
        let outer_v4 = esp.remote().is_ipv4();
        let around = self.ah.sender(to_peer).overhead(outer_v4) as u16;
        esp.largest_plain(mtu.saturating_sub(around), inner_v4)
    }
}

fn told_of_ah<I: IcvTransform>(
    bridge: &mut AhBridge<I>,
    to_peer: bool,
    now: Instant,
    told: &TooBig,
) -> Result<u64, DropReason> {
    bridge.sender_mut(to_peer).on_too_big(now, told)?;
    Ok(if to_peer {
        bridge.terminal_receiver().highest_sequence()
    } else {
        bridge.peer_receiver().highest_sequence()
    })
}
