//! Many IKE SAs behind one face.

use core::fmt;
use core::marker::PhantomData;
use core::net::SocketAddr;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::Spi;
use towpath_common::DropReason;

use crate::command::{Command, IkeSaInfo, Transmit};
use crate::config::{Config, IkeSaId, Initiate, Policy, Timer};

/// Why a wish was not even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitiateError {
    /// [`Config::ike_sas_total`] reached.
    Limit,
    /// The policy has no proposal, no ESP suite, or the addresses are of two families.
    InvalidPolicy,
    /// The key generator lacks the first proposal's group.
    Unsupported,
}

impl fmt::Display for InitiateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "limit on IKE SAs reached",
            Self::InvalidPolicy => "policy without proposal or suite, or addresses of two families",
            Self::Unsupported => "Diffie-Hellman group not available",
        })
    }
}

impl core::error::Error for InitiateError {}

/// No SA has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownSa;

impl fmt::Display for UnknownSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such SA")
    }
}

impl core::error::Error for UnknownSa {}

/// IKEv2 in many terminals' names. See the [crate documentation](crate).
#[derive(Debug)]
pub struct Endpoint<K: KeyGenerator, R: Rng> {
    inner: PhantomData<(K, R)>,
}

impl<K: KeyGenerator, R: Rng> Endpoint<K, R> {
    /// An endpoint without SAs.
    pub fn new(_config: Config, _keygen: K, _rng: R) -> Self {
        Self { inner: PhantomData }
    }

    /// Takes a datagram for a terminal: `destination` is the terminal's address, `payload` the IKE message
    /// without non-ESP marker (which a destination port of [`Config::nat_port`] implies).
    ///
    /// # Errors
    /// Why the message was dropped; the reason is to be counted.
    pub fn handle_datagram(
        &mut self,
        _now: Instant,
        _source: SocketAddr,
        _destination: SocketAddr,
        _payload: &[u8],
    ) -> Result<(), DropReason> {
        Err(DropReason::IkeUnexpected)
    }

    /// Starts an IKE SA with one CHILD SA.
    pub fn initiate(&mut self, _now: Instant, _wish: Initiate) -> Result<IkeSaId, InitiateError> {
        Err(InitiateError::Unsupported)
    }

    /// Answers [`Command::NeedPolicy`]. `None` refuses the peer. Unknown or outdated requests are ignored.
    pub fn provide_policy(&mut self, _now: Instant, _request: IkeSaId, _policy: Option<Policy>) {}

    /// Deletes a CHILD SA, named by the SPI of packets the terminal receives. The last one takes its IKE SA along.
    pub fn delete_child(&mut self, _now: Instant, _ike: IkeSaId, _spi_in: Spi) -> Result<(), UnknownSa> {
        Err(UnknownSa)
    }

    /// Deletes an IKE SA and its CHILD SAs.
    pub fn delete_ike(&mut self, _now: Instant, _ike: IkeSaId) -> Result<(), UnknownSa> {
        Err(UnknownSa)
    }

    /// Replaces a CHILD SA by a new one (CREATE_CHILD_SA with REKEY_SA).
    pub fn rekey_child(&mut self, _now: Instant, _ike: IkeSaId, _spi_in: Spi) -> Result<(), UnknownSa> {
        Err(UnknownSa)
    }

    /// Lets every due timer act.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// The next deadline and what it is for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        None
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }

    /// The next thing to do or to know.
    pub fn poll_command(&mut self) -> Option<Command> {
        None
    }

    /// The IKE SAs, in order of their names.
    pub fn list(&self, _now: Instant) -> impl Iterator<Item = IkeSaInfo> + '_ {
        core::iter::empty()
    }
}
