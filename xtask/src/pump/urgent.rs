//! Urgent data (RFC 9293 §3.8.5): that the byte arrives is not enough, it must be urgent in its own place.
//!
//! N bytes, the urgent one, N bytes. A receiver that takes it out of band reads the N bytes before and behind it as
//! if it were not there; one that takes it inline finds it between them. An urgent pointer that moved would take
//! another byte out, and a checksum would be wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, setsockopt, sockopt};

use super::SILENCE;

/// The urgent byte.
const BYTE: u8 = 0xa5;

/// Sends; returns the checksums of both parts.
pub(super) fn send(stream: &mut TcpStream, count: u64) -> Result<String> {
    let before = super::send(stream, count)?;
    stream.flush()?;
    if socket::send(stream.as_raw_fd(), &[BYTE], MsgFlags::MSG_OOB)? != 1 {
        bail!("the urgent byte was not taken");
    }
    let behind = super::send(stream, count)?;
    Ok(format!("{before}+{behind}"))
}

/// Receives; returns the checksums of both parts.
pub(super) fn receive(
    stream: &TcpStream,
    reader: &mut impl Read,
    count: u64,
    inline: bool,
) -> Result<String> {
    if inline {
        setsockopt(stream, sockopt::OobInline, &true)?;
    } else {
        // Before anything behind it is read: then the kernel would have thrown it away.
        let byte = out_of_band(stream)?;
        if byte != BYTE {
            bail!("the urgent byte is {byte:#04x}, {BYTE:#04x} was sent");
        }
    }
    let before = super::receive(reader, count)?;
    if inline {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        if byte != [BYTE] {
            bail!("{:#04x} stands in the urgent byte's place", byte[0]);
        }
    }
    let behind = super::receive(reader, count)?;
    Ok(format!("{before}+{behind}"))
}

/// Waits for the urgent byte.
fn out_of_band(stream: &TcpStream) -> Result<u8> {
    let until = Instant::now() + SILENCE;
    let mut byte = [0];
    loop {
        match socket::recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB) {
            Ok(1) => return Ok(byte[0]),
            Ok(_) => bail!("the connection ended before the urgent byte"),
            // Nothing is urgent yet, or it is announced and not here.
            Err(Errno::EINVAL | Errno::EAGAIN) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => bail!("no urgent byte: {error}"),
        }
    }
}
