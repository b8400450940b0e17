//! The cryptographic transform of one direction of an ESP SA.

use core::fmt;

use crate::key::Key;
use crate::sa::{ChildSa, EspIntegrity, EspKeys, EspSuite};

/// The parts of one ESP packet that a transform works on, in place (RFC 4303 §2).
///
/// On the wire they stand in this order: header, IV, payload, ICV.
#[derive(Debug)]
pub struct EspParts<'a> {
    /// SPI and the low 32 bits of the sequence number, network byte order.
    pub header: [u8; 8],
    /// High 32 bits of the sequence number where ESN is in use: authenticated, not sent (RFC 4303 §2.2.1).
    pub esn_high: Option<u32>,
    /// Explicit IV, [`EspSuite::iv_len`] bytes, already filled in.
    pub iv: &'a [u8],
    /// Payload with ESP trailer, a multiple of [`EspSuite::block_len`].
    pub payload: &'a mut [u8],
    /// ICV, [`EspSuite::icv_len`] bytes: written by `seal`, checked by `open`.
    pub icv: &'a mut [u8],
}

impl EspParts<'_> {
    /// Additional authenticated data of an AEAD: the header, with ESN its sequence number in full (RFC 4106 §5).
    #[inline]
    pub const fn aad(&self) -> Aad {
        let [a, b, c, d, e, f, g, h] = self.header;
        match self.esn_high {
            None => Aad {
                bytes: [a, b, c, d, e, f, g, h, 0, 0, 0, 0],
                len: 8,
            },
            Some(high) => Aad {
                bytes: self.header_with(high),
                len: 12,
            },
        }
    }

    /// Additional authenticated data with ESN: SPI and all 64 bits of the sequence number (RFC 4106 §5).
    #[inline]
    pub const fn header_with(&self, high: u32) -> [u8; 12] {
        let [a, b, c, d, e, f, g, h] = self.header;
        let [i, j, k, l] = high.to_be_bytes();
        [a, b, c, d, i, j, k, l, e, f, g, h]
    }

    /// Salt and explicit IV: the nonce of GCM and ChaCha20-Poly1305 (RFC 4106 §4, RFC 7634 §2.1).
    #[inline]
    pub fn nonce(&self, salt: &[u8; 4]) -> Result<[u8; 12], Forged> {
        let [_, _, _, _, nonce @ ..] = self.salted(u32::from_be_bytes(*salt))?.to_be_bytes();
        Ok(nonce)
    }

    /// Salt and explicit IV: the nonce of CCM (RFC 4309 §4).
    #[inline]
    pub fn ccm_nonce(&self, salt: &[u8; 3]) -> Result<[u8; 11], Forged> {
        let [a, b, c] = *salt;
        let [_, _, _, _, _, nonce @ ..] = self.salted(u32::from_be_bytes([0, a, b, c]))?.to_be_bytes();
        Ok(nonce)
    }

    /// As one number, so that it is written in one piece: what follows reads it so.
    #[inline]
    fn salted(&self, salt: u32) -> Result<u128, Forged> {
        let iv: &[u8; 8] = self.iv.try_into().map_err(|_| Forged)?;
        Ok(u128::from(salt) << 64 | u128::from(u64::from_be_bytes(*iv)))
    }

    /// The first counter block of AES-CTR: nonce, IV, one (RFC 3686 §4).
    #[inline]
    pub fn counter_block(&self, nonce: &[u8; 4]) -> Result<[u8; 16], Forged> {
        let iv: [u8; 8] = self.iv.try_into().map_err(|_| Forged)?;
        let ([a, b, c, d], [e, f, g, h, i, j, k, l]) = (*nonce, iv);
        Ok([a, b, c, d, e, f, g, h, i, j, k, l, 0, 0, 0, 1])
    }

    /// What a separate integrity algorithm covers, in order: header, IV, ciphertext, and with ESN the unsent half of
    /// the sequence number (RFC 4303 §3.3.2.1). The fourth piece is empty without ESN.
    #[inline]
    pub fn covered<'a>(&'a self, high: &'a mut [u8; 4]) -> [&'a [u8]; 4] {
        let high = match self.esn_high {
            Some(value) => {
                *high = value.to_be_bytes();
                &high[..]
            }
            None => &[],
        };
        [&self.header, self.iv, &*self.payload, high]
    }
}

