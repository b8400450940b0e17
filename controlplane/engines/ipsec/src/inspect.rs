//! Class `inspect`: the gateway sees the packets of an SA and can neither change nor make one (spec rows T4, T8).
//!
//! It holds the cipher key alone, so the packet itself goes on untouched; a copy is decrypted. **What is seen was
//! not authenticated**: whoever acts on it acts on a hint.

use core::ops::Range;

use towpath_base::DropReason;
use towpath_base::crypto::{EspDecryptor, InspectProvider, InvalidKey};
use towpath_base::key::Key;
use towpath_base::sa::{EspSuite, Mode};

use crate::ip;
use crate::locate::{self, ESP_LEN, Located};
use crate::mode::{came_tunnelled, is_ip};

/// Both directions of one SA pair, seen from outside.
#[derive(Debug)]
pub struct Inspector<D> {
    mode: Mode,
    to_peer: D,
    to_terminal: D,
}

/// A packet that was looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Low 32 bits of its sequence number.
    pub sequence: u32,
    /// Where in the scratch buffer the plain IP packet is.
    pub plain: Range<usize>,
}

impl<D: EspDecryptor> Inspector<D> {
    /// `cipher_in`, `cipher_out`: cipher keys (with salt) of what the terminal receives and sends.
    ///
    /// # Errors
    /// [`InvalidKey`] if the suite is an AEAD or a key has another length.
    pub fn new<P>(
        provider: &P,
        suite: EspSuite,
        mode: Mode,
        cipher_in: &Key,
        cipher_out: &Key,
    ) -> Result<Self, InvalidKey>
    where
        P: InspectProvider<Decryptor = D>,
    {
        Ok(Self {
            mode,
            to_peer: provider.decryptor(suite, cipher_out)?,
            to_terminal: provider.decryptor(suite, cipher_in)?,
        })
    }

    /// Decrypts a copy of `packet` in `scratch`, which must be at least as long.
    ///
    /// # Errors
    /// What keeps it from being seen. The packet itself is none the worse for it.
    pub fn look(&mut self, to_peer: bool, packet: &[u8], scratch: &mut [u8]) -> Result<Seen, DropReason> {
        let at = locate::esp(packet)?;
        let decryptor = if to_peer {
            &mut self.to_peer
        } else {
            &mut self.to_terminal
        };
        let suite = decryptor.suite();
        let malformed = DropReason::EspMalformed;
        let iv_at = at.esp_at + ESP_LEN;
        let payload_at = iv_at + suite.iv_len();
        let payload_end = at.end.checked_sub(suite.icv_len()).ok_or(malformed)?;
        let copy = scratch.get_mut(..packet.len()).ok_or(DropReason::NoHeadroom)?;
        copy.copy_from_slice(packet);
        let iv = packet.get(iv_at..payload_at).ok_or(malformed)?;
        let body = copy.get_mut(payload_at..payload_end).ok_or(malformed)?;
        if body.is_empty() || !body.len().is_multiple_of(suite.block_len()) {
            return Err(malformed);
        }
        decryptor.decrypt(iv, body).map_err(|_| malformed)?;
        let [rest @ .., pad_len, next_header] = &*body else {
            return Err(malformed);
        };
        let next_header = *next_header;
        let len = rest
            .len()
            .checked_sub(usize::from(*pad_len))
            .ok_or(DropReason::EspBadPadding)?;
        let plain = match came_tunnelled(self.mode, next_header) {
            true if is_ip(next_header) => payload_at..payload_at + len,
            true => return Err(DropReason::EspBadPadding),
            false => uncover(copy, &at, payload_at, len, next_header).ok_or(malformed)?,
        };
        Ok(Seen {
            sequence: at.sequence,
            plain,
        })
    }
}

/// Moves the IP header up to the payload; returns where the packet is.
fn uncover(
    copy: &mut [u8],
    at: &Located,
    payload_at: usize,
    len: usize,
    next_header: u8,
) -> Option<Range<usize>> {
    *copy.get_mut(at.protocol_at)? = next_header;
    let header = at.udp_at.unwrap_or(at.esp_at);
    let start = payload_at.checked_sub(header)?;
    copy.copy_within(..header, start);
    let plain = start..payload_at.checked_add(len)?;
    ip::finish_header(copy.get_mut(plain.clone())?);
    Some(plain)
}

