//! What the core asks of its surroundings, and what it tells them.

use core::net::IpAddr;

use towpath_base::sa::{Class, EspSuite, Mode};
use towpath_keyx::message::{RefuseReason, SaName};

/// From [`crate::Core::poll_command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Store this registration counter where it survives power loss, then call [`crate::Core::persisted`] with
    /// it. Until then no registration is sent. After a restart it is [`crate::Config::counter`].
    Persist(u64),
    /// For people. May be ignored; the oldest are lost when nobody takes them.
    Tell(Event),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The network knows the terminal.
    Registered {
        /// For how many seconds.
        lifetime_seconds: u32,
    },
    /// No answer for so long that the registration ended.
    RegistrationExpired,
    /// The network lost its state: every SA was given up.
    NetworkRestarted,
    /// An SA was asked for.
    Requesting {
        /// With this peer.
        peer: IpAddr,
        /// Transmissions so far, this one included.
        attempt: u32,
    },
    /// A request came to nothing.
    Refused {
        /// The peer.
        peer: IpAddr,
        /// Why; `None` if nobody answered.
        reason: Option<RefuseReason>,
    },
    /// An SA was taken over.
    Installed {
        /// Which.
        name: SaName,
        /// What the gateway may do with it.
        class: Class,
        /// Sensitivity level of its packets.
        level: u8,
        /// Its algorithms.
        suite: EspSuite,
        /// Transport or tunnel.
        mode: Mode,
        /// UDP-encapsulated.
        encap: bool,
        /// It replaces another.
        rekey: bool,
    },
    /// The network ended an SA.
    Deleted(SaName),
    /// An SA reached its hard limit, or a replaced one was forgotten.
    Expired(SaName),
}

/// Why [`crate::Core::poll_timeout`] wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A registration is to be sent or refreshed.
    Register,
    /// The registration ends.
    RegistrationEnd,
    /// A sign of life is due.
    Keepalive,
    /// A proxy request is to be sent again, given up, or allowed again.
    Request,
    /// A held packet has waited long enough.
    Hold,
    /// An SA reaches a limit, wants a replacement, or has been replaced long enough.
    Sa,
}

/// The last `N` events.
#[derive(Debug)]
pub(crate) struct Events<const N: usize> {
    items: [Option<Event>; N],
    first: usize,
    len: usize,
}

impl<const N: usize> Events<N> {
    pub(crate) const fn new() -> Self {
        Self {
            items: [None; N],
            first: 0,
            len: 0,
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if self.len == N {
            self.pop();
        }
        if let Some(slot) = self.items.get_mut((self.first + self.len) % N.max(1)) {
            *slot = Some(event);
            self.len += 1;
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        let event = self.items.get_mut(self.first)?.take()?;
        self.first = (self.first + 1) % N.max(1);
        self.len -= 1;
        Some(event)
    }
}
