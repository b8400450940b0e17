//! What an SA whose keys outlive the process has used up: so that a restart neither accepts a packet twice nor starts
//! its limits over (RFC 4301 §4.4.2.1, RFC 4303 §3.4.3).

/// Of both directions of an SA pair at a gateway; first the one to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// Highest sequence numbers accepted, of the terminal and of the peer.
    pub received: [u64; 2],
    /// Packets that count for its limits.
    pub packets: [u64; 2],
    /// Bytes that count for its limits: whole plain IP packets.
    pub bytes: [u64; 2],
}
