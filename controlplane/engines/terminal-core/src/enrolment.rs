//! Registration at the network: attempts with back-off, the session they lead to, the counter that must never
//! be used twice in the terminal's life.

use core::time::Duration;

use towpath_base::crypto::Rng;
use towpath_base::key::SecretKey;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_keyx::message::{FromTerminal, Header, ToTerminal};
use towpath_keyx::registration::{self, Addresses, Attempt, Terms};
use towpath_keyx::transfer::Receiver;
use towpath_keyx::{RegistrationKeys, SealedDatagram, SessionKeys, TerminalSession};

use crate::config::Timing;

/// Counters reserved with each write to stable storage.
const BATCH: u64 = 64;
/// Transfers remembered against duplicates.
const TRANSFERS: usize = 16;
/// The unauthenticated hint to register again is followed at most this often.
const HINT_INTERVAL: Duration = Duration::from_secs(5);
/// Messages sent before that a hint may answer.
const HINT_WINDOW: u64 = 64;

/// A session with what was received in it.
pub(crate) struct Link {
    session: TerminalSession,
    pub(crate) transfers: Receiver<TRANSFERS>,
}

/// Which session a message came in: identifiers of transfers mean something only there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Current,
    Previous,
}

/// The registry granted a registration.
pub(crate) struct Granted {
    pub(crate) keys: SessionKeys,
    pub(crate) terms: Terms,
    /// The network's epoch is not what it was: it lost its state.
    pub(crate) network_restarted: bool,
}

pub(crate) struct Enrolment {
    subscriber: SubscriberHandle,
    ksub: SecretKey<32>,
    addresses: Addresses,
    next_counter: u64,
    persisted: u64,
    asked: u64,
    attempt: Option<Attempt>,
    /// The next transmission begins a new attempt.
    begin: bool,
    sent: u32,
    due: Option<Instant>,
    current: Option<Link>,
    previous: Option<Link>,
    expires: Option<Instant>,
    keepalive: Duration,
    hello_at: Option<Instant>,
    /// When something authentic last came from the network or through it, and when something was last said to it.
    heard: Instant,
    said: Instant,
    epoch: Option<u64>,
    followed_hint: Option<Instant>,
}

impl Enrolment {
    /// `counter`: the last value persisted, 0 if none.
    pub(crate) fn new(
        subscriber: SubscriberHandle,
        ksub: SecretKey<32>,
        addresses: Addresses,
        counter: u64,
    ) -> Self {
        Self {
            subscriber,
            ksub,
            addresses,
            next_counter: counter.saturating_add(1),
            persisted: counter,
            asked: counter,
            attempt: None,
            begin: true,
            sent: 0,
            due: Some(Instant::ZERO),
            current: None,
            previous: None,
            expires: None,
            keepalive: Duration::ZERO,
            hello_at: None,
            heard: Instant::ZERO,
            said: Instant::ZERO,
            epoch: None,
            followed_hint: None,
        }
    }

    // -- the persisted counter --------------------------------------------------------------------------

    /// A mark to be persisted now, if any.
    pub(crate) fn poll_persist(&mut self) -> Option<u64> {
        if self.asked != self.persisted || self.next_counter.saturating_add(BATCH / 2) <= self.persisted {
            return None;
        }
        self.asked = self.next_counter.max(self.persisted).saturating_add(BATCH);
        Some(self.asked)
    }

    pub(crate) fn handle_persisted(&mut self, mark: u64) {
        if mark == self.asked {
            self.persisted = mark;
        }
    }

    fn take_counter(&mut self) -> Option<u64> {
        let counter = self.next_counter;
        (counter <= self.persisted).then(|| {
            self.next_counter += 1;
            counter
        })
    }

    // -- registration -----------------------------------------------------------------------------------

