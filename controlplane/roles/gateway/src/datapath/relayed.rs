//! The datapath's side of the TCP relay: what is opened for it, what it says, what is only looked at.

use std::sync::Arc;

use towpath_base::crypto::{EspDecryptor, EspTransform, IcvTransform, InspectProvider, InvalidKey, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_common::wire::protocol;
use towpath_fabric::InspectKeys;
use towpath_ipsec::crossing::Crossing;
use towpath_ipsec::inspect::Inspector;
use towpath_ipsec::locate::Flow;
use towpath_ipsec::wrapped;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::rules::Rules;

use super::outside::{self, Cut};
use super::steered;
use super::watch::{Watch, Whose};
use super::{Arrival, Datapath, Departure, Disposition, Passage, SaKey, Suites, tell_limit};
use crate::relay::{Egress, Fate, FlowView, Relay, RelayTotals, Room, Spoken};

/// Longest ESP trailer: padding, pad length, next header, ICV, bytes.
const MAX_TRAILER: usize = 64;

/// Longest packet looked into, bytes.
const MAX_LOOK: usize = 9_216;

impl<P: Suites> Datapath<P> {
    /// The relay's next packet, sealed into `packet`, which must be empty and have its rooms around it. `None`
    /// when nothing is to be sent now; an error is one packet lost, and there may be more.
    pub fn relay_transmit(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Option<Result<Departure, DropReason>> {
        let relay = self.relay.as_mut()?;
        // Room for the trailer stays free behind.
        let room = packet.tailroom().checked_sub(MAX_TRAILER)?;
        let spoken = relay.speak(now, packet.grow_back(room)?)?;
        if packet.strip_back(room.checked_sub(spoken.len)?).is_none() {
            return Some(Err(DropReason::NoHeadroom));
        }
        if spoken.as_is {
            // The peer's own packet once more, bit for bit, or one in the clear.
            let egress = relay.egress(now, spoken.pair, spoken.to);
            return Some(Ok(Departure { egress }));
        }
        let around = relay.around(spoken.pair, spoken.to);
        let network_id = self.next_id();
        let Some(relay) = self.relay.as_ref() else {
            return Some(Err(DropReason::RelayNoSa));
        };
        let inner = match relay.wrap_inside(spoken.to, network_id, packet) {
            Ok(wrapped) => wrapped,
            Err(reason) => return Some(Err(reason)),
        };
        let departure = self.seal_spoken(
            now,
            &spoken,
            inner,
            around.map_or(0, |wrap| wrap.len()),
            packet,
            rng,
        );
        Some(match (around, departure) {
            (Some(around), Ok(departure)) => self.wrap_departure(departure, &spoken, around, packet),
            (_, departure) => departure,
        })
    }

    /// `inner` bytes in front of the connection's own packet are an encapsulation. `around` bytes will be put around the
    /// result; whoever does so cuts it.
    fn seal_spoken(
        &mut self,
        now: Instant,
        spoken: &Spoken,
        inner: u16,
        around: u16,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Result<Departure, DropReason> {
        let Self { relay, entries, .. } = self;
        let relay = relay.as_mut().ok_or(DropReason::RelayNoSa)?;
        let flow = Flow::of(packet.bytes())?;
        let to_peer = spoken.to == Side::Network;
        let fits = |slot| {
            let bridge = entries.get(slot).and_then(|entry| entry.bridge.as_ref());
            bridge.is_some_and(|bridge| bridge.admits(to_peer, &flow))
        };
        // A connection that has an SA of its own stays there.
        let own = |slot| {
            let level = entries.get(slot).and_then(|entry| entry.level);
            level.is_some_and(|level| level != 0) && fits(slot)
        };
        let slot = relay
            .carrier(spoken.pair, spoken.to, own)
            .or_else(|| relay.carrier(spoken.pair, spoken.to, fits))
            .ok_or(DropReason::RelayNoSa)?;
        // A policy may name others.
        let usual = entries.get(slot).ok_or(DropReason::RelayNoSa)?;
        let usable = |slot: &usize| {
            let entry = entries.get(*slot);
            fits(*slot) && entry.is_some_and(|entry| entry.pair == Some(spoken.pair))
        };
        let named = steered::chosen(
            &mut self.watch,
            &self.by_number,
            usual,
            &flow,
            packet.bytes(),
            usable,
        )?;
        let elsewhere = named.is_some_and(|named| named != slot);
        let slot = named.unwrap_or(slot);
        let egress = relay.egress(now, spoken.pair, spoken.to);
        let entry = entries.get_mut(slot).ok_or(DropReason::RelayNoSa)?;
        let bridge = entry.bridge.as_mut().ok_or(DropReason::RelayNoSa)?;
        let mut long = None;
        // Its connection reckoned with nothing around it, and with the SA its packets come by.
        if around != 0 || elsewhere {
            let mtus = relay.mtus();
            let mtu = if to_peer { mtus.network } else { mtus.terminal };
            let mtu = mtu.saturating_sub(around);
            let fitting = bridge.largest_plain(to_peer, now, mtu, flow.source.is_ipv4());
            if packet.len() > fitting.into() {
                let own = packet.bytes().get(inner.into()..).unwrap_or_default();
                relay.narrow(now, spoken.to, own, fitting.saturating_sub(inner));
                long = Some(mtu);
            }
        }
        let pieces = match bridge.seal(to_peer, now, packet, rng) {
            // Made before the path was known to be so narrow: its connection is told, and it itself is cut outside.
            Err(DropReason::TooBig) => {
                let path = bridge.path_mtu(to_peer, now);
                if let Some(path) = path {
                    let fitting = bridge.largest_plain(to_peer, now, path, flow.source.is_ipv4());
                    let own = packet.bytes().get(inner.into()..).unwrap_or_default();
                    relay.narrow(now, spoken.to, own, fitting.saturating_sub(inner));
                }
                bridge.seal_whole(to_peer, now, packet, rng)?;
                path
            }
            sealed => sealed.map(|_| long)?,
        };
        if let Some(quiet) = entry.quiet.as_mut().filter(|_| to_peer) {
            quiet.since = now;
        }
        tell_limit(
            &mut self.notices,
            entry.subscriber,
            entry.key.spi_in,
            bridge.take_event(),
        );
        entry.keep(slot, &mut self.notices, &mut self.touched);
        self.watch
            .sealed(&entry.key, spoken.to.opposite(), false, packet.bytes());
        if spoken.to == Side::Network {
            let SaKey { remote, spi_out, .. } = entry.key;
            // The peer is a terminal of this gateway as well: the packet passes its SA, too.
            if let Some(slot) = self.to_terminal.get(&(remote, spi_out)) {
                self.through(slot, Side::Network, now, egress, packet, rng)?;
            }
        }
        if let Some(path) = pieces.filter(|_| around == 0) {
            let mut cut = Cut {
                extra: &mut self.extra,
                id: &mut self.fragment_id,
            };
            cut.first(packet, path, egress)?;
        }
        Ok(Departure { egress })
    }

    /// Shows the relay a TCP packet in the clear of the terminal of `subscriber`, which sent it or is its destination;
    /// `packet` starts at the IP header, and may have been changed when it goes on.
    pub fn process_clear(
        &mut self,
        now: Instant,
        arrival: Arrival,
        subscriber: SubscriberHandle,
        from_terminal: bool,
        packet: &mut [u8],
    ) -> Disposition {
        let Some(relay) = &mut self.relay else {
            return Disposition::Forward;
        };
        let from = if from_terminal {
            Side::Terminal
        } else {
            Side::Network
        };
        match relay.input_clear(now, subscriber, from, arrival.egress, packet) {
            Fate::Taken => Disposition::Taken,
            Fate::Onward => Disposition::Forward,
            Fate::Broken => Disposition::Drop(DropReason::RelayMalformed),
        }
    }

    /// When [`Datapath::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.relay.as_ref()?.poll_timeout()
    }

    /// Lets due timers of the relay act; [`Datapath::relay_transmit`] has the result.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(relay) = &mut self.relay {
            relay.handle_timeout(now);
        }
    }

    /// Gives a subscriber relay rules of its own, or takes them away; for connections opened from now on.
    pub fn set_rules(&mut self, subscriber: SubscriberHandle, rules: Option<Arc<Rules>>) {
        if let Some(relay) = &mut self.relay {
            relay.set_rules(subscriber, rules);
        }
    }

    /// At most `limit` relayed connections.
    pub fn flows(&self, now: Instant, limit: usize) -> Vec<FlowView> {
        self.relay
            .as_ref()
            .map(|relay| relay.flows(now, limit))
            .unwrap_or_default()
    }

    /// Numbers of the relay.
    pub fn relay_totals(&self) -> RelayTotals {
        self.relay.as_ref().map(Relay::totals).unwrap_or_default()
    }
}

