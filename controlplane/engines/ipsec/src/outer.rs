//! The outer header of tunnel mode (RFC 4301 §5.1.2, RFC 6040).

use core::net::IpAddr;

use towpath_base::DropReason;
use towpath_common::wire::checksum;

use crate::ip::{self, IPV4_LEN, IPV6_LEN, Ip};

/// Hop limit of packets made here.
const HOP_LIMIT: u8 = 64;

/// What the outer header of a tunnel takes over from the inner one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OuterPolicy {
    /// Differentiated services.
    pub dscp: OuterDscp,
    /// "Don't fragment" of an IPv4 outer header.
    pub df: OuterDf,
    /// Congestion notification.
    pub ecn: OuterEcn,
}

/// Where the outer DSCP comes from. The inner one never changes (RFC 2983 §4, "uniform" is not for tunnels of trust).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OuterDscp {
    /// From the inner header.
    #[default]
    Copy,
    /// This value, 0 to 63, whatever the inner one: an observer learns nothing.
    Set(u8),
}

/// Where the outer DF bit comes from (RFC 4301 §8.1). Over an inner IPv6 packet `Copy` sets it: its sender expects to
/// be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OuterDf {
    /// From the inner header.
    #[default]
    Copy,
    /// Always set.
    Set,
    /// Never set: routers may fragment the outer packet.
    Clear,
}

/// Mode of the encapsulator (RFC 6040 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OuterEcn {
    /// Normal mode: copied from the inner header. For far ends that follow RFC 6040, RFC 4301 or RFC 3168.
    #[default]
    Normal,
    /// Compatibility mode: not ECN-capable. For far ends that drop the outer field.
    Compatibility,
}

/// Length of the outer header towards `remote`.
pub(crate) const fn len(remote: IpAddr) -> usize {
    if remote.is_ipv4() { IPV4_LEN } else { IPV6_LEN }
}

/// Everything of the outer header but length and checksum.
pub(crate) fn write(bytes: &mut [u8], local: IpAddr, remote: IpAddr, protocol: u8, inner: &Inner, id: u16) {
    match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let Some(header) = bytes.first_chunk_mut::<IPV4_LEN>() else {
                return;
            };
            let fragment: u16 = if inner.dont_fragment { 0x4000 } else { 0 };
            let [id_high, id_low] = if inner.dont_fragment {
                [0, 0]
            } else {
                id.to_be_bytes()
            };
            let [flags, offset] = fragment.to_be_bytes();
            let ([a, b, c, d], [e, f, g, h]) = (local.octets(), remote.octets());
            *header = [
                0x45, inner.tos, 0, 0, id_high, id_low, flags, offset, HOP_LIMIT, protocol, 0, 0, a, b, c, d,
                e, f, g, h,
            ];
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let Some(header) = bytes.first_chunk_mut::<IPV6_LEN>() else {
                return;
            };
            let first = 0x6000_0000 | (u32::from(inner.tos) << 20) | inner.flow_label;
            let (fixed, addresses) = header.split_at_mut(8);
            fixed.copy_from_slice(&[0; 8]);
            if let [a, b, c, d, _, _, next, hops] = fixed {
                [*a, *b, *c, *d] = first.to_be_bytes();
                (*next, *hops) = (protocol, HOP_LIMIT);
            }
            let (source, destination) = addresses.split_at_mut(16);
            source.copy_from_slice(&local.octets());
            destination.copy_from_slice(&remote.octets());
        }
        _ => {}
    }
}

/// What the outer header takes over from the inner packet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Inner {
    tos: u8,
    dont_fragment: bool,
    flow_label: u32,
}

impl Inner {
    pub(crate) fn of(packet: &[u8], ip: &Ip, policy: OuterPolicy) -> Self {
        let word = |at| ip::be32(packet, at).unwrap_or(0);
        let dscp = match policy.dscp {
            OuterDscp::Copy => ip.tos & !ECN,
            OuterDscp::Set(value) => value << 2,
        };
        let ecn = match policy.ecn {
            OuterEcn::Normal => ip.tos & ECN,
            OuterEcn::Compatibility => 0,
        };
        let copied = !ip.is_v4() || word(4) & 0x4000 != 0;
        Self {
            tos: dscp | ecn,
            dont_fragment: match policy.df {
                OuterDf::Copy => copied,
                OuterDf::Set => true,
                OuterDf::Clear => false,
            },
            flow_label: if ip.is_v4() { 0 } else { word(0) & 0x000f_ffff },
        }
    }
}

/// The ECN field of TOS and traffic class.
const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT1: u8 = 0b01;
const ECT0: u8 = 0b10;
const CE: u8 = 0b11;

/// The inner ECN field after decapsulation (RFC 6040 §4.2, figure 4); `None`: the packet is to be dropped, for its
/// sender could not be told of the congestion otherwise.
pub(crate) const fn decapsulated(inner: u8, outer: u8) -> Option<u8> {
    match (inner & ECN, outer & ECN) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT0, ECT1) => Some(ECT1),
        (inner, _) => Some(inner),
    }
}

/// Carries congestion marks from the outer header (its TOS) to the inner packet.
pub(crate) fn propagate_ecn(outer_tos: u8, inner: &mut [u8]) -> Result<(), DropReason> {
    let [first, second, ..] = inner else {
        return Err(DropReason::Truncated);
    };
    let v4 = *first >> 4 == 4;
    // The ECN bits of an IPv6 traffic class are bits 5 and 4 of the second byte.
    let shift = if v4 { 0 } else { 4 };
    let present = (*second >> shift) & ECN;
    let wanted = decapsulated(present, outer_tos).ok_or(DropReason::EcnNotCapable)?;
    if wanted == present {
        return Ok(());
    }
    *second = (*second & !(ECN << shift)) | wanted << shift;
    if v4 {
        let header_len = usize::from(*first & 0x0f) * 4;
        ip::put16(inner, 10, 0);
        let check = inner.get(..header_len).map_or(0, checksum);
        ip::put16(inner, 10, check);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 §4.2, figure 4: rows are the arriving inner field, columns the arriving outer one.
    #[test]
    fn the_table_of_rfc_6040() {
        let columns = [NOT_ECT, ECT0, ECT1, CE];
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT0, [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)]),
            (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in columns.into_iter().zip(row) {
                assert_eq!(decapsulated(inner, outer), expected, "{inner:02b} in {outer:02b}");
                for dscp in [0u8, 0xb8] {
                    let mut v4 = [
                        0x45,
                        dscp | inner,
                        0,
                        20,
                        0,
                        0,
                        0,
                        0,
                        64,
                        17,
                        0,
                        0,
                        1,
                        2,
                        3,
                        4,
                        5,
                        6,
                        7,
                        8,
                    ];
                    let check = checksum(&v4);
                    ip::put16(&mut v4, 10, check);
                    let mut v6 = [0x60 | dscp >> 4, dscp << 4 | inner << 4 | 0x0a, 0xbb, 0xcc];
                    // The outer DSCP never comes in.
                    let result = propagate_ecn(0xfc | outer, &mut v4);
                    assert_eq!(result.ok().map(|()| v4[1]), expected.map(|ecn| dscp | ecn));
                    assert_eq!(checksum(&v4), 0);
                    let result = propagate_ecn(0xfc | outer, &mut v6);
                    let class = v6[0] << 4 | v6[1] >> 4;
                    assert_eq!(result.ok().map(|()| class), expected.map(|ecn| dscp | ecn));
                    assert_eq!((v6[0] >> 4, v6[1] & 0x0f, v6[2]), (6, 0x0a, 0xbb));
                }
            }
        }
    }
}
