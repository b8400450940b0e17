//! Payloads and their chain (RFC 7296 §3.2).

use alloc::borrow::Cow;
use alloc::vec::Vec;

use towpath_base::selector::TrafficSelector;

use super::{
    Configuration, Delete, Eap, HEADER_LEN, Header, Id, Notify, NotifyType, ParseError, Proposal, Reader,
    patch_len, sa, ts,
};

/// Bytes of the generic payload header.
pub const GENERIC_HEADER_LEN: usize = 4;

/// Most payloads of one message.
pub const MAX_PAYLOADS: usize = 64;

const CRITICAL: u8 = 0x80;

/// Payload types (RFC 7296 §3.2, RFC 7383 §2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PayloadType(pub u8);

#[expect(missing_docs, reason = "the names are the RFC's")]
impl PayloadType {
    pub const NONE: Self = Self(0);
    pub const SA: Self = Self(33);
    pub const KE: Self = Self(34);
    pub const ID_I: Self = Self(35);
    pub const ID_R: Self = Self(36);
    pub const CERT: Self = Self(37);
    pub const CERTREQ: Self = Self(38);
    pub const AUTH: Self = Self(39);
    pub const NONCE: Self = Self(40);
    pub const NOTIFY: Self = Self(41);
    pub const DELETE: Self = Self(42);
    pub const VENDOR: Self = Self(43);
    pub const TS_I: Self = Self(44);
    pub const TS_R: Self = Self(45);
    pub const SK: Self = Self(46);
    pub const CP: Self = Self(47);
    pub const EAP: Self = Self(48);
    pub const SKF: Self = Self(53);
}

