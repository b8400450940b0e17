//! Cuts IP packets to an MTU (RFC 791 §3.2, RFC 8200 §4.5): plain IPv4 packets that may be fragmented before they are
//! sealed in tunnel mode, and packets of our own making.

use towpath_base::DropReason;
use towpath_common::wire::protocol;

use crate::ip::{self, IPV4_LEN, IPV6_LEN, Ip, Walk, be16, put16};

/// Length of the IPv6 fragment header.
const FRAGMENT_LEN: usize = 8;

/// A packet being cut. Write each fragment with [`Fragments::write_next`].
#[derive(Debug, Clone)]
pub struct Fragments<'a> {
    packet: &'a [u8],
    /// IP header, with the extensions every fragment repeats.
    head: &'a [u8],
    v4: bool,
    /// IPv6: the first header of the part that is cut, and where the head names it.
    next: (u8, usize),
    id: u32,
    /// Bytes of payload in front of the packet, if it is a fragment itself.
    base: usize,
    /// More fragments follow the packet, if it is one itself.
    more: bool,
    mtu: usize,
    at: usize,
}

/// Begins to cut `packet` into fragments of at most `mtu` bytes. `id` names the datagram; IPv4 keeps the packet's own.
///
/// # Errors
/// [`DropReason::TooBig`] if IPv4's "don't fragment" is set, or `mtu` leaves no room; [`DropReason::EspFragment`] for an
/// IPv6 fragment, which only its source may cut; else what is wrong with the IP header.
pub fn fragments(packet: &[u8], mtu: u16, id: u32) -> Result<Fragments<'_>, DropReason> {
    let ip = Ip::parse(packet, Walk::ToEspPlace)?;
    let packet = packet.get(..ip.end).ok_or(DropReason::Truncated)?;
    let head = packet.get(..ip.payload_at).ok_or(DropReason::Truncated)?;
    let flags = if ip.is_v4() {
        be16(packet, 6).unwrap_or(0)
    } else {
        0
    };
    if flags & 0x4000 != 0 {
        return Err(DropReason::TooBig);
    }
    if ip.fragment && !ip.is_v4() {
        return Err(DropReason::EspFragment);
    }
    let overhead = if ip.is_v4() { 0 } else { FRAGMENT_LEN };
    if usize::from(mtu) < head.len() + overhead + 8 {
        return Err(DropReason::TooBig);
    }
    Ok(Fragments {
        packet,
        head,
        v4: ip.is_v4(),
        next: (ip.protocol, ip.protocol_at),
        id,
        base: usize::from(flags & 0x1fff) * 8,
        more: flags & 0x2000 != 0,
        mtu: mtu.into(),
        at: head.len(),
    })
}

impl Fragments<'_> {
    /// Writes the next fragment, a whole IP packet, to the front of `buffer` and returns its length; `None` when there is
    /// none left, or `buffer` is shorter than the MTU.
    pub fn write_next(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if self.at >= self.packet.len() {
            return None;
        }
        let offset = self.base + self.at - self.head.len();
        let head_len = self.write_head(buffer, offset)?;
        let room = self.mtu.checked_sub(head_len)?;
        let left = self.packet.len() - self.at;
        let last = left <= room;
        let len = if last { left } else { room - room % 8 };
        let data = self.packet.get(self.at..self.at + len)?;
        let out = buffer.get_mut(..head_len + len)?;
        out.get_mut(head_len..)?.copy_from_slice(data);
        let more = !last || self.more;
        if self.v4 {
            let flag = if more { 0x2000 } else { 0 };
            put16(out, 6, flag | (offset / 8) as u16);
        } else {
            put16(out, head_len - FRAGMENT_LEN + 2, offset as u16 | u16::from(more));
        }
        ip::finish_header(out);
        self.at += len;
        Some(out.len())
    }

    fn write_head(&self, buffer: &mut [u8], offset: usize) -> Option<usize> {
        if self.v4 && offset != 0 && self.head.len() > IPV4_LEN {
            return copied_options(self.head, buffer);
        }
        buffer.get_mut(..self.head.len())?.copy_from_slice(self.head);
        if self.v4 {
            return Some(self.head.len());
        }
        let (next, named_at) = self.next;
        *buffer.get_mut(named_at)? = protocol::FRAGMENT;
        let end = self.head.len() + FRAGMENT_LEN;
        let [a, b, c, d] = self.id.to_be_bytes();
        buffer
            .get_mut(self.head.len()..end)?
            .copy_from_slice(&[next, 0, 0, 0, a, b, c, d]);
        debug_assert!(end >= IPV6_LEN);
        Some(end)
    }
}

/// The header of a later fragment: of its options only those that are marked to be copied (RFC 791 §3.1).
fn copied_options(head: &[u8], buffer: &mut [u8]) -> Option<usize> {
    let (fixed, mut rest) = head.split_at_checked(IPV4_LEN)?;
    buffer.get_mut(..IPV4_LEN)?.copy_from_slice(fixed);
    let mut at = IPV4_LEN;
    while let [kind, behind @ ..] = rest {
        match kind {
            0 => break,
            1 => rest = behind,
            _ => {
                let len = usize::from(*behind.first()?).max(2);
                let (option, behind) = rest.split_at_checked(len)?;
                if kind & 0x80 != 0 {
                    buffer.get_mut(at..at + len)?.copy_from_slice(option);
                    at += len;
                }
                rest = behind;
            }
        }
    }
    let end = at.next_multiple_of(4);
    buffer.get_mut(at..end)?.fill(0);
    *buffer.first_mut()? = 0x40 | (end / 4) as u8;
    Some(end)
}
