//! Pages of 2 MiB for what is large and touched everywhere.
//!
//! A processor remembers where some thousand pages are. Frames and keys of ten thousand SAs are on more pages of 4 KiB than
//! that, and to find one costs as much as to read it. Where the kernel has no large pages to give, everything works as
//! before, slower.

use std::ffi::c_void;
use std::io;

use crate::syscall;

/// Asks for large pages under the elements of `room`, those there are and those it has room for. Call it while the vector
/// is empty: pages that were touched stay small until the kernel gets around to them. Changes nothing but time.
///
/// # Errors
/// The kernel has no transparent huge pages.
pub fn on_huge_pages<T>(room: &Vec<T>) -> io::Result<()> {
    let start = room.as_ptr().cast::<c_void>().cast_mut();
    syscall::prefer_huge(start, room.capacity() * size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_as_it_was() {
        let mut room = Vec::with_capacity(1 << 20);
        room.push(7u64);
        // Without huge pages in the kernel this is an error, and nothing else.
        let _ = on_huge_pages(&room);
        room.resize(1 << 20, 9);
        assert_eq!((room[0], room[(1 << 20) - 1]), (7, 9));
        let _ = on_huge_pages(&Vec::<u64>::new());
        let _ = on_huge_pages(&vec![1u8; 10]);
    }
}