/// One payload, borrowed from the message it was parsed from, or built to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Security Association (§3.3).
    Sa(Vec<Proposal>),
    /// Key Exchange (§3.4).
    Ke {
        /// Key exchange method.
        group: u16,
        /// Public value.
        data: Cow<'a, [u8]>,
    },
    /// Identification of the initiator (§3.5).
    IdI(Id<'a>),
    /// Identification of the responder (§3.5).
    IdR(Id<'a>),
    /// Certificate (§3.6).
    Cert {
        /// Cert Encoding.
        encoding: u8,
        /// Certificate Data.
        data: Cow<'a, [u8]>,
    },
    /// Certificate Request (§3.7).
    CertReq {
        /// Cert Encoding.
        encoding: u8,
        /// Certification Authority.
        data: Cow<'a, [u8]>,
    },
    /// Authentication (§3.8).
    Auth {
        /// Auth Method; 2 is the shared key.
        method: u8,
        /// Authentication Data.
        data: Cow<'a, [u8]>,
    },
    /// Nonce (§3.9), 16 to 256 bytes.
    Nonce(Cow<'a, [u8]>),
    /// Notify (§3.10).
    Notify(Notify<'a>),
    /// Delete (§3.11).
    Delete(Delete),
    /// Vendor ID (§3.12).
    Vendor(Cow<'a, [u8]>),
    /// Traffic Selectors of the initiator (§3.13).
    TsI(Vec<TrafficSelector>),
    /// Traffic Selectors of the responder (§3.13).
    TsR(Vec<TrafficSelector>),
    /// Configuration (§3.15).
    Cp(Configuration<'a>),
    /// Extensible Authentication Protocol (§3.16).
    Eap(Eap<'a>),
    /// A type we do not know, without critical bit: skipped.
    Unknown {
        /// Payload type.
        kind: u8,
        /// Body.
        data: Cow<'a, [u8]>,
    },
}

impl<'a> Payload<'a> {
    /// Shorthand for a notification about no SA in particular.
    pub fn notify(kind: NotifyType, data: impl Into<Cow<'a, [u8]>>) -> Self {
        Self::Notify(Notify::new(kind, data))
    }

    /// A notification about no SA in particular that says no more than its kind.
    pub fn bare(kind: NotifyType) -> Self {
        Self::notify(kind, &[][..])
    }

    /// Its number in the chain.
    pub const fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::SA,
            Self::Ke { .. } => PayloadType::KE,
            Self::IdI(_) => PayloadType::ID_I,
            Self::IdR(_) => PayloadType::ID_R,
            Self::Cert { .. } => PayloadType::CERT,
            Self::CertReq { .. } => PayloadType::CERTREQ,
            Self::Auth { .. } => PayloadType::AUTH,
            Self::Nonce(_) => PayloadType::NONCE,
            Self::Notify(_) => PayloadType::NOTIFY,
            Self::Delete(_) => PayloadType::DELETE,
            Self::Vendor(_) => PayloadType::VENDOR,
            Self::TsI(_) => PayloadType::TS_I,
            Self::TsR(_) => PayloadType::TS_R,
            Self::Cp(_) => PayloadType::CP,
            Self::Eap(_) => PayloadType::EAP,
            Self::Unknown { kind, .. } => PayloadType(*kind),
        }
    }

    fn parse(kind: u8, critical: bool, body: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(body);
        Ok(match PayloadType(kind) {
            PayloadType::SA => Self::Sa(sa::parse(body)?),
            PayloadType::KE => {
                let group = reader.u16()?;
                reader.u16()?;
                Self::Ke {
                    group,
                    data: Cow::Borrowed(reader.rest()),
                }
            }
            PayloadType::ID_I => Self::IdI(Id::parse(body)?),
            PayloadType::ID_R => Self::IdR(Id::parse(body)?),
            PayloadType::CERT => Self::Cert {
                encoding: reader.u8()?,
                data: Cow::Borrowed(reader.rest()),
            },
            PayloadType::CERTREQ => Self::CertReq {
                encoding: reader.u8()?,
                data: Cow::Borrowed(reader.rest()),
            },
            PayloadType::AUTH => {
                let [method, _, _, _] = reader.array()?;
                Self::Auth {
                    method,
                    data: Cow::Borrowed(reader.rest()),
                }
            }
            PayloadType::NONCE if (16..=256).contains(&body.len()) => Self::Nonce(Cow::Borrowed(body)),
            PayloadType::NONCE => return Err(ParseError::BadLength),
            PayloadType::NOTIFY => Self::Notify(Notify::parse(body)?),
            PayloadType::DELETE => Self::Delete(Delete::parse(body)?),
            PayloadType::VENDOR => Self::Vendor(Cow::Borrowed(body)),
            PayloadType::TS_I => Self::TsI(ts::decode_selectors(body)?),
            PayloadType::TS_R => Self::TsR(ts::decode_selectors(body)?),
            PayloadType::CP => Self::Cp(Configuration::parse(body)?),
            PayloadType::EAP => Self::Eap(Eap::parse(body)?),
            // An Encrypted payload is taken off before the chain is read, and never nested.
            PayloadType::SK | PayloadType::SKF => return Err(ParseError::BadValue),
            PayloadType(kind) if critical => return Err(ParseError::UnsupportedCritical(kind)),
            PayloadType(kind) => Self::Unknown {
                kind,
                data: Cow::Borrowed(body),
            },
        })
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Sa(proposals) => sa::encode(proposals, out),
            Self::Ke { group, data } => {
                out.extend_from_slice(&group.to_be_bytes());
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(data);
            }
            Self::IdI(id) | Self::IdR(id) => id.encode(out),
            Self::Cert { encoding, data } | Self::CertReq { encoding, data } => {
                out.push(*encoding);
                out.extend_from_slice(data);
            }
            Self::Auth { method, data } => {
                out.extend_from_slice(&[*method, 0, 0, 0]);
                out.extend_from_slice(data);
            }
            Self::Nonce(data) | Self::Vendor(data) | Self::Unknown { data, .. } => {
                out.extend_from_slice(data)
            }
            Self::Notify(notify) => notify.encode(out),
            Self::Delete(delete) => delete.encode(out),
            Self::TsI(selectors) | Self::TsR(selectors) => ts::encode_selectors(selectors, out),
            Self::Cp(configuration) => configuration.encode(out),
            Self::Eap(eap) => eap.encode(out),
        }
    }
}

/// Reads a chain of payloads, the first of type `first`, that fills `bytes` exactly.
pub fn parse_payloads(first: u8, bytes: &[u8]) -> Result<Vec<Payload<'_>>, ParseError> {
    let mut reader = Reader::new(bytes);
    let mut payloads = Vec::new();
    let mut kind = first;
    while kind != PayloadType::NONE.0 {
        let [next, flags] = reader.array()?;
        let length = usize::from(reader.u16()?);
        let body = reader.take(
            length
                .checked_sub(GENERIC_HEADER_LEN)
                .ok_or(ParseError::BadLength)?,
        )?;
        if payloads.len() == MAX_PAYLOADS {
            return Err(ParseError::TooMany);
        }
        payloads.push(Payload::parse(kind, flags & CRITICAL != 0, body)?);
        kind = next;
    }
    if reader.is_empty() {
        Ok(payloads)
    } else {
        Err(ParseError::BadLength)
    }
}

/// Appends a chain of payloads. The type of the first goes into the header before it.
pub fn encode_payloads(payloads: &[Payload<'_>], out: &mut Vec<u8>) {
    for (index, payload) in payloads.iter().enumerate() {
        let next = payloads.get(index + 1).map_or(PayloadType::NONE, Payload::kind);
        let start = out.len();
        out.extend_from_slice(&[next.0, 0, 0, 0]);
        payload.encode_body(out);
        patch_len(out, start, 2);
    }
}

/// A whole message without Encrypted payload.
pub fn encode_message(header: Header, payloads: &[Payload<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    encode_payloads(payloads, &mut body);
    let header = Header {
        next_payload: payloads.first().map_or(PayloadType::NONE, Payload::kind).0,
        ..header
    };
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    header.encode(HEADER_LEN + body.len(), &mut message);
    message.extend_from_slice(&body);
    message
}
