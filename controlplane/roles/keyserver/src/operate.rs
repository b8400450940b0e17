//! What an operator asks for: start, replace and end IKE SAs by hand, and look into them.

use std::net::IpAddr;

use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_ike::{IkeSaId, IkeSaKeys, UnknownSa};

use crate::pairs::{PairKey, Progress};
use crate::{Keyserver, Waiting};

/// Why an exchange was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// No terminal is registered at this address.
    NotHere,
    /// One is under way with this peer.
    InProgress,
    /// There is an SA with this peer.
    Established,
    /// The subscriber has as many peers as it may have.
    Limit,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotHere => "no terminal is registered at this address",
            Self::InProgress => "an exchange with this peer is under way",
            Self::Established => "there is an SA with this peer already",
            Self::Limit => "the subscriber has SAs with as many peers as it may have",
        })
    }
}

impl std::error::Error for StartError {}

impl<K: KeyGenerator, R: Rng + Clone> Keyserver<K, R> {
    /// Addresses the subscriber of this name is registered with.
    pub fn addresses_of(&self, subscriber: &str) -> Vec<IpAddr> {
        self.sessions.addresses_of(subscriber)
    }

    /// Starts an exchange as the terminal's own request would.
    ///
    /// # Errors
    /// Why not. How a started one ends is told by events.
    pub fn ike_initiate(&mut self, now: Instant, local: IpAddr, remote: IpAddr) -> Result<(), StartError> {
        let subscriber: SubscriberHandle = self.owner_of(local).ok_or(StartError::NotHere)?;
        let key = PairKey::new(local, remote);
        let limit = self.config.pairs_per_subscriber;
        let pair = self
            .pairs
            .entry(key, subscriber, limit)
            .ok_or(StartError::Limit)?;
        if pair.progress.is_some() {
            return Err(StartError::InProgress);
        }
        if !pair.children.is_empty() {
            return Err(StartError::Established);
        }
        pair.progress = Some(Progress::Credential);
        self.event(
            Some(key),
            subscriber,
            "operator_request",
            "start an exchange".into(),
        );
        self.ask_credential(now, subscriber, key, Waiting::Initiate(key));
        self.settle(now);
        Ok(())
    }

    /// Replaces an IKE SA, or the CHILD SA of it whose packets the terminal receives under `child`.
    ///
    /// # Errors
    /// [`UnknownSa`]: not there, or not established.
    pub fn ike_rekey(&mut self, now: Instant, ike: IkeSaId, child: Option<Spi>) -> Result<(), UnknownSa> {
        let done = match child {
            Some(spi_in) => self.endpoint.rekey_child(now, ike, spi_in),
            None => self.endpoint.rekey_ike(now, ike),
        };
        self.settle(now);
        done
    }

    /// Has an IKE SA succeeded by a new one, both sides proving anew who they are.
    ///
    /// # Errors
    /// [`UnknownSa`]: not there, or not established.
    pub fn ike_reauthenticate(&mut self, now: Instant, ike: IkeSaId) -> Result<(), UnknownSa> {
        let done = self.endpoint.reauthenticate(now, ike);
        self.settle(now);
        done
    }

    /// Ends an IKE SA, or the CHILD SA of it whose packets the terminal receives under `child`.
    ///
    /// # Errors
    /// [`UnknownSa`]: not there.
    pub fn ike_terminate(&mut self, now: Instant, ike: IkeSaId, child: Option<Spi>) -> Result<(), UnknownSa> {
        let done = match child {
            Some(spi_in) => self.endpoint.delete_child(now, ike, spi_in),
            None => self.endpoint.delete_ike(now, ike),
        };
        self.settle(now);
        done
    }

    /// Keys of an IKE SA, where the engine's configuration permits it.
    pub fn danger_ike_keys(&self, ike: IkeSaId) -> Option<IkeSaKeys> {
        self.endpoint.danger_keys(ike)
    }
}
