//! When the kernel works on what a device receives (`Documentation/networking/napi.rst`, software IRQ coalescing).
//!
//! A NAPI context is what works on one queue of a device, by default as soon as something arrives. It can be told to
//! let packets gather first. That is said per context over the generic netlink family `netdev`
//! (`Documentation/netlink/specs/netdev.yaml`), since Linux 6.13.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

/// Attributes of generic netlink's controller (`linux/genetlink.h`).
mod controller {
    pub(super) const FAMILY: u16 = 0x10;
    pub(super) const GET_FAMILY: u8 = 3;
    pub(super) const FAMILY_ID: u16 = 1;
    pub(super) const FAMILY_NAME: u16 = 2;
}

/// Of the family `netdev` (`linux/netdev.h`).
mod netdev {
    pub(super) const NAME: &[u8] = b"netdev\0";
    pub(super) const NAPI_GET: u8 = 11;
    pub(super) const NAPI_SET: u8 = 14;
    pub(super) const NAPI_IFINDEX: u16 = 1;
    pub(super) const NAPI_ID: u16 = 2;
    pub(super) const DEFER_HARD_IRQS: u16 = 5;
    pub(super) const GRO_FLUSH_TIMEOUT: u16 = 6;
}

const VERSION: u8 = 1;
const HEADER_LEN: usize = 16;
const GENERIC_LEN: usize = 4;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const FLAG_DUMP: u16 = 0x300;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;

/// Looks without a packet after which a context wants to be told of the next one again.
const EMPTY_LOOKS: u32 = 1;

/// Tells NAPI contexts of the network namespace it was opened in when to work.
#[derive(Debug)]
pub struct NapiControl {
    socket: std::os::fd::OwnedFd,
    family: u16,
}

impl NapiControl {
    /// Opens it; needs `CAP_NET_ADMIN` later.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if the kernel has no such family.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            nix::sys::socket::AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let mut control = Self { socket, family: 0 };
        control.family = control.find_family()?;
        Ok(control)
    }

    /// The contexts of an interface.
    ///
    /// # Errors
    /// The kernel's.
    pub fn contexts(&self, ifindex: u32) -> io::Result<Vec<u32>> {
        let mut body = Vec::with_capacity(8);
        attribute(&mut body, netdev::NAPI_IFINDEX, &ifindex.to_ne_bytes());
        let number = |answer: &Vec<u8>| {
            let (_, value) = attributes(answer).find(|(kind, _)| *kind == netdev::NAPI_ID)?;
            Some(u32::from_ne_bytes(value.try_into().ok()?))
        };
        let answers = self.exchange(self.family, netdev::NAPI_GET, FLAG_DUMP, &body)?;
        Ok(answers.iter().filter_map(number).collect())
    }

    /// Lets packets gather in the context `napi` for `time`, unless there have been none for as long; `None`: it works
    /// on each at once, which is the default.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no such context any more.
    pub fn set_gathering(&self, napi: u32, time: Option<Duration>) -> io::Result<()> {
        let (looks, nanos) = match time {
            Some(time) => (EMPTY_LOOKS, u32::try_from(time.as_nanos()).unwrap_or(u32::MAX)),
            None => (0, 0),
        };
        let mut body = Vec::with_capacity(32);
        attribute(&mut body, netdev::NAPI_ID, &napi.to_ne_bytes());
        attribute(&mut body, netdev::DEFER_HARD_IRQS, &looks.to_ne_bytes());
        attribute(&mut body, netdev::GRO_FLUSH_TIMEOUT, &nanos.to_ne_bytes());
        self.exchange(self.family, netdev::NAPI_SET, FLAG_ACK, &body)
            .map(drop)
    }

    fn find_family(&self) -> io::Result<u16> {
        let mut body = Vec::with_capacity(16);
        attribute(&mut body, controller::FAMILY_NAME, netdev::NAME);
        let answers = self.exchange(controller::FAMILY, controller::GET_FAMILY, 0, &body)?;
        answers
            .iter()
            .flat_map(|answer| attributes(answer))
            .find(|(kind, _)| *kind == controller::FAMILY_ID)
            .and_then(|(_, value)| Some(u16::from_ne_bytes(value.try_into().ok()?)))
            .ok_or_else(|| io::Error::other("the kernel names no number of the family netdev"))
    }

    /// Sends a request and returns the attributes of every answer; none if it is only acknowledged.
    fn exchange(&self, family: u16, command: u8, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let message = request(family, command, flags, body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; 32 << 10]);
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let read = read(buffer.get(..len).unwrap_or_default(), &mut answers)?;
            if read || flags & FLAG_DUMP != FLAG_DUMP {
                return Ok(answers);
            }
        }
    }
}

