//! Initial sequence numbers (RFC 6528): a clock plus a keyed hash of the connection's addresses and ports.

use core::net::IpAddr;

use towpath_base::Instant;

use crate::seq::SeqNum;

/// The secret of RFC 6528 §3; drawn once per process.
#[derive(Clone, Copy)]
pub struct IsnSecret(pub [u64; 2]);

impl core::fmt::Debug for IsnSecret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("IsnSecret([redacted])")
    }
}

impl IsnSecret {
    /// Draws a secret.
    pub fn generate(rng: &mut impl towpath_base::crypto::Rng) -> Self {
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        let value = u128::from_le_bytes(bytes);
        Self([value as u64, (value >> 64) as u64])
    }

    /// ISN = M + F(local address, local port, remote address, remote port), M counting 4 µs ticks.
    pub fn number(self, now: Instant, local: (IpAddr, u16), remote: (IpAddr, u16)) -> SeqNum {
        let mut hash = SipHash::new(self.0);
        for (address, port) in [local, remote] {
            match address {
                IpAddr::V4(address) => hash.word(u64::from(address.to_bits())),
                IpAddr::V6(address) => {
                    let bits = address.to_bits();
                    hash.word(bits as u64);
                    hash.word((bits >> 64) as u64);
                }
            }
            hash.word(u64::from(port));
        }
        SeqNum((hash.finish() as u32).wrapping_add((now.as_nanos() / 4_000) as u32))
    }

    /// A seed for hash tables.
    pub(crate) fn hash_seed(self) -> u64 {
        let mut hash = SipHash::new(self.0);
        hash.word(u64::MAX);
        hash.finish()
    }

    /// As [`Self::number`], and at least 2^30 away from `other`, the initial number of the connection this one relays.
    ///
    /// Should the relay die, each end answers what the other means for it. Numbers that far apart for certain are how
    /// a later relay tells such a pair from a connection it merely has not seen the beginning of.
    pub fn number_apart(
        self,
        now: Instant,
        local: (IpAddr, u16),
        remote: (IpAddr, u16),
        other: SeqNum,
    ) -> SeqNum {
        let number = self.number(now, local, remote);
        if number.distance(other).unsigned_abs() < 1 << 30 {
            number + (1 << 31)
        } else {
            number
        }
    }
}

/// SipHash-2-4 over whole 64-bit words.
struct SipHash {
    v: [u64; 4],
    words: u64,
}

impl SipHash {
    const fn new([k0, k1]: [u64; 2]) -> Self {
        Self {
            v: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
            words: 0,
        }
    }

    const fn rounds(&mut self, count: usize) {
        let [mut v0, mut v1, mut v2, mut v3] = self.v;
        let mut round = 0;
        while round < count {
            v0 = v0.wrapping_add(v1);
            v1 = v1.rotate_left(13) ^ v0;
            v0 = v0.rotate_left(32);
            v2 = v2.wrapping_add(v3);
            v3 = v3.rotate_left(16) ^ v2;
            v0 = v0.wrapping_add(v3);
            v3 = v3.rotate_left(21) ^ v0;
            v2 = v2.wrapping_add(v1);
            v1 = v1.rotate_left(17) ^ v2;
            v2 = v2.rotate_left(32);
            round += 1;
        }
        self.v = [v0, v1, v2, v3];
    }

    const fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.rounds(2);
        self.v[0] ^= word;
        self.words += 1;
    }

    const fn finish(mut self) -> u64 {
        self.word((self.words * 8) << 56);
        self.v[2] ^= 0xff;
        self.rounds(4);
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_matches_the_reference_vector() {
        // SipHash-2-4 reference, key 00..0f, input 00..07.
        let mut hash = SipHash::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        hash.word(0x0706_0504_0302_0100);
        assert_eq!(hash.finish(), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn numbers_grow_with_time_and_differ_between_connections() {
        let secret = IsnSecret([1, 2]);
        let local = (IpAddr::from([10, 0, 0, 1]), 80);
        let first = secret.number(Instant::ZERO, local, (IpAddr::from([10, 0, 0, 2]), 1000));
        let later = secret.number(Instant::from_secs(1), local, (IpAddr::from([10, 0, 0, 2]), 1000));
        assert_eq!(later.distance(first), 250_000);
        let other = secret.number(Instant::ZERO, local, (IpAddr::from([10, 0, 0, 2]), 1001));
        assert_ne!(first, other);
    }

    #[test]
    fn a_relays_number_is_never_near_the_one_it_relays() {
        let (local, remote) = (
            (IpAddr::from([10, 0, 0, 1]), 80),
            (IpAddr::from([10, 0, 0, 2]), 1000),
        );
        let mut moved = 0;
        for other in (0..=u32::MAX).step_by(1 << 22).map(SeqNum) {
            let secret = IsnSecret([1, 2]);
            let number = secret.number_apart(Instant::ZERO, local, remote, other);
            assert!(
                number.distance(other).unsigned_abs() >= 1 << 30,
                "{number:?} {other:?}"
            );
            moved += u32::from(number != secret.number(Instant::ZERO, local, remote));
        }
        assert!((400..=600).contains(&moved), "a half of all are near: {moved}");
    }
}
