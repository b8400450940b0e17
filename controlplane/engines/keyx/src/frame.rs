//! The IKE header around every sealed datagram: both SPIs hold the reserved value (figure 12A).
//!
//! To everything between terminal and gateway the packet is IKE on UDP port 500; the gateway's classifier
//! knows it by the SPIs. Fields: next payload 0, version 2.0, exchange type [`EXCHANGE_TYPE`] (private use,
//! RFC 7296 §3.1), flags: initiator, message ID 0, length of header and datagram.

use towpath_common::wire::IKE_HEADER_LEN;

/// Exchange type of sealed messages, from the range for private use (RFC 7296 §3.1).
pub const EXCHANGE_TYPE: u8 = 240;

/// Bytes the frame adds in front of a datagram.
pub const FRAME_LEN: usize = IKE_HEADER_LEN;

const VERSION: u8 = 0x20;
const FLAG_INITIATOR: u8 = 0x08;

/// The value in both IKE SPIs that marks a message between terminal and network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReservedSpi(pub u64);

impl Default for ReservedSpi {
    /// 100, the value of the specification.
    fn default() -> Self {
        Self(100)
    }
}

/// The frame in front of a sealed datagram of `len` bytes.
pub fn header(reserved: ReservedSpi, len: usize) -> [u8; FRAME_LEN] {
    let [a, b, c, d, e, f, g, h] = reserved.0.to_be_bytes();
    let total = u32::try_from(len.saturating_add(FRAME_LEN)).unwrap_or(u32::MAX);
    let [w, x, y, z] = total.to_be_bytes();
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h, // initiator's SPI
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h, // responder's SPI
        0,
        VERSION,
        EXCHANGE_TYPE,
        FLAG_INITIATOR, //
        0,
        0,
        0,
        0, // message ID
        w,
        x,
        y,
        z,
    ]
}

/// Writes frame and datagram to `out`; returns the length, `None` if `out` is too short.
pub fn wrap_into(reserved: ReservedSpi, sealed: &[u8], out: &mut [u8]) -> Option<usize> {
    let len = FRAME_LEN + sealed.len();
    let (front, back) = out.get_mut(..len)?.split_at_mut_checked(FRAME_LEN)?;
    front.copy_from_slice(&header(reserved, sealed.len()));
    back.copy_from_slice(sealed);
    Some(len)
}

/// Frame and datagram: a UDP payload.
#[cfg(feature = "alloc")]
pub fn wrap(reserved: ReservedSpi, sealed: &[u8]) -> alloc::vec::Vec<u8> {
    [&header(reserved, sealed.len()), sealed].concat()
}

/// The sealed datagram in a UDP payload whose IKE SPIs both hold the reserved value; `None` for any other IKE
/// message. A frame that is wrong in another field gives an empty datagram, which [`crate::message::peek`] refuses.
pub fn unwrap(reserved: ReservedSpi, payload: &[u8]) -> Option<&[u8]> {
    let (spis, rest) = payload.split_at_checked(16)?;
    let (spi_i, spi_r) = spis.split_at_checked(8)?;
    let value = reserved.0.to_be_bytes();
    if spi_i != value || spi_r != value {
        return None;
    }
    match rest.split_first_chunk::<12>() {
        Some(([0, VERSION, EXCHANGE_TYPE, _, _, _, _, _, a, b, c, d], sealed))
            if u32::from_be_bytes([*a, *b, *c, *d]) as usize == payload.len() =>
        {
            Some(sealed)
        }
        _ => Some(&[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_off_again() {
        let mut buffer = [0; 64];
        let len = wrap_into(ReservedSpi(100), b"sealed", &mut buffer).unwrap();
        let framed = &buffer[..len];
        assert_eq!(unwrap(ReservedSpi(100), framed), Some(&b"sealed"[..]));
        assert_eq!(
            unwrap(ReservedSpi(101), framed),
            None,
            "another operator's reserved value"
        );
        assert_eq!(
            unwrap(ReservedSpi(100), &framed[..len - 1]),
            Some(&[][..]),
            "length says more"
        );
        assert_eq!(unwrap(ReservedSpi(100), &framed[..15]), None);
        assert!(wrap_into(ReservedSpi(100), b"sealed", &mut buffer[..33]).is_none());
    }
}
