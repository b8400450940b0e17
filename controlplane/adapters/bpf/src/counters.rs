//! The program's counters, summed over the processors.

use std::path::Path;

use aya::maps::{MapData, PerCpuArray};
use towpath_common::abi::{Count, map};
use towpath_common::counter::Counter;

use crate::Error;
use crate::raw::{Raw, open};

/// Reads every counter of the data plane pinned at `pin_dir`, in the order of [`Counter::all`].
pub fn counters(pin_dir: &Path) -> Result<Vec<(Counter, Count)>, Error> {
    read(&open(pin_dir, map::COUNTERS)?)
}

pub(crate) fn read(map: &PerCpuArray<MapData, Raw<Count>>) -> Result<Vec<(Counter, Count)>, Error> {
    Counter::all()
        .map(|counter| {
            let values = map.get(&counter.index(), 0).map_err(Error::map(map::COUNTERS))?;
            let sum = values.iter().fold(Count::default(), |sum, Raw(count)| Count {
                packets: sum.packets.wrapping_add(count.packets),
                bytes: sum.bytes.wrapping_add(count.bytes),
            });
            Ok((counter, sum))
        })
        .collect()
}
