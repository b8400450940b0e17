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

mod ahead;
mod installed;
mod kept;
mod notices;
mod outside;
mod places;
mod relayed;
mod steered;
mod watch;
mod wrapped;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use towpath_base::crypto::{EspProvider, IcvProvider, InspectProvider, InvalidKey, Rng, Whereabouts};
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_fabric::GatewaySa;
use towpath_ipsec::Crossing;
use towpath_ipsec::Used;
use towpath_ipsec::ah;
use towpath_ipsec::locate::{self, Located};
use towpath_ipsec::reassembly::{Limits, Reassembler};
use towpath_ipsec::shared::{Passed, SharedBridge, SharedStart, Stage, Wanted};
use towpath_ipsec::spd::Spd;
use towpath_tcp::IsnSecret;
use towpath_tcp::relay::Side;

pub use ahead::Expected;
use ahead::Table;
pub use watch::{Tap, TapPoint, Tapped};
use watch::{Watch, Whose};

use installed::{Made, Quiet};
use kept::Kept;
pub use notices::Notice;
use notices::{MAX_NOTICES, tell, tell_limit};
use outside::Cut;
pub use outside::Extra;
pub use places::Places;
use relayed::{Inspecting, Place, opened};

use crate::relay::{Egress, Relay, RelayConfig};

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
    /// What comes of it, if anything, is in [`Datapath::poll_extra`].
    Queued,
    /// Count and drop.
    Drop(DropReason),
}

/// What is stored of the keys the gateway sends with, under keys that outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredStart {
    /// Towards the peer.
    pub to_peer: SharedStart,
    /// Towards the terminal.
    pub to_terminal: SharedStart,
    /// Packets the replay windows cover; the engine's choice when absent.
    pub replay_window: Option<u16>,
    /// The number it is stored under and policies name it by; 0 is none.
    pub number: u64,
    /// What a former process used up.
    pub used: Used,
    /// Since it was added.
    pub age: Duration,
}

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

/// Everything the gateway asks of a provider of algorithms.
pub trait Suites: EspProvider + InspectProvider + IcvProvider {}

impl<P: EspProvider + InspectProvider + IcvProvider> Suites for P {}

struct Entry<T, I, D> {
    subscriber: SubscriberHandle,
    /// Sensitivity level of its packets.
    level: Option<u8>,
    key: SaKey,
    /// `None` for class `none`: the keys are not here.
    bridge: Option<Crossing<T, I>>,
    /// Class `inspect`, if anything is to be looked at.
    inspecting: Option<Box<Inspecting<D>>>,
    /// Class `full` under the end-to-end keys.
    shared: Option<Box<SharedBridge<T>>>,
    /// Its keys outlive the process.
    kept: Option<Box<Kept>>,
    counters: SaCounters,
    /// Its pair in the relay.
    pair: Option<usize>,
    /// Behind UDP the gateway keeps the mapping of a NAT alive.
    quiet: Option<Quiet>,
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
pub struct Datapath<P: Suites> {
    provider: P,
    entries: Places<Entry<P::Transform, P::Icv, P::Decryptor>>,
    to_peer: Table<(IpAddr, IpAddr, Spi)>,
    to_terminal: Table<(IpAddr, Spi)>,
    /// Slots of the SAs that policies can name.
    by_number: HashMap<u64, usize>,
    /// Slots of the stored SAs that were used since [`Datapath::keep`].
    touched: Vec<usize>,
    notices: Vec<Notice>,
    limit: usize,
    /// The half of an SA to ask for while a packet is between opening and sealing; see [`Datapath::expect`].
    later: Option<Whereabouts>,
    relay: Option<Relay>,
    watch: Watch,
    /// Fragments of protected packets whose rest has not come yet.
    reassembler: Reassembler,
    /// Packets beside those that came.
    extra: VecDeque<Extra>,
    /// Names of the datagrams cut here.
    fragment_id: u32,
    /// Half datagrams given up since the last [`Datapath::take_timeouts`].
    timeouts: usize,
}

/// Why an SA could not be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstallError {
    /// Key lengths do not fit, or the suite is not available.
    Key(InvalidKey),
    /// The table is full.
    Full,
    /// No replay window of this size can be had.
    Window,
}

