//! The states of RFC 9293 §3.3.2 and what each of them permits.

use crate::codec::choice;

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waiting for a SYN.
    Listen,
    /// SYN sent.
    SynSent,
    /// SYN received and sent, ours not acknowledged.
    SynReceived,
    /// Open both ways.
    Established,
    /// We finished; not acknowledged.
    FinWait1,
    /// We finished, acknowledged; the peer may still send.
    FinWait2,
    /// The peer finished; we may still send.
    CloseWait,
    /// Both finished at the same time; ours not acknowledged.
    Closing,
    /// The peer finished, then we; ours not acknowledged.
    LastAck,
    /// Both finished; waiting for old segments to die.
    TimeWait,
    /// No connection.
    Closed,
}
choice!(State {
    Listen = 0,
    SynSent = 1,
    SynReceived = 2,
    Established = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    CloseWait = 6,
    Closing = 7,
    LastAck = 8,
    TimeWait = 9,
    Closed = 10,
});

impl State {
    /// Both SYNs were exchanged and acknowledged, and the connection still exists.
    pub const fn is_synchronized(self) -> bool {
        !matches!(
            self,
            Self::Listen | Self::SynSent | Self::SynReceived | Self::Closed
        )
    }

    /// The peer may still send data.
    pub const fn can_receive(self) -> bool {
        matches!(
            self,
            Self::SynReceived | Self::Established | Self::FinWait1 | Self::FinWait2
        )
    }

    /// Data or our FIN may be under way or waiting.
    pub const fn can_send(self) -> bool {
        matches!(
            self,
            Self::Established | Self::CloseWait | Self::FinWait1 | Self::Closing | Self::LastAck
        )
    }

    /// Our FIN was queued.
    pub const fn has_closed(self) -> bool {
        !matches!(
            self,
            Self::Listen | Self::SynSent | Self::SynReceived | Self::Established | Self::CloseWait
        )
    }

    /// After our FIN was queued (RFC 9293 §3.10.4).
    pub(super) const fn after_close(self) -> Self {
        match self {
            Self::Established | Self::SynReceived => Self::FinWait1,
            Self::CloseWait => Self::LastAck,
            Self::Listen | Self::SynSent => Self::Closed,
            other => other,
        }
    }

    /// After our FIN was acknowledged (RFC 9293 §3.10.7.4, fifth check).
    pub(super) const fn after_fin_acknowledged(self) -> Self {
        match self {
            Self::FinWait1 => Self::FinWait2,
            Self::Closing => Self::TimeWait,
            Self::LastAck => Self::Closed,
            other => other,
        }
    }

    /// After the peer's FIN (RFC 9293 §3.10.7.4, eighth check).
    pub(super) const fn after_fin_received(self) -> Self {
        match self {
            Self::SynReceived | Self::Established => Self::CloseWait,
            Self::FinWait1 => Self::Closing,
            Self::FinWait2 => Self::TimeWait,
            other => other,
        }
    }
}
