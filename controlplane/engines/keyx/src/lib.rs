//! The sealed protocol between terminal and network (spec rows K7, N4). Byte layouts and a test vector are in
//! `controlplane/docs/keyx-wire.md`.
//!
//! **Architecture invariant:** symmetric cryptography alone, no clock, no randomness of its own, `core` alone
//! (the feature `alloc` adds what only the network needs). Every datagram that is sent, a retransmission
//! included, has a counter of its own, so no nonce is used twice; idempotence comes from identifiers inside.
//!
//! | module | what |
//! |---|---|
//! | [`frame`] | the IKE header with reserved SPIs around every datagram (figure 12A) |
//! | [`message`] | what the messages say, and their layout |
//! | [`keys`] | subscriber key → registration keys → session keys |
//! | [`session`] | sealing and opening under session keys, at either end |
//! | [`registration`] | the exchange that makes a session, at either end |
//! | [`transfer`] | key transfers until they are acknowledged, and duplicates at the receiver |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

mod codec;
pub mod frame;
pub mod keys;
pub mod message;
pub mod registration;
mod sa_codec;
mod sealed;
pub mod session;
pub mod transfer;

pub use frame::ReservedSpi;
pub use keys::{RegistrationKeys, SessionKeys};
pub use message::{FromTerminal, Header, MessageType, ToTerminal};
pub use sealed::{MAX_BODY, MAX_DATAGRAM, SealedDatagram, Unsealable};
pub use session::{NetworkSession, TerminalSession};
