//! Two endpoints and a wire of 10 ms each way on which a test may interfere.

use std::collections::VecDeque;
use std::time::Duration;

use towpath_base::Instant;
use towpath_tcp::{Config, Ecn, Endpoint, Segment, SeqNum};

/// One-way delay of the wire.
pub(crate) const DELAY: Duration = Duration::from_millis(10);

/// A segment on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Flying {
    pub(crate) at: Instant,
    pub(crate) to_b: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) ecn: Ecn,
}

/// What a test does with a segment.
pub(crate) type Wire<'a> = &'a mut dyn FnMut(&mut Flying) -> bool;

/// Two endpoints.
pub(crate) struct Pair {
    pub(crate) a: Endpoint,
    pub(crate) b: Endpoint,
    pub(crate) now: Instant,
    pub(crate) wire: VecDeque<Flying>,
}

pub(crate) fn config() -> Config {
    Config {
        local_port: 1000,
        remote_port: 2000,
        ..Config::default()
    }
}

pub(crate) fn mirrored(config: &Config) -> Config {
    Config {
        local_port: config.remote_port,
        remote_port: config.local_port,
        ..config.clone()
    }
}

impl Pair {
    /// A connects, B listens.
    pub(crate) fn new(config: Config) -> Self {
        let remote = mirrored(&config);
        let now = Instant::from_secs(1);
        Self {
            a: Endpoint::connect(now, config, SeqNum(u32::MAX - 100)),
            b: Endpoint::listen(now, remote, SeqNum(5_000)),
            now,
            wire: VecDeque::new(),
        }
    }

    /// A connected pair.
    pub(crate) fn connected(config: Config) -> Self {
        let mut pair = Self::new(config);
        pair.run(Duration::from_millis(100));
        pair
    }

    fn send(&mut self, wire: Wire<'_>) {
        let mut buffer = [0; 2048];
        for to_b in [true, false] {
            let endpoint = if to_b { &mut self.a } else { &mut self.b };
            while let Some(outgoing) = endpoint.poll_transmit(self.now, &mut buffer) {
                let mut flying = Flying {
                    at: self.now + DELAY,
                    to_b,
                    bytes: buffer[..outgoing.len].to_vec(),
                    ecn: outgoing.ecn,
                };
                if wire(&mut flying) {
                    self.wire.push_back(flying);
                }
            }
        }
    }

    /// Runs for `time`; `wire` sees every segment as it is sent and says whether it goes on.
    pub(crate) fn run_with(&mut self, time: Duration, wire: Wire<'_>) {
        let end = self.now + time;
        self.send(wire);
        loop {
            let arrival = self.wire.iter().map(|flying| flying.at).min();
            let timers = [&self.a, &self.b]
                .into_iter()
                .filter_map(Endpoint::poll_timeout)
                .map(|(at, _)| at);
            let Some(next) = timers.chain(arrival).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.a.handle_timeout(self.now);
            self.b.handle_timeout(self.now);
            while let Some(index) = self.wire.iter().position(|flying| flying.at <= self.now) {
                let flying = self.wire.remove(index).unwrap();
                self.deliver(&flying);
            }
            self.send(wire);
        }
        self.now = end;
    }

    pub(crate) fn run(&mut self, time: Duration) {
        self.run_with(time, &mut |_| true);
    }

    fn deliver(&mut self, flying: &Flying) {
        let segment = Segment::parse(&flying.bytes).unwrap();
        let to = if flying.to_b { &mut self.b } else { &mut self.a };
        to.handle_input(self.now, &segment, flying.ecn);
    }

    /// Hands A a segment as if B had sent it.
    pub(crate) fn inject_to_a(
        &mut self,
        header: towpath_tcp::segment::Header,
        payload: &[u8],
    ) -> towpath_tcp::endpoint::Disposition {
        self.a
            .handle_input(self.now, &Segment { header, payload }, Ecn::NotEct)
    }

    /// What A would send next, taken off it.
    pub(crate) fn next_of_a(&mut self) -> Option<towpath_tcp::segment::Header> {
        let mut buffer = [0; 2048];
        let outgoing = self.a.poll_transmit(self.now, &mut buffer)?;
        Segment::parse(&buffer[..outgoing.len])
            .ok()
            .map(|segment| segment.header)
    }
}

/// Reads everything readable.
pub(crate) fn read(endpoint: &mut Endpoint, now: Instant) -> Vec<u8> {
    let (front, back) = endpoint.readable();
    let bytes = [front, back].concat();
    endpoint.consume(now, bytes.len());
    bytes
}

/// Some bytes that are not all the same.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 256) as u8).collect()
}
