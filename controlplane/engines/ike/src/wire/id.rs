//! Identification payloads (RFC 7296 §3.5).

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::dn;
use towpath_base::profile::IkeId;

use super::{ParseError, Reader};

const ID_IPV4_ADDR: u8 = 1;
const ID_FQDN: u8 = 2;
const ID_RFC822_ADDR: u8 = 3;
const ID_IPV6_ADDR: u8 = 5;
const ID_DER_ASN1_DN: u8 = 9;
const ID_KEY_ID: u8 = 11;

/// An identity as it stands on the wire, of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id<'a> {
    /// ID Type.
    pub kind: u8,
    /// Identification Data.
    pub data: Cow<'a, [u8]>,
}

impl<'a> Id<'a> {
    /// `body`: everything after the generic payload header.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(body);
        let [kind, _, _, _] = reader.array()?;
        Ok(Self {
            kind,
            data: Cow::Borrowed(reader.rest()),
        })
    }

    /// Appends the body; AUTH covers exactly these bytes (RFC 7296 §2.15, RestOfIDPayload).
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind, 0, 0, 0]);
        out.extend_from_slice(&self.data);
    }

    /// The identity, if its type is one we know and its data fit the type.
    pub fn to_ike_id(&self) -> Option<IkeId> {
        let text = || String::from_utf8(self.data.to_vec()).ok();
        Some(match self.kind {
            ID_IPV4_ADDR => IkeId::Address(IpAddr::from(<[u8; 4]>::try_from(&*self.data).ok()?)),
            ID_IPV6_ADDR => IkeId::Address(IpAddr::from(<[u8; 16]>::try_from(&*self.data).ok()?)),
            ID_FQDN => IkeId::Fqdn(text()?),
            ID_RFC822_ADDR => IkeId::Rfc822(text()?),
            ID_KEY_ID => IkeId::KeyId(self.data.to_vec()),
            ID_DER_ASN1_DN if dn::is_name(&self.data) => IkeId::DistinguishedName(self.data.to_vec()),
            _ => return None,
        })
    }
}

impl From<&IkeId> for Id<'static> {
    fn from(id: &IkeId) -> Self {
        let (kind, data) = match id {
            IkeId::Address(IpAddr::V4(address)) => (ID_IPV4_ADDR, address.octets().to_vec()),
            IkeId::Address(IpAddr::V6(address)) => (ID_IPV6_ADDR, address.octets().to_vec()),
            IkeId::Fqdn(text) => (ID_FQDN, text.as_bytes().to_vec()),
            IkeId::Rfc822(text) => (ID_RFC822_ADDR, text.as_bytes().to_vec()),
            IkeId::KeyId(bytes) => (ID_KEY_ID, bytes.clone()),
            IkeId::DistinguishedName(der) => (ID_DER_ASN1_DN, der.clone()),
        };
        Self {
            kind,
            data: Cow::Owned(data),
        }
    }
}
