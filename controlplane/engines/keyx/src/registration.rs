//! The exchange that makes a session: terminal → registry → terminal, one datagram each.
//!
//! Both are sealed under keys that live as long as the subscriber key, so the counter rule is strict: a
//! terminal never uses a counter twice in its life (it persists a high-water mark *before* use and jumps ahead
//! after a restart), and a registry accepts only counters above the last one it stored *before* answering.

use core::net::IpAddr;

use towpath_base::key::SecretKey;
use towpath_base::{DropReason, SubscriberHandle};

use crate::codec::{Reader, Writer};
use crate::keys::{NONCE_LEN, RegistrationKeys, SessionKeys};
use crate::message::{Header, MessageType, peek};
use crate::sealed::{SealedDatagram, Unsealable};

/// Most addresses a terminal registers with.
pub const MAX_ADDRESSES: usize = 4;

/// Addresses of a terminal, at most [`MAX_ADDRESSES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Addresses {
    items: [Option<IpAddr>; MAX_ADDRESSES],
}

impl Addresses {
    /// The first [`MAX_ADDRESSES`] of `addresses`.
    pub fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut items = [None; MAX_ADDRESSES];
        items
            .iter_mut()
            .zip(addresses)
            .for_each(|(slot, address)| *slot = Some(address));
        Self { items }
    }

    /// The addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.items.iter().copied().flatten()
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.items.contains(&Some(address))
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

/// What the registry grants with a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Seconds until the registration ends unless renewed.
    pub lifetime_seconds: u32,
    /// Seconds between signs of life of an otherwise silent terminal; 0 for none.
    pub keepalive_seconds: u32,
    /// Changes when the network lost its state.
    pub epoch: u64,
}

// -- terminal -------------------------------------------------------------------------------------------

/// A registration under way at the terminal: one nonce, any number of transmissions, each with its own counter.
#[derive(Debug)]
pub struct Attempt {
    nonce_t: SecretKey<NONCE_LEN>,
    first_counter: Option<u64>,
    last_counter: u64,
}

/// A registration that the registry answered.
#[derive(Debug)]
pub struct Granted {
    /// Keys of the session.
    pub keys: SessionKeys,
    /// What was granted.
    pub terms: Terms,
}

impl Attempt {
    /// `nonce_t`: fresh randomness.
    pub const fn new(nonce_t: [u8; NONCE_LEN]) -> Self {
        Self {
            nonce_t: SecretKey::new(nonce_t),
            first_counter: None,
            last_counter: 0,
        }
    }

    /// One transmission. `counter` has never been used under `keys`, and is above all that were.
    ///
    /// # Errors
    /// [`Unsealable`]: see there.
    pub fn register(
        &mut self,
        keys: &RegistrationKeys,
        counter: u64,
        addresses: &Addresses,
    ) -> Result<SealedDatagram, Unsealable> {
        self.first_counter.get_or_insert(counter);
        self.last_counter = counter;
        seal_register(
            keys,
            MessageType::Register,
            counter,
            self.nonce_t.expose(),
            addresses,
        )
    }

    /// The registry's answer to any transmission of this attempt. Answers to later transmissions count more:
    /// after one is accepted, earlier ones are refused.
    ///
    /// # Errors
    /// [`DropReason::KeyxReplayed`] for an answer to something else, [`DropReason::KeyxForged`],
    /// [`DropReason::KeyxMalformed`].
    pub fn acknowledged(
        &mut self,
        ksub: &SecretKey<32>,
        keys: &RegistrationKeys,
        datagram: &[u8],
    ) -> Result<Granted, DropReason> {
        let claimed = peek(datagram)?;
        let awaited = self
            .first_counter
            .is_some_and(|first| (first..=self.last_counter).contains(&claimed.counter));
        if claimed.subscriber != keys.subscriber || claimed.message_type != MessageType::RegisterAck {
            return Err(DropReason::KeyxMalformed);
        }
        if !awaited {
            return Err(DropReason::KeyxReplayed);
        }
        let (nonce_n, nonce_t, terms) = keys.n2t.open(datagram, |_, body| decode_ack(body))?;
        if SecretKey::new(nonce_t) != self.nonce_t {
            return Err(DropReason::KeyxReplayed);
        }
        self.first_counter = claimed.counter.checked_add(1);
        let keys = SessionKeys::derive(ksub, keys.subscriber, self.nonce_t.expose(), &nonce_n);
        Ok(Granted { keys, terms })
    }
}

/// The terminal leaves. `counter` and `nonce_t` as for a registration.
///
/// # Errors
/// [`Unsealable`]: see there.
pub fn deregister(
    keys: &RegistrationKeys,
    counter: u64,
    nonce_t: &[u8; NONCE_LEN],
    addresses: &Addresses,
) -> Result<SealedDatagram, Unsealable> {
    seal_register(keys, MessageType::Deregister, counter, nonce_t, addresses)
}

