//! The frame area shared with the kernel, its free list, and the right to use a frame.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use towpath_base::PacketBuf;
use towpath_common::abi::DivertMeta;
use zerocopy::FromBytes;

use crate::mmap::Mapping;

/// Bytes the kernel keeps in front of a packet it receives (`XDP_PACKET_HEADROOM`).
pub(crate) const HEADROOM: u32 = 256;

/// Marks a [`Frame`] whose index went to a ring.
const GONE: u32 = u32::MAX;

/// The memory of all frames, one behind the other.
#[derive(Debug, Clone)]
pub(crate) struct Area {
    mapping: Arc<Mapping>,
    frame_size: u32,
    frames: u32,
}

impl Area {
    /// Maps memory for `frames` frames.
    pub(crate) fn new(frame_size: u32, frames: u32) -> std::io::Result<Self> {
        let mapping = Mapping::anonymous(frame_size as usize * frames as usize)?;
        Ok(Self {
            mapping: Arc::new(mapping),
            frame_size,
            frames,
        })
    }

    pub(crate) fn frame_size(&self) -> u32 {
        self.frame_size
    }

    pub(crate) fn frames(&self) -> u32 {
        self.frames
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.mapping.start()
    }

    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Splits a ring's address into frame index and offset in the frame.
    pub(crate) fn locate(&self, address: u64) -> Option<(u32, u32)> {
        let index = u32::try_from(address / u64::from(self.frame_size))
            .ok()
            .filter(|it| *it < self.frames)?;
        Some((index, (address % u64::from(self.frame_size)) as u32))
    }

    /// A ring's address of an offset in a frame.
    pub(crate) fn address(&self, index: u32, offset: u32) -> u64 {
        u64::from(index) * u64::from(self.frame_size) + u64::from(offset)
    }

    /// The bytes of a frame.
    fn pointer(&self, index: u32) -> *mut u8 {
        debug_assert!(index < self.frames);
        // SAFETY: below the number of frames, hence inside the mapping.
        unsafe {
            self.start()
                .as_ptr()
                .add(index as usize * self.frame_size as usize)
        }
    }

    /// All bytes of a frame.
    ///
    /// # Safety
    /// The caller holds the frame's index (see the invariant of the crate) while the slice lives.
    pub(crate) unsafe fn bytes(&self, index: u32) -> &[u8] {
        // SAFETY: inside the mapping; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.pointer(index), self.frame_size as usize) }
    }

    /// All bytes of a frame, writable.
    ///
    /// # Safety
    /// The caller holds the frame's index (see the invariant of the crate) while the slice lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusive by the frame's index, not by the area"
    )]
    pub(crate) unsafe fn bytes_mut(&self, index: u32) -> &mut [u8] {
        // SAFETY: inside the mapping; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(index), self.frame_size as usize) }
    }
}

/// The area with its free list. Belongs to one worker.
#[derive(Debug)]
pub(crate) struct Umem {
    area: Area,
    free: RefCell<Vec<u32>>,
    held: Cell<u32>,
}

impl Umem {
    /// The frames below `unused` are in rings already, the others free.
    pub(crate) fn new(area: Area, unused: u32) -> Rc<Self> {
        let mut free = Vec::with_capacity(area.frames() as usize);
        free.extend((unused..area.frames()).rev());
        Rc::new(Self {
            area,
            free: RefCell::new(free),
            held: Cell::new(0),
        })
    }

    pub(crate) fn area(&self) -> &Area {
        &self.area
    }

    /// Number of frames on the free list.
    pub(crate) fn free(&self) -> u32 {
        self.free.borrow().len() as u32
    }

    /// Number of [`Frame`]s alive.
    pub(crate) fn held(&self) -> u32 {
        self.held.get()
    }

    /// Takes an index off the free list.
    pub(crate) fn take(&self) -> Option<u32> {
        self.free.borrow_mut().pop()
    }

    /// Puts an index back. Never allocates: the list has room for every index.
    pub(crate) fn put(&self, index: u32) {
        self.free.borrow_mut().push(index);
    }

