//! Connections whose relay died: both ends live, and count differently.
//!
//! The two connections of a split one have sequence numbers of their own. When the process that relayed them is gone,
//! their segments pass untouched like those of any connection not known here, and make no sense to the other end:
//! each answers the other with acknowledgments for ever. Such a pair is told by its numbers, which are further
//! apart than any window, and both ends are reset, so that they know at once.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use towpath_base::Instant;
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::relay::{FlowKey, Side};
use towpath_tcp::segment::{Flags, Header};
use towpath_tcp::{Ecn, SeqNum};

/// Connections watched at a time.
const MAX_WATCHED: usize = 4_096;
/// Time between two resets of one connection.
const AGAIN: Duration = Duration::from_millis(200);
/// Resets of one connection before it is left alone.
const MAX_RESETS: u8 = 10;
/// Resets that may wait.
const MAX_WAITING: usize = 256;
/// Further apart than this, the two ends do not speak of the same bytes: windows are 2^30 at most, and none in use
/// comes near 2^28.
const FAR_APART: u32 = 1 << 28;

/// What an end said last: behind its own bytes, and what it expects next.
#[derive(Debug, Clone, Copy)]
struct Said {
    next: SeqNum,
    expected: SeqNum,
}

/// A connection that passes.
#[derive(Debug)]
struct Watched {
    terminal: Option<Said>,
    network: Option<Said>,
    /// Times its ends were reset, and when last.
    resets: u8,
    reset_at: Instant,
}

impl Watched {
    const NEW: Self = Self {
        terminal: None,
        network: None,
        resets: 0,
        reset_at: Instant::ZERO,
    };

    const fn end(&mut self, side: Side) -> &mut Option<Said> {
        match side {
            Side::Terminal => &mut self.terminal,
            Side::Network => &mut self.network,
        }
    }
}

/// A reset that waits to be sent.
#[derive(Debug)]
pub(super) struct Reset {
    pub(super) pair: usize,
    pub(super) to: Side,
    pub(super) packet: Vec<u8>,
}

/// Connections that pass although they would be split, had their beginning been seen.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    watched: HashMap<FlowKey, Watched>,
    waiting: VecDeque<Reset>,
    resets: u64,
}

impl Orphans {
    /// A segment of an unknown connection of `pair` passes.
    pub(super) fn note(&mut self, now: Instant, pair: usize, from: Side, packet: &TcpPacket<'_>) {
        let header = &packet.segment.header;
        let key = FlowKey::of(from, packet);
        if header.flags.has(Flags::RST) || header.flags.has(Flags::SYN) {
            self.watched.remove(&key);
            return;
        }
        if !header.flags.has(Flags::ACK) {
            return;
        }
        if self.watched.len() >= MAX_WATCHED && !self.watched.contains_key(&key) {
            self.watched.clear();
        }
        let said = Said {
            next: header.seq + packet.segment.sequence_len() as u32,
            expected: header.ack,
        };
        let watched = self.watched.entry(key).or_insert(Watched::NEW);
        *watched.end(from) = Some(said);
        if watched.resets > 0 {
            // What was on its way moved the number: the end asks, and is told again once the way is clear.
            if now.saturating_since(watched.reset_at) < AGAIN {
                return;
            }
            watched.reset_at = now;
            watched.resets += 1;
            if watched.resets > MAX_RESETS {
                self.watched.remove(&key);
            }
            return self.queue(pair, &key, from, said);
        }
        let (Some(terminal), Some(network)) = (watched.terminal, watched.network) else {
            return;
        };
        if !(apart(terminal.expected, network.next) || apart(network.expected, terminal.next)) {
            return;
        }
        watched.resets = 1;
        watched.reset_at = now;
        self.resets += 1;
        self.queue(pair, &key, Side::Terminal, terminal);
        self.queue(pair, &key, Side::Network, network);
    }

    fn queue(&mut self, pair: usize, key: &FlowKey, to: Side, said: Said) {
        if self.waiting.len() < MAX_WAITING
            && let Some(packet) = reset(key, to, said)
        {
            self.waiting.push_back(Reset { pair, to, packet });
        }
    }

    /// The next reset to send.
    pub(super) fn take(&mut self) -> Option<Reset> {
        self.waiting.pop_front()
    }

    /// Connections ended so far.
    pub(super) const fn resets(&self) -> u64 {
        self.resets
    }
}

fn apart(a: SeqNum, b: SeqNum) -> bool {
    let distance = a.0.wrapping_sub(b.0);
    distance.min(distance.wrapping_neg()) > FAR_APART
}

/// A reset the end on side `to` believes: its number is exactly the one expected there (RFC 5961 §3.2).
fn reset(key: &FlowKey, to: Side, said: Said) -> Option<Vec<u8>> {
    let (source, source_port) = key.host(to.opposite());
    let (destination, destination_port) = key.host(to);
    let header = Header {
        source_port,
        destination_port,
        seq: said.expected,
        ack: said.next,
        flags: Flags::RST.with(Flags::ACK),
        ..Header::default()
    };
    let ip = IpHeader {
        source,
        destination,
        dscp: 0,
        ecn: Ecn::NotEct,
        ttl: 64,
    };
    let mut packet = vec![0; 80];
    let len = header.write(packet.get_mut(ip.header_len()..)?)?;
    let len = ip.finish(&mut packet, len)?;
    packet.truncate(len);
    Some(packet)
}
