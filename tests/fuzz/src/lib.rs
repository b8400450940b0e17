//! What the targets have in common.
#![forbid(unsafe_code)]

pub mod ike;
pub mod ipsec;
pub mod tcp;