#[cfg(feature = "soft-all")]
mod soft {
    //! Portable decryption.

    use aes::cipher::consts::U16;
    use aes::cipher::{
        Block, BlockCipherDecrypt, BlockModeDecrypt, InnerIvInit, KeyInit, KeyIvInit, StreamCipher,
    };
    use aes::{Aes128, Aes256};
    use towpath_base::crypto::{EspDecryptor, Forged, InspectProvider, InvalidKey};
    use towpath_base::key::Key;
    use towpath_base::sa::{EspCipher, EspSuite};

    use crate::soft::SoftEsp;

    /// One direction.
    #[derive(Debug)]
    pub struct SoftDecryptor {
        suite: EspSuite,
        key: Key,
    }

    impl InspectProvider for SoftEsp {
        type Decryptor = SoftDecryptor;

        fn decryptor(&self, suite: EspSuite, cipher: &Key) -> Result<SoftDecryptor, InvalidKey> {
            if suite.is_aead() || cipher.len() != suite.cipher_key_len() + suite.salt_len() {
                return Err(InvalidKey);
            }
            Ok(SoftDecryptor {
                suite,
                key: cipher.clone(),
            })
        }
    }

    impl EspDecryptor for SoftDecryptor {
        fn suite(&self) -> EspSuite {
            self.suite
        }

        fn decrypt(&mut self, iv: &[u8], payload: &mut [u8]) -> Result<(), Forged> {
            let (key, nonce) = self
                .key
                .expose()
                .split_at_checked(self.suite.cipher_key_len())
                .ok_or(Forged)?;
            match (self.suite.cipher(), key.len()) {
                (EspCipher::AesCbc, 16) => cbc::<Aes128>(key, iv, payload),
                (EspCipher::AesCbc, _) => cbc::<Aes256>(key, iv, payload),
                (EspCipher::AesCtr, 16) => ctr::<ctr::Ctr32BE<Aes128>>(key, nonce, iv, payload),
                (EspCipher::AesCtr, _) => ctr::<ctr::Ctr32BE<Aes256>>(key, nonce, iv, payload),
                (EspCipher::Null, _) => Ok(()),
                _ => Err(Forged),
            }
        }
    }

    fn cbc<C>(key: &[u8], iv: &[u8], payload: &mut [u8]) -> Result<(), Forged>
    where
        C: KeyInit + BlockCipherDecrypt,
        for<'a> &'a C: BlockCipherDecrypt<BlockSize = U16>,
    {
        let cipher = C::new_from_slice(key).map_err(|_| Forged)?;
        let (blocks, rest) = Block::<&C>::slice_as_chunks_mut(payload);
        if !rest.is_empty() {
            return Err(Forged);
        }
        let iv = iv.try_into().map_err(|_| Forged)?;
        cbc::Decryptor::inner_iv_init(&cipher, iv).decrypt_blocks(blocks);
        Ok(())
    }

    fn ctr<S: KeyIvInit + StreamCipher>(
        key: &[u8],
        nonce: &[u8],
        iv: &[u8],
        payload: &mut [u8],
    ) -> Result<(), Forged> {
        let mut block = [0; 16];
        let (front, rest) = block.split_at_mut(4);
        front.copy_from_slice(<&[u8; 4]>::try_from(nonce).map_err(|_| Forged)?);
        let (middle, counter) = rest.split_at_mut(8);
        middle.copy_from_slice(<&[u8; 8]>::try_from(iv).map_err(|_| Forged)?);
        counter.copy_from_slice(&1u32.to_be_bytes());
        S::new_from_slices(key, &block)
            .map_err(|_| Forged)?
            .try_apply_keystream(payload)
            .map_err(|_| Forged)
    }
}

#[cfg(feature = "soft-all")]
pub use soft::SoftDecryptor;
