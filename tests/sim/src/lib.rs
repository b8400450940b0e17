//! The TCP engine in virtual time: real endpoints and real relay code, links that lose, delay, reorder and
//! duplicate, and a model of the byte streams to compare with. Everything follows from a seed.
//!
//! | module | what |
//! |---|---|
//! | [`relay`] | the relay between the hosts |
//! | [`rng`] | the seeded source of randomness |
//! | [`link`] | one direction of a link |
//! | [`host`] | sockets with a scripted application |
//! | [`world`] | topology and clock |
//! | [`goodput`] | bulk transfer against the bound |
//! | [`scenario`] | random scenarios |
//! | [`sharing`] | two senders on one bottleneck |
#![forbid(unsafe_code)]

pub mod goodput;
pub mod host;
pub mod link;
pub mod relay;
pub use towpath_linkem::rng;
pub mod scenario;
pub mod sharing;
pub mod world;
