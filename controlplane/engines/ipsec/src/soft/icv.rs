//! HMAC-SHA2, cut to half its length (RFC 4868).

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
#[cfg(feature = "soft-all")]
use sha2::{Sha384, Sha512};
use towpath_base::Key;
use towpath_base::crypto::{EspParts, Forged, IcvProvider, IcvTransform, InvalidKey};
use towpath_base::sa::EspIntegrity;

use super::SoftEsp;

/// One integrity key.
pub struct SoftIcv(Keyed);

enum Keyed {
    Sha256(Hmac<Sha256>),
    #[cfg(feature = "soft-all")]
    Sha384(Hmac<Sha384>),
    #[cfg(feature = "soft-all")]
    Sha512(Hmac<Sha512>),
}

impl core::fmt::Debug for SoftIcv {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("[redacted]")
    }
}

fn keyed<M: KeyInit>(key: &[u8]) -> Result<M, InvalidKey> {
    M::new_from_slice(key).map_err(|_| InvalidKey)
}

fn absorb<M: Mac + Clone>(mac: &M, pieces: &[&[u8]]) -> M {
    let mut mac = mac.clone();
    pieces.iter().for_each(|piece| mac.update(piece));
    mac
}

fn sign<M: Mac + Clone>(mac: &M, pieces: &[&[u8]], icv: &mut [u8]) -> Result<(), Forged> {
    let tag = absorb(mac, pieces).finalize().into_bytes();
    if icv.len() * 2 != tag.len() {
        return Err(Forged);
    }
    icv.iter_mut().zip(tag.iter()).for_each(|(to, from)| *to = *from);
    Ok(())
}

fn verify<M: Mac + Clone>(mac: &M, pieces: &[&[u8]], icv: &[u8], len: usize) -> Result<(), Forged> {
    if icv.len() != len {
        return Err(Forged);
    }
    absorb(mac, pieces).verify_truncated_left(icv).map_err(|_| Forged)
}

impl SoftIcv {
    pub(super) fn new(integrity: EspIntegrity, key: &[u8]) -> Result<Self, InvalidKey> {
        Ok(Self(match integrity {
            EspIntegrity::HmacSha256 => Keyed::Sha256(keyed(key)?),
            #[cfg(feature = "soft-all")]
            EspIntegrity::HmacSha384 => Keyed::Sha384(keyed(key)?),
            #[cfg(feature = "soft-all")]
            EspIntegrity::HmacSha512 => Keyed::Sha512(keyed(key)?),
            #[cfg(not(feature = "soft-all"))]
            _ => return Err(InvalidKey),
        }))
    }

    fn sign_pieces(&self, pieces: &[&[u8]], icv: &mut [u8]) -> Result<(), Forged> {
        match &self.0 {
            Keyed::Sha256(mac) => sign(mac, pieces, icv),
            #[cfg(feature = "soft-all")]
            Keyed::Sha384(mac) => sign(mac, pieces, icv),
            #[cfg(feature = "soft-all")]
            Keyed::Sha512(mac) => sign(mac, pieces, icv),
        }
    }

    fn verify_pieces(&self, pieces: &[&[u8]], icv: &[u8]) -> Result<(), Forged> {
        match &self.0 {
            Keyed::Sha256(mac) => verify(mac, pieces, icv, 16),
            #[cfg(feature = "soft-all")]
            Keyed::Sha384(mac) => verify(mac, pieces, icv, 24),
            #[cfg(feature = "soft-all")]
            Keyed::Sha512(mac) => verify(mac, pieces, icv, 32),
        }
    }

    /// Writes the ICV of an ESP packet whose payload is already encrypted.
    pub(super) fn sign_esp(&self, parts: EspParts<'_>) -> Result<(), Forged> {
        let mut high = [0; 4];
        let mut icv = [0; 32];
        let len = parts.icv.len();
        let made = icv.get_mut(..len).ok_or(Forged)?;
        self.sign_pieces(&parts.covered(&mut high), made)?;
        parts.icv.copy_from_slice(made);
        Ok(())
    }

    /// Checks the ICV of an ESP packet.
    pub(super) fn verify_esp(&self, parts: &EspParts<'_>) -> Result<(), Forged> {
        let mut high = [0; 4];
        self.verify_pieces(&parts.covered(&mut high), parts.icv)
    }
}

impl IcvTransform for SoftIcv {
    fn integrity(&self) -> EspIntegrity {
        match &self.0 {
            Keyed::Sha256(_) => EspIntegrity::HmacSha256,
            #[cfg(feature = "soft-all")]
            Keyed::Sha384(_) => EspIntegrity::HmacSha384,
            #[cfg(feature = "soft-all")]
            Keyed::Sha512(_) => EspIntegrity::HmacSha512,
        }
    }

    fn sign(&mut self, pieces: &[&[u8]], icv: &mut [u8]) -> Result<(), Forged> {
        self.sign_pieces(pieces, icv)
    }

    fn verify(&mut self, pieces: &[&[u8]], icv: &[u8]) -> Result<(), Forged> {
        self.verify_pieces(pieces, icv)
    }
}

impl IcvProvider for SoftEsp {
    type Icv = SoftIcv;

    fn icv(&self, integrity: EspIntegrity, key: &Key) -> Result<SoftIcv, InvalidKey> {
        if key.len() != integrity.key_len() {
            return Err(InvalidKey);
        }
        SoftIcv::new(integrity, key.expose())
    }
}
