//! IKEv2 (RFC 7296), spoken in other parties' names.
//!
//! [`Endpoint`] holds any number of IKE SAs, each between one *local* address (a terminal that has no IKE of
//! its own) and one *remote* address (its unmodified peer). Whoever drives it delivers datagrams and time and
//! carries out what it asks for:
//!
//! ```text
//! handle_datagram ─┐                      ┌─► poll_transmit   datagrams, source = the terminal
//! initiate ────────┤                      ├─► poll_command    policies wanted, SAs up and down, log lines
//! provide_policy ──┤      Endpoint        ├─► poll_timeout    when to call handle_timeout, and for which timer
//! handle_timeout ──┘                      └─► list            what there is
//! ```
//!
//! **Architecture invariant:** pure. No clock, socket, thread or log; randomness and cryptography come in
//! through [`Rng`](towpath_base::crypto::Rng) and [`KeyGenerator`](towpath_base::crypto::KeyGenerator), so the
//! same seed gives the same exchange. Nothing received can panic or grow memory without bound.
//!
//! | module | what |
//! |---|---|
//! | [`wire`] | header and payloads, parsed and built; lengths never trusted |
//! | [`proposal`] | what is offered and what is chosen |
//! | `auth` | who proves what, and how |
//! | `fragment` | messages in pieces |
//! | `keys` | SKEYSEED, SK_*, AUTH, KEYMAT |
//! | `sa` | one IKE SA: windows, retransmission, its CHILD SAs |
//! | `tasks` | one file per exchange, each with its building and processing halves |
//! | [`endpoint`] | many SAs: lookup, cookies, limits, simultaneous starts |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod auth;
mod choose;
pub mod command;
pub mod config;
pub mod endpoint;
mod fragment;
#[cfg(test)]
mod kdf_vectors;
mod keys;
pub mod proposal;
mod protect;
mod puzzle;
mod sa;
mod tasks;
pub mod wire;

pub use auth::Auth;
pub use command::{Command, FailReason, IkeSaInfo, IkeSaKeys, IkeState, Role, Transmit};
pub use config::{Budget, BudgetId, Config, IkeSaId, Initiate, Policy, Retransmit, Timer};
pub use endpoint::{Endpoint, InitiateError, UnknownSa};
pub use proposal::{IkeProposal, IkeSuite, InvalidProposal};
