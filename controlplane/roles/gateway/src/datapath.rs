//! One packet of a served terminal: which SA, which segment, what becomes of it.
//!
//! Pure and allocation-free per packet. The worker around it moves frames.
//!
//! ```text
//!   terminal ══ segment keys ══► [open | seal] ══ peer's keys ══► peer        to_peer
//!   terminal ◄══ segment keys ══ [seal | open] ◄══ peer's keys ══ peer        to_terminal
//! ```
//!
//! Both segments use the SPIs the peer negotiated, so a packet between two terminals of one gateway
//! simply passes both tables, one after the other (K10).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;
use towpath_base::crypto::{EspProvider, EspTransform, InvalidKey, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_common::wire::protocol;
use towpath_fabric::{GatewayKeys, GatewaySa};
use towpath_ipsec::bridge::{Bridge, LifetimeEvent};
use towpath_ipsec::locate::{self, Flow, Located};
use towpath_tcp::IsnSecret;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::rules::Rules;

use crate::relay::{Egress, Fate, FlowView, Relay, RelayConfig, RelayTotals, Room, Spoken};

/// Names one SA pair of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SaKey {
    /// Terminal's address.
    pub local: IpAddr,
    /// Peer's address.
    pub remote: IpAddr,
    /// SPI of packets the terminal receives.
    pub spi_in: Spi,
    /// SPI of packets the terminal sends.
    pub spi_out: Spi,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Send it on: opened and re-sealed, or untouched where no SA of class `full` is concerned.
    Forward,
    /// The TCP relay has it; what it says to that comes from [`Datapath::relay_transmit`].
    Taken,
    /// Count and drop.
    Drop(DropReason),
}

/// Something the control part wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An SA reached a limit; told once per limit.
    Expiring {
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// SPI of packets the terminal receives.
        spi_in: Spi,
        /// True at the hard limit.
        hard: bool,
    },
    /// A terminal sends on an SA this gateway was not given: a former process's, perhaps.
    UnknownSa {
        /// The terminal.
        terminal: IpAddr,
    },
}

/// Notices kept between two calls of [`Datapath::drain_notices`]; more are lost, and come again.
const MAX_NOTICES: usize = 64;

/// Packets and bytes of one SA pair so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaCounters {
    /// Packets from the terminal to the peer.
    pub packets_to_peer: u64,
    /// Their bytes, IP headers included, as received.
    pub bytes_to_peer: u64,
    /// Packets from the peer to the terminal.
    pub packets_to_terminal: u64,
    /// Their bytes.
    pub bytes_to_terminal: u64,
    /// Packets refused by either direction.
    pub refused: u64,
}

struct Entry<T> {
    subscriber: SubscriberHandle,
    key: SaKey,
    /// `None` for class `none`: the keys are not here.
    bridge: Option<Bridge<T>>,
    counters: SaCounters,
    /// Its pair in the relay.
    pair: Option<usize>,
}

/// How a packet came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrival {
    /// On a port that faces terminals. Only there may a packet claim to be a terminal's.
    pub from_access: bool,
    /// Where routing sends it, if that is known.
    pub egress: Option<Egress>,
}

/// A packet of the relay, sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// Where it leaves; the kernel knows when this does not.
    pub egress: Option<Egress>,
}

/// The SAs of one worker.
pub struct Datapath<P: EspProvider> {
    provider: P,
    entries: Slab<Entry<P::Transform>>,
    to_peer: HashMap<(IpAddr, IpAddr, Spi), usize>,
    to_terminal: HashMap<(IpAddr, Spi), usize>,
    notices: Vec<Notice>,
    limit: usize,
    relay: Option<Relay>,
}

/// Why an SA could not be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallError {
    /// Key lengths do not fit, or the suite is not available.
    Key(InvalidKey),
    /// The table is full.
    Full,
}

impl<P: EspProvider> Datapath<P> {
    /// No SAs yet, at most `limit` of them ever.
    pub fn new(provider: P, limit: usize) -> Self {
        Self {
            provider,
            entries: Slab::new(),
            to_peer: HashMap::default(),
            to_terminal: HashMap::default(),
            notices: Vec::with_capacity(MAX_NOTICES),
            limit,
            relay: None,
        }
    }

    /// With a TCP relay in the SAs of class `full`. Call it before the first SA is installed.
    #[must_use]
    pub fn with_relay(mut self, config: RelayConfig, secret: IsnSecret) -> Self {
        self.relay = Some(Relay::new(config, secret));
        self
    }

