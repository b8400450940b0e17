//! The kernel's own IPsec: SAs ("states") and policies over netlink, and what the kernel asks for.
//!
//! Requests are synchronous: the kernel answers each in the call that sends it. Numbers and meanings are those of
//! `linux/xfrm.h`; only ESP is spoken of.

mod encode;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{NetlinkAddr, bind};
use socket2::{Domain, Protocol, Socket, Type};
use towpath_base::Spi;
use towpath_base::sa::{EspKeys, EspSuite, Lifetime, Mode};
use towpath_base::selector::Prefix;

use self::encode::{Message, View};

/// `AF_NETLINK`, `NETLINK_XFRM`.
const DOMAIN: i32 = 16;
const NETLINK_XFRM: i32 = 6;
/// Multicast groups of acquisitions and expirations, as a mask.
const EVENT_GROUPS: u32 = 0b11;

const HEADER_LEN: usize = 16;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const FLAG_DUMP: u16 = 0x300;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;

/// How long the kernel may take: loading an algorithm's module is part of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Names a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateId {
    /// Where its packets go.
    pub destination: IpAddr,
    /// Their SPI.
    pub spi: Spi,
}

/// One direction of an ESP SA.
#[derive(Debug, Clone)]
pub struct State<'a> {
    /// Where its packets come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// Their SPI.
    pub spi: Spi,
    /// Algorithms.
    pub suite: EspSuite,
    /// Keys.
    pub keys: &'a EspKeys,
    /// Transport or tunnel.
    pub mode: Mode,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// UDP encapsulation: source and destination port of the packets.
    pub encap: Option<(u16, u16)>,
    /// What policies find it by, beside the addresses.
    pub reqid: u32,
    /// Packets of the replay window, a multiple of 32.
    pub replay_window: u32,
    /// Limits. Only bytes and the hard time are the kernel's to watch.
    pub lifetime: Lifetime,
    /// Payloads are padded up to this many bytes (RFC 4303 §2.7); 0: none. Tunnel mode alone can have it.
    pub tfc_pad: u32,
    /// Packets it is for, where its policies may admit more.
    pub selector: Option<Selector>,
}

impl State<'_> {
    /// Its name.
    pub const fn id(&self) -> StateId {
        StateId {
            destination: self.destination,
            spi: self.spi,
        }
    }
}

/// What a state has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Use {
    /// Bytes, as the kernel counts them.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// Which packets a policy is about. Ports are value and mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Where from.
    pub source: Prefix,
    /// Where to; of the same family.
    pub destination: Prefix,
    /// Protocol, 0 is any.
    pub protocol: u8,
    /// Source port under a mask; of ICMP the type.
    pub source_port: (u16, u16),
    /// Destination port under a mask; of ICMP the code.
    pub destination_port: (u16, u16),
}

/// Of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To this host.
    In,
    /// From this host.
    Out,
}

/// How packets are to be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Template {
    /// Transport or tunnel.
    pub mode: Mode,
    /// Source and destination of the ESP packet; those of the plain one if absent.
    pub outer: Option<(IpAddr, IpAddr)>,
    /// Of the states that count; 0 is any.
    pub reqid: u32,
}

/// What a policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// In clear.
    Allow,
    /// Dropped.
    Block,
    /// Only so.
    Protect(Template),
}

/// A policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyRule {
    /// Of packets.
    pub direction: Direction,
    /// Which.
    pub selector: Selector,
    /// Mark of the socket or packet: value and mask.
    pub mark: Option<(u32, u32)>,
    /// The lowest counts.
    pub priority: u32,
    /// What happens.
    pub action: Action,
}

/// What the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A packet wants an SA that is not there.
    Acquire {
        /// Source of the ESP packets.
        source: IpAddr,
        /// Their destination.
        destination: IpAddr,
        /// Protocol of the packet.
        protocol: u8,
        /// Its source port, 0 if it has none.
        source_port: u16,
        /// Its destination port.
        destination_port: u16,
        /// Of the policy's template.
        reqid: u32,
    },
    /// A state reached a limit.
    Expire {
        /// Which.
        state: StateId,
        /// It is gone; else a replacement is wanted.
        hard: bool,
    },
}

/// A connection for requests, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Xfrm {
    socket: Socket,
}

fn open(groups: u32) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::from(DOMAIN),
        Type::RAW.cloexec(),
        Some(Protocol::from(NETLINK_XFRM)),
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

