//! Traffic Selector payloads (RFC 7296 §3.13).

use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::selector::TrafficSelector;

use super::{ParseError, Reader, patch_len};

const TS_IPV4_ADDR_RANGE: u8 = 7;
const TS_IPV6_ADDR_RANGE: u8 = 8;

/// Most selectors of one payload that are looked at.
pub const MAX_WIRE_SELECTORS: usize = 64;

/// Reads the body of a TSi or TSr payload. Selectors of unknown type, and those of OPAQUE ports
/// (RFC 7296 §3.13.1), are left out: nothing of ours can match them.
pub fn decode_selectors(body: &[u8]) -> Result<Vec<TrafficSelector>, ParseError> {
    let mut reader = Reader::new(body);
    let [count, _, _, _] = reader.array()?;
    if usize::from(count) > MAX_WIRE_SELECTORS {
        return Err(ParseError::TooMany);
    }
    let mut selectors = Vec::new();
    for _ in 0..count {
        let [kind, protocol] = reader.array()?;
        let length = usize::from(reader.u16()?);
        let bytes = reader.take(length.checked_sub(4).ok_or(ParseError::BadLength)?)?;
        let mut fields = Reader::new(bytes);
        let (first_port, last_port) = (fields.u16()?, fields.u16()?);
        let (first, last) = match kind {
            TS_IPV4_ADDR_RANGE => (
                IpAddr::from(fields.array::<4>()?),
                IpAddr::from(fields.array::<4>()?),
            ),
            TS_IPV6_ADDR_RANGE => (
                IpAddr::from(fields.array::<16>()?),
                IpAddr::from(fields.array::<16>()?),
            ),
            _ => continue,
        };
        if !fields.is_empty() {
            return Err(ParseError::BadLength);
        }
        if (first_port, last_port) == (u16::MAX, 0) {
            continue;
        }
        if first > last || first_port > last_port {
            return Err(ParseError::BadValue);
        }
        selectors.push(TrafficSelector {
            first,
            last,
            protocol,
            first_port,
            last_port,
        });
    }
    if reader.is_empty() {
        Ok(selectors)
    } else {
        Err(ParseError::BadLength)
    }
}

/// Appends the body of a TSi or TSr payload.
pub fn encode_selectors(selectors: &[TrafficSelector], out: &mut Vec<u8>) {
    let count = selectors.len().min(MAX_WIRE_SELECTORS);
    out.extend_from_slice(&[count as u8, 0, 0, 0]);
    for selector in selectors.iter().take(count) {
        let start = out.len();
        let kind = if selector.first.is_ipv4() {
            TS_IPV4_ADDR_RANGE
        } else {
            TS_IPV6_ADDR_RANGE
        };
        out.extend_from_slice(&[kind, selector.protocol, 0, 0]);
        out.extend_from_slice(&selector.first_port.to_be_bytes());
        out.extend_from_slice(&selector.last_port.to_be_bytes());
        for address in [selector.first, selector.last] {
            match address {
                IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
            }
        }
        patch_len(out, start, 2);
    }
}
