//! Key material: zeroized on drop, compared in constant time, never printed.

use core::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret of exactly `N` bytes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey<const N: usize>([u8; N]);

impl<const N: usize> SecretKey<N> {
    /// Takes over `bytes`. The caller should zeroize its own copy.
    pub const fn new(bytes: [u8; N]) -> Self {
        Self(bytes)
    }

    /// The secret itself.
    pub const fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> PartialEq for SecretKey<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl<const N: usize> Eq for SecretKey<N> {}

impl<const N: usize> fmt::Debug for SecretKey<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Longest [`Key`]: an HMAC-SHA-512 key.
pub const MAX_KEY_LEN: usize = 64;

/// A secret of up to [`MAX_KEY_LEN`] bytes, stored in place.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    bytes: [u8; MAX_KEY_LEN],
    len: u8,
}

impl Key {
    /// A key of no bytes (an AEAD has no integrity key).
    pub const EMPTY: Self = Self {
        bytes: [0; MAX_KEY_LEN],
        len: 0,
    };

    /// Copies `bytes`; `None` when they are more than [`MAX_KEY_LEN`].
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = Self::EMPTY;
        key.set(bytes)?;
        Some(key)
    }

    /// Takes over `bytes` where it lies: nothing secret is moved about. `None`, and no change, when they are more
    /// than [`MAX_KEY_LEN`].
    #[must_use]
    pub fn set(&mut self, bytes: &[u8]) -> Option<()> {
        let room = self.bytes.get_mut(..bytes.len())?;
        room.copy_from_slice(bytes);
        let used = room.len();
        if let Some(rest) = self.bytes.get_mut(used..) {
            rest.fill(0);
        }
        self.len = used as u8;
        Some(())
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True for [`Key::EMPTY`].
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        (self.bytes.ct_eq(&other.bytes) & self.len.ct_eq(&other.len)).into()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(feature = "serde")]
mod serde_impls {
    //! Keys travel only inside sealed or authenticated, encrypted channels, and into the encrypted store.

    use serde::de::{Error, SeqAccess, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Key, SecretKey, fmt};

    impl Serialize for Key {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.expose())
        }
    }

    impl<const N: usize> Serialize for SecretKey<N> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.expose())
        }
    }

    struct KeyVisitor;

    impl<'de> Visitor<'de> for KeyVisitor {
        type Value = Key;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a key of at most {} bytes", super::MAX_KEY_LEN)
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Key, E> {
            Key::from_slice(bytes).ok_or_else(|| E::invalid_length(bytes.len(), &self))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Key, A::Error> {
            let mut key = Key::EMPTY;
            while let Some(byte) = seq.next_element::<u8>()? {
                let len = usize::from(key.len);
                *key.bytes
                    .get_mut(len)
                    .ok_or_else(|| A::Error::invalid_length(len + 1, &self))? = byte;
                key.len += 1;
            }
            Ok(key)
        }
    }

    impl<'de> Deserialize<'de> for Key {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_bytes(KeyVisitor)
        }
    }

    impl<'de, const N: usize> Deserialize<'de> for SecretKey<N> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let key = Key::deserialize(deserializer)?;
            let bytes = key
                .expose()
                .try_into()
                .map_err(|_| D::Error::invalid_length(key.len(), &"exact key length"))?;
            Ok(Self(bytes))
        }
    }
}
