//! Messages under session keys: each end counts what it sends from 1 and keeps a window over what it receives.

use core::fmt;

use towpath_base::replay::ReplayWindow;
use towpath_base::{DropReason, SubscriberHandle};

use crate::codec::Writer;
use crate::keys::SessionKeys;
use crate::message::{FromTerminal, Header, MessageType, ToTerminal, peek};
use crate::sealed::{Purpose, SealedDatagram, SealingKey, Unsealable};

/// Words of the replay window: 64 messages.
const WINDOW_WORDS: usize = 2;

/// What both ends have in common.
struct End {
    subscriber: SubscriberHandle,
    send: SealingKey,
    receive: SealingKey,
    sent: u64,
    window: ReplayWindow<WINDOW_WORDS>,
}

impl End {
    fn seal(
        &mut self,
        message_type: MessageType,
        write: impl FnOnce(&mut Writer<'_>) -> Option<()>,
    ) -> Result<SealedDatagram, Unsealable> {
        let counter = self.sent.checked_add(1).ok_or(Unsealable)?;
        self.sent = counter;
        self.send.seal(
            &Header {
                message_type,
                subscriber: self.subscriber,
                counter,
            },
            write,
        )
    }

    /// As [`End::seal`], to the front of `out`.
    fn seal_into(
        &mut self,
        message_type: MessageType,
        write: impl FnOnce(&mut Writer<'_>) -> Option<()>,
        out: &mut [u8],
    ) -> Result<usize, Unsealable> {
        let counter = self.sent.checked_add(1).ok_or(Unsealable)?;
        self.sent = counter;
        let header = Header {
            message_type,
            subscriber: self.subscriber,
            counter,
        };
        self.send.seal_into(&header, write, out)
    }

    fn open<R>(
        &mut self,
        datagram: &[u8],
        decode: impl FnOnce(MessageType, &[u8]) -> Option<R>,
    ) -> Result<R, DropReason> {
        let claimed = peek(datagram)?;
        if claimed.subscriber != self.subscriber {
            return Err(DropReason::KeyxUnknownSession);
        }
        self.window
            .check(claimed.counter)
            .map_err(|_| DropReason::KeyxReplayed)?;
        let Self { receive, window, .. } = self;
        receive.open(datagram, |header, body| {
            // Genuine; whether it also decodes is another matter, and it is spent either way.
            window.accept(header.counter).ok()?;
            decode(header.message_type, body)
        })
    }
}

/// The network's end of a session.
pub struct NetworkSession(End);

impl fmt::Debug for NetworkSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkSession({})", self.0.subscriber)
    }
}

impl NetworkSession {
    /// A session nothing was sent or received in yet. Never twice from the same keys: counters would start over.
    pub fn new(subscriber: SubscriberHandle, keys: &SessionKeys) -> Self {
        Self(End {
            subscriber,
            send: SealingKey::new(keys.n2t.expose(), Purpose::SessionN2t),
            receive: SealingKey::new(keys.t2n.expose(), Purpose::SessionT2n),
            sent: 0,
            window: ReplayWindow::new(),
        })
    }

    /// Seals a message for the terminal under a fresh counter.
    ///
    /// # Errors
    /// [`Unsealable`]: see there.
    pub fn seal(&mut self, message: &ToTerminal) -> Result<SealedDatagram, Unsealable> {
        self.0.seal(message.message_type(), |w| message.encode(w))
    }

    /// Opens a message of the terminal.
    ///
    /// # Errors
    /// `Keyx…`: malformed, of another subscriber, replayed, or forged (also: of another session).
    pub fn open(&mut self, datagram: &[u8]) -> Result<FromTerminal, DropReason> {
        self.0.open(datagram, FromTerminal::decode)
    }

    /// True once a message of the terminal was accepted: the terminal has the session.
    pub const fn is_confirmed(&self) -> bool {
        self.0.window.highest() > 0
    }
}

/// The terminal's end of a session.
pub struct TerminalSession(End);

impl fmt::Debug for TerminalSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TerminalSession({})", self.0.subscriber)
    }
}

impl TerminalSession {
    /// A session nothing was sent or received in yet. Never twice from the same keys: counters would start over.
    pub fn new(subscriber: SubscriberHandle, keys: &SessionKeys) -> Self {
        Self(End {
            subscriber,
            send: SealingKey::new(keys.t2n.expose(), Purpose::SessionT2n),
            receive: SealingKey::new(keys.n2t.expose(), Purpose::SessionN2t),
            sent: 0,
            window: ReplayWindow::new(),
        })
    }

    /// Seals a message for the network under a fresh counter.
    ///
    /// # Errors
    /// [`Unsealable`]: see there.
    pub fn seal(&mut self, message: &FromTerminal) -> Result<SealedDatagram, Unsealable> {
        self.0.seal(message.message_type(), |w| message.encode(w))
    }

    /// As [`TerminalSession::seal`], to the front of `out`; returns the length.
    ///
    /// # Errors
    /// [`Unsealable`]: see there; also if `out` is too short.
    pub fn seal_into(&mut self, message: &FromTerminal, out: &mut [u8]) -> Result<usize, Unsealable> {
        self.0
            .seal_into(message.message_type(), |w| message.encode(w), out)
    }

    /// Opens a message of the network.
    ///
    /// # Errors
    /// As [`NetworkSession::open`].
    pub fn open(&mut self, datagram: &[u8]) -> Result<ToTerminal, DropReason> {
        self.0.open(datagram, ToTerminal::decode)
    }

    /// Counter of the last message sent, 0 before the first.
    pub const fn last_sent(&self) -> u64 {
        self.0.sent
    }
}
