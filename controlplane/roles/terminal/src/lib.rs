//! The terminal on a host with an operating system: configuration, sockets and the loop around the core.
#![forbid(unsafe_code)]

pub mod config;

pub use config::{InvalidConfig, Ksub, PolicyConfig, PortRange, Protocol, TerminalConfig};
