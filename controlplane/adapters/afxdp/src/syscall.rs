//! The kernel's calls, with errors instead of return codes. No state.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Opens an AF_XDP socket.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let descriptor = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the descriptor is open and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sets a socket option whose value is plain data of the kernel's interface.
pub(crate) fn set_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let value: *const T = value;
    // SAFETY: the pointer and the length describe a live value, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    check(result)
}

/// Reads a socket option into `value`, which may stay partly as it was if the kernel's is shorter.
pub(crate) fn get_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    let value: *mut T = value;
    // SAFETY: the pointer and the length describe a live value the kernel may overwrite; callers pass
    // structures of the kernel's interface, for which all bytes are valid.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.cast(), &raw mut length) };
    check(result)
}

/// Binds an AF_XDP socket to a queue.
pub(crate) fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let pointer: *const libc::sockaddr_xdp = address;
    // SAFETY: the pointer and the length describe a live address, which the kernel only reads.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            pointer.cast(),
            size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
        )
    };
    check(result)
}

/// Tells the kernel to look at the transmit ring.
pub(crate) fn kick_transmit(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a null message of length zero.
    let result = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    check(result as c_int)
}

/// Tells the kernel to look at the fill ring (and, when busy polling, at the device).
pub(crate) fn kick_receive(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a null message of length zero.
    let result = unsafe {
        let null = std::ptr::null_mut();
        libc::recvfrom(
            fd.as_raw_fd(),
            null,
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    check(result as c_int)
}

/// Waits until a descriptor is ready; true if one is. A signal ends the wait early.
pub(crate) fn poll(descriptors: &mut [libc::pollfd], timeout: Duration) -> io::Result<bool> {
    // Paced senders sleep for less than a millisecond, which poll(2) cannot say.
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: pointer and count describe the slice; the time outlives the call; no mask is given.
    let ready = unsafe {
        libc::ppoll(
            descriptors.as_mut_ptr(),
            descriptors.len() as libc::nfds_t,
            &timeout,
            std::ptr::null(),
        )
    };
    match check(ready) {
        Ok(()) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// Maps `length` bytes: of the socket's ring at `offset`, or anonymous memory.
pub(crate) fn map(length: usize, ring: Option<(BorrowedFd<'_>, libc::off_t)>) -> io::Result<*mut c_void> {
    let (flags, descriptor, offset) = match ring {
        Some((fd, offset)) => (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset),
        // Not made present here: first is said on which pages.
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
    };
    // SAFETY: the kernel chooses the place, so no live mapping is replaced.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            descriptor,
            offset,
        )
    };
    if address == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(address)
    }
}

/// Asks for large pages under `length` bytes from `start` on: the whole pages among them.
pub(crate) fn prefer_huge(start: *mut c_void, length: usize) -> io::Result<()> {
    const PAGE: usize = 4096;
    let skip = start.addr().next_multiple_of(PAGE) - start.addr();
    let whole = length.saturating_sub(skip) & !(PAGE - 1);
    if whole == 0 {
        return Ok(());
    }
    let start = start.wrapping_byte_add(skip);
    // SAFETY: this advice changes no byte of memory, whosever it is, and no right to access it.
    check(unsafe { libc::madvise(start, whole, libc::MADV_HUGEPAGE) })
}

/// Makes all of a mapping present, so that nobody waits for it later.
pub(crate) fn populate(start: *mut c_void, length: usize) -> io::Result<()> {
    // SAFETY: touches pages without changing their contents.
    check(unsafe { libc::madvise(start, length, libc::MADV_POPULATE_WRITE) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