    pub(crate) const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Other addresses: a new registration is due at once.
    pub(crate) fn set_addresses(&mut self, now: Instant, addresses: Addresses) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.begin = true;
            self.due = Some(now);
        }
    }

    pub(crate) const fn is_registered(&self) -> bool {
        self.current.is_some()
    }

    /// The registration to send now, if any, and how many went before it.
    pub(crate) fn poll_register(
        &mut self,
        now: Instant,
        timing: &Timing,
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<(SealedDatagram, u32)> {
        if self.due.is_none_or(|due| due > now) || self.addresses.is_empty() {
            return None;
        }
        let counter = self.take_counter()?;
        if self.begin || self.attempt.is_none() {
            let mut nonce = [0; 32];
            rng.fill(&mut nonce);
            self.attempt = Some(Attempt::new(nonce));
            (self.begin, self.sent) = (false, 0);
        }
        let wait = timing
            .register_first
            .saturating_mul(1 << self.sent.min(16))
            .min(timing.register_longest);
        self.due = Some(now + jitter(wait, rng));
        let before = self.sent;
        self.sent = self.sent.saturating_add(1);
        let keys = RegistrationKeys::derive(&self.ksub, self.subscriber);
        let sealed = self
            .attempt
            .as_mut()?
            .register(&keys, counter, &self.addresses)
            .ok()?;
        Some((sealed, before))
    }

    /// The terminal leaves; `None` if no counter is free.
    pub(crate) fn deregister(&mut self, rng: &mut (impl Rng + ?Sized)) -> Option<SealedDatagram> {
        let counter = self.take_counter()?;
        let mut nonce = [0; 32];
        rng.fill(&mut nonce);
        let keys = RegistrationKeys::derive(&self.ksub, self.subscriber);
        let sealed = registration::deregister(&keys, counter, &nonce, &self.addresses).ok()?;
        (self.current, self.previous, self.due, self.expires, self.hello_at) = (None, None, None, None, None);
        Some(sealed)
    }

    pub(crate) fn handle_ack(&mut self, now: Instant, datagram: &[u8]) -> Result<Granted, DropReason> {
        let attempt = self.attempt.as_mut().ok_or(DropReason::KeyxReplayed)?;
        let keys = RegistrationKeys::derive(&self.ksub, self.subscriber);
        let registration::Granted { keys, terms } = attempt.acknowledged(&self.ksub, &keys, datagram)?;
        let mut transfers = self
            .current
            .as_ref()
            .map_or_else(Receiver::new, |link| link.transfers.clone());
        transfers.new_session();
        self.previous = self.current.take();
        self.current = Some(Link {
            session: TerminalSession::new(self.subscriber, &keys),
            transfers,
        });
        let lifetime = Duration::from_secs(terms.lifetime_seconds.max(10).into());
        (self.begin, self.due, self.expires) = (true, Some(now + lifetime / 2), Some(now + lifetime));
        self.keepalive = Duration::from_secs(terms.keepalive_seconds.into());
        // At once: the session becomes the active one at the network with its first message.
        self.hello_at = Some(now);
        let network_restarted = self.epoch.is_some_and(|epoch| epoch != terms.epoch);
        self.epoch = Some(terms.epoch);
        self.heard = now;
        Ok(Granted {
            keys,
            terms,
            network_restarted,
        })
    }

    /// The network says it knows no session. Nothing vouches for that, so it must name a message sent lately,
    /// and is followed once in a while; the present session stays until the network grants another.
    pub(crate) fn handle_hint(&mut self, now: Instant, header: &Header) -> Result<(), DropReason> {
        let last = self.current.as_ref().map_or(0, |link| link.session.last_sent());
        let recent = header.counter <= last && header.counter.saturating_add(HINT_WINDOW) > last;
        if !recent || header.counter == 0 {
            return Err(DropReason::KeyxReplayed);
        }
        if self.followed_hint.is_some_and(|at| now < at + HINT_INTERVAL) {
            return Err(DropReason::KeyxRateLimited);
        }
        self.followed_hint = Some(now);
        (self.begin, self.due) = (true, Some(now));
        Ok(())
    }

    // -- session ----------------------------------------------------------------------------------------

    /// Opens a message under the current session, or the one before it.
    pub(crate) fn open(&mut self, datagram: &[u8]) -> Result<(Which, ToTerminal), DropReason> {
        let current = self.current.as_mut().ok_or(DropReason::KeyxUnknownSession)?;
        let refused = match current.session.open(datagram) {
            Ok(message) => return Ok((Which::Current, message)),
            Err(refused) => refused,
        };
        match self.previous.as_mut().map(|link| link.session.open(datagram)) {
            Some(Ok(message)) => Ok((Which::Previous, message)),
            Some(Err(DropReason::KeyxReplayed)) => Err(DropReason::KeyxReplayed),
            Some(Err(_)) | None => Err(refused),
        }
    }

    pub(crate) const fn link(&mut self, which: Which) -> Option<&mut Link> {
        match which {
            Which::Current => self.current.as_mut(),
            Which::Previous => self.previous.as_mut(),
        }
    }

    /// Seals `message` to the front of `out`; returns the length.
    pub(crate) fn seal(
        &mut self,
        now: Instant,
        which: Which,
        message: &FromTerminal,
        out: &mut [u8],
    ) -> Option<usize> {
        let len = self.link(which)?.session.seal_into(message, out).ok();
        if which == Which::Current {
            self.said = now;
            self.hello_at = (!self.keepalive.is_zero()).then(|| now + self.keepalive);
        }
        len
    }

    /// Something authentic came from the network or through it.
    pub(crate) const fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A protected packet was sent. If nothing has come back for `silence`, a sign of life is due: should the
    /// network have lost the session, it says so, and the SAs that lead nowhere are given up.
    pub(crate) fn sent(&mut self, now: Instant, silence: Duration) {
        if self.current.is_some() && now >= self.heard + silence && now >= self.said + silence {
            self.hello_at = Some(now);
        }
    }

    /// The sign of life to send now, if one is due.
    pub(crate) fn poll_hello(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if self.hello_at.is_none_or(|at| at > now) {
            return None;
        }
        self.hello_at = None;
        self.seal(now, Which::Current, &FromTerminal::Hello, out)
    }

    /// True once when the registration has ended.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        if self.expires.is_none_or(|at| at > now) {
            return false;
        }
        (self.current, self.previous, self.expires, self.hello_at) = (None, None, None, None);
        true
    }

    // -- deadlines --------------------------------------------------------------------------------------

    /// When a registration is due; `None` also while none may be sent.
    pub(crate) fn register_due(&self) -> Option<Instant> {
        self.due
            .filter(|_| self.next_counter <= self.persisted && !self.addresses.is_empty())
    }

    pub(crate) const fn expires(&self) -> Option<Instant> {
        self.expires
    }

    pub(crate) const fn hello_due(&self) -> Option<Instant> {
        self.hello_at
    }
}

/// `wait`, give or take an eighth: terminals of one cell do not all come back at once.
fn jitter(wait: Duration, rng: &mut (impl Rng + ?Sized)) -> Duration {
    let mut random = [0; 1];
    rng.fill(&mut random);
    let [random] = random;
    wait * 7 / 8 + wait * u32::from(random) / 1024
}
