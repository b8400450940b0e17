//! Ends that move (RFC 4555): a peer that says where it is now, a terminal that registers with another address, a NAT
//! that forgot its mapping.
//!
//! Outer addresses and ports travel with keys: an IKE SA that moved has its CHILD SAs replaced at once. Until then the
//! old ones go on receiving, whatever address their packets come from.

use std::net::{IpAddr, SocketAddr};

use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::sa::Mode;
use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_ike::IkeSaId;

use crate::Keyserver;
use crate::pairs::{Child, Lane, PairKey};

type Ends = (SocketAddr, SocketAddr);

fn pair_of((local, remote): Ends, lane: Lane) -> PairKey {
    PairKey {
        local: local.ip(),
        remote: remote.ip(),
        lane,
    }
}

impl<K: KeyGenerator, R: Rng + Clone> Keyserver<K, R> {
    /// An IKE SA goes on between other ends.
    pub(crate) fn moved(&mut self, now: Instant, ike: IkeSaId, old: Ends, new: Ends, children: &[Spi]) {
        let lane = self.lane(ike);
        let (from, to) = (pair_of(old, lane), pair_of(new, lane));
        let limit = self.config.pairs_per_subscriber;
        if from != to && !children.is_empty() && !self.pairs.relocate(now, ike, from, to, limit) {
            self.tell(from, "ike_moved", format!("no room for a peer at {}", new.1));
            // It was established a moment ago; if not, it is gone already.
            let _ = self.endpoint.delete_ike(now, ike);
            return;
        }
        let text = if old.0.ip() == new.0.ip() {
            format!("peer is at {} now", new.1)
        } else {
            format!("terminal is at {} now", new.0.ip())
        };
        self.tell(to, "ike_moved", text);
        for spi_in in children {
            // One that is ending needs no new ends.
            let _ = self.endpoint.rekey_child(now, ike, *spi_in);
        }
    }

    /// A terminal is no longer at `left`: its IKE SAs follow it to another address of the same family where they can,
    /// and end where they cannot. It asks anew for those.
    pub(crate) fn terminal_moved(&mut self, now: Instant, subscriber: SubscriberHandle, left: &[IpAddr]) {
        if left.is_empty() {
            return;
        }
        let at = self.sessions.all_addresses(subscriber);
        let pairs = self
            .pairs
            .of(subscriber)
            .filter(|(key, _)| left.contains(&key.local));
        let children: Vec<(IpAddr, Child)> = pairs
            .flat_map(|(key, pair)| pair.children.iter().map(move |child| (key.local, *child)))
            .collect();
        let mut seen: Vec<IkeSaId> = Vec::new();
        for (local, child) in &children {
            if seen.contains(&child.ike) {
                continue;
            }
            seen.push(child.ike);
            let of_ike = || children.iter().filter(|(_, other)| other.ike == child.ike);
            let portable = of_ike().all(|(local, child)| outlives(child, *local));
            let new = at.iter().find(|new| new.is_ipv4() == local.is_ipv4());
            let info = self.endpoint.get(now, child.ike);
            let followed = new.filter(|_| portable).zip(info).is_some_and(|(new, info)| {
                let local = SocketAddr::new(*new, info.local.port());
                self.endpoint
                    .readdress_ike(now, child.ike, local, info.remote)
                    .is_ok()
            });
            if !followed {
                let _ = self.endpoint.delete_ike(now, child.ike);
            }
        }
    }
}

/// Whether the traffic of `child` is the terminal's also when it has left `local`: not where that address is all it
/// stands for.
fn outlives(child: &Child, local: IpAddr) -> bool {
    let beyond = |ts: &towpath_base::selector::TrafficSelector| (ts.first, ts.last) != (local, local);
    child.mode == Mode::Tunnel && child.local_ts.iter().any(beyond)
}