impl Xfrm {
    /// Opens a connection; an error where the kernel has no XFRM.
    pub fn open() -> io::Result<Self> {
        let socket = open(0)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Whether the kernel has ESP with `suite`: an SA nobody uses is made and removed.
    pub fn supports(&self, suite: EspSuite) -> bool {
        let nowhere = IpAddr::V4(Ipv4Addr::new(127, 255, 255, 254));
        let material = vec![0x5a; suite.key_material_len()];
        let Some(keys) = EspKeys::split(suite, &material) else {
            return false;
        };
        let probe = State {
            source: nowhere,
            destination: nowhere,
            spi: Spi(0xff),
            suite,
            keys: &keys,
            mode: Mode::Transport,
            esn: false,
            encap: None,
            reqid: 0,
            replay_window: 32,
            lifetime: Lifetime::default(),
            tfc_pad: 0,
            selector: None,
        };
        let there = self.add_state(&probe).is_ok();
        // Nothing to remove if it was not there.
        let _ = self.delete_state(&probe.id());
        there
    }

    /// Adds a state; one of that name is an error.
    pub fn add_state(&self, state: &State<'_>) -> io::Result<()> {
        let mut message = Message::new();
        message
            .state(state)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.request(encode::NEW_STATE, 0x400 | 0x200, &message.into_bytes())
    }

    /// Deletes a state.
    pub fn delete_state(&self, id: &StateId) -> io::Result<()> {
        let mut message = Message::new();
        message.state_id(id);
        self.request(encode::DELETE_STATE, 0, &message.into_bytes())
    }

    /// What a state has done so far.
    pub fn state_use(&self, id: &StateId) -> io::Result<Use> {
        let mut message = Message::new();
        message.state_id(id);
        let mut found = None;
        self.exchange(encode::GET_STATE, 0, &message.into_bytes(), |kind, body| {
            if kind == encode::NEW_STATE {
                // After selector, name, source and limits.
                let at = encode::SELECTOR_LEN + 24 + 16 + 64;
                found = View(body).u64(at).zip(View(body).u64(at + 8));
            }
        })?;
        let (bytes, packets) = found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Use { bytes, packets })
    }

    /// Adds a policy, or replaces the one of the same direction, selector and mark.
    pub fn set_policy(&self, rule: &PolicyRule) -> io::Result<()> {
        let mut message = Message::new();
        message.policy(rule);
        self.request(encode::UPDATE_POLICY, 0, &message.into_bytes())
    }

    /// Deletes the policy of this direction, selector and mark.
    pub fn delete_policy(&self, rule: &PolicyRule) -> io::Result<()> {
        let mut message = Message::new();
        message.policy_id(rule);
        self.request(encode::DELETE_POLICY, 0, &message.into_bytes())
    }

