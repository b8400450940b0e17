//! Acknowledgments changed in place.

use crate::segment::{HEADER_LEN, MAX_OPTIONS_LEN};

/// How an acknowledgment is changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// The SACK option is blanked.
    pub blank_sack: bool,
    /// The window field, as it stands on the wire.
    pub window: Option<u16>,
}

/// Carries out `change` on the segment in an IP packet and corrects the checksum. False if the packet is
/// not what it was taken for; then it is unchanged or partly changed and must be dropped.
pub fn apply(change: Change, packet: &mut [u8]) -> bool {
    let ip_len = match packet
        .first()
        .map(|first| (first >> 4, usize::from(first & 0x0f) * 4))
    {
        Some((4, len)) => len,
        Some((6, _)) => 40,
        _ => return false,
    };
    let Some(segment) = packet.get_mut(ip_len..) else {
        return false;
    };
    if let Some(window) = change.window
        && !replace(segment, 14, &window.to_be_bytes())
    {
        return false;
    }
    if change.blank_sack {
        let Some(header_len) = segment.get(12).map(|offset| usize::from(offset >> 4) * 4) else {
            return false;
        };
        if let Some((start, len)) = find_sack(segment, header_len) {
            // NOPs, RFC 9293 §3.1.
            return [1_u8; MAX_OPTIONS_LEN]
                .get(..len)
                .is_some_and(|nops| replace(segment, start, nops));
        }
    }
    true
}

/// Writes `bytes` at `start` of a segment, word by word, so that the checksum can be corrected rather than
/// computed (RFC 1624).
fn replace(segment: &mut [u8], start: usize, bytes: &[u8]) -> bool {
    let Some(field) = segment
        .get(16..18)
        .and_then(|field| field.first_chunk::<2>().copied())
    else {
        return false;
    };
    let mut check = u16::from_be_bytes(field);
    let end = (start + bytes.len()).next_multiple_of(2);
    for at in (start & !1..end).step_by(2) {
        let Some(word) = segment.get_mut(at..at + 2) else {
            return false;
        };
        let old = word
            .first_chunk::<2>()
            .map_or(0, |word| u16::from_be_bytes(*word));
        for (index, byte) in word.iter_mut().enumerate() {
            if let Some(new) = (at + index).checked_sub(start).and_then(|from| bytes.get(from)) {
                *byte = *new;
            }
        }
        let new = word
            .first_chunk::<2>()
            .map_or(0, |word| u16::from_be_bytes(*word));
        check = towpath_common::wire::checksum_update16(check, old, new);
    }
    if let Some(field) = segment.get_mut(16..18) {
        field.copy_from_slice(&check.to_be_bytes());
    }
    true
}

/// Start and length of the SACK option.
fn find_sack(segment: &[u8], header_len: usize) -> Option<(usize, usize)> {
    let mut at = HEADER_LEN;
    while at < header_len {
        match *segment.get(at)? {
            0 => return None,
            1 => at += 1,
            kind => {
                let len = usize::from(*segment.get(at + 1)?);
                if len < 2 || at + len > header_len {
                    return None;
                }
                if kind == 5 {
                    return Some((at, len));
                }
                at += len;
            }
        }
    }
    None
}
