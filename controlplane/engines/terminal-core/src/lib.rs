//! towpath-terminal-core
