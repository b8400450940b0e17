//! What the XDP program and user space must agree on.
//!
//! `no_std`, no allocator, no dependency of ours. Compiled for `bpfel-unknown-none`, for the host and
//! for bare-metal targets alike, so nothing here may assume an operating system.
//!
//! * [`wire`]: headers as they lie on the wire, read in place;
//! * [`headers`] and [`mod@classify`]: parser and classifier, one source for both sides;
//! * [`abi`]: keys and values of the BPF maps, and the metadata of a diverted packet;
//! * [`load`]: what the benchmarks' load generator is told;
//! * [`counter`] and [`drop_reason`]: the tables of what can happen to a packet.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod classify;
pub mod counter;
pub mod drop_reason;
pub mod headers;
pub mod load;
pub mod wire;

pub use classify::{Verdict, classify, classify_frame};
pub use drop_reason::DropReason;
