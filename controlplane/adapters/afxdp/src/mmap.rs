//! Memory mapped for as long as the value lives.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use crate::syscall;

/// A mapping, zeroed by the kernel, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; the value only unmaps it. Access is governed by
// its users.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references give out the address and the length, nothing else.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Anonymous memory, page aligned, on large pages where there are any, and present.
    pub(crate) fn anonymous(length: usize) -> io::Result<Self> {
        let address = syscall::map(length, None)?;
        let mapping = Self::new(address, length)?;
        // Either only saves time: without large pages there are small ones, and what is not present comes when touched.
        let _ = syscall::prefer_huge(address, length);
        let _ = syscall::populate(address, length);
        Ok(mapping)
    }

    /// A ring of a socket.
    pub(crate) fn of_socket(fd: BorrowedFd<'_>, offset: libc::off_t, length: usize) -> io::Result<Self> {
        Self::new(syscall::map(length, Some((fd, offset)))?, length)
    }

    fn new(address: *mut libc::c_void, length: usize) -> io::Result<Self> {
        let start = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { start, length })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length and not unmapped before; every pointer into it is held by a value
        // that also holds the mapping.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
