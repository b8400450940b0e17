//! towpath-crypto
