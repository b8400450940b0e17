//! towpath-terminal
