//! Where a worker's SAs lie.
//!
//! ```text
//!   chunk 0   [ entry ][ entry ][ free  ] …      allocated whole, on large pages where there are any
//!   chunk 1   [ entry ][       room for more     ]
//! ```
//!
//! An entry never moves while it is there: growing leaves no second copy of its keys behind, as a vector's would.

use towpath_afxdp::on_huge_pages;

/// Entries of a chunk. SAs are some kilobytes: a chunk is many large pages.
const CHUNK: usize = 8192;

/// Values by slot; a free slot is used again.
#[derive(Debug)]
pub struct Places<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<usize>,
    len: usize,
    /// Slots of each chunk.
    chunk: usize,
}

impl<T> Places<T> {
    /// No values; `expected` of them, or more.
    pub fn new(expected: usize) -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            len: 0,
            chunk: expected.clamp(1, CHUNK),
        }
    }

    /// Number of values.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True without values.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value; returns its slot.
    pub fn insert(&mut self, value: T) -> usize {
        self.len += 1;
        if let Some(slot) = self.free.pop() {
            if let Some(place) = self.place(slot) {
                *place = Some(value);
            }
            return slot;
        }
        if self.chunks.last().is_none_or(|last| last.len() == self.chunk) {
            let room = Vec::with_capacity(self.chunk);
            // An error says that there are no large pages: it is slower without.
            let _ = on_huge_pages(&room);
            self.chunks.push(room);
        }
        let before = (self.chunks.len() - 1) * self.chunk;
        let last = self.chunks.last_mut();
        last.map_or(before, |last| {
            last.push(Some(value));
            before + last.len() - 1
        })
    }

    /// The value in a slot.
    #[inline]
    pub fn get(&self, slot: usize) -> Option<&T> {
        self.chunks
            .get(slot / self.chunk)?
            .get(slot % self.chunk)?
            .as_ref()
    }

    /// The value in a slot, to change.
    #[inline]
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.place(slot)?.as_mut()
    }

    #[inline]
    fn place(&mut self, slot: usize) -> Option<&mut Option<T>> {
        self.chunks.get_mut(slot / self.chunk)?.get_mut(slot % self.chunk)
    }

    /// Drops the value in a slot, where it lies; what `last` says of it before is returned.
    pub fn remove<R>(&mut self, slot: usize, last: impl FnOnce(&T) -> R) -> Option<R> {
        let place = self.place(slot)?;
        let said = last(place.as_ref()?);
        *place = None;
        self.free.push(slot);
        self.len -= 1;
        Some(said)
    }

    /// Every value.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten().flatten()
    }

    /// Every value, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_where_they_are_and_slots_are_used_again() {
        let mut places = Places::new(3);
        assert!(places.is_empty() && places.get(0).is_none());
        let slots: Vec<usize> = (0..8u32).map(|value| places.insert(value)).collect();
        assert_eq!(slots, [0, 1, 2, 3, 4, 5, 6, 7]);
        let first: *const u32 = places.get(0).unwrap();
        assert_eq!(places.remove(4, |value| *value), Some(4));
        assert_eq!(places.remove(4, |value| *value), None);
        assert_eq!((places.get(4), places.get(8), places.len()), (None, None, 7));
        assert_eq!(places.insert(40), 4);
        *places.get_mut(7).unwrap() += 1;
        for value in places.iter_mut() {
            *value += 100;
        }
        let all: Vec<u32> = places.iter().copied().collect();
        assert_eq!(all, [100, 101, 102, 103, 140, 105, 106, 108]);
        assert!(std::ptr::eq(first, places.get(0).unwrap()));
    }
}
