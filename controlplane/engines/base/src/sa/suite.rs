//! The algorithms of ESP and AH: one table of suites, and what follows from each row.

use core::fmt;
use core::str::FromStr;

use super::UnknownName;

/// What encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EspCipher {
    /// AES-GCM with a 16-byte ICV (RFC 4106).
    AesGcm16,
    /// AES-CCM with a 16-byte ICV (RFC 4309).
    AesCcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602).
    AesCbc,
    /// AES-CTR (RFC 3686).
    AesCtr,
    /// No encryption (RFC 2410).
    Null,
}

impl EspCipher {
    /// Number of the IKEv2 transform of type 1 (RFC 7296 §3.3.2).
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::Null => 11,
            Self::AesCbc => 12,
            Self::AesCtr => 13,
            Self::AesCcm16 => 16,
            Self::AesGcm16 => 20,
            Self::ChaCha20Poly1305 => 28,
        }
    }

    /// True where the transform carries a key length attribute: ChaCha20-Poly1305 and NULL have one length.
    pub const fn has_key_length(self) -> bool {
        !matches!(self, Self::ChaCha20Poly1305 | Self::Null)
    }

    /// True when cipher and integrity are one algorithm under one key.
    pub const fn is_aead(self) -> bool {
        matches!(self, Self::AesGcm16 | Self::AesCcm16 | Self::ChaCha20Poly1305)
    }

    /// True when a nonce used twice under one key gives plaintext away: the IV must be a counter.
    pub const fn is_counter_mode(self) -> bool {
        self.is_aead() || matches!(self, Self::AesCtr)
    }

    /// Bytes of salt that follow the key in the keying material (RFC 4106 §8.1, RFC 4309 §7.1, RFC 7634 §2.1;
    /// the nonce of RFC 3686 §5.1).
    pub const fn salt_len(self) -> usize {
        match self {
            Self::AesGcm16 | Self::ChaCha20Poly1305 | Self::AesCtr => 4,
            Self::AesCcm16 => 3,
            Self::AesCbc | Self::Null => 0,
        }
    }

    /// Bytes of explicit IV in each packet.
    pub const fn iv_len(self) -> usize {
        match self {
            Self::AesCbc => 16,
            Self::Null => 0,
            _ => 8,
        }
    }

    /// Payload and trailer must fill a multiple of this many bytes: the cipher's block, at least 4 (RFC 4303 §2.4).
    pub const fn block_len(self) -> usize {
        if matches!(self, Self::AesCbc) { 16 } else { 4 }
    }
}

named! {
    /// Integrity of ESP with a separate key, and of AH: HMAC-SHA2, its output cut to half (RFC 4868).
    EspIntegrity {
        /// HMAC-SHA2-256-128.
        HmacSha256 = 1, "sha256";
        /// HMAC-SHA2-384-192.
        HmacSha384 = 2, "sha384";
        /// HMAC-SHA2-512-256.
        HmacSha512 = 3, "sha512";
    }
}

impl EspIntegrity {
    /// Number of the IKEv2 transform of type 3 (RFC 4868 §4).
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::HmacSha256 => 12,
            Self::HmacSha384 => 13,
            Self::HmacSha512 => 14,
        }
    }

    /// Bytes of key (RFC 4868 §2.1.1).
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// Bytes of ICV.
    pub const fn icv_len(self) -> usize {
        self.key_len() / 2
    }
}

