//! TCP in the clear, of terminals whose rules ask for it (T1, T3 without T4).
//!
//! ```text
//!   terminal ── TCP ──► relay ── TCP ──► peer       both as they are on the wire, no SA between
//! ```
//!
//! The classifier diverts it. A pair in the clear is made by the first SYN a rule wants treated, and lives as long as it
//! has connections. It is never that of an SA between the same two: a connection belongs to the path of its SYN, so
//! what comes in the clear cannot touch one that is protected.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use foldhash::quality::RandomState;
use towpath_base::{Instant, SubscriberHandle};
use towpath_tcp::relay::rules::Treatment;
use towpath_tcp::relay::{FlowKey, Side};
use towpath_tcp::segment::Flags;

use super::snooped::Snooped;
use super::{Egress, Fate, Pair, Relay, Room};
use crate::relay::Class;

/// Pairs in the clear; connections of more pass untouched.
const MAX_PAIRS: usize = 65_536;

/// Pairs in the clear by terminal and peer, under a seed of its own: nobody can choose what collides.
#[derive(Debug, Default)]
pub(super) struct Clear {
    pairs: HashMap<(IpAddr, IpAddr), usize, RandomState>,
}

impl Clear {
    /// Pairs with snooped connections; split ones are counted where they are.
    pub(super) fn helped(&self, snooped: &Snooped) -> HashSet<usize> {
        if self.pairs.is_empty() {
            return HashSet::new();
        }
        snooped.pairs().collect()
    }

    pub(super) fn forget(&mut self, local: IpAddr, remote: IpAddr) {
        self.pairs.remove(&(local, remote));
    }
}

impl Relay {
    pub(super) fn is_clear(&self, pair: usize) -> bool {
        self.pairs.get(pair).is_some_and(|pair| pair.clear)
    }

    /// As [`Relay::input`], for a packet in the clear of the terminal of `subscriber`. Between two terminals the one whose SYN
    /// made the pair is the terminal, the other one the network.
    pub(crate) fn input_clear(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        from: Side,
        egress: Option<Egress>,
        packet: &mut [u8],
    ) -> Fate {
        let Some(key) = FlowKey::peek(from, packet) else {
            return Fate::Onward;
        };
        let (local, remote) = (key.terminal.0, key.network.0);
        let other_way = match from {
            Side::Terminal => self.clear.pairs.get(&(remote, local)).copied(),
            Side::Network => None,
        };
        let (from, index) = match other_way.or_else(|| self.clear.pairs.get(&(local, remote)).copied()) {
            Some(index) if other_way.is_some() => (Side::Network, index),
            Some(index) => (from, index),
            None => match self.open_clear(subscriber, from, &key, packet) {
                Some(index) => (from, index),
                None => return Fate::Onward,
            },
        };
        if let (Some(pair), Some(egress)) = (self.pairs.get_mut(index), egress) {
            *pair.egress_mut(from.opposite()) = Some((now, egress));
        }
        let mtu = self.config.terminal_mtu.min(self.config.network_mtu);
        let room = |_| Room {
            terminal: mtu,
            network: mtu,
        };
        self.input(now, index, from, packet, room)
    }

    /// A pair for the connection that begins with the SYN in `packet`, if a rule wants it treated.
    fn open_clear(
        &mut self,
        subscriber: SubscriberHandle,
        from: Side,
        key: &FlowKey,
        packet: &[u8],
    ) -> Option<usize> {
        if !is_opening(packet) || self.clear.pairs.len() >= MAX_PAIRS {
            return None;
        }
        let rules = self.rules.get(&subscriber).unwrap_or(&self.config.rules);
        if rules.decide(key, from, Class::Clear).treatment == Treatment::Pass {
            return None;
        }
        let (local, remote) = (key.terminal.0, key.network.0);
        let index = self.pairs.insert(Pair {
            subscriber,
            local,
            remote,
            carriers: Vec::new(),
            to_terminal: None,
            to_network: None,
            around: [None, None],
            clear: true,
            empty_since: None,
            looked_at: true,
        });
        self.clear.pairs.insert((local, remote), index);
        Some(index)
    }
}

/// Whether a TCP packet is a SYN without ACK, read without checking anything.
fn is_opening(packet: &[u8]) -> bool {
    let header = match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 15) * 4,
        _ => 40,
    };
    let flags = packet.get(header + 13).copied().unwrap_or(0);
    flags & (Flags::SYN.0 | Flags::ACK.0) == Flags::SYN.0
}
