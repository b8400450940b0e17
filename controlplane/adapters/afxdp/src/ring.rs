//! Single-producer, single-consumer rings in memory shared with the kernel (`Documentation/networking/af_xdp.rst`)
//! or, in tests, with the other end in this process.
//!
//! Indices run freely modulo 2^32. The producer writes entries, then publishes its index with release; the
//! consumer reads the index with acquire, then the entries; and the same the other way round for free room.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::mmap::Mapping;

/// Entry of receive and transmit rings: `struct xdp_desc` of `linux/if_xdp.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) options: u32,
}

/// Where a ring's parts are.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    _memory: Memory,
}

// SAFETY: the pointers lead into memory the value keeps alive, shared by design; each end is used by one
// thread at a time because its methods take `&mut`.
unsafe impl<T: Send> Send for Shared<T> {}

#[derive(Debug)]
enum Memory {
    Kernel {
        _mapping: Mapping,
    },
    Local {
        _heap: Arc<dyn Send + Sync + std::fmt::Debug>,
    },
}

#[derive(Debug)]
struct Heap<T> {
    producer: AtomicU32,
    consumer: AtomicU32,
    flags: AtomicU32,
    entries: Box<[UnsafeCell<T>]>,
}

// SAFETY: an entry is accessed by the end that owns it according to the indices.
unsafe impl<T: Send> Sync for Heap<T> {}

/// Offsets of a ring's parts in its mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offsets {
    pub(crate) producer: u64,
    pub(crate) consumer: u64,
    pub(crate) flags: u64,
    pub(crate) entries: u64,
}

impl<T> Shared<T> {
    /// A ring of a socket; `None` if its parts are not inside the mapping.
    pub(crate) fn kernel(mapping: Mapping, offsets: Offsets, size: u32) -> Option<Self> {
        let end = usize::try_from(offsets.entries)
            .ok()?
            .checked_add(size as usize * size_of::<T>())?;
        if end > mapping.len() || !size.is_power_of_two() {
            return None;
        }
        let index = |offset: u64| {
            let offset = usize::try_from(offset).ok()?;
            if offset + 4 > mapping.len() || !offset.is_multiple_of(4) {
                return None;
            }
            // SAFETY: inside the mapping, which is page aligned.
            Some(unsafe { mapping.start().add(offset) }.cast::<AtomicU32>())
        };
        // SAFETY: inside the mapping, checked above.
        let entries = unsafe { mapping.start().add(offsets.entries as usize) }.cast::<T>();
        Some(Self {
            producer: index(offsets.producer)?,
            consumer: index(offsets.consumer)?,
            flags: index(offsets.flags)?,
            entries: entries.is_aligned().then_some(entries)?,
            size,
            _memory: Memory::Kernel { _mapping: mapping },
        })
    }

    /// Both ends of a ring in this process. `size` is a power of two.
    pub(crate) fn local(size: u32) -> (Producer<T>, Consumer<T>)
    where
        T: Copy + Default + Send + std::fmt::Debug + 'static,
    {
        let heap = Arc::new(Heap {
            producer: AtomicU32::new(0),
            consumer: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            entries: (0..size.next_power_of_two())
                .map(|_| UnsafeCell::new(T::default()))
                .collect(),
        });
        let end = || Shared {
            producer: NonNull::from(&heap.producer),
            consumer: NonNull::from(&heap.consumer),
            flags: NonNull::from(&heap.flags),
            entries: NonNull::from(&*heap.entries).cast::<T>(),
            size: size.next_power_of_two(),
            _memory: Memory::Local { _heap: heap.clone() },
        };
        (Producer::new(end()), Consumer::new(end()))
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: inside memory kept alive by `self`, aligned.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: inside memory kept alive by `self`, aligned.
        unsafe { self.consumer.as_ref() }
    }

    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: masked to the size of the ring.
        unsafe { self.entries.add((index & (self.size - 1)) as usize) }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: inside memory kept alive by `self`, aligned.
        let flags = unsafe { self.flags.as_ref() }.load(Ordering::Relaxed);
        flags & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// The end that puts entries in.
#[derive(Debug)]
pub(crate) struct Producer<T> {
    ring: Shared<T>,
    /// Next entry to write.
    next: u32,
    /// Last known index of the consumer.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    pub(crate) fn new(ring: Shared<T>) -> Self {
        let next = ring.producer().load(Ordering::Relaxed);
        let consumed = ring.consumer().load(Ordering::Acquire);
        Self { ring, next, consumed }
    }

