//! What the messages say.

use core::net::IpAddr;

use towpath_base::sa::{ChildSa, Class};
use towpath_base::{DropReason, Spi, SubscriberHandle};

use crate::codec::{Reader, Writer};
use crate::sa_codec;
use crate::sealed::TAG_LEN;

/// Version in the first byte of every datagram.
pub const VERSION: u8 = 1;
/// Length of the clear header: version, type, reserved (2), subscriber handle (8), counter (8).
pub const HEADER_LEN: usize = 20;
/// What a key transfer holds before its SA: identifier (8), operation, class, flags (4), request (4), replaced
/// SPI (4).
pub(crate) const TRANSFER_HEAD_LEN: usize = 20;

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value on the wire.
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The value for a code on the wire.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

codes! {
    /// Second byte of every datagram.
    MessageType {
        /// Terminal → registry, registration keys.
        Register = 1,
        /// Registry → terminal, registration keys.
        RegisterAck = 2,
        /// Terminal → keyserver.
        ProxyRequest = 3,
        /// Keyserver → terminal.
        ProxyReply = 4,
        /// Keyserver → terminal.
        KeyTransfer = 5,
        /// Terminal → keyserver.
        TransferAck = 6,
        /// Network → terminal, **not authenticated**: no session for this terminal, register again.
        ReRegister = 7,
        /// Terminal → registry, registration keys: the terminal leaves.
        Deregister = 8,
        /// Terminal → keyserver, empty: a session is in use, the terminal is there.
        Hello = 9,
    }
}

/// The clear header of a datagram; additional authenticated data of all sealed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub message_type: MessageType,
    /// Whose keys.
    pub subscriber: SubscriberHandle,
    /// Never the same twice under one key. In a [`MessageType::ReRegister`]: that of the message it answers.
    pub counter: u64,
}

impl Header {
    pub(crate) const fn encode(&self) -> [u8; HEADER_LEN] {
        let [a, b, c, d, e, f, g, h] = self.subscriber.0.to_be_bytes();
        let [i, j, k, l, m, n, o, p] = self.counter.to_be_bytes();
        let kind = self.message_type.code();
        [
            VERSION, kind, 0, 0, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p,
        ]
    }
}

/// Reads the clear header of a datagram. Nothing of it is authenticated yet.
///
/// # Errors
/// [`DropReason::KeyxMalformed`]: too short or too long for its type, unknown version or type, reserved bits set.
pub fn peek(datagram: &[u8]) -> Result<Header, DropReason> {
    let malformed = DropReason::KeyxMalformed;
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(malformed)?;
    let [VERSION, kind, 0, 0, a, b, c, d, e, f, g, h, counter @ ..] = *header else {
        return Err(malformed);
    };
    let message_type = MessageType::from_code(kind).ok_or(malformed)?;
    let fits = match message_type {
        MessageType::ReRegister => rest.is_empty(),
        _ => rest.len() >= TAG_LEN && datagram.len() <= crate::MAX_DATAGRAM,
    };
    if !fits {
        return Err(malformed);
    }
    Ok(Header {
        message_type,
        subscriber: SubscriberHandle(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        counter: u64::from_be_bytes(counter),
    })
}

/// The hint that there is no session for whoever sent the datagram with this header.
pub fn re_register(unknown: &Header) -> [u8; HEADER_LEN] {
    Header {
        message_type: MessageType::ReRegister,
        ..*unknown
    }
    .encode()
}

/// A message under session keys, terminal → network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromTerminal {
    /// Wants an SA.
    ProxyRequest(ProxyRequest),
    /// Took over, or could not take over, a key transfer.
    TransferAck(TransferAck),
    /// Is there.
    Hello,
}

/// A message under session keys, network → terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "no allocator, and short-lived")]
pub enum ToTerminal {
    /// What became of a request.
    ProxyReply(ProxyReply),
    /// An SA begins or ends.
    KeyTransfer(KeyTransfer),
}

/// The terminal wants an SA with a peer (figure 12A).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyRequest {
    /// Chosen by the terminal, the same in each retransmission.
    pub request_id: u32,
    /// The terminal's address.
    pub terminal: IpAddr,
    /// The peer's address.
    pub peer: IpAddr,
    /// Protocol of the packet that asked for protection; 0 if unknown.
    pub protocol: u8,
    /// Its source port; 0 if it has none.
    pub terminal_port: u16,
    /// Its destination port; 0 if it has none.
    pub peer_port: u16,
    /// The SA (by [`SaName::spi_in`]) that is about to expire and works still. `None`: the terminal has none.
    pub replaces: Option<Spi>,
    /// Sensitivity level of the packet (T21). 0 is everybody's; an SA of another level is for the connection of the packet
    /// alone.
    pub level: u8,
}

