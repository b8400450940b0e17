//! The receiving half of an SA: ESP packet → plain IP packet, in place.

use core::net::IpAddr;

use towpath_base::crypto::{EspParts, EspProvider, EspTransform, InvalidKey};
use towpath_base::packet::PacketBuf;
use towpath_base::replay::ReplayWindow;
use towpath_base::sa::{ChildSa, EspKeys, Mode};
use towpath_base::{DropReason, Instant, Spi};
use towpath_common::wire::protocol;

use crate::checksum::{self, ChecksumRepair};
use crate::ends::Ends;
use crate::ip::{self, IPV6_LEN, Ip, Walk};
use crate::lifetime::Meter;
use crate::locate::{self, ESP_LEN, Flow, Located};
use crate::mode::{came_tunnelled, is_ip};
use crate::outer;
use crate::shape::Shape;

/// Words of the replay window unless chosen otherwise: 960 packets (RFC 4303 §3.4.3 asks for 64 at least).
pub const DEFAULT_WINDOW_WORDS: usize = 16;

/// What became of an opened packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its sequence number, extended to 64 bits.
    pub sequence: u64,
    /// The flow it belongs to.
    pub flow: Flow,
    /// It came in a tunnel.
    pub tunnelled: bool,
}

/// One direction of an SA at its receiver, with a replay window of `64 * (WORDS - 1)` packets.
#[derive(Debug)]
pub struct InboundSa<T, const WORDS: usize = DEFAULT_WINDOW_WORDS> {
    transform: T,
    shape: Shape,
    spi: Spi,
    esn: bool,
    mode: Mode,
    window: ReplayWindow<WORDS>,
    ends: Ends,
    /// The flow the selectors were last found to admit.
    admitted: Option<Brief>,
    repair: ChecksumRepair,
    meter: Meter,
}

/// A decrypted packet, still where it lay: `ip … esp iv | payload | padding, trailer, icv`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain {
    pub(crate) sequence: u64,
    next_header: u8,
    payload_at: usize,
    payload_end: usize,
}

impl Plain {
    /// Length of the plain IP packet in bytes: what the far end counted.
    pub(crate) const fn len(&self, mode: Mode, at: &Located) -> usize {
        let payload = self.payload_end - self.payload_at;
        if came_tunnelled(mode, self.next_header) {
            return payload;
        }
        let headers = match at.udp_at {
            Some(udp_at) => udp_at,
            None => at.esp_at,
        };
        headers + payload
    }
}

impl<T: EspTransform, const WORDS: usize> InboundSa<T, WORDS> {
    /// What the local end of `sa` receives with. Behind a NAT (UDP encapsulation, transport mode) transport
    /// checksums are computed anew; see [`InboundSa::set_checksum_repair`].
    ///
    /// # Errors
    /// [`InvalidKey`] if the keys do not fit the suite.
    pub fn new<P>(provider: &P, now: Instant, sa: &ChildSa) -> Result<Self, InvalidKey>
    where
        P: EspProvider<Transform = T>,
    {
        let meter = Meter::new(sa.lifetime, now);
        let repair = ChecksumRepair::wanted(sa);
        Self::with_keys(provider, meter, sa, &sa.keys_in, Ends::outward(sa), repair)
    }

    /// As [`InboundSa::new`] with other keys, limits and repairs: a segment of the same SA. `ends` are those of `sa`.
    pub(crate) fn with_keys<P>(
        provider: &P,
        meter: Meter,
        sa: &ChildSa,
        keys: &EspKeys,
        ends: Ends,
        repair: ChecksumRepair,
    ) -> Result<Self, InvalidKey>
    where
        P: EspProvider<Transform = T>,
    {
        Ok(Self {
            transform: provider.transform(sa.suite, keys)?,
            shape: Shape::of(sa.suite),
            spi: sa.spi_in,
            esn: sa.esn,
            mode: sa.mode,
            window: ReplayWindow::new(),
            ends: ends.reversed(),
            admitted: None,
            repair,
            meter,
        })
    }

    /// The same SA seen from its far end: what the remote end receives with.
    pub(crate) fn reversed(self, spi: Spi) -> Self {
        Self {
            ends: self.ends.reversed(),
            admitted: None,
            spi,
            ..self
        }
    }

    /// Chooses a replay window of `packets` numbers, 64 to 4096 (RFC 4303 §3.4.3). What was accepted so far is
    /// forgotten: for a new SA. `None` changes nothing: out of bounds, or no room in `WORDS` words and no allocator.
    pub fn set_replay_window(&mut self, packets: u32) -> Option<()> {
        self.window = ReplayWindow::sized(packets)?;
        Some(())
    }

    /// Numbers the replay window covers.
    pub const fn replay_window(&self) -> u64 {
        self.window.size()
    }

