//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// One's complement sum of `bytes`, unfolded. Odd lengths are padded with a zero byte on the right.
#[inline]
pub fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut total: u32 = 0;
    for word in words {
        total = total.wrapping_add(u32::from(u16::from_be_bytes(*word)));
    }
    if let [last] = rest {
        total = total.wrapping_add(u32::from(*last) << 8);
    }
    total
}

/// Folds a sum into 16 bits and complements it: the value that goes into a header.
#[inline]
pub const fn fold(mut total: u32) -> u16 {
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

/// Checksum of `bytes` (at most 64 KiB), ready for a header whose checksum field was zero.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    fold(sum(bytes))
}

/// New checksum after one 16-bit word changed from `old` to `new` (RFC 1624 §3, eqn. 3).
#[inline]
pub const fn checksum_update16(check: u16, old: u16, new: u16) -> u16 {
    fold((!check) as u32 + (!old) as u32 + new as u32)
}

/// Sum of the IPv4 pseudo-header (RFC 9293 §3.1); `len` is the length of the transport segment.
#[inline]
pub fn pseudo_header_v4(src: [u8; 4], dst: [u8; 4], protocol: u8, len: u16) -> u32 {
    sum(&src) + sum(&dst) + u32::from(protocol) + u32::from(len)
}

/// Sum of the IPv6 pseudo-header (RFC 8200 §8.1); `len` is the length of the transport segment.
#[inline]
pub fn pseudo_header_v6(src: [u8; 16], dst: [u8; 16], next_header: u8, len: u32) -> u32 {
    sum(&src) + sum(&dst) + u32::from(next_header) + (len >> 16) + (len & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&bytes), !0xddf2);
    }

    #[test]
    fn an_update_equals_a_fresh_checksum() {
        let mut bytes = [0x45, 0, 0, 0x54, 0x1c, 0x46, 0x40, 0, 0x40, 0x06];
        let before = checksum(&bytes);
        let old = u16::from_be_bytes([bytes[8], bytes[9]]);
        bytes[8] -= 1;
        let new = u16::from_be_bytes([bytes[8], bytes[9]]);
        assert_eq!(checksum_update16(before, old, new), checksum(&bytes));
    }
}
