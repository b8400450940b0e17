//! Cryptography for the engines, behind the traits of `towpath-base`.
#![deny(unsafe_code)] // allowed in one file, see `esp/direct.rs`

pub mod esp;
pub mod ike;
pub mod inspect;
mod rng;
pub mod x509;

pub use esp::AwsLcEsp;
pub use ike::IkeCrypto;
pub use rng::SystemRng;
pub use x509::{CertificateSigner, InvalidCredential, TrustVerifier};
