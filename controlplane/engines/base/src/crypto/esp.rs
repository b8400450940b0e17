//! The cryptographic transform of one direction of an ESP SA.

use core::fmt;

use crate::sa::{EspKeys, EspSuite};

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
}

/// Makes transforms.
pub trait EspProvider {
    /// What it makes.
    type Transform: EspTransform;

    /// A transform under `keys`.
    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<Self::Transform, InvalidKey>;
}
