//! towpath-ipsec