fn seal_register(
    keys: &RegistrationKeys,
    message_type: MessageType,
    counter: u64,
    nonce_t: &[u8; NONCE_LEN],
    addresses: &Addresses,
) -> Result<SealedDatagram, Unsealable> {
    let header = Header {
        message_type,
        subscriber: keys.subscriber,
        counter,
    };
    keys.t2n.seal(&header, |w| {
        w.bytes(nonce_t)?;
        w.u8(addresses.iter().count() as u8)?;
        addresses.iter().try_for_each(|address| w.address(address))
    })
}

// -- registry -------------------------------------------------------------------------------------------

/// A registration (or its end) that is authentic. Whether it is fresh is for [`Registration::check_counter`].
#[derive(Debug)]
pub struct Registration {
    /// Whose.
    pub subscriber: SubscriberHandle,
    /// Its counter.
    pub counter: u64,
    /// True for a [`MessageType::Deregister`].
    pub leaving: bool,
    /// Where the terminal is; `source` of [`open_registration`] is among them.
    pub addresses: Addresses,
    nonce_t: SecretKey<NONCE_LEN>,
}

/// What the registry makes of a registration it accepts.
#[derive(Debug)]
pub struct Answer {
    /// For the terminal.
    pub datagram: SealedDatagram,
    /// For the keyserver: keys of the session, active when the terminal first uses them.
    pub keys: SessionKeys,
}

/// Opens a registration that came from `source`. `ksub` is the key of the subscriber whom [`peek`] names.
///
/// # Errors
/// [`DropReason::KeyxMalformed`], [`DropReason::KeyxForged`], [`DropReason::KeyxWrongAddress`] if `source` is not
/// among the addresses inside.
pub fn open_registration(
    ksub: &SecretKey<32>,
    source: IpAddr,
    datagram: &[u8],
) -> Result<Registration, DropReason> {
    let malformed = DropReason::KeyxMalformed;
    let claimed = peek(datagram)?;
    if !matches!(
        claimed.message_type,
        MessageType::Register | MessageType::Deregister
    ) {
        return Err(malformed);
    }
    let keys = RegistrationKeys::derive(ksub, claimed.subscriber);
    let (nonce_t, addresses) = keys.t2n.open(datagram, |_, body| decode_register(body))?;
    if !addresses.contains(source) {
        return Err(DropReason::KeyxWrongAddress);
    }
    Ok(Registration {
        subscriber: claimed.subscriber,
        counter: claimed.counter,
        leaving: claimed.message_type == MessageType::Deregister,
        addresses,
        nonce_t: SecretKey::new(nonce_t),
    })
}

impl Registration {
    /// Whether the registration is newer than the last one accepted (`last`, 0 if none). The registry stores
    /// [`Registration::counter`] as the new last one before it answers.
    ///
    /// # Errors
    /// [`DropReason::KeyxReplayed`].
    pub const fn check_counter(&self, last: u64) -> Result<(), DropReason> {
        if self.counter > last {
            Ok(())
        } else {
            Err(DropReason::KeyxReplayed)
        }
    }

    /// The answer, once per registration: it is sealed under the registration's counter. `nonce_n`: fresh randomness.
    ///
    /// # Errors
    /// [`Unsealable`]: see there.
    pub fn answer(
        &self,
        ksub: &SecretKey<32>,
        nonce_n: &[u8; NONCE_LEN],
        terms: &Terms,
    ) -> Result<Answer, Unsealable> {
        let keys = RegistrationKeys::derive(ksub, self.subscriber);
        let header = Header {
            message_type: MessageType::RegisterAck,
            subscriber: self.subscriber,
            counter: self.counter,
        };
        let datagram = keys
            .n2t
            .seal(&header, |w| encode_ack(w, nonce_n, self.nonce_t.expose(), terms))?;
        let keys = SessionKeys::derive(ksub, self.subscriber, self.nonce_t.expose(), nonce_n);
        Ok(Answer { datagram, keys })
    }
}

// -- bodies ---------------------------------------------------------------------------------------------

fn decode_register(body: &[u8]) -> Option<([u8; NONCE_LEN], Addresses)> {
    let mut r = Reader::new(body);
    let nonce_t = r.array()?;
    let count = usize::from(r.u8()?);
    if count > MAX_ADDRESSES {
        return None;
    }
    let mut addresses = Addresses::default();
    for slot in addresses.items.iter_mut().take(count) {
        *slot = Some(r.address()?);
    }
    r.end()?;
    Some((nonce_t, addresses))
}

fn encode_ack(
    w: &mut Writer<'_>,
    nonce_n: &[u8; NONCE_LEN],
    nonce_t: &[u8; NONCE_LEN],
    terms: &Terms,
) -> Option<()> {
    w.bytes(nonce_n)?;
    w.bytes(nonce_t)?;
    w.u32(terms.lifetime_seconds)?;
    w.u32(terms.keepalive_seconds)?;
    w.u64(terms.epoch)
}

fn decode_ack(body: &[u8]) -> Option<([u8; NONCE_LEN], [u8; NONCE_LEN], Terms)> {
    let mut r = Reader::new(body);
    let (nonce_n, nonce_t) = (r.array()?, r.array()?);
    let terms = Terms {
        lifetime_seconds: r.u32()?,
        keepalive_seconds: r.u32()?,
        epoch: r.u64()?,
    };
    r.end()?;
    Some((nonce_n, nonce_t, terms))
}