    /// Turns an index that came from the free list or a ring into the right to use the frame.
    pub(crate) fn frame(self: &Rc<Self>, index: u32, start: u32, len: u32, received: bool) -> Frame {
        self.held.set(self.held.get() + 1);
        Frame {
            umem: Rc::clone(self),
            index,
            start,
            len,
            received_at: if received { start } else { 0 },
        }
    }
}

/// The right to use one frame: a packet with room on both sides.
///
/// ```text
/// | headroom (metadata last) | packet | tailroom |
/// 0                        start  start+len   frame size
/// ```
///
/// Dropping it frees the frame; [`crate::Engine::transmit`] sends it.
#[derive(Debug)]
pub struct Frame {
    umem: Rc<Umem>,
    index: u32,
    start: u32,
    len: u32,
    /// Where the packet started when it was received, hence where the metadata ends; 0 if it was not.
    received_at: u32,
}

impl Frame {
    /// The packet.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a frame holds its index.
        let all = unsafe { self.umem.area().bytes(self.index) };
        all.get(self.range()).unwrap_or(&[])
    }

    /// The packet, writable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.range();
        // SAFETY: a frame holds its index.
        let all = unsafe { self.umem.area().bytes_mut(self.index) };
        all.get_mut(range).unwrap_or(&mut [])
    }

    /// Bytes of the packet.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True when the packet has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Free bytes in front of the packet.
    pub const fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Free bytes behind the packet.
    pub fn tailroom(&self) -> usize {
        self.umem.area().frame_size() as usize - self.range().end
    }

    /// The metadata the XDP program put in front of a received packet. Growing the packet to the front
    /// overwrites it: read it first.
    pub fn meta(&self) -> Option<DivertMeta> {
        let end = self.received_at as usize;
        let start = end.checked_sub(DivertMeta::LEN)?;
        // SAFETY: a frame holds its index.
        let all = unsafe { self.umem.area().bytes(self.index) };
        let meta = DivertMeta::read_from_bytes(all.get(start..end)?).ok()?;
        meta.divert_kind().map(|_| meta)
    }

    /// Lets `edit` change the packet and its bounds in place.
    pub fn edit<R>(&mut self, edit: impl FnOnce(&mut PacketBuf<'_>) -> R) -> R {
        let range = self.range();
        // SAFETY: a frame holds its index.
        let all = unsafe { self.umem.area().bytes_mut(self.index) };
        let Some(mut packet) = PacketBuf::new(all, range.start, range.len()) else {
            // The bounds are inside the frame by construction; an empty packet is what is left otherwise.
            return edit(&mut empty());
        };
        let result = edit(&mut packet);
        let (start, len) = (packet.start(), packet.len());
        self.set_range(start, len);
        result
    }

    /// Makes the packet `len` bytes from `start` of the frame; false if the frame ends before.
    pub fn set_range(&mut self, start: usize, len: usize) -> bool {
        let fits = start
            .checked_add(len)
            .is_some_and(|end| end <= self.umem.area().frame_size() as usize);
        if fits {
            (self.start, self.len) = (start as u32, len as u32);
        }
        fits
    }

    /// Makes the packet a copy of `bytes`; false if they do not fit behind the present start.
    pub fn copy_from(&mut self, bytes: &[u8]) -> bool {
        if !self.set_range(self.start as usize, bytes.len()) {
            return false;
        }
        self.bytes_mut().copy_from_slice(bytes);
        true
    }

    const fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }

    pub(crate) fn belongs_to(&self, umem: &Rc<Umem>) -> bool {
        Rc::ptr_eq(&self.umem, umem)
    }

    /// Gives the index up to a ring: address and length for its descriptor.
    pub(crate) fn into_descriptor(mut self) -> (u64, u32) {
        let address = self.umem.area().address(self.index, self.start);
        self.umem.held.set(self.umem.held.get() - 1);
        self.index = GONE;
        (address, self.len)
    }
}

fn empty() -> PacketBuf<'static> {
    // An empty slice always holds an empty packet.
    PacketBuf::new(&mut [], 0, 0).unwrap_or_else(|| unreachable!())
}

impl Drop for Frame {
    fn drop(&mut self) {
        if self.index != GONE {
            self.umem.held.set(self.umem.held.get() - 1);
            self.umem.put(self.index);
        }
    }
}
