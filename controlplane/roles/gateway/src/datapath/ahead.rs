//! Looking ahead: which SAs the next packets need, said before they are needed.
//!
//! With many SAs the one a packet needs is in no cache: some 1,700 bytes of keys, window and counters, on pages the
//! processor has forgotten. A batch is looked through first, then each packet's SA is asked for while the ones before it
//! are worked on:
//!
//! ```text
//!   batch      p0 p1 p2 p3 p4 p5 …      find all
//!   announce   s0 s1 s2 s3 s4 s5 …      where they are: several page walks at a time
//!   expect                 s4 s5 …      what they are, while p0, p1, … are opened and sealed
//! ```

use foldhash::quality::RandomState;
use towpath_base::crypto::EspTransform;
use towpath_ipsec::locate;
use towpath_ipsec::slots::Slots;

use super::{Datapath, Suites};

/// A table under a seed of its own: neither peers nor terminals can choose what collides.
pub(super) type Table<K> = Slots<K, RandomState>;

/// The SA a packet will probably need first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    slot: usize,
    to_peer: bool,
}

impl<P: Suites> Datapath<P> {
    /// The SA the ESP packet at the start of `packet` will probably need, `None` if there is none.
    #[inline]
    pub fn find(&self, from_access: bool, packet: &[u8]) -> Option<Expected> {
        let at = locate::esp(packet).ok()?;
        let to_peer = from_access
            .then(|| self.to_peer.guess(&(at.source, at.destination, at.spi)))
            .flatten();
        match to_peer {
            Some(slot) => Some(Expected { slot, to_peer: true }),
            None => {
                let slot = self.to_terminal.guess(&(at.destination, at.spi))?;
                Some(Expected { slot, to_peer: false })
            }
        }
    }

    /// Tells the processor that this SA is needed for one of the packets to come. Say it of a batch, one after the
    /// other; changes nothing but time.
    #[inline]
    pub fn announce(&self, expected: Expected) {
        let Expected { slot, to_peer } = expected;
        let Some(entry) = self.entries.get(slot) else {
            return;
        };
        if let Some(key) = self.to_peer.key(slot).filter(|_| to_peer) {
            P::Transform::prefetch(key);
        }
        if let Some(key) = self.to_terminal.key(slot) {
            P::Transform::prefetch(key);
        }
        P::Transform::prefetch(&entry.key);
        if let Some(bridge) = &entry.bridge {
            bridge.announce(to_peer);
        }
    }

    /// Tells the processor that this SA is needed soon: half of it now, half while the packet at hand is between opening
    /// and sealing. Changes nothing but time.
    #[inline]
    pub fn expect(&mut self, expected: Expected) {
        let Some(entry) = self.entries.get(expected.slot) else {
            return;
        };
        let later = entry
            .bridge
            .as_ref()
            .and_then(|bridge| bridge.expect(expected.to_peer));
        P::Transform::prefetch(&entry.key);
        P::Transform::prefetch(&entry.counters);
        // What was not asked for meanwhile, as no packet passed, is asked for now.
        let before = std::mem::replace(&mut self.later, later);
        before.into_iter().for_each(P::Transform::fetch);
    }
}
