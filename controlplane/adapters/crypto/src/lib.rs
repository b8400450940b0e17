//! Cryptography for the engines, behind the traits of `towpath-base`.
#![forbid(unsafe_code)]

pub mod esp;
pub mod ike;
pub mod inspect;
mod rng;

pub use esp::AwsLcEsp;
pub use ike::IkeCrypto;
pub use rng::SystemRng;
