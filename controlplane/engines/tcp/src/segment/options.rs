//! Options: MSS (RFC 9293 §3.7.1), window scale and timestamps (RFC 7323), SACK (RFC 2018).

use crate::seq::SeqNum;

/// Room for options in a header, bytes.
pub const MAX_OPTIONS_LEN: usize = 40;

/// Most SACK blocks a header can hold (RFC 2018 §3).
pub const MAX_SACK_BLOCKS: usize = 4;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// The timestamps option (RFC 7323 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the clock value it echoes.
    pub echo: u32,
}

/// SACK blocks `[left, right)` in the order they stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SackBlocks {
    blocks: [(SeqNum, SeqNum); MAX_SACK_BLOCKS],
    len: u8,
}

impl SackBlocks {
    /// Appends a block if there is room.
    pub fn push(&mut self, left: SeqNum, right: SeqNum) -> bool {
        match self.blocks.get_mut(usize::from(self.len)) {
            Some(block) => {
                *block = (left, right);
                self.len += 1;
                true
            }
            None => false,
        }
    }

    /// The blocks.
    pub fn as_slice(&self) -> &[(SeqNum, SeqNum)] {
        self.blocks.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// True when there is no block.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The options of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Largest segment the sender of the SYN accepts, bytes.
    pub mss: Option<u16>,
    /// Shift of the windows the sender of the SYN will announce.
    pub window_scale: Option<u8>,
    /// The sender of the SYN understands SACK.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// Received blocks above the acknowledgment.
    pub sack: SackBlocks,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk::<4>()
        .map(|b| u32::from_be_bytes(*b))
}

impl Options {
    /// Reads options; stops at the first that does not fit, skips those it does not know.
    pub(super) fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let Some((&kind, rest)) = bytes.split_first() {
            match kind {
                END => break,
                NOP => bytes = rest,
                _ => {
                    let Some(&len) = rest.first() else { break };
                    let Some((option, after)) = bytes.split_at_checked(usize::from(len)) else {
                        break;
                    };
                    let Some(body) = option.get(2..) else { break };
                    options.take(kind, body);
                    bytes = after;
                }
            }
        }
        options
    }

    fn take(&mut self, kind: u8, body: &[u8]) {
        match (kind, body) {
            (MSS, &[high, low]) => self.mss = Some(u16::from_be_bytes([high, low])),
            // RFC 7323 §2.3: a shift above 14 is used as 14.
            (WINDOW_SCALE, &[shift]) => self.window_scale = Some(shift.min(14)),
            (SACK_PERMITTED, []) => self.sack_permitted = true,
            (TIMESTAMPS, _) if body.len() == 8 => {
                if let (Some(value), Some(echo)) = (u32_at(body, 0), u32_at(body, 4)) {
                    self.timestamps = Some(Timestamps { value, echo });
                }
            }
            (SACK, _) if body.len().is_multiple_of(8) => {
                for block in body.chunks_exact(8) {
                    if let (Some(left), Some(right)) = (u32_at(block, 0), u32_at(block, 4)) {
                        self.sack.push(SeqNum(left), SeqNum(right));
                    }
                }
            }
            _ => {}
        }
    }

    /// Length on the wire, padded to a multiple of four, bytes.
    pub fn wire_len(&self) -> usize {
        let mut len = 0;
        if self.mss.is_some() {
            len += 4;
        }
        if self.window_scale.is_some() {
            len += 4;
        }
        if self.timestamps.is_some() {
            len += 12;
        } else if self.sack_permitted {
            len += 4;
        }
        if !self.sack.is_empty() {
            len += 4 + self.sack.as_slice().len() * 8;
        }
        len
    }

    /// Writes the options with their padding; returns the length. Blocks of SACK that do not fit beside
    /// the others are left out.
    pub(super) fn write(&self, out: &mut [u8]) -> Option<usize> {
        let mut bytes = [NOP; MAX_OPTIONS_LEN];
        let mut len = 0;
        let mut put = |part: &[u8]| -> Option<()> {
            bytes.get_mut(len..len + part.len())?.copy_from_slice(part);
            len += part.len();
            Some(())
        };
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            put(&[MSS, 4, high, low])?;
        }
        if let Some(timestamps) = self.timestamps {
            // SACK permitted takes the two bytes of padding the timestamps leave.
            put(&if self.sack_permitted {
                [SACK_PERMITTED, 2]
            } else {
                [NOP, NOP]
            })?;
            put(&[TIMESTAMPS, 10])?;
            put(&timestamps.value.to_be_bytes())?;
            put(&timestamps.echo.to_be_bytes())?;
        } else if self.sack_permitted {
            put(&[NOP, NOP, SACK_PERMITTED, 2])?;
        }
        if let Some(shift) = self.window_scale {
            put(&[NOP, WINDOW_SCALE, 3, shift])?;
        }
        let others = Self {
            sack: SackBlocks::default(),
            ..*self
        }
        .wire_len();
        let fitting = MAX_OPTIONS_LEN.saturating_sub(others + 4) / 8;
        let blocks = self.sack.as_slice();
        let blocks = blocks.get(..fitting.min(blocks.len())).unwrap_or(&[]);
        if !blocks.is_empty() {
            put(&[NOP, NOP, SACK, (2 + blocks.len() * 8) as u8])?;
            for (left, right) in blocks {
                put(&left.0.to_be_bytes())?;
                put(&right.0.to_be_bytes())?;
            }
        }
        out.get_mut(..len)?.copy_from_slice(bytes.get(..len)?);
        Some(len)
    }
}