named! {
    /// How ESP protects: cipher and, where separate, integrity. Names as strongSwan's `esp_proposals`.
    EspSuite {
        /// AES-128-GCM with a 16-byte ICV (RFC 4106).
        Aes128Gcm16 = 1, "aes128gcm16";
        /// AES-256-GCM with a 16-byte ICV (RFC 4106).
        Aes256Gcm16 = 2, "aes256gcm16";
        /// AES-128-CBC (RFC 3602) with HMAC-SHA2-256-128 (RFC 4868).
        Aes128CbcSha256 = 3, "aes128-sha256";
        /// AES-256-CBC (RFC 3602) with HMAC-SHA2-256-128 (RFC 4868).
        Aes256CbcSha256 = 4, "aes256-sha256";
        /// AES-128-CCM with a 16-byte ICV (RFC 4309).
        Aes128Ccm16 = 5, "aes128ccm16";
        /// AES-256-CCM with a 16-byte ICV (RFC 4309).
        Aes256Ccm16 = 6, "aes256ccm16";
        /// ChaCha20-Poly1305 (RFC 7634).
        ChaCha20Poly1305 = 7, "chacha20poly1305";
        /// AES-128-CBC with HMAC-SHA2-384-192.
        Aes128CbcSha384 = 8, "aes128-sha384";
        /// AES-256-CBC with HMAC-SHA2-384-192.
        Aes256CbcSha384 = 9, "aes256-sha384";
        /// AES-128-CBC with HMAC-SHA2-512-256.
        Aes128CbcSha512 = 10, "aes128-sha512";
        /// AES-256-CBC with HMAC-SHA2-512-256.
        Aes256CbcSha512 = 11, "aes256-sha512";
        /// AES-128-CTR (RFC 3686) with HMAC-SHA2-256-128.
        Aes128CtrSha256 = 12, "aes128ctr-sha256";
        /// AES-256-CTR with HMAC-SHA2-256-128.
        Aes256CtrSha256 = 13, "aes256ctr-sha256";
        /// AES-128-CTR with HMAC-SHA2-384-192.
        Aes128CtrSha384 = 14, "aes128ctr-sha384";
        /// AES-256-CTR with HMAC-SHA2-384-192.
        Aes256CtrSha384 = 15, "aes256ctr-sha384";
        /// AES-128-CTR with HMAC-SHA2-512-256.
        Aes128CtrSha512 = 16, "aes128ctr-sha512";
        /// AES-256-CTR with HMAC-SHA2-512-256.
        Aes256CtrSha512 = 17, "aes256ctr-sha512";
        /// No encryption (RFC 2410) with HMAC-SHA2-256-128: anybody on the path reads the packets.
        NullSha256 = 18, "null-sha256";
        /// No encryption with HMAC-SHA2-384-192: anybody on the path reads the packets.
        NullSha384 = 19, "null-sha384";
        /// No encryption with HMAC-SHA2-512-256: anybody on the path reads the packets.
        NullSha512 = 20, "null-sha512";
    }
}

