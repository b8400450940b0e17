//! Bridge between our map layouts and aya's marker trait.

use aya::Pod;
use aya::maps::{Map, MapData, MapError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Error;

/// A key or value of `towpath_common::abi` as aya takes it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub T);

// SAFETY: transparent over a type of which zerocopy has proven that it has no padding and that every bit
// pattern is valid.
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> Pod for Raw<T> {}

/// Opens a pinned map as the typed map `M`.
pub(crate) fn open<M>(dir: &std::path::Path, name: &'static str) -> Result<M, Error>
where
    M: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(dir.join(name))
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(Error::map(name))
}
