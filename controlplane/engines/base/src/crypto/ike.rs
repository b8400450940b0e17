//! What the key exchange asks of cryptography (spec row K6: the key generator is a part of its own).

use alloc::vec::Vec;
use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::Rng;
use crate::key::Key;

macro_rules! transforms {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name strongSwan gives it in proposals.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// IANA transform ID (registry "IKEv2 Parameters").
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// The value for an IANA transform ID.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

transforms! {
    /// Key exchange methods (transform types 4 and 6 to 12): Diffie-Hellman groups, and a KEM.
    DhGroup {
        /// 2048-bit MODP group (RFC 3526 §3).
        Modp2048 = 14, "modp2048";
        /// 3072-bit MODP group (RFC 3526 §4).
        Modp3072 = 15, "modp3072";
        /// 4096-bit MODP group (RFC 3526 §5).
        Modp4096 = 16, "modp4096";
        /// NIST P-256 (RFC 5903).
        Ecp256 = 19, "ecp256";
        /// NIST P-384 (RFC 5903).
        Ecp384 = 20, "ecp384";
        /// Curve25519 (RFC 8031).
        X25519 = 31, "x25519";
        /// ML-KEM-768 (FIPS 203; draft-ietf-ipsecme-ikev2-mlkem), only beside another method.
        MlKem768 = 36, "mlkem768";
    }
}

impl DhGroup {
    /// Bytes of the initiator's public value on the wire.
    pub const fn public_len(self) -> usize {
        match self {
            Self::Modp2048 => 256,
            Self::Modp3072 => 384,
            Self::Modp4096 => 512,
            Self::Ecp256 => 64,
            Self::Ecp384 => 96,
            Self::X25519 => 32,
            Self::MlKem768 => 1184,
        }
    }

    /// Bytes of the responder's public value: a ciphertext where the method is a KEM.
    pub const fn answer_len(self) -> usize {
        match self {
            Self::MlKem768 => 1088,
            other => other.public_len(),
        }
    }

    /// Whether the method is a key encapsulation mechanism, which is used in addition to Diffie-Hellman.
    pub const fn is_kem(self) -> bool {
        matches!(self, Self::MlKem768)
    }
}

transforms! {
    /// Pseudorandom functions (transform type 2), RFC 4868.
    Prf {
        /// HMAC-SHA2-256.
        HmacSha256 = 5, "prfsha256";
        /// HMAC-SHA2-384.
        HmacSha384 = 6, "prfsha384";
        /// HMAC-SHA2-512.
        HmacSha512 = 7, "prfsha512";
    }
}

impl Prf {
    /// Bytes of output, and of key where IKE chooses it (RFC 7296 §2.13).
    pub const fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }
}

transforms! {
    /// Integrity algorithms (transform type 3), RFC 4868.
    Integrity {
        /// HMAC-SHA2-256-128.
        HmacSha256 = 12, "sha256";
        /// HMAC-SHA2-384-192.
        HmacSha384 = 13, "sha384";
        /// HMAC-SHA2-512-256.
        HmacSha512 = 14, "sha512";
    }
}

impl Integrity {
    /// Bytes of key.
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// Bytes of the truncated checksum.
    pub const fn icv_len(self) -> usize {
        self.key_len() / 2
    }

    /// The PRF over the same hash.
    pub const fn prf(self) -> Prf {
        match self {
            Self::HmacSha256 => Prf::HmacSha256,
            Self::HmacSha384 => Prf::HmacSha384,
            Self::HmacSha512 => Prf::HmacSha512,
        }
    }
}

/// Ciphers of the Encrypted payload (transform type 1 with its Key Length attribute).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SkCipher {
    /// AES-128-GCM, 16-byte ICV (RFC 5282).
    Aes128Gcm16,
    /// AES-256-GCM, 16-byte ICV (RFC 5282).
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-128-CBC (RFC 3602).
    Aes128Cbc,
    /// AES-256-CBC (RFC 3602).
    Aes256Cbc,
    /// AES-128-CTR (RFC 5930).
    Aes128Ctr,
    /// AES-256-CTR (RFC 5930).
    Aes256Ctr,
}