    /// Adds an SA; one with the same addresses and SPIs is replaced.
    pub fn install(&mut self, now: Instant, sa: &GatewaySa) -> Result<(), InstallError> {
        let key = SaKey {
            local: sa.local,
            remote: sa.remote,
            spi_in: sa.spi_in,
            spi_out: sa.spi_out,
        };
        let bridge = match &sa.keys {
            GatewayKeys::None | GatewayKeys::Inspect(_) | GatewayKeys::Shared { .. } => None,
            GatewayKeys::Full {
                peer,
                segment_in,
                segment_out,
            } => Some(
                Bridge::new(&self.provider, now, peer, segment_in, segment_out).map_err(InstallError::Key)?,
            ),
        };
        self.remove(&key);
        if self.entries.len() >= self.limit {
            return Err(InstallError::Full);
        }
        let counters = SaCounters::default();
        let full = bridge.is_some();
        let slot = self.entries.insert(Entry {
            subscriber: sa.subscriber,
            key,
            bridge,
            counters,
            pair: None,
        });
        if let (Some(relay), Some(entry)) = (&mut self.relay, self.entries.get_mut(slot)) {
            entry.pair = Some(relay.add_sa(sa.subscriber, sa.local, sa.remote, slot, full));
        }
        self.to_peer.insert((sa.local, sa.remote, sa.spi_out), slot);
        self.to_terminal.insert((sa.local, sa.spi_in), slot);
        Ok(())
    }

    /// Removes an SA; returns its final counters.
    pub fn remove(&mut self, key: &SaKey) -> Option<SaCounters> {
        let slot = self.to_peer.remove(&(key.local, key.remote, key.spi_out))?;
        self.to_terminal.remove(&(key.local, key.spi_in));
        let entry = self.entries.try_remove(slot)?;
        if let (Some(relay), Some(pair)) = (&mut self.relay, entry.pair) {
            relay.remove_sa(pair, slot);
        }
        Some(entry.counters)
    }

    /// Every SA with its counters.
    pub fn counters(&self) -> impl Iterator<Item = (SubscriberHandle, SaKey, SaCounters)> {
        self.entries
            .iter()
            .map(|(_, entry)| (entry.subscriber, entry.key, entry.counters))
    }

    /// What happened since the last call.
    pub fn drain_notices(&mut self) -> impl Iterator<Item = Notice> {
        self.notices.drain(..)
    }

    /// Notices limits in time on SAs that carry no packets, and cleans up. Call about once a second.
    pub fn tick(&mut self, now: Instant) {
        if let Some(relay) = &mut self.relay {
            relay.tick(now);
        }
        for (_, entry) in &mut self.entries {
            if let Some(bridge) = &mut entry.bridge {
                bridge.tick(now);
                tell_limit(
                    &mut self.notices,
                    entry.subscriber,
                    entry.key.spi_in,
                    bridge.take_event(),
                );
            }
        }
    }

