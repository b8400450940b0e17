//! The topology and its clock.
//!
//! ```text
//!   hosts A ──up──▶ [middle] ──up──▶ hosts B
//!           ◀─down─          ◀─down─
//! ```
//!
//! Without a middle there is one link in each direction.

use std::net::IpAddr;

use towpath_base::Instant;
use towpath_tcp::packet::TcpPacket;
use towpath_tcp::{Endpoint, PathMemory, Stats};

use crate::host::Socket;
use crate::link::Link;

/// Where a packet comes from or goes to, seen from the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Towards {
    /// The hosts on the left.
    A,
    /// The hosts on the right.
    B,
}

/// What sits between the two links.
pub trait Middle {
    /// A packet arrived from one side.
    fn input(&mut self, now: Instant, from: Towards, packet: &[u8]);
    /// The next packet to send.
    fn transmit(&mut self, now: Instant) -> Option<(Towards, Vec<u8>)>;
    /// When it wants to be woken.
    fn next_deadline(&self) -> Option<Instant>;
    /// Its deadline passed.
    fn timeout(&mut self, now: Instant);
    /// What is left of what all connections learnt of the path to `host`, when they are forgotten now.
    fn learnt(&mut self, _host: IpAddr) -> Option<PathMemory> {
        None
    }

    /// What its endpoint towards B counted of its first connection, if it has endpoints.
    fn sender(&self) -> Option<Stats> {
        None
    }
    /// Checked after every step.
    fn check(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Two groups of hosts and what connects them.
pub struct World {
    /// Sockets on the left.
    pub a: Vec<Socket>,
    /// Sockets on the right.
    pub b: Vec<Socket>,
    /// Links from the left to the middle, and from the middle to the right.
    pub up: Vec<Link>,
    /// Links from the right to the middle, and from the middle to the left.
    pub down: Vec<Link>,
    /// The relay, if any.
    pub middle: Option<Box<dyn Middle>>,
    /// Virtual time.
    pub now: Instant,
    /// Events handled.
    pub steps: u64,
    /// Snapshots and restores every endpoint each time this many steps have passed.
    pub restore_every: u64,
    buffer: Vec<u8>,
}

impl World {
    /// A world at time zero. `up` and `down` hold one link, or two if there is a middle.
    pub fn new(
        a: Vec<Socket>,
        b: Vec<Socket>,
        up: Vec<Link>,
        down: Vec<Link>,
        middle: Option<Box<dyn Middle>>,
    ) -> Self {
        Self {
            a,
            b,
            up,
            down,
            middle,
            now: Instant::ZERO,
            steps: 0,
            restore_every: u64::MAX,
            buffer: vec![0; 65_600],
        }
    }

    /// Lets everything happen that is due now.
    fn settle(&mut self) -> Result<(), String> {
        let now = self.now;
        for (index, link) in self.up.iter_mut().enumerate() {
            while let Some(packet) = link.pop(now) {
                if index == 0
                    && let Some(middle) = &mut self.middle
                {
                    middle.input(now, Towards::A, &packet);
                } else {
                    deliver(&mut self.b, now, &packet);
                }
            }
        }
        for (index, link) in self.down.iter_mut().enumerate() {
            while let Some(packet) = link.pop(now) {
                if index == 0
                    && let Some(middle) = &mut self.middle
                {
                    middle.input(now, Towards::B, &packet);
                } else {
                    deliver(&mut self.a, now, &packet);
                }
            }
        }
        for (sockets, links) in [(&mut self.a, &mut self.up), (&mut self.b, &mut self.down)] {
            for socket in sockets {
                socket.endpoint.handle_timeout(now);
                socket.run(now);
                while let Some(len) = socket.transmit(now, &mut self.buffer) {
                    links[0].push(now, self.buffer[..len].to_vec());
                }
                socket.run(now);
            }
        }
        if let Some(middle) = &mut self.middle {
            middle.timeout(now);
            while let Some((to, packet)) = middle.transmit(now) {
                match to {
                    Towards::B => self.up[1].push(now, packet),
                    Towards::A => self.down[1].push(now, packet),
                }
            }
            middle.check()?;
        }
        Ok(())
    }

    /// Every endpoint goes through its snapshot and must come back the same.
    fn restore(&mut self) -> Result<(), String> {
        let now = self.now;
        for socket in self.a.iter_mut().chain(&mut self.b) {
            let bytes = socket.endpoint.snapshot(now);
            let restored = Endpoint::restore(now, &bytes)
                .map_err(|error| format!("snapshot of {:?}: {error:?}", socket.endpoint.state()))?;
            if restored != socket.endpoint {
                return Err(format!("snapshot differs: {restored:?} {:?}", socket.endpoint));
            }
            socket.endpoint = restored;
        }
        Ok(())
    }

    fn next_event(&self) -> Option<Instant> {
        let links = self
            .up
            .iter()
            .chain(&self.down)
            .filter_map(|link| link.next_arrival());
        let sockets = self.a.iter().chain(&self.b).filter_map(Socket::next_deadline);
        let middle = self.middle.as_ref().and_then(|middle| middle.next_deadline());
        links.chain(sockets).chain(middle).min()
    }

    /// Runs until `until`, or until nothing can happen any more, or until `done` says so.
    pub fn run(&mut self, until: Instant, mut done: impl FnMut(&Self) -> bool) -> Result<(), String> {
        let mut same = 0_u32;
        loop {
            self.steps += 1;
            self.settle()?;
            if self.steps.is_multiple_of(self.restore_every) {
                self.restore()?;
            }
            if done(self) {
                return Ok(());
            }
            let Some(next) = self.next_event() else {
                return Ok(());
            };
            if next > until {
                self.now = until;
                return Ok(());
            }
            same = if next <= self.now { same + 1 } else { 0 };
            if same > 10_000 {
                return Err(format!("time stands still at {:?}", self.now));
            }
            self.now = self.now.max(next);
        }
    }
}

fn deliver(sockets: &mut [Socket], now: Instant, packet: &[u8]) {
    if let Ok(packet) = TcpPacket::parse(packet)
        && let Some(socket) = sockets.iter_mut().find(|socket| socket.matches(&packet))
    {
        socket.input(now, &packet);
    }
}
