//! One snooped connection: the cache, and what is known to be lost.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use towpath_base::Instant;

use super::ReplayPosition;
use super::shape::Shaper;
use crate::rto::RttEstimator;
use crate::seq::{Offset, SeqNum, SeqSpace};

/// Where a flow's offsets begin: room for numbers below the first one seen.
pub(super) const ORIGIN: Offset = 1 << 32;
/// Longest local timeout.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);
/// Repetitions of one segment after which it is left to the peer.
const MAX_REPEATS: u8 = 12;

/// A segment on its way to the terminal.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) end: Offset,
    pub(super) bytes: Vec<u8>,
    pub(super) replay: Option<ReplayPosition>,
    pub(super) sent_at: Instant,
    pub(super) repeats: u8,
    pub(super) sacked: bool,
    /// Waits to be repeated.
    pub(super) queued: bool,
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) space: SeqSpace,
    /// Highest acknowledgment of the terminal.
    pub(super) acknowledged: Option<Offset>,
    pub(super) last_window: u16,
    pub(super) shaper: Shaper,
    pub(super) cache: BTreeMap<Offset, Cached>,
    pub(super) cached_bytes: usize,
    /// Sequence numbers cached and not SACKed.
    pub(super) outstanding: u64,
    pub(super) highest: Offset,
    pub(super) rtt: RttEstimator,
    /// When the newest segment known to have arrived was sent.
    pub(super) newest_arrival: Option<Instant>,
    pub(super) duplicates: u32,
    /// Segments to repeat.
    pub(super) queue: VecDeque<Offset>,
    pub(super) active_at: Instant,
    pub(super) progress_at: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) ready: bool,
    pub(super) counts: Counts,
}

/// What happened to one connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) cached: u64,
    pub(super) repeated: u64,
    pub(super) suppressed: u64,
    pub(super) peer_retransmits: u64,
}

/// `[start, end)` touches what is cached.
pub(super) fn overlaps(cache: &BTreeMap<Offset, Cached>, start: Offset, end: Offset) -> bool {
    cache
        .range(..end)
        .next_back()
        .is_some_and(|(_, cached)| cached.end > start)
}

impl Flow {
    pub(super) fn new(now: Instant, first: SeqNum) -> Self {
        // The first number seen gets offset ORIGIN, so that there is room below it.
        Self {
            space: SeqSpace {
                initial: first - ORIGIN as u32,
            },
            acknowledged: None,
            last_window: 0,
            shaper: Shaper::default(),
            cache: BTreeMap::new(),
            cached_bytes: 0,
            outstanding: 0,
            highest: ORIGIN,
            rtt: RttEstimator::new(Duration::ZERO, MAX_TIMEOUT),
            newest_arrival: None,
            duplicates: 0,
            queue: VecDeque::new(),
            active_at: now,
            progress_at: now,
            deadline: None,
            ready: false,
            counts: Counts::default(),
        }
    }

    pub(super) fn drop_cached(&mut self, start: Offset) -> usize {
        let Some(cached) = self.cache.remove(&start) else {
            return 0;
        };
        if !cached.sacked {
            self.outstanding = self.outstanding.saturating_sub(cached.end - start);
        }
        self.cached_bytes = self.cached_bytes.saturating_sub(cached.bytes.len());
        cached.bytes.len()
    }

    /// Everything before `ack` arrived; returns the bytes freed.
    pub(super) fn acknowledge(&mut self, now: Instant, ack: Offset) -> usize {
        let mut freed = 0;
        while let Some(first) = self.cache.first_entry() {
            if first.get().end > ack {
                break;
            }
            let (start, cached) = first.remove_entry();
            freed += cached.bytes.len();
            if !cached.sacked {
                self.outstanding = self.outstanding.saturating_sub(cached.end - start);
            }
            self.note_arrival(now, &cached);
        }
        if self.acknowledged.is_none_or(|old| ack > old) {
            self.acknowledged = Some(ack);
            self.progress_at = now;
            self.rtt.reset_backoff();
        }
        self.cached_bytes = self.cached_bytes.saturating_sub(freed);
        freed
    }

