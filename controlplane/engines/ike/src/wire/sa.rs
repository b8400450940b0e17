//! Security Association payload: proposals and transforms (RFC 7296 §3.3).

use alloc::vec::Vec;

use super::{ParseError, Reader, patch_len};

/// Most proposals a message of ours looks at.
const MAX_PROPOSALS: usize = 32;
/// Most transforms of one proposal; the count field allows 255.
const MAX_TRANSFORMS: usize = 128;
/// Attribute type Key Length, in its short (TV) format.
const KEY_LENGTH: u16 = 0x8000 | 14;

/// Security protocol identifiers (RFC 7296 §3.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// IKE itself.
    pub const IKE: Self = Self(1);
    /// AH.
    pub const AH: Self = Self(2);
    /// ESP.
    pub const ESP: Self = Self(3);
}

/// Transform types (RFC 7296 §3.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransformType(pub u8);

impl TransformType {
    /// Encryption algorithm.
    pub const ENCR: Self = Self(1);
    /// Pseudorandom function.
    pub const PRF: Self = Self(2);
    /// Integrity algorithm.
    pub const INTEG: Self = Self(3);
    /// Key exchange method.
    pub const KE: Self = Self(4);
    /// Extended sequence numbers.
    pub const ESN: Self = Self(5);
    /// First additional key exchange (RFC 9370).
    pub const ADDKE1: Self = Self(6);
    /// Additional key exchanges one to seven.
    pub const ADDKE: [Self; 7] = [Self(6), Self(7), Self(8), Self(9), Self(10), Self(11), Self(12)];
}

/// One algorithm offered or chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transform {
    /// Transform type.
    pub kind: TransformType,
    /// Transform ID, a number space per type.
    pub id: u16,
    /// Key Length attribute, bits.
    pub key_bits: Option<u16>,
    /// It has an attribute we do not know: it must not be chosen (RFC 7296 §3.3.6).
    pub unknown_attribute: bool,
}

impl Transform {
    /// A transform without attributes.
    pub const fn new(kind: TransformType, id: u16) -> Self {
        Self {
            kind,
            id,
            key_bits: None,
            unknown_attribute: false,
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let [kind, _reserved] = reader.array()?;
        let mut transform = Self::new(TransformType(kind), reader.u16()?);
        while !reader.is_empty() {
            let attribute = reader.u16()?;
            let value = reader.u16()?;
            match attribute {
                KEY_LENGTH if transform.key_bits.is_none() => transform.key_bits = Some(value),
                _ => transform.unknown_attribute = true,
            }
            if attribute & 0x8000 == 0 {
                reader.take(value.into())?;
            }
        }
        Ok(transform)
    }

    fn encode(&self, last: bool, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[if last { 0 } else { 3 }, 0, 0, 0, self.kind.0, 0]);
        out.extend_from_slice(&self.id.to_be_bytes());
        if let Some(bits) = self.key_bits {
            out.extend_from_slice(&KEY_LENGTH.to_be_bytes());
            out.extend_from_slice(&bits.to_be_bytes());
        }
        patch_len(out, start, 2);
    }
}

/// One proposal: any one transform of each type it lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Proposal Num, from 1.
    pub number: u8,
    /// Protocol of the SA.
    pub protocol: Protocol,
    /// SPI of the SA at the sender; empty for a first IKE SA.
    pub spi: Vec<u8>,
    /// The transforms.
    pub transforms: Vec<Transform>,
}

impl Proposal {
    /// Transforms of one type, in the order they were listed.
    pub fn of(&self, kind: TransformType) -> impl Iterator<Item = &Transform> {
        self.transforms
            .iter()
            .filter(move |transform| transform.kind == kind)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let [number, protocol, spi_len, count] = reader.array()?;
        let spi = reader.take(spi_len.into())?.to_vec();
        let mut transforms = Vec::new();
        let mut more = count > 0;
        while more {
            let (last, bytes) = substructure(&mut reader, 3)?;
            if transforms.len() == MAX_TRANSFORMS {
                return Err(ParseError::TooMany);
            }
            transforms.push(Transform::parse(bytes)?);
            more = !last;
        }
        if !reader.is_empty() || transforms.len() != usize::from(count) {
            return Err(ParseError::BadLength);
        }
        Ok(Self {
            number,
            protocol: Protocol(protocol),
            spi,
            transforms,
        })
    }

    fn encode(&self, last: bool, out: &mut Vec<u8>) {
        let start = out.len();
        let spi = self.spi.get(..self.spi.len().min(255)).unwrap_or(&[]);
        let count = self.transforms.len().min(255);
        out.extend_from_slice(&[if last { 0 } else { 2 }, 0, 0, 0]);
        out.extend_from_slice(&[self.number, self.protocol.0, spi.len() as u8, count as u8]);
        out.extend_from_slice(spi);
        for (index, transform) in self.transforms.iter().take(count).enumerate() {
            transform.encode(index + 1 == count, out);
        }
        patch_len(out, start, 2);
    }
}

/// Reads `Last Substruc | RESERVED | Length | body`; says whether it was the last. `more` marks another one.
fn substructure<'a>(reader: &mut Reader<'a>, more: u8) -> Result<(bool, &'a [u8]), ParseError> {
    let [marker, _reserved] = reader.array()?;
    let length = usize::from(reader.u16()?);
    if marker != 0 && marker != more {
        return Err(ParseError::BadValue);
    }
    let body = reader.take(length.checked_sub(4).ok_or(ParseError::BadLength)?)?;
    Ok((marker == 0, body))
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<Proposal>, ParseError> {
    let mut reader = Reader::new(body);
    let mut proposals = Vec::new();
    loop {
        let (last, bytes) = substructure(&mut reader, 2)?;
        if proposals.len() == MAX_PROPOSALS {
            return Err(ParseError::TooMany);
        }
        proposals.push(Proposal::parse(bytes)?);
        if last {
            break;
        }
    }
    if reader.is_empty() {
        Ok(proposals)
    } else {
        Err(ParseError::BadLength)
    }
}

pub(super) fn encode(proposals: &[Proposal], out: &mut Vec<u8>) {
    for (index, proposal) in proposals.iter().enumerate() {
        proposal.encode(index + 1 == proposals.len(), out);
    }
}