/// 8 or 12 bytes, see [`EspParts::aad`].
#[derive(Debug, Clone, Copy)]
pub struct Aad {
    bytes: [u8; 12],
    len: usize,
}

impl AsRef<[u8]> for Aad {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// The integrity check failed (or the parts have impossible lengths): nothing about the packet is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

/// Key lengths do not fit the suite, or the provider lacks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidKey;

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("key length does not fit the suite, or the suite is not available")
    }
}

impl core::error::Error for InvalidKey {}

/// One keyed direction: seals or opens packets in place, without allocation.
///
/// The transform does not choose IVs: whoever owns the sequence counter does, so that the rule
/// "no nonce twice" has one owner.
pub trait EspTransform {
    /// The algorithms.
    fn suite(&self) -> EspSuite;

    /// Encrypts `parts.payload` and writes `parts.icv`.
    fn seal(&mut self, parts: EspParts<'_>) -> Result<(), Forged>;

    /// Checks `parts.icv` in constant time, then decrypts `parts.payload`. On error the payload is unspecified.
    fn open(&mut self, parts: EspParts<'_>) -> Result<(), Forged>;

    /// Tells the processor that these bytes will be needed soon, where there is a way to say so: what an SA is made of,
    /// its transform inside. Nothing depends on it but time.
    #[inline]
    fn fetch(_bytes: Whereabouts)
    where
        Self: Sized,
    {
    }

    /// As [`EspTransform::fetch`], of the bytes of `value`.
    #[inline]
    fn prefetch<U>(value: &U)
    where
        Self: Sized,
    {
        Self::fetch(Whereabouts::of(value));
    }
}

/// Where a value was when it was asked. Nothing can be read through it, so it may outlive the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whereabouts {
    /// Address of the first byte.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

impl Whereabouts {
    /// Of the value itself, not of what it points to.
    #[inline]
    pub fn of<U>(value: &U) -> Self {
        Self {
            start: core::ptr::from_ref(value).addr(),
            len: size_of::<U>(),
        }
    }
}

/// Makes transforms.
pub trait EspProvider {
    /// What it makes.
    type Transform: EspTransform;

    /// A transform under `keys`.
    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<Self::Transform, InvalidKey>;

    /// The terminal is about to take over `sa` for packets of this sensitivity level. For providers that hand SAs on,
    /// to an operating system say, which then seals and opens in place of the transforms.
    ///
    /// # Errors
    /// It cannot be handed on: the SA is refused.
    fn adopt(&self, level: u8, sa: &ChildSa) -> Result<(), InvalidKey> {
        let _ = (level, sa);
        Ok(())
    }
}

/// One keyed integrity algorithm: what AH needs, and half of an ESP suite.
pub trait IcvTransform {
    /// The algorithm.
    fn integrity(&self) -> EspIntegrity;

    /// Writes the ICV over `pieces`, one after the other, to `icv` ([`EspIntegrity::icv_len`] bytes).
    fn sign(&mut self, pieces: &[&[u8]], icv: &mut [u8]) -> Result<(), Forged>;

    /// Checks `icv` over `pieces` in constant time.
    fn verify(&mut self, pieces: &[&[u8]], icv: &[u8]) -> Result<(), Forged>;
}

/// Makes integrity transforms.
pub trait IcvProvider {
    /// What it makes.
    type Icv: IcvTransform;

    /// A transform under `key`, [`EspIntegrity::key_len`] bytes.
    fn icv(&self, integrity: EspIntegrity, key: &Key) -> Result<Self::Icv, InvalidKey>;
}