    /// Where a part of it lies that every packet needs.
    #[inline]
    pub(crate) const fn spi_ref(&self) -> &Spi {
        &self.spi
    }

    /// SPI of the packets it opens.
    pub const fn spi(&self) -> Spi {
        self.spi
    }

    /// Transport, tunnel or either.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Accepts nothing up to `highest` any more: a former owner of the same SA may have.
    pub(crate) fn resume_window(&mut self, highest: u64) {
        self.window.resume(highest);
    }

    /// Highest sequence number accepted so far.
    pub const fn highest_sequence(&self) -> u64 {
        self.window.highest()
    }

    /// Limits and counters.
    pub const fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Limits and counters, to take events from.
    pub const fn meter_mut(&mut self) -> &mut Meter {
        &mut self.meter
    }

    /// Chooses what happens to transport checksums in transport mode (RFC 3948 §3.1.2).
    pub const fn set_checksum_repair(&mut self, repair: ChecksumRepair) {
        self.repair = repair;
    }

    /// Turns the ESP packet (raw or UDP-encapsulated, either is taken on any SA) in `packet` into the plain IP
    /// packet. On error the contents of `packet` are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet. [`DropReason::EspDummy`] is no fault of anybody.
    pub fn open(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<Opened, DropReason> {
        let at = locate::esp(packet.bytes())?;
        let plain = self.decrypt(now, packet.bytes_mut(), &at)?;
        self.meter.count(now, plain.len(self.mode, &at));
        let payload = packet.bytes().get(plain.payload_at..plain.payload_end);
        let (flow, _) = self.flow(&at, plain.next_header, payload.unwrap_or(&[]))?;
        self.uncover(packet, &at, &plain)?;
        Ok(Opened {
            sequence: plain.sequence,
            flow,
            tunnelled: came_tunnelled(self.mode, plain.next_header),
        })
    }

    /// Checks and decrypts where the packet lies.
    pub(crate) fn decrypt(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        at: &Located,
    ) -> Result<Plain, DropReason> {
        if at.spi != self.spi {
            return Err(DropReason::EspUnknownSpi);
        }
        self.meter.check(now)?;
        let sequence = if self.esn {
            self.window.extend(at.sequence)
        } else {
            u64::from(at.sequence)
        };
        self.window.check(sequence).map_err(|_| DropReason::EspReplayed)?;
        let trailer_end = self.decrypt_body(bytes, at, sequence)?;
        // Only now is the sequence number to be believed (RFC 4303 §3.4.3).
        self.window
            .accept(sequence)
            .map_err(|_| DropReason::EspReplayed)?;
        let payload_at = at.esp_at + ESP_LEN + self.shape.iv_len();
        let body = bytes
            .get(payload_at..trailer_end)
            .ok_or(DropReason::EspMalformed)?;
        let (payload_len, next_header) = trailer(body).ok_or(DropReason::EspBadPadding)?;
        if next_header == protocol::NO_NEXT_HEADER {
            return Err(DropReason::EspDummy);
        }
        let payload = body.get(..payload_len).ok_or(DropReason::EspBadPadding)?;
        let brief = if came_tunnelled(self.mode, next_header) {
            None
        } else {
            Brief::of(bytes, at, next_header, payload)
        };
        // Packets come in runs of one flow, and the selectors of an SA never change.
        let len = if brief.is_some() && brief == self.admitted {
            payload.len()
        } else {
            let (flow, len) = self.flow(at, next_header, payload)?;
            if !self.ends.admit(&flow) {
                return Err(DropReason::EspSelectorMismatch);
            }
            self.admitted = brief;
            len
        };
        Ok(Plain {
            sequence,
            next_header,
            payload_at,
            payload_end: payload_at + len,
        })
    }

    /// Returns the offset behind the decrypted trailer.
    fn decrypt_body(&mut self, bytes: &mut [u8], at: &Located, sequence: u64) -> Result<usize, DropReason> {
        let suite = self.shape;
        let malformed = DropReason::EspMalformed;
        let esp = bytes.get_mut(at.esp_at..at.end).ok_or(malformed)?;
        let (header, rest) = esp.split_first_chunk_mut::<ESP_LEN>().ok_or(malformed)?;
        let (iv, rest) = rest.split_at_mut_checked(suite.iv_len()).ok_or(malformed)?;
        let body = rest.len().checked_sub(suite.icv_len()).ok_or(malformed)?;
        if body == 0 || !suite.is_whole(body) {
            return Err(malformed);
        }
        let (payload, icv) = rest.split_at_mut_checked(body).ok_or(malformed)?;
        let esn_high = self.esn.then_some((sequence >> 32) as u32);
        let parts = EspParts {
            header: *header,
            esn_high,
            iv,
            payload,
            icv,
        };
        self.transform
            .open(parts)
            .map_err(|_| DropReason::EspAuthFailed)?;
        Ok(at.end - suite.icv_len())
    }

    /// The flow of a decrypted packet, and the length of its payload (without TFC padding, RFC 4303 §2.7).
    fn flow(&self, at: &Located, next_header: u8, payload: &[u8]) -> Result<(Flow, usize), DropReason> {
        if !came_tunnelled(self.mode, next_header) {
            let flow = behind_extensions(at.source, at.destination, next_header, payload)?;
            return Ok((flow, payload.len()));
        }
        if !is_ip(next_header) {
            return Err(DropReason::EspBadPadding);
        }
        let inner = Ip::parse(payload, Walk::ToUpperLayer)?;
        if inner.is_v4() != (next_header == protocol::IPIP) {
            return Err(DropReason::BadIpHeader);
        }
        Ok((Flow::of(payload)?, inner.end))
    }

    /// Removes everything that is not the plain packet.
    fn uncover(&self, packet: &mut PacketBuf<'_>, at: &Located, plain: &Plain) -> Result<(), DropReason> {
        let malformed = DropReason::EspMalformed;
        let behind = packet.len().checked_sub(plain.payload_end).ok_or(malformed)?;
        packet.strip_back(behind).ok_or(malformed)?;
        if came_tunnelled(self.mode, plain.next_header) {
            let tos = tos(packet.bytes());
            packet.strip_front(plain.payload_at).ok_or(malformed)?;
            outer::propagate_ecn(tos, packet.bytes_mut())?;
        } else {
            *packet.bytes_mut().get_mut(at.protocol_at).ok_or(malformed)? = plain.next_header;
            let gap_at = at.udp_at.unwrap_or(at.esp_at);
            let gap = plain.payload_at.checked_sub(gap_at).ok_or(malformed)?;
            packet.cut(gap_at, gap).ok_or(malformed)?;
            ip::finish_header(packet.bytes_mut());
            checksum::repair(packet.bytes_mut(), self.repair);
        }
        Ok(())
    }
}

/// What makes a [`Flow`] in transport mode, as it lies in the packet: two equal ones are one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Brief {
    addresses: [u64; 4],
    protocol: u8,
    ports: u32,
}

