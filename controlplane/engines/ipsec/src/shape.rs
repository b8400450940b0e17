//! What the packet path asks of a suite, looked up once per SA.

use towpath_base::sa::EspSuite;

/// Lengths of one suite in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    iv: u8,
    icv: u8,
    block: u8,
    /// The IV is a counter.
    pub(crate) counter: bool,
}

impl Shape {
    pub(crate) const fn of(suite: EspSuite) -> Self {
        Self {
            iv: suite.iv_len() as u8,
            icv: suite.icv_len() as u8,
            block: suite.block_len() as u8,
            counter: suite.is_counter_mode(),
        }
    }

    /// Bytes of explicit IV.
    #[inline]
    pub(crate) const fn iv_len(self) -> usize {
        self.iv as usize
    }

    /// Bytes of ICV.
    #[inline]
    pub(crate) const fn icv_len(self) -> usize {
        self.icv as usize
    }

    /// Payload and trailer fill a multiple of this, a power of two.
    #[inline]
    pub(crate) const fn block_len(self) -> usize {
        self.block as usize
    }

    /// Whether `len` bytes are whole blocks.
    #[inline]
    pub(crate) const fn is_whole(self, len: usize) -> bool {
        len & (self.block_len() - 1) == 0
    }
}
