//! The relay: split and Snoop.
