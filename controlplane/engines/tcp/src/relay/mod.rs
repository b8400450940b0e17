//! The relay between a terminal and the network: two connections in place of one ([`split`]), or one
//! connection helped along ([`snoop`]).
//!
//! Both take whole IP packets in the clear, as they come out of an SA, and give whole IP packets back.
//! Neither knows of IPsec; the caller opens and seals.

mod flow;
pub mod rules;
pub mod snoop;
pub mod split;

use core::net::IpAddr;

use crate::codec::{Codec, Reader, RestoreError, Writer, choice};
use crate::packet::TcpPacket;

/// One of the two sides of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Towards the terminal, over the radio.
    Terminal,
    /// Towards the peer.
    Network,
}
choice!(Side { Terminal = 0, Network = 1 });

impl Side {
    /// Both sides.
    pub const BOTH: [Self; 2] = [Self::Terminal, Self::Network];

    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Terminal => Self::Network,
            Self::Network => Self::Terminal,
        }
    }
}

/// A connection, seen from the relay: the terminal's address and port, and the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The terminal.
    pub terminal: (IpAddr, u16),
    /// The peer.
    pub network: (IpAddr, u16),
}

impl FlowKey {
    /// The connection of a packet that came from `from`.
    pub const fn of(from: Side, packet: &TcpPacket<'_>) -> Self {
        let header = &packet.segment.header;
        let source = (packet.source, header.source_port);
        let destination = (packet.destination, header.destination_port);
        match from {
            Side::Terminal => Self {
                terminal: source,
                network: destination,
            },
            Side::Network => Self {
                terminal: destination,
                network: source,
            },
        }
    }

    /// The connection of a TCP packet from `from`, read without checking anything: for a look into a table.
    pub fn peek(from: Side, packet: &[u8]) -> Option<Self> {
        let (header_len, source, destination) = match packet.first().map(|first| first >> 4) {
            Some(4) => {
                let header = packet.first_chunk::<20>()?;
                let address = |at: usize| header.get(at..).and_then(|rest| rest.first_chunk::<4>());
                (
                    usize::from(header[0] & 0x0f) * 4,
                    IpAddr::from(*address(12)?),
                    IpAddr::from(*address(16)?),
                )
            }
            Some(6) => {
                let header = packet.first_chunk::<40>()?;
                let address = |at: usize| header.get(at..).and_then(|rest| rest.first_chunk::<16>());
                (40, IpAddr::from(*address(8)?), IpAddr::from(*address(24)?))
            }
            _ => return None,
        };
        let [s0, s1, d0, d1] = *packet.get(header_len..)?.first_chunk::<4>()?;
        let source = (source, u16::from_be_bytes([s0, s1]));
        let destination = (destination, u16::from_be_bytes([d0, d1]));
        Some(match from {
            Side::Terminal => Self {
                terminal: source,
                network: destination,
            },
            Side::Network => Self {
                terminal: destination,
                network: source,
            },
        })
    }

    /// Address and port of the host on `side`.
    pub const fn host(&self, side: Side) -> (IpAddr, u16) {
        match side {
            Side::Terminal => self.terminal,
            Side::Network => self.network,
        }
    }
}

impl Codec for IpAddr {
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::V4(address) => {
                4_u8.encode(writer);
                address.to_bits().encode(writer);
            }
            Self::V6(address) => {
                6_u8.encode(writer);
                address.to_bits().encode(writer);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        match u8::decode(reader)? {
            4 => u32::decode(reader).map(|bits| Self::V4(bits.into())),
            6 => u128::decode(reader).map(|bits| Self::V6(bits.into())),
            _ => Err(RestoreError::Invalid("address family")),
        }
    }
}

crate::codec::record!(FlowKey { terminal, network });

/// What the caller does with a packet it showed to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The relay took it: nothing to forward.
    Consumed,
    /// Not the relay's: forward it untouched.
    Pass,
    /// Forward it, changed by [`snoop::apply`].
    PassChanged(snoop::Change),
    /// Broken: drop it.
    Drop,
}

/// A packet the relay wrote into the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where it goes.
    pub to: Side,
    /// Its length, bytes.
    pub len: usize,
    /// Its connection.
    pub flow: FlowKey,
    /// The path the connection belongs to.
    pub tag: u64,
}
