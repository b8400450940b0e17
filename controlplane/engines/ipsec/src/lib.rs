//! ESP (RFC 4303) on packets in place: no clock, no socket, no allocation, `core` alone.
//!
//! **Architecture invariant:** the owner of the sequence counter chooses every IV. [`OutboundSa`] is that
//! owner, one per key: for AES-GCM the IV is the 64-bit sequence counter, which only grows, so no nonce is
//! used twice under one key; building two [`OutboundSa`] from the same keys breaks this, and nothing else does.
//!
//! | module | what |
//! |---|---|
//! | [`locate`] | where ESP is in an IP packet, and whose flow a packet is |
//! | [`outbound`] | plain IP packet → ESP packet |
//! | [`inbound`] | ESP packet → plain IP packet |
//! | [`ah`] | AH (RFC 4302), both halves, and its bridge |
//! | [`bridge`] | one segment's ESP packet → the other segment's, without moving a byte |
//! | `crossing` | ESP, AH or both at a gateway, behind one face (feature `tables`, for it allocates) |
//! | [`shared`] | an SA whose keys the gateway shares with both ends |
//! | [`inspect`] | looking inside with the cipher key alone |
//! | [`highwater`] | sequence numbers that are stored before they are used |
//! | [`pmtu`], [`icmp`] | the path MTU of an SA; "too big", said and heard |
//! | [`fragment`], `reassembly` | cutting packets, and putting fragments together (the latter with `tables`) |
//! | [`keepalive`] | keep-alives of UDP encapsulation |
//! | [`lifetime`] | limits in time and bytes, soft and hard |
//! | `sad`, `spd` | the databases of SAs and policies (feature `tables`, with `alloc`) |
//! | `slots` | which SA a packet needs, asked ahead of time (feature `tables`) |
//! | [`wrapped`] | IP-in-IP and GRE around an IP packet |
//! | [`soft`] | the algorithms in portable software |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "tables")]
extern crate alloc;

pub mod ah;
pub mod bridge;
mod checksum;
#[cfg(feature = "tables")]
pub mod crossing;
mod ends;
pub mod fragment;
pub mod highwater;
pub mod icmp;
pub mod inbound;
pub mod inspect;
mod ip;
pub mod keepalive;
pub mod lifetime;
pub mod locate;
mod mode;
pub mod outbound;
mod outer;
pub mod pmtu;
#[cfg(feature = "tables")]
pub mod reassembly;
#[cfg(feature = "tables")]
pub mod sad;
mod shape;
pub mod shared;
#[cfg(feature = "tables")]
pub mod slots;
#[cfg(feature = "soft")]
pub mod soft;
#[cfg(feature = "tables")]
pub mod spd;
pub mod used;
pub mod wrapped;

pub use ah::{AhBridge, AhInbound, AhOutbound};
pub use bridge::Bridge;
pub use checksum::ChecksumRepair;
#[cfg(feature = "tables")]
pub use crossing::Crossing;
pub use highwater::Reserved;
pub use inbound::{InboundSa, Opened};
pub use lifetime::LifetimeEvent;
pub use locate::{Flow, Located};
pub use outbound::{OutboundSa, Sealed};
pub use outer::{OuterDf, OuterDscp, OuterEcn, OuterPolicy};
pub use pmtu::PathMtu;
pub use shared::SharedBridge;
pub use used::Used;
