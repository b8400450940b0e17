//! What a worker counts.

use std::sync::atomic::{AtomicU64, Ordering};

use towpath_base::DropReason;

/// Counters of a worker; written by its thread alone, read by anyone.
#[derive(Debug)]
pub struct Counters {
    /// Packets sent on through a transmit ring.
    pub forwarded: AtomicU64,
    /// Packets sent on through the kernel, because routing or neighbour were not known.
    pub through_kernel: AtomicU64,
    /// Packets handed to the control thread.
    pub to_control: AtomicU64,
    /// Packets the TCP relay took.
    pub relay_in: AtomicU64,
    /// Packets the TCP relay made.
    pub relay_out: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            forwarded: AtomicU64::new(0),
            through_kernel: AtomicU64::new(0),
            to_control: AtomicU64::new(0),
            relay_in: AtomicU64::new(0),
            relay_out: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::COUNT],
        }
    }
}

impl Counters {
    pub(super) fn dropped(&self, reason: DropReason) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Name, text and count of everything that is not a drop.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        [
            ("forwarded", "sent on through a transmit ring", &self.forwarded),
            (
                "through_kernel",
                "sent on through the kernel: next hop not known yet",
                &self.through_kernel,
            ),
            ("to_control", "handed to the control thread", &self.to_control),
            ("relay_in", "TCP segments taken by the relay", &self.relay_in),
            ("relay_out", "TCP segments made by the relay", &self.relay_out),
        ]
        .map(|(name, text, counter)| (name, text, counter.load(Ordering::Relaxed)))
        .into_iter()
    }

    /// Drops by reason, those that happened.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let counts = self.drops.iter().map(|counter| counter.load(Ordering::Relaxed));
        DropReason::ALL
            .iter()
            .copied()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
    }
}