impl SkCipher {
    /// Every value.
    pub const ALL: &'static [Self] = &[
        Self::Aes128Gcm16,
        Self::Aes256Gcm16,
        Self::ChaCha20Poly1305,
        Self::Aes128Cbc,
        Self::Aes256Cbc,
        Self::Aes128Ctr,
        Self::Aes256Ctr,
    ];

    /// The name strongSwan gives it in proposals.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256Gcm16 => "aes256gcm16",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::Aes128Cbc => "aes128",
            Self::Aes256Cbc => "aes256",
            Self::Aes128Ctr => "aes128ctr",
            Self::Aes256Ctr => "aes256ctr",
        }
    }

    /// IANA transform ID.
    pub const fn number(self) -> u16 {
        match self {
            Self::Aes128Cbc | Self::Aes256Cbc => 12,
            Self::Aes128Ctr | Self::Aes256Ctr => 13,
            Self::Aes128Gcm16 | Self::Aes256Gcm16 => 20,
            Self::ChaCha20Poly1305 => 28,
        }
    }

    /// Value of the Key Length attribute, bits; `None` where the key has one length only (RFC 7634 §4).
    pub const fn key_bits(self) -> Option<u16> {
        match self {
            Self::Aes128Gcm16 | Self::Aes128Cbc | Self::Aes128Ctr => Some(128),
            Self::Aes256Gcm16 | Self::Aes256Cbc | Self::Aes256Ctr => Some(256),
            Self::ChaCha20Poly1305 => None,
        }
    }

    /// True when no integrity algorithm is negotiated beside it.
    pub const fn is_aead(self) -> bool {
        matches!(
            self,
            Self::Aes128Gcm16 | Self::Aes256Gcm16 | Self::ChaCha20Poly1305
        )
    }

    /// True when the IV is a counter that must never repeat under one key; otherwise it is to be unpredictable.
    pub const fn counts(self) -> bool {
        !matches!(self, Self::Aes128Cbc | Self::Aes256Cbc)
    }

    /// Bytes of SK_e: the key, and the salt where the IV counts (RFC 5282 §7.1, RFC 5930 §2, RFC 7634 §2).
    pub const fn key_len(self) -> usize {
        let key = match self.key_bits() {
            Some(bits) => bits as usize / 8,
            None => 32,
        };
        key + if self.counts() { 4 } else { 0 }
    }

    /// Bytes of IV at the start of the Encrypted payload.
    pub const fn iv_len(self) -> usize {
        if self.counts() { 8 } else { 16 }
    }

    /// The plaintext with its padding fills a multiple of this many bytes.
    pub const fn block_len(self) -> usize {
        if self.counts() { 1 } else { 16 }
    }
}

impl fmt::Display for SkCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A secret of any length; zeroized on drop, never printed.
#[derive(Clone, PartialEq, Eq, Default, Zeroize, ZeroizeOnDrop)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes over `bytes`.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Keys of the Encrypted payload in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkKeys {
    /// Cipher.
    pub cipher: SkCipher,
    /// Integrity algorithm; `None` exactly for an AEAD.
    pub integrity: Option<Integrity>,
    /// SK_e, [`SkCipher::key_len`] bytes.
    pub encryption: Key,
    /// SK_a, [`Integrity::key_len`] bytes; empty for an AEAD.
    pub authentication: Key,
}

impl SkKeys {
    /// Bytes of checksum at the end of the Encrypted payload.
    pub const fn icv_len(&self) -> usize {
        match self.integrity {
            Some(integrity) => integrity.icv_len(),
            None => 16,
        }
    }
}