impl Brief {
    /// `None` where more would have to be read: IPv6 extension headers, too few bytes.
    #[inline]
    fn of(packet: &[u8], at: &Located, protocol: u8, payload: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_ne_bytes(*packet.get(at..)?.first_chunk()?));
        let addresses = match at.source {
            IpAddr::V4(_) => [word(12)?, 0, 0, 0],
            IpAddr::V6(_) => [word(8)?, word(16)?, word(24)?, word(32)?],
        };
        let ports = match protocol {
            protocol::TCP | protocol::UDP => ip::be32(payload, 0)?,
            protocol::ICMP | protocol::ICMPV6 => ip::be16(payload, 0)?.into(),
            _ => return None,
        };
        Some(Self {
            addresses,
            protocol,
            ports,
        })
    }
}

/// Payload length and next header of a decrypted body that ends with the ESP trailer (RFC 4303 §2.4).
fn trailer(body: &[u8]) -> Option<(usize, u8)> {
    let [rest @ .., pad_len, next_header] = body else {
        return None;
    };
    let payload_len = rest.len().checked_sub(usize::from(*pad_len))?;
    let padding = rest.get(payload_len..)?;
    padding
        .iter()
        .zip(1u8..)
        .all(|(byte, value)| *byte == value)
        .then_some((payload_len, *next_header))
}

/// The flow of a transport-mode packet; over IPv6 its payload may begin with extension headers of its own.
#[inline]
pub(crate) fn behind_extensions(
    source: IpAddr,
    destination: IpAddr,
    next_header: u8,
    payload: &[u8],
) -> Result<Flow, DropReason> {
    const fn is_extension(next: u8) -> bool {
        matches!(
            next,
            protocol::DESTINATION_OPTIONS | protocol::ROUTING | protocol::HOP_BY_HOP
        )
    }
    let (mut next, mut body) = (next_header, payload);
    if source.is_ipv6() {
        for _ in 0..towpath_common::headers::MAX_EXTENSION_HEADERS {
            if !is_extension(next) {
                break;
            }
            let header = body.first_chunk::<2>().ok_or(DropReason::Truncated)?;
            next = header[0];
            body = body
                .get(8 + usize::from(header[1]) * 8..)
                .ok_or(DropReason::Truncated)?;
        }
        if is_extension(next) {
            return Err(DropReason::TooManyExtensions);
        }
    }
    Ok(Flow::new(source, destination, next, body))
}

pub(crate) fn tos(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => *second,
        [first, second, ..] if packet.len() >= IPV6_LEN => (first << 4) | (second >> 4),
        _ => 0,
    }
}
