//! Where ESP is in an IP packet, and whose flow a packet is.

use core::net::IpAddr;

use towpath_base::sa::Selectors;
use towpath_base::{DropReason, Spi};
use towpath_common::wire::protocol;

use crate::ip::{Ip, Walk, be16, be32};

/// Length of the fixed ESP header: SPI and sequence number.
pub(crate) const ESP_LEN: usize = 8;
/// Length of a UDP header.
pub(crate) const UDP_LEN: usize = 8;

/// An ESP packet, raw or UDP-encapsulated (RFC 3948), inside an IP packet. Offsets count from the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Source address of the IP header.
    pub source: IpAddr,
    /// Destination address of the IP header.
    pub destination: IpAddr,
    /// SPI.
    pub spi: Spi,
    /// Low 32 bits of the sequence number.
    pub sequence: u32,
    /// Offset of the UDP header, if encapsulated.
    pub udp_at: Option<usize>,
    /// Offset of the ESP header.
    pub esp_at: usize,
    /// Offset behind the ICV.
    pub end: usize,
    /// Offset of the byte that names the protocol behind the IP header and its extensions.
    pub(crate) protocol_at: usize,
}

/// Finds ESP in the IP packet that starts at the first byte of `packet`: behind IPv4 options or a bounded
/// number of IPv6 extension headers, raw or behind a UDP header of any port.
///
/// # Errors
/// [`DropReason::EspFragment`] for a fragment; [`DropReason::EspMalformed`] if the protocol is neither ESP nor
/// UDP, or what UDP carries is IKE or a keep-alive; else what is wrong with the IP header.
#[inline]
pub fn esp(packet: &[u8]) -> Result<Located, DropReason> {
    let ip = Ip::parse(packet, Walk::ToUpperLayer)?;
    if ip.fragment {
        return Err(DropReason::EspFragment);
    }
    let (udp_at, esp_at, end) = match ip.protocol {
        protocol::ESP => (None, ip.payload_at, ip.end),
        protocol::UDP => {
            let len = be16(packet, ip.payload_at + 4).ok_or(DropReason::Truncated)?;
            let end = ip.payload_at + usize::from(len);
            if end > ip.end {
                return Err(DropReason::Truncated);
            }
            (Some(ip.payload_at), ip.payload_at + UDP_LEN, end)
        }
        _ => return Err(DropReason::EspMalformed),
    };
    if end < esp_at + ESP_LEN {
        return Err(DropReason::EspMalformed);
    }
    let (spi, sequence) = be32(packet, esp_at)
        .zip(be32(packet, esp_at + 4))
        .ok_or(DropReason::EspMalformed)?;
    // SPI zero behind UDP is the non-ESP marker (RFC 3948 §2.2).
    if spi == 0 {
        return Err(DropReason::EspMalformed);
    }
    Ok(Located {
        source: ip.source,
        destination: ip.destination,
        spi: Spi(spi),
        sequence,
        udp_at,
        esp_at,
        end,
        protocol_at: ip.protocol_at,
    })
}

/// What an IP packet carries, whatever it is. Offsets count from the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Offset of the upper-layer header.
    pub payload_at: usize,
    /// Offset behind the packet.
    pub end: usize,
    /// A fragment, first or later.
    pub fragment: bool,
}

/// Reads the IP header, IPv4 options and a bounded number of IPv6 extension headers.
///
/// # Errors
/// What is wrong with them.
pub fn carried(packet: &[u8]) -> Result<Carried, DropReason> {
    let ip = Ip::parse(packet, Walk::ToUpperLayer)?;
    let Ip {
        source,
        destination,
        protocol,
        payload_at,
        end,
        fragment,
        ..
    } = ip;
    Ok(Carried {
        source,
        destination,
        protocol,
        payload_at,
        end,
        fragment,
    })
}

/// What selectors look at (RFC 4301 §4.4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source port; for ICMP type and code (RFC 7296 §3.13.1). `None` where it cannot be seen.
    pub source_port: Option<u16>,
    /// Destination port; for ICMP type and code.
    pub destination_port: Option<u16>,
}

impl Flow {
    /// Reads a plain IP packet.
    ///
    /// # Errors
    /// What is wrong with the IP header.
    pub fn of(packet: &[u8]) -> Result<Self, DropReason> {
        let ip = Ip::parse(packet, Walk::ToUpperLayer)?;
        let body = if ip.fragment {
            &[]
        } else {
            packet.get(ip.payload_at..ip.end).unwrap_or(&[])
        };
        Ok(Self::new(ip.source, ip.destination, ip.protocol, body))
    }

    #[inline]
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Self {
        let (source_port, destination_port) = ports(protocol, body);
        Self {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
        }
    }

    /// Whether the flow goes from `sources` to `destinations`.
    pub fn matches(&self, sources: &Selectors, destinations: &Selectors) -> bool {
        sources.matches(self.source, self.protocol, self.source_port)
            && destinations.matches(self.destination, self.protocol, self.destination_port)
    }
}

const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

#[inline]
fn ports(protocol: u8, body: &[u8]) -> (Option<u16>, Option<u16>) {
    match protocol {
        protocol::TCP | protocol::UDP | DCCP | SCTP | UDP_LITE => (be16(body, 0), be16(body, 2)),
        protocol::ICMP | protocol::ICMPV6 => (be16(body, 0), be16(body, 0)),
        _ => (None, None),
    }
}
