//! What connections leave behind of the paths they took, for those that come after them.

use core::net::IpAddr;

use super::SplitRelay;
use crate::config::PathMemory;
use crate::relay::flow::Flow;
use crate::relay::{FlowKey, Side};

/// Terminals whose path is remembered.
const MAX_PATHS: usize = 4096;

impl SplitRelay {
    /// Tells what was learnt elsewhere of the path to `host`; connections opened from now on begin with it.
    pub fn know_path(&mut self, host: IpAddr, memory: PathMemory) {
        self.remember([Some((host, memory)), None]);
    }

    /// What is known of the path to `host`.
    pub fn path(&self, host: IpAddr) -> Option<PathMemory> {
        self.paths.get(&host).copied()
    }

    /// Keeps what a connection learnt of a radio for the next one to the same host. A short connection sees
    /// less than the path gives, so a remembered rate fades rather than falls; a host that is reached over
    /// another path, by its round trip, begins anew.
    pub(super) fn remember(&mut self, learnt: [Learnt; 2]) {
        for (host, learnt) in learnt.into_iter().flatten() {
            let bandwidth = match self.paths.get(&host) {
                Some(old) if is_same_path(old, &learnt) => learnt.bandwidth.max(old.bandwidth / 8 * 7),
                _ => learnt.bandwidth,
            };
            if self.paths.len() >= MAX_PATHS && !self.paths.contains_key(&host) {
                self.paths.pop_first();
            }
            self.paths.insert(host, PathMemory { bandwidth, ..learnt });
        }
    }
}

/// A host, and what a connection learnt of the path to it.
pub(super) type Learnt = Option<(IpAddr, PathMemory)>;

/// Round trips of the same path differ by less than half.
fn is_same_path(one: &PathMemory, other: &PathMemory) -> bool {
    one.min_rtt < other.min_rtt.saturating_mul(2) && other.min_rtt < one.min_rtt.saturating_mul(2)
}

pub(super) fn learnt_of(key: &FlowKey, flow: &Flow) -> [Learnt; 2] {
    Side::BOTH.map(|side| Some((key.host(side).0, flow.end(side)?.controller().path_memory()?)))
}