    pub(super) fn note_arrival(&mut self, now: Instant, cached: &Cached) {
        if cached.sacked {
            return;
        }
        let rtt = now.saturating_since(cached.sent_at);
        if cached.repeats == 0 {
            self.rtt.sample(rtt);
        }
        // An acknowledgment sooner than the radio can answer is of an earlier copy.
        let of_this_copy = cached.repeats == 0 || self.rtt.min().is_none_or(|min| rtt >= min);
        if of_this_copy {
            self.newest_arrival = Some(
                self.newest_arrival
                    .map_or(cached.sent_at, |at| at.max(cached.sent_at)),
            );
        }
    }

    /// Marks what the SACK blocks report; true if they report anything.
    pub(super) fn take_sack(&mut self, now: Instant, blocks: &[(SeqNum, SeqNum)]) -> bool {
        let mut any = false;
        for (left, right) in blocks {
            let (Some(left), Some(right)) = (
                self.space.offset(*left, self.highest),
                self.space.offset(*right, self.highest),
            ) else {
                continue;
            };
            if left >= right || right > self.highest || self.acknowledged.is_some_and(|ack| right <= ack) {
                continue;
            }
            any = true;
            let starts: Vec<Offset> = self
                .cache
                .range(left..right)
                .filter(|(_, cached)| cached.end <= right && !cached.sacked)
                .map(|(start, _)| *start)
                .collect();
            for start in starts {
                let Some(mut cached) = self.cache.remove(&start) else {
                    continue;
                };
                self.note_arrival(now, &cached);
                self.outstanding = self.outstanding.saturating_sub(cached.end - start);
                cached.sacked = true;
                cached.queued = false;
                self.cache.insert(start, cached);
            }
        }
        any
    }

    /// Lines up what RACK would call lost, or, without SACK, the first segment on a duplicate.
    pub(super) fn find_losses(&mut self, sacks: bool) {
        let window = self.rtt.min().unwrap_or_default() / 8;
        let Some(newest) = self.newest_arrival else { return };
        let highest_sacked = self
            .cache
            .iter()
            .rev()
            .find(|(_, cached)| cached.sacked)
            .map(|(start, _)| *start);
        if sacks && let Some(top) = highest_sacked {
            for (start, cached) in self.cache.range_mut(..top) {
                let lost = !cached.sacked
                    && !cached.queued
                    && cached.repeats < MAX_REPEATS
                    && cached.sent_at + window < newest;
                // A segment repeated is judged against what was sent after the repetition.
                if lost {
                    cached.queued = true;
                    self.queue.push_back(*start);
                }
            }
        } else if self.duplicates >= 2
            && let Some(ack) = self.acknowledged
            && let Some(cached) = self.cache.get_mut(&ack)
            && cached.repeats == 0
            && !cached.queued
        {
            cached.queued = true;
            self.queue.push_back(ack);
        }
    }

    /// The segment the terminal waits for is here, and not given up.
    pub(super) fn can_repair(&self, ack: Offset) -> bool {
        self.cache
            .get(&ack)
            .is_some_and(|cached| cached.repeats < MAX_REPEATS)
    }

    /// When the first segment is repeated unasked.
    pub(super) fn repeat_at(&self, min_timeout: Duration) -> Option<Instant> {
        let first = self.cache.values().find(|cached| !cached.sacked)?;
        if first.repeats >= MAX_REPEATS {
            return None;
        }
        let timeout = self.rtt.timeout().max(min_timeout);
        Some(first.sent_at.max(self.progress_at) + timeout)
    }

    /// The first segment's timer expired; returns the bytes freed if it is given up.
    pub(super) fn on_timeout(&mut self, now: Instant) -> usize {
        self.rtt.back_off();
        self.progress_at = now;
        let Some((&start, cached)) = self.cache.iter_mut().find(|(_, cached)| !cached.sacked) else {
            return 0;
        };
        if cached.repeats + 1 >= MAX_REPEATS {
            return self.drop_cached(start);
        }
        if !cached.queued {
            cached.queued = true;
            self.queue.push_back(start);
        }
        0
    }
}
