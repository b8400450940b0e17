//! How state becomes bytes and state again: the format under every snapshot.
//!
//! Integers are written in groups of seven bits, low groups first, since most are small; an [`Instant`] is stored as its distance from the moment
//! of the snapshot, because the machine that restores it has another clock. Decoding never allocates more
//! than the input can pay for and never panics. `record!` destructures exhaustively, so a field added to
//! a structure breaks its codec until it is listed.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use towpath_base::Instant;

use crate::seq::SeqNum;

/// Why bytes are not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreError {
    /// The bytes end early.
    Truncated,
    /// Bytes are left over.
    Trailing,
    /// Not a snapshot of this kind.
    Magic,
    /// Written by a version this one cannot read.
    Version(u16),
    /// A value no running connection can have; the text names it.
    Invalid(&'static str),
}

/// Collects the bytes of a snapshot.
#[derive(Debug)]
pub struct Writer {
    /// What was written so far.
    pub bytes: Vec<u8>,
    now: Instant,
}

impl Writer {
    /// An empty snapshot taken at `now`.
    pub const fn new(now: Instant) -> Self {
        Self {
            bytes: Vec::new(),
            now,
        }
    }

    /// A snapshot taken at `now` that begins with `magic` and the version of its format.
    pub(crate) fn versioned(now: Instant, magic: u32, version: u16) -> Self {
        let mut writer = Self::new(now);
        magic.encode(&mut writer);
        version.encode(&mut writer);
        writer
    }

    /// Appends a length and the bytes.
    pub fn blob(&mut self, bytes: &[u8]) {
        (bytes.len() as u64).encode(self);
        self.bytes.extend_from_slice(bytes);
    }
}

/// Takes a snapshot apart.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    now: Instant,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`; stored instants become relative to `now`.
    pub const fn new(bytes: &'a [u8], now: Instant) -> Self {
        Self { bytes, now }
    }

    /// Reads a snapshot that [`Writer::versioned`] began; no other version is read.
    pub(crate) fn versioned(
        bytes: &'a [u8],
        now: Instant,
        magic: u32,
        version: u16,
    ) -> Result<Self, RestoreError> {
        let mut reader = Self::new(bytes, now);
        if u32::decode(&mut reader)? != magic {
            return Err(RestoreError::Magic);
        }
        let found = u16::decode(&mut reader)?;
        if found != version {
            return Err(RestoreError::Version(found));
        }
        Ok(reader)
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], RestoreError> {
        let (head, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or(RestoreError::Truncated)?;
        self.bytes = rest;
        Ok(head)
    }

    /// The counterpart of [`Writer::blob`].
    pub fn blob(&mut self) -> Result<&'a [u8], RestoreError> {
        let len = usize::try_from(u64::decode(self)?).map_err(|_| RestoreError::Truncated)?;
        self.take(len)
    }

    /// A count of elements of at least one byte each: never more than the bytes left.
    fn count(&mut self) -> Result<usize, RestoreError> {
        let count = usize::try_from(u64::decode(self)?).map_err(|_| RestoreError::Truncated)?;
        if count > self.bytes.len() {
            Err(RestoreError::Truncated)
        } else {
            Ok(count)
        }
    }

    /// Succeeds when everything was read.
    pub const fn finish(self) -> Result<(), RestoreError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(RestoreError::Trailing)
        }
    }
}

/// State that can be written to and read from a snapshot.
pub trait Codec: Sized {
    /// Appends `self`.
    fn encode(&self, writer: &mut Writer);
    /// Reads one value.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError>;
}

impl Codec for u8 {
    fn encode(&self, writer: &mut Writer) {
        writer.bytes.push(*self);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        reader.take(1)?.first().copied().ok_or(RestoreError::Truncated)
    }
}

