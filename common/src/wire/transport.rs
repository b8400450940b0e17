//! UDP, ESP, AH and the fixed IKE header.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// UDP port of IKE (RFC 7296 §2).
pub const PORT_IKE: u16 = 500;
/// UDP port of IKE and ESP behind a NAT (RFC 3948).
pub const PORT_IKE_NATT: u16 = 4500;
/// Length of the four zero bytes before an IKE message on port 4500 (RFC 3948 §2.2).
pub const NON_ESP_MARKER_LEN: usize = 4;
/// Length of the fixed IKE header.
pub const IKE_HEADER_LEN: usize = 28;

/// UDP header, 8 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Length of header and data, bytes.
    pub length: U16,
    /// Checksum; zero means none (IPv4 only).
    pub checksum: U16,
}

/// The fixed part of an ESP packet, 8 bytes (RFC 4303 §2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Esp {
    /// Security Parameters Index.
    pub spi: U32,
    /// Low 32 bits of the sequence number.
    pub sequence: U32,
}

/// The fixed part of an authentication header, 12 bytes (RFC 4302 §2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ah {
    /// Type of the next header.
    pub next_header: u8,
    /// Length of the header in 32-bit words, minus 2.
    pub payload_len: u8,
    /// Zero.
    pub reserved: U16,
    /// Security Parameters Index.
    pub spi: U32,
    /// Low 32 bits of the sequence number.
    pub sequence: U32,
}

/// The fixed IKE header, 28 bytes (RFC 7296 §3.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IkeHeader {
    /// Initiator's SPI.
    pub spi_i: [u8; 8],
    /// Responder's SPI; zero in the first message.
    pub spi_r: [u8; 8],
    /// Type of the first payload.
    pub next_payload: u8,
    /// Major version (4 bits), minor version (4 bits): `0x20`.
    pub version: u8,
    /// Exchange type.
    pub exchange_type: u8,
    /// Flags: response `0x20`, version `0x10`, initiator `0x08`.
    pub flags: u8,
    /// Message ID.
    pub message_id: U32,
    /// Length of the whole message, header included, bytes.
    pub length: U32,
}
