//! The TCP relay between the halves of the bridges: which connections it takes, which SA carries what it says.
//!
//! ```text
//!   terminal ══ segment keys ══► open ─► TCP? ─► relay ─► seal ══ peer's keys ══► peer
//!                                   └─ anything else ────► seal
//! ```
//!
//! A connection belongs to a *pair*, the outer addresses of terminal and peer, not to one SA: when the SA is
//! rekeyed the connection goes on, on the newest SA of the pair that its receiver is known to have. The relay's
//! packets and those that pass are numbered by the same sender, so no sequence number is used twice.
//!
//! Between two terminals of this gateway both pairs see a connection. The pair whose terminal has the smaller
//! address relays it, the other one passes, and both sides are radio (T20).

mod clear;
mod look;
mod orphans;
mod snooped;
mod wraps;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use towpath_base::{Instant, SubscriberHandle};
use towpath_ipsec::wrapped::Wrap;
use towpath_tcp::packet::TcpPacket;
use towpath_tcp::relay::rules::{Action, Class, Rules, Treatment};
use towpath_tcp::relay::snoop::ReplayPosition;
use towpath_tcp::relay::split::{Opening, OpeningSide, SplitConfig, SplitRelay};
use towpath_tcp::relay::{FlowKey, Side, Verdict};
use towpath_tcp::segment::Flags;
use towpath_tcp::{Algorithm, IsnSecret};

use clear::Clear;
use orphans::Orphans;
use snooped::Snooped;
use wraps::Wraps;

pub use look::{FlowView, RelayTotals};

/// Connections outlive the last SA of their pair by this long: the next SA may be under way.
const ORPHAN: Duration = Duration::from_secs(60);
/// A next hop not confirmed by a packet for this long is asked of the kernel again.
const EGRESS_FRESH: Duration = Duration::from_secs(10);
/// Packets of a terminal's replay window; ours have at least this many (`terminal-core`).
const REPLAY_WINDOW: u64 = 448;
/// A connection silent this long is parked. Waking takes microseconds.
const PARK_AFTER: Duration = Duration::from_secs(2);
/// The same while more than [`CROWD`] are awake: a crowd that arrives and falls silent must not be awake all at once, or
/// the process keeps the memory.
const PARK_SOON: Duration = Duration::from_millis(50);
/// Connections awake that make a crowd.
const CROWD: usize = 256;
/// Connections parked in a second at most: a crowd that speaks ten times a second is not to be parked as often.
const PARKED_PER_SECOND: usize = 8192;
/// Connections looked at for parking between two batches of packets, which must not wait long for it.
const PARK_BATCH: usize = 16;

/// Where a packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egress {
    /// Interface.
    pub ifindex: u32,
    /// MAC address of the next hop.
    pub dmac: [u8; 6],
    /// MAC address of the interface.
    pub smac: [u8; 6],
}

/// Parameters of the relay.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Largest IP packet that fits the access side, bytes, ESP included.
    pub terminal_mtu: u16,
    /// Largest IP packet that fits the core side, bytes, ESP included.
    pub network_mtu: u16,
    /// The split relay.
    pub split: SplitConfig,
    /// Rules of subscribers that have none of their own.
    pub rules: Arc<Rules>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            terminal_mtu: 1500,
            network_mtu: 1500,
            split: split_config(),
            rules: Arc::new(Rules::default()),
        }
    }
}

/// The engine's defaults with `radio` towards the terminal.
fn split_config() -> SplitConfig {
    let mut config = SplitConfig::default();
    config.terminal.connection.algorithm = Algorithm::Radio;
    // A satellite's path holds 1.5 MB and more, and what is lost twice keeps three times that waiting. The buffer
    // follows the window, so this much is only used where the path needs it.
    config.terminal.connection.send_limit = 16 << 20;
    config.terminal.connection.early_repeats = true;
    config
}

/// Largest inner packets towards either end, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) terminal: u16,
    pub(crate) network: u16,
}

/// An SA of a pair.
#[derive(Debug, Clone, Copy)]
struct Carrier {
    /// Its place in the datapath's table.
    slot: usize,
    /// How far the gateway may go.
    class: Class,
    /// A valid packet came from the terminal: it has the keys.
    terminal_has_it: bool,
    /// A valid packet came from either end: so has the peer, which negotiated it before the terminal got it.
    peer_has_it: bool,
}

/// Everything between one terminal and one peer.
#[derive(Debug)]
struct Pair {
    subscriber: SubscriberHandle,
    local: IpAddr,
    remote: IpAddr,
    /// Oldest first.
    carriers: Vec<Carrier>,
    to_terminal: Option<(Instant, Egress)>,
    to_network: Option<(Instant, Egress)>,
    /// What was last around packets to the terminal and to the network: see [`Relay::around`].
    around: [Option<Box<(Instant, Wrap)>>; 2],
    /// No SA is between these two: TCP in the clear. See [`clear`].
    clear: bool,
    /// When the last SA went, or the last connection in the clear.
    empty_since: Option<Instant>,
    /// Some connection could be treated: TCP is looked at. Never taken back while the pair lives.
    looked_at: bool,
}

