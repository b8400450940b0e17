//! The smaller pieces an endpoint is made of.

use towpath_base::Instant;

use crate::codec::{choice, record};
use crate::frto::Frto;
use crate::prr::Prr;
use crate::seq::{Offset, SeqNum};

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Both sides finished.
    Finished,
    /// The peer reset it.
    Reset,
    /// The peer refused it.
    Refused,
    /// We reset it.
    Aborted,
    /// The peer stopped answering.
    TimedOut,
}
choice!(Closed { Finished = 0, Reset = 1, Refused = 2, Aborted = 3, TimedOut = 4 });

/// What the owner of an endpoint should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The handshake is complete.
    Connected,
    /// Data became readable, or the peer finished.
    Readable,
    /// Room to write became free.
    Writable,
    /// The peer's urgent pointer moved; see [`urgent_received`](super::Endpoint::urgent_received).
    Urgent,
    /// The connection ended.
    Closed(Closed),
}

/// Commands not yet taken, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pending {
    pub(super) connected: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) urgent: bool,
    pub(super) closed: bool,
}
record!(Pending {
    connected,
    readable,
    writable,
    urgent,
    closed
});

/// What both SYNs agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// Largest segment the peer takes, options included, bytes.
    pub(super) mss: u16,
    /// Shift of the peer's windows.
    pub(super) send_scale: u8,
    /// Shift of ours.
    pub(super) receive_scale: u8,
    pub(super) sack: bool,
    pub(super) timestamps: bool,
    pub(super) ecn: bool,
}
record!(Negotiated {
    mss,
    send_scale,
    receive_scale,
    sack,
    timestamps,
    ecn
});

/// Segments owed that carry no new data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Owed {
    /// SYN or SYN-ACK.
    pub(super) syn: bool,
    /// Probe of a closed window, or keep-alive.
    pub(super) probe: bool,
    /// Tail loss probe.
    pub(super) tail_probe: bool,
    /// RST of an aborted connection.
    pub(super) reset: bool,
    /// RST for an acknowledgment of what this connection never sent, with that number.
    pub(super) stray: Option<SeqNum>,
}
record!(Owed {
    syn,
    probe,
    tail_probe,
    reset,
    stray
});

/// Loss recovery of a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// Nothing to recover.
    Open,
    /// Fast recovery (RFC 6675, RFC 8985).
    Fast,
    /// After a timeout.
    Timeout,
}
choice!(Recovery { Open = 0, Fast = 1, Timeout = 2 });

/// The sender's repair state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repair {
    pub(super) phase: Recovery,
    /// RecoveryPoint: recovery ends when this is acknowledged.
    pub(super) point: Offset,
    pub(super) prr: Prr,
    pub(super) frto: Frto,
    /// Time of the first retransmission of this recovery, to tell a spurious one (RFC 3522).
    pub(super) first_retransmit: Option<Instant>,
    /// Retransmissions of this recovery not yet proven needless by a D-SACK.
    pub(super) unproven: u32,
    /// No loss was acknowledged as such yet: the reduction may be undone.
    pub(super) undoable: bool,
    /// Duplicate acknowledgments in a row, where there is no SACK.
    pub(super) duplicates: u32,
}
record!(Repair {
    phase,
    point,
    prr,
    frto,
    first_retransmit,
    unproven,
    undoable,
    duplicates
});

impl Default for Repair {
    fn default() -> Self {
        Self {
            phase: Recovery::Open,
            point: 0,
            prr: Prr::default(),
            frto: Frto::Off,
            first_retransmit: None,
            unproven: 0,
            undoable: false,
            duplicates: 0,
        }
    }
}

/// ECN of a connection (RFC 3168 §6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct EcnState {
    /// A CE mark arrived: echo until CWR.
    pub(super) echo: bool,
    /// We reduced the window: tell with CWR.
    pub(super) reduced: bool,
    /// No second reduction before this is acknowledged.
    pub(super) reduced_until: Offset,
}
record!(EcnState {
    echo,
    reduced,
    reduced_until
});

/// Counters of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Bytes of data sent for the first time.
    pub bytes_sent: u64,
    /// Bytes of data sent again.
    pub bytes_retransmitted: u64,
    /// Bytes of data received in order.
    pub bytes_received: u64,
    /// Segments sent.
    pub segments_sent: u64,
    /// Segments received.
    pub segments_received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Segments sent a second time before anything was known of the first (early repeats).
    pub early_repeats: u64,
    /// Bytes of these.
    pub bytes_early: u64,
    /// Bytes found lost.
    pub bytes_lost: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Tail loss probes sent.
    pub tail_probes: u64,
    /// Reductions taken back.
    pub undos: u64,
    /// D-SACKs received.
    pub duplicates_reported: u64,
    /// Segments refused.
    pub refused: u64,
}
record!(Stats {
    bytes_sent,
    bytes_retransmitted,
    bytes_received,
    segments_sent,
    segments_received,
    retransmits,
    early_repeats,
    bytes_early,
    bytes_lost,
    timeouts,
    tail_probes,
    undos,
    duplicates_reported,
    refused,
});
