//! A host: sockets with an application that writes a known stream, checks the one it reads, and may stop
//! reading, close or abort on the way.

use std::net::IpAddr;
use std::time::Duration;

use towpath_base::Instant;
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::segment::Header;
use towpath_tcp::{Closed, Command, Config, Ecn, Endpoint, SeqNum, State};

use crate::rng::mix;

/// The byte at `position` of the stream of `seed`.
pub const fn stream_byte(seed: u64, position: u64) -> u8 {
    (mix(seed ^ (position >> 3)) >> ((position & 7) * 8)) as u8
}

/// Fills `out` with the stream of `seed` from `position` on.
pub fn fill_stream(seed: u64, position: u64, out: &mut [u8]) {
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = stream_byte(seed, position + index as u64);
    }
}

/// What an application does with its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Seed of the stream it writes.
    pub seed: u64,
    /// Bytes it writes before it closes.
    pub send: u64,
    /// Most bytes written at once.
    pub chunk: usize,
    /// Closes once this many bytes were read, rather than when all was written.
    pub close_after_read: Option<u64>,
    /// Aborts once this many bytes were read.
    pub abort_after_read: Option<u64>,
    /// Once this many bytes were read, does not read for the duration.
    pub pause: Option<(u64, Duration)>,
    /// Announces urgent data once this many bytes were written.
    pub urgent_at: Option<u64>,
}

impl Script {
    /// Writes `send` bytes, then closes.
    pub const fn sending(seed: u64, send: u64) -> Self {
        Self {
            seed,
            send,
            chunk: 64 << 10,
            close_after_read: None,
            abort_after_read: None,
            pause: None,
            urgent_at: None,
        }
    }
}

/// How a stream went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A byte that is not the model's.
    WrongByte {
        /// Position in the stream.
        position: u64,
    },
    /// More bytes than were written.
    TooMany,
    /// End of stream before the last byte.
    EarlyEnd {
        /// Bytes read.
        read: u64,
        /// Bytes the other side meant to send.
        expected: u64,
    },
}

/// The receive window of a host that tunes it as Linux does: 64 KiB at first, then twice what its program read in
/// the best round trip so far.
#[derive(Debug)]
struct TunedWindow {
    rtt: Duration,
    since: Instant,
    /// Read by then.
    read: u64,
    best: u64,
}

impl TunedWindow {
    const FIRST: u64 = 64 << 10;

    /// The window from now on, if a round trip has passed.
    fn turn(&mut self, now: Instant, read: u64) -> Option<usize> {
        if now.saturating_since(self.since) < self.rtt {
            return None;
        }
        self.best = self.best.max(read - self.read);
        (self.since, self.read) = (now, read);
        Some((2 * self.best).max(Self::FIRST) as usize)
    }
}

/// A connection of a host and its application.
#[derive(Debug)]
pub struct Socket {
    /// Its end of the connection.
    pub endpoint: Endpoint,
    local: IpAddr,
    remote: IpAddr,
    script: Script,
    peer: (u64, u64),
    /// Bytes written.
    pub written: u64,
    /// Bytes read.
    pub read: u64,
    /// When the last byte was read.
    pub last_read: Instant,
    /// End of the peer's stream was read.
    pub saw_end: bool,
    /// The connection ended.
    pub ended: Option<Closed>,
    /// It was established.
    pub connected: Option<Instant>,
    /// Urgent offset seen.
    pub urgent_seen: Option<u64>,
    paused_until: Option<Instant>,
    pause_done: bool,
    closed: bool,
    /// First thing that went wrong.
    pub fault: Option<Fault>,
    refusal: Option<Header>,
    tuned: Option<TunedWindow>,
}

impl Socket {
    /// Lets the receive window grow as Linux' does over a path of `rtt`.
    pub fn tune_window(&mut self, rtt: Duration) {
        self.endpoint.set_receive_limit(TunedWindow::FIRST as usize);
        self.tuned = Some(TunedWindow {
            rtt,
            since: Instant::ZERO,
            read: 0,
            best: 0,
        });
    }

    /// A socket whose peer writes `peer_script`.
    pub fn new(
        endpoint: Endpoint,
        local: IpAddr,
        remote: IpAddr,
        script: Script,
        peer_script: &Script,
    ) -> Self {
        Self {
            endpoint,
            local,
            remote,
            script,
            peer: (peer_script.seed, peer_script.send),
            written: 0,
            read: 0,
            last_read: Instant::ZERO,
            saw_end: false,
            ended: None,
            connected: None,
            urgent_seen: None,
            paused_until: None,
            pause_done: false,
            closed: false,
            fault: None,
            refusal: None,
            tuned: None,
        }
    }

    /// An opened socket.
    pub fn connect(
        now: Instant,
        config: Config,
        isn: u32,
        local: IpAddr,
        remote: IpAddr,
        scripts: (Script, &Script),
    ) -> Self {
        Self::new(
            Endpoint::connect(now, config, SeqNum(isn)),
            local,
            remote,
            scripts.0,
            scripts.1,
        )
    }