impl Codec for u64 {
    fn encode(&self, writer: &mut Writer) {
        let mut rest = *self;
        while rest >= 0x80 {
            writer.bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        writer.bytes.push(rest as u8);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = u8::decode(reader)?;
            let part = Self::from(byte & 0x7f);
            if part << shift >> shift != part {
                break;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(RestoreError::Invalid("integer"))
    }
}

macro_rules! integers {
    ($($type:ty),+) => { $(
        impl Codec for $type {
            fn encode(&self, writer: &mut Writer) {
                (*self as u64).encode(writer);
            }

            fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
                Self::try_from(u64::decode(reader)?).map_err(|_| RestoreError::Invalid("integer"))
            }
        }
    )+ };
}
integers!(u16, u32, usize);

impl Codec for u128 {
    fn encode(&self, writer: &mut Writer) {
        writer.bytes.extend_from_slice(&self.to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let bytes = reader.take(16)?;
        bytes
            .try_into()
            .map(Self::from_le_bytes)
            .map_err(|_| RestoreError::Truncated)
    }
}

impl Codec for i64 {
    fn encode(&self, writer: &mut Writer) {
        // Zigzag: small distances in either direction are short.
        (((*self << 1) ^ (*self >> 63)) as u64).encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let value = u64::decode(reader)?;
        Ok((value >> 1) as Self ^ -((value & 1) as Self))
    }
}

impl Codec for f64 {
    fn encode(&self, writer: &mut Writer) {
        writer.bytes.extend_from_slice(&self.to_bits().to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let bytes = reader.take(8)?.try_into().map_err(|_| RestoreError::Truncated)?;
        let value = Self::from_bits(u64::from_le_bytes(bytes));
        if value.is_nan() {
            Err(RestoreError::Invalid("number"))
        } else {
            Ok(value)
        }
    }
}

impl Codec for bool {
    fn encode(&self, writer: &mut Writer) {
        u8::from(*self).encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        match u8::decode(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RestoreError::Invalid("boolean")),
        }
    }
}

impl Codec for Duration {
    fn encode(&self, writer: &mut Writer) {
        u64::try_from(self.as_nanos()).unwrap_or(u64::MAX).encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        u64::decode(reader).map(Self::from_nanos)
    }
}

impl Codec for Instant {
    fn encode(&self, writer: &mut Writer) {
        (self.as_nanos() as i64)
            .wrapping_sub(writer.now.as_nanos() as i64)
            .encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let distance = i64::decode(reader)?;
        Ok(Self::from_nanos(
            reader.now.as_nanos().saturating_add_signed(distance),
        ))
    }
}

impl Codec for SeqNum {
    fn encode(&self, writer: &mut Writer) {
        self.0.encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        u32::decode(reader).map(Self)
    }
}

impl<T: Codec> Codec for Option<T> {
    fn encode(&self, writer: &mut Writer) {
        self.is_some().encode(writer);
        if let Some(value) = self {
            value.encode(writer);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        if bool::decode(reader)? {
            T::decode(reader).map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<T: Codec> Codec for Box<T> {
    fn encode(&self, writer: &mut Writer) {
        (**self).encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        T::decode(reader).map(Self::new)
    }
}

impl<A: Codec, B: Codec> Codec for (A, B) {
    fn encode(&self, writer: &mut Writer) {
        self.0.encode(writer);
        self.1.encode(writer);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Ok((A::decode(reader)?, B::decode(reader)?))
    }
}

impl<T: Codec + Copy + Default, const N: usize> Codec for [T; N] {
    fn encode(&self, writer: &mut Writer) {
        for value in self {
            value.encode(writer);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let mut values = [T::default(); N];
        for value in &mut values {
            *value = T::decode(reader)?;
        }
        Ok(values)
    }
}

macro_rules! sequences {
    ($($collection:ident, $push:ident, $($bound:ident)?;)+) => { $(
        impl<T: Codec $(+ $bound)?> Codec for $collection<T> {
            fn encode(&self, writer: &mut Writer) {
                (self.len() as u64).encode(writer);
                for value in self {
                    value.encode(writer);
                }
            }

            fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
                let mut values = Self::new();
                for _ in 0..reader.count()? {
                    values.$push(T::decode(reader)?);
                }
                Ok(values)
            }
        }
    )+ };
}
sequences!(Vec, push,; VecDeque, push_back,; BTreeSet, insert, Ord;);

impl<K: Codec + Ord, V: Codec> Codec for BTreeMap<K, V> {
    fn encode(&self, writer: &mut Writer) {
        (self.len() as u64).encode(writer);
        for (key, value) in self {
            key.encode(writer);
            value.encode(writer);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let mut map = Self::new();
        for _ in 0..reader.count()? {
            map.insert(K::decode(reader)?, V::decode(reader)?);
        }
        Ok(map)
    }
}

/// Implements [`Codec`] for a structure; every field is listed, in snapshot order.
macro_rules! record {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        impl $crate::codec::Codec for $name {
            fn encode(&self, writer: &mut $crate::codec::Writer) {
                let Self { $($field),+ } = self;
                $($crate::codec::Codec::encode($field, writer);)+
            }

            fn decode(
                reader: &mut $crate::codec::Reader<'_>,
            ) -> Result<Self, $crate::codec::RestoreError> {
                $(let $field = $crate::codec::Codec::decode(reader)?;)+
                Ok(Self { $($field),+ })
            }
        }
    };
}
pub(crate) use record;

/// Implements [`Codec`] for an enumeration without fields; the number is the snapshot's.
macro_rules! choice {
    ($name:ident { $($variant:ident = $number:literal),+ $(,)? }) => {
        impl $crate::codec::Codec for $name {
            fn encode(&self, writer: &mut $crate::codec::Writer) {
                let number: u8 = match self { $(Self::$variant => $number,)+ };
                $crate::codec::Codec::encode(&number, writer);
            }

            fn decode(
                reader: &mut $crate::codec::Reader<'_>,
            ) -> Result<Self, $crate::codec::RestoreError> {
                match <u8 as $crate::codec::Codec>::decode(reader)? {
                    $($number => Ok(Self::$variant),)+
                    _ => Err($crate::codec::RestoreError::Invalid(stringify!($name))),
                }
            }
        }
    };
}
pub(crate) use choice;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_keeps_its_distance_from_now() {
        let mut writer = Writer::new(Instant::from_secs(100));
        Instant::from_secs(103).encode(&mut writer);
        Instant::from_secs(98).encode(&mut writer);
        let mut reader = Reader::new(&writer.bytes, Instant::from_secs(5));
        assert_eq!(Instant::decode(&mut reader), Ok(Instant::from_secs(8)));
        assert_eq!(Instant::decode(&mut reader), Ok(Instant::from_secs(3)));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn integers_come_back_and_overlong_ones_do_not() {
        let mut writer = Writer::new(Instant::ZERO);
        for value in [0, 1, 127, 128, 1 << 32, u64::MAX] {
            value.encode(&mut writer);
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            value.encode(&mut writer);
        }
        let mut reader = Reader::new(&writer.bytes, Instant::ZERO);
        for value in [0, 1, 127, 128, 1 << 32, u64::MAX] {
            assert_eq!(u64::decode(&mut reader), Ok(value));
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(i64::decode(&mut reader), Ok(value));
        }
        assert_eq!(reader.finish(), Ok(()));
        let overlong = [0xff; 11];
        assert!(u64::decode(&mut Reader::new(&overlong, Instant::ZERO)).is_err());
        assert!(u16::decode(&mut Reader::new(&[0x80, 0x80, 0x04], Instant::ZERO)).is_err());
    }

    #[test]
    fn an_absurd_count_does_not_allocate() {
        let mut writer = Writer::new(Instant::ZERO);
        (u64::MAX / 2).encode(&mut writer);
        assert_eq!(
            Vec::<u64>::decode(&mut Reader::new(&writer.bytes, Instant::ZERO)),
            Err(RestoreError::Truncated)
        );
    }
}