/// Where a packet is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) slot: usize,
    pub(super) key: SaKey,
    pub(super) whose: Whose,
    pub(super) from: Side,
    pub(super) egress: Option<Egress>,
}

/// Opens, asks policies and capture, shows TCP to the relay, and seals what the relay does not take.
pub(super) fn opened<T: EspTransform, I: IcvTransform>(
    relay: Option<(&mut Relay, usize)>,
    watch: &mut Watch,
    cut: &mut Cut<'_>,
    bridge: &mut Crossing<T, I>,
    place: Place,
    now: Instant,
    packet: &mut PacketBuf<'_>,
    rng: &mut impl Rng,
) -> Result<Passage, DropReason> {
    let to_peer = place.from == Side::Terminal;
    let opened = bridge.open(to_peer, now, packet)?;
    let verdict = watch.plain(
        &place.key,
        place.whose,
        place.from,
        bridge.protocol(),
        &opened.flow,
        packet.bytes(),
    )?;
    if let Some((relay, pair)) = relay {
        relay.note(now, pair, place.slot, place.from, place.egress);
        let tcp = opened.flow.protocol == protocol::TCP;
        if verdict.relay && (tcp || wrapped::may_be(opened.flow.protocol)) {
            let mtus = relay.mtus();
            let beside = relay.overhead(pair);
            let room = |v4| Room {
                terminal: bridge.largest_plain(false, now, mtus.terminal.saturating_sub(beside), v4),
                network: bridge.largest_plain(true, now, mtus.network.saturating_sub(beside), v4),
            };
            let fate = if tcp {
                relay.input(now, pair, place.from, packet.bytes_mut(), room)
            } else {
                relay.input_inside(now, pair, place.from, packet.bytes_mut(), room)
            };
            match fate {
                Fate::Taken => return Ok(Passage::Taken),
                Fate::Onward => {}
                Fate::Broken => return Err(DropReason::RelayMalformed),
            }
        }
    }
    if verdict.steer {
        return Ok(Passage::Open);
    }
    match bridge.seal(to_peer, now, packet, rng) {
        Ok(_) => Ok(Passage::Onward),
        Err(DropReason::TooBig) => outside::too_big(cut, bridge, place, now, packet, rng),
        Err(reason) => Err(reason),
    }
}

