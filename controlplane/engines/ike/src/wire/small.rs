//! Payloads of a few fields: Delete, Configuration, EAP.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use super::{ParseError, Protocol, Reader, patch_len};

/// Most attributes of one Configuration payload.
const MAX_ATTRIBUTES: usize = 64;

/// SAs their sender has removed from its database (RFC 7296 §3.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// Protocol of the SAs.
    pub protocol: Protocol,
    /// SPIs as the sender expects them in inbound packets; empty for the IKE SA itself.
    pub spis: Vec<u32>,
}

impl Delete {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(body);
        let [protocol, spi_len] = reader.array()?;
        let count = usize::from(reader.u16()?);
        let wanted = if protocol == Protocol::IKE.0 { 0 } else { 4 };
        // RFC 7296 §3.11: the SPI size of IKE is zero, of AH and ESP four.
        if usize::from(spi_len) != wanted || reader.rest().len() != count.saturating_mul(wanted) {
            return Err(ParseError::BadLength);
        }
        let mut spis = Vec::with_capacity(reader.rest().len() / 4);
        while !reader.is_empty() {
            spis.push(reader.u32()?);
        }
        Ok(Self {
            protocol: Protocol(protocol),
            spis,
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let spi_len = if self.protocol == Protocol::IKE { 0 } else { 4 };
        let count = u16::try_from(self.spis.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&[self.protocol.0, spi_len]);
        out.extend_from_slice(&count.to_be_bytes());
        for spi in self.spis.iter().take(count.into()) {
            out.extend_from_slice(&spi.to_be_bytes());
        }
    }
}

/// Configuration payload (RFC 7296 §3.15).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration<'a> {
    /// CFG Type.
    pub kind: u8,
    /// Attribute type and value.
    pub attributes: Vec<(u16, Cow<'a, [u8]>)>,
}

impl<'a> Configuration<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(body);
        let [kind, _, _, _] = reader.array()?;
        let mut attributes = Vec::new();
        while !reader.is_empty() {
            let attribute = reader.u16()? & 0x7fff;
            let len = reader.u16()?;
            if attributes.len() == MAX_ATTRIBUTES {
                return Err(ParseError::TooMany);
            }
            attributes.push((attribute, Cow::Borrowed(reader.take(len.into())?)));
        }
        Ok(Self { kind, attributes })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind, 0, 0, 0]);
        for (attribute, value) in &self.attributes {
            let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&attribute.to_be_bytes());
            out.extend_from_slice(&len.to_be_bytes());
            out.extend(value.iter().take(len.into()));
        }
    }
}

/// An EAP message (RFC 7296 §3.16, RFC 3748 §4). We never start EAP; it is parsed to be refused by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eap<'a> {
    /// Code: request 1, response 2, success 3, failure 4.
    pub code: u8,
    /// Identifier.
    pub identifier: u8,
    /// Type and its data; empty for success and failure.
    pub data: Cow<'a, [u8]>,
}

impl<'a> Eap<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(body);
        let [code, identifier] = reader.array()?;
        let length = usize::from(reader.u16()?);
        if length != body.len() || !(1..=4).contains(&code) {
            return Err(ParseError::BadLength);
        }
        Ok(Self {
            code,
            identifier,
            data: Cow::Borrowed(reader.rest()),
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.code, self.identifier, 0, 0]);
        out.extend_from_slice(&self.data);
        patch_len(out, start, 2);
    }
}
