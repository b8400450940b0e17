//! What the keyserver knows of each pair (terminal, peer): an exchange in progress, the SAs it ended in.

use std::collections::HashMap;
use std::net::IpAddr;

use towpath_base::sa::{ChildSa, Class, EspSuite, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_ike::IkeSaId;
use towpath_keyx::message::ProxyRequest;

/// A terminal's address and a peer's, and which of their SAs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PairKey {
    /// The terminal's address.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// The one for everything, or that of a connection.
    pub lane: Lane,
}

impl PairKey {
    /// Everything between the two.
    pub fn new(local: IpAddr, remote: IpAddr) -> Self {
        Self {
            local,
            remote,
            lane: Lane::default(),
        }
    }

    fn same_ends(&self, other: &Self) -> bool {
        (self.local, self.remote) == (other.local, other.remote)
    }
}

/// What an SA between two addresses is for: at level 0 everything, at another level one connection (T21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Lane {
    /// Sensitivity level.
    pub level: u8,
    /// Protocol of the connection; 0 at level 0.
    pub protocol: u8,
    /// The terminal's port, 0 where the protocol has none.
    pub terminal_port: u16,
    /// The peer's port.
    pub peer_port: u16,
}

impl Lane {
    /// What a terminal asks for.
    pub fn of(request: &ProxyRequest) -> Self {
        match request.level {
            0 => Self::default(),
            level => Self {
                level,
                protocol: request.protocol,
                terminal_port: request.terminal_port,
                peer_port: request.peer_port,
            },
        }
    }

    /// As the IKE engine calls it.
    pub(crate) fn number(self) -> u64 {
        let [high, low] = self.terminal_port.to_be_bytes();
        let [first, last] = self.peer_port.to_be_bytes();
        u64::from_be_bytes([0, 0, self.level, self.protocol, high, low, first, last])
    }

    /// Whether it is one connection's.
    pub(crate) const fn is_connection(self) -> bool {
        self.level != 0
    }

    /// What of `side`, the terminal's or the peer's traffic, is the connection's.
    pub(crate) fn narrow(self, side: &TrafficSelector, port: u16) -> Option<TrafficSelector> {
        let (first_port, last_port) = if has_ports(self.protocol) {
            (port, port)
        } else {
            (0, u16::MAX)
        };
        side.intersect(&TrafficSelector {
            protocol: self.protocol,
            first_port,
            last_port,
            ..*side
        })
    }
}

/// TCP, UDP, SCTP, UDP-Lite.
const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132 | 136)
}

/// One CHILD SA pair that was handed out. No keys: those are with the gateway and the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// IKE SA it belongs to.
    pub ike: IkeSaId,
    /// Its ends when it was handed out: gateway and terminal know it by these, also after a move.
    pub ends: (IpAddr, IpAddr),
    /// SPI of packets the terminal receives.
    pub spi_in: Spi,
    /// SPI of packets the terminal sends.
    pub spi_out: Spi,
    /// Algorithms.
    pub suite: EspSuite,
    /// Transport or tunnel.
    pub mode: Mode,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// UDP encapsulation.
    pub udp_encap: bool,
    /// Terminal's side of the traffic.
    pub local_ts: Selectors,
    /// Peer's side of the traffic.
    pub remote_ts: Selectors,
    /// What the gateway may do.
    pub class: Class,
    /// When it came up.
    pub established: Instant,
    /// The terminal acknowledged the key transfer: it has the keys, and nobody else will be sent them again.
    pub acknowledged: bool,
}

impl Child {
    /// What is kept of `sa` once its keys are handed out.
    pub fn of(now: Instant, ike: IkeSaId, class: Class, sa: &ChildSa) -> Self {
        Self {
            ike,
            ends: (sa.local, sa.remote),
            spi_in: sa.spi_in,
            spi_out: sa.spi_out,
            suite: sa.suite,
            mode: sa.mode,
            esn: sa.esn,
            udp_encap: sa.encap.is_some(),
            local_ts: sa.local_ts,
            remote_ts: sa.remote_ts,
            class,
            established: now,
            acknowledged: false,
        }
    }
}

/// How far the present exchange is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The registry was asked for policy and credential.
    Credential,
    /// The engine is negotiating.
    Negotiating,
}

