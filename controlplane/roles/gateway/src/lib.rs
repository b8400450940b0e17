//! The gateway role: the node every packet of a terminal passes.
//!
//! | module | what |
//! |---|---|
//! | [`control`] | where each message of the control path goes |
//! | [`datapath`] | what becomes of each ESP packet |
//! | [`datagram`] | UDP datagrams in and out of IP packets |
//! | [`relay`] | the TCP relay between the halves of the SAs |
//! | [`stored`] | SAs and policies that people brought |
//! | [`worker`] | the thread that moves the frames |
//! | [`keyservers`] | which keyserver serves which terminal |
//! | [`windows`] | what stored SAs have used up, across SIGKILL |
//! | [`limiter`] | floods cost their source, not the others |
#![forbid(unsafe_code)]

pub mod control;
pub mod datagram;
pub mod datapath;
pub mod keyservers;
pub mod limiter;
pub mod relay;
pub mod stored;
pub mod windows;
pub mod worker;

pub use control::Control;
pub use datapath::SaKey;
pub use worker::Worker;