impl Pair {
    /// How far the gateway may go with what [`Relay::input`] is shown.
    const fn class(&self) -> Class {
        if self.clear { Class::Clear } else { Class::Full }
    }

    fn is_relayed(&self) -> bool {
        self.carriers
            .last()
            .is_some_and(|carrier| carrier.class == Class::Full)
    }

    const fn egress_mut(&mut self, to: Side) -> &mut Option<(Instant, Egress)> {
        match to {
            Side::Terminal => &mut self.to_terminal,
            Side::Network => &mut self.to_network,
        }
    }
}

/// What happens to an opened packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The relay has it.
    Taken,
    /// Seal it again.
    Onward,
    /// Drop it.
    Broken,
}

/// A packet of the relay, not sealed yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spoken {
    pub(crate) to: Side,
    /// Its pair.
    pub(crate) pair: usize,
    /// Its length in the buffer, bytes.
    pub(crate) len: usize,
    /// Not to be sealed: it is the peer's own ESP packet, or belongs in the clear.
    pub(crate) as_is: bool,
}

/// The relay of one worker.
pub(crate) struct Relay {
    split: SplitRelay,
    snooped: Snooped,
    orphans: Orphans,
    /// Connections that may still be parked in this second.
    may_park: usize,
    wraps: Wraps,
    pairs: Slab<Pair>,
    by_address: HashMap<(IpAddr, IpAddr), usize>,
    clear: Clear,
    rules: HashMap<SubscriberHandle, Arc<Rules>>,
    config: RelayConfig,
}

impl Relay {
    pub(crate) fn new(config: RelayConfig, secret: IsnSecret) -> Self {
        Self {
            split: SplitRelay::new(config.split.clone(), secret),
            snooped: Snooped::new(),
            orphans: Orphans::default(),
            may_park: PARKED_PER_SECOND,
            wraps: Wraps::default(),
            pairs: Slab::new(),
            by_address: HashMap::new(),
            clear: Clear::default(),
            rules: HashMap::new(),
            config,
        }
    }

    /// Gives a subscriber rules of its own; they hold for connections opened from now on.
    pub(crate) fn set_rules(&mut self, subscriber: SubscriberHandle, rules: Option<Arc<Rules>>) {
        match rules {
            Some(rules) => self.rules.insert(subscriber, rules),
            None => self.rules.remove(&subscriber),
        };
        let rules = self.rules.get(&subscriber).unwrap_or(&self.config.rules);
        let pairs = self.pairs.iter_mut().map(|(_, pair)| pair);
        for pair in pairs.filter(|pair| pair.subscriber == subscriber) {
            pair.looked_at |= pair.carriers.iter().any(|carrier| rules.may_treat(carrier.class));
        }
    }

    /// Whether packets of `pair` have to be opened for the relay.
    pub(crate) fn looks_at(&self, pair: usize) -> bool {
        self.pairs.get(pair).is_some_and(|pair| pair.looked_at)
    }

    /// Outer MTUs of access and core side.
    pub(crate) const fn mtus(&self) -> Room {
        Room {
            terminal: self.config.terminal_mtu,
            network: self.config.network_mtu,
        }
    }

    // -- SAs ------------------------------------------------------------------------------------------

    /// An SA came; returns its pair.
    pub(crate) fn add_sa(
        &mut self,
        subscriber: SubscriberHandle,
        local: IpAddr,
        remote: IpAddr,
        slot: usize,
        class: Class,
    ) -> usize {
        let pairs = &mut self.pairs;
        let index = *self.by_address.entry((local, remote)).or_insert_with(|| {
            pairs.insert(Pair {
                subscriber,
                local,
                remote,
                carriers: Vec::new(),
                to_terminal: None,
                to_network: None,
                around: [None, None],
                clear: false,
                empty_since: None,
                looked_at: false,
            })
        });
        let treats = self
            .rules
            .get(&subscriber)
            .unwrap_or(&self.config.rules)
            .may_treat(class);
        if let Some(pair) = pairs.get_mut(index) {
            pair.subscriber = subscriber;
            pair.empty_since = None;
            pair.looked_at |= treats;
            pair.carriers.push(Carrier {
                slot,
                class,
                terminal_has_it: false,
                peer_has_it: false,
            });
        }
        index
    }

