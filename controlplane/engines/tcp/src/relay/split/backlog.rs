//! Connections that are not open yet, bounded.
//!
//! Whoever opens connections and never follows up fills its own path's share and then pushes out its own oldest ones;
//! the share of others stays free. There is nothing a cookie would save: a SYN is answered only after the far side has
//! answered ours, so what is kept for one is needed to relay that answer, and a bound with the oldest going first costs
//! the one who floods, not the one who waits. Where the opener is answered at once ([`super::Handshake::Early`]), a
//! path whose share is half used up is treated as if that had not been asked for.

use alloc::collections::BTreeMap;
use core::num::NonZeroU64;

use crate::relay::FlowKey;

/// A place in the backlog: later ones are larger.
pub(super) type Place = NonZeroU64;

/// Every connection not yet open, by path and age.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: BTreeMap<(u64, Place), FlowKey>,
    of_tag: BTreeMap<u64, usize>,
    last: u64,
}

impl Backlog {
    pub(super) const fn new() -> Self {
        Self {
            waiting: BTreeMap::new(),
            of_tag: BTreeMap::new(),
            last: 0,
        }
    }

    /// All of them.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Those of a path.
    pub(super) fn of(&self, tag: u64) -> usize {
        self.of_tag.get(&tag).copied().unwrap_or(0)
    }

    /// The one of a path that waits longest.
    pub(super) fn oldest(&self, tag: u64) -> Option<FlowKey> {
        self.waiting
            .range((tag, Place::MIN)..=(tag, Place::MAX))
            .next()
            .map(|(_, key)| *key)
    }

    /// A connection begins.
    pub(super) fn add(&mut self, tag: u64, key: FlowKey) -> Place {
        self.last = self.last.wrapping_add(1).max(1);
        let place = Place::new(self.last).unwrap_or(Place::MIN);
        self.waiting.insert((tag, place), key);
        *self.of_tag.entry(tag).or_default() += 1;
        place
    }

    /// It is open, or over.
    pub(super) fn remove(&mut self, tag: u64, place: Place) {
        if self.waiting.remove(&(tag, place)).is_none() {
            return;
        }
        if let Some(count) = self.of_tag.get_mut(&tag) {
            *count -= 1;
            if *count == 0 {
                self.of_tag.remove(&tag);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_a_path_is_found_and_counts_go_back_to_zero() {
        let key = |port| FlowKey {
            terminal: ([10, 0, 0, 1].into(), port),
            network: ([10, 0, 0, 2].into(), 80),
        };
        let mut backlog = Backlog::new();
        let first = backlog.add(1, key(1));
        let other = backlog.add(2, key(2));
        let second = backlog.add(1, key(3));
        assert_eq!((backlog.len(), backlog.of(1), backlog.of(2)), (3, 2, 1));
        assert_eq!(backlog.oldest(1), Some(key(1)));
        backlog.remove(1, first);
        backlog.remove(1, first);
        assert_eq!(backlog.oldest(1), Some(key(3)));
        backlog.remove(1, second);
        backlog.remove(2, other);
        assert_eq!(backlog.oldest(1), None);
        assert_eq!((backlog.len(), backlog.of_tag.len()), (0, 0));
    }
}