/// What became of a [`ProxyRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyReply {
    /// The request.
    pub request_id: u32,
    /// The answer.
    pub outcome: Outcome,
}

/// The answer to a [`ProxyRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An exchange is on its way; a key transfer will follow.
    Accepted,
    /// No SA.
    Refused {
        /// Why.
        reason: RefuseReason,
        /// Seconds to wait before the next request for this peer; 0 leaves it to the terminal.
        retry_after: u16,
    },
}

codes! {
    /// Why there will be no SA.
    RefuseReason {
        /// The subscriber may not talk to this peer, or no policy says how.
        NoPolicy = 1,
        /// The key exchange with the peer failed.
        ExchangeFailed = 2,
        /// Not now.
        TryLater = 3,
    }
}

/// Names an SA pair, seen from the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SaName {
    /// The terminal's address.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// SPI of packets the terminal receives.
    pub spi_in: Spi,
    /// SPI of packets the terminal sends.
    pub spi_out: Spi,
}

impl SaName {
    /// The name of `sa`.
    pub const fn of(sa: &ChildSa) -> Self {
        Self {
            local: sa.local,
            remote: sa.remote,
            spi_in: sa.spi_in,
            spi_out: sa.spi_out,
        }
    }
}

/// An SA begins or ends (figures 14A, 14B).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTransfer {
    /// The same in each retransmission, never used twice in a session.
    pub transfer_id: u64,
    /// The request it answers, if it answers one.
    pub request_id: Option<u32>,
    /// What to do.
    pub operation: Operation,
}

/// What a [`KeyTransfer`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "no allocator, and short-lived")]
pub enum Operation {
    /// Take over this SA.
    Install {
        /// What the gateway may do with it.
        class: Class,
        /// Sensitivity level of the packets it is for.
        level: u8,
        /// The SA it replaces (by [`SaName::spi_in`]): a rekeying.
        replaces: Option<Spi>,
        /// Receive on it at once, send on the one it replaces until a packet arrives on this one or that one is
        /// deleted: the peer does not have it yet.
        standby: bool,
        /// The SA with the keys of the terminal's segment.
        sa: ChildSa,
    },
    /// Forget this SA.
    Delete(SaName),
}

impl Operation {
    /// The SA it is about.
    pub const fn name(&self) -> SaName {
        match self {
            Self::Install { sa, .. } => SaName::of(sa),
            Self::Delete(name) => *name,
        }
    }
}

/// The terminal's answer to a [`KeyTransfer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferAck {
    /// The transfer.
    pub transfer_id: u64,
    /// What became of it.
    pub result: TransferResult,
}

codes! {
    /// What became of a [`KeyTransfer`] at the terminal.
    TransferResult {
        /// Done; for a deletion also when there was no such SA.
        Done = 0,
        /// No room for another SA.
        NoRoom = 1,
        /// The terminal lacks the suite, or the address is not its own.
        Unusable = 2,
    }
}

impl FromTerminal {
    pub(crate) const fn message_type(&self) -> MessageType {
        match self {
            Self::ProxyRequest(_) => MessageType::ProxyRequest,
            Self::TransferAck(_) => MessageType::TransferAck,
            Self::Hello => MessageType::Hello,
        }
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) -> Option<()> {
        match self {
            Self::ProxyRequest(request) => {
                w.u32(request.request_id)?;
                w.u32(request.replaces.unwrap_or_default().0)?;
                w.u8(request.protocol)?;
                w.u16(request.terminal_port)?;
                w.u16(request.peer_port)?;
                w.address(request.terminal)?;
                w.address(request.peer)?;
                match request.level {
                    0 => Some(()),
                    level => w.u8(level),
                }
            }
            Self::TransferAck(ack) => {
                w.u64(ack.transfer_id)?;
                w.u8(ack.result.code())
            }
            Self::Hello => Some(()),
        }
    }

    pub(crate) fn decode(message_type: MessageType, body: &[u8]) -> Option<Self> {
        let mut r = Reader::new(body);
        let message = match message_type {
            MessageType::ProxyRequest => Self::ProxyRequest(decode_request(&mut r)?),
            MessageType::TransferAck => Self::TransferAck(TransferAck {
                transfer_id: r.u64()?,
                result: TransferResult::from_code(r.u8()?)?,
            }),
            MessageType::Hello => Self::Hello,
            _ => return None,
        };
        r.end()?;
        Some(message)
    }
}