    /// An SA went. If it was the last one, [`Relay::tick`] notices.
    pub(crate) fn remove_sa(&mut self, pair: usize, slot: usize) {
        let Some(pair) = self.pairs.get_mut(pair) else {
            return;
        };
        pair.carriers.retain(|carrier| carrier.slot != slot);
        self.snooped.forget_sa(slot as u64);
    }

    /// The SA that carries packets of `pair` to the end on side `to`; `fits` tells whether its selectors admit
    /// the packet.
    pub(crate) fn carrier(&self, pair: usize, to: Side, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let mut newest = None;
        for carrier in self.pairs.get(pair)?.carriers.iter().rev() {
            if carrier.class != Class::Full || !fits(carrier.slot) {
                continue;
            }
            newest = newest.or(Some(carrier.slot));
            let known = match to {
                Side::Terminal => carrier.terminal_has_it,
                Side::Network => carrier.peer_has_it,
            };
            if known {
                return Some(carrier.slot);
            }
        }
        newest
    }

    // -- packets --------------------------------------------------------------------------------------

    /// A valid packet of the SA in `slot` came from side `from` and goes on through `egress`.
    pub(crate) fn note(
        &mut self,
        now: Instant,
        pair: usize,
        slot: usize,
        from: Side,
        egress: Option<Egress>,
    ) {
        let Some(pair) = self.pairs.get_mut(pair) else {
            return;
        };
        if let Some(egress) = egress {
            *pair.egress_mut(from.opposite()) = Some((now, egress));
        }
        for carrier in pair.carriers.iter_mut().filter(|carrier| carrier.slot == slot) {
            carrier.terminal_has_it |= from == Side::Terminal;
            carrier.peer_has_it = true;
        }
    }

    /// Shows the relay the plain TCP packet `packet` of `pair`, which came from side `from`. What it does not
    /// take may have been changed.
    pub(crate) fn input(
        &mut self,
        now: Instant,
        pair_index: usize,
        from: Side,
        packet: &mut [u8],
        room: impl FnOnce(bool) -> Room,
    ) -> Fate {
        let Self {
            split,
            snooped,
            orphans,
            pairs,
            by_address,
            rules,
            config,
            ..
        } = self;
        let Some(pair) = pairs.get(pair_index) else {
            return Fate::Onward;
        };
        let class = pair.class();
        // Only asked of what is not a connection yet, or not the relay's.
        let twin = || {
            by_address
                .get(&(pair.remote, pair.local))
                .filter(|_| !pair.clear)
                .and_then(|index| pairs.get(*index))
                .filter(|twin| twin.is_relayed())
        };
        let admit = |key: &FlowKey| {
            let twin = twin();
            if twin.is_some_and(|twin| twin.local < pair.local) {
                return None;
            }
            let rules = rules.get(&pair.subscriber).unwrap_or(&config.rules);
            let action = rules.decide(key, from, class);
            match action.treatment {
                Treatment::Split => Some(opening(&config.split, &action, twin.is_some(), room(is_v4(key)))),
                Treatment::Snoop => {
                    snooped.begin(*key, pair_index, false);
                    None
                }
                Treatment::Pass => None,
            }
        };
        match split.handle_tagged(now, from, packet, pair_index as u64, admit) {
            Verdict::Consumed => Fate::Taken,
            Verdict::Pass | Verdict::PassChanged(_) => {
                // In the clear anybody could make them look like orphans.
                if let Some(Ok(tcp)) = (!pair.clear).then(|| TcpPacket::parse(packet)) {
                    let key = FlowKey::of(from, &tcp);
                    let rules = rules.get(&pair.subscriber).unwrap_or(&config.rules);
                    let splits = |opener| rules.decide(&key, opener, class).treatment == Treatment::Split;
                    let owner = twin().is_none_or(|twin| pair.local < twin.local);
                    if owner && Side::BOTH.into_iter().all(splits) {
                        orphans.note(now, pair_index, from, &tcp);
                    }
                }
                snooped.input(now, pair_index, from, packet)
            }
            Verdict::Drop => Fate::Broken,
        }
    }

