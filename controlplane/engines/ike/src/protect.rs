//! The Encrypted payload (RFC 7296 §3.14, RFC 5282).

use alloc::vec;
use alloc::vec::Vec;

use towpath_base::crypto::{CryptoError, KeyGenerator, SkKeys, SkParts};

use crate::wire::{GENERIC_HEADER_LEN, HEADER_LEN, Header, Payload, PayloadType, Reader, encode_payloads};

/// A whole message whose payloads are inside one Encrypted payload.
///
/// `iv` has the length the cipher wants and was never used under these keys.
pub(crate) fn protect<K: KeyGenerator>(
    keygen: &K,
    keys: &SkKeys,
    iv: &[u8],
    header: Header,
    payloads: &[Payload<'_>],
) -> Result<Vec<u8>, CryptoError> {
    let mut text = Vec::new();
    encode_payloads(payloads, &mut text);
    let block = keys.cipher.block_len();
    let padding = (block - (text.len() + 1) % block) % block;
    text.resize(text.len() + padding, 0);
    text.push(padding as u8);

    let body_len = GENERIC_HEADER_LEN + iv.len() + text.len() + keys.icv_len();
    let field_len = u16::try_from(body_len).map_err(|_| CryptoError::Unsupported)?;
    let mut message = Vec::with_capacity(HEADER_LEN + body_len);
    let header = Header {
        next_payload: PayloadType::SK.0,
        ..header
    };
    header.encode(HEADER_LEN + body_len, &mut message);
    let first = payloads.first().map_or(PayloadType::NONE, Payload::kind);
    message.extend_from_slice(&[first.0, 0]);
    message.extend_from_slice(&field_len.to_be_bytes());

    let mut icv = vec![0; keys.icv_len()];
    let parts = SkParts {
        header: &message,
        iv,
        text: &mut text,
        icv: &mut icv,
    };
    keygen.seal(keys, parts)?;
    message.extend_from_slice(iv);
    message.extend_from_slice(&text);
    message.extend_from_slice(&icv);
    Ok(message)
}

/// Opens a message that consists of one Encrypted payload: type of the first inner payload, and the chain.
pub(crate) fn unprotect<K: KeyGenerator>(
    keygen: &K,
    keys: &SkKeys,
    message: &[u8],
) -> Result<(u8, Vec<u8>), CryptoError> {
    let (header, body) = Header::parse(message).map_err(|_| CryptoError::Forged)?;
    let mut reader = Reader::new(body);
    let (Ok(first), Ok(_), Ok(length)) = (reader.u8(), reader.u8(), reader.u16()) else {
        return Err(CryptoError::Forged);
    };
    // It is the last payload (RFC 7296 §3.14), and nothing may come before it unprotected.
    if header.next_payload != PayloadType::SK.0 || usize::from(length) != body.len() {
        return Err(CryptoError::Forged);
    }
    let iv = reader
        .take(keys.cipher.iv_len())
        .map_err(|_| CryptoError::Forged)?;
    let text_len = reader
        .rest()
        .len()
        .checked_sub(keys.icv_len())
        .ok_or(CryptoError::Forged)?;
    if text_len == 0 || !text_len.is_multiple_of(keys.cipher.block_len()) {
        return Err(CryptoError::Forged);
    }
    let mut text = reader.take(text_len).map_err(|_| CryptoError::Forged)?.to_vec();
    let mut icv = reader.rest().to_vec();
    let authenticated = message
        .get(..HEADER_LEN + GENERIC_HEADER_LEN)
        .ok_or(CryptoError::Forged)?;
    let parts = SkParts {
        header: authenticated,
        iv,
        text: &mut text,
        icv: &mut icv,
    };
    keygen.open(keys, parts)?;
    let padding = usize::from(text.pop().unwrap_or(0));
    let len = text.len().checked_sub(padding).ok_or(CryptoError::Forged)?;
    text.truncate(len);
    Ok((first, text))
}
