//! The relay as people see it.

use std::net::IpAddr;
use std::time::Duration;

use towpath_base::{Instant, SubscriberHandle};
use towpath_tcp::relay::snoop::{SnoopStats, SnoopView};
use towpath_tcp::relay::split::{SideView, SplitStats};
use towpath_tcp::relay::{FlowKey, Side};

use super::Relay;

/// One connection, for people to look at.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowView {
    /// Addresses and ports.
    pub key: FlowKey,
    /// Whose.
    pub subscriber: SubscriberHandle,
    /// Outer address of the peer: its own, or its security gateway's.
    pub peer: IpAddr,
    /// Who opened it, and how long ago; not known of snooped connections.
    pub opener: Option<Side>,
    /// Since when.
    pub age: Duration,
    /// Bytes of memory it takes, buffers not counted.
    pub memory: usize,
    /// Towards the terminal; absent while that side does not exist yet.
    pub terminal: Option<SideView>,
    /// Towards the network.
    pub network: Option<SideView>,
    /// What Snoop knows; absent for split connections.
    pub snoop: Option<SnoopView>,
}

/// Numbers of the relay as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayTotals {
    /// Connections at present.
    pub flows: usize,
    /// Of these, not open yet.
    pub half_open: usize,
    /// Bytes in all buffers.
    pub buffered: usize,
    /// What happened so far.
    pub split: SplitStats,
    /// Snooped connections at present.
    pub snooped: usize,
    /// Bytes in their caches.
    pub cached: usize,
    /// What happened to them so far.
    pub snoop: SnoopStats,
    /// Connections of a former relay that were reset.
    pub orphans: u64,
}

impl Relay {
    /// At most `limit` connections.
    pub(crate) fn flows(&self, now: Instant, limit: usize) -> Vec<FlowView> {
        let view = |key: &FlowKey| {
            let (tag, opener, age) = self.split.origin(now, key)?;
            let pair = self.pairs.get(usize::try_from(tag).ok()?)?;
            Some(FlowView {
                key: *key,
                subscriber: pair.subscriber,
                peer: pair.remote,
                opener: Some(opener),
                age,
                memory: self.split.memory(key).unwrap_or(0),
                terminal: self.split.view(key, Side::Terminal),
                network: self.split.view(key, Side::Network),
                snoop: None,
            })
        };
        let snooped = self.snooped.views().filter_map(|(key, pair, snoop)| {
            let pair = self.pairs.get(pair)?;
            Some(FlowView {
                key: *key,
                subscriber: pair.subscriber,
                peer: pair.remote,
                opener: None,
                age: Duration::ZERO,
                memory: snoop.cached,
                terminal: None,
                network: None,
                snoop: Some(snoop),
            })
        });
        let split = self.split.flows().take(limit).filter_map(view);
        split.chain(snooped).take(limit).collect()
    }

    pub(crate) fn totals(&self) -> RelayTotals {
        RelayTotals {
            flows: self.split.len(),
            half_open: self.split.half_open(),
            buffered: self.split.buffered(),
            split: *self.split.stats(),
            snooped: self.snooped.sizes().0,
            cached: self.snooped.sizes().1,
            snoop: self.snooped.stats(),
            orphans: self.orphans.resets(),
        }
    }
}
