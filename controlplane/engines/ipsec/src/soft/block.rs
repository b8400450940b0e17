//! AES-CBC and AES-CTR, encrypt-then-MAC.

use aes::cipher::consts::U16;
use aes::cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit,
};
use towpath_base::crypto::{EspParts, Forged};

use super::icv::SoftIcv;

pub(super) fn cbc_seal<C>(cipher: &C, icv: &SoftIcv, parts: EspParts<'_>) -> Result<(), Forged>
where
    C: BlockCipherEncrypt,
    for<'a> &'a C: BlockCipherEncrypt<BlockSize = U16>,
{
    let (blocks, rest) = Block::<&C>::slice_as_chunks_mut(parts.payload);
    let iv = parts.iv.try_into().map_err(|_| Forged)?;
    if !rest.is_empty() {
        return Err(Forged);
    }
    cbc::Encryptor::inner_iv_init(cipher, iv).encrypt_blocks(blocks);
    icv.sign_esp(parts)
}

pub(super) fn cbc_open<C>(cipher: &C, icv: &SoftIcv, parts: EspParts<'_>) -> Result<(), Forged>
where
    C: BlockCipherDecrypt,
    for<'a> &'a C: BlockCipherDecrypt<BlockSize = U16>,
{
    icv.verify_esp(&parts)?;
    let (blocks, rest) = Block::<&C>::slice_as_chunks_mut(parts.payload);
    let iv = parts.iv.try_into().map_err(|_| Forged)?;
    if !rest.is_empty() {
        return Err(Forged);
    }
    cbc::Decryptor::inner_iv_init(cipher, iv).decrypt_blocks(blocks);
    Ok(())
}

#[cfg(feature = "soft-all")]
pub(super) fn ctr_seal<C>(
    cipher: &C,
    nonce: &[u8; 4],
    icv: &SoftIcv,
    parts: EspParts<'_>,
) -> Result<(), Forged>
where
    C: BlockCipherEncrypt,
    for<'a> &'a C: BlockCipherEncrypt<BlockSize = U16>,
{
    let block = parts.counter_block(nonce)?;
    ctr_apply(cipher, &block, parts.payload)?;
    icv.sign_esp(parts)
}

#[cfg(feature = "soft-all")]
pub(super) fn ctr_open<C>(
    cipher: &C,
    nonce: &[u8; 4],
    icv: &SoftIcv,
    parts: EspParts<'_>,
) -> Result<(), Forged>
where
    C: BlockCipherEncrypt,
    for<'a> &'a C: BlockCipherEncrypt<BlockSize = U16>,
{
    icv.verify_esp(&parts)?;
    let block = parts.counter_block(nonce)?;
    ctr_apply(cipher, &block, parts.payload)
}

#[cfg(feature = "soft-all")]
fn ctr_apply<C>(cipher: &C, block: &[u8; 16], payload: &mut [u8]) -> Result<(), Forged>
where
    C: BlockCipherEncrypt,
    for<'a> &'a C: BlockCipherEncrypt<BlockSize = U16>,
{
    use aes::cipher::{StreamCipher, StreamCipherCoreWrapper};

    let core = ctr::CtrCore::<&C, ctr::flavors::Ctr32BE>::inner_iv_init(cipher, block.into());
    StreamCipherCoreWrapper::from_core(core)
        .try_apply_keystream(payload)
        .map_err(|_| Forged)
}
