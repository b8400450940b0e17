//! A terminal, its network, and the link between them.

use towpath_base::Instant;
use towpath_base::testutil::SeededRng;
use towpath_terminal_core::{Command, Disposition, Event, Transmit};

use super::*;

/// Terminal and network with a link between them.
pub struct World {
    pub now: Instant,
    pub terminal: Box<Terminal>,
    pub net: Net,
    pub rng: SeededRng,
    /// Of 100 datagrams, in each direction: lost, duplicated.
    pub loss: u64,
    pub duplication: u64,
    pub reordering: bool,
    /// Of the terminal, to applications and as received by the peer.
    pub delivered: Vec<Vec<u8>>,
    pub received: Vec<Vec<u8>>,
    pub clear: Vec<Vec<u8>>,
    pub events: Vec<Event>,
    pub persisted: u64,
    pub persist: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            now: Instant::from_secs(1),
            terminal: terminal(0),
            net: Net::new(seed),
            rng: SeededRng::new(seed ^ 0xdead),
            loss: 0,
            duplication: 0,
            reordering: false,
            delivered: Vec::new(),
            received: Vec::new(),
            clear: Vec::new(),
            events: Vec::new(),
            persisted: 0,
            persist: true,
        }
    }

    pub fn application(&mut self, packet: &[u8]) -> Disposition {
        self.application_at(0, packet)
    }

    pub fn application_at(&mut self, level: u8, packet: &[u8]) -> Disposition {
        let mut buffer = Buffer::new(packet);
        let rng = &mut self.rng;
        let disposition = buffer.with(|p| self.terminal.handle_plain_at(self.now, level, p, rng));
        if disposition == Disposition::Transmit {
            self.peer_takes(buffer.packet().to_vec());
        }
        disposition
    }

    pub fn network(&mut self, packet: &[u8]) -> Disposition {
        let mut buffer = Buffer::new(packet);
        let disposition = buffer.with(|p| self.terminal.handle_network(self.now, p));
        if disposition == Disposition::Deliver {
            self.delivered.push(buffer.packet().to_vec());
        }
        disposition
    }

    fn peer_takes(&mut self, packet: Vec<u8>) {
        match self.net.open(&packet) {
            Ok(plain) => self.received.push(plain),
            Err(_) => self.clear.push(packet),
        }
    }

    fn copies(&mut self) -> u64 {
        if self.rng.below(100) < self.loss {
            0
        } else if self.rng.below(100) < self.duplication {
            2
        } else {
            1
        }
    }

    /// Exchanges messages until both sides are silent. Time stands still.
    pub fn settle(&mut self) {
        loop {
            while let Some(command) = self.terminal.poll_command() {
                match command {
                    Command::Persist(mark) if self.persist => {
                        self.persisted = mark;
                        self.terminal.persisted(mark);
                    }
                    Command::Persist(_) => break,
                    Command::Tell(event) => self.events.push(event),
                }
            }
            let mut quiet = true;
            let mut buffer = vec![0; 2048];
            while let Some(transmit) = self.terminal.poll_transmit(self.now, &mut buffer, &mut self.rng) {
                quiet = false;
                match transmit {
                    Transmit::Packet(packet) => {
                        let packet = packet.bytes().to_vec();
                        self.peer_takes(packet);
                    }
                    Transmit::Datagram {
                        source,
                        payload,
                        destination,
                    } => {
                        assert_eq!((source.port(), destination.port()), (500, 500));
                        let payload = payload.to_vec();
                        for _ in 0..self.copies() {
                            self.net.datagram(self.now, source, &payload);
                        }
                    }
                }
            }
            self.net.poll(self.now);
            while !self.net.to_terminal.is_empty() {
                quiet = false;
                let len = self.net.to_terminal.len() as u64;
                let at = if self.reordering { self.rng.below(len) } else { 0 };
                let payload = self.net.to_terminal.remove(at as usize).unwrap();
                for _ in 0..self.copies() {
                    self.terminal
                        .handle_datagram(self.now, "10.77.1.1".parse().unwrap(), &payload);
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Lets time pass until `until`, deadline by deadline.
    pub fn run_until(&mut self, until: Instant) {
        self.settle();
        for _ in 0..100_000 {
            let next = [
                self.terminal.poll_timeout().map(|(at, _)| at),
                self.net.poll_timeout(),
            ];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            self.terminal.handle_timeout(self.now);
            self.settle();
        }
        panic!(
            "deadlines that do not pass: {:?} at {:?}",
            self.terminal.poll_timeout(),
            self.now
        );
    }

    pub fn run_for(&mut self, seconds: u64) {
        self.run_until(self.now + std::time::Duration::from_secs(seconds));
    }
}
