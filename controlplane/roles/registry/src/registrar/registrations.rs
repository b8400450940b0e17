//! Registrations: checked, stored, answered, ended.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_base::crypto::Rng;
use towpath_base::profile::{Attachment, Subscriber, SubscriberSecrets};
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_fabric::{Datagram, FromRegistry, NodeName, SessionGrant, SessionId};
use towpath_keyx::message::peek;
use towpath_keyx::registration::{Registration, Terms, open_registration};
use towpath_store::{Accept, Location};

use crate::locations::Registered;

use super::{Destination, Registry, Whom, failed, internal};

impl<R: Rng> Registry<R> {
    /// Everything that can be refused is, before the counter is stored; after that the answer follows.
    pub(super) fn register(
        &mut self,
        now: Instant,
        gateway: &NodeName,
        keyserver: Option<NodeName>,
        datagram: &Datagram,
    ) -> Result<(), DropReason> {
        let handle = peek(&datagram.payload)?.subscriber;
        if self.held.iter().any(|held| held.subscriber.handle == handle) {
            // A counter that waits to be stored is one that was used.
            self.store_held();
        }
        let (subscriber, secrets) = self.known(handle)?;
        let source = datagram.source.ip();
        let registration = open_registration(&secrets.ksub, source, &datagram.payload)?;
        let addresses: Vec<IpAddr> = registration.addresses.iter().collect();
        if !addresses.iter().all(|address| subscriber.may_use(*address)) {
            return Err(DropReason::KeyxWrongAddress);
        }
        let last = self.store.last_counter(handle).map_err(internal)?;
        registration.check_counter(last)?;
        if !self.limiter.allow(now, handle) {
            return Err(DropReason::KeyxRateLimited);
        }
        if registration.leaving {
            return self.leave(&registration);
        }
        if self.held.iter().any(|held| held.place.meets(&addresses)) {
            self.store_held();
        }
        if addresses.iter().any(|address| self.taken(handle, *address)) {
            return Err(DropReason::KeyxWrongAddress);
        }
        let place = Place {
            gateway: gateway.clone(),
            keyserver,
            source: datagram.source,
            addresses,
        };
        self.held.push(Held {
            at: now,
            subscriber,
            secrets,
            registration,
            place,
        });
        if self.held.len() >= self.config.registrations_per_flush {
            self.store_held();
        }
        Ok(())
    }