fn decode_request(r: &mut Reader<'_>) -> Option<ProxyRequest> {
    let (request_id, replaces) = (r.u32()?, optional_spi(r.u32()?));
    let (protocol, terminal_port, peer_port) = (r.u8()?, r.u16()?, r.u16()?);
    let (terminal, peer) = (r.address()?, r.address()?);
    let level = match r.end() {
        Some(()) => 0,
        // One way to say it: level 0 is not written.
        None => r.u8().filter(|level| *level != 0)?,
    };
    (terminal.is_ipv4() == peer.is_ipv4()).then_some(ProxyRequest {
        request_id,
        terminal,
        peer,
        protocol,
        terminal_port,
        peer_port,
        replaces,
        level,
    })
}

const fn optional_spi(value: u32) -> Option<Spi> {
    if value == 0 { None } else { Some(Spi(value)) }
}

const OUTCOME_ACCEPTED: u8 = 0;
const OPERATION_INSTALL: u8 = 1;
const OPERATION_DELETE: u8 = 2;

impl ToTerminal {
    pub(crate) const fn message_type(&self) -> MessageType {
        match self {
            Self::ProxyReply(_) => MessageType::ProxyReply,
            Self::KeyTransfer(_) => MessageType::KeyTransfer,
        }
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) -> Option<()> {
        match self {
            Self::ProxyReply(reply) => {
                w.u32(reply.request_id)?;
                let (code, retry_after) = match reply.outcome {
                    Outcome::Accepted => (OUTCOME_ACCEPTED, 0),
                    Outcome::Refused { reason, retry_after } => (reason.code(), retry_after),
                };
                w.u8(code)?;
                w.u16(retry_after)
            }
            Self::KeyTransfer(transfer) => encode_transfer(w, transfer),
        }
    }

    pub(crate) fn decode(message_type: MessageType, body: &[u8]) -> Option<Self> {
        let mut r = Reader::new(body);
        let message = match message_type {
            MessageType::ProxyReply => {
                let (request_id, code, retry_after) = (r.u32()?, r.u8()?, r.u16()?);
                let outcome = match code {
                    OUTCOME_ACCEPTED => Outcome::Accepted,
                    code => Outcome::Refused {
                        reason: RefuseReason::from_code(code)?,
                        retry_after,
                    },
                };
                Self::ProxyReply(ProxyReply { request_id, outcome })
            }
            MessageType::KeyTransfer => Self::KeyTransfer(decode_transfer(&mut r)?),
            _ => return None,
        };
        r.end()?;
        Some(message)
    }
}

fn encode_transfer(w: &mut Writer<'_>, transfer: &KeyTransfer) -> Option<()> {
    w.u64(transfer.transfer_id)?;
    let (operation, class, replaces, standby) = match &transfer.operation {
        Operation::Install {
            class,
            replaces,
            standby,
            ..
        } => (OPERATION_INSTALL, class.code(), *replaces, *standby),
        Operation::Delete(_) => (OPERATION_DELETE, 0, None, false),
    };
    w.u8(operation)?;
    w.u8(class)?;
    w.u8(u8::from(transfer.request_id.is_some()))?;
    w.u8(u8::from(standby))?;
    w.u32(transfer.request_id.unwrap_or_default())?;
    w.u32(replaces.unwrap_or_default().0)?;
    match &transfer.operation {
        Operation::Install { sa, level, .. } => sa_codec::write(w, sa, *level),
        Operation::Delete(name) => {
            w.u32(name.spi_in.0)?;
            w.u32(name.spi_out.0)?;
            w.address(name.local)?;
            w.address(name.remote)
        }
    }
}

// A description of an SA is large, and has one caller: not copied from frame to frame.
#[inline(always)]
fn decode_transfer(r: &mut Reader<'_>) -> Option<KeyTransfer> {
    let transfer_id = r.u64()?;
    let [operation, class, answers, standby] = r.array()?;
    let request_id = r.u32()?;
    let replaces = optional_spi(r.u32()?);
    if answers > 1 || standby > 1 || (operation == OPERATION_DELETE && standby != 0) {
        return None;
    }
    let mut level = 0;
    let operation = match operation {
        OPERATION_INSTALL => Operation::Install {
            class: Class::from_code(class)?,
            replaces,
            standby: standby == 1,
            sa: sa_codec::read(r, &mut level)?,
            level,
        },
        OPERATION_DELETE => {
            let (spi_in, spi_out) = (Spi(r.u32()?), Spi(r.u32()?));
            Operation::Delete(SaName {
                spi_in,
                spi_out,
                local: r.address()?,
                remote: r.address()?,
            })
        }
        _ => return None,
    };
    Some(KeyTransfer {
        transfer_id,
        request_id: (answers == 1).then_some(request_id),
        operation,
    })
}
