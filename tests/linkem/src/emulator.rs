//! Joins two interfaces by two links, in real time.
//!
//! ```text
//!   port a ──▶ link a>b ──▶ port b
//!          ◀── link b>a ◀──
//! ```
//!
//! One thread, no locks. A frame's time on the link begins when the kernel got it, not when this thread woke up, so
//! that a busy machine makes it late by as much as it comes too late to send, and no more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use towpath_base::Instant;

use crate::model::{Link, LinkConfig};
use crate::port::{ETHERNET, Port, PortError};
use crate::report::{Direction, Report, Shell};
use crate::spec;

/// Frames that leave within so long of each other leave together: a fifth of the accuracy promised, and far fewer
/// wake-ups.
const GRAIN: Duration = Duration::from_micros(100);
/// How long a request to stop may go unnoticed.
const WATCH: Duration = Duration::from_millis(50);

/// What to emulate.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Names of the interfaces, in the calling thread's network namespace.
    pub ports: [String; 2],
    /// The links from the first to the second and back.
    pub links: [LinkConfig; 2],
    /// Seed of all randomness.
    pub seed: u64,
}

/// A frame on its way.
#[derive(Debug, Clone)]
struct Frame {
    bytes: Vec<u8>,
    arrived: Instant,
}

/// One direction.
#[derive(Debug)]
struct Way {
    link: Link<Frame>,
    due: VecDeque<Vec<u8>>,

    counts: Shell,
}

/// Two interfaces and what lies between.
#[derive(Debug)]
pub struct Emulator {
    setup: Setup,
    ports: [Port; 2],
    ways: [Way; 2],
    start: std::time::Instant,
}

impl Emulator {
    /// Opens the interfaces.
    pub fn open(setup: Setup) -> Result<Self, PortError> {
        let ports = [Port::open(&setup.ports[0])?, Port::open(&setup.ports[1])?];
        let way = |index: usize| Way {
            // Neighbouring seeds of this generator are unrelated streams.
            link: Link::new(
                setup.links[index].clone(),
                setup.seed.wrapping_mul(2) + index as u64,
            ),
            due: VecDeque::new(),

            counts: Shell::default(),
        };
        let ways = [way(0), way(1)];
        Ok(Self {
            setup,
            ports,
            ways,
            start: std::time::Instant::now(),
        })
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    /// Carries frames until `stop` is set, then reports.
    pub fn run(mut self, stop: &AtomicBool) -> Result<Report, PortError> {
        // The kernel rounds sleeps up by 50 µs unless told otherwise; refusal costs accuracy alone.
        let _ = nix::sys::prctl::set_timerslack(1_000);
        self.start = std::time::Instant::now();
        let cpu = cpu_time();
        while !stop.load(Ordering::Relaxed) {
            self.deliver()?;
            let ready = self.wait()?;
            for (index, ready) in ready.into_iter().enumerate() {
                if ready {
                    self.accept(index)?;
                }
            }
        }
        let seconds = self.start.elapsed().as_secs_f64();
        Ok(self.report(seconds, cpu_time().saturating_sub(cpu).as_secs_f64()))
    }

    /// Sends what has arrived at the far ends.
    fn deliver(&mut self) -> Result<(), PortError> {
        for index in 0..2 {
            let now = self.now();
            let (way, far) = (&mut self.ways[index], &mut self.ports[1 - index]);
            while let Some((wanted, frame)) = way.link.pop(now) {
                way.counts.late.add(now.saturating_since(wanted));
                way.counts.delay.add(now.saturating_since(frame.arrived));
                way.due.push_back(frame.bytes);
            }
            if !way.due.is_empty() {
                let refused = far.send(&mut way.due)?;
                way.counts.refused += refused;
            }
        }
        Ok(())
    }

    /// Sleeps until a frame comes or has to leave; says which ports have frames.
    fn wait(&self) -> Result<[bool; 2], PortError> {
        let now = self.now();
        let next = self.ways.iter().filter_map(|way| way.link.next_arrival()).min();
        let sleep = next.map_or(WATCH, |at| at.saturating_since(now).clamp(GRAIN, WATCH));
        let mut fds =
            [&self.ports[0], &self.ports[1]].map(|port| PollFd::new(port.as_fd(), PollFlags::POLLIN));
        match ppoll(&mut fds, Some(TimeSpec::from(sleep)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(PortError::Call("cannot wait", self.ports[0].name().into(), errno)),
        }
        Ok(fds.map(|fd| fd.any().unwrap_or(false)))
    }

    /// Puts the frames that wait at a port onto its link.
    fn accept(&mut self, index: usize) -> Result<(), PortError> {
        let start = self.start;
        let (port, way) = (&mut self.ports[index], &mut self.ways[index]);
        // Bounded, so that a flood on one side does not keep the other waiting.
        for _ in 0..8 {
            let now = Instant::ZERO + start.elapsed();
            let count = port.receive(|frame| {
                if frame.cut {
                    way.counts.cut += 1;
                    return;
                }
                let arrived = Instant::from_nanos(now.as_nanos().saturating_sub(frame.age.as_nanos() as u64));
                let bytes = frame.bytes.to_vec();
                let len = frame.bytes.len().saturating_sub(ETHERNET);
                way.link.push(arrived, len, Frame { bytes, arrived });
            })?;
            if count < crate::port::BATCH {
                break;
            }
        }
        way.counts.missed = port.missed();
        Ok(())
    }

    fn report(&self, seconds: f64, cpu_seconds: f64) -> Report {
        let [a, b] = &self.setup.ports;
        let direction = |index: usize, name: String| {
            let way = &self.ways[index];
            Direction::new(
                name,
                spec::describe(way.link.config()),
                way.link.report(),
                way.link.in_flight() as u64,
                &way.counts,
            )
        };
        Report {
            seed: self.setup.seed,
            seconds,
            cpu_seconds,
            directions: [direction(0, format!("{a}>{b}")), direction(1, format!("{b}>{a}"))],
        }
    }
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