/// The parts of one message with an Encrypted payload, worked on in place.
///
/// On the wire they stand in this order, and the checksum of a cipher with separate integrity covers
/// header, IV and text (RFC 7296 §3.14); an AEAD authenticates the header (RFC 5282 §5.1).
#[derive(Debug)]
pub struct SkParts<'a> {
    /// From the first byte of the IKE header through the generic header of the Encrypted payload.
    pub header: &'a [u8],
    /// IV, [`SkCipher::iv_len`] bytes, chosen by the caller: never twice under one key.
    pub iv: &'a [u8],
    /// Inner payloads, padding and pad length; a multiple of [`SkCipher::block_len`].
    pub text: &'a mut [u8],
    /// Checksum, [`SkKeys::icv_len`] bytes: written by `seal`, checked by `open`.
    pub icv: &'a mut [u8],
}

/// Why a cryptographic operation did not give a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CryptoError {
    /// The provider lacks the algorithm, or key or IV have the wrong length.
    Unsupported,
    /// The other side's public value has the wrong length or is not an element of the group worth agreeing with.
    BadPublicValue,
    /// The integrity check failed.
    Forged,
}

impl fmt::Display for CryptoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "algorithm not available, or wrong key length",
            Self::BadPublicValue => "public value is not valid in its group",
            Self::Forged => "integrity check failed",
        })
    }
}

impl core::error::Error for CryptoError {}

/// Key exchange, key derivation, and protection of the Encrypted payload.
///
/// The exchange has the shape of a KEM, so that a key encapsulation mechanism fits as well as
/// Diffie-Hellman: the initiator calls [`initiate`](Self::initiate) and later [`finish`](Self::finish),
/// the responder calls [`respond`](Self::respond) once.
pub trait KeyGenerator {
    /// What the initiator keeps between the two messages; zeroizes on drop.
    type Private;

    /// A fresh private value and the public value to send, [`DhGroup::public_len`] bytes.
    fn initiate(&self, group: DhGroup, rng: &mut dyn Rng) -> Result<(Self::Private, Vec<u8>), CryptoError>;

    /// The shared secret, given the responder's public value.
    fn finish(&self, private: Self::Private, public: &[u8]) -> Result<Secret, CryptoError>;

    /// The responder's public value, [`DhGroup::answer_len`] bytes, and the shared secret, given the initiator's
    /// public value.
    fn respond(
        &self,
        group: DhGroup,
        public: &[u8],
        rng: &mut dyn Rng,
    ) -> Result<(Vec<u8>, Secret), CryptoError>;

    /// `prf(key, parts[0] | parts[1] | …)`, [`Prf::output_len`] bytes.
    fn prf(&self, prf: Prf, key: &[u8], parts: &[&[u8]]) -> Key;

    /// `prf+(key, seed)`, the first `len` bytes (RFC 7296 §2.13); empty if `len` needs more than 255 blocks.
    fn prf_plus(&self, prf: Prf, key: &[u8], seed: &[&[u8]], len: usize) -> Secret {
        let mut stream = Zeroizing::new(Vec::with_capacity(len + prf.output_len()));
        let mut block = Key::EMPTY;
        let mut counter = 0u8;
        while stream.len() < len {
            let Some(next) = counter.checked_add(1) else {
                return Secret::default();
            };
            counter = next;
            let count = [counter];
            let mut parts = Vec::with_capacity(seed.len() + 2);
            parts.push(block.expose());
            parts.extend_from_slice(seed);
            parts.push(&count);
            let output = self.prf(prf, key, &parts);
            stream.extend_from_slice(output.expose());
            block = output;
        }
        Secret::new(stream.get(..len).unwrap_or(&[]).to_vec())
    }

    /// SHA-1 over `parts`, which NAT detection is defined with (RFC 7296 §2.23). Not used for security.
    fn sha1(&self, parts: &[&[u8]]) -> [u8; 20];

    /// Encrypts `parts.text` and writes `parts.icv`.
    fn seal(&self, keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError>;

    /// Checks `parts.icv` in constant time, then decrypts `parts.text`. On error the text is unspecified.
    fn open(&self, keys: &SkKeys, parts: SkParts<'_>) -> Result<(), CryptoError>;
}
