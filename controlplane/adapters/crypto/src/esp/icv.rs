//! HMAC-SHA2, cut to half its length (RFC 4868).

use aws_lc_rs::{constant_time, hmac};
use towpath_base::Key;
use towpath_base::crypto::{EspParts, Forged, IcvProvider, IcvTransform, InvalidKey};
use towpath_base::sa::EspIntegrity;

use super::AwsLcEsp;

/// One integrity key.
pub struct AwsLcIcv {
    integrity: EspIntegrity,
    key: hmac::Key,
}

impl std::fmt::Debug for AwsLcIcv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl AwsLcIcv {
    pub(super) fn new(integrity: EspIntegrity, key: &[u8]) -> Result<Self, InvalidKey> {
        if key.len() != integrity.key_len() {
            return Err(InvalidKey);
        }
        let algorithm = match integrity {
            EspIntegrity::HmacSha256 => hmac::HMAC_SHA256,
            EspIntegrity::HmacSha384 => hmac::HMAC_SHA384,
            EspIntegrity::HmacSha512 => hmac::HMAC_SHA512,
        };
        let key = hmac::Key::new(algorithm, key);
        Ok(Self { integrity, key })
    }

    fn tag(&self, pieces: &[&[u8]]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        pieces.iter().for_each(|piece| context.update(piece));
        context.sign()
    }

    /// The tag's first half if `icv_len` is that.
    fn half<'a>(&self, tag: &'a hmac::Tag, icv_len: usize) -> Result<&'a [u8], Forged> {
        let half = tag.as_ref().get(..self.integrity.icv_len()).ok_or(Forged)?;
        (half.len() == icv_len).then_some(half).ok_or(Forged)
    }

    /// Writes the ICV of an ESP packet whose payload is already encrypted.
    pub(super) fn sign_esp(&self, parts: EspParts<'_>) -> Result<(), Forged> {
        let mut high = [0; 4];
        let tag = self.tag(&parts.covered(&mut high));
        parts.icv.copy_from_slice(self.half(&tag, parts.icv.len())?);
        Ok(())
    }

    /// Checks the ICV of an ESP packet.
    pub(super) fn verify_esp(&self, parts: &EspParts<'_>) -> Result<(), Forged> {
        let mut high = [0; 4];
        self.check(&parts.covered(&mut high), parts.icv)
    }

    fn check(&self, pieces: &[&[u8]], icv: &[u8]) -> Result<(), Forged> {
        let tag = self.tag(pieces);
        let half = self.half(&tag, icv.len())?;
        constant_time::verify_slices_are_equal(half, icv).map_err(|_| Forged)
    }
}

impl IcvTransform for AwsLcIcv {
    fn integrity(&self) -> EspIntegrity {
        self.integrity
    }

    fn sign(&mut self, pieces: &[&[u8]], icv: &mut [u8]) -> Result<(), Forged> {
        let tag = self.tag(pieces);
        icv.copy_from_slice(self.half(&tag, icv.len())?);
        Ok(())
    }

    fn verify(&mut self, pieces: &[&[u8]], icv: &[u8]) -> Result<(), Forged> {
        self.check(pieces, icv)
    }
}

impl IcvProvider for AwsLcEsp {
    type Icv = AwsLcIcv;

    fn icv(&self, integrity: EspIntegrity, key: &Key) -> Result<AwsLcIcv, InvalidKey> {
        AwsLcIcv::new(integrity, key.expose())
    }
}