    /// Deletes every ESP state whose reqid `ours` admits, and every policy that names such a reqid or has a priority
    /// that `our_priority` admits: what a process that was killed left behind. Returns how many.
    pub fn sweep(&self, ours: impl Fn(u32) -> bool, our_priority: impl Fn(u32) -> bool) -> io::Result<usize> {
        let mut states = Vec::new();
        self.exchange(encode::GET_STATE, FLAG_DUMP, &[], |kind, body| {
            let view = View(body);
            let id = || {
                let family = view.u16(212)?;
                let id = StateId {
                    destination: view.address(encode::SELECTOR_LEN, family)?,
                    spi: Spi(view.be32(encode::SELECTOR_LEN + 16)?),
                };
                ours(view.u32(208)?).then_some(id)
            };
            if kind == encode::NEW_STATE {
                states.extend(id());
            }
        })?;
        let mut policies: Vec<Vec<u8>> = Vec::new();
        self.exchange(encode::GET_POLICY, FLAG_DUMP, &[], |_, body| {
            let view = View(body);
            let template = view.attribute(encode::POLICY_LEN, encode::ATTR_TEMPLATES);
            let reqid = template.and_then(|template| template.u32(44));
            let priority = view.u32(152);
            if (reqid.is_some_and(&ours) || priority.is_some_and(&our_priority))
                && let (Some(index), Some(direction)) = (view.0.get(156..160), view.0.get(160))
            {
                // By index.
                let mut id = vec![0; encode::SELECTOR_LEN];
                id.extend_from_slice(index);
                id.extend_from_slice(&[*direction, 0, 0, 0]);
                if let Some(View(mark)) = view.attribute(encode::POLICY_LEN, encode::ATTR_MARK) {
                    id.extend_from_slice(&12u16.to_ne_bytes());
                    id.extend_from_slice(&encode::ATTR_MARK.to_ne_bytes());
                    id.extend_from_slice(mark.get(..8).unwrap_or(&[0; 8]));
                }
                policies.push(id);
            }
        })?;
        for id in &states {
            // One may have expired meanwhile.
            let _ = self.delete_state(id);
        }
        for id in &policies {
            let _ = self.request(encode::DELETE_POLICY, 0, id);
        }
        Ok(states.len() + policies.len())
    }

    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.exchange(kind, flags, body, |_, _| ())
    }

    /// Sends a request and shows every answer to `each` until the kernel is done.
    fn exchange(
        &self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let dump = flags & FLAG_DUMP == FLAG_DUMP;
        let flags = flags | FLAG_REQUEST | if dump { 0 } else { FLAG_ACK };
        let mut message = zeroize::Zeroizing::new(Vec::with_capacity(HEADER_LEN + body.len()));
        let len = u32::try_from(HEADER_LEN + body.len()).unwrap_or(u32::MAX);
        message.extend_from_slice(&len.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(body);
        self.socket.send(&message)?;
        let mut buffer = zeroize::Zeroizing::new(vec![0u8; 32 * 1024]);
        loop {
            let len = nix::sys::socket::recv(
                self.socket.as_raw_fd(),
                &mut buffer,
                nix::sys::socket::MsgFlags::empty(),
            )?;
            for (kind, body) in messages(buffer.get(..len).unwrap_or_default()) {
                match kind {
                    TYPE_DONE => return Ok(()),
                    TYPE_ERROR => {
                        let code = View(body).u32(0).map_or(0, |code| code as i32);
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    kind => each(kind, body),
                }
            }
        }
    }
}

/// Type and body of each message in `bytes`.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = View(rest).u32(0)? as usize;
        let kind = View(rest).u16(4)?;
        let body = rest.get(HEADER_LEN..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Receives what the kernel asks for and tells.
pub struct XfrmEvents {
    socket: Socket,
}

impl XfrmEvents {
    /// Listens from now on; packets without SA are only asked for while somebody listens.
    pub fn open() -> io::Result<Self> {
        let socket = open(EVENT_GROUPS)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// What came next, in order, perhaps nothing of interest; [`io::ErrorKind::WouldBlock`] when there is nothing.
    pub fn recv(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [0u8; 8192];
        let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        let len = match nix::sys::socket::recv(self.socket.as_raw_fd(), &mut buffer, flags) {
            // Some were lost; what they asked for is asked for again.
            Err(nix::errno::Errno::ENOBUFS) => 0,
            len => len?,
        };
        let received = messages(buffer.get(..len).unwrap_or_default());
        Ok(received
            .filter_map(|(kind, body)| event(kind, View(body)))
            .collect())
    }
}

/// Reads `struct xfrm_user_acquire` and `struct xfrm_user_expire`.
fn event(kind: u16, view: View<'_>) -> Option<Event> {
    match kind {
        encode::ACQUIRE => {
            // Name 24, source 16, selector 56, policy 168, algorithms 12, sequence number 4, attributes.
            let selector = 40;
            let family = view.u16(selector + 40)?;
            let template = view.attribute(280, encode::ATTR_TEMPLATES)?;
            let outer = template.u16(24).filter(|family| *family != 0).unwrap_or(family);
            Some(Event::Acquire {
                source: view.address(24, outer)?,
                destination: view.address(0, outer)?,
                protocol: view.u8(selector + 44)?,
                source_port: view.be16(selector + 36)?,
                destination_port: view.be16(selector + 32)?,
                reqid: template.u32(44)?,
            })
        }
        encode::EXPIRE => {
            let family = view.u16(212)?;
            Some(Event::Expire {
                state: StateId {
                    destination: view.address(encode::SELECTOR_LEN, family)?,
                    spi: Spi(view.be32(encode::SELECTOR_LEN + 16)?),
                },
                hard: view.u8(encode::STATE_LEN)? != 0,
            })
        }
        _ => None,
    }
}

impl AsFd for XfrmEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for XfrmEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl fmt::Debug for XfrmEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("XfrmEvents")
    }
}
