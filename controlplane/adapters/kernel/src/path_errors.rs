//! "Too big" from routers (RFC 792, RFC 4443 §3.2), for one of this host's addresses.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};
use towpath_common::wire::{Ipv6, protocol};
use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::{U16, U32};

/// A socket that receives ICMP "fragmentation needed" or ICMPv6 "packet too big" for one address, and nothing else. The
/// kernel hears them, too.
#[derive(Debug)]
pub struct PathErrors {
    socket: Socket,
    local: IpAddr,
}

impl PathErrors {
    /// Those for address `local`, on interface `device` only.
    pub fn open(local: IpAddr, device: &str) -> io::Result<Self> {
        let (domain, kind, filter) = match local {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, &TOO_BIG_V4[..]),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, &TOO_BIG_V6[..]),
        };
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(kind))?;
        let filter: Vec<SockFilter> = filter
            .iter()
            .map(|&(code, jt, jf, k)| SockFilter::new(code, jt, jf, k))
            .collect();
        socket.attach_filter(&filter)?;
        socket.bind_device(Some(device.as_bytes()))?;
        socket.bind(&SockAddr::from(SocketAddr::new(local, 0)))?;
        Ok(Self { socket, local })
    }

    /// Receives one into the front of `buffer`: a whole IP packet. Over IPv6 its header is written anew. Returns its length;
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let IpAddr::V6(local) = self.local else {
            return io::Read::read(&mut &self.socket, buffer);
        };
        let (header, room) = buffer
            .split_at_mut_checked(size_of::<Ipv6>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (len, source) = recv_from(&self.socket, room)?;
        let written = Ipv6 {
            version_class_flow: U32::new(6 << 28),
            payload_length: U16::new(u16::try_from(len).unwrap_or(u16::MAX)),
            next_header: protocol::ICMPV6,
            hop_limit: 64,
            source: source.octets(),
            destination: local.octets(),
        };
        header.copy_from_slice(written.as_bytes());
        Ok(header.len() + len)
    }
}

/// Length and source of one datagram.
fn recv_from(socket: &Socket, room: &mut [u8]) -> io::Result<(usize, Ipv6Addr)> {
    use nix::sys::socket::{SockaddrIn6, recvfrom};
    let (len, source) = recvfrom::<SockaddrIn6>(socket.as_raw_fd(), room)?;
    let source = source.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((len, source.ip()))
}

/// Classic BPF, as (code, jump if true, jump if false, operand): type 3, code 4, behind an IPv4 header.
const TOO_BIG_V4: [(u16, u8, u8, u32); 5] = [
    // X = header length; A = type and code; 3 and 4 or nothing.
    (0xb1, 0, 0, 0),
    (0x48, 0, 0, 0),
    (0x15, 0, 1, 0x0304),
    (0x06, 0, 0, u32::MAX),
    (0x06, 0, 0, 0),
];

/// Type 2, code 0; the kernel shows ICMPv6 without its IP header.
const TOO_BIG_V6: [(u16, u8, u8, u32); 4] = [
    (0x28, 0, 0, 0),
    (0x15, 0, 1, 0x0200),
    (0x06, 0, 0, u32::MAX),
    (0x06, 0, 0, 0),
];

impl AsFd for PathErrors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for PathErrors {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
