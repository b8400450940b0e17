//! A link as it should be: slow, far away, lossy. One model, two shells.
//!
//! | module | what |
//! |---|---|
//! | [`model`] | one direction of a link, pure: a packet and a time go in, packets come out at their times |
//! | [`rng`] | the seeded source of randomness |
//! | [`spec`] | `rate=50M,delay=50ms,loss=1%`: a link in words |
//! | [`port`] | frames of one network interface |
//! | [`emulator`] | joins two interfaces in real time |
//! | [`report`], [`histogram`] | what a link really did |
//!
//! `tests/sim` is the other shell: it drives the model in virtual time. This crate is no part of the product.
#![forbid(unsafe_code)]

pub mod emulator;
pub mod histogram;
pub mod model;
pub mod port;
pub mod report;
pub mod rng;
pub mod spec;
