//! Puzzles (RFC 8019 §7, §8): under attack an initiator shows that it spent time before we spend any.
//!
//! The responder asks with N(COOKIE) and N(PUZZLE) = PRF (2), difficulty (1). The initiator finds four different keys
//! K with PRF(K, cookie) ending in that many zero bits, and sends them, of equal length, in a Puzzle Solution payload.

use alloc::vec::Vec;

use towpath_base::crypto::{KeyGenerator, Prf};

use crate::wire::{Payload, Proposal, TransformType};

/// Puzzle Solution.
pub(crate) const PAYLOAD: u8 = 54;
/// Keys in a solution.
const KEYS: usize = 4;
/// Bytes of each of our keys.
const KEY_LEN: usize = 4;
/// Longest solution looked at: keys of 64 bytes.
const MAX_LEN: usize = KEYS * 64;
/// Chances a solver takes before it gives up, over those a solution needs on average.
const PATIENCE: u32 = 4;

/// Data of N(PUZZLE).
pub(crate) fn ask(prf: Prf, difficulty: u8) -> Vec<u8> {
    let [high, low] = prf.number().to_be_bytes();
    [high, low, difficulty].to_vec()
}

/// Reads the data of N(PUZZLE).
pub(crate) fn asked(data: &[u8]) -> Option<(Prf, u8)> {
    let [high, low, difficulty] = *data else {
        return None;
    };
    Some((Prf::from_number(u16::from_be_bytes([high, low]))?, difficulty))
}

/// A PRF the initiator offers and we have.
pub(crate) fn common_prf(offers: &[Proposal]) -> Option<Prf> {
    let mut transforms = offers.iter().flat_map(|offer| offer.of(TransformType::PRF));
    transforms.find_map(|transform| Prf::from_number(transform.id))
}

fn solves<K: KeyGenerator>(keygen: &K, prf: Prf, key: &[u8], cookie: &[u8], difficulty: u8) -> bool {
    let output = keygen.prf(prf, key, &[cookie]);
    let mut zeros = 0;
    for byte in output.expose().iter().rev() {
        zeros += byte.trailing_zeros();
        if *byte != 0 {
            break;
        }
    }
    zeros >= difficulty.into()
}

/// Four keys; `None` if luck runs out. Takes about 4 · 2^difficulty PRFs.
pub(crate) fn solve<K: KeyGenerator>(keygen: &K, prf: Prf, cookie: &[u8], difficulty: u8) -> Option<Vec<u8>> {
    let tries = (KEYS as u32 * PATIENCE).checked_shl(difficulty.into())?;
    let keys = (0..tries).map(u32::to_be_bytes);
    let found = keys.filter(|key| solves(keygen, prf, key, cookie, difficulty));
    let solution: Vec<u8> = found.take(KEYS).flatten().collect();
    (solution.len() == KEYS * KEY_LEN).then_some(solution)
}

/// Whether a message carries a solution.
pub(crate) fn check<K: KeyGenerator>(
    keygen: &K,
    prf: Prf,
    payloads: &[Payload<'_>],
    cookie: &[u8],
    difficulty: u8,
) -> bool {
    let solution = payloads.iter().find_map(|payload| match payload {
        Payload::Unknown { kind: PAYLOAD, data } => Some(data.as_ref()),
        _ => None,
    });
    let Some(solution) = solution.filter(|data| !data.is_empty() && data.len() <= MAX_LEN) else {
        return false;
    };
    if !solution.len().is_multiple_of(KEYS) {
        return false;
    }
    let keys: Vec<&[u8]> = solution.chunks(solution.len() / KEYS).collect();
    let different = keys
        .iter()
        .enumerate()
        .all(|(at, key)| !keys.iter().skip(at + 1).any(|other| other == key));
    different
        && keys
            .iter()
            .all(|key| solves(keygen, prf, key, cookie, difficulty))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use towpath_crypto::IkeCrypto;

    use super::*;

    fn solution(data: Vec<u8>) -> [Payload<'static>; 1] {
        [Payload::Unknown {
            kind: PAYLOAD,
            data: data.into(),
        }]
    }

    #[test]
    fn a_solution_is_four_different_keys_for_this_cookie() {
        let (prf, cookie, bits) = (Prf::HmacSha256, b"a cookie".as_slice(), 8);
        let good = solve(&IkeCrypto, prf, cookie, bits).unwrap();
        let check = |data: &[u8], cookie| check(&IkeCrypto, prf, &solution(data.to_vec()), cookie, bits);
        assert!(check(&good, cookie));
        assert!(!check(&good, b"another cookie"));
        let mut twice = good.clone();
        twice.copy_within(0..4, 4);
        assert!(!check(&twice, cookie), "the same key twice");
        let mut wrong = good.clone();
        wrong[15] ^= 1;
        for bad in [&wrong[..], &good[..12], &good[..15], &[], &[0; 1000]] {
            assert!(!check(bad, cookie), "{} bytes", bad.len());
        }
    }

    #[test]
    fn puzzles_that_make_no_sense_are_not_understood() {
        assert_eq!(asked(&ask(Prf::HmacSha256, 9)), Some((Prf::HmacSha256, 9)));
        for data in [vec![], vec![0, 5], vec![0, 99, 3], vec![0, 5, 3, 0]] {
            assert_eq!(asked(&data), None);
        }
        assert_eq!(solve(&IkeCrypto, Prf::HmacSha256, b"", 255), None);
    }
}