/// One pair.
#[derive(Debug)]
pub struct Pair {
    /// Whose terminal it is.
    pub subscriber: SubscriberHandle,
    /// The exchange in progress, if any.
    pub progress: Option<Progress>,
    /// The terminal's latest request, so that a refusal can name it.
    pub request_id: Option<u32>,
    /// Live CHILD SAs, the newest last. More than one only while rekeying or after simultaneous starts.
    pub children: Vec<Child>,
    /// After a failure: no new attempt before this time.
    pub not_before: Instant,
    /// Failures in a row.
    pub failures: u32,
}

impl Pair {
    /// True while nothing holds it.
    fn idle(&self, now: Instant) -> bool {
        self.progress.is_none() && self.children.is_empty() && self.not_before <= now
    }
}

/// Every pair, bounded per subscriber.
#[derive(Debug, Default)]
pub struct Pairs {
    pairs: HashMap<PairKey, Pair>,
    per_subscriber: HashMap<SubscriberHandle, usize>,
}

impl Pairs {
    /// The pair, if known.
    pub fn get_mut(&mut self, key: PairKey) -> Option<&mut Pair> {
        self.pairs.get_mut(&key)
    }

    /// The pair, made if there is room for one more of this subscriber: `limit` pairs each.
    pub fn entry(&mut self, key: PairKey, subscriber: SubscriberHandle, limit: usize) -> Option<&mut Pair> {
        if self
            .pairs
            .get(&key)
            .is_some_and(|pair| pair.subscriber != subscriber)
        {
            return None;
        }
        if !self.pairs.contains_key(&key) {
            let count = self.per_subscriber.entry(subscriber).or_default();
            if *count >= limit {
                return None;
            }
            *count += 1;
        }
        Some(self.pairs.entry(key).or_insert_with(|| Pair {
            subscriber,
            progress: None,
            request_id: None,
            children: Vec::new(),
            not_before: Instant::ZERO,
            failures: 0,
        }))
    }

    /// Forgets the pair if nothing holds it.
    pub fn release(&mut self, now: Instant, key: PairKey) {
        if self.pairs.get(&key).is_some_and(|pair| pair.idle(now)) {
            self.forget(key);
        }
    }

    /// Forgets every pair that nothing holds.
    pub fn release_idle(&mut self, now: Instant) {
        let idle: Vec<PairKey> = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.idle(now))
            .map(|(key, _)| *key)
            .collect();
        for key in idle {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: PairKey) {
        let Some(pair) = self.pairs.remove(&key) else {
            return;
        };
        if let Some(count) = self.per_subscriber.get_mut(&pair.subscriber) {
            *count -= 1;
            if *count == 0 {
                self.per_subscriber.remove(&pair.subscriber);
            }
        }
    }

    /// The CHILD SAs of `old` belong to `new` from now on.
    pub fn rename_ike(&mut self, old: IkeSaId, new: IkeSaId) {
        for child in self.pairs.values_mut().flat_map(|pair| &mut pair.children) {
            if child.ike == old {
                child.ike = new;
            }
        }
    }

    /// The pair of these ends, whatever its lane, that has the CHILD SA `spi_in`.
    pub fn key_of(&self, ends: PairKey, spi_in: Spi) -> Option<PairKey> {
        let has = |pair: &Pair| pair.children.iter().any(|child| child.spi_in == spi_in);
        if self.pairs.get(&ends).is_some_and(has) {
            return Some(ends);
        }
        let mut others = self.pairs.iter().filter(|(key, _)| key.same_ends(&ends));
        others.find(|(_, pair)| has(pair)).map(|(key, _)| *key)
    }

    /// The CHILD SA that was handed out between `ends`, wherever its IKE SA has moved since.
    pub fn child_mut(&mut self, ends: PairKey, spi_in: Spi) -> Option<&mut Child> {
        let handed_out = |child: &Child| child.ends == (ends.local, ends.remote) && child.spi_in == spi_in;
        let at = |pairs: &Self, key: &PairKey| {
            let pair = pairs.pairs.get(key);
            pair.is_some_and(|pair| pair.children.iter().any(handed_out))
        };
        let key = if at(self, &ends) {
            ends
        } else {
            *self.pairs.keys().find(|key| at(self, key))?
        };
        let children = &mut self.pairs.get_mut(&key)?.children;
        children.iter_mut().find(|child| handed_out(child))
    }

