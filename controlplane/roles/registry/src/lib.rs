//! towpath-registry
