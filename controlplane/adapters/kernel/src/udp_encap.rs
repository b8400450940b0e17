//! A UDP socket that hands ESP to the kernel (RFC 3948).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `SOL_UDP`, `UDP_ENCAP` and `UDP_ENCAP_ESPINUDP` of `linux/udp.h`.
const LEVEL: libc::c_int = 17;
const OPTION: libc::c_int = 100;
const ESP_IN_UDP: libc::c_int = 2;

/// From now on the kernel takes ESP in UDP that arrives at `socket`, and the socket what has the non-ESP marker.
pub fn enable(socket: &impl AsFd) -> io::Result<()> {
    let value = ESP_IN_UDP;
    // SAFETY: the descriptor is open as long as the borrow, and the kernel reads as many bytes as the integer has.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            LEVEL,
            OPTION,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
