//! AH (RFC 4302) on packets in place: integrity of the whole packet, its IP header included, without encryption.
//!
//! ```text
//!   IP header, options or extensions | AH | ICV, padding | payload        what the ICV covers: all of it,
//!   └──── mutable fields zero ─────┘       └── zero ──┘                   with ESN the unsent half behind
//! ```
//!
//! ESP inside AH (an SA bundle, RFC 4301 appendix E): seal with ESP first, with AH second; open in the other order. The
//! AH half is then made with [`AhSa::bundled`](towpath_base::sa::AhSa), and leaves selectors to the ESP half.

mod bridge;
mod inbound;
mod mutable;
mod outbound;

use core::net::IpAddr;

use towpath_base::crypto::IcvTransform;
use towpath_base::{DropReason, Spi};
use towpath_common::wire::protocol;

use crate::ip::{Ip, Walk, be32};

pub use bridge::AhBridge;
pub use inbound::AhInbound;
pub use outbound::AhOutbound;

/// Length of AH without its ICV: next header, length, reserved, SPI, sequence number.
pub(crate) const AH_LEN: usize = 12;

/// As many zeros as the longest ICV has bytes.
static ZERO: [u8; 32] = [0; 32];

/// An AH packet inside an IP packet. Offsets count from the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocatedAh {
    /// Source address of the IP header.
    pub source: IpAddr,
    /// Destination address of the IP header.
    pub destination: IpAddr,
    /// SPI.
    pub spi: Spi,
    /// Low 32 bits of the sequence number.
    pub sequence: u32,
    /// Protocol of what AH carries.
    pub next_header: u8,
    /// Offset of AH.
    pub ah_at: usize,
    /// Offset behind AH, its ICV and padding.
    pub payload_at: usize,
    /// Offset behind the packet.
    pub end: usize,
    /// Offset of the byte that names AH.
    pub(crate) protocol_at: usize,
}

/// Finds AH in the IP packet that starts at the first byte of `packet`.
///
/// # Errors
/// [`DropReason::EspFragment`] for a fragment; [`DropReason::AhMalformed`] if there is no AH or its length is
/// impossible; else what is wrong with the IP header.
pub fn locate(packet: &[u8]) -> Result<LocatedAh, DropReason> {
    let ip = Ip::parse(packet, Walk::ToUpperLayer)?;
    if ip.fragment {
        return Err(DropReason::EspFragment);
    }
    let malformed = DropReason::AhMalformed;
    if ip.protocol != protocol::AH {
        return Err(malformed);
    }
    let ah = packet.get(ip.payload_at..ip.end).ok_or(malformed)?;
    let [next_header, words, 0, 0, ..] = *ah else {
        return Err(malformed);
    };
    let len = (usize::from(words) + 2) * 4;
    let aligned = ip.is_v4() || len.is_multiple_of(8);
    if len < AH_LEN || len > ah.len() || !aligned {
        return Err(malformed);
    }
    let (spi, sequence) = be32(ah, 4).zip(be32(ah, 8)).ok_or(malformed)?;
    Ok(LocatedAh {
        source: ip.source,
        destination: ip.destination,
        spi: Spi(spi),
        sequence,
        next_header,
        ah_at: ip.payload_at,
        payload_at: ip.payload_at + len,
        end: ip.end,
        protocol_at: ip.protocol_at,
    })
}

/// Signs or checks the AH packet in `bytes`.
struct Covered<'a> {
    frozen: mutable::Frozen,
    fixed: &'a [u8],
    icv: &'a mut [u8],
    /// Behind the ICV: padding, then payload.
    rest: &'a [u8],
    high: [u8; 4],
    esn: bool,
}

impl<'a> Covered<'a> {
    /// `icv_len` bytes of ICV must fit AH, with less than 8 bytes of padding behind.
    fn of(
        bytes: &'a mut [u8],
        at: &LocatedAh,
        icv_len: usize,
        esn_high: Option<u32>,
    ) -> Result<Self, DropReason> {
        let malformed = DropReason::AhMalformed;
        let icv_at = at.ah_at + AH_LEN;
        let padding = at.payload_at.checked_sub(icv_at + icv_len).ok_or(malformed)?;
        if padding >= 8 {
            return Err(malformed);
        }
        let frozen = mutable::freeze(bytes.get(..at.ah_at).ok_or(malformed)?)?;
        let ah = bytes.get_mut(at.ah_at..at.end).ok_or(malformed)?;
        let (fixed, rest) = ah.split_at_mut_checked(AH_LEN).ok_or(malformed)?;
        let (icv, rest) = rest.split_at_mut_checked(icv_len).ok_or(malformed)?;
        Ok(Self {
            frozen,
            fixed,
            icv,
            rest,
            high: esn_high.unwrap_or(0).to_be_bytes(),
            esn: esn_high.is_some(),
        })
    }

    /// RFC 4302 §3.3.3: header, AH with the ICV zero, its padding and the payload as they are, the unsent half.
    fn sign(self, key: &mut impl IcvTransform) -> Result<(), DropReason> {
        let high: &[u8] = if self.esn { &self.high } else { &[] };
        let zero = ZERO.get(..self.icv.len()).unwrap_or(&[]);
        let pieces = [self.frozen.bytes(), self.fixed, zero, self.rest, high];
        key.sign(&pieces, self.icv).map_err(|_| DropReason::EspAuthFailed)
    }

    fn verify(self, key: &mut impl IcvTransform) -> Result<(), DropReason> {
        let high: &[u8] = if self.esn { &self.high } else { &[] };
        let zero = ZERO.get(..self.icv.len()).unwrap_or(&[]);
        let pieces = [self.frozen.bytes(), self.fixed, zero, self.rest, high];
        key.verify(&pieces, self.icv)
            .map_err(|_| DropReason::EspAuthFailed)
    }
}
