//! The TCP relay inside SAs of class `full`, on real ESP packets and in virtual time.
//!
//! ```text
//!   terminal ══ segment keys, 20 ms, loss ══ gateway ══ peer's keys, 5 ms ══ peer
//! ```
#![allow(missing_docs)]

mod elsewhere;
mod ends;
mod snoop;
mod split;
mod world;
