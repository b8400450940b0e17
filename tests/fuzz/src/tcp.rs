//! TCP.

use towpath_base::Instant;
use towpath_tcp::{Config, Ecn, Endpoint, Outgoing, Segment, SeqNum};

/// Bytes of the segment that was written.
pub fn segment_len(outgoing: &Outgoing) -> usize {
    outgoing.len
}

/// Two ends of a connection.
pub struct Pair {
    /// The end that opened.
    pub client: Endpoint,
    server: Endpoint,
}

impl Pair {
    /// A connection after its handshake.
    pub fn new(now: Instant) -> Self {
        let mut pair = Self {
            client: Endpoint::connect(now, Config::default(), SeqNum(1000)),
            server: Endpoint::listen(now, Config::default(), SeqNum(5000)),
        };
        pair.exchange(now, 0);
        pair
    }

    /// Delivers what both have to say until they rest; segments whose bit of `lost` is set are not delivered.
    pub fn exchange(&mut self, now: Instant, mut lost: u64) {
        let mut out = [0; 70_000];
        for _ in 0..8 {
            let mut quiet = true;
            for to_server in [true, false] {
                let (from, to) = if to_server {
                    (&mut self.client, &mut self.server)
                } else {
                    (&mut self.server, &mut self.client)
                };
                for _ in 0..64 {
                    let Some(outgoing) = from.poll_transmit(now, &mut out) else {
                        break;
                    };
                    quiet = false;
                    let gone = lost & 1 == 1;
                    lost >>= 1;
                    if !gone && let Ok(segment) = Segment::parse(&out[..segment_len(&outgoing)]) {
                        let _ = to.handle_input(now, &segment, Ecn::NotEct);
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }
}