/// An SA of class `inspect`: keys to look with, none to write with.
pub(super) struct Inspecting<D> {
    inspector: Inspector<D>,
    /// The plain copy.
    scratch: Box<[u8]>,
    /// Highest sequence number towards the terminal, extended to 64 bits: 32 are on the wire.
    highest: u64,
}

impl<D: EspDecryptor> Inspecting<D> {
    pub(super) fn new<P>(provider: &P, keys: &InspectKeys) -> Result<Self, InvalidKey>
    where
        P: InspectProvider<Decryptor = D>,
    {
        let InspectKeys {
            suite,
            mode,
            cipher_in,
            cipher_out,
        } = keys;
        Ok(Self {
            inspector: Inspector::new(provider, *suite, *mode, cipher_in, cipher_out)?,
            scratch: vec![0; MAX_LOOK].into(),
            highest: 0,
        })
    }

    /// Shows Snoop what is in a packet, which goes on as it is or is an acknowledgment kept back.
    pub(super) fn look(
        &mut self,
        relay: &mut Relay,
        pair: usize,
        place: Place,
        now: Instant,
        packet: &[u8],
    ) -> Passage {
        let to_peer = place.from == Side::Terminal;
        let Ok(seen) = self.inspector.look(to_peer, packet, &mut self.scratch) else {
            return Passage::Onward;
        };
        relay.note(now, pair, place.slot, place.from, place.egress);
        let sequence = extend(self.highest, seen.sequence);
        if !to_peer {
            self.highest = self.highest.max(sequence);
        }
        let plain = self.scratch.get(seen.plain).unwrap_or(&[]);
        match relay.look(now, pair, place.slot, place.from, plain, packet, sequence) {
            Fate::Taken => Passage::Taken,
            Fate::Onward | Fate::Broken => Passage::Onward,
        }
    }
}

/// The number with the low half `low` that is nearest to `highest`.
fn extend(highest: u64, low: u32) -> u64 {
    let ahead = low.wrapping_sub(highest as u32).cast_signed();
    highest.saturating_add_signed(i64::from(ahead))
}