    /// Works on one ESP (or UDP-encapsulated ESP) packet in place; `packet` starts at the IP header.
    pub fn process(
        &mut self,
        now: Instant,
        arrival: Arrival,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Disposition {
        match self.bridge_packet(now, arrival, packet, rng) {
            Ok(Passage::Onward) => Disposition::Forward,
            Ok(Passage::Taken) => Disposition::Taken,
            Err(reason) => Disposition::Drop(reason),
        }
    }

    fn bridge_packet(
        &mut self,
        now: Instant,
        arrival: Arrival,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Result<Passage, DropReason> {
        let Located {
            source,
            destination,
            spi,
            ..
        } = locate::esp(packet.bytes())?;
        if arrival.from_access {
            match self.to_peer.get(&(source, destination, spi)) {
                Some(&slot) => {
                    let passage = self.through(slot, Side::Terminal, now, arrival.egress, packet, rng)?;
                    if passage == Passage::Taken {
                        return Ok(passage);
                    }
                }
                None => tell(&mut self.notices, Notice::UnknownSa { terminal: source }),
            }
        }
        match self.to_terminal.get(&(destination, spi)) {
            Some(&slot) => self.through(slot, Side::Network, now, arrival.egress, packet, rng),
            None => Ok(Passage::Onward),
        }
    }

    /// One SA's work on a packet that came from side `from`.
    fn through(
        &mut self,
        slot: usize,
        from: Side,
        now: Instant,
        egress: Option<Egress>,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Result<Passage, DropReason> {
        let entry = self.entries.get_mut(slot).ok_or(DropReason::EspUnknownSpi)?;
        let len = packet.len() as u64;
        let mut passage = Ok(Passage::Onward);
        if let Some(bridge) = &mut entry.bridge {
            passage = match (&mut self.relay, entry.pair) {
                (Some(relay), Some(pair)) if relay.looks_at(pair) => {
                    let place = Place {
                        slot,
                        pair,
                        from,
                        egress,
                    };
                    relayed(relay, bridge, place, now, packet, rng)
                }
                _ => match from {
                    Side::Terminal => bridge.to_peer(now, packet, rng),
                    Side::Network => bridge.to_terminal(now, packet, rng),
                }
                .map(|()| Passage::Onward),
            };
            tell_limit(
                &mut self.notices,
                entry.subscriber,
                entry.key.spi_in,
                bridge.take_event(),
            );
        }
        let passage = passage.inspect_err(|_| entry.counters.refused += 1)?;
        match from {
            Side::Terminal => {
                entry.counters.packets_to_peer += 1;
                entry.counters.bytes_to_peer += len;
            }
            Side::Network => {
                entry.counters.packets_to_terminal += 1;
                entry.counters.bytes_to_terminal += len;
            }
        }
        Ok(passage)
    }

    // -- the relay ------------------------------------------------------------------------------------

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
        Some(self.seal_spoken(now, &spoken, packet, rng))
    }

    fn seal_spoken(
        &mut self,
        now: Instant,
        spoken: &Spoken,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Result<Departure, DropReason> {
        let Self { relay, entries, .. } = self;
        let relay = relay.as_ref().ok_or(DropReason::RelayNoSa)?;
        let flow = Flow::of(packet.bytes())?;
        let fits = |slot| {
            let bridge = entries.get(slot).and_then(|entry| entry.bridge.as_ref());
            bridge.is_some_and(|bridge| match spoken.to {
                Side::Terminal => bridge.terminal_sender().admits(&flow),
                Side::Network => bridge.peer_sender().admits(&flow),
            })
        };
        let slot = relay
            .carrier(spoken.pair, spoken.to, fits)
            .ok_or(DropReason::RelayNoSa)?;
        let egress = relay.egress(now, spoken.pair, spoken.to);
        let entry = entries.get_mut(slot).ok_or(DropReason::RelayNoSa)?;
        let bridge = entry.bridge.as_mut().ok_or(DropReason::RelayNoSa)?;
        match spoken.to {
            Side::Terminal => bridge.seal_to_terminal(now, packet, rng)?,
            Side::Network => bridge.seal_to_peer(now, packet, rng)?,
        };
        tell_limit(
            &mut self.notices,
            entry.subscriber,
            entry.key.spi_in,
            bridge.take_event(),
        );
        if spoken.to == Side::Network {
            let SaKey { remote, spi_out, .. } = entry.key;
            // The peer is a terminal of this gateway as well: the packet passes its SA, too.
            if let Some(&slot) = self.to_terminal.get(&(remote, spi_out)) {
                self.through(slot, Side::Network, now, egress, packet, rng)?;
            }
        }
        Ok(Departure { egress })
    }

    /// When [`Datapath::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.relay.as_ref()?.poll_timeout().map(|(at, _)| at)
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

/// Longest ESP trailer: padding, pad length, next header, ICV, bytes.
const MAX_TRAILER: usize = 64;

/// What came of one SA's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passage {
    /// Sealed for the next segment.
    Onward,
    /// The relay has it.
    Taken,
}

/// Where a packet is.
#[derive(Clone, Copy)]
struct Place {
    slot: usize,
    pair: usize,
    from: Side,
    egress: Option<Egress>,
}

/// Opens, shows TCP to the relay, and seals what the relay does not take.
fn relayed<T: EspTransform>(
    relay: &mut Relay,
    bridge: &mut Bridge<T>,
    place: Place,
    now: Instant,
    packet: &mut PacketBuf<'_>,
    rng: &mut impl Rng,
) -> Result<Passage, DropReason> {
    let opened = match place.from {
        Side::Terminal => bridge.open_from_terminal(now, packet)?,
        Side::Network => bridge.open_from_peer(now, packet)?,
    };
    relay.note(now, place.pair, place.slot, place.from, place.egress);
    if opened.flow.protocol == protocol::TCP {
        let mtus = relay.mtus();
        let room = |v4| Room {
            terminal: bridge.terminal_sender().largest_plain(mtus.terminal, v4),
            network: bridge.peer_sender().largest_plain(mtus.network, v4),
        };
        match relay.input(now, place.pair, place.from, packet.bytes(), room) {
            Fate::Taken => return Ok(Passage::Taken),
            Fate::Onward => {}
            Fate::Broken => return Err(DropReason::RelayMalformed),
        }
    }
    match place.from {
        Side::Terminal => bridge.seal_to_peer(now, packet, rng)?,
        Side::Network => bridge.seal_to_terminal(now, packet, rng)?,
    };
    Ok(Passage::Onward)
}

/// A notice that waits already, or finds no room, is not added: whatever caused it will cause it again.
fn tell(notices: &mut Vec<Notice>, notice: Notice) {
    if notices.len() < MAX_NOTICES && !notices.contains(&notice) {
        notices.push(notice);
    }
}

fn tell_limit(
    notices: &mut Vec<Notice>,
    subscriber: SubscriberHandle,
    spi_in: Spi,
    event: Option<LifetimeEvent>,
) {
    if let Some(event) = event {
        // A limit is told once by the SA, so it must not get lost here; it is at most two per SA.
        notices.push(Notice::Expiring {
            subscriber,
            spi_in,
            hard: event == LifetimeEvent::Hard,
        });
    }
}

#[cfg(test)]
mod tests;
