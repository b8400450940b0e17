//! Where terminals are now, and until when.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use towpath_base::selector::Prefix;
use towpath_base::{Instant, SubscriberHandle};
use towpath_fabric::{NodeName, SessionId};

/// One registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Addresses the terminal registered with.
    pub(crate) addresses: Vec<IpAddr>,
    /// End of the registration.
    pub(crate) expires: Instant,
    /// The gateway it came through; unknown for one that outlived the registry's process.
    pub(crate) gateway: Option<NodeName>,
    /// The session it began; unknown likewise.
    pub(crate) session: Option<SessionId>,
}

/// Present registrations. Bounded by the number of subscribers and the addresses of each.
#[derive(Debug, Default)]
pub(crate) struct Locations {
    registered: HashMap<SubscriberHandle, Registered>,
    by_address: HashMap<IpAddr, SubscriberHandle>,
    by_expiry: BTreeSet<(Instant, SubscriberHandle)>,
}

impl Locations {
    /// Puts a registration in place of the subscriber's last one, which is returned.
    pub(crate) fn insert(
        &mut self,
        subscriber: SubscriberHandle,
        registered: Registered,
    ) -> Option<Registered> {
        let old = self.remove(subscriber);
        let owned = registered.addresses.iter().map(|address| (*address, subscriber));
        self.by_address.extend(owned);
        self.by_expiry.insert((registered.expires, subscriber));
        self.registered.insert(subscriber, registered);
        old
    }

    /// Ends a registration.
    pub(crate) fn remove(&mut self, subscriber: SubscriberHandle) -> Option<Registered> {
        let old = self.registered.remove(&subscriber)?;
        for address in &old.addresses {
            if self.by_address.get(address) == Some(&subscriber) {
                self.by_address.remove(address);
            }
        }
        self.by_expiry.remove(&(old.expires, subscriber));
        Some(old)
    }

    /// The subscriber's registration.
    pub(crate) fn get(&self, subscriber: SubscriberHandle) -> Option<&Registered> {
        self.registered.get(&subscriber)
    }

    /// Who may be at `gateway`, with its addresses.
    pub(crate) fn at(&self, gateway: &NodeName) -> Vec<(SubscriberHandle, Vec<IpAddr>)> {
        let there = |registered: &Registered| registered.gateway.as_ref().is_none_or(|at| at == gateway);
        let found = self.registered.iter().filter(|(_, registered)| there(registered));
        found
            .map(|(handle, registered)| (*handle, registered.addresses.clone()))
            .collect()
    }

    /// Everybody who is registered.
    pub(crate) fn subscribers(&self) -> Vec<SubscriberHandle> {
        self.registered.keys().copied().collect()
    }

    /// Who is at `address`.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<SubscriberHandle> {
        self.by_address.get(&address).copied()
    }

    /// Who is inside `prefix`. Walks all addresses: for administration.
    pub(crate) fn inside(&self, prefix: Prefix) -> BTreeSet<SubscriberHandle> {
        self.by_address
            .iter()
            .filter(|(address, _)| prefix.contains(**address))
            .map(|(_, owner)| *owner)
            .collect()
    }

    /// When the next registration ends.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.by_expiry.first().map(|(expires, _)| *expires)
    }

    /// A registration that ended by `now`.
    pub(crate) fn expired(&self, now: Instant) -> Option<SubscriberHandle> {
        self.by_expiry
            .first()
            .filter(|(expires, _)| *expires <= now)
            .map(|(_, subscriber)| *subscriber)
    }

    /// Number of registrations.
    pub(crate) fn len(&self) -> usize {
        self.registered.len()
    }
}
