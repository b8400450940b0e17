//! TCP.

use towpath_base::Instant;
use towpath_tcp::packet::IpHeader;
use towpath_tcp::segment::{Flags, Header, SackBlocks};
use towpath_tcp::{Config, Ecn, Endpoint, Outgoing, Segment, SeqNum};

/// Bytes of the segment that was written.
pub fn segment_len(outgoing: &Outgoing) -> usize {
    outgoing.len
}

/// A packet with data of that number from the network to the terminal.
pub fn data(seq: u32, len: usize) -> Vec<u8> {
    let header = Header {
        source_port: 80,
        destination_port: 5000,
        seq: SeqNum(seq),
        flags: Flags::ACK,
        ..Header::default()
    };
    packet(header, [[10, 0, 0, 2], [10, 0, 0, 1]], len)
}

/// The terminal's answer, with a SACK block of that beginning and length.
pub fn acknowledgment(ack: u32, sack: Option<(u32, u32)>) -> Vec<u8> {
    let mut header = Header {
        source_port: 5000,
        destination_port: 80,
        ack: SeqNum(ack),
        flags: Flags::ACK,
        ..Header::default()
    };
    if let Some((left, len)) = sack {
        let mut blocks = SackBlocks::default();
        blocks.push(SeqNum(left), SeqNum(left.wrapping_add(len)));
        header.options.sack = blocks;
    }
    packet(header, [[10, 0, 0, 1], [10, 0, 0, 2]], 0)
}

fn packet(header: Header, [source, destination]: [[u8; 4]; 2], len: usize) -> Vec<u8> {
    let ip = IpHeader {
        source: source.into(),
        destination: destination.into(),
        dscp: 0,
        ecn: Ecn::NotEct,
        ttl: 64,
    };
    let mut bytes = vec![7; 200 + len];
    let header_len = header.write(&mut bytes[20..]).expect("there is room");
    let total = ip.finish(&mut bytes, header_len + len).expect("there is room");
    bytes.truncate(total);
    bytes
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
