//! Packets for this host that the terminal takes: ESP, and UDP on given ports.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use towpath_common::wire::{self, Ipv4, Ipv6, Udp, protocol};
use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::{U16, U32};

use crate::raw_ip::SendError;

/// Bytes of receive queue: some milliseconds of bulk traffic while the loop is busy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// TTL or hop limit written where the kernel does not tell the real one.
const DEFAULT_HOPS: u8 = 64;

/// A socket that receives, for one address of this host, ESP or UDP on one port, and shows whole IP packets.
///
/// While it is open the kernel answers neither with ICMP (protocol or port unreachable). The kernel has checked
/// checksums and put fragments together. Where it strips headers they are written anew: addresses, lengths,
/// traffic class and hop limit are right, IPv6 flow label and extension headers are gone, and a UDP checksum
/// is zero.
#[derive(Debug)]
pub struct Inbound {
    socket: Socket,
    local: IpAddr,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// The kernel shows the IP header.
    RawV4,
    /// The kernel strips the IP header.
    RawV6,
    /// The kernel strips IP and UDP headers.
    Udp { port: u16 },
}

/// What came beside the payload.
struct Ancillary {
    source: SocketAddr,
    traffic_class: u8,
    hops: u8,
}

impl Inbound {
    /// ESP for address `local`, on interface `device` only.
    pub fn esp(local: IpAddr, device: &str) -> io::Result<Self> {
        let esp = Some(Protocol::from(i32::from(protocol::ESP)));
        let (domain, kind) = match local {
            IpAddr::V4(_) => (Domain::IPV4, Kind::RawV4),
            IpAddr::V6(_) => (Domain::IPV6, Kind::RawV6),
        };
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), esp)?;
        Self::finish(socket, SocketAddr::new(local, 0), device, kind)
    }

    /// UDP for port `port` of address `local`, on interface `device` only.
    pub fn udp(local: IpAddr, port: u16, device: &str) -> io::Result<Self> {
        let domain = if local.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        Self::finish(socket, SocketAddr::new(local, port), device, Kind::Udp { port })
    }

    fn finish(socket: Socket, bind: SocketAddr, device: &str, kind: Kind) -> io::Result<Self> {
        socket.bind_device(Some(device.as_bytes()))?;
        if bind.is_ipv4() {
            socket.set_recv_tos_v4(true)?;
        } else {
            socket.set_recv_tclass_v6(true)?;
            socket.set_recv_hoplimit_v6(true)?;
        }
        // Beyond the system's limit where we may; what cannot be had is not worth failing for.
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        }
        socket.bind(&SockAddr::from(bind))?;
        Ok(Self {
            socket,
            local: bind.ip(),
            kind,
        })
    }

    /// Receives one packet into the front of `buffer`: a whole IP packet. Returns its length;
    /// [`io::ErrorKind::WouldBlock`] when there is none. A packet that does not fit is lost.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let header_len = match (self.kind, self.local) {
            (Kind::RawV4, _) => 0,
            (Kind::RawV6, _) => size_of::<Ipv6>(),
            (Kind::Udp { .. }, IpAddr::V4(_)) => size_of::<Ipv4>() + size_of::<Udp>(),
            (Kind::Udp { .. }, IpAddr::V6(_)) => size_of::<Ipv6>() + size_of::<Udp>(),
        };
        loop {
            let (headers, room) = buffer
                .split_at_mut_checked(header_len)
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            let Some((len, ancillary)) = self.recv_payload(room)? else {
                continue;
            };
            if self.write_headers(headers, len, &ancillary).is_some() {
                return Ok(header_len + len);
            }
        }
    }

    /// Address and port it receives for; port 0 for ESP.
    pub const fn local(&self) -> SocketAddr {
        let port = match self.kind {
            Kind::Udp { port } => port,
            Kind::RawV4 | Kind::RawV6 => 0,
        };
        SocketAddr::new(self.local, port)
    }

    /// Sends a payload from [`Inbound::local`], on the same interface. Never blocks.
    pub fn send_to(&self, payload: &[u8], destination: SocketAddr) -> Result<(), SendError> {
        self.socket.send_to(payload, &SockAddr::from(destination))?;
        Ok(())
    }

    /// One payload, `None` if it was cut off or its source cannot be told.
    fn recv_payload(&self, room: &mut [u8]) -> io::Result<Option<(usize, Ancillary)>> {
        let mut control = [0u8; 128];
        let mut parts = [IoSliceMut::new(room)];
        let received = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let cut_off = received
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        let source = received.address.as_ref().and_then(|address| {
            let v4 = address
                .as_sockaddr_in()
                .map(|address| SocketAddr::V4((*address).into()));
            v4.or_else(|| {
                address
                    .as_sockaddr_in6()
                    .map(|address| SocketAddr::V6((*address).into()))
            })
        });
        let (false, Some(source)) = (cut_off, source) else {
            return Ok(None);
        };
        let mut ancillary = Ancillary {
            source,
            traffic_class: 0,
            hops: DEFAULT_HOPS,
        };
        for message in received.cmsgs()? {
            match message {
                ControlMessageOwned::Ipv4Tos(tos) => ancillary.traffic_class = tos,
                ControlMessageOwned::Ipv6TClass(class) => ancillary.traffic_class = class as u8,
                ControlMessageOwned::Ipv6HopLimit(hops) => ancillary.hops = hops as u8,
                _ => {}
            }
        }
        Ok(Some((received.bytes, ancillary)))
    }

    /// Writes what the kernel stripped. `None` if the lengths do not fit the fields.
    fn write_headers(&self, headers: &mut [u8], payload: usize, ancillary: &Ancillary) -> Option<()> {
        let (next, payload) = match self.kind {
            Kind::RawV4 => return Some(()),
            Kind::RawV6 => (protocol::ESP, payload),
            Kind::Udp { port } => {
                let length = payload.checked_add(size_of::<Udp>())?;
                let udp = Udp {
                    source: U16::new(ancillary.source.port()),
                    destination: U16::new(port),
                    length: U16::new(u16::try_from(length).ok()?),
                    checksum: U16::ZERO,
                };
                udp.write_to_suffix(headers).ok()?;
                (protocol::UDP, length)
            }
        };
        match (ancillary.source.ip(), self.local) {
            (IpAddr::V4(source), IpAddr::V4(local)) => {
                let mut ip = Ipv4 {
                    version_ihl: 0x45,
                    tos: ancillary.traffic_class,
                    total_length: U16::new(u16::try_from(payload + size_of::<Ipv4>()).ok()?),
                    identification: U16::ZERO,
                    flags_fragment: U16::new(Ipv4::DONT_FRAGMENT),
                    ttl: ancillary.hops,
                    protocol: next,
                    checksum: U16::ZERO,
                    source: source.octets(),
                    destination: local.octets(),
                };
                ip.checksum = U16::new(wire::checksum(ip.as_bytes()));
                ip.write_to_prefix(headers).ok()
            }
            (IpAddr::V6(source), IpAddr::V6(local)) => {
                let ip = Ipv6 {
                    version_class_flow: U32::new(6 << 28 | u32::from(ancillary.traffic_class) << 20),
                    payload_length: U16::new(u16::try_from(payload).ok()?),
                    next_header: next,
                    hop_limit: ancillary.hops,
                    source: source.octets(),
                    destination: local.octets(),
                };
                ip.write_to_prefix(headers).ok()
            }
            _ => None,
        }
    }
}

impl AsFd for Inbound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Inbound {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
