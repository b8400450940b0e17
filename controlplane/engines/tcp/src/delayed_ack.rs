//! When to acknowledge: every second full segment, or soon (RFC 9293 §3.8.6.3, RFC 5681 §4.2).

use crate::codec::record;

/// Acknowledgments sent at once at the start of a connection, while the sender's window is small.
const QUICK: u8 = 32;

/// What is owed to the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DelayedAck {
    /// Bytes received since the last acknowledgment.
    unacknowledged: u32,
    immediate: bool,
    quick: u8,
}
record!(DelayedAck {
    unacknowledged,
    immediate,
    quick
});

impl Default for DelayedAck {
    fn default() -> Self {
        Self {
            unacknowledged: 0,
            immediate: false,
            quick: QUICK,
        }
    }
}

impl DelayedAck {
    /// Data in order arrived.
    pub(crate) const fn on_data(&mut self, bytes: u32, mss: u32) {
        self.unacknowledged = self.unacknowledged.saturating_add(bytes);
        if self.quick > 0 {
            self.quick -= 1;
            self.immediate = true;
        } else if self.unacknowledged >= mss.saturating_mul(2) {
            self.immediate = true;
        }
    }

    /// Something that must be acknowledged at once.
    pub(crate) const fn now(&mut self) {
        self.immediate = true;
    }

    /// An acknowledgment must go now.
    pub(crate) const fn is_due(&self) -> bool {
        self.immediate
    }

    /// An acknowledgment must go, but may wait for the timer.
    pub(crate) const fn is_pending(&self) -> bool {
        self.unacknowledged > 0
    }

    /// A segment with the present acknowledgment left.
    pub(crate) const fn sent(&mut self) {
        self.unacknowledged = 0;
        self.immediate = false;
    }
}