    /// A listening socket.
    pub fn listen(
        now: Instant,
        config: Config,
        isn: u32,
        local: IpAddr,
        remote: IpAddr,
        scripts: (Script, &Script),
    ) -> Self {
        Self::new(
            Endpoint::listen(now, config, SeqNum(isn)),
            local,
            remote,
            scripts.0,
            scripts.1,
        )
    }

    /// True when both streams ended as they should.
    pub fn is_complete(&self) -> bool {
        self.saw_end && self.closed && self.written >= self.script.send && self.ended.is_some()
    }

    /// True when `packet` is for this socket.
    pub fn matches(&self, packet: &TcpPacket<'_>) -> bool {
        let config = self.endpoint.config();
        packet.source == self.remote
            && packet.destination == self.local
            && packet.segment.header.source_port == config.remote_port
            && packet.segment.header.destination_port == config.local_port
    }

    /// Takes a packet.
    pub fn input(&mut self, now: Instant, packet: &TcpPacket<'_>) {
        if self.endpoint.state() == State::Closed && self.endpoint.closed() != Some(Closed::Aborted) {
            // No connection here any more: the host answers as RFC 9293 §3.10.7.1 says.
            self.refusal = packet.segment.reset();
            return;
        }
        self.endpoint.handle_input(now, &packet.segment, packet.ecn);
    }

    /// The application's turn.
    pub fn run(&mut self, now: Instant) {
        while let Some(command) = self.endpoint.poll_command() {
            match command {
                Command::Connected => self.connected = Some(now),
                Command::Closed(closed) => self.ended = Some(closed),
                Command::Urgent => self.urgent_seen = self.endpoint.urgent_received(),
                Command::Readable | Command::Writable => {}
            }
        }
        self.read(now);
        self.write(now);
    }

    fn read(&mut self, now: Instant) {
        if let Some((at, duration)) = self.script.pause
            && !self.pause_done
            && self.read >= at
        {
            let until = *self.paused_until.get_or_insert(now + duration);
            if now < until {
                return;
            }
            self.pause_done = true;
        }
        let (front, back) = self.endpoint.readable();
        let mut count = 0_u64;
        for byte in front.iter().chain(back) {
            let position = self.read + count;
            if self.fault.is_none() {
                if position >= self.peer.1 {
                    self.fault = Some(Fault::TooMany);
                } else if *byte != stream_byte(self.peer.0, position) {
                    self.fault = Some(Fault::WrongByte { position });
                }
            }
            count += 1;
        }
        if count > 0 {
            self.read += count;
            self.last_read = now;
            if let Some(window) = self.tuned.as_mut().and_then(|tuned| tuned.turn(now, self.read)) {
                self.endpoint.set_receive_limit(window);
            }
            self.endpoint.consume(now, count as usize);
        }
        if !self.saw_end && self.endpoint.is_finished() {
            self.saw_end = true;
            if self.read < self.peer.1 && self.fault.is_none() && self.peer_was_to_finish() {
                self.fault = Some(Fault::EarlyEnd {
                    read: self.read,
                    expected: self.peer.1,
                });
            }
        }
    }

    /// The peer of an early closer may end before its stream does.
    const fn peer_was_to_finish(&self) -> bool {
        self.script.close_after_read.is_none()
    }

    fn write(&mut self, now: Instant) {
        if self.script.abort_after_read.is_some_and(|at| self.read >= at) && self.ended.is_none() {
            self.endpoint.abort();
            return;
        }
        if !matches!(self.endpoint.state(), State::Established | State::CloseWait) {
            return;
        }
        let mut chunk = vec![0; self.script.chunk];
        loop {
            let left = self.script.send - self.written;
            let count = self.endpoint.writable().min(self.script.chunk).min(left as usize);
            if count == 0 {
                break;
            }
            fill_stream(self.script.seed, self.written, &mut chunk[..count]);
            self.written += self.endpoint.write(&chunk[..count]) as u64;
            if self.script.urgent_at.is_some_and(|at| self.written > at) {
                self.script.urgent_at = None;
                self.endpoint.set_urgent(self.written + 1);
            }
        }
        let finished = match self.script.close_after_read {
            Some(at) => self.read >= at && self.written >= self.script.send,
            None => self.written >= self.script.send,
        };
        if finished && !self.closed {
            self.closed = true;
            self.endpoint.close(now);
        }
    }

    /// The next packet to send.
    pub fn transmit(&mut self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        let mut ip = IpHeader {
            source: self.local,
            destination: self.remote,
            dscp: 0,
            ecn: Ecn::NotEct,
            ttl: 64,
        };
        if let Some(header) = self.refusal.take() {
            let len = header.write(buffer.get_mut(ip.header_len()..)?)?;
            return ip.finish(buffer, len);
        }
        let outgoing = self
            .endpoint
            .poll_transmit(now, buffer.get_mut(ip.header_len()..)?)?;
        ip.ecn = outgoing.ecn;
        ip.finish(buffer, outgoing.len)
    }

    /// When it wants to be woken.
    pub fn next_deadline(&self) -> Option<Instant> {
        let timer = self.endpoint.poll_timeout().map(|(at, _)| at);
        let pause = self.paused_until.filter(|_| !self.pause_done);
        [timer, pause].into_iter().flatten().min()
    }
}
