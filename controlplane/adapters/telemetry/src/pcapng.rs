//! Writes captures that Wireshark reads: pcapng with one interface of raw IP packets and nanoseconds.
//!
//! ```text
//!   section header (byte-order magic 1a2b3c4d, version 1.0) │ interface (LINKTYPE_RAW 101, if_tsresol 9) │ packets …
//!   every block: type u32, length u32, body padded to 4, length u32 again; this machine's writes little-endian
//! ```
//!
//! The format is draft-ietf-opsawg-pcapng; LINKTYPE_RAW is a packet that begins with its IPv4 or IPv6 header.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_RAW: u16 = 101;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;

/// Which way a packet went, seen from the terminal's side of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards the terminal: shown as inbound.
    ToTerminal,
    /// Towards the peer: shown as outbound.
    ToPeer,
}

/// A file being written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes section header and interface. `interface` names it for people.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W, interface: &str) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend_from_slice(&BYTE_ORDER.to_le_bytes());
        body.extend_from_slice(&1u16.to_le_bytes());
        body.extend_from_slice(&0u16.to_le_bytes());
        // Section length: not known beforehand.
        body.extend_from_slice(&u64::MAX.to_le_bytes());
        option(&mut body, SHB_USERAPPL, b"towpath");
        end_of_options(&mut body);
        block(&mut out, SECTION_HEADER, &body)?;
        let mut body = Vec::new();
        body.extend_from_slice(&LINKTYPE_RAW.to_le_bytes());
        body.extend_from_slice(&0u16.to_le_bytes());
        // Snapshot length: none.
        body.extend_from_slice(&0u32.to_le_bytes());
        option(&mut body, IF_NAME, interface.as_bytes());
        option(&mut body, IF_TSRESOL, &[9]);
        end_of_options(&mut body);
        block(&mut out, INTERFACE, &body)?;
        Ok(Self { out })
    }

    /// Writes one IP packet. A comment is shown with it.
    ///
    /// # Errors
    /// Those of `out`, or [`io::ErrorKind::InvalidInput`] for a packet longer than 4 GiB.
    pub fn packet(
        &mut self,
        unix_nanos: u64,
        direction: Direction,
        packet: &[u8],
        comment: Option<&str>,
    ) -> io::Result<()> {
        let len = u32::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut body = Vec::with_capacity(packet.len() + 64);
        for word in [0, (unix_nanos >> 32) as u32, unix_nanos as u32, len, len] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.extend_from_slice(packet);
        pad(&mut body);
        if let Some(comment) = comment {
            option(&mut body, OPT_COMMENT, comment.as_bytes());
        }
        let flags: u32 = match direction {
            Direction::ToTerminal => 1,
            Direction::ToPeer => 2,
        };
        option(&mut body, EPB_FLAGS, &flags.to_le_bytes());
        end_of_options(&mut body);
        block(&mut self.out, ENHANCED_PACKET, &body)
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// Those of the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let total = u32::try_from(body.len() + 12).map_err(|_| io::ErrorKind::InvalidInput)?;
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&total.to_le_bytes())?;
    out.write_all(body)?;
    out.write_all(&total.to_le_bytes())
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A value longer than 65535 bytes is cut: it is text for people.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend_from_slice(&code.to_le_bytes());
    body.extend_from_slice(&(value.len() as u16).to_le_bytes());
    body.extend_from_slice(value);
    pad(body);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend_from_slice(&[0; 4]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// Blocks of a file, as a reader that believes nothing walks them.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let total = u32_at(bytes, 4) as usize;
            assert!(total >= 12 && total.is_multiple_of(4) && total <= bytes.len());
            assert_eq!(u32_at(bytes, total - 4) as usize, total);
            found.push((u32_at(bytes, 0), bytes[8..total - 4].to_vec()));
            bytes = &bytes[total..];
        }
        found
    }

    /// Options behind `at` of a block: code and value, up to the end mark.
    fn options(body: &[u8], mut at: usize) -> Vec<(u16, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let code = u16::from_le_bytes(body[at..at + 2].try_into().unwrap());
            let len = usize::from(u16::from_le_bytes(body[at + 2..at + 4].try_into().unwrap()));
            if code == 0 {
                assert_eq!((len, at + 4), (0, body.len()), "the end mark ends the block");
                return found;
            }
            found.push((code, body[at + 4..at + 4 + len].to_vec()));
            at += 4 + len.next_multiple_of(4);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_by_a_reader_of_the_draft(
            packets in prop::collection::vec(
                (any::<u64>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..300), prop::option::of(".{0,40}")),
                0..20,
            ),
            name in ".{0,30}",
        ) {
            let mut bytes = Vec::new();
            let mut writer = Writer::new(&mut bytes, &name).unwrap();
            for (nanos, up, packet, comment) in &packets {
                let direction = if *up { Direction::ToPeer } else { Direction::ToTerminal };
                writer.packet(*nanos, direction, packet, comment.as_deref()).unwrap();
            }
            writer.flush().unwrap();
            let blocks = blocks(&bytes);
            prop_assert_eq!(blocks.len(), packets.len() + 2);
            prop_assert_eq!(blocks[0].0, SECTION_HEADER);
            prop_assert_eq!(u32_at(&blocks[0].1, 0), BYTE_ORDER);
            prop_assert_eq!(blocks[1].0, INTERFACE);
            let interface = options(&blocks[1].1, 8);
            prop_assert_eq!(&interface[0], &(IF_NAME, name.into_bytes()));
            prop_assert_eq!(&interface[1], &(IF_TSRESOL, vec![9]));
            for ((kind, body), (nanos, up, packet, comment)) in blocks[2..].iter().zip(packets) {
                prop_assert_eq!(*kind, ENHANCED_PACKET);
                let time = u64::from(u32_at(body, 4)) << 32 | u64::from(u32_at(body, 8));
                let len = u32_at(body, 12) as usize;
                prop_assert_eq!((time, len, u32_at(body, 16) as usize), (nanos, packet.len(), packet.len()));
                prop_assert_eq!(&body[20..20 + len], &packet[..]);
                let mut options = options(body, 20 + len.next_multiple_of(4));
                let flags = options.pop().unwrap();
                prop_assert_eq!(flags, (EPB_FLAGS, vec![if up { 2 } else { 1 }, 0, 0, 0]));
                prop_assert_eq!(options.pop().map(|option| option.1), comment.map(String::into_bytes));
            }
        }
    }
}
