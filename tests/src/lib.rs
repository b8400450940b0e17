//! What several of the tests need.
#![forbid(unsafe_code)]

pub mod pki;
