//! Snooped connections: in class `full`, where what is repeated is sealed anew, and in class `inspect`, where the
//! peer's own ESP packet is repeated bit for bit (T3, T4).

use std::collections::HashMap;

use towpath_base::Instant;
use towpath_tcp::relay::snoop::{
    Original, ReplayPosition, SnoopConfig, SnoopRelay, SnoopStats, SnoopView, apply,
};
use towpath_tcp::relay::{FlowKey, Side, Verdict};

use super::{Fate, Spoken};

/// Most connections.
const MAX_FLOWS: usize = 65_536;

/// A snooped connection's place.
#[derive(Debug, Clone, Copy)]
struct Place {
    pair: usize,
    /// On an SA of class `inspect`.
    inspected: bool,
}

/// All snooped connections of a worker.
#[derive(Debug)]
pub(super) struct Snooped {
    full: SnoopRelay,
    inspected: SnoopRelay,
    places: HashMap<FlowKey, Place>,
}

impl Snooped {
    pub(super) fn new() -> Self {
        let full = SnoopConfig {
            max_flows: MAX_FLOWS,
            ..SnoopConfig::default()
        };
        let inspected = SnoopConfig {
            may_modify: false,
            ..full
        };
        Self {
            full: SnoopRelay::new(full),
            inspected: SnoopRelay::new(inspected),
            places: HashMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A connection of `pair` begins that a rule wants snooped.
    pub(super) fn begin(&mut self, key: FlowKey, pair: usize, inspected: bool) {
        // A connection belongs to the path of its first SYN: another path cannot take it over.
        let free = match self.places.get(&key) {
            Some(place) => place.pair == pair,
            None => self.places.len() < MAX_FLOWS,
        };
        if free {
            self.places.insert(key, Place { pair, inspected });
        }
    }

    /// Class `full`: a plain packet, which may be changed.
    pub(super) fn input(&mut self, now: Instant, pair: usize, from: Side, packet: &mut [u8]) -> Fate {
        if !self.is_ours(pair, from, packet, false) {
            return Fate::Onward;
        }
        let original = Original {
            bytes: packet,
            replay: None,
        };
        match self.full.handle_input(now, from, packet, original) {
            Verdict::Consumed => Fate::Taken,
            Verdict::Pass => Fate::Onward,
            Verdict::PassChanged(change) if apply(change, packet) => Fate::Onward,
            Verdict::PassChanged(_) | Verdict::Drop => Fate::Broken,
        }
    }

    /// Class `inspect`: what was seen in the packet `sealed`, and where that stands in its SA's sequence.
    pub(super) fn look(
        &mut self,
        now: Instant,
        pair: usize,
        from: Side,
        plain: &[u8],
        sealed: &[u8],
        replay: ReplayPosition,
    ) -> Fate {
        if !self.is_ours(pair, from, plain, true) {
            if from == Side::Network {
                // The receiver's window moves with every packet, whatever it carries.
                self.inspected.note_forwarded(replay.sa, replay.sequence);
            }
            return Fate::Onward;
        }
        let original = Original {
            bytes: sealed,
            replay: Some(replay),
        };
        match self.inspected.handle_input(now, from, plain, original) {
            Verdict::Consumed => Fate::Taken,
            // What was seen is a hint and not authenticated: a broken one is the receiver's to judge.
            Verdict::Pass | Verdict::PassChanged(_) | Verdict::Drop => Fate::Onward,
        }
    }

    fn is_ours(&self, pair: usize, from: Side, packet: &[u8], inspected: bool) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let place = FlowKey::peek(from, packet).and_then(|key| self.places.get(&key));
        place.is_some_and(|place| place.pair == pair && place.inspected == inspected)
    }

    /// The next packet to repeat, written into `out`.
    pub(super) fn speak(&mut self, now: Instant, out: &mut [u8]) -> Option<Spoken> {
        let Self {
            full,
            inspected,
            places,
        } = self;
        for (relay, sealed) in [(full, false), (inspected, true)] {
            while let Some(repeat) = relay.poll_transmit(now) {
                let Some(place) = places.get(&repeat.flow) else {
                    continue;
                };
                let bytes = repeat.original.bytes;
                let Some(room) = out.get_mut(..bytes.len()) else {
                    continue;
                };
                room.copy_from_slice(bytes);
                return Some(Spoken {
                    to: Side::Terminal,
                    pair: place.pair,
                    len: bytes.len(),
                    as_is: sealed,
                });
            }
        }
        None
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.full.poll_timeout(), self.inspected.poll_timeout()];
        due.into_iter().flatten().map(|(at, _)| at).min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.full.handle_timeout(now);
        self.inspected.handle_timeout(now);
    }

    /// Forgets what the engines have forgotten.
    pub(super) fn tick(&mut self) {
        let Self {
            full,
            inspected,
            places,
        } = self;
        places.retain(|key, _| full.knows(key) || inspected.knows(key));
    }

    /// Forgets the connections of `pair`.
    pub(super) fn remove_pair(&mut self, pair: usize) {
        let Self {
            full,
            inspected,
            places,
        } = self;
        places.retain(|key, place| {
            if place.pair == pair {
                full.remove(key);
                inspected.remove(key);
            }
            place.pair != pair
        });
    }

    /// An SA of class `inspect` is gone.
    pub(super) fn forget_sa(&mut self, sa: u64) {
        self.inspected.forget_sa(sa);
    }

    /// The connections with their pairs.
    pub(super) fn views(&self) -> impl Iterator<Item = (&FlowKey, usize, SnoopView)> {
        self.places.iter().filter_map(|(key, place)| {
            let relay = if place.inspected {
                &self.inspected
            } else {
                &self.full
            };
            Some((key, place.pair, relay.view(key)?))
        })
    }

    /// The pair of each connection.
    pub(super) fn pairs(&self) -> impl Iterator<Item = usize> {
        self.places.values().map(|place| place.pair)
    }

    /// Connections, and bytes cached.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (
            self.full.len() + self.inspected.len(),
            self.full.cached_bytes() + self.inspected.cached_bytes(),
        )
    }

    /// What happened in both classes.
    pub(super) fn stats(&self) -> SnoopStats {
        let (a, b) = (self.full.stats(), self.inspected.stats());
        SnoopStats {
            cached: a.cached + b.cached,
            repeated: a.repeated + b.repeated,
            suppressed: a.suppressed + b.suppressed,
            changed: a.changed + b.changed,
            uncached: a.uncached + b.uncached,
            out_of_window: a.out_of_window + b.out_of_window,
            peer_retransmits: a.peer_retransmits + b.peer_retransmits,
        }
    }
}