impl EspSuite {
    /// The suites that need nothing but AES, GHASH and SHA-256: what the smallest terminal has.
    pub const SMALL: &'static [Self] = &[
        Self::Aes128Gcm16,
        Self::Aes256Gcm16,
        Self::Aes128CbcSha256,
        Self::Aes256CbcSha256,
    ];

    /// What encrypts.
    #[inline]
    pub const fn cipher(self) -> EspCipher {
        match self {
            Self::Aes128Gcm16 | Self::Aes256Gcm16 => EspCipher::AesGcm16,
            Self::Aes128Ccm16 | Self::Aes256Ccm16 => EspCipher::AesCcm16,
            Self::ChaCha20Poly1305 => EspCipher::ChaCha20Poly1305,
            Self::Aes128CbcSha256
            | Self::Aes256CbcSha256
            | Self::Aes128CbcSha384
            | Self::Aes256CbcSha384
            | Self::Aes128CbcSha512
            | Self::Aes256CbcSha512 => EspCipher::AesCbc,
            Self::Aes128CtrSha256
            | Self::Aes256CtrSha256
            | Self::Aes128CtrSha384
            | Self::Aes256CtrSha384
            | Self::Aes128CtrSha512
            | Self::Aes256CtrSha512 => EspCipher::AesCtr,
            Self::NullSha256 | Self::NullSha384 | Self::NullSha512 => EspCipher::Null,
        }
    }

    /// What protects integrity under a key of its own; `None` for an AEAD.
    #[inline]
    pub const fn integrity(self) -> Option<EspIntegrity> {
        match self {
            Self::Aes128CbcSha256
            | Self::Aes256CbcSha256
            | Self::Aes128CtrSha256
            | Self::Aes256CtrSha256
            | Self::NullSha256 => Some(EspIntegrity::HmacSha256),
            Self::Aes128CbcSha384
            | Self::Aes256CbcSha384
            | Self::Aes128CtrSha384
            | Self::Aes256CtrSha384
            | Self::NullSha384 => Some(EspIntegrity::HmacSha384),
            Self::Aes128CbcSha512
            | Self::Aes256CbcSha512
            | Self::Aes128CtrSha512
            | Self::Aes256CtrSha512
            | Self::NullSha512 => Some(EspIntegrity::HmacSha512),
            _ => None,
        }
    }

    /// Bytes of cipher key, the salt of a counter-mode cipher not counted.
    #[inline]
    pub const fn cipher_key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16
            | Self::Aes128Ccm16
            | Self::Aes128CbcSha256
            | Self::Aes128CbcSha384
            | Self::Aes128CbcSha512
            | Self::Aes128CtrSha256
            | Self::Aes128CtrSha384
            | Self::Aes128CtrSha512 => 16,
            Self::NullSha256 | Self::NullSha384 | Self::NullSha512 => 0,
            _ => 32,
        }
    }

    /// Bytes of salt that follow the cipher key in the keying material, see [`EspCipher::salt_len`].
    #[inline]
    pub const fn salt_len(self) -> usize {
        self.cipher().salt_len()
    }

    /// Bytes of separate integrity key, 0 for an AEAD.
    #[inline]
    pub const fn integrity_key_len(self) -> usize {
        match self.integrity() {
            Some(integrity) => integrity.key_len(),
            None => 0,
        }
    }

    /// Bytes of keying material for one direction.
    pub const fn key_material_len(self) -> usize {
        self.cipher_key_len() + self.salt_len() + self.integrity_key_len()
    }

    /// Bytes of explicit IV in each packet.
    #[inline]
    pub const fn iv_len(self) -> usize {
        self.cipher().iv_len()
    }

    /// Bytes of ICV in each packet.
    #[inline]
    pub const fn icv_len(self) -> usize {
        match self.integrity() {
            Some(integrity) => integrity.icv_len(),
            None => 16,
        }
    }

    /// Payload and trailer must fill a multiple of this many bytes.
    #[inline]
    pub const fn block_len(self) -> usize {
        self.cipher().block_len()
    }

    /// True when cipher and integrity are one algorithm under one key.
    #[inline]
    pub const fn is_aead(self) -> bool {
        self.cipher().is_aead()
    }

    /// True when a nonce used twice under one key gives plaintext away: the IV must be a counter.
    #[inline]
    pub const fn is_counter_mode(self) -> bool {
        self.cipher().is_counter_mode()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_rfcs() {
        let row = |suite: EspSuite| {
            (
                suite.cipher_key_len(),
                suite.salt_len(),
                suite.integrity_key_len(),
                suite.iv_len(),
                suite.icv_len(),
                suite.block_len(),
            )
        };
        assert_eq!(row(EspSuite::Aes256Gcm16), (32, 4, 0, 8, 16, 4));
        assert_eq!(row(EspSuite::Aes128Ccm16), (16, 3, 0, 8, 16, 4));
        assert_eq!(row(EspSuite::ChaCha20Poly1305), (32, 4, 0, 8, 16, 4));
        assert_eq!(row(EspSuite::Aes128CbcSha384), (16, 0, 48, 16, 24, 16));
        assert_eq!(row(EspSuite::Aes256CtrSha512), (32, 4, 64, 8, 32, 4));
        assert_eq!(row(EspSuite::NullSha256), (0, 0, 32, 0, 16, 4));
    }

    #[test]
    fn a_suite_has_separate_integrity_or_is_an_aead() {
        for suite in EspSuite::ALL {
            assert_eq!(suite.integrity().is_none(), suite.is_aead(), "{suite}");
            if let Some(integrity) = suite.integrity() {
                let name = suite.name();
                assert!(name.ends_with(integrity.name()), "{name}");
            }
            assert_eq!(
                suite.name().contains("128"),
                suite.cipher_key_len() == 16,
                "{suite}"
            );
            assert_eq!(suite.name().contains("ctr"), suite.cipher() == EspCipher::AesCtr);
            assert_eq!(
                suite.name().contains("ccm"),
                suite.cipher() == EspCipher::AesCcm16
            );
            assert_eq!(
                suite.name().starts_with("null"),
                suite.cipher() == EspCipher::Null
            );
        }
    }
}