    /// Shows Snoop what was seen in a packet of class `inspect`: `plain` in the `sealed` one, number `sequence` of
    /// the SA in `slot`.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        pair_index: usize,
        slot: usize,
        from: Side,
        plain: &[u8],
        sealed: &[u8],
        sequence: u64,
    ) -> Fate {
        let Some(pair) = self.pairs.get(pair_index) else {
            return Fate::Onward;
        };
        if let Ok(packet) = TcpPacket::parse(plain)
            && packet.segment.header.flags.has(Flags::SYN)
            && !packet.segment.header.flags.has(Flags::ACK)
        {
            let key = FlowKey::of(from, &packet);
            let rules = self.rules.get(&pair.subscriber).unwrap_or(&self.config.rules);
            if rules.decide(&key, from, Class::Inspect).treatment == Treatment::Snoop {
                self.snooped.begin(key, pair_index, true);
            }
        }
        let replay = ReplayPosition {
            sa: slot as u64,
            sequence,
            window: REPLAY_WINDOW,
        };
        self.snooped.look(now, pair_index, from, plain, sealed, replay)
    }

    /// The relay's next packet, written into `out`.
    pub(crate) fn speak(&mut self, now: Instant, out: &mut [u8]) -> Option<Spoken> {
        if !self.snooped.is_empty()
            && let Some(mut repeat) = self.snooped.speak(now, out)
        {
            repeat.as_is |= self.is_clear(repeat.pair);
            return Some(repeat);
        }
        if let Some(reset) = self.orphans.take() {
            let room = out.get_mut(..reset.packet.len())?;
            room.copy_from_slice(&reset.packet);
            return Some(Spoken {
                to: reset.to,
                pair: reset.pair,
                len: reset.packet.len(),
                as_is: false,
            });
        }
        let transmit = self.split.poll_transmit(now, out)?;
        let pair = usize::try_from(transmit.tag).unwrap_or(usize::MAX);
        Some(Spoken {
            to: transmit.to,
            pair,
            len: transmit.len,
            as_is: self.is_clear(pair),
        })
    }

    /// `packet`, which the relay made for the end on side `to`, is too long: plain packets of `mtu` bytes are what the path
    /// takes. Its connection makes shorter ones from now on.
    pub(crate) fn narrow(&mut self, now: Instant, to: Side, packet: &[u8], mtu: u16) {
        if let Ok(tcp) = TcpPacket::parse(packet) {
            let key = FlowKey::of(to.opposite(), &tcp);
            self.split.path_mtu(now, &key, to, mtu);
        }
    }

    /// Where packets of `pair` leave towards side `to`; `None` leaves it to the kernel.
    pub(crate) fn egress(&self, now: Instant, pair: usize, to: Side) -> Option<Egress> {
        let pair = self.pairs.get(pair)?;
        let (learnt, egress) = match to {
            Side::Terminal => pair.to_terminal?,
            Side::Network => pair.to_network?,
        };
        (now.saturating_since(learnt) < EGRESS_FRESH).then_some(egress)
    }

    // -- time -----------------------------------------------------------------------------------------

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let split = self.split.poll_timeout().map(|(at, _)| at);
        split.into_iter().chain(self.snooped.poll_timeout()).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.split.handle_timeout(now);
        self.park(now, PARK_BATCH);
        self.snooped.handle_timeout(now);
    }

    /// Parks silent connections, having looked at `most` at most.
    fn park(&mut self, now: Instant, most: usize) {
        let silent = if self.split.awake() > CROWD {
            PARK_SOON
        } else {
            PARK_AFTER
        };
        let most = most.min(self.may_park);
        self.may_park = self
            .may_park
            .saturating_sub(self.split.trim_some(now, silent, most));
    }

    /// About once a second: parks what is idle, forgets pairs whose SAs went long ago.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.may_park = PARKED_PER_SECOND;
        self.park(now, PARKED_PER_SECOND);
        self.snooped.tick();
        self.forget_wraps(now);
        let Self {
            split,
            snooped,
            pairs,
            by_address,
            clear,
            ..
        } = self;
        let helped = clear.helped(snooped);
        pairs.retain(|index, pair| {
            if !pair.carriers.is_empty() {
                return true;
            }
            if pair.clear && (split.has_tagged(index as u64) || helped.contains(&index)) {
                pair.empty_since = None;
                return true;
            }
            let since = *pair.empty_since.get_or_insert(now);
            if now.saturating_since(since) < ORPHAN {
                return true;
            }
            split.remove_tagged(index as u64);
            snooped.remove_pair(index);
            if pair.clear {
                clear.forget(pair.local, pair.remote);
            } else {
                by_address.remove(&(pair.local, pair.remote));
            }
            false
        });
    }
}

const fn is_v4(key: &FlowKey) -> bool {
    key.terminal.0.is_ipv4()
}

/// What is chosen for a connection by `action`; `twin`: the other end is a terminal of this gateway, too.
fn opening(split: &SplitConfig, action: &Action, twin: bool, room: Room) -> Opening {
    let radio = action.terminal.unwrap_or(split.terminal.connection.algorithm);
    let (mtu, far) = if twin {
        // The other end is behind a radio, too.
        let mtu = room.network.min(room.terminal);
        (mtu, Some(action.network.unwrap_or(radio)))
    } else {
        (room.network, action.network)
    };
    Opening {
        terminal: OpeningSide {
            mtu: Some(room.terminal),
            algorithm: Some(radio),
        },
        network: OpeningSide {
            mtu: Some(mtu),
            algorithm: far,
        },
        handshake: action.handshake,
    }
}
