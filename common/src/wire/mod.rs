//! Headers as they lie on the wire, network byte order, alignment 1: cast in place, never copied.
//!
//! Every accessor returns host byte order. Nothing here trusts a length: parsing is
//! `Header::ref_from_prefix` (from [`zerocopy`]), which fails on short input.

mod checksum;
mod ip;
mod transport;

pub use checksum::{checksum, checksum_update16, fold, pseudo_header_v4, pseudo_header_v6, sum};
pub use ip::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Ethernet, Ipv4, Ipv6, Ipv6Fragment, Vlan,
    protocol,
};
pub use transport::{Ah, Esp, IKE_HEADER_LEN, IkeHeader, NON_ESP_MARKER_LEN, PORT_IKE, PORT_IKE_NATT, Udp};
