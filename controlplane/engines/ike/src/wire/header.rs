//! The IKE header (RFC 7296 §3.1).

use alloc::vec::Vec;
use core::fmt;

use towpath_base::ids::{IkeSpi, MessageId};

use super::{ParseError, Reader};

/// Bytes of the IKE header.
pub const HEADER_LEN: usize = 28;

/// Exchange type (RFC 7296 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeType(pub u8);

impl ExchangeType {
    /// IKE_SA_INIT.
    pub const IKE_SA_INIT: Self = Self(34);
    /// IKE_AUTH.
    pub const IKE_AUTH: Self = Self(35);
    /// CREATE_CHILD_SA.
    pub const CREATE_CHILD_SA: Self = Self(36);
    /// INFORMATIONAL.
    pub const INFORMATIONAL: Self = Self(37);
    /// IKE_INTERMEDIATE (RFC 9242).
    pub const IKE_INTERMEDIATE: Self = Self(43);
    /// IKE_FOLLOWUP_KE (RFC 9370).
    pub const IKE_FOLLOWUP_KE: Self = Self(44);
}

impl fmt::Display for ExchangeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::IKE_SA_INIT => "IKE_SA_INIT",
            Self::IKE_AUTH => "IKE_AUTH",
            Self::CREATE_CHILD_SA => "CREATE_CHILD_SA",
            Self::INFORMATIONAL => "INFORMATIONAL",
            Self::IKE_INTERMEDIATE => "IKE_INTERMEDIATE",
            Self::IKE_FOLLOWUP_KE => "IKE_FOLLOWUP_KE",
            Self(other) => return write!(f, "EXCHANGE_{other}"),
        })
    }
}

const FLAG_INITIATOR: u8 = 0x08;
const FLAG_RESPONSE: u8 = 0x20;
const VERSION: u8 = 0x20;

/// The first 28 bytes of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// SPI of the IKE SA's initiator.
    pub spi_i: IkeSpi,
    /// SPI of its responder, zero in the first request.
    pub spi_r: IkeSpi,
    /// Type of the first payload.
    pub next_payload: u8,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// Set by the original initiator of the IKE SA.
    pub from_initiator: bool,
    /// Set in responses.
    pub response: bool,
    /// Message ID.
    pub message_id: MessageId,
}

impl Header {
    /// Reads the header of `message`, which must be exactly as long as its header says.
    pub fn parse(message: &[u8]) -> Result<(Self, &[u8]), ParseError> {
        let mut reader = Reader::new(message);
        let spi_i = IkeSpi(reader.u64()?);
        let spi_r = IkeSpi(reader.u64()?);
        let next_payload = reader.u8()?;
        let version = reader.u8()?;
        let exchange = ExchangeType(reader.u8()?);
        let flags = reader.u8()?;
        let message_id = MessageId(reader.u32()?);
        let length = reader.u32()?;
        if version >> 4 != VERSION >> 4 {
            return Err(ParseError::Version(version >> 4));
        }
        if usize::try_from(length) != Ok(message.len()) {
            return Err(ParseError::BadLength);
        }
        let header = Self {
            spi_i,
            spi_r,
            next_payload,
            exchange,
            from_initiator: flags & FLAG_INITIATOR != 0,
            response: flags & FLAG_RESPONSE != 0,
            message_id,
        };
        Ok((header, reader.rest()))
    }

    /// Appends the header; `length` is that of the whole message.
    pub fn encode(&self, length: usize, out: &mut Vec<u8>) {
        let flags = if self.from_initiator { FLAG_INITIATOR } else { 0 }
            | if self.response { FLAG_RESPONSE } else { 0 };
        out.extend_from_slice(&self.spi_i.0.to_be_bytes());
        out.extend_from_slice(&self.spi_r.0.to_be_bytes());
        out.extend_from_slice(&[self.next_payload, VERSION, self.exchange.0, flags]);
        out.extend_from_slice(&self.message_id.0.to_be_bytes());
        out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
}
