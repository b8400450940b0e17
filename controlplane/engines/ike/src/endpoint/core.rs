//! What every IKE SA of an endpoint shares: randomness, cryptography, outgoing queues, SPIs in use.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::{IkeSpi, Spi};

use crate::command::{Command, Transmit};
use crate::config::{Config, IkeSaId};
use crate::sa::IkeSa;
use crate::wire::{Header, Payload, summary};

/// Bytes of our nonces: at least half the key size of any PRF we have (RFC 7296 §2.10).
const NONCE_LEN: usize = 32;

/// What an IKE SA asks of the endpoint that holds it.
pub(crate) enum Effect<P> {
    /// It is established: look for others of the same pair.
    Established,
    /// The peer sent INITIAL_CONTACT.
    InitialContact,
    /// Rekeying made a new IKE SA.
    Spawn(Box<IkeSa<P>>),
    /// Its ends have other addresses than these now.
    Readdressed { local: IpAddr, remote: IpAddr },
    /// It is old enough to be authenticated anew.
    Reauthenticate,
    /// The CHILD SAs move to `heir`.
    Move { heir: IkeSaId, ending: Ending },
}

/// What becomes of an IKE SA whose CHILD SAs moved on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// We delete it.
    Delete,
    /// The peer does.
    AwaitDelete,
    /// It has been deleted.
    End,
}

impl Ending {
    /// How long a rekeyed SA waits for the peer's Delete.
    pub(crate) const DELETE_WITHIN: Duration = Duration::from_secs(30);
}

/// The Length field of the IKE header of the first of several messages.
fn message_len(messages: &[u8]) -> usize {
    let field = messages.get(24..28).and_then(|field| field.try_into().ok());
    field.map_or(usize::MAX, |field| {
        usize::try_from(u32::from_be_bytes(field)).unwrap_or(usize::MAX)
    })
}

pub(crate) struct Core<K: KeyGenerator, R: Rng> {
    pub(crate) config: Config,
    pub(crate) keygen: K,
    pub(crate) rng: R,
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) effects: Vec<Effect<K::Private>>,
    ike_spis: BTreeSet<IkeSpi>,
    esp_spis: BTreeSet<(IpAddr, Spi)>,
}

impl<K: KeyGenerator, R: Rng> Core<K, R> {
    pub(crate) fn new(config: Config, keygen: K, rng: R) -> Self {
        Self {
            config,
            keygen,
            rng,
            transmits: VecDeque::new(),
            commands: VecDeque::new(),
            effects: Vec::new(),
            ike_spis: BTreeSet::new(),
            esp_spis: BTreeSet::new(),
        }
    }

    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill(&mut bytes);
        bytes
    }

    pub(crate) fn nonce(&mut self) -> Vec<u8> {
        let mut nonce = vec![0; NONCE_LEN];
        self.rng.fill(&mut nonce);
        nonce
    }

    /// A fresh SPI for an IKE SA of ours. Small numbers are left to the reserved SPIs of the access side.
    pub(crate) fn new_ike_spi(&mut self) -> IkeSpi {
        loop {
            let spi = IkeSpi(u64::from_be_bytes(self.random()));
            if spi.0 > u64::from(u32::MAX) && self.ike_spis.insert(spi) {
                return spi;
            }
        }
    }

    pub(crate) fn release_ike_spi(&mut self, spi: IkeSpi) {
        self.ike_spis.remove(&spi);
    }

    /// A fresh SPI for packets to `local`.
    pub(crate) fn new_esp_spi(&mut self, local: IpAddr) -> Spi {
        loop {
            let spi = Spi(u32::from_be_bytes(self.random()));
            if spi.0 >= 256 && self.esp_spis.insert((local, spi)) {
                return spi;
            }
        }
    }

    pub(crate) fn release_esp_spi(&mut self, local: IpAddr, spi: Spi) {
        self.esp_spis.remove(&(local, spi));
    }

    #[cfg(test)]
    pub(super) fn esp_spis_in_use(&self) -> usize {
        self.esp_spis.len()
    }

    /// Sends a message, or several back to back (see [`seal`](crate::sa::seal)): each in a datagram of its own.
    pub(crate) fn transmit(&mut self, source: SocketAddr, destination: SocketAddr, mut payload: Vec<u8>) {
        while !payload.is_empty() {
            let len = message_len(&payload).clamp(1, payload.len());
            let rest = payload.split_off(len);
            self.transmits.push_back(Transmit {
                source,
                destination,
                payload,
            });
            payload = rest;
        }
    }

    /// One line of the live view.
    pub(crate) fn log(
        &mut self,
        id: IkeSaId,
        local: IpAddr,
        remote: IpAddr,
        sent: bool,
        header: &Header,
        payloads: &[Payload<'_>],
    ) {
        self.commands.push_back(Command::Exchange {
            ike: id,
            local,
            remote,
            sent,
            line: summary(header, payloads),
        });
    }
}
