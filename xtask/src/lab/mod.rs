//! The lab.

pub mod cli;
