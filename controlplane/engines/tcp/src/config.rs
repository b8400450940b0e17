//! What a connection is told when it is made.

use core::time::Duration;

use crate::codec::{choice, record};

/// Which congestion control a sender uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// CUBIC with HyStart++ (RFC 9438, RFC 9406).
    #[default]
    Cubic,
    /// BBR version 3 (draft-ietf-ccwg-bbr).
    Bbr,
    /// BBR's model with the loss floor of a radio link; see [`crate::congestion::radio`].
    Radio,
}
choice!(Algorithm { Cubic = 0, Bbr = 1, Radio = 2 });

/// Keep-alive (RFC 9293 §3.8.4); off unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence after which the first probe goes.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the connection is given up.
    pub probes: u8,
}
record!(KeepAlive {
    idle,
    interval,
    probes
});

/// What is known of the path from earlier connections: lets a long path start fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathMemory {
    /// Delivery rate reached, bytes per second; zero if unknown.
    pub bandwidth: u64,
    /// Smallest round trip seen.
    pub min_rtt: Duration,
    /// Share of segments lost without congestion, in parts per million.
    pub loss_floor_ppm: u32,
}
record!(PathMemory {
    bandwidth,
    min_rtt,
    loss_floor_ppm
});

/// Parameters of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Our port.
    pub local_port: u16,
    /// The other side's port.
    pub remote_port: u16,
    /// Largest segment that fits the path to the other side, options included, bytes: announced as MSS.
    pub mss: u16,
    /// Most bytes written and not acknowledged.
    pub send_limit: usize,
    /// Receive window at the start, bytes.
    pub receive_initial: usize,
    /// Largest receive window, bytes.
    pub receive_limit: usize,
    /// Congestion control.
    pub algorithm: Algorithm,
    /// Initial window, segments (RFC 6928).
    pub initial_window: u8,
    /// Offer and accept SACK.
    pub sack: bool,
    /// Offer and accept timestamps.
    pub timestamps: bool,
    /// Offer and accept window scale.
    pub window_scale: bool,
    /// Offer and accept ECN.
    pub ecn: bool,
    /// Smallest retransmission timeout.
    pub min_rto: Duration,
    /// Largest retransmission timeout.
    pub max_rto: Duration,
    /// Longest delay of an acknowledgment.
    pub ack_delay: Duration,
    /// Retransmissions of a SYN.
    pub syn_retries: u8,
    /// Timeouts in a row after which the connection is given up (RFC 9293 §3.8.3, R2).
    pub retries: u8,
    /// Stay in TIME-WAIT, and in FIN-WAIT-2 once nobody can read any more.
    pub time_wait: Duration,
    /// Keep-alive.
    pub keep_alive: Option<KeepAlive>,
    /// Pace segments.
    pub pacing: bool,
    /// Spend what a small receive window leaves of a lossy link on sending its data twice; only `radio` does.
    pub early_repeats: bool,
    /// What earlier connections learnt of the path.
    pub path: Option<PathMemory>,
    /// Added to the timestamp clock; drawn at random.
    pub timestamp_offset: u32,
}
record!(Config {
    local_port,
    remote_port,
    mss,
    send_limit,
    receive_initial,
    receive_limit,
    algorithm,
    initial_window,
    sack,
    timestamps,
    window_scale,
    ecn,
    min_rto,
    max_rto,
    ack_delay,
    syn_retries,
    retries,
    time_wait,
    keep_alive,
    pacing,
    early_repeats,
    path,
    timestamp_offset,
});

/// Shortest MSS taken seriously: headers with all options fit, and some data.
const SHORTEST_MSS: u16 = 88;

impl Config {
    /// The nearest segment size to `mss` that this side sends.
    pub(crate) fn segment_size(&self, mss: u16) -> u16 {
        mss.clamp(SHORTEST_MSS, self.mss.max(SHORTEST_MSS))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            local_port: 0,
            remote_port: 0,
            mss: 1460,
            send_limit: 4 << 20,
            receive_initial: 256 << 10,
            receive_limit: 8 << 20,
            algorithm: Algorithm::Cubic,
            initial_window: 10,
            sack: true,
            timestamps: true,
            window_scale: true,
            ecn: false,
            min_rto: Duration::from_millis(200),
            max_rto: Duration::from_secs(60),
            ack_delay: Duration::from_millis(40),
            syn_retries: 6,
            retries: 15,
            time_wait: Duration::from_secs(60),
            keep_alive: None,
            pacing: true,
            early_repeats: false,
            path: None,
            timestamp_offset: 0,
        }
    }
}
