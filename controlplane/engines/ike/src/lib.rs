//! towpath-ike