    /// The CHILD SAs of `ike` go on between `to` instead of `from`. False if there is no room there.
    pub fn relocate(&mut self, now: Instant, ike: IkeSaId, from: PairKey, to: PairKey, limit: usize) -> bool {
        let Some(pair) = self.pairs.get_mut(&from) else {
            return false;
        };
        let subscriber = pair.subscriber;
        let (moving, stay) = pair.children.drain(..).partition(|child| child.ike == ike);
        let moving: Vec<Child> = moving;
        pair.children = stay;
        // A pair that only this SA kept makes room for where it goes.
        self.release(now, from);
        if let Some(pair) = self.entry(to, subscriber, limit) {
            pair.children.extend(moving);
            return true;
        }
        if let Some(pair) = self.entry(from, subscriber, usize::MAX) {
            pair.children.extend(moving);
        }
        false
    }

    /// Every pair of one subscriber.
    pub fn of(&self, subscriber: SubscriberHandle) -> impl Iterator<Item = (PairKey, &Pair)> {
        self.pairs
            .iter()
            .filter(move |(_, pair)| pair.subscriber == subscriber)
            .map(|(key, pair)| (*key, pair))
    }

    /// Every pair.
    pub fn iter(&self) -> impl Iterator<Item = (&PairKey, &Pair)> {
        self.pairs.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: u8) -> PairKey {
        PairKey::new(IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 1, last]))
    }

    #[test]
    fn a_subscriber_fills_its_own_share_and_not_another_ones() {
        let (a, b) = (SubscriberHandle(1), SubscriberHandle(2));
        let mut pairs = Pairs::default();
        let made = (0..10)
            .filter(|last| pairs.entry(key(*last), a, 4).is_some())
            .count();
        assert_eq!(made, 4);
        assert!(pairs.entry(key(200), b, 4).is_some());
        // Known pairs stay reachable at the limit, foreign ones do not.
        assert!(pairs.entry(key(0), a, 4).is_some());
        assert!(pairs.entry(key(0), b, 4).is_none());
        pairs.release(Instant::ZERO, key(0));
        assert!(pairs.entry(key(9), a, 4).is_some());
    }

    #[test]
    fn an_sa_that_moves_is_found_under_the_ends_it_was_handed_out_with() {
        let (owner, ike) = (SubscriberHandle(1), IkeSaId(towpath_base::IkeSpi(7)));
        let mut pairs = Pairs::default();
        let child = Child {
            ike,
            ends: (key(1).local, key(1).remote),
            spi_in: Spi(300),
            spi_out: Spi(301),
            suite: EspSuite::Aes256Gcm16,
            mode: Mode::Tunnel,
            esn: false,
            udp_encap: false,
            local_ts: Selectors::EMPTY,
            remote_ts: Selectors::EMPTY,
            class: Class::Full,
            established: Instant::ZERO,
            acknowledged: false,
        };
        for last in [1, 2] {
            pairs.entry(key(last), owner, 2).unwrap();
        }
        pairs.get_mut(key(1)).unwrap().children.push(child);
        pairs.get_mut(key(2)).unwrap().not_before = Instant::from_secs(5);
        // The pair it leaves makes the room it needs.
        assert!(pairs.relocate(Instant::ZERO, ike, key(1), key(3), 2));
        assert!(pairs.get_mut(key(1)).is_none());
        assert_eq!(
            pairs.child_mut(key(1), Spi(300)).map(|child| child.ike),
            Some(ike)
        );
        assert!(pairs.child_mut(key(3), Spi(300)).is_none());
        // Where another subscriber talks to the same peer nothing moves, and nothing is lost.
        pairs.entry(key(4), SubscriberHandle(2), 2).unwrap();
        assert!(!pairs.relocate(Instant::ZERO, ike, key(3), key(4), 2));
        assert_eq!(pairs.get_mut(key(3)).unwrap().children.len(), 1);
    }

    #[test]
    fn a_pair_that_failed_is_kept_until_it_may_try_again() {
        let mut pairs = Pairs::default();
        pairs.entry(key(1), SubscriberHandle(1), 4).unwrap().not_before = Instant::from_secs(5);
        pairs.release_idle(Instant::from_secs(4));
        assert_eq!(pairs.iter().count(), 1);
        pairs.release_idle(Instant::from_secs(5));
        assert_eq!(pairs.iter().count(), 0);
    }
}
