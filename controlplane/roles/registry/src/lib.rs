//! The registry: authenticates terminals, owns the service profiles, hands credentials to keyservers
//! (spec rows K2 to K4, K16, N4).
//!
//! ```text
//!                  ┌────────────── registry ──────────────┐
//!  ToRegistry ───► │ authenticate ─► counter rule ─► store │──► FromRegistry (gateway: grants, answers)
//!  admin ────────► │ validate ─────────────────────► store │──► FromRegistry (keyserver: sessions, credentials)
//!                  └───────────────────────────────────────┘
//! ```
//!
//! **Architecture invariant:** a synchronous state machine; what it tells others is in the store already. A
//! registration is answered only after its counter is durable, so a replay is refused across crashes. The
//! subscriber key never leaves; keyservers get session keys, gateways neither.
#![forbid(unsafe_code)]

mod admin;
mod limiter;
mod locations;
mod registrar;
mod validate;

pub use admin::{Applied, Change, apply};
pub use registrar::{Config, Destination, Registry, Whom};
pub use validate::{MAX_ADDRESSES, MAX_PEERS, MAX_PSK, validate, validate_subscriber};
