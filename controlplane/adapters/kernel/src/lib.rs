//! What the roles ask of the Linux kernel: whole IP packets in and out, a TUN device, routes.
//!
//! Everything acts on the network namespace of the calling thread at the time of the call, needs
//! `CAP_NET_ADMIN` and `CAP_NET_RAW`, and is removed by the kernel when the process ends, however it ends:
//! a TUN device goes with its last descriptor, and takes its routes and addresses along.
//!
//! | module | what |
//! |---|---|
//! | [`raw_ip`] | [`RawIpSender`], whole IP packets with any source address through the kernel's routing |
#![forbid(unsafe_code)]

pub mod raw_ip;

pub use raw_ip::{RawIpSender, SendError};
