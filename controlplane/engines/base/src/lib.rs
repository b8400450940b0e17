//! towpath-base
