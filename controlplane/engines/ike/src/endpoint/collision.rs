//! Two IKE SAs between the same two addresses end as one (spec row K13).
//!
//! **Before AUTH.** Our IKE_SA_INIT is on its way and the peer's arrives. Both sides can compare the two
//! initiators' nonces: the **greater nonce wins**. With the greater one we drop the peer's request (it is repeated,
//! and by then we are established); with the lower one we answer it, and hold our own IKE_AUTH back for
//! [`Config::hold`](crate::Config::hold). Two endpoints of this kind therefore make one SA. Holding instead of
//! giving up means that forged requests cost one pause, not the exchange. Once our IKE_AUTH is sent, the peer's
//! request is dropped.
//!
//! **After AUTH.** Established by the peer's exchange, an own attempt without IKE_AUTH is forgotten and its wish
//! counts as fulfilled. If two SAs are established all the same (a stock peer does not yield), the redundant one
//! is deleted after [`Config::redundant_after`](crate::Config::redundant_after): within
//! [`Config::simultaneous_within`](crate::Config::simultaneous_within) of each other the one with the lower
//! initiator's nonce, which both sides compute alike; otherwise the older one, because a peer that starts anew
//! may have lost it.
//!
//! All of this is about one purpose. What [`Endpoint::initiate_beside`] started in another lane is wanted beside the rest; the
//! other side tells it by its selectors, which name other protocols or ports.

use alloc::vec::Vec;
use core::net::IpAddr;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::selector::TrafficSelector;
use towpath_common::DropReason;

use super::Endpoint;
use crate::command::{Command, FailReason, Role};
use crate::config::IkeSaId;
use crate::sa::{IkeSa, State};

/// Protocols and ports of the newest CHILD SA, either side.
fn traffic<P>(sa: &IkeSa<P>) -> Option<(Vec<Ports>, Vec<Ports>)> {
    let child = sa.children.iter().rev().find(|child| !child.deleting)?;
    let of = |side: &[TrafficSelector]| {
        side.iter()
            .map(|ts| (ts.protocol, ts.first_port, ts.last_port))
            .collect()
    };
    Some((of(&child.local_ts), of(&child.remote_ts)))
}

type Ports = (u8, u16, u16);

/// Whether one of the two is enough.
fn same_purpose<P>(new: &IkeSa<P>, other: &IkeSa<P>) -> bool {
    // An attempt has no selectors yet.
    let alike = traffic(new)
        .zip(traffic(other))
        .is_none_or(|(new, other)| new == other);
    new.lane == other.lane && alike
}

impl<K: KeyGenerator, R: Rng> Endpoint<K, R> {
    /// Names of the SAs between two addresses, in order.
    pub(super) fn pair(&self, local: IpAddr, remote: IpAddr) -> Vec<IkeSaId> {
        self.pairs.get(&(local, remote)).cloned().unwrap_or_default()
    }

    /// Decides between our attempt and the peer's, whose nonce is `ni`. `Err` drops the peer's.
    pub(super) fn yield_or_win(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: IpAddr,
        ni: &[u8],
    ) -> Result<(), DropReason> {
        let hold = self.core.config.hold;
        for id in self.pair(local, remote) {
            let Some(sa) = self
                .sas
                .get_mut(&id)
                .filter(|sa| sa.role == Role::Initiator && sa.lane == 0)
            else {
                continue;
            };
            match sa.state {
                State::InitSent if sa.ni.as_slice() > ni => return Err(DropReason::IkeUnexpected),
                // Once only: a stream of forged requests must not hold it for ever.
                State::InitSent if !sa.held => {
                    sa.held = true;
                    sa.hold_until = Some(now + hold);
                }
                State::AuthSent => return Err(DropReason::IkeUnexpected),
                _ => continue,
            }
            self.reschedule(id);
        }
        Ok(())
    }

    /// `id` was just established.
    pub(super) fn settle(&mut self, now: Instant, id: IkeSaId) {
        let Some(new) = self.sas.get(&id) else { return };
        let (local, remote) = (new.local.ip(), new.remote.ip());
        for other in self.pair(local, remote) {
            if other != id {
                self.settle_two(now, id, other);
            }
        }
    }

    fn settle_two(&mut self, now: Instant, id: IkeSaId, other_id: IkeSaId) {
        let (Some(new), Some(other)) = (self.sas.get(&id), self.sas.get(&other_id)) else {
            return;
        };
        if new.children.is_empty() || !same_purpose(new, other) {
            return;
        }
        match other.state {
            State::InitSent => {
                self.fulfil(id, other_id);
                return;
            }
            State::Established => {}
            _ => return,
        }
        let age = other.established_at.map(|at| now.saturating_since(at));
        let simultaneous = age.is_some_and(|age| age <= self.core.config.simultaneous_within);
        let succeeds = new.succeeds.is_some_and(|(old, _)| old == other_id);
        let loser = if simultaneous && !succeeds && new.ni < other.ni {
            id
        } else {
            other_id
        };
        let wait = self.core.config.redundant_after;
        let at = now + wait.max(self.core.config.ready_within);
        if let Some(sa) = self.sas.get_mut(&loser) {
            sa.redundant_at.get_or_insert(at);
        }
        self.reschedule(loser);
    }

    /// The peer's exchange made what `attempt` was to make.
    fn fulfil(&mut self, by: IkeSaId, attempt: IkeSaId) {
        let tag = self.sas.get_mut(&attempt).and_then(|sa| sa.tag.take());
        // The announcement is still in the queue: it was put there by the message being handled.
        let announced = self
            .core
            .commands
            .iter_mut()
            .rev()
            .find_map(|command| match command {
                Command::ChildEstablished { ike, tag, .. } if *ike == by => Some(tag),
                _ => None,
            });
        if let (Some(slot @ None), Some(tag)) = (announced, tag) {
            *slot = Some(tag);
        }
        self.remove(attempt);
    }

    /// The peer of `id` said that this is its only IKE SA with us.
    pub(super) fn initial_contact(&mut self, now: Instant, id: IkeSaId) {
        let Some(new) = self.sas.get(&id) else { return };
        let (local, remote) = (new.local.ip(), new.remote.ip());
        let within = self.core.config.simultaneous_within;
        for other in self.pair(local, remote) {
            let Some(sa) = self.sas.get_mut(&other).filter(|sa| sa.id != id) else {
                continue;
            };
            // A peer whose notice crossed our own exchange does know that SA: `settle` decides.
            let old = sa
                .established_at
                .is_some_and(|at| now.saturating_since(at) > within);
            if old && sa.state == State::Established {
                sa.end(&mut self.core, now, FailReason::InitialContact);
                self.reschedule(other);
            }
        }
    }
}
