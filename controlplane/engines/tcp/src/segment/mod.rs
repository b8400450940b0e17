//! Segments: the header as values, parsed from and written to the wire (RFC 9293 §3.1).

mod options;

pub use options::{MAX_OPTIONS_LEN, MAX_SACK_BLOCKS, Options, SackBlocks, Timestamps};
use towpath_common::wire;

use crate::seq::SeqNum;

/// Length of the header without options, bytes.
pub const HEADER_LEN: usize = 20;

/// Longest header, bytes.
pub const MAX_HEADER_LEN: usize = HEADER_LEN + MAX_OPTIONS_LEN;

/// Control bits of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168 §6.1).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168 §6.1).
    pub const CWR: Self = Self(0x80);

    /// True when all bits of `other` are set.
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These bits but those of `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The ECN field of the IP header (RFC 3168 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ecn {
    /// Not ECN-capable transport.
    #[default]
    NotEct,
    /// ECT(1).
    Ect1,
    /// ECT(0).
    Ect0,
    /// Congestion experienced.
    Ce,
}

impl Ecn {
    /// From the low two bits of TOS or traffic class.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The two bits.
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// A TCP header as values, host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Number of the first byte of data, or of the SYN.
    pub seq: SeqNum,
    /// Next number expected from the other side; counts with [`Flags::ACK`].
    pub ack: SeqNum,
    /// Control bits.
    pub flags: Flags,
    /// Window as it stands on the wire, not scaled.
    pub window: u16,
    /// Offset from `seq` to the end of urgent data; counts with [`Flags::URG`].
    pub urgent: u16,
    /// Options.
    pub options: Options,
}

/// A segment: its header and its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Header.
    pub header: Header,
    /// Data.
    pub payload: &'a [u8],
}

/// The bytes are not a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Segment<'a> {
    /// Reads a segment, checksum not verified. Unknown options and malformed ones are skipped as
    /// RFC 9293 §3.1 asks; only a header that does not fit is an error.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (fixed, _) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(Malformed)?;
        let [
            sp0,
            sp1,
            dp0,
            dp1,
            s0,
            s1,
            s2,
            s3,
            a0,
            a1,
            a2,
            a3,
            data_offset,
            flags,
            w0,
            w1,
            _,
            _,
            u0,
            u1,
        ] = *fixed;
        let header_len = usize::from(data_offset >> 4) * 4;
        let options = bytes.get(HEADER_LEN..header_len).ok_or(Malformed)?;
        let payload = bytes.get(header_len..).ok_or(Malformed)?;
        Ok(Self {
            header: Header {
                source_port: u16::from_be_bytes([sp0, sp1]),
                destination_port: u16::from_be_bytes([dp0, dp1]),
                seq: SeqNum(u32::from_be_bytes([s0, s1, s2, s3])),
                ack: SeqNum(u32::from_be_bytes([a0, a1, a2, a3])),
                flags: Flags(flags),
                window: u16::from_be_bytes([w0, w1]),
                urgent: u16::from_be_bytes([u0, u1]),
                options: Options::parse(options),
            },
            payload,
        })
    }

    /// Length in sequence space: data, SYN and FIN (RFC 9293 §3.4).
    pub fn sequence_len(&self) -> u64 {
        let flags = self.header.flags;
        self.payload.len() as u64 + u64::from(flags.has(Flags::SYN)) + u64::from(flags.has(Flags::FIN))
    }

    /// The reset that answers this segment where no connection exists (RFC 9293 §3.10.7.1);
    /// `None` for a reset, which is never answered.
    pub fn reset(&self) -> Option<Header> {
        let header = &self.header;
        if header.flags.has(Flags::RST) {
            return None;
        }
        let (seq, ack, flags) = if header.flags.has(Flags::ACK) {
            (header.ack, SeqNum(0), Flags::RST)
        } else {
            let end = header.seq + u32::try_from(self.sequence_len()).unwrap_or(0);
            (SeqNum(0), end, Flags::RST.with(Flags::ACK))
        };
        Some(Header {
            source_port: header.destination_port,
            destination_port: header.source_port,
            seq,
            ack,
            flags,
            ..Header::default()
        })
    }
}

impl Header {
    /// Writes the header with its options, checksum zero; returns its length, `None` if `out` is too
    /// small.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let (fixed, rest) = out.split_first_chunk_mut::<HEADER_LEN>()?;
        let len = HEADER_LEN + self.options.write(rest)?;
        let [sp0, sp1] = self.source_port.to_be_bytes();
        let [dp0, dp1] = self.destination_port.to_be_bytes();
        let [s0, s1, s2, s3] = self.seq.0.to_be_bytes();
        let [a0, a1, a2, a3] = self.ack.0.to_be_bytes();
        let [w0, w1] = self.window.to_be_bytes();
        let [u0, u1] = self.urgent.to_be_bytes();
        let data_offset = ((len / 4) as u8) << 4;
        *fixed = [
            sp0,
            sp1,
            dp0,
            dp1,
            s0,
            s1,
            s2,
            s3,
            a0,
            a1,
            a2,
            a3,
            data_offset,
            self.flags.0,
            w0,
            w1,
            0,
            0,
            u0,
            u1,
        ];
        Some(len)
    }
}

/// Puts the checksum into a segment whose checksum field is zero; `pseudo` is the sum of the
/// pseudo-header ([`wire::pseudo_header_v4`], [`wire::pseudo_header_v6`]).
pub fn finish_checksum(segment: &mut [u8], pseudo: u32) {
    let check = wire::fold(pseudo.wrapping_add(sum(segment)));
    if let Some(field) = segment.get_mut(16..18) {
        field.copy_from_slice(&check.to_be_bytes());
    }
}

/// One's complement sum of `bytes`, folded to 16 bits and a carry. The sum does not care for byte order (RFC 1071 §2 (B)),
/// so it is taken in words of four bytes as they lie in memory and turned round once.
fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = 0;
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u64::from(u32::from_ne_bytes(last));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u32::from(u16::from_ne_bytes((total as u16).to_be_bytes()))
}

/// True when the checksum of a received segment is right.
pub fn checksum_ok(segment: &[u8], pseudo: u32) -> bool {
    wire::fold(pseudo.wrapping_add(sum(segment))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_sum_is_the_sum() {
        let bytes: alloc::vec::Vec<u8> = (0..2000_u32).map(|i| (i * 7 + i / 3) as u8).collect();
        for len in (0..70).chain([1499, 1500, 2000]) {
            let bytes = &bytes[..len];
            assert_eq!(wire::fold(sum(bytes)), wire::checksum(bytes), "{len}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_parsed() {
        let mut sack = SackBlocks::default();
        sack.push(SeqNum(10), SeqNum(20));
        sack.push(SeqNum(30), SeqNum(40));
        let header = Header {
            source_port: 80,
            destination_port: 40000,
            seq: SeqNum(0xdead_beef),
            ack: SeqNum(7),
            flags: Flags::ACK.with(Flags::PSH),
            window: 512,
            urgent: 3,
            options: Options {
                mss: Some(1460),
                window_scale: None,
                sack_permitted: false,
                timestamps: Some(Timestamps { value: 5, echo: 6 }),
                sack,
            },
        };
        let mut bytes = [0; 100];
        let len = header.write(&mut bytes).unwrap();
        bytes[len..len + 2].copy_from_slice(b"hi");
        finish_checksum(&mut bytes[..len + 2], 1234);
        assert!(checksum_ok(&bytes[..len + 2], 1234));
        let segment = Segment::parse(&bytes[..len + 2]).unwrap();
        assert_eq!(segment.header, header);
        assert_eq!(segment.payload, b"hi");
    }

    #[test]
    fn every_prefix_of_noise_parses_or_fails_without_panic() {
        let mut state = 1_u32;
        let mut bytes = [0; 80];
        for _ in 0..20_000 {
            for byte in &mut bytes {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
            let len = (state >> 8) as usize % 81;
            if let Ok(segment) = Segment::parse(&bytes[..len]) {
                assert!(segment.payload.len() <= len - HEADER_LEN);
            }
        }
    }
}
