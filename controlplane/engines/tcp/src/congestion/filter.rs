//! Windowed extremes.

use towpath_base::Instant;

use crate::codec::record;

/// Maximum over the present and the previous period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct MaxOfTwo {
    values: [u64; 2],
}
record!(MaxOfTwo { values });

impl MaxOfTwo {
    /// Takes a value of the present period.
    pub(super) fn update(&mut self, value: u64) {
        let [_, present] = &mut self.values;
        *present = (*present).max(value);
    }

    /// The present period becomes the previous one.
    pub(super) const fn advance(&mut self) {
        let [previous, present] = &mut self.values;
        if *present != 0 {
            *previous = *present;
            *present = 0;
        }
    }

    /// The maximum.
    pub(super) fn get(&self) -> u64 {
        let [previous, present] = self.values;
        previous.max(present)
    }
}

/// Value and time of a minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamped<T> {
    pub(super) value: T,
    pub(super) at: Instant,
}

impl<T: crate::codec::Codec> crate::codec::Codec for Stamped<T> {
    fn encode(&self, writer: &mut crate::codec::Writer) {
        self.value.encode(writer);
        self.at.encode(writer);
    }

    fn decode(reader: &mut crate::codec::Reader<'_>) -> Result<Self, crate::codec::RestoreError> {
        Ok(Self {
            value: T::decode(reader)?,
            at: Instant::decode(reader)?,
        })
    }
}
