//! What the relay shows of itself (N7).

use core::time::Duration;

use towpath_base::Instant;

use super::{SideView, SplitRelay, SplitStats};
use crate::relay::{FlowKey, Side};

impl SplitRelay {
    /// Counters.
    pub const fn stats(&self) -> &SplitStats {
        &self.stats
    }

    /// Connections at present.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Connections that are not parked, about.
    pub fn awake(&self) -> usize {
        self.awake.len()
    }

    /// True without connections.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The connections.
    pub fn flows(&self) -> impl Iterator<Item = &FlowKey> {
        self.flows.keys()
    }

    /// One side of a connection.
    pub fn view(&self, key: &FlowKey, side: Side) -> Option<SideView> {
        let flow = self.flows.get(key)?.look()?;
        let end = flow.end(side)?;
        Some(SideView {
            state: end.state(),
            smoothed_rtt: end.smoothed_rtt(),
            min_rtt: end.min_rtt(),
            algorithm: end.config().algorithm,
            mss: end.mss(),
            window: end.controller().window(),
            in_flight: end.in_flight(),
            peer_window: end.peer_window(),
            pace: end.controller().pacing_rate(end.smoothed_rtt()),
            loss_floor_ppm: end.controller().loss_floor_ppm(),
            queued: end.unsent_or_unacknowledged(),
            unread: end.readable_len(),
            stats: *end.stats(),
        })
    }

    /// The path a connection belongs to, who opened it, and how long ago.
    pub fn origin(&self, now: Instant, key: &FlowKey) -> Option<(u64, Side, Duration)> {
        let slot = self.flows.get(key)?;
        let flow = slot.look()?;
        Some((slot.tag, flow.opener, now.saturating_since(flow.opened_at)))
    }

    /// Bytes in the buffers of all connections.
    pub const fn buffered(&self) -> usize {
        self.buffered
    }

    /// Connections not open yet.
    pub fn half_open(&self) -> usize {
        self.backlog.len()
    }
}
