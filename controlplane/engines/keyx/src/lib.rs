//! towpath-keyx
