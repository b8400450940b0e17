//! Key transfers are sent until they are acknowledged, and taken over once however often they arrive.

use towpath_base::Spi;

use crate::message::{SaName, TransferResult};

#[cfg(feature = "alloc")]
pub use sender::{Backoff, Done, Full, Sender};

/// Duplicates at the terminal: remembers the last `N` transfers with what became of them, and the last `N` SAs
/// that were deleted, so that a late copy of the installation does not bring one back.
#[derive(Debug, Clone)]
pub struct Receiver<const N: usize> {
    done: [Option<(u64, TransferResult)>; N],
    deleted: [Option<(Spi, Spi)>; N],
    next_done: usize,
    next_deleted: usize,
}

impl<const N: usize> Default for Receiver<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Receiver<N> {
    /// Nothing received yet.
    pub const fn new() -> Self {
        Self {
            done: [None; N],
            deleted: [None; N],
            next_done: 0,
            next_deleted: 0,
        }
    }

    /// What became of this transfer, if it was here before: acknowledge again, do nothing.
    pub fn seen(&self, transfer_id: u64) -> Option<TransferResult> {
        self.done
            .iter()
            .flatten()
            .find(|(id, _)| *id == transfer_id)
            .map(|(_, result)| *result)
    }

    /// Whether this SA was deleted before: acknowledge, do not install.
    pub fn was_deleted(&self, name: &SaName) -> bool {
        self.deleted.contains(&Some((name.spi_in, name.spi_out)))
    }

    /// Remembers what became of a transfer; of one seen before, what became of it first.
    pub fn record(&mut self, transfer_id: u64, result: TransferResult) {
        if self.seen(transfer_id).is_some() {
            return;
        }
        remember(&mut self.done, &mut self.next_done, (transfer_id, result));
    }

    /// Remembers that an SA was deleted.
    pub fn record_deleted(&mut self, name: &SaName) {
        remember(
            &mut self.deleted,
            &mut self.next_deleted,
            (name.spi_in, name.spi_out),
        );
    }

    /// Forgets the transfers: a new session counts them anew. Deleted SAs stay deleted.
    pub fn new_session(&mut self) {
        self.done = [None; N];
    }
}

fn remember<T, const N: usize>(ring: &mut [Option<T>; N], next: &mut usize, item: T) {
    if let Some(slot) = ring.get_mut(*next % N.max(1)) {
        *slot = Some(item);
    }
    *next = (*next + 1) % N.max(1);
}

#[cfg(feature = "alloc")]
mod sender {
    use alloc::vec::Vec;
    use core::time::Duration;

    use towpath_base::Instant;

    use crate::message::{KeyTransfer, Operation, TransferAck, TransferResult};

    /// When to send again.
    #[derive(Debug, Clone, Copy)]
    pub struct Backoff {
        /// Wait after the first transmission; doubled after each.
        pub first: Duration,
        /// Longest wait.
        pub longest: Duration,
        /// Transmissions before the terminal is given up.
        pub transmissions: u32,
    }

    impl Default for Backoff {
        fn default() -> Self {
            Self {
                first: Duration::from_millis(500),
                longest: Duration::from_secs(8),
                transmissions: 10,
            }
        }
    }

    #[derive(Debug)]
    struct Outstanding {
        transfer: KeyTransfer,
        sent: u32,
        due: Instant,
    }

    /// A transfer that is over.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Done {
        /// The transfer.
        pub transfer: KeyTransfer,
        /// What the terminal said; `None` if it never answered.
        pub result: Option<TransferResult>,
    }

    /// No room for another transfer.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Full;

    /// Transfers to one terminal in one session.
    #[derive(Debug)]
    pub struct Sender {
        outstanding: Vec<Outstanding>,
        backoff: Backoff,
        limit: usize,
        last_id: u64,
    }

    impl Sender {
        /// At most `limit` unacknowledged transfers at a time.
        pub const fn new(backoff: Backoff, limit: usize) -> Self {
            Self {
                outstanding: Vec::new(),
                backoff,
                limit,
                last_id: 0,
            }
        }

        /// Adds a transfer, due at once; returns its identifier. A deletion takes the place of an unacknowledged
        /// installation of the same SA.
        ///
        /// # Errors
        /// [`Full`].
        pub fn push(
            &mut self,
            now: Instant,
            request_id: Option<u32>,
            operation: Operation,
        ) -> Result<u64, Full> {
            if let Operation::Delete(name) = &operation {
                self.outstanding
                    .retain(|waiting| waiting.transfer.operation.name() != *name);
            }
            if self.outstanding.len() >= self.limit {
                return Err(Full);
            }
            self.last_id += 1;
            let transfer = KeyTransfer {
                transfer_id: self.last_id,
                request_id,
                operation,
            };
            self.outstanding.push(Outstanding {
                transfer,
                sent: 0,
                due: now,
            });
            Ok(self.last_id)
        }

        /// The next transfer to seal and send now, if any; its next transmission is scheduled.
        pub fn poll_transmit(&mut self, now: Instant) -> Option<&KeyTransfer> {
            let Backoff {
                first,
                longest,
                transmissions,
            } = self.backoff;
            let due = self
                .outstanding
                .iter_mut()
                .find(|waiting| waiting.due <= now && waiting.sent < transmissions)?;
            let wait = first.saturating_mul(1 << due.sent.min(16)).min(longest);
            due.sent += 1;
            due.due = now + wait;
            Some(&due.transfer)
        }

        /// A transfer whose last transmission went unanswered, taken out.
        pub fn poll_failed(&mut self, now: Instant) -> Option<Done> {
            let transmissions = self.backoff.transmissions;
            let at = self
                .outstanding
                .iter()
                .position(|waiting| waiting.due <= now && waiting.sent >= transmissions)?;
            Some(Done {
                transfer: self.outstanding.remove(at).transfer,
                result: None,
            })
        }

        /// An acknowledgement; `None` if it acknowledges nothing outstanding.
        pub fn handle_ack(&mut self, ack: &TransferAck) -> Option<Done> {
            let at = self
                .outstanding
                .iter()
                .position(|waiting| waiting.transfer.transfer_id == ack.transfer_id)?;
            Some(Done {
                transfer: self.outstanding.remove(at).transfer,
                result: Some(ack.result),
            })
        }

        /// When [`Sender::poll_transmit`] or [`Sender::poll_failed`] will next have something.
        pub fn poll_timeout(&self) -> Option<Instant> {
            self.outstanding.iter().map(|waiting| waiting.due).min()
        }

        /// Transfers not acknowledged yet.
        pub fn outstanding(&self) -> impl Iterator<Item = &KeyTransfer> {
            self.outstanding.iter().map(|waiting| &waiting.transfer)
        }

        /// Takes over what an older session left unacknowledged: deletions, and installations never sent. One
        /// that was sent may have been used by a terminal that lost its state since; to deliver the same keys
        /// again would start its counters over. Those are returned: the SAs have to be negotiated afresh.
        pub fn adopt(&mut self, now: Instant, older: &mut Self) -> Vec<Done> {
            let mut lost = Vec::new();
            for Outstanding { transfer, sent, .. } in older.outstanding.drain(..) {
                let install = matches!(transfer.operation, Operation::Install { .. });
                let fits = !(install && sent > 0)
                    && self
                        .push(now, transfer.request_id, transfer.operation.clone())
                        .is_ok();
                if !fits && install {
                    lost.push(Done {
                        transfer,
                        result: None,
                    });
                }
            }
            lost
        }
    }
}
