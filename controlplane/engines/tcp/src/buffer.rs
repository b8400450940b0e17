//! Byte queues, and the buffer of data sent or waiting to be sent.

use alloc::collections::VecDeque;

use crate::codec::{Codec, Reader, RestoreError, Writer};
use crate::seq::Offset;

/// Bytes in, bytes out, in order; moved by slices, never one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ByteQueue {
    bytes: VecDeque<u8>,
}

impl ByteQueue {
    /// Bytes queued.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Drops the first `count` bytes (all, if there are fewer).
    pub(crate) fn consume(&mut self, count: usize) {
        if count >= self.bytes.len() {
            self.bytes.clear();
        } else {
            self.bytes.drain(..count);
        }
    }

    /// The queued bytes as two runs.
    pub(crate) fn slices(&self) -> (&[u8], &[u8]) {
        self.bytes.as_slices()
    }

    /// Copies bytes from position `at` on into `out`; returns how many there were.
    pub(crate) fn copy_at(&self, at: usize, out: &mut [u8]) -> usize {
        let (front, back) = self.bytes.as_slices();
        let from_front = front.get(at..).unwrap_or(&[]);
        let from_back = back.get(at.saturating_sub(front.len())..).unwrap_or(&[]);
        let mut done = 0;
        for part in [from_front, from_back] {
            let count = part.len().min(out.len() - done);
            if let (Some(to), Some(from)) = (out.get_mut(done..done + count), part.get(..count)) {
                to.copy_from_slice(from);
                done += count;
            }
        }
        done
    }

    /// Gives memory back that a queue this full does not need.
    pub(crate) fn trim(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        } else if self.bytes.capacity() / 4 > self.bytes.len() {
            self.bytes.shrink_to(self.bytes.len() * 2);
        }
    }
}

impl Codec for ByteQueue {
    fn encode(&self, writer: &mut Writer) {
        let (front, back) = self.slices();
        ((front.len() + back.len()) as u64).encode(writer);
        writer.bytes.extend_from_slice(front);
        writer.bytes.extend_from_slice(back);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let mut queue = Self::default();
        queue.push(reader.blob()?);
        Ok(queue)
    }
}

/// Data from the first unacknowledged byte to the last one written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SendBuffer {
    /// Offset of the first byte held.
    base: Offset,
    bytes: ByteQueue,
    /// Most bytes held.
    limit: usize,
}

crate::codec::record!(SendBuffer { base, bytes, limit });

impl SendBuffer {
    /// An empty buffer for at most `limit` bytes; the first byte of data has offset 1.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            base: 1,
            bytes: ByteQueue::default(),
            limit,
        }
    }

    /// Room left, bytes.
    pub(crate) fn free(&self) -> usize {
        self.limit.saturating_sub(self.bytes.len())
    }

    /// Changes the bound; what is held already stays.
    pub(crate) const fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes held.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Offset behind the last byte written.
    pub(crate) fn end(&self) -> Offset {
        self.base.saturating_add(self.bytes.len() as u64)
    }

    /// Appends what fits; returns how much that was.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.free());
        self.bytes.push(bytes.get(..count).unwrap_or(&[]));
        count
    }

    /// Forgets everything before `offset`.
    pub(crate) fn release(&mut self, offset: Offset) {
        let count = offset.saturating_sub(self.base).min(self.bytes.len() as u64);
        self.bytes.consume(count as usize);
        self.base += count;
    }

    /// Copies data from `offset` on into `out`; returns how much there was.
    pub(crate) fn copy(&self, offset: Offset, out: &mut [u8]) -> usize {
        match usize::try_from(offset.wrapping_sub(self.base)) {
            Ok(at) if offset >= self.base => self.bytes.copy_at(at, out),
            _ => 0,
        }
    }

    /// Gives unused memory back.
    pub(crate) fn trim(&mut self) {
        self.bytes.trim();
    }

    pub(crate) fn valid(&self, first_unacknowledged: Offset) -> bool {
        self.base == first_unacknowledged.max(1) || self.base + 1 == first_unacknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_crosses_the_wrap_of_the_ring() {
        let mut buffer = SendBuffer::new(8);
        assert_eq!(buffer.push(b"abcdef"), 6);
        buffer.release(6);
        assert_eq!(buffer.push(b"ghijklmnop"), 7);
        let mut out = [0; 16];
        let count = buffer.copy(7, &mut out);
        assert_eq!(&out[..count], b"ghijklm");
        assert_eq!(buffer.copy(5, &mut out), 0);
        assert_eq!(buffer.end(), 14);
    }
}
