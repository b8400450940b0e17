//! From what a packet shows to the slot of its SA: a hash table that can be asked ahead of time.
//!
//! ```text
//!   buckets   [ tag slot ][ tag slot ][ --------- ]   8 bytes each, at most half of them full, linear probing
//!   keys      [ key ][ key ][ none ][ key ]           by slot, looked at to be sure
//! ```
//!
//! [`Slots::guess`] reads one bucket and no key: it is right all but once in many thousand times, and good for asking for
//! what will be needed. [`Slots::get`] is always right.

use alloc::vec::Vec;
use core::hash::{BuildHasher, Hash};

/// A place in a slab.
type Slot = u32;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tag: u32,
    slot: Slot,
}

impl Bucket {
    const EMPTY: Self = Self {
        tag: 0,
        slot: Slot::MAX,
    };

    const fn is_empty(self) -> bool {
        self.slot == Slot::MAX
    }
}

/// Keys and their slots. Several keys may not have the same slot.
#[derive(Debug, Clone)]
pub struct Slots<K, S> {
    buckets: Vec<Bucket>,
    keys: Vec<Option<K>>,
    len: usize,
    hasher: S,
}

impl<K: Hash + Eq, S: BuildHasher + Default> Default for Slots<K, S> {
    fn default() -> Self {
        Self {
            buckets: Vec::new(),
            keys: Vec::new(),
            len: 0,
            hasher: S::default(),
        }
    }
}

impl<K: Hash + Eq, S: BuildHasher> Slots<K, S> {
    fn tag(&self, key: &K) -> u32 {
        (self.hasher.hash_one(key) >> 32) as u32
    }

    /// Where the search for `tag` begins, and for the one behind `at`. There are a power of two of buckets.
    const fn wrap(&self, at: usize) -> usize {
        at & (self.buckets.len().wrapping_sub(1))
    }

    /// Full buckets from where `tag` belongs to the next empty one, with their places.
    #[inline]
    fn run(&self, tag: u32) -> impl Iterator<Item = (usize, Bucket)> {
        let start = self.wrap(tag as usize);
        (0..self.buckets.len())
            .map(move |step| self.wrap(start + step))
            .map_while(|at| Some((at, *self.buckets.get(at)?)))
            .take_while(|(_, bucket)| !bucket.is_empty())
    }

    fn holds(&self, bucket: Bucket, tag: u32, key: &K) -> bool {
        bucket.tag == tag && self.key(bucket.slot as usize) == Some(key)
    }

    /// The key of a slot.
    #[inline]
    pub fn key(&self, slot: usize) -> Option<&K> {
        self.keys.get(slot)?.as_ref()
    }

    /// Number of keys.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True without keys.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot of `key`.
    #[inline]
    pub fn get(&self, key: &K) -> Option<usize> {
        let tag = self.tag(key);
        self.run(tag)
            .find(|(_, bucket)| self.holds(*bucket, tag, key))
            .map(|(_, bucket)| bucket.slot as usize)
    }

    /// The slot `key` probably has; never `None` if it has one.
    #[inline]
    pub fn guess(&self, key: &K) -> Option<usize> {
        let tag = self.tag(key);
        self.run(tag)
            .find(|(_, bucket)| bucket.tag == tag)
            .map(|(_, bucket)| bucket.slot as usize)
    }

    /// Gives `key` a slot; returns the one it had. Slots are below 2^32 − 1.
    pub fn insert(&mut self, key: K, slot: usize) -> Option<usize> {
        let before = self.remove(&key);
        if self.len * 2 >= self.buckets.len() {
            self.grow();
        }
        let tag = self.tag(&key);
        if self.keys.len() <= slot {
            self.keys.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.keys.get_mut(slot) {
            *place = Some(key);
        }
        self.put(Bucket {
            tag,
            slot: slot as Slot,
        });
        self.len += 1;
        before
    }

    fn put(&mut self, bucket: Bucket) {
        let start = self.wrap(bucket.tag as usize);
        let mut places = (0..self.buckets.len()).map(|step| self.wrap(start + step));
        let free = places.find(|at| self.buckets.get(*at).is_some_and(|bucket| bucket.is_empty()));
        if let Some(place) = free.and_then(|at| self.buckets.get_mut(at)) {
            *place = bucket;
        }
    }

    fn grow(&mut self) {
        let larger = (self.buckets.len() * 2).max(16);
        let old = core::mem::replace(&mut self.buckets, alloc::vec![Bucket::EMPTY; larger]);
        for bucket in old.into_iter().filter(|bucket| !bucket.is_empty()) {
            self.put(bucket);
        }
    }

    /// Forgets `key`; returns its slot.
    pub fn remove(&mut self, key: &K) -> Option<usize> {
        let tag = self.tag(key);
        let (mut hole, found) = self.run(tag).find(|(_, bucket)| self.holds(*bucket, tag, key))?;
        // What follows moves up unless it would come to stand before the place it belongs to.
        let mut at = hole;
        loop {
            at = self.wrap(at + 1);
            let Some(next) = self.buckets.get(at).copied().filter(|next| !next.is_empty()) else {
                break;
            };
            let from_home = self.wrap(at.wrapping_sub(next.tag as usize));
            let from_hole = self.wrap(at.wrapping_sub(hole));
            if from_home >= from_hole {
                if let Some(place) = self.buckets.get_mut(hole) {
                    *place = next;
                }
                hole = at;
            }
        }
        if let Some(place) = self.buckets.get_mut(hole) {
            *place = Bucket::EMPTY;
        }
        if let Some(place) = self.keys.get_mut(found.slot as usize) {
            *place = None;
        }
        self.len -= 1;
        Some(found.slot as usize)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::hash::{BuildHasherDefault, Hasher};
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Few values, so that much collides.
    #[derive(Default)]
    struct Weak(u64);

    impl Hasher for Weak {
        fn finish(&self) -> u64 {
            (self.0 % 23) << 32
        }

        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_mul(31).wrapping_add((*byte).into());
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(steps in prop::collection::vec((any::<bool>(), 0u16..200), 1..400)) {
            let mut slots = Slots::<u16, BuildHasherDefault<Weak>>::default();
            let (mut model, mut free) = (HashMap::new(), Vec::from_iter((0..200usize).rev()));
            for (insert, key) in steps {
                if insert {
                    let slot = free.pop().unwrap();
                    let before = model.insert(key, slot);
                    prop_assert_eq!(slots.insert(key, slot), before);
                    free.extend(before);
                } else {
                    let before = model.remove(&key);
                    prop_assert_eq!(slots.remove(&key), before);
                    free.extend(before);
                }
                prop_assert_eq!(slots.len(), model.len());
                for key in 0..200 {
                    prop_assert_eq!(slots.get(&key), model.get(&key).copied());
                    prop_assert!(slots.guess(&key).is_some() || !model.contains_key(&key));
                }
            }
        }
    }

    #[test]
    fn an_empty_table_has_nothing() {
        let slots = Slots::<u16, BuildHasherDefault<Weak>>::default();
        assert_eq!(
            (slots.get(&1), slots.guess(&1), slots.is_empty()),
            (None, None, true)
        );
    }
}