impl<P: Suites> Datapath<P> {
    /// No SAs yet, at most `limit` of them ever.
    pub fn new(provider: P, limit: usize) -> Self {
        Self {
            provider,
            entries: Places::new(limit),
            to_peer: Table::default(),
            to_terminal: Table::default(),
            by_number: HashMap::new(),
            touched: Vec::new(),
            notices: Vec::with_capacity(MAX_NOTICES),
            limit,
            later: None,
            relay: None,
            watch: Watch::default(),
            reassembler: Reassembler::new(Limits::default()),
            extra: VecDeque::new(),
            fragment_id: 0,
            timeouts: 0,
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
        let made = Made::of(&self.provider, now, &sa.keys, start)?;
        self.remove(&key);
        if self.entries.len() >= self.limit {
            return Err(InstallError::Full);
        }
        let counters = SaCounters::default();
        let slot = self.entries.insert(Entry {
            subscriber: sa.subscriber,
            level: sa.level,
            key,
            bridge: made.crossing,
            inspecting: made.inspecting,
            shared: made.shared,
            kept: start.map(|start| Box::new(Kept::new(start.number))),
            counters,
            pair: None,
            quiet: made.encap.map(|encap| Quiet { encap, since: now }),
        });
        if let (Some(relay), Some(entry)) = (&mut self.relay, self.entries.get_mut(slot)) {
            entry.pair = Some(relay.add_sa(sa.subscriber, sa.local, sa.remote, slot, made.class));
        }
        if let Some(number) = start.map(|start| start.number).filter(|number| *number != 0) {
            self.by_number.insert(number, slot);
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
        self.by_number.retain(|_, of| *of != slot);
        let (pair, counters) = self.entries.remove(slot, |entry| (entry.pair, entry.counters))?;
        if let (Some(relay), Some(pair)) = (&mut self.relay, pair) {
            relay.remove_sa(pair, slot);
        }
        Some(counters)
    }

    /// Every SA with its counters.
    pub fn counters(&self) -> impl Iterator<Item = (SubscriberHandle, SaKey, SaCounters)> {
        self.entries.iter().map(|entry| {
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
        let Some(entry) = slot.and_then(|slot| self.entries.get_mut(slot)) else {
            return;
        };
        if let Some(bridge) = &mut entry.bridge {
            bridge.reserve(to_peer, wanted.limit);
        }
        if let Some(shared) = &mut entry.shared {
            shared.grant(to_peer, wanted);
        }
        if let Some(kept) = &mut entry.kept {
            let [peer, terminal] = &mut kept.asked;
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
        self.timeouts += self.reassembler.expire(now);
        self.keep_alive(now);
        for entry in self.entries.iter_mut() {
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
            entry.ask_again(&mut self.notices);
        }
    }

    /// Works on one packet of ESP (raw or behind UDP) or AH in place; `packet` starts at the IP header.
    pub fn process(
        &mut self,
        now: Instant,
        arrival: Arrival,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Disposition {
        match self.bridge_packet(now, arrival, packet, rng) {
            Ok(Passage::Onward | Passage::Steered) => Disposition::Forward,
            Ok(Passage::Taken) => Disposition::Taken,
            Ok(Passage::Queued) => Disposition::Queued,
            // Nothing leaves open.
            Ok(Passage::Open) => Disposition::Drop(DropReason::PolicyNoSa),
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
        let Outside {
            source,
            destination,
            spi,
        } = Outside::of(packet.bytes())?;
        let mut spi = spi;
        if arrival.from_access {
            match self.to_peer.get(&(source, destination, spi)) {
                Some(slot) => {
                    let passage = self.through(slot, Side::Terminal, now, arrival.egress, packet, rng)?;
                    match passage {
                        Passage::Onward => {}
                        // By another SA of the pair than it came.
                        Passage::Steered => spi = Outside::of(packet.bytes())?.spi,
                        Passage::Taken | Passage::Queued | Passage::Open => return Ok(passage),
                    }
                }
                None => tell(&mut self.notices, Notice::UnknownSa { terminal: source }),
            }
        }
        match self.to_terminal.get(&(destination, spi)) {
            Some(slot) => self.through(slot, Side::Network, now, arrival.egress, packet, rng),
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
            bridge.meanwhile(self.later.take());
            let place = Place {
                slot,
                key: entry.key,
                whose: Whose::of(entry.subscriber, entry.level),
                from,
                egress,
            };
            let to_peer = from == Side::Terminal;
            let tight = bridge
                .path_mtu(to_peer, now)
                .is_some_and(|mtu| packet.len() > mtu.into());
            let mut cut = Cut {
                extra: &mut self.extra,
                id: &mut self.fragment_id,
            };
            passage = match (&mut self.relay, entry.pair) {
                (Some(relay), Some(pair)) if relay.looks_at(pair) => {
                    let relay = Some((relay, pair));
                    opened(relay, &mut self.watch, &mut cut, bridge, place, now, packet, rng)
                }
                _ if tight || self.watch.wants_plain(&entry.key) => {
                    opened(None, &mut self.watch, &mut cut, bridge, place, now, packet, rng)
                }
                _ => bridge.pass(to_peer, now, packet, rng).map(|()| Passage::Onward),
            };
            if let Some(quiet) = entry.quiet.as_mut().filter(|_| to_peer && passage.is_ok()) {
                quiet.since = now;
            }
            tell_limit(
                &mut self.notices,
                entry.subscriber,
                entry.key.spi_in,
                bridge.take_event(),
            );
        }
        if let (Some(inspecting), Some(relay), Some(pair)) =
            (&mut entry.inspecting, &mut self.relay, entry.pair)
            && relay.looks_at(pair)
        {
            let place = Place {
                slot,
                key: entry.key,
                whose: Whose::of(entry.subscriber, entry.level),
                from,
                egress,
            };
            passage = Ok(inspecting.look(relay, pair, place, now, packet.bytes()));
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
        entry.keep(slot, &mut self.notices, &mut self.touched);
        if passage == Ok(Passage::Open) {
            passage = self.steer(slot, from, now, egress, packet, rng);
        }
        let entry = self.entries.get_mut(slot).ok_or(DropReason::EspUnknownSpi)?;
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
}

/// What came of one SA's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passage {
    /// Sealed for the next segment.
    Onward,
    /// Open still: a policy names the SAs that may seal it.
    Open,
    /// Sealed for the next segment, by another SA than it came by.
    Steered,
    /// The relay has it.
    Taken,
    /// It is among the extra packets, or one that answers it.
    Queued,
}

/// Who a protected packet is from and for, as anybody on the way can see.
struct Outside {
    source: IpAddr,
    destination: IpAddr,
    spi: Spi,
}

impl Outside {
    #[inline]
    fn of(packet: &[u8]) -> Result<Self, DropReason> {
        match locate::esp(packet) {
            Ok(Located {
                source,
                destination,
                spi,
                ..
            }) => Ok(Self {
                source,
                destination,
                spi,
            }),
            // Neither ESP nor UDP.
            Err(DropReason::EspMalformed) => {
                let ah::LocatedAh {
                    source,
                    destination,
                    spi,
                    ..
                } = ah::locate(packet)?;
                Ok(Self {
                    source,
                    destination,
                    spi,
                })
            }
            Err(reason) => Err(reason),
        }
    }
}

#[cfg(test)]
mod tests;
