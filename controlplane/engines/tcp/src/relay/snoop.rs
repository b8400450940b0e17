//! Snoop.
