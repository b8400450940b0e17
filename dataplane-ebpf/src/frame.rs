//! The packet as the verifier lets it be read: a bounds check, then loads at constant offsets from it.

use aya_ebpf::programs::XdpContext;
use towpath_common::headers::{Packet, Window};

/// The verifier follows no offset beyond this; headers of a real packet end long before.
const MAX_OFFSET: usize = 0x7fff;

/// The bytes between `data` and `data_end` of a program's context. Invalid after the context was adjusted.
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame as it stands now.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// `N` bytes at `offset` for reading and writing, or `None` if the packet ends before.
    #[inline(always)]
    pub fn at<const N: usize>(&self, offset: usize) -> Option<Bytes> {
        if offset > MAX_OFFSET {
            return None;
        }
        let start = self.start + offset;
        if start + N > self.end {
            return None;
        }
        Some(Bytes(start as *mut u8))
    }
}

impl Packet for Frame {
    type Window<'a> = Bytes;

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<Bytes> {
        self.at::<N>(offset)
    }
}

/// Bytes inside the packet. The caller stays within the length it asked for: the verifier refuses to load a
/// program that does not, and one that reads unaligned on a machine that cannot.
#[derive(Clone, Copy)]
pub struct Bytes(*mut u8);

impl Bytes {
    /// Writes one byte.
    #[inline(always)]
    pub fn set_u8(self, at: usize, value: u8) {
        // SAFETY: within the bounds checked by `Frame::at`; enforced by the verifier.
        unsafe { *self.0.add(at) = value }
    }

    /// Writes 16 bits in network order.
    #[inline(always)]
    pub fn set_be16(self, at: usize, value: u16) {
        // SAFETY: within the bounds checked by `Frame::at`; bounds and alignment are enforced by the verifier.
        unsafe { *self.0.add(at).cast::<u16>() = value.to_be() }
    }
}

impl Window for Bytes {
    #[inline(always)]
    fn u8(&self, at: usize) -> u8 {
        // SAFETY: within the bounds checked by `Frame::at`; enforced by the verifier.
        unsafe { *self.0.add(at) }
    }

    #[inline(always)]
    fn be16(&self, at: usize) -> u16 {
        // SAFETY: within the bounds checked by `Frame::at`; bounds and alignment are enforced by the verifier.
        u16::from_be(unsafe { *self.0.add(at).cast::<u16>() })
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        // SAFETY: within the bounds checked by `Frame::at`; bounds and alignment are enforced by the verifier.
        unsafe { *self.0.add(at).cast::<u32>() }
    }
}
