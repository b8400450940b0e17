//! Channels between the machines of a network: mutual TLS 1.3 over TCP, framed messages, health checks.
//!
//! ```text
//!   gateway ──dials──► keyserver        gateway ──dials──► registry        keyserver ──dials──► registry
//! ```
//!
//! A node proves name and parts with one certificate of the network's own authority ([`Authority`]). Who may be what
//! is in the certificate alone: `NAME.node.towpath.internal` and, for each part it may play,
//! `PART.role.towpath.internal` (`.internal` exists on no public network). Both sides check both.
//!
//! [`Hub`] holds the links: it dials again and again, accepts, and turns everything into [`Event`]s for one event
//! loop. A link that carried nothing for [`Settings::dead_after`], heartbeats included, is down; so is one whose other
//! end takes nothing. What a link carries is bytes: the roles know what they mean.
#![forbid(unsafe_code)]

mod authority;
mod frame;
mod hub;
mod identity;

pub use authority::{Authority, Issued};
pub use hub::{Event, Hub, LinkId, Peer, Settings};
pub use identity::{ChannelError, Identity, valid_name};

/// What a node does on one end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Classifies, relays, protects packets.
    Gateway,
    /// Speaks IKEv2 for the terminals.
    Keyserver,
    /// Authenticates terminals, owns profiles.
    Registry,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Keyserver, Self::Registry];

    /// Its name, in certificates and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Keyserver => "keyserver",
            Self::Registry => "registry",
        }
    }

    /// The part of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}
