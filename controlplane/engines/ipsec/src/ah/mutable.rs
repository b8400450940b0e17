//! The IP header as it will arrive: fields that change on the way and cannot be foretold are zero, those that can
//! have their final value (RFC 4302 §3.3.3.1 and appendix A).

use towpath_base::DropReason;
use towpath_common::wire::protocol;

use crate::ip::{IPV4_LEN, IPV6_LEN};

/// Most bytes of IP header with options or extensions that AH is computed over.
const MAX_HEADERS: usize = 512;

/// A copy of the headers in front of AH, fit for the ICV.
pub(super) struct Frozen {
    bytes: [u8; MAX_HEADERS],
    len: usize,
}

impl Frozen {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// `headers`: everything in front of AH.
pub(super) fn freeze(headers: &[u8]) -> Result<Frozen, DropReason> {
    let mut frozen = Frozen {
        bytes: [0; MAX_HEADERS],
        len: headers.len(),
    };
    let copy = frozen
        .bytes
        .get_mut(..headers.len())
        .ok_or(DropReason::AhHeaderUnsupported)?;
    copy.copy_from_slice(headers);
    match copy.first().map(|first| first >> 4) {
        Some(4) => freeze_v4(copy)?,
        Some(6) => freeze_v6(copy)?,
        _ => return Err(DropReason::BadIpHeader),
    }
    Ok(frozen)
}

/// IPv4 options that do not change on the way; every other, known or not, counts as zero (appendix A1).
const fn is_immutable(option: u8) -> bool {
    // Security, extended security, commercial security, router alert, sender-directed delivery.
    matches!(option, 130 | 133 | 134 | 148 | 149)
}

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

fn freeze_v4(header: &mut [u8]) -> Result<(), DropReason> {
    let (fixed, options) = header
        .split_first_chunk_mut::<IPV4_LEN>()
        .ok_or(DropReason::Truncated)?;
    let [_, tos, _, _, _, _, flags, offset, ttl, _, check, check_low, ..] = fixed;
    for field in [tos, flags, offset, ttl, check, check_low] {
        *field = 0;
    }
    let mut rest = options;
    while let [kind, ..] = rest {
        match *kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => rest = rest.get_mut(1..).ok_or(DropReason::BadIpHeader)?,
            kind => {
                let len = usize::from(*rest.get(1).ok_or(DropReason::BadIpHeader)?);
                if len < 2 {
                    return Err(DropReason::BadIpHeader);
                }
                let (option, behind) = rest.split_at_mut_checked(len).ok_or(DropReason::BadIpHeader)?;
                if matches!(kind, LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE) {
                    final_destination_v4(fixed, option)?;
                }
                if !is_immutable(kind) {
                    option.fill(0);
                }
                rest = behind;
            }
        }
    }
    Ok(())
}

/// With a source route not yet used up, the destination will be the last address of the route.
fn final_destination_v4(fixed: &mut [u8; IPV4_LEN], option: &[u8]) -> Result<(), DropReason> {
    let [_, len, pointer, .., a, b, c, d] = *option else {
        return Err(DropReason::BadIpHeader);
    };
    if pointer <= len {
        let [.., w, x, y, z] = fixed;
        (*w, *x, *y, *z) = (a, b, c, d);
    }
    Ok(())
}

/// Options with this bit may change on the way (RFC 8200 §4.2).
const MAY_CHANGE: u8 = 0x20;
const PAD1: u8 = 0;
/// The home address option stands for the source address (RFC 6275 §6.3); we do not swap them.
const HOME_ADDRESS: u8 = 0xc9;

fn freeze_v6(headers: &mut [u8]) -> Result<(), DropReason> {
    let (fixed, mut rest) = headers
        .split_first_chunk_mut::<IPV6_LEN>()
        .ok_or(DropReason::Truncated)?;
    let [first, class, flow, flow_low, _, _, next, hops, ..] = fixed;
    *first &= 0xf0;
    for field in [class, flow, flow_low, hops] {
        *field = 0;
    }
    let mut kind = *next;
    while let [next, words, ..] = rest {
        let following = *next;
        let len = 8 + usize::from(*words) * 8;
        let (header, behind) = rest.split_at_mut_checked(len).ok_or(DropReason::Truncated)?;
        match kind {
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS => freeze_options(header)?,
            protocol::ROUTING => freeze_route(fixed, header)?,
            _ => return Err(DropReason::AhHeaderUnsupported),
        }
        (kind, rest) = (following, behind);
    }
    Ok(())
}

fn freeze_options(header: &mut [u8]) -> Result<(), DropReason> {
    let mut rest = header.get_mut(2..).ok_or(DropReason::Truncated)?;
    while let [kind, ..] = rest {
        let kind = *kind;
        if kind == PAD1 {
            rest = rest.get_mut(1..).ok_or(DropReason::BadIpHeader)?;
            continue;
        }
        if kind == HOME_ADDRESS {
            return Err(DropReason::AhHeaderUnsupported);
        }
        let len = 2 + usize::from(*rest.get(1).ok_or(DropReason::BadIpHeader)?);
        let (option, behind) = rest.split_at_mut_checked(len).ok_or(DropReason::BadIpHeader)?;
        if kind & MAY_CHANGE != 0 {
            option.iter_mut().skip(2).for_each(|byte| *byte = 0);
        }
        rest = behind;
    }
    Ok(())
}

/// A routing header of type 0 or 2 as it is at the final destination: no segments left, addresses moved on by one.
/// Other types say nothing about how they change.
fn freeze_route(fixed: &mut [u8; IPV6_LEN], header: &mut [u8]) -> Result<(), DropReason> {
    let (front, addresses) = header.split_first_chunk_mut::<8>().ok_or(DropReason::Truncated)?;
    let [_, _, kind, left, ..] = front;
    if !matches!(*kind, 0 | 2) {
        return Err(DropReason::AhHeaderUnsupported);
    }
    if *left == 0 {
        return Ok(());
    }
    let (addresses, rest) = addresses.as_chunks_mut::<16>();
    if !rest.is_empty() {
        return Err(DropReason::BadIpHeader);
    }
    // In the middle of its way nobody signs or checks a packet.
    if usize::from(*left) != addresses.len() {
        return Err(DropReason::AhHeaderUnsupported);
    }
    *left = 0;
    let destination = fixed.last_chunk_mut::<16>().ok_or(DropReason::BadIpHeader)?;
    addresses.rotate_right(1);
    if let Some(first) = addresses.first_mut() {
        core::mem::swap(first, destination);
    }
    Ok(())
}
