//! IKEv2 messages on the wire (RFC 7296 §3): parsed without trust, built from the same types.
//!
//! Everything is big-endian. A parser takes a slice and says [`ParseError`]; it never panics, never reads a
//! length it has not checked, and bounds what it allocates by what it was given.

mod header;
mod id;
mod log;
pub mod notify;
mod payload;
mod sa;
mod small;
mod ts;

pub use header::{ExchangeType, HEADER_LEN, Header};
pub use id::Id;
pub use log::summary;
pub use notify::{Notify, NotifyType};
pub use payload::{
    GENERIC_HEADER_LEN, MAX_PAYLOADS, Payload, PayloadType, encode_message, encode_payloads, parse_payloads,
};
pub use sa::{Proposal, Protocol, Transform, TransformType};
pub use small::{Configuration, Delete, Eap};
pub use ts::{MAX_WIRE_SELECTORS, decode_selectors, encode_selectors};

use core::fmt;

/// Why bytes are not an IKE message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseError {
    /// Fewer bytes than a length or a fixed part says.
    Truncated,
    /// A length or count that contradicts its surroundings.
    BadLength,
    /// Not major version 2 (RFC 7296 §2.5).
    Version(u8),
    /// A payload of unknown type with the critical bit (RFC 7296 §2.5).
    UnsupportedCritical(u8),
    /// More payloads, proposals, transforms or selectors than any honest message has.
    TooMany,
    /// A value that its field cannot have.
    BadValue,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("truncated"),
            Self::BadLength => f.write_str("length or count contradicts its surroundings"),
            Self::Version(version) => write!(f, "major version {version}"),
            Self::UnsupportedCritical(kind) => write!(f, "unknown critical payload {kind}"),
            Self::TooMany => f.write_str("too many items"),
            Self::BadValue => f.write_str("impossible value"),
        }
    }
}

impl core::error::Error for ParseError {}

/// Takes bytes off the front of a slice, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], ParseError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(ParseError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(ParseError::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ParseError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ParseError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_be_bytes)
    }
}

/// Writes the 16-bit length of `out[start..]` at `start + at`. Longer than 65535 saturates: the message is then
/// refused by whoever reads it, and [`encode_message`] has a 32-bit length of its own.
pub(crate) fn patch_len(out: &mut [u8], start: usize, at: usize) {
    let len = u16::try_from(out.len().saturating_sub(start)).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(start + at..start + at + 2) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
