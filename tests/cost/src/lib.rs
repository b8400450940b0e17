//! What the two measured programs have in common.
//!
//! Each sets up `ROUNDS` SAs between a terminal and the other side, both in one process. Only the terminal's
//! work runs inside [`on_the_terminal`]; callgrind counts nothing else.
#![forbid(unsafe_code)]

pub mod portable;

use std::net::IpAddr;

use towpath_base::sa::ChildSa;
use towpath_base::{Instant, sa::EspSuite};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{InboundSa, OutboundSa};

/// SAs set up by each program.
pub const ROUNDS: u32 = 20;

/// The suite both set up.
pub const SUITE: EspSuite = EspSuite::Aes256Gcm16;

/// The terminal.
pub const TERMINAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 1, 2));

/// Its peer.
pub const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 9, 2));

/// What the terminal does. Callgrind counts from entry to return: `--toggle-collect=*on_the_terminal*`.
#[inline(never)]
pub fn on_the_terminal<R>(work: impl FnOnce() -> R) -> R {
    std::hint::black_box(work())
}

/// Both halves of an SA, ready for packets: the last step either way.
pub fn install(sa: &ChildSa) -> (OutboundSa<SoftTransform>, InboundSa<SoftTransform>) {
    let now = Instant::from_secs(1);
    let outbound = OutboundSa::new(&SoftEsp, now, sa).expect("keys fit the suite");
    let inbound = InboundSa::new(&SoftEsp, now, sa).expect("keys fit the suite");
    (outbound, inbound)
}
