//! The receive side: data in order for the reader, data out of order until its gap closes, and what SACK
//! says about it (RFC 2018 §4, RFC 2883).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::buffer::ByteQueue;
use crate::codec::{Codec, Reader, RestoreError, Writer};
use crate::segment::SackBlocks;
use crate::seq::{Offset, SeqSpace};

/// Most gaps kept; data that would open another one is dropped and sent again by the peer.
const MAX_RANGES: usize = 1024;

/// What a fragment costs beyond its bytes, so that many tiny ones cannot outgrow the bound.
const FRAGMENT_OVERHEAD: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fragment(Vec<u8>);

impl Codec for Fragment {
    fn encode(&self, writer: &mut Writer) {
        writer.blob(&self.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        reader.blob().map(|bytes| Self(bytes.to_vec()))
    }
}

/// What became of received data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Inserted {
    /// Bytes that became readable.
    pub(crate) in_order: usize,
    /// Data went or came from behind a gap: acknowledge at once (RFC 5681 §4.2).
    pub(crate) gap: bool,
    /// Part that had been received before, for a D-SACK.
    pub(crate) duplicate: Option<(Offset, Offset)>,
    /// Dropped, since no room was left.
    pub(crate) refused: bool,
}

/// Received data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reassembly {
    /// RCV.NXT.
    next: Offset,
    ready: ByteQueue,
    fragments: BTreeMap<Offset, Fragment>,
    /// Bytes in `fragments`, overhead included.
    held: usize,
    /// Merged runs of `fragments`, the one that changed last first (RFC 2018 §4).
    ranges: Vec<(Offset, Offset)>,
    /// Reported once, in the next segment sent.
    duplicate: Option<(Offset, Offset)>,
}

crate::codec::record!(Reassembly {
    next,
    ready,
    fragments,
    held,
    ranges,
    duplicate
});

impl Reassembly {
    /// Nothing received; the first byte will have offset `next`.
    pub(crate) fn new(next: Offset) -> Self {
        Self {
            next,
            ready: ByteQueue::default(),
            fragments: BTreeMap::new(),
            held: 0,
            ranges: Vec::new(),
            duplicate: None,
        }
    }

    /// RCV.NXT.
    pub(crate) const fn next(&self) -> Offset {
        self.next
    }

    /// Steps over a SYN or FIN.
    pub(crate) const fn skip_control(&mut self) {
        self.next += 1;
    }

    /// Data ready to be read.
    pub(crate) const fn ready(&self) -> &ByteQueue {
        &self.ready
    }

