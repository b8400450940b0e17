//! Parameters of the split relay, and what it shows of itself.

use core::time::Duration;

use super::Side;
use crate::config::{Algorithm, Config};
use crate::endpoint::{State, Stats};

/// How connections are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Handshake {
    /// The far side first.
    #[default]
    Synchronous,
    /// Answer the opener at once.
    Early,
}

/// Parameters of a side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideConfig {
    /// Largest IP packet that fits the path inside the SA, bytes.
    pub mtu: u16,
    /// Everything else; ports and segment size are filled in per connection.
    pub connection: Config,
}

impl Default for SideConfig {
    fn default() -> Self {
        let connection = Config {
            time_wait: Duration::from_secs(10),
            ..Config::default()
        };
        Self {
            mtu: 1400,
            connection,
        }
    }
}

/// Parameters of the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitConfig {
    /// Towards the terminal.
    pub terminal: SideConfig,
    /// Towards the network.
    pub network: SideConfig,
    /// How connections are opened.
    pub handshake: Handshake,
    /// Most connections; further ones pass untouched.
    pub max_flows: usize,
    /// Most connections not yet open; further ones pass untouched.
    pub max_half_open: usize,
    /// Most connections of one path not yet open; a further one pushes out the path's oldest.
    pub max_half_open_per_tag: usize,
    /// Most connections of one path (see [`super::SplitRelay::handle_tagged`]); further ones pass untouched.
    pub max_flows_per_tag: usize,
    /// Most bytes in all buffers. As it fills, every connection's window shrinks; when it is full, data is
    /// not taken and new connections pass untouched.
    pub max_buffered: usize,
    /// A connection silent this long is reset.
    pub idle_timeout: Duration,
    /// A connection not open after this long is forgotten.
    pub open_timeout: Duration,
    /// How long segments of an aborted connection are answered with resets.
    pub linger: Duration,
}

impl Default for SplitConfig {
    fn default() -> Self {
        Self {
            terminal: SideConfig::default(),
            network: SideConfig::default(),
            handshake: Handshake::Synchronous,
            max_flows: 65_536,
            max_half_open: 4_096,
            max_half_open_per_tag: 256,
            max_flows_per_tag: 16_384,
            max_buffered: 1 << 30,
            idle_timeout: Duration::from_secs(4 * 3600),
            open_timeout: Duration::from_secs(120),
            linger: Duration::from_secs(30),
        }
    }
}

impl SplitConfig {
    pub(super) const fn side(&self, side: Side) -> &SideConfig {
        match side {
            Side::Terminal => &self.terminal,
            Side::Network => &self.network,
        }
    }
}

/// What the relay did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SplitStats {
    /// Connections begun.
    pub opened: u64,
    /// Connections refused by the far side.
    pub refused: u64,
    /// Connections over the bounds, passed untouched.
    pub over_limit: u64,
    /// Connections that were never opened, forgotten for newer ones of the same path.
    pub pushed_out: u64,
    /// Connections reset for silence.
    pub idle: u64,
    /// Packets dropped for a wrong checksum or header.
    pub malformed: u64,
    /// Segments whose data was not taken because the buffers were full.
    pub over_memory: u64,
}

impl SplitStats {
    /// Nothing happened yet.
    pub const NONE: Self = Self {
        opened: 0,
        refused: 0,
        over_limit: 0,
        pushed_out: 0,
        idle: 0,
        malformed: 0,
        over_memory: 0,
    };
}

/// What is chosen for one connection when it begins; absent is what the relay's configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opening {
    /// Towards the terminal.
    pub terminal: OpeningSide,
    /// Towards the network.
    pub network: OpeningSide,
    /// How it is opened.
    pub handshake: Option<Handshake>,
}

/// One side of an [`Opening`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpeningSide {
    /// Largest IP packet that fits the path inside the SA, bytes.
    pub mtu: Option<u16>,
    /// Congestion control.
    pub algorithm: Option<Algorithm>,
}

impl Opening {
    pub(super) const fn side(&self, side: Side) -> &OpeningSide {
        match side {
            Side::Terminal => &self.terminal,
            Side::Network => &self.network,
        }
    }
}

/// One side of a connection, for people to look at (N7).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SideView {
    /// State of RFC 9293.
    pub state: State,
    /// SRTT.
    pub smoothed_rtt: Option<Duration>,
    /// Smallest round trip seen lately.
    pub min_rtt: Option<Duration>,
    /// Congestion control in use.
    pub algorithm: Algorithm,
    /// Largest segment, bytes.
    pub mss: u16,
    /// Congestion window, bytes.
    pub window: u64,
    /// Bytes in flight.
    pub in_flight: u64,
    /// Receive window the other end announced last, bytes from the first one it has not acknowledged.
    pub peer_window: u64,
    /// Pace, bytes per second; zero while unknown.
    pub pace: u64,
    /// Loss of the link's own, as `radio` inferred it, parts per million.
    pub loss_floor_ppm: u64,
    /// Bytes waiting to be sent or acknowledged.
    pub queued: usize,
    /// Bytes received that the other side has not taken.
    pub unread: usize,
    /// Counters.
    pub stats: Stats,
}
