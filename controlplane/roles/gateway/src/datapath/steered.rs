//! Policies that name SAs (T6): what is opened here leaves by the first of them that can carry it.
//!
//! ```text
//!   SA 1 ──► open ──► policy: "SAs 3, 2" ──► seal under SA 3, or 2 if 3 is not there or does not admit it
//! ```
//!
//! An SA can carry a packet if it is of class `full` under segment keys, its selectors admit the packet, and it
//! lies between the same two addresses as the one the packet came by: routing has been asked about those.

use std::collections::HashMap;

use towpath_base::crypto::{EspTransform, IcvTransform, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::policy::IpsecProtocol;
use towpath_base::{DropReason, Instant};
use towpath_ipsec::locate::Flow;
use towpath_tcp::relay::Side;

use super::outside::{self, Cut};
use super::relayed::Place;
use super::watch::{Watch, Whose};
use super::{Datapath, Entry, Passage, Suites, tell_limit};
use crate::relay::Egress;

/// The slot of the first SA a policy names for the packet that is `usable`; `None` if no policy names any.
///
/// # Errors
/// None of those it names is.
pub(super) fn chosen<T: EspTransform, I: IcvTransform, D>(
    watch: &mut Watch,
    by_number: &HashMap<u64, usize>,
    came_by: &Entry<T, I, D>,
    flow: &Flow,
    packet: &[u8],
    usable: impl Fn(&usize) -> bool,
) -> Result<Option<usize>, DropReason> {
    let protocol = came_by
        .bridge
        .as_ref()
        .map_or(IpsecProtocol::Esp, |bridge| bridge.protocol());
    let whose = Whose::of(came_by.subscriber, came_by.level);
    let named = watch.named(whose, protocol, flow, packet)?;
    if named.is_empty() {
        return Ok(None);
    }
    let mut slots = named
        .iter()
        .filter_map(|number| by_number.get(number))
        .filter(|slot| usable(slot));
    slots.next().map(|slot| Some(*slot)).ok_or(DropReason::PolicyNoSa)
}

impl<P: Suites> Datapath<P> {
    /// Seals the plain packet in `packet`, which came by the SA in `slot` from side `from`, under the SA a policy
    /// names for it.
    pub(super) fn steer(
        &mut self,
        slot: usize,
        from: Side,
        now: Instant,
        egress: Option<Egress>,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Result<Passage, DropReason> {
        let to_peer = from == Side::Terminal;
        let flow = Flow::of(packet.bytes())?;
        let Self { entries, watch, .. } = self;
        let came_by = entries.get(slot).ok_or(DropReason::PolicyNoSa)?;
        let ends = (came_by.key.local, came_by.key.remote);
        let usable = |slot: &usize| {
            entries.get(*slot).is_some_and(|entry| {
                let bridge = entry.bridge.as_ref();
                (entry.key.local, entry.key.remote) == ends
                    && bridge.is_some_and(|bridge| bridge.admits(to_peer, &flow))
            })
        };
        let named = chosen(watch, &self.by_number, came_by, &flow, packet.bytes(), usable)?;
        let leaves_by = named.unwrap_or(slot);
        let entry = entries.get_mut(leaves_by).ok_or(DropReason::PolicyNoSa)?;
        let bridge = entry.bridge.as_mut().ok_or(DropReason::PolicyNoSa)?;
        let place = Place {
            slot: leaves_by,
            key: entry.key,
            whose: Whose::of(entry.subscriber, entry.level),
            from,
            egress,
        };
        let mut cut = Cut {
            extra: &mut self.extra,
            id: &mut self.fragment_id,
        };
        let passage = match bridge.seal(to_peer, now, packet, rng) {
            Ok(_) if leaves_by == slot => Passage::Onward,
            Ok(_) => Passage::Steered,
            Err(DropReason::TooBig) => outside::too_big(&mut cut, bridge, place, now, packet, rng)?,
            Err(reason) => return Err(reason),
        };
        if leaves_by == slot {
            return Ok(passage);
        }
        // What the SA it came by is told at the end of its turn.
        let event = bridge.take_event();
        if let Some(quiet) = entry.quiet.as_mut().filter(|_| to_peer) {
            quiet.since = now;
        }
        tell_limit(&mut self.notices, entry.subscriber, entry.key.spi_in, event);
        entry.keep(leaves_by, &mut self.notices, &mut self.touched);
        if passage == Passage::Steered {
            watch.sealed(&entry.key, from, false, packet.bytes());
        }
        Ok(passage)
    }
}
