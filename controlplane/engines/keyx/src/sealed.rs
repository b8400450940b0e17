//! One sealed datagram: clear header, ciphertext, tag (AES-256-GCM, the header authenticated with it).

use core::fmt;

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::consts::U12;
use aes_gcm::aes::Aes256Enc;
use aes_gcm::{AesGcm, KeyInit};
use towpath_base::DropReason;
use zeroize::Zeroize;

use crate::codec::Writer;
use crate::message::{HEADER_LEN, Header, TRANSFER_HEAD_LEN, peek};
use crate::sa_codec;

/// Length of the GCM tag.
pub(crate) const TAG_LEN: usize = 16;
/// Longest body: a key transfer that installs the longest SA.
pub const MAX_BODY: usize = TRANSFER_HEAD_LEN + sa_codec::MAX_LEN;
/// Longest datagram.
pub const MAX_DATAGRAM: usize = HEADER_LEN + MAX_BODY + TAG_LEN;

/// First four bytes of the nonce: which key, which direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Purpose {
    RegistrationT2n = 1,
    RegistrationN2t = 2,
    SessionT2n = 3,
    SessionN2t = 4,
}

/// A datagram ready to be framed and sent.
#[derive(Clone)]
pub struct SealedDatagram {
    bytes: [u8; MAX_DATAGRAM],
    len: usize,
}

impl SealedDatagram {
    /// The datagram.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl AsRef<[u8]> for SealedDatagram {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for SealedDatagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedDatagram({} bytes)", self.len)
    }
}

/// The message cannot be sent: it is longer than [`MAX_BODY`], its parts contradict each other, or the counter
/// is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsealable;

impl fmt::Display for Unsealable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("message too long or inconsistent, or the counter is used up")
    }
}

impl core::error::Error for Unsealable {}

/// Counter mode only ever encrypts: half the key schedule does.
type Aes256Gcm = AesGcm<Aes256Enc, U12>;

/// An AES-256-GCM key and what it is for.
pub(crate) struct SealingKey {
    aead: Aes256Gcm,
    purpose: Purpose,
}

type Nonce = aes_gcm::aead::array::Array<u8, aes_gcm::aead::consts::U12>;
type Tag = aes_gcm::aead::array::Array<u8, aes_gcm::aead::consts::U16>;

impl SealingKey {
    pub(crate) fn new(key: &[u8; 32], purpose: Purpose) -> Self {
        Self {
            aead: Aes256Gcm::new(key.into()),
            purpose,
        }
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let [a, b, c, d] = (self.purpose as u32).to_be_bytes();
        let [e, f, g, h, i, j, k, l] = counter.to_be_bytes();
        Nonce::from([a, b, c, d, e, f, g, h, i, j, k, l])
    }

    /// Seals what `write` writes. The caller never uses a counter twice.
    pub(crate) fn seal(
        &self,
        header: &Header,
        write: impl FnOnce(&mut Writer<'_>) -> Option<()>,
    ) -> Result<SealedDatagram, Unsealable> {
        let mut datagram = SealedDatagram {
            bytes: [0; MAX_DATAGRAM],
            len: 0,
        };
        datagram.len = self.seal_into(header, write, &mut datagram.bytes)?;
        Ok(datagram)
    }

    /// As [`SealingKey::seal`], to the front of `out`; returns the length.
    pub(crate) fn seal_into(
        &self,
        header: &Header,
        write: impl FnOnce(&mut Writer<'_>) -> Option<()>,
        out: &mut [u8],
    ) -> Result<usize, Unsealable> {
        let aad = header.encode();
        let (front, rest) = out.split_first_chunk_mut::<HEADER_LEN>().ok_or(Unsealable)?;
        *front = aad;
        let room = rest.len().saturating_sub(TAG_LEN).min(MAX_BODY);
        let mut writer = Writer::new(rest.get_mut(..room).ok_or(Unsealable)?);
        write(&mut writer).ok_or(Unsealable)?;
        let len = writer.len();
        let (body, tail) = rest.split_at_mut_checked(len).ok_or(Unsealable)?;
        let sealed = self
            .aead
            .encrypt_inout_detached(&self.nonce(header.counter), &aad, body.into());
        *tail.first_chunk_mut::<TAG_LEN>().ok_or(Unsealable)? = sealed.map_err(|_| Unsealable)?.into();
        Ok(HEADER_LEN + len + TAG_LEN)
    }

    /// Authenticates and decrypts, and hands the body to `read`. The caller checks the counter.
    pub(crate) fn open<R>(
        &self,
        datagram: &[u8],
        read: impl FnOnce(&Header, &[u8]) -> Option<R>,
    ) -> Result<R, DropReason> {
        let header = peek(datagram)?;
        let malformed = DropReason::KeyxMalformed;
        let (aad, sealed) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(malformed)?;
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(malformed)?;
        // The body may hold keys.
        let mut body = Wiped([0; MAX_BODY], ciphertext.len());
        let plain = body.0.get_mut(..ciphertext.len()).ok_or(malformed)?;
        plain.copy_from_slice(ciphertext);
        self.aead
            .decrypt_inout_detached(
                &self.nonce(header.counter),
                aad,
                (&mut *plain).into(),
                &Tag::from(*tag),
            )
            .map_err(|_| DropReason::KeyxForged)?;
        read(&header, plain).ok_or(malformed)
    }
}

/// A buffer whose used bytes are zeroized on drop.
struct Wiped([u8; MAX_BODY], usize);

impl Drop for Wiped {
    fn drop(&mut self) {
        let Self(bytes, used) = self;
        if let Some(used) = bytes.get_mut(..*used) {
            used.zeroize();
        }
    }
}
