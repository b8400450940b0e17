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

mod watch;

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
use towpath_ipsec::highwater::Reserved;
use towpath_ipsec::locate::{self, Flow, Located};
use towpath_ipsec::shared::{Passed, SharedBridge, SharedStart, Stage, Wanted};
use towpath_ipsec::spd::Spd;
use towpath_tcp::IsnSecret;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::rules::Rules;

use watch::Watch;
pub use watch::{Tap, TapPoint, Tapped};

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
    /// A sender under a key that outlives the process wants numbers; asked again until [`Datapath::grant`]ed.
    Reserve {
        /// Its SA.
        key: SaKey,
        /// The sender to the peer; else the one to the terminal.
        to_peer: bool,
        /// What is to be stored.
        wanted: Wanted,
    },
    /// The endpoint's IVs entered the gateway's half, or are random: the direction is class `none` from now on.
    Degraded {
        /// Its SA.
        key: SaKey,
        /// The direction to the peer; else the one to the terminal.
        to_peer: bool,
    },
}

/// What is stored of the keys the gateway sends with, under keys that outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredStart {
    /// Towards the peer.
    pub to_peer: SharedStart,
    /// Towards the terminal.
    pub to_terminal: SharedStart,
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
    /// Packets of an SA under shared keys that went on as they came.
    pub untouched: u64,
    /// How far either direction of an SA under shared keys is, first the one to the peer.
    pub stages: Option<[Stage; 2]>,
}

