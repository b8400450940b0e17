//! Frames of one network interface, whole, as a packet socket sees them.
//!
//! A packet socket gets a frame before the kernel's own stack does, and one that is addressed to another station
//! too. The interfaces an emulator joins therefore have no addresses: the stack then drops its copy at once.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns, RxqOvfl, SndBufForce};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType,
    SockaddrLike, bind, recvmmsg, sendmmsg, setsockopt, socket,
};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Frames per system call.
pub const BATCH: usize = 32;
/// Room for a frame, bytes: what does not fit is no frame of a link with a usual MTU.
const FRAME: usize = 2048;
/// Bytes of a frame before its IP packet.
pub const ETHERNET: usize = 14;
/// Socket buffers, bytes: a burst of a fast sender must fit while this process does not run.
const BUFFER: usize = 16 << 20;
/// `PACKET_OUTGOING`, packet(7).
const OUTGOING: u8 = 4;

/// What went wrong with an interface.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// There is none of that name.
    #[error("there is no interface {0:?} in this network namespace")]
    Missing(String),
    /// A system call failed.
    #[error("{0} on interface {1:?}: {2}")]
    Call(&'static str, String, Errno),
}

/// A frame that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// From the Ethernet header on.
    pub bytes: &'a [u8],
    /// How long ago the kernel got it.
    pub age: Duration,
    /// It was longer than a frame may be, and is cut.
    pub cut: bool,
}

/// One interface.
#[derive(Debug)]
pub struct Port {
    name: String,
    socket: OwnedFd,
    buffers: Box<[[u8; FRAME]; BATCH]>,
    headers: MultiHeaders<LinkAddr>,
    /// Frames the kernel could not keep for us, as it counts them.
    missed: u32,
}

fn receive_headers() -> MultiHeaders<LinkAddr> {
    MultiHeaders::preallocate(BATCH, Some(cmsg_space!(TimeSpec, u32)))
}

impl Port {
    /// Opens an interface of the calling thread's network namespace. Needs CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn open(name: &str) -> Result<Self, PortError> {
        let call = |what| move |errno| PortError::Call(what, name.into(), errno);
        let address = link_address(name)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .map_err(call("cannot open a packet socket"))?;
        setsockopt(&socket, RcvBufForce, &BUFFER).map_err(call("cannot enlarge the receive buffer"))?;
        setsockopt(&socket, SndBufForce, &BUFFER).map_err(call("cannot enlarge the send buffer"))?;
        setsockopt(&socket, ReceiveTimestampns, &true).map_err(call("cannot ask for times"))?;
        setsockopt(&socket, RxqOvfl, &1).map_err(call("cannot ask for losses"))?;
        bind(socket.as_raw_fd(), &address).map_err(call("cannot bind"))?;
        let mut port = Self {
            name: name.into(),
            socket,
            buffers: Box::new([[0; FRAME]; BATCH]),
            headers: receive_headers(),
            missed: 0,
        };
        // Between opening and binding the socket heard every interface.
        while port.receive(|_| ())? > 0 {}
        port.missed = 0;
        Ok(port)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For poll.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Frames lost because this process came too late.
    pub const fn missed(&self) -> u64 {
        self.missed as u64
    }

    /// Hands over the frames that wait, at most [`BATCH`]; says how many there were.
    pub fn receive(&mut self, mut take: impl FnMut(Received<'_>)) -> Result<usize, PortError> {
        let mut slices = self.buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        let fd = self.socket.as_raw_fd();
        let messages = match recvmmsg(
            fd,
            &mut self.headers,
            slices.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        ) {
            Ok(messages) => messages,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return Ok(0),
            Err(errno) => return Err(PortError::Call("cannot receive", self.name.clone(), errno)),
        };
        let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from);
        let (mut count, mut short) = (0, false);
        for message in messages {
            count += 1;
            if message
                .address
                .is_some_and(|address| address.pkttype() == OUTGOING)
            {
                continue;
            }
            let mut age = Duration::ZERO;
            match message.cmsgs() {
                Ok(parts) => {
                    for part in parts {
                        match part {
                            ControlMessageOwned::ScmTimestampns(time) => {
                                age = now.saturating_sub(Duration::from(time));
                            }
                            ControlMessageOwned::RxqOvfl(missed) => self.missed = missed,
                            _ => {}
                        }
                    }
                }
                Err(_) => short = true,
            }
            let cut = message.flags.contains(MsgFlags::MSG_TRUNC);
            let bytes = message.iovs().next().unwrap_or_default();
            take(Received { bytes, age, cut });
        }
        if short {
            // The kernel shortens the room it is given to what it used; the first loss needs more than that.
            self.headers = receive_headers();
        }
        Ok(count)
    }

    /// Sends the frames in front; those sent, or refused for good, leave the queue. Says how many were refused.
    pub fn send(&mut self, frames: &mut VecDeque<Vec<u8>>) -> Result<u64, PortError> {
        let mut refused = 0;
        while !frames.is_empty() {
            let slices: Vec<[IoSlice<'_>; 1]> = frames
                .iter()
                .take(BATCH)
                .map(|frame| [IoSlice::new(frame)])
                .collect();
            let nowhere: [Option<LinkAddr>; BATCH] = [None; BATCH];
            let mut headers = MultiHeaders::preallocate(slices.len(), None);
            let fd = self.socket.as_raw_fd();
            let sent = sendmmsg(
                fd,
                &mut headers,
                slices.iter(),
                nowhere,
                [],
                MsgFlags::MSG_DONTWAIT,
            )
            .map(|messages| messages.count());
            drop(slices);
            match sent {
                Ok(count) => drop(frames.drain(..count.min(frames.len()))),
                Err(Errno::EINTR) => {}
                // Full, too long, or down: this frame is lost, as on any interface.
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EMSGSIZE | Errno::ENETDOWN | Errno::ENXIO) => {
                    frames.pop_front();
                    refused += 1;
                }
                Err(errno) => return Err(PortError::Call("cannot send", self.name.clone(), errno)),
            }
        }
        Ok(refused)
    }
}

/// The link-layer address of an interface. Its protocol is left open: the socket's own holds.
fn link_address(name: &str) -> Result<LinkAddr, PortError> {
    let all = nix::ifaddrs::getifaddrs()
        .map_err(|errno| PortError::Call("cannot list addresses", name.into(), errno))?;
    all.filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .filter(|address| address.family() == Some(AddressFamily::Packet))
        .ok_or_else(|| PortError::Missing(name.into()))
}
