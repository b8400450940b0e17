//! The vocabulary every engine shares.
//!
//! **Architecture invariant:** pure. Nothing in here reads a clock, draws randomness, opens a socket,
//! spawns a thread or logs; time and randomness are passed in. It builds with `core` alone; the feature
//! `alloc` adds [`profile`] and [`policy`], the feature `serde` serialisation.
//!
//! | module | what |
//! |---|---|
//! | [`time`] | [`Instant`], a point on the caller's monotonic clock |
//! | [`ids`] | newtypes for everything that can be confused |
//! | [`key`] | key material that zeroizes and never prints |
//! | [`sa`] | security associations as negotiated, and their parts |
//! | [`selector`] | prefixes and traffic selectors |
//! | [`manual`] | SAs whose keys people bring |
//! | [`policy`] | entries of the security policy database |
//! | [`rate`] | limits on how often something happens |
//! | [`replay`] | the anti-replay window |
//! | [`packet`] | one packet in a buffer with room on both sides |
//! | [`credentials`] | keys and certificates of a subscriber |
//! | [`dn`] | distinguished names |
//! | [`crypto`] | what an engine asks of cryptography |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

#[cfg(feature = "alloc")]
pub mod credentials;
pub mod crypto;
#[cfg(feature = "alloc")]
pub mod dn;
pub mod ids;
pub mod key;
#[cfg(feature = "alloc")]
pub mod manual;
pub mod packet;
#[cfg(feature = "alloc")]
pub mod policy;
#[cfg(feature = "alloc")]
pub mod profile;
pub mod rate;
pub mod replay;
pub mod sa;
pub mod selector;
pub mod testutil;
pub mod time;

pub use ids::{IkeSpi, MessageId, Spi, SubscriberHandle};
pub use key::{Key, SecretKey};
pub use packet::PacketBuf;
pub use time::Instant;
pub use towpath_common::DropReason;
