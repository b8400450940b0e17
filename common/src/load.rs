//! What the load generator of the benchmarks is told (`dataplane-ebpf/src/load.rs`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a packet the generator writes.
pub const HEADER: usize = 64;

/// The packet to send.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Template {
    /// Interface to send it out of.
    pub ifindex: u32,
    /// Random bits in the low part of the IPv4 source address: a mask, host byte order; 0 for none.
    pub spread: u32,
    /// The first bytes, in 32-bit pieces with bytes in the order of the packet.
    pub header: [u32; HEADER / 4],
}

const _: () = assert!(size_of::<Template>() == 72);
