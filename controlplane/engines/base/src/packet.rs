//! One packet in a larger buffer, with room to grow on both sides.

/// A packet inside a borrowed buffer: `headroom | packet | tailroom`.
///
/// ESP adds a header in front and a trailer behind; both use the rooms, so no byte of the payload moves.
/// Every operation is checked and says `None` where the room does not suffice; nothing panics.
#[derive(Debug)]
pub struct PacketBuf<'a> {
    buffer: &'a mut [u8],
    start: usize,
    end: usize,
}

impl<'a> PacketBuf<'a> {
    /// The packet is `buffer[start..start + len]`.
    pub fn new(buffer: &'a mut [u8], start: usize, len: usize) -> Option<Self> {
        let end = start.checked_add(len)?;
        (end <= buffer.len()).then_some(Self { buffer, start, end })
    }

    /// The packet.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or(&[])
    }

    /// The packet, writable.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.start..self.end).unwrap_or(&mut [])
    }

    /// Length of the packet in bytes.
    #[inline]
    pub const fn len(&self) -> usize {
        self.end - self.start
    }

    /// True when the packet has no bytes.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Offset of the packet in the buffer.
    #[inline]
    pub const fn start(&self) -> usize {
        self.start
    }

    /// Free bytes in front.
    #[inline]
    pub const fn headroom(&self) -> usize {
        self.start
    }

    /// Free bytes behind.
    #[inline]
    pub const fn tailroom(&self) -> usize {
        self.buffer.len() - self.end
    }

    /// Takes the first `count` bytes off the packet.
    #[inline]
    pub fn strip_front(&mut self, count: usize) -> Option<()> {
        (count <= self.len()).then(|| self.start += count)
    }

    /// Takes the last `count` bytes off the packet.
    #[inline]
    pub fn strip_back(&mut self, count: usize) -> Option<()> {
        (count <= self.len()).then(|| self.end -= count)
    }

    /// Extends the packet by `count` bytes in front and returns them, contents unspecified.
    #[inline]
    pub fn grow_front(&mut self, count: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(count)?;
        self.buffer.get_mut(self.start..self.start + count)
    }

    /// Extends the packet by `count` bytes behind and returns them, contents unspecified.
    #[inline]
    pub fn grow_back(&mut self, count: usize) -> Option<&mut [u8]> {
        let end = self
            .end
            .checked_add(count)
            .filter(|end| *end <= self.buffer.len())?;
        let added = self.buffer.get_mut(self.end..end)?;
        self.end = end;
        Some(added)
    }

    /// Removes the `count` bytes at `offset` by moving the `offset` bytes before them back: what stays
    /// in front is a header, always the shorter part.
    #[inline]
    pub fn cut(&mut self, offset: usize, count: usize) -> Option<()> {
        let gap_end = offset.checked_add(count).filter(|end| *end <= self.len())?;
        self.buffer
            .copy_within(self.start..self.start + offset, self.start + gap_end - offset);
        self.start += count;
        Some(())
    }

    /// Opens a gap of `count` bytes at `offset` by moving the `offset` bytes before it forward into the
    /// headroom. The gap's contents are unspecified.
    #[inline]
    pub fn open_gap(&mut self, offset: usize, count: usize) -> Option<()> {
        let start = self.start.checked_sub(count).filter(|_| offset <= self.len())?;
        self.buffer.copy_within(self.start..self.start + offset, start);
        self.start = start;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_opened_and_cut_leaves_the_packet_as_it_was() {
        let mut buffer = *b"....HEADpayload....";
        let mut packet = PacketBuf::new(&mut buffer, 4, 11).unwrap();
        packet.open_gap(4, 3).unwrap();
        assert_eq!(&packet.bytes()[..4], b"HEAD");
        assert_eq!(&packet.bytes()[7..], b"payload");
        packet.cut(4, 3).unwrap();
        assert_eq!(packet.bytes(), b"HEADpayload");
        assert_eq!(packet.start(), 4);
    }

    #[test]
    fn rooms_are_bounds() {
        let mut buffer = [0; 10];
        assert!(PacketBuf::new(&mut buffer, 4, 7).is_none());
        let mut packet = PacketBuf::new(&mut buffer, 2, 6).unwrap();
        assert!(packet.grow_back(3).is_none());
        assert!(packet.open_gap(4, 3).is_none());
        assert!(packet.cut(4, 3).is_none());
        assert!(packet.strip_front(7).is_none());
        assert_eq!(packet.len(), 6);
    }
}
