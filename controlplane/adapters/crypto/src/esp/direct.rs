//! The only `unsafe` of this crate: AEAD keys of aws-lc that lie in the SA itself, and telling the processor what it
//! will need next.
//!
//! `aws_lc_rs::aead::LessSafeKey` keeps its key schedule in an allocation of its own, whose place it does not tell. With
//! ten thousand SAs that schedule is in no cache when a packet comes, and nobody can ask for it ahead of time.
//! Here it is a field of the transform; see [`fetch`].
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;

use aws_lc_sys::{
    EVP_AEAD, EVP_AEAD_CTX, EVP_AEAD_CTX_cleanup, EVP_AEAD_CTX_init, EVP_AEAD_CTX_open_gather,
    EVP_AEAD_CTX_seal_scatter, EVP_AEAD_CTX_zero, EVP_aead_aes_128_gcm, EVP_aead_aes_256_gcm,
    EVP_aead_chacha20_poly1305, OPENSSL_cleanse,
};
use towpath_base::crypto::{Forged, InvalidKey, Whereabouts};

/// Length of every tag here, bytes.
const TAG: usize = 16;

/// An AEAD with a nonce of 12 bytes and a tag of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

impl Algorithm {
    const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }

    fn method(self) -> *const EVP_AEAD {
        // SAFETY: these take nothing and return pointers to constants of the library.
        unsafe {
            match self {
                Self::Aes128Gcm => EVP_aead_aes_128_gcm(),
                Self::Aes256Gcm => EVP_aead_aes_256_gcm(),
                Self::ChaCha20Poly1305 => EVP_aead_chacha20_poly1305(),
            }
        }
    }
}

/// One key with its schedule, in place.
pub(super) struct AeadKey {
    /// Initialised. For the algorithms above it holds no pointer into itself nor to memory of its own, so that a plain
    /// copy of its bytes is the same key ("a verbatim copy fully duplicates it", `crypto/fipsmodule/cipher/aead.c`):
    /// it may be moved.
    ctx: EVP_AEAD_CTX,
}

// SAFETY: the context belongs to its owner alone, and what it points to is a constant.
unsafe impl Send for AeadKey {}
// SAFETY: sealing and opening read the context (openssl/aead.h: these AEADs may be used concurrently).
unsafe impl Sync for AeadKey {}

impl AeadKey {
    pub(super) fn new(algorithm: Algorithm, key: &[u8]) -> Result<Self, InvalidKey> {
        // Finds out what the processor can do; needed once, cheap afterwards.
        aws_lc_rs::init();
        if key.len() != algorithm.key_len() {
            return Err(InvalidKey);
        }
        let mut ctx = MaybeUninit::<EVP_AEAD_CTX>::zeroed();
        // SAFETY: `ctx` is writable and of the library's size; `key` is readable for its length; no engine is named.
        let made = unsafe {
            EVP_AEAD_CTX_zero(ctx.as_mut_ptr());
            EVP_AEAD_CTX_init(
                ctx.as_mut_ptr(),
                algorithm.method(),
                key.as_ptr(),
                key.len(),
                TAG,
                ptr::null_mut(),
            )
        };
        if made != 1 {
            return Err(InvalidKey);
        }
        // SAFETY: all bytes were written, with zeros first, and initialisation succeeded.
        let ctx = unsafe { ctx.assume_init() };
        Ok(Self { ctx })
    }

    /// Encrypts `text` in place and writes `tag`.
    #[inline]
    pub(super) fn seal(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8; TAG],
    ) -> Result<(), Forged> {
        let mut written = 0;
        // SAFETY: every pointer comes with its own length; `text` is input and output, which the function allows when
        // they are the same; `tag` is apart from it, as both are borrowed exclusively.
        let done = unsafe {
            EVP_AEAD_CTX_seal_scatter(
                &self.ctx,
                text.as_mut_ptr(),
                tag.as_mut_ptr(),
                &mut written,
                TAG,
                nonce.as_ptr(),
                nonce.len(),
                text.as_ptr(),
                text.len(),
                ptr::null(),
                0,
                aad.as_ptr(),
                aad.len(),
            )
        };
        (done == 1 && written == TAG).then_some(()).ok_or(Forged)
    }

    /// Checks `tag`, decrypts `text` in place. On error `text` is unspecified.
    #[inline]
    pub(super) fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), Forged> {
        // SAFETY: as in `seal`; `tag` is only read.
        let done = unsafe {
            EVP_AEAD_CTX_open_gather(
                &self.ctx,
                text.as_mut_ptr(),
                nonce.as_ptr(),
                nonce.len(),
                text.as_ptr(),
                text.len(),
                tag.as_ptr(),
                TAG,
                aad.as_ptr(),
                aad.len(),
            )
        };
        (done == 1).then_some(()).ok_or(Forged)
    }
}

impl Drop for AeadKey {
    fn drop(&mut self) {
        // SAFETY: the context is initialised and not used again; afterwards its bytes are wiped.
        unsafe {
            EVP_AEAD_CTX_cleanup(&mut self.ctx);
            OPENSSL_cleanse(ptr::from_mut(&mut self.ctx).cast(), size_of::<EVP_AEAD_CTX>());
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for these bytes. Changes nothing but time.
#[inline]
pub(super) fn fetch(bytes: Whereabouts) {
    // An address and no more: a hint reads nothing.
    let start = ptr::without_provenance::<u8>(bytes.start);
    let mut offset = 0;
    while offset < bytes.len {
        line(start.wrapping_add(offset));
        offset += LINE;
    }
    if let Some(last) = bytes.len.checked_sub(1) {
        line(start.wrapping_add(last));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    // SAFETY: a hint, valid for any address; SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn line(address: *const u8) {
    // SAFETY: a hint, valid for any address.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline]
const fn line(_address: *const u8) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_moved_is_the_same_key() {
        for (algorithm, len) in [
            (Algorithm::Aes128Gcm, 16),
            (Algorithm::Aes256Gcm, 32),
            (Algorithm::ChaCha20Poly1305, 32),
        ] {
            let material = [7; 32];
            let key = AeadKey::new(algorithm, &material[..len]).unwrap();
            let (mut text, mut tag) = (*b"a packet of some length", [0; TAG]);
            key.seal(&[1; 12], b"header", &mut text, &mut tag).unwrap();
            // Another place of every alignment a pointer can have.
            for offset in 0..4usize {
                let mut places: Vec<Option<AeadKey>> = (0..4).map(|_| None).collect();
                places[offset] = Some(AeadKey::new(algorithm, &material[..len]).unwrap());
                let moved = Box::new(places.swap_remove(offset).unwrap());
                let mut copy = text;
                moved.open(&[1; 12], b"header", &mut copy, &tag).unwrap();
                assert_eq!(&copy, b"a packet of some length");
            }
            let mut copy = text;
            assert_eq!(key.open(&[2; 12], b"header", &mut copy, &tag), Err(Forged));
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        assert!(AeadKey::new(Algorithm::Aes128Gcm, &[0; 32]).is_err());
        assert!(AeadKey::new(Algorithm::Aes256Gcm, &[0; 16]).is_err());
        assert!(AeadKey::new(Algorithm::ChaCha20Poly1305, &[0; 31]).is_err());
    }

    #[test]
    fn anything_can_be_asked_for() {
        fetch(Whereabouts::of(&()));
        fetch(Whereabouts::of(&[0u8; 4096]));
        fetch(Whereabouts::of("text".as_bytes().first().unwrap()));
        fetch(Whereabouts {
            start: usize::MAX - 1,
            len: 200,
        });
    }
}