/// `struct nlmsghdr`, `struct genlmsghdr`, attributes.
fn request(family: u16, command: u8, flags: u16, body: &[u8]) -> Vec<u8> {
    let len = HEADER_LEN + GENERIC_LEN + body.len();
    let mut message = Vec::with_capacity(len);
    message.extend_from_slice(&(len as u32).to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&(flags | FLAG_REQUEST).to_ne_bytes());
    // Sequence number and port: one request at a time, and the kernel fills the port in.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[command, VERSION, 0, 0]);
    message.extend_from_slice(body);
    message
}

/// Takes the messages of an answer apart; true if one says that it was the last.
fn read(mut messages: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while !messages.is_empty() {
        let (len, kind) = field(messages, 0)
            .map(u32::from_ne_bytes)
            .zip(field(messages, 4).map(u16::from_ne_bytes))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let body = messages
            .get(HEADER_LEN..len as usize)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        match kind {
            TYPE_DONE => return Ok(true),
            TYPE_ERROR => match field(body, 0).map(i32::from_ne_bytes) {
                Some(0) => return Ok(true),
                Some(error) => return Err(io::Error::from_raw_os_error(error.saturating_neg())),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            },
            _ => answers.push(body.get(GENERIC_LEN..).unwrap_or_default().to_vec()),
        }
        messages = messages
            .get((len as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = (4 + value.len()) as u16;
    body.extend_from_slice(&len.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(field(bytes, 0)?));
        let kind = u16::from_ne_bytes(field(bytes, 2)?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let mut body = Vec::new();
        attribute(&mut body, controller::FAMILY_NAME, netdev::NAME);
        let message = request(controller::FAMILY, controller::GET_FAMILY, 0, &body);
        assert_eq!(message.len(), 32);
        assert_eq!(field(&message, 0).map(u32::from_ne_bytes), Some(32));
        assert_eq!(&message[16..20], &[3, 1, 0, 0]);
        assert_eq!(field(&message, 20).map(u16::from_ne_bytes), Some(11));
        assert_eq!(&message[24..], b"netdev\0\0");
        let read: Vec<_> = attributes(&body).collect();
        assert_eq!(read, [(controller::FAMILY_NAME, netdev::NAME)]);
    }

    #[test]
    fn answers_that_are_cut_off_are_errors() {
        let refused: Vec<u8> = [
            36u32.to_ne_bytes(),
            [2, 0, 0, 0],
            [0; 4],
            [0; 4],
            (-2i32).to_ne_bytes(),
            [0; 4],
            [0; 4],
            [0; 4],
            [0; 4],
        ]
        .concat();
        let mut answers = Vec::new();
        assert_eq!(
            read(&refused, &mut answers).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        for len in 1..refused.len() {
            let error = read(&refused[..len], &mut answers).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len} bytes");
        }
        assert!(answers.is_empty());
        assert_eq!(
            attributes(&[0; 16]).count(),
            0,
            "an attribute without a length ends the list"
        );
    }

    #[test]
    fn this_kernel_has_the_family_and_no_context_zero() {
        // Kernels before 6.8 have none; nothing more can be shown there.
        let Ok(control) = NapiControl::open() else { return };
        assert!(control.set_gathering(0, None).is_err());
        assert!(control.contexts(i32::MAX as u32).is_err());
    }
}
