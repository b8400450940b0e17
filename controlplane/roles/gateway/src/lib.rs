//! towpath-gateway