    /// Marks `count` bytes as read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.ready.consume(count);
    }

    /// Bytes of memory that count against the receive buffer.
    pub(crate) fn occupied(&self) -> usize {
        self.ready.len()
    }

    /// Bytes of memory taken by everything received and not read, behind gaps or not.
    pub(crate) fn memory(&self) -> usize {
        self.ready.len() + self.held
    }

    /// True while data waits behind a gap.
    pub(crate) fn has_gap(&self) -> bool {
        !self.fragments.is_empty()
    }

    /// Takes data that lies at `start`; out of order at most `limit` bytes are kept.
    pub(crate) fn insert(&mut self, mut start: Offset, mut data: &[u8], limit: usize) -> Inserted {
        let mut outcome = Inserted::default();
        let end = start.saturating_add(data.len() as u64);
        if data.is_empty() {
            return outcome;
        }
        if start < self.next {
            outcome.duplicate = Some((start, end.min(self.next)));
            if end <= self.next {
                self.duplicate = outcome.duplicate;
                return outcome;
            }
            data = data.get((self.next - start) as usize..).unwrap_or(&[]);
            start = self.next;
        }
        if start == self.next {
            let before = self.ready.len();
            self.ready.push(data);
            self.next = end;
            outcome.gap = self.has_gap();
            self.join();
            outcome.in_order = self.ready.len() - before;
        } else {
            self.keep(start, end, data, limit, &mut outcome);
        }
        if outcome.duplicate.is_some() {
            self.duplicate = outcome.duplicate;
        }
        outcome
    }

    /// Moves fragments that have become contiguous to the reader.
    fn join(&mut self) {
        while let Some(entry) = self.fragments.first_entry() {
            let start = *entry.key();
            if start > self.next {
                break;
            }
            let Fragment(bytes) = entry.remove();
            self.held = self.held.saturating_sub(bytes.len() + FRAGMENT_OVERHEAD);
            if let Some(fresh) = bytes.get((self.next - start) as usize..) {
                self.ready.push(fresh);
                self.next += fresh.len() as u64;
            }
        }
        let next = self.next;
        self.ranges.retain(|(_, end)| *end > next);
    }

    fn keep(&mut self, start: Offset, end: Offset, data: &[u8], limit: usize, outcome: &mut Inserted) {
        outcome.gap = true;
        if self.held + data.len() + FRAGMENT_OVERHEAD > limit || self.ranges.len() >= MAX_RANGES {
            outcome.refused = true;
            return;
        }
        let mut fresh = false;
        let mut at = start;
        if let Some((before, Fragment(bytes))) = self.fragments.range(..=start).next_back() {
            at = at.max(*before + bytes.len() as u64);
        }
        while at < end {
            let following = self
                .fragments
                .range(at..)
                .next()
                .map(|(start, Fragment(bytes))| (*start, *start + bytes.len() as u64));
            let stop = following.map_or(end, |(start, _)| start.min(end));
            if let Some(part) = data.get((at - start) as usize..(stop - start) as usize)
                && !part.is_empty()
            {
                self.held += part.len() + FRAGMENT_OVERHEAD;
                self.fragments.insert(at, Fragment(part.to_vec()));
                fresh = true;
            }
            match following {
                Some((_, after)) if stop < end => at = after,
                _ => break,
            }
        }
        if !fresh {
            outcome.duplicate = Some((start, end));
        }
        self.note_range(start, end);
    }

    /// Merges `[start, end)` into the ranges and puts the result first.
    fn note_range(&mut self, mut start: Offset, mut end: Offset) {
        self.ranges.retain(|(left, right)| {
            let apart = *right < start || *left > end;
            if !apart {
                start = start.min(*left);
                end = end.max(*right);
            }
            apart
        });
        self.ranges.insert(0, (start, end));
    }

    /// The blocks for the next segment, at most `room`: a duplicate first (RFC 2883 §4), then the ranges.
    pub(crate) fn sack_blocks(&mut self, space: SeqSpace, room: usize) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        if room == 0 {
            return blocks;
        }
        let duplicate = self.duplicate.take();
        for (left, right) in duplicate.iter().chain(&self.ranges).take(room) {
            blocks.push(space.number(*left), space.number(*right));
        }
        blocks
    }

    /// Gives unused memory back.
    pub(crate) fn trim(&mut self) {
        self.ready.trim();
        if self.ranges.is_empty() {
            self.ranges = Vec::new();
        }
    }

    pub(crate) fn valid(&self) -> bool {
        let mut at = self.next;
        let held: usize = self
            .fragments
            .values()
            .map(|f| f.0.len() + FRAGMENT_OVERHEAD)
            .sum();
        self.next < 1 << 62
            && held == self.held
            && self.ranges.len() <= MAX_RANGES
            && self.ranges.iter().all(|(left, right)| left < right)
            && self.fragments.iter().all(|(start, Fragment(bytes))| {
                let fits = *start >= at && *start < 1 << 62 && !bytes.is_empty();
                at = start.saturating_add(bytes.len() as u64);
                fits
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(buffer: &mut Reassembly) -> Vec<u8> {
        let (front, back) = buffer.ready().slices();
        let bytes = [front, back].concat();
        buffer.consume(bytes.len());
        bytes
    }

    #[test]
    fn a_gap_is_reported_and_closed() {
        let mut buffer = Reassembly::new(1);
        assert!(buffer.insert(4, b"def", 1000).gap);
        assert!(buffer.insert(10, b"jk", 1000).gap);
        let blocks = buffer.sack_blocks(SeqSpace::default(), 3);
        assert_eq!(blocks.as_slice().len(), 2);
        assert_eq!(blocks.as_slice()[0].0.0, 10);
        let outcome = buffer.insert(1, b"abcd", 1000);
        assert_eq!(outcome.in_order, 6);
        assert_eq!(read(&mut buffer), b"abcdef");
        assert_eq!(buffer.insert(7, b"ghijk", 1000).in_order, 5);
        assert_eq!(read(&mut buffer), b"ghijk");
        assert!(!buffer.has_gap());
        assert_eq!(buffer.held, 0);
        assert!(buffer.sack_blocks(SeqSpace::default(), 3).is_empty());
    }

    #[test]
    fn duplicates_are_reported_once() {
        let mut buffer = Reassembly::new(1);
        buffer.insert(1, b"abc", 1000);
        assert_eq!(buffer.insert(1, b"abc", 1000).duplicate, Some((1, 4)));
        assert_eq!(buffer.sack_blocks(SeqSpace::default(), 3).as_slice()[0].0.0, 1);
        assert!(buffer.sack_blocks(SeqSpace::default(), 3).is_empty());
        buffer.insert(10, b"jkl", 1000);
        assert_eq!(buffer.insert(10, b"jk", 1000).duplicate, Some((10, 12)));
    }

    #[test]
    fn overlapping_pieces_in_any_order_give_the_stream_once() {
        let stream: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let mut state = 7_u32;
        let mut random = |bound: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % bound
        };
        for _ in 0..200 {
            let mut buffer = Reassembly::new(1);
            let mut got = Vec::new();
            while got.len() < stream.len() {
                let floor = got.len().saturating_sub(20);
                let start = floor + random(200.min(stream.len() - floor));
                let end = (start + 1 + random(60)).min(stream.len());
                buffer.insert(start as u64 + 1, &stream[start..end], 100_000);
                assert!(buffer.valid());
                got.extend(read(&mut buffer));
            }
            assert_eq!(got, stream);
        }
    }

    #[test]
    fn tiny_fragments_cannot_outgrow_the_bound() {
        let mut buffer = Reassembly::new(1);
        for index in 0..10_000_u64 {
            buffer.insert(10 + index * 2, b"x", 4096);
        }
        assert!(buffer.held <= 4096);
    }
}
