//! What the datapath tells the control part.

use std::net::IpAddr;

use towpath_base::{Spi, SubscriberHandle};
use towpath_ipsec::bridge::LifetimeEvent;
use towpath_ipsec::shared::Wanted;

use super::SaKey;

/// Something the control part wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An SA reached a limit; told once per limit.
    Expiring {
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// SPI of packets the terminal receives.
        spi_in: Spi,
        /// True at the hard limit.
        hard: bool,
    },
    /// A terminal sends on an SA this gateway was not given: a former process's, perhaps.
    UnknownSa {
        /// The terminal.
        terminal: IpAddr,
    },
    /// A sender under a key that outlives the process wants numbers; asked again until [granted](super::Datapath::grant).
    Reserve {
        /// Its SA.
        key: SaKey,
        /// The sender to the peer; else the one to the terminal.
        to_peer: bool,
        /// What is to be stored.
        wanted: Wanted,
    },
    /// The endpoint's IVs entered the gateway's half, or are random: the direction is class `none` from now on.
    Degraded {
        /// Its SA.
        key: SaKey,
        /// The direction to the peer; else the one to the terminal.
        to_peer: bool,
    },
}

/// Notices kept between two calls of [`drain_notices`](super::Datapath::drain_notices); more are lost, and come again.
pub(super) const MAX_NOTICES: usize = 64;

/// A notice that waits already, or finds no room, is not added: whatever caused it will cause it again.
pub(super) fn tell(notices: &mut Vec<Notice>, notice: Notice) {
    if notices.len() < MAX_NOTICES && !notices.contains(&notice) {
        notices.push(notice);
    }
}

pub(super) fn tell_limit(
    notices: &mut Vec<Notice>,
    subscriber: SubscriberHandle,
    spi_in: Spi,
    event: Option<LifetimeEvent>,
) {
    if let Some(event) = event {
        // A limit is told once by the SA, so it must not get lost here; it is at most two per SA.
        notices.push(Notice::Expiring {
            subscriber,
            spi_in,
            hard: event == LifetimeEvent::Hard,
        });
    }
}