struct Entry<T> {
    subscriber: SubscriberHandle,
    key: SaKey,
    /// `None` for class `none`: the keys are not here.
    bridge: Option<Bridge<T>>,
    /// Class `full` under the end-to-end keys.
    shared: Option<Box<SharedBridge<T>>>,
    /// Its keys outlive the process: what its senders asked to have stored, once they may ask.
    asked: Option<[Option<Wanted>; 2]>,
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
    watch: Watch,
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
            watch: Watch::default(),
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
        self.install_from(now, sa, None)
    }

    /// As [`Datapath::install`], for keys that outlive the process: senders use only numbers that are stored.
    pub fn install_stored(
        &mut self,
        now: Instant,
        sa: &GatewaySa,
        start: &StoredStart,
    ) -> Result<(), InstallError> {
        self.install_from(now, sa, Some(start))
    }

    fn install_from(
        &mut self,
        now: Instant,
        sa: &GatewaySa,
        start: Option<&StoredStart>,
    ) -> Result<(), InstallError> {
        let key = SaKey {
            local: sa.local,
            remote: sa.remote,
            spi_in: sa.spi_in,
            spi_out: sa.spi_out,
        };
        let mut shared = None;
        let mut bridge = match &sa.keys {
            GatewayKeys::None | GatewayKeys::Inspect(_) => None,
            GatewayKeys::Shared { sa: ends } => {
                // Without a store behind it no number may be used: it stays in probation.
                let start = start.copied().unwrap_or_default();
                let made = SharedBridge::new(&self.provider, now, ends, &start.to_peer, &start.to_terminal);
                shared = Some(Box::new(made.map_err(InstallError::Key)?));
                None
            }
            GatewayKeys::Full {
                peer,
                segment_in,
                segment_out,
            } => Some(
                Bridge::new(&self.provider, now, peer, segment_in, segment_out).map_err(InstallError::Key)?,
            ),
        };
        if let (Some(bridge), Some(start)) = (&mut bridge, start) {
            let reserved = |start: &SharedStart| Reserved::above(start.stored, start.limit);
            bridge.start_reserved(reserved(&start.to_peer), reserved(&start.to_terminal));
        }
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
            shared,
            asked: start.map(|_| [None; 2]),
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

    /// Replaces the policies that decide about packets of class `full`.
    pub fn set_policies(&mut self, policies: Box<Spd>) {
        self.watch.set_policies(policies);
    }

    /// Begins or ends a capture; one at a time.
    pub fn set_tap(&mut self, tap: Option<Tap>) {
        self.watch.set_tap(tap);
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
        self.entries.iter().map(|(_, entry)| {
            let stages = entry.shared.as_ref().map(|shared| shared.stages());
            let counters = SaCounters {
                stages,
                ..entry.counters
            };
            (entry.subscriber, entry.key, counters)
        })
    }

    /// What a sender [asked](Notice::Reserve) to have stored is stored.
    pub fn grant(&mut self, key: &SaKey, to_peer: bool, wanted: &Wanted) {
        let slot = self.to_peer.get(&(key.local, key.remote, key.spi_out));
        let Some(entry) = slot.and_then(|slot| self.entries.get_mut(*slot)) else {
            return;
        };
        if let Some(bridge) = &mut entry.bridge {
            bridge.reserve(to_peer, wanted.limit);
        }
        if let Some(shared) = &mut entry.shared {
            shared.grant(to_peer, wanted);
        }
        if let Some([peer, terminal]) = &mut entry.asked {
            *(if to_peer { peer } else { terminal }) = None;
        }
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
            if let Some(shared) = &mut entry.shared {
                shared.tick(now);
                let event = shared.take_event();
                tell_limit(&mut self.notices, entry.subscriber, entry.key.spi_in, event);
            }
            // Whatever was asked and not answered is asked again.
            if entry.asked.is_some() {
                entry.asked = Some([None; 2]);
                ask(&mut self.notices, entry);
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
        self.watch.sealed(&entry.key, from, true, packet.bytes());
        if let Some(bridge) = &mut entry.bridge {
            let place = Place {
                slot,
                key: entry.key,
                from,
                egress,
            };
            passage = match (&mut self.relay, entry.pair) {
                (Some(relay), Some(pair)) if relay.looks_at(pair) => {
                    let relay = Some((relay, pair));
                    opened(relay, &mut self.watch, bridge, place, now, packet, rng)
                }
                _ if self.watch.wants_plain(&entry.key) => {
                    opened(None, &mut self.watch, bridge, place, now, packet, rng)
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
        if let Some(shared) = &mut entry.shared {
            let to_peer = from == Side::Terminal;
            let passed = if to_peer {
                shared.to_peer(now, packet, rng)
            } else {
                shared.to_terminal(now, packet, rng)
            };
            entry.counters.untouched += u64::from(matches!(passed, Ok(Passed::Untouched | Passed::Degraded)));
            if passed == Ok(Passed::Degraded) {
                // Once in the life of a key, so it must not get lost.
                let key = entry.key;
                self.notices.push(Notice::Degraded { key, to_peer });
            }
            let event = shared.take_event();
            tell_limit(&mut self.notices, entry.subscriber, entry.key.spi_in, event);
            passage = passed.map(|_| Passage::Onward);
        }
        if entry.asked.is_some() {
            ask(&mut self.notices, entry);
        }
        let passage = passage.inspect_err(|_| entry.counters.refused += 1)?;
        if passage == Passage::Onward {
            self.watch.sealed(&entry.key, from, false, packet.bytes());
        }
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
        let from = match spoken.to {
            Side::Terminal => Side::Network,
            Side::Network => Side::Terminal,
        };
        self.watch.sealed(&entry.key, from, false, packet.bytes());
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
    key: SaKey,
    from: Side,
    egress: Option<Egress>,
}

/// Opens, asks policies and capture, shows TCP to the relay, and seals what the relay does not take.
fn opened<T: EspTransform>(
    relay: Option<(&mut Relay, usize)>,
    watch: &mut Watch,
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
    let may_relay = watch.plain(&place.key, place.from, &opened.flow, packet.bytes())?;
    if let Some((relay, pair)) = relay {
        relay.note(now, pair, place.slot, place.from, place.egress);
        if may_relay && opened.flow.protocol == protocol::TCP {
            let mtus = relay.mtus();
            let room = |v4| Room {
                terminal: bridge.terminal_sender().largest_plain(mtus.terminal, v4),
                network: bridge.peer_sender().largest_plain(mtus.network, v4),
            };
            match relay.input(now, pair, place.from, packet.bytes(), room) {
                Fate::Taken => return Ok(Passage::Taken),
                Fate::Onward => {}
                Fate::Broken => return Err(DropReason::RelayMalformed),
            }
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

/// Tells what the senders want stored, each wish once.
fn ask<T: EspTransform>(notices: &mut Vec<Notice>, entry: &mut Entry<T>) {
    let wanted = match (&entry.bridge, &entry.shared) {
        (Some(bridge), _) => bridge
            .wanted()
            .map(|limit| limit.map(|limit| Wanted { limit, top: None })),
        (None, Some(shared)) => shared.wanted(),
        (None, None) => return,
    };
    let Some(asked) = &mut entry.asked else {
        return;
    };
    for (side, (wanted, asked)) in wanted.into_iter().zip(asked).enumerate() {
        let Some(wanted) = wanted.filter(|_| asked.is_none() && notices.len() < MAX_NOTICES) else {
            continue;
        };
        *asked = Some(wanted);
        notices.push(Notice::Reserve {
            key: entry.key,
            to_peer: side == 0,
            wanted,
        });
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
