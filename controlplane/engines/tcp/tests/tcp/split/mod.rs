//! The split relay between two hosts.
//!
//! ```text
//!   terminal 10.0.0.1 ──── relay ──── peer 192.0.2.9
//!                    10 ms       10 ms
//! ```

mod opening;
mod passing;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::common::{config, mirrored, pattern, read};
use towpath_base::Instant;
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::relay::split::{Handshake, Opening, SplitConfig, SplitRelay};
use towpath_tcp::relay::{FlowKey, Side, Verdict};
use towpath_tcp::segment::{Flags, Header};
use towpath_tcp::{Algorithm, Closed, Config, Ecn, Endpoint, IsnSecret, RestoreError, SeqNum, State};

const DELAY: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

fn terminal() -> IpAddr {
    [10, 0, 0, 1].into()
}

fn peer() -> IpAddr {
    [192, 0, 2, 9].into()
}

fn key() -> FlowKey {
    FlowKey {
        terminal: (terminal(), 1000),
        network: (peer(), 2000),
    }
}

/// A packet on one of the two wires: arrives at the relay or at a host.
struct Flying {
    at: Instant,
    side: Side,
    to_relay: bool,
    bytes: Vec<u8>,
}

struct Lab {
    relay: SplitRelay,
    terminal: Endpoint,
    /// `None`: nobody answers there.
    peer: Option<Endpoint>,
    now: Instant,
    wire: VecDeque<Flying>,
    /// Packets the relay said to forward untouched.
    passed: Vec<(Side, Vec<u8>)>,
    /// Longest packet that survives between relay and peer.
    mtu: usize,
    sent_to_peer: Vec<Vec<u8>>,
}

fn packet(from: Side, endpoint: &mut Endpoint, now: Instant) -> Option<Vec<u8>> {
    let (source, destination) = if from == Side::Terminal {
        (terminal(), peer())
    } else {
        (peer(), terminal())
    };
    let mut ip = IpHeader {
        source,
        destination,
        dscp: 46,
        ecn: Ecn::NotEct,
        ttl: 64,
    };
    let mut buffer = vec![0; 2048];
    let outgoing = endpoint.poll_transmit(now, &mut buffer[20..])?;
    ip.ecn = outgoing.ecn;
    let len = ip.finish(&mut buffer, outgoing.len)?;
    buffer.truncate(len);
    Some(buffer)
}

fn bare(from: Side, header: Header) -> Vec<u8> {
    let (source, destination) = if from == Side::Terminal {
        (terminal(), peer())
    } else {
        (peer(), terminal())
    };
    let ip = IpHeader {
        source,
        destination,
        dscp: 0,
        ecn: Ecn::NotEct,
        ttl: 64,
    };
    let mut buffer = vec![0; 200];
    let len = header.write(&mut buffer[20..]).unwrap();
    let len = ip.finish(&mut buffer, len).unwrap();
    buffer.truncate(len);
    buffer
}

impl Lab {
    fn new(relay: SplitConfig, host: Config) -> Self {
        let now = Instant::from_secs(1);
        Self {
            relay: SplitRelay::new(relay, IsnSecret([1, 2])),
            terminal: Endpoint::connect(now, host.clone(), SeqNum(9)),
            peer: Some(Endpoint::listen(now, mirrored(&host), SeqNum(70))),
            now,
            wire: VecDeque::new(),
            passed: Vec::new(),
            mtu: 1500,
            sent_to_peer: Vec::new(),
        }
    }

    fn open() -> Self {
        let mut lab = Self::new(SplitConfig::default(), config());
        lab.run(Duration::from_millis(200));
        assert_eq!(lab.states(), (State::Established, State::Established));
        lab
    }

    fn states(&self) -> (State, State) {
        (
            self.terminal.state(),
            self.peer.as_ref().map_or(State::Closed, Endpoint::state),
        )
    }

    fn peer(&mut self) -> &mut Endpoint {
        self.peer.as_mut().unwrap()
    }

    fn send(&mut self) {
        let at = self.now + DELAY;
        while let Some(bytes) = packet(Side::Terminal, &mut self.terminal, self.now) {
            self.wire.push_back(Flying {
                at,
                side: Side::Terminal,
                to_relay: true,
                bytes,
            });
        }
        while let Some(bytes) = self
            .peer
            .as_mut()
            .and_then(|peer| packet(Side::Network, peer, self.now))
        {
            self.wire.push_back(Flying {
                at,
                side: Side::Network,
                to_relay: true,
                bytes,
            });
        }
        let mut buffer = [0; 2048];
        while let Some(transmit) = self.relay.poll_transmit(self.now, &mut buffer) {
            let bytes = buffer[..transmit.len].to_vec();
            if transmit.to == Side::Network {
                self.sent_to_peer.push(bytes.clone());
            }
            if transmit.to == Side::Terminal || bytes.len() <= self.mtu {
                self.wire.push_back(Flying {
                    at,
                    side: transmit.to,
                    to_relay: false,
                    bytes,
                });
            }
        }
    }

    fn deliver(&mut self, flying: &Flying) {
        if flying.to_relay {
            match self.relay.handle_input(self.now, flying.side, &flying.bytes) {
                Verdict::Pass => self.passed.push((flying.side, flying.bytes.clone())),
                verdict => assert_eq!(verdict, Verdict::Consumed),
            }
            return;
        }
        let packet = TcpPacket::parse(&flying.bytes).unwrap();
        let (from, to) = if flying.side == Side::Terminal {
            (peer(), terminal())
        } else {
            (terminal(), peer())
        };
        assert_eq!(
            (packet.source, packet.destination),
            (from, to),
            "the relay shows itself"
        );
        if flying.side == Side::Terminal {
            self.terminal.handle_input(self.now, &packet.segment, packet.ecn);
        } else if let Some(peer) = &mut self.peer {
            peer.handle_input(self.now, &packet.segment, packet.ecn);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.send();
        loop {
            let wire = self.wire.iter().map(|flying| flying.at);
            let hosts = [Some(&self.terminal), self.peer.as_ref()].into_iter().flatten();
            let timers = hosts.filter_map(Endpoint::poll_timeout).map(|(at, _)| at);
            let next = wire
                .chain(timers)
                .chain(self.relay.poll_timeout().map(|(at, _)| at))
                .min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.terminal.handle_timeout(self.now);
            if let Some(peer) = &mut self.peer {
                peer.handle_timeout(self.now);
            }
            self.relay.handle_timeout(self.now);
            while let Some(index) = self.wire.iter().position(|flying| flying.at <= self.now) {
                let flying = self.wire.remove(index).unwrap();
                self.deliver(&flying);
            }
            self.send();
        }
        self.now = end;
    }

    /// Runs for `time` in small steps while the peer reads.
    fn run_reading(&mut self, time: Duration) -> Vec<u8> {
        let end = self.now + time;
        let mut got = Vec::new();
        while self.now < end {
            self.run(Duration::from_millis(10));
            let now = self.now;
            got.extend(read(self.peer(), now));
        }
        got
    }
}
