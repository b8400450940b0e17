//! Cryptography for the engines, behind the traits of `towpath-base`.
#![forbid(unsafe_code)]

pub mod ike;
mod rng;

pub use ike::IkeCrypto;
pub use rng::SystemRng;
