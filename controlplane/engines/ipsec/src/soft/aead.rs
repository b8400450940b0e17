//! GCM, CCM and ChaCha20-Poly1305: one shape, three nonces.

use aes_gcm::aead::array::Array;
use aes_gcm::aead::consts::U16;
use aes_gcm::aead::{AeadInOut, Nonce};
use towpath_base::crypto::{EspParts, Forged};

pub(super) fn seal<A>(aead: &A, salt: &[u8], parts: EspParts<'_>) -> Result<(), Forged>
where
    A: AeadInOut<TagSize = U16>,
{
    let aad = parts.aad();
    seal_raw(
        aead,
        &nonce::<A>(salt, parts.iv)?,
        aad.as_ref(),
        parts.payload,
        parts.icv,
    )
}

pub(super) fn open<A>(aead: &A, salt: &[u8], parts: EspParts<'_>) -> Result<(), Forged>
where
    A: AeadInOut<TagSize = U16>,
{
    let aad = parts.aad();
    open_raw(
        aead,
        &nonce::<A>(salt, parts.iv)?,
        aad.as_ref(),
        parts.payload,
        parts.icv,
    )
}

/// Salt and explicit IV (RFC 4106 §4, RFC 4309 §4, RFC 7634 §2.1).
fn nonce<A: AeadInOut>(salt: &[u8], iv: &[u8]) -> Result<Nonce<A>, Forged> {
    let mut nonce = Nonce::<A>::default();
    if iv.len() != 8 || salt.len() + iv.len() != nonce.len() {
        return Err(Forged);
    }
    nonce
        .iter_mut()
        .zip(salt.iter().chain(iv))
        .for_each(|(to, from)| *to = *from);
    Ok(nonce)
}

pub(super) fn seal_raw<A>(
    aead: &A,
    nonce: &Nonce<A>,
    aad: &[u8],
    payload: &mut [u8],
    icv: &mut [u8],
) -> Result<(), Forged>
where
    A: AeadInOut<TagSize = U16>,
{
    let icv = <&mut [u8; 16]>::try_from(icv).map_err(|_| Forged)?;
    let tag = aead
        .encrypt_inout_detached(nonce, aad, payload.into())
        .map_err(|_| Forged)?;
    *icv = tag.into();
    Ok(())
}

pub(super) fn open_raw<A>(
    aead: &A,
    nonce: &Nonce<A>,
    aad: &[u8],
    payload: &mut [u8],
    icv: &[u8],
) -> Result<(), Forged>
where
    A: AeadInOut<TagSize = U16>,
{
    let tag = Array::<u8, U16>::try_from(icv).map_err(|_| Forged)?;
    aead.decrypt_inout_detached(nonce, aad, payload.into(), &tag)
        .map_err(|_| Forged)
}
