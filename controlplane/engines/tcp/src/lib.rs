//! TCP for the relay: an endpoint of our own, congestion control for radio links, the split relay and
//! Snoop.
//!
//! **Architecture invariant:** pure. Nothing in here reads a clock, draws randomness, opens a socket,
//! spawns a thread or logs. Segments and time go in through `handle_input` and `handle_timeout`; segments,
//! deadlines and commands come out of `poll_transmit`, `poll_timeout` and `poll_command`.
//!
//! | module | what |
//! |---|---|
//! | [`seq`] | sequence numbers on the wire, offsets inside |
//! | [`segment`] | headers and options, parsed and written |
//! | [`packet`] | IP packets around segments |
//! | [`config`] | parameters of a connection |
//! | [`endpoint`] | one end of a connection: RFC 9293 with everything since |
//! | [`congestion`] | CUBIC, BBR, `radio` |
//! | [`relay`] | the split relay and Snoop |
//! | [`codec`] | the format of snapshots |
//!
//! The parts an endpoint is made of, one file each: `buffer`, `reassembly`, `scoreboard`, `rto`, `rack`,
//! `prr`, `frto`, `rate`, `pacing`, `window`, `delayed_ack`, `paws`, `isn`, `timer`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod buffer;
pub mod codec;
pub mod config;
pub mod congestion;
mod delayed_ack;
pub mod endpoint;
mod frto;
mod isn;
mod pacing;
pub mod packet;
mod paws;
mod prr;
mod rack;
mod rate;
mod reassembly;
pub mod relay;
mod rto;
mod scoreboard;
pub mod segment;
pub mod seq;
mod timer;
mod window;

pub use codec::RestoreError;
pub use config::{Algorithm, Config, KeepAlive, PathMemory};
pub use endpoint::{Closed, Command, Endpoint, Outgoing, State, Stats};
pub use isn::IsnSecret;
pub use rate::RateSample;
pub use segment::{Ecn, Segment};
pub use seq::{Offset, SeqNum};
pub use timer::Timer;
