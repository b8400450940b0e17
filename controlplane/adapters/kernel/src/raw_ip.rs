//! Whole IP packets out through the kernel's routing, with whatever source address they carry.

use std::fmt;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use towpath_common::wire::{Ipv4, Ipv6};
use zerocopy::FromBytes;

/// `IPPROTO_RAW`: send only, never queues a received packet.
const IPPROTO_RAW: i32 = 255;

/// Sends whole IP packets, both families, on the route the kernel chooses for their destination.
///
/// The source address is the packet's and need not be ours; the kernel resolves the neighbour (ARP, ND).
/// It fills in the IPv4 header checksum, the total length, and the identification where it is zero; all else
/// leaves as it is (`raw(7)`, `IP_HDRINCL`; `ipv6(7)`, `IPV6_HDRINCL`). Packets are never fragmented.
///
/// Sending never blocks; one sender may be used from several threads.
#[derive(Debug)]
pub struct RawIpSender {
    v4: Socket,
    v6: Socket,
}

/// Why a packet was not sent.
#[derive(Debug)]
pub enum SendError {
    /// Not an IPv4 or IPv6 packet with a whole header.
    Malformed,
    /// No route to the destination, or the network or host is known to be unreachable.
    NoRoute,
    /// Larger than the MTU of the outgoing interface.
    TooBig,
    /// The socket's or the device's queue is full; the packet is lost.
    WouldBlock,
    /// Anything else the kernel said.
    Io(io::Error),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("not an IP packet"),
            Self::NoRoute => f.write_str("no route to the destination"),
            Self::TooBig => f.write_str("packet larger than the MTU of the outgoing interface"),
            Self::WouldBlock => f.write_str("send queue full"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock => return Self::WouldBlock,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => return Self::NoRoute,
            _ => {}
        }
        match error.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(nix::errno::Errno::EMSGSIZE) => Self::TooBig,
            Some(nix::errno::Errno::ENOBUFS) => Self::WouldBlock,
            _ => Self::Io(error),
        }
    }
}

impl RawIpSender {
    /// Opens the sockets. With `device`, packets leave through that interface only and routes through others
    /// do not count, as for a host whose route to the peer points into a tunnel.
    pub fn new(device: Option<&str>) -> io::Result<Self> {
        Ok(Self {
            v4: open(Domain::IPV4, device)?,
            v6: open(Domain::IPV6, device)?,
        })
    }

    /// Sends one whole IP packet. Its lengths are not checked against the header's.
    pub fn send(&self, packet: &[u8]) -> Result<(), SendError> {
        let (socket, destination) = match packet.first().map(|first| first >> 4) {
            Some(4) => {
                let (header, _) = Ipv4::ref_from_prefix(packet).map_err(|_| SendError::Malformed)?;
                let to = SocketAddr::V4(SocketAddrV4::new(header.destination_addr(), 0));
                (&self.v4, to)
            }
            Some(6) => {
                let (header, _) = Ipv6::ref_from_prefix(packet).map_err(|_| SendError::Malformed)?;
                let to = SocketAddr::V6(SocketAddrV6::new(header.destination_addr(), 0, 0, 0));
                (&self.v6, to)
            }
            _ => return Err(SendError::Malformed),
        };
        socket.send_to(packet, &SockAddr::from(destination))?;
        Ok(())
    }
}

fn open(domain: Domain, device: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::new(
        domain,
        Type::RAW.nonblocking().cloexec(),
        Some(Protocol::from(IPPROTO_RAW)),
    )?;
    if domain == Domain::IPV4 {
        socket.set_header_included_v4(true)?;
    } else {
        socket.set_header_included_v6(true)?;
    }
    socket.bind_device(device.map(str::as_bytes))?;
    // A burst of a few hundred full frames must fit; best effort, the system's limit rules.
    let _ = socket.set_send_buffer_size(1 << 20);
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: opens raw sockets"]
    fn what_is_no_ip_packet_is_refused() {
        let sender = RawIpSender::new(None).unwrap();
        for packet in [&[][..], &[0x45; 19], &[0x60; 39], &[0x55; 64]] {
            assert!(
                matches!(sender.send(packet), Err(SendError::Malformed)),
                "{packet:?}"
            );
        }
    }
}