    /// Stores what is held, by one flush, and answers.
    pub(super) fn store_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        let lifetime = u64::from(self.config.lifetime_seconds);
        let (origin, unix) = self.origin;
        let stored: Vec<Accept> = held
            .iter()
            .map(|held| {
                let unix_now = unix.saturating_add(held.at.saturating_since(origin).as_secs());
                Accept {
                    handle: held.subscriber.handle,
                    counter: held.registration.counter,
                    location: Location {
                        addresses: held.place.addresses.clone(),
                        expires_unix: unix_now.saturating_add(lifetime),
                    },
                }
            })
            .collect();
        let outcome = self.store.accept_registrations(&stored).map_err(internal);
        for (index, held) in held.into_iter().enumerate() {
            let gateway = held.place.gateway.clone();
            let outcome = match &outcome {
                Ok(fresh) if fresh.get(index) == Some(&true) => self.answer(held),
                Ok(_) => Err(DropReason::KeyxReplayed),
                Err(reason) => Err(*reason),
            };
            if let Err(reason) = outcome {
                self.refuse(&gateway, reason);
            }
        }
    }

    pub(super) fn known(
        &self,
        handle: SubscriberHandle,
    ) -> Result<(Subscriber, SubscriberSecrets), DropReason> {
        let subscriber = self.store.get(handle).map_err(internal)?;
        let subscriber = subscriber.ok_or(DropReason::KeyxUnknownSubscriber)?;
        let secrets = self.store.secrets(handle).map_err(internal)?;
        let secrets = secrets.ok_or(DropReason::KeyxUnknownSubscriber)?;
        Ok((subscriber, secrets))
    }

    /// Whether somebody else is at `address`: an authentic subscriber must not take another's place.
    pub(super) fn taken(&self, handle: SubscriberHandle, address: IpAddr) -> bool {
        let registered = self.locations.owner(address);
        let fixed = self.store.fixed_owner(address).unwrap_or_else(|error| {
            failed(&error);
            None
        });
        registered.into_iter().chain(fixed).any(|owner| owner != handle)
    }

    /// The terminal says goodbye. The counter counts as for a registration, or a replay could end a later one.
    pub(super) fn leave(&mut self, registration: &Registration) -> Result<(), DropReason> {
        let handle = registration.subscriber;
        let gone = Location {
            addresses: Vec::new(),
            expires_unix: 0,
        };
        let fresh = self
            .store
            .accept_registration(handle, registration.counter, &gone)
            .map_err(internal)?;
        if !fresh {
            return Err(DropReason::KeyxReplayed);
        }
        self.end(handle, "left");
        Ok(())
    }

    /// A registration that is stored: everybody concerned learns of it.
    pub(super) fn answer(&mut self, held: Held) -> Result<(), DropReason> {
        let Held {
            at: now,
            subscriber,
            secrets,
            registration,
            place,
        } = held;
        let Place {
            gateway,
            keyserver,
            source,
            addresses,
        } = place;
        let handle = subscriber.handle;
        let lifetime = u64::from(self.config.lifetime_seconds);
        let mut nonce = [0; 32];
        self.rng.fill(&mut nonce);
        let terms = Terms {
            lifetime_seconds: self.config.lifetime_seconds,
            keepalive_seconds: self.config.keepalive_seconds,
            epoch: self.epoch,
        };
        let answer = registration
            .answer(&secrets.ksub, &nonce, &terms)
            .map_err(|_| DropReason::KeyxMalformed)?;
        let session = self.next_session();
        let registered = Registered {
            addresses: addresses.clone(),
            expires: now + Duration::from_secs(lifetime),
            gateway: Some(gateway.clone()),
            session: Some(session),
        };
        let old = self.locations.insert(handle, registered);
        let grant = SessionGrant {
            subscriber: handle,
            name: subscriber.name.clone(),
            operator: subscriber.operator.clone(),
            gateway: gateway.clone(),
            session,
            t2n: answer.keys.t2n.clone(),
            n2t: answer.keys.n2t.clone(),
            addresses: addresses.clone(),
            lifetime_seconds: self.config.lifetime_seconds,
        };
        // The keyserver knows the session before the terminal does.
        if let Some(keyserver) = keyserver {
            let to = Destination::Keyserver(Whom::One(keyserver));
            self.send(to, FromRegistry::Session(grant));
        }
        let here = Whom::One(gateway.clone());
        let moved = old.as_ref().is_none_or(|old| old.addresses != addresses);
        let other_gateway = old.is_some_and(|old| old.gateway.as_ref() != Some(&gateway));
        let name = subscriber.name.clone();
        if subscriber.attachment == Attachment::Registered {
            if other_gateway {
                let others = Destination::Gateway(Whom::Except(gateway.clone()));
                self.send(others, FromRegistry::Withdraw { subscriber: handle });
            }
            if moved || other_gateway {
                self.grant(here.clone(), subscriber, addresses);
            }
        }
        let sealed = answer.datagram.as_bytes().to_vec();
        let answer = FromRegistry::Answer {
            terminal: source,
            sealed,
        };
        self.send(Destination::Gateway(here.clone()), answer);
        let kind = if moved { "registered" } else { "renewed" };
        self.event(here, &name, Some(source.ip()), kind, format!("for {lifetime} s"));
        Ok(())
    }

    /// Unique over restarts, for the epoch is.
    pub(super) fn next_session(&mut self) -> SessionId {
        self.sessions = self.sessions.wrapping_add(1);
        SessionId(self.epoch << 32 | u64::from(self.sessions))
    }

    /// The registration of `handle` is over, for a reason that people read.
    pub(super) fn end(&mut self, handle: SubscriberHandle, why: &str) {
        let Some(gone) = self.locations.remove(handle) else {
            return;
        };
        if let Err(error) = self.store.forget_location(handle) {
            // It would be granted again after a restart, until it expires.
            failed(&error);
        }
        self.send(
            Destination::Keyserver(Whom::All),
            FromRegistry::SessionEnded { subscriber: handle },
        );
        let subscriber = self.subscriber(handle);
        let fixed = subscriber
            .as_ref()
            .is_some_and(|subscriber| subscriber.attachment == Attachment::Fixed);
        let there = Whom::at(gone.gateway.as_ref());
        if !fixed {
            self.send(
                Destination::Gateway(there.clone()),
                FromRegistry::Withdraw { subscriber: handle },
            );
        }
        let name = subscriber.map_or_else(|| handle.to_string(), |subscriber| subscriber.name);
        self.event(
            there,
            &name,
            gone.addresses.first().copied(),
            "unregistered",
            why.into(),
        );
    }
}

/// A registration that was found good and waits to be stored.
pub(super) struct Held {
    pub(super) at: Instant,
    subscriber: Subscriber,
    secrets: SubscriberSecrets,
    registration: Registration,
    place: Place,
}

/// Where a registration came from, and who is to serve it.
pub(super) struct Place {
    gateway: NodeName,
    keyserver: Option<NodeName>,
    source: SocketAddr,
    addresses: Vec<IpAddr>,
}

impl Place {
    fn meets(&self, addresses: &[IpAddr]) -> bool {
        self.addresses.iter().any(|address| addresses.contains(address))
    }
}
