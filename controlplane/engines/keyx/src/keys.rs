//! Subscriber key → registration keys → session keys, by HKDF-SHA-256 (RFC 5869).
//!
//! Registration keys come from the subscriber key alone, session keys from it and a nonce of each side, so the
//! keyserver can be given a session without the subscriber key. Every label ends with the subscriber's handle.

use core::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use towpath_base::SubscriberHandle;
use towpath_base::key::SecretKey;
use zeroize::Zeroize;

use crate::sealed::{Purpose, SealingKey};

/// Salt of the registration keys.
const SALT: &[u8] = b"towpath keyx 1";

/// Longest label.
const LABEL_LEN: usize = 16;

/// Bytes of a nonce in a registration.
pub const NONCE_LEN: usize = 32;

/// The keys a registration is sealed under, both directions.
pub struct RegistrationKeys {
    pub(crate) subscriber: SubscriberHandle,
    pub(crate) t2n: SealingKey,
    pub(crate) n2t: SealingKey,
}

impl fmt::Debug for RegistrationKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl RegistrationKeys {
    /// From the subscriber key.
    pub fn derive(ksub: &SecretKey<32>, subscriber: SubscriberHandle) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(SALT), ksub.expose());
        let key = |label, purpose| {
            let mut key = [0; 32];
            expand(&hkdf, label, subscriber, &mut key);
            let sealing = SealingKey::new(&key, purpose);
            key.zeroize();
            sealing
        };
        Self {
            subscriber,
            t2n: key(b"registration t2n", Purpose::RegistrationT2n),
            n2t: key(b"registration n2t", Purpose::RegistrationN2t),
        }
    }
}

/// The keys of one session, both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionKeys {
    /// Terminal → network.
    pub t2n: SecretKey<32>,
    /// Network → terminal.
    pub n2t: SecretKey<32>,
}

impl SessionKeys {
    /// From the subscriber key and the nonces of one registration, the terminal's first.
    pub fn derive(
        ksub: &SecretKey<32>,
        subscriber: SubscriberHandle,
        nonce_t: &[u8; NONCE_LEN],
        nonce_n: &[u8; NONCE_LEN],
    ) -> Self {
        let mut salt = [0; 2 * NONCE_LEN];
        salt.iter_mut()
            .zip(nonce_t.iter().chain(nonce_n))
            .for_each(|(to, from)| *to = *from);
        let hkdf = Hkdf::<Sha256>::new(Some(&salt), ksub.expose());
        let key = |label| {
            let mut key = [0; 32];
            expand(&hkdf, label, subscriber, &mut key);
            let secret = SecretKey::new(key);
            key.zeroize();
            secret
        };
        Self {
            t2n: key(b"session t2n     "),
            n2t: key(b"session n2t     "),
        }
    }
}

fn expand(hkdf: &Hkdf<Sha256>, label: &[u8; LABEL_LEN], subscriber: SubscriberHandle, out: &mut [u8; 32]) {
    let mut info = [0; LABEL_LEN + 8];
    let handle = subscriber.0.to_be_bytes();
    info.iter_mut()
        .zip(label.iter().chain(&handle))
        .for_each(|(to, from)| *to = *from);
    // Fails only for more than 255 blocks of output.
    let expanded = hkdf.expand(&info, out);
    debug_assert!(expanded.is_ok());
}
