//! towpath-kernel
