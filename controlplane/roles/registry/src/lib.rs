//! The registry.
#![forbid(unsafe_code)]

mod admin;
mod validate;

pub use admin::{Applied, Change, apply};
pub use validate::{MAX_ADDRESSES, MAX_PEERS, MAX_PSK, validate, validate_subscriber};
