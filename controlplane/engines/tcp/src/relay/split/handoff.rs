//! The whole state of a connection as bytes, for another relay.

use alloc::vec::Vec;

use towpath_base::Instant;

use super::{Opening, Slot, SplitRelay};
use crate::codec::{Codec, Reader, RestoreError, Writer};
use crate::relay::flow::Flow;
use crate::relay::{FlowKey, Side};

/// First bytes of a snapshot of a flow.
const MAGIC: u32 = 0x464c_4f57;
/// Version written, and the only one read.
const VERSION: u16 = 4;

impl SplitRelay {
    /// The whole state of a connection at `now`, versioned: sequence numbers, windows, options, congestion
    /// and RTT state, buffered bytes, SACK scoreboard.
    pub fn snapshot(&self, now: Instant, key: &FlowKey) -> Option<Vec<u8>> {
        let flow = self.flows.get(key)?.look()?;
        let mut writer = Writer::versioned(now, MAGIC, VERSION);
        now.as_nanos().encode(&mut writer);
        flow.encode(&mut writer);
        Some(writer.bytes)
    }

    /// Takes a connection over from another relay, or from this one before an upgrade. Refuses one that is
    /// there already.
    pub fn restore(&mut self, now: Instant, bytes: &[u8]) -> Result<FlowKey, RestoreError> {
        self.restore_tagged(now, bytes, 0)
    }

    /// As [`SplitRelay::restore`], for a connection of the path `tag`.
    pub fn restore_tagged(&mut self, now: Instant, bytes: &[u8], tag: u64) -> Result<FlowKey, RestoreError> {
        let mut reader = Reader::versioned(bytes, now, MAGIC, VERSION)?;
        let then = Instant::from_nanos(u64::decode(&mut reader)?);
        let mut flow = Flow::decode(&mut reader)?;
        reader.finish()?;
        let key = flow.key;
        let ports_match = Side::BOTH.iter().all(|side| {
            flow.end(*side).is_none_or(|end| {
                end.config().remote_port == key.host(*side).1
                    && end.config().local_port == key.host(side.opposite()).1
            })
        });
        if !ports_match || key.terminal.0.is_ipv4() != key.network.0.is_ipv4() {
            return Err(RestoreError::Invalid("addresses"));
        }
        if self.flows.contains_key(&key) || self.flows.len() >= self.config.max_flows {
            return Err(RestoreError::Invalid("no room for the connection"));
        }
        for side in Side::BOTH {
            if let Some(end) = flow.end_mut(side) {
                end.rebase_clock(then, now);
            }
        }
        let counted = flow.counted;
        self.insert(key, Slot::new(flow, tag, Opening::default()));
        if counted
            && let Some(live) = self.flows.get_mut(&key).and_then(Slot::live)
            && let Some(place) = live.waits.take()
        {
            self.backlog.remove(tag, place);
        }
        self.touch(now, key);
        Ok(key)
    }
}
