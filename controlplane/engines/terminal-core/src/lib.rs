//! The terminal, without an operating system (spec rows K7, K8, N4, N5).
//!
//! **Architecture invariant:** `core` alone, no allocator, symmetric cryptography alone; every table has a
//! fixed capacity chosen by the type parameters of [`Core`]. Time and randomness are handed in.
//!
//! ```text
//!   applications ── handle_plain ──►┌────────┐──► Transmit: send the packet
//!                                   │  Core  │
//!   applications ◄── Deliver ───────└────────┘◄── handle_network, handle_datagram ── network
//!                                      │  ▲
//!              poll_command: persist,  │  │ persisted, handle_timeout
//!              tell people             ▼  │
//! ```
//!
//! # How to drive it
//!
//! 1. Feed packets and datagrams as they come; do what the returned [`Disposition`] says.
//! 2. Then call [`Core::poll_transmit`] and [`Core::poll_command`] until both return `None`.
//! 3. Sleep until a packet comes or [`Core::poll_timeout`]; at that time call [`Core::handle_timeout`], go to 2.
//!
//! | module | what |
//! |---|---|
//! | [`policy`] | the SPD: protect, bypass, discard |
//! | [`command`] | what the core asks for and tells |
//! | `sad` | the SAs, old and new |
//! | `hold` | packets that wait for an SA |
//! | `paths` | what the path to a peer takes |
//! | `request` | proxy requests under way |
//! | `elsewhere` | for hosts whose operating system seals and opens the packets |
//! | `enrolment` | registration, sessions, the persisted counter |
#![no_std]
#![forbid(unsafe_code)]

pub mod command;
mod config;
mod control;
mod elsewhere;
mod enrolment;
mod face;
mod headers;
mod hold;
mod paths;
pub mod policy;
mod request;
mod sad;

pub use self::command::{Command, Event, Timer};
pub use self::config::{Config, InvalidConfig, Timing};
pub use self::face::{
    BUFFER_HEADROOM, BUFFER_TAILROOM, Core, Disposition, KeyTap, SaStatus, Secret, Transmit,
};
pub use self::policy::{Action, Policy};
pub use towpath_ipsec::Flow;
pub use towpath_ipsec::fragment::fragments;
#[cfg(feature = "soft")]
pub use towpath_ipsec::soft::SoftEsp;
pub use towpath_keyx::ReservedSpi;
pub use towpath_keyx::message::{RefuseReason, SaName};
pub use towpath_keyx::registration::Addresses;
