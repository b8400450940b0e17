//! Timestamps: the clock, what to echo, and protection against wrapped sequence numbers (RFC 7323 §4, §5).

use core::time::Duration;

use towpath_base::Instant;

use crate::codec::record;
use crate::segment::Timestamps;
use crate::seq::{Offset, SeqNum};

/// TS.Recent is forgotten after this long (RFC 7323 §5.5).
const OUTDATED: Duration = Duration::from_secs(24 * 24 * 3600);

/// Timestamp state of a connection on which the option is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paws {
    /// Added to the clock, so that it does not betray the machine's uptime.
    offset: u32,
    /// TS.Recent and when it was taken.
    recent: Option<(u32, Instant)>,
    /// Last.ACK.sent.
    last_ack_sent: Offset,
}
record!(Paws {
    offset,
    recent,
    last_ack_sent
});

impl Paws {
    /// A clock that reads `offset` at the origin.
    pub(crate) const fn new(offset: u32) -> Self {
        Self {
            offset,
            recent: None,
            last_ack_sent: 0,
        }
    }

    /// TSval at `now`, in milliseconds.
    pub(crate) const fn clock(&self, now: Instant) -> u32 {
        ((now.as_nanos() / 1_000_000) as u32).wrapping_add(self.offset)
    }

    /// The option for a segment sent now that acknowledges up to `ack`.
    pub(crate) fn stamp(&mut self, now: Instant, ack: Offset) -> Timestamps {
        self.last_ack_sent = ack;
        Timestamps {
            value: self.clock(now),
            echo: self.recent.map_or(0, |(value, _)| value),
        }
    }

    /// R1 of RFC 7323 §5.3: the segment is from before a wrap.
    pub(crate) fn is_old(&self, now: Instant, timestamps: Timestamps) -> bool {
        self.recent.is_some_and(|(recent, at)| {
            SeqNum(timestamps.value).before(SeqNum(recent)) && now.saturating_since(at) < OUTDATED
        })
    }

    /// R3: take over TSval of a segment that covers Last.ACK.sent.
    pub(crate) fn update(&mut self, now: Instant, timestamps: Timestamps, seq: Offset) {
        let newer = self
            .recent
            .is_none_or(|(recent, _)| !SeqNum(timestamps.value).before(SeqNum(recent)));
        if newer && seq <= self.last_ack_sent {
            self.recent = Some((timestamps.value, now));
        }
    }

    /// Takes over TSval of a SYN.
    pub(crate) const fn start(&mut self, now: Instant, timestamps: Timestamps) {
        self.recent = Some((timestamps.value, now));
    }

    /// The round trip an echo stands for, to the millisecond.
    pub(crate) fn rtt_of(&self, now: Instant, echo: u32) -> Option<Duration> {
        let elapsed = SeqNum(self.clock(now)).distance(SeqNum(echo));
        (echo != 0 && (0..600_000).contains(&elapsed)).then(|| Duration::from_millis(elapsed as u64))
    }

    /// True when `echo` was stamped before `sent_at`.
    pub(crate) const fn echoes_before(&self, echo: u32, sent_at: Instant) -> bool {
        SeqNum(echo).before(SeqNum(self.clock(sent_at)))
    }

    /// Moves the clock so that it goes on where the one of the machine the snapshot came from was.
    pub(crate) const fn rebase(&mut self, clock_then: u32, now: Instant) {
        self.offset = clock_then.wrapping_sub((now.as_nanos() / 1_000_000) as u32);
    }
}
