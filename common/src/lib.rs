//! What the XDP program and user space must agree on.
//!
//! `no_std`, no allocator, no dependency of ours. Compiled for `bpfel-unknown-none`, for the host and
//! for bare-metal targets alike, so nothing here may assume an operating system.
//!
//! * [`wire`]: headers as they lie on the wire, read in place;
//! * [`drop_reason`]: the one table of reasons a packet can be dropped for.
#![no_std]
#![forbid(unsafe_code)]

pub mod drop_reason;
pub mod wire;

pub use drop_reason::DropReason;
