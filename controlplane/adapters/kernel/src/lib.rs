//! What the roles ask of the Linux kernel: whole IP packets in and out, a TUN device, routes.
//!
//! Everything acts on the network namespace of the calling thread at the time of the call, needs
//! `CAP_NET_ADMIN` and `CAP_NET_RAW`, and is removed by the kernel when the process ends, however it ends:
//! a TUN device goes with its last descriptor, and takes its routes and addresses along.
//!
//! | module | what |
//! |---|---|
//! | [`raw_ip`] | [`RawIpSender`], whole IP packets with any source address through the kernel's routing |
//! | [`inbound`] | [`Inbound`], ESP and UDP for this host, shown as whole IP packets |
//! | [`path_errors`] | [`PathErrors`], "too big" from routers |
//! | [`tun`] | [`Tun`], the device that takes plain packets |
//! | [`netlink`] | [`Netlink`]: interfaces, addresses, routes |
//! | [`sysctl`] | settings |
//! | [`xfrm`] | [`Xfrm`], the kernel's own IPsec; its SAs and policies stay when the process is killed |
//! | [`udp_encap`] | ESP in UDP for it |
#![deny(unsafe_code)]

pub mod inbound;
pub mod netlink;
pub mod path_errors;
pub mod raw_ip;
pub mod sysctl;
pub mod tun;
pub mod udp_encap;
pub mod xfrm;

pub use inbound::Inbound;
pub use netlink::{Addresses, Link, MAIN_TABLE, MarkRule, Netlink, NetlinkError, Route};
pub use path_errors::PathErrors;
pub use raw_ip::{RawIpSender, SendError};
pub use tun::Tun;
pub use xfrm::{Xfrm, XfrmEvents};
