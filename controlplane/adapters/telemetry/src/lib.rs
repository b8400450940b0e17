//! What people see of a running daemon, and how they talk to it.
//!
//! * [`admin`]: the socket the command line uses: requests, replies, server, client;
//! * [`logging`]: log lines for people or as JSON.
//!
//! **Architecture invariant:** nothing here decides. The server hands each request to the daemon's loop and
//! writes what comes back; every queue, line and connection count has a bound.
#![forbid(unsafe_code)]

pub mod admin;
pub mod logging;
pub mod pcapng;
