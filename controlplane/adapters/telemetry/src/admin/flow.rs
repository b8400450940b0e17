//! Relayed TCP connections, for `towpath flow` (N7).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use towpath_base::SubscriberHandle;

/// Which connections; everything absent matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Of the subscriber with this name.
    pub subscriber: Option<String>,
    /// With this terminal or peer.
    pub address: Option<IpAddr>,
    /// With this port on either end.
    pub port: Option<u16>,
    /// At most so many.
    pub limit: Option<u32>,
}

/// Connections and the numbers of all of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FlowList {
    /// The connections asked for.
    pub flows: Vec<FlowInfo>,
    /// The relay as a whole.
    pub totals: FlowTotals,
}

/// The relay as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowTotals {
    /// Split connections at present.
    pub split: u64,
    /// Snooped connections at present.
    pub snooped: u64,
    /// Split connections not open yet.
    pub half_open: u64,
    /// Bytes in the buffers of split connections.
    pub buffered_bytes: u64,
    /// Bytes in the caches of snooped connections.
    pub cached_bytes: u64,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// Subscriber's name.
    pub subscriber: String,
    /// Its handle.
    pub handle: SubscriberHandle,
    /// Terminal's address.
    pub terminal: IpAddr,
    /// Terminal's port.
    pub terminal_port: u16,
    /// Address of the other end.
    pub network: IpAddr,
    /// Port of the other end.
    pub network_port: u16,
    /// Outer address of the SA's far end: the other end itself, or its security gateway.
    pub peer: IpAddr,
    /// `split` or `snoop`.
    pub treatment: String,
    /// `terminal` or `network`: who opened it; absent if that was not seen.
    pub opener: Option<String>,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
    /// Bytes of memory it takes, buffers not counted.
    pub memory_bytes: u64,
    /// Sensitivity level, where the connection has an SA of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// The segment towards the terminal.
    pub terminal_side: Option<FlowSide>,
    /// The segment towards the network.
    pub network_side: Option<FlowSide>,
}

/// One segment of a connection, seen from the gateway as the sender on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FlowSide {
    /// State of RFC 9293 (`established`); empty for snooped connections.
    pub state: String,
    /// Congestion control: `radio`, `cubic`, `bbr`; empty for snooped connections.
    pub congestion: String,
    /// Smoothed round trip, microseconds; absent before the first sample.
    pub rtt_us: Option<u64>,
    /// Smallest round trip seen lately, microseconds.
    pub min_rtt_us: Option<u64>,
    /// Largest segment, bytes.
    pub mss: u16,
    /// Congestion window, bytes.
    pub cwnd: u64,
    /// Bytes in flight.
    pub in_flight: u64,
    /// Receive window this side announced last, bytes.
    #[serde(default)]
    pub receiver_window: u64,
    /// Bits per second at which segments leave at most; zero while unknown.
    #[serde(default)]
    pub pace_bps: u64,
    /// Loss of the link's own, as `radio` inferred it, per cent.
    #[serde(default)]
    pub loss_floor_percent: f64,
    /// Bytes waiting here to be sent or acknowledged.
    pub queued: u64,
    /// Bytes received from this side that the other side has not taken yet.
    pub unread: u64,
    /// Bytes sent for the first time.
    pub bytes_sent: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Bytes found lost.
    pub bytes_lost: u64,
    /// Share of the bytes sent that was lost, per cent.
    pub loss_percent: f64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Segments sent a second time before anything was known of the first.
    #[serde(default)]
    pub early_repeats: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Segments sent.
    pub segments_sent: u64,
    /// Segments received.
    pub segments_received: u64,
    /// Bits per second delivered to this side, averaged since the connection was opened.
    pub goodput_bps: u64,
}