    /// Entries that can be put now.
    pub(crate) fn free(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.ring.size - self.next.wrapping_sub(self.consumed)
    }

    /// Entries it can hold.
    pub(crate) const fn size(&self) -> u32 {
        self.ring.size
    }

    /// Puts an entry where the consumer will see it after [`Producer::publish`]; false if the ring is full.
    pub(crate) fn put(&mut self, value: T) -> bool {
        if self.next.wrapping_sub(self.consumed) >= self.ring.size && self.free() == 0 {
            return false;
        }
        // SAFETY: the entry is free, so it is this end's.
        unsafe { self.ring.entry(self.next).write(value) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Shows everything put so far to the consumer.
    pub(crate) fn publish(&mut self) {
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Entries published or put that the consumer has not taken.
    pub(crate) fn pending(&mut self) -> u32 {
        self.ring.size - self.free()
    }

    /// True if the consumer sleeps and has to be told.
    pub(crate) fn needs_wakeup(&self) -> bool {
        // The kernel raises the flag after it saw an empty ring: look only after the index is visible.
        std::sync::atomic::fence(Ordering::SeqCst);
        self.ring.needs_wakeup()
    }
}

/// The end that takes entries out.
#[derive(Debug)]
pub(crate) struct Consumer<T> {
    ring: Shared<T>,
    /// Next entry to read.
    next: u32,
    /// Last known index of the producer.
    produced: u32,
}

impl<T: Copy> Consumer<T> {
    pub(crate) fn new(ring: Shared<T>) -> Self {
        let next = ring.consumer().load(Ordering::Relaxed);
        let produced = ring.producer().load(Ordering::Acquire);
        Self { ring, next, produced }
    }

    /// Takes an entry; the producer gets its room back with [`Consumer::release`].
    pub(crate) fn take(&mut self) -> Option<T> {
        if self.next == self.produced {
            self.produced = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.produced {
                return None;
            }
        }
        // SAFETY: published by the producer and not yet released, so it is this end's.
        let value = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(value)
    }

    /// Gives the room of everything taken so far back.
    pub(crate) fn release(&mut self) {
        self.ring.consumer().store(self.next, Ordering::Release);
    }

    /// True if nothing can be taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.producer().load(Ordering::Acquire) == self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_refuses_until_room_is_released() {
        let (mut producer, mut consumer) = Shared::<u64>::local(4);
        assert!((0..4).all(|value| producer.put(value)));
        assert!(!producer.put(4));
        assert_eq!(consumer.take(), None, "nothing is seen before it is published");
        producer.publish();
        assert_eq!((consumer.take(), consumer.take()), (Some(0), Some(1)));
        assert_eq!(producer.free(), 0);
        consumer.release();
        assert_eq!((producer.free(), producer.pending()), (2, 2));
    }

    #[test]
    fn two_threads_pass_a_million_values_in_order_over_the_wrap() {
        let (mut producer, mut consumer) = Shared::<u64>::local(64);
        // Start close to the end of the index space.
        for end in [&producer.ring.producer(), &producer.ring.consumer()] {
            end.store(u32::MAX - 1000, Ordering::SeqCst);
        }
        (producer.next, producer.consumed) = (u32::MAX - 1000, u32::MAX - 1000);
        (consumer.next, consumer.produced) = (u32::MAX - 1000, u32::MAX - 1000);
        let sender = std::thread::spawn(move || {
            for value in 0..1_000_000 {
                while !producer.put(value) {
                    std::thread::yield_now();
                }
                producer.publish();
            }
        });
        for expected in 0..1_000_000 {
            let value = loop {
                match consumer.take() {
                    Some(value) => break value,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(value, expected);
            consumer.release();
        }
        sender.join().unwrap();
    }
}
