//! The Encrypted payload (RFC 7296 §3.14, RFC 5282) and the Encrypted Fragment payload (RFC 7383 §2.5).

use alloc::vec;
use alloc::vec::Vec;

use towpath_base::crypto::{CryptoError, KeyGenerator, SkKeys, SkParts};

use crate::fragment::Place;
use crate::wire::{GENERIC_HEADER_LEN, HEADER_LEN, Header, PayloadType, Reader};

/// Bytes of Fragment Number and Total Fragments.
const PLACE_LEN: usize = 4;

/// What an Encrypted payload holds: type of the first payload inside, and the chain, or a piece of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inside {
    pub(crate) first: u8,
    pub(crate) text: Vec<u8>,
    pub(crate) place: Option<Place>,
}

/// Bytes of a message whose Encrypted payload holds `text_len` bytes.
pub(crate) fn protected_len(keys: &SkKeys, text_len: usize, fragment: bool) -> usize {
    let block = keys.cipher.block_len();
    let padded = (text_len + 1).next_multiple_of(block);
    let place = if fragment { PLACE_LEN } else { 0 };
    HEADER_LEN + GENERIC_HEADER_LEN + place + keys.cipher.iv_len() + padded + keys.icv_len()
}

/// A whole message whose payloads, or a piece of them, are inside one Encrypted payload.
///
/// `iv` has the length the cipher wants and was never used under these keys.
pub(crate) fn protect<K: KeyGenerator>(
    keygen: &K,
    keys: &SkKeys,
    iv: &[u8],
    header: Header,
    inside: &Inside,
) -> Result<Vec<u8>, CryptoError> {
    let mut text = inside.text.clone();
    let block = keys.cipher.block_len();
    let padding = (block - (text.len() + 1) % block) % block;
    text.resize(text.len() + padding, 0);
    text.push(padding as u8);

    let len = protected_len(keys, inside.text.len(), inside.place.is_some());
    let field_len = u16::try_from(len - HEADER_LEN).map_err(|_| CryptoError::Unsupported)?;
    let mut message = Vec::with_capacity(len);
    let kind = match inside.place {
        None => PayloadType::SK,
        Some(_) => PayloadType::SKF,
    };
    let header = Header {
        next_payload: kind.0,
        ..header
    };
    header.encode(len, &mut message);
    message.extend_from_slice(&[inside.first, 0]);
    message.extend_from_slice(&field_len.to_be_bytes());
    if let Some(place) = inside.place {
        message.extend_from_slice(&place.number.to_be_bytes());
        message.extend_from_slice(&place.total.to_be_bytes());
    }

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

/// Opens a message that consists of one Encrypted payload or one fragment of it.
pub(crate) fn unprotect<K: KeyGenerator>(
    keygen: &K,
    keys: &SkKeys,
    message: &[u8],
) -> Result<Inside, CryptoError> {
    let forged = |_| CryptoError::Forged;
    let (header, body) = Header::parse(message).map_err(forged)?;
    let mut reader = Reader::new(body);
    let (Ok(first), Ok(_), Ok(length)) = (reader.u8(), reader.u8(), reader.u16()) else {
        return Err(CryptoError::Forged);
    };
    // It is the last payload (RFC 7296 §3.14), and nothing may come before it unprotected.
    if usize::from(length) != body.len() {
        return Err(CryptoError::Forged);
    }
    let place = match PayloadType(header.next_payload) {
        PayloadType::SK => None,
        PayloadType::SKF => Some(Place {
            number: reader.u16().map_err(forged)?,
            total: reader.u16().map_err(forged)?,
        }),
        _ => return Err(CryptoError::Forged),
    };
    let authenticated = message.len() - reader.rest().len();
    let iv = reader.take(keys.cipher.iv_len()).map_err(forged)?;
    let text_len = reader
        .rest()
        .len()
        .checked_sub(keys.icv_len())
        .ok_or(CryptoError::Forged)?;
    if text_len == 0 || !text_len.is_multiple_of(keys.cipher.block_len()) {
        return Err(CryptoError::Forged);
    }
    let mut text = reader.take(text_len).map_err(forged)?.to_vec();
    let mut icv = reader.rest().to_vec();
    let parts = SkParts {
        header: message.get(..authenticated).ok_or(CryptoError::Forged)?,
        iv,
        text: &mut text,
        icv: &mut icv,
    };
    keygen.open(keys, parts)?;
    let padding = usize::from(text.pop().unwrap_or(0));
    let len = text.len().checked_sub(padding).ok_or(CryptoError::Forged)?;
    text.truncate(len);
    Ok(Inside { first, text, place })
}
