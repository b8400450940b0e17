//! AES-CCM as ESP uses it (RFC 4309): 11-byte nonce, 16-byte ICV. aws-lc-rs has no CCM, but its two halves: CBC
//! for the MAC and CTR for encryption (RFC 3610).

use aws_lc_rs::cipher::{Algorithm, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time;
use aws_lc_rs::iv::FixedLength;
use towpath_base::crypto::{EspParts, Forged, InvalidKey};

pub(super) struct Ccm {
    mac: EncryptingKey,
    stream: EncryptingKey,
    salt: [u8; 3],
}

/// Bytes per step of the MAC, which needs a copy to encrypt over.
const STEP: usize = 1024;

type Block = [u8; 16];

impl Ccm {
    pub(super) fn new(algorithm: &'static Algorithm, key: &[u8], salt: [u8; 3]) -> Result<Self, InvalidKey> {
        let unbound = || UnboundCipherKey::new(algorithm, key).map_err(|_| InvalidKey);
        Ok(Self {
            mac: EncryptingKey::cbc(unbound()?).map_err(|_| InvalidKey)?,
            stream: EncryptingKey::ctr(unbound()?).map_err(|_| InvalidKey)?,
            salt,
        })
    }

    pub(super) fn seal(&self, parts: EspParts<'_>) -> Result<(), Forged> {
        let (nonce, aad) = (parts.ccm_nonce(&self.salt)?, parts.aad());
        self.seal_raw(&nonce, aad.as_ref(), parts.payload, parts.icv)
    }

    pub(super) fn open(&self, parts: EspParts<'_>) -> Result<(), Forged> {
        let (nonce, aad) = (parts.ccm_nonce(&self.salt)?, parts.aad());
        self.open_raw(&nonce, aad.as_ref(), parts.payload, parts.icv)
    }

    pub(super) fn seal_raw(
        &self,
        nonce: &[u8; 11],
        aad: &[u8],
        payload: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), Forged> {
        let mut tag = self.authenticate(nonce, aad, payload)?;
        self.crypt(nonce, 0, &mut tag)?;
        self.crypt(nonce, 1, payload)?;
        *<&mut Block>::try_from(icv).map_err(|_| Forged)? = tag;
        Ok(())
    }

    pub(super) fn open_raw(
        &self,
        nonce: &[u8; 11],
        aad: &[u8],
        payload: &mut [u8],
        icv: &[u8],
    ) -> Result<(), Forged> {
        self.crypt(nonce, 1, payload)?;
        let mut tag = self.authenticate(nonce, aad, payload)?;
        self.crypt(nonce, 0, &mut tag)?;
        constant_time::verify_slices_are_equal(&tag, icv).map_err(|_| Forged)
    }

    /// The MAC before encryption: CBC over B_0, the AAD behind its length, and the plaintext (RFC 3610 §2.2).
    fn authenticate(&self, nonce: &[u8; 11], aad: &[u8], plain: &[u8]) -> Result<Block, Forged> {
        let has_aad = if aad.is_empty() { 0 } else { 0x40 };
        // A 16-byte MAC is 7 in bits 3 to 5, a 4-byte length is 3 in bits 0 to 2.
        let len = u32::try_from(plain.len()).map_err(|_| Forged)?;
        let mut mac = block(has_aad | 7 << 3 | 3, nonce, len);
        self.chain(&mut mac, &[0; 16])?;
        if !aad.is_empty() {
            let len = u16::try_from(aad.len()).ok().filter(|len| *len < 0xff00);
            let mut first = [0; 16];
            let (length, room) = first.split_at_mut(2);
            length.copy_from_slice(&len.ok_or(Forged)?.to_be_bytes());
            let (head, rest) = aad.split_at(aad.len().min(room.len()));
            room.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
            self.absorb(&mut mac, &first)?;
            self.absorb(&mut mac, rest)?;
        }
        self.absorb(&mut mac, plain)?;
        Ok(mac)
    }

    /// CBC over `data`, the last block padded with zeros; `mac` is the chaining value.
    fn absorb(&self, mac: &mut Block, data: &[u8]) -> Result<(), Forged> {
        for step in data.chunks(STEP) {
            let mut copy = [0; STEP];
            let copy = copy.get_mut(..step.len().next_multiple_of(16)).ok_or(Forged)?;
            copy.iter_mut().zip(step).for_each(|(to, from)| *to = *from);
            let context = EncryptionContext::Iv128(FixedLength::from(&*mac));
            self.mac.less_safe_encrypt(copy, context).map_err(|_| Forged)?;
            *mac = *copy.last_chunk().ok_or(Forged)?;
        }
        Ok(())
    }

    /// One block in place.
    fn chain(&self, block: &mut Block, iv: &Block) -> Result<(), Forged> {
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        self.mac.less_safe_encrypt(block, context).map_err(|_| Forged)?;
        Ok(())
    }

    /// The key stream from block `counter` on (RFC 3610 §2.3).
    fn crypt(&self, nonce: &[u8; 11], counter: u32, data: &mut [u8]) -> Result<(), Forged> {
        let context = EncryptionContext::Iv128(FixedLength::from(&block(3, nonce, counter)));
        self.stream.less_safe_encrypt(data, context).map_err(|_| Forged)?;
        Ok(())
    }
}

/// Flags, nonce and a 4-byte number: the shape of B_0 and of the counter blocks.
fn block(flags: u8, nonce: &[u8; 11], number: u32) -> Block {
    let ([a, b, c, d, e, f, g, h, i, j, k], [w, x, y, z]) = (*nonce, number.to_be_bytes());
    [flags, a, b, c, d, e, f, g, h, i, j, k, w, x, y, z]
}
