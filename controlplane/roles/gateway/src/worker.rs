//! The worker: one thread that takes batches from the AF_XDP sockets and runs each packet to completion.
//!
//! ```text
//!   receive a batch ─► control message? ─► bounded queue ─► control thread
//!                  └─► ESP ─► datapath ─► egress known ─► transmit ring of that port
//!                                     └─► egress unknown ─► kernel (resolves the neighbour)
//! ```
//!
//! After each batch the TCP relay says what it has to say; its deadlines bound the sleep, so paced segments leave
//! on time without polling.
//!
//! Every SA has exactly one sending owner, hence one counter: this version runs one worker for all queues.
//! Nothing here allocates per ESP packet, locks, or logs.

mod counters;
mod link;
mod pace;
mod path;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{mpsc, oneshot};
use towpath_afxdp::{Engine, PortId, Sockets, Statistics, Woken};
use towpath_base::crypto::Rng;
use towpath_base::{Instant, SubscriberHandle};
use towpath_fabric::GatewaySa;
use towpath_ipsec::shared::Wanted;
use towpath_ipsec::spd::Spd;
use towpath_kernel::RawIpSender;
use towpath_tcp::relay::rules::Rules;

pub use counters::Counters;
pub(crate) use link::decrement_ttl;
use pace::{Pace, REST};
use path::Path;

use crate::datapath::{Datapath, Notice, SaCounters, SaKey, Suites, Tap};
use crate::relay::{FlowView, RelayTotals};
use crate::stored::Installation;
use crate::windows::Windows;

/// Packets taken from one port at a time.
const BATCH: usize = 64;
/// Packets whose SAs are asked for ahead of the one that is worked on: what memory takes while a packet is sealed.
const AHEAD: usize = 2;
/// Longest sleep: SAs are looked at for limits in time this often.
const TICK: Duration = Duration::from_secs(1);
/// Packets of the relay sent before new ones are received.
const RELAY_BURST: usize = 256;
/// Sleep while a transmit ring is full or no frame is free.
const BACK_OFF: Duration = Duration::from_micros(50);
/// Commands of the control thread that may wait.
const COMMANDS: usize = 4096;

/// What the control thread tells a worker.
enum Command {
    Install(Box<GatewaySa>),
    InstallStored(Box<Installation>),
    Grant(SaKey, bool, Wanted),
    Policies(Box<Spd>),
    Tap(Option<Tap>),
    Remove(SaKey),
    Rules(SubscriberHandle, Option<Arc<Rules>>),
    Snapshot(oneshot::Sender<Snapshot>),
    Flows(usize, oneshot::Sender<Flows>),
    Stop,
}

/// What a worker tells the control thread.
#[derive(Debug)]
pub enum FromWorker {
    /// A diverted packet that is for the control path; it starts at the IP header.
    Packet {
        /// What the classifier found.
        subscriber: Option<SubscriberHandle>,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Something the datapath noticed.
    Notice(Notice),
    /// An SA could not be installed.
    InstallFailed(SaKey),
}

/// A worker's SAs and sockets at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Every SA with its counters.
    pub sas: Vec<(SubscriberHandle, SaKey, SaCounters)>,
    /// Statistics of each socket, with its interface.
    pub sockets: Vec<(u32, Statistics)>,
}

/// A worker's relayed connections at one moment.
#[derive(Debug, Default)]
pub struct Flows {
    /// The connections, as many as were asked for.
    pub flows: Vec<FlowView>,
    /// Numbers of all of them.
    pub totals: RelayTotals,
}

/// The control thread's end of a worker. Dropping it stops the worker.
pub struct Worker {
    commands: SyncSender<Command>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    zero_copy: bool,
    thread: Option<JoinHandle<()>>,
}

/// What a worker is made of.
pub struct Parts<P: Suites, R> {
    /// Opened sockets of all ports.
    pub sockets: Sockets,
    /// The SAs.
    pub datapath: Datapath<P>,
    /// Source of IVs.
    pub rng: R,
    /// Packets whose egress is not known leave here.
    pub kernel: RawIpSender,
    /// Where control messages go; bounded.
    pub control: mpsc::Sender<FromWorker>,
    /// The clock of the whole process.
    pub clock: fn() -> Instant,
    /// Where it keeps what stored SAs have used up.
    pub windows: Option<Windows>,
}

impl Worker {
    /// Starts the thread.
    pub fn spawn<P, R>(parts: Parts<P, R>) -> io::Result<Self>
    where
        P: Suites + Send + 'static,
        P::Transform: Send,
        P::Icv: Send,
        P::Decryptor: Send,
        R: Rng + Send + 'static,
    {
        let zero_copy = parts.sockets.is_zero_copy();
        let (commands, inbox) = sync_channel(COMMANDS);
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
        )?);
        let counters = Arc::new(Counters::default());
        let (shared_wake, shared_counters) = (Arc::clone(&wake), Arc::clone(&counters));
        let thread = std::thread::Builder::new().name("worker".into()).spawn(move || {
            let Parts {
                sockets,
                datapath,
                rng,
                kernel,
                control,
                clock,
                windows,
            } = parts;
            let engine = sockets.start();
            let ports = engine.ports().map(|(id, _)| id).collect();
            let path = Path {
                datapath,
                rng,
                kernel,
                control,
                counters: shared_counters,
                windows,
                unkept: false,
            };
            Loop {
                engine,
                ports,
                path,
                inbox,
                wake: shared_wake,
                clock,
            }
            .run();
        })?;
        Ok(Self {
            commands,
            wake,
            counters,
            zero_copy,
            thread: Some(thread),
        })
    }

    /// Gives it an SA.
    pub fn install(&self, sa: Box<GatewaySa>) {
        self.command(Command::Install(sa));
    }

    /// Gives it an SA whose keys outlive the process.
    pub fn install_stored(&self, installation: Box<Installation>) {
        self.command(Command::InstallStored(installation));
    }

    /// What a sender [asked](Notice::Reserve) to have stored is stored.
    pub fn grant(&self, key: SaKey, to_peer: bool, wanted: Wanted) {
        self.command(Command::Grant(key, to_peer, wanted));
    }

    /// Replaces its policies.
    pub fn set_policies(&self, policies: Box<Spd>) {
        self.command(Command::Policies(policies));
    }

    /// Begins a capture, or ends the one there is.
    pub fn set_tap(&self, tap: Option<Tap>) {
        self.command(Command::Tap(tap));
    }

    /// Takes an SA away.
    pub fn remove(&self, key: SaKey) {
        self.command(Command::Remove(key));
    }

    /// Gives a subscriber relay rules of its own, or takes them away.
    pub fn set_rules(&self, subscriber: SubscriberHandle, rules: Option<Arc<Rules>>) {
        self.command(Command::Rules(subscriber, rules));
    }

    /// Asks for at most `limit` relayed connections; nothing comes if it has stopped.
    pub fn flows(&self, limit: usize) -> oneshot::Receiver<Flows> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Flows(limit, sender));
        receiver
    }

    /// Asks for its SAs and socket statistics; nothing comes if it has stopped.
    pub fn snapshot(&self) -> oneshot::Receiver<Snapshot> {
        let (sender, receiver) = oneshot::channel();
        self.command(Command::Snapshot(sender));
        receiver
    }

    /// Whether frames reach the devices without a copy.
    pub const fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn command(&self, command: Command) {
        // An error says the worker has stopped: nothing is left to be told.
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Loop<P: Suites, R> {
    engine: Engine,
    ports: Vec<PortId>,
    path: Path<P, R>,
    inbox: Receiver<Command>,
    wake: Arc<EventFd>,
    clock: fn() -> Instant,
}

impl<P: Suites, R: Rng> Loop<P, R> {
    fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut ahead = Vec::with_capacity(BATCH);
        let mut next_tick = (self.clock)() + TICK;
        let mut pace = Pace::new((self.clock)());
        loop {
            let now = (self.clock)();
            let mut received = 0;
            let mut running = true;
            for index in 0..self.ports.len() {
                let Some(&port) = self.ports.get(index) else {
                    continue;
                };
                let got = self.engine.receive(port, &mut batch);
                received += got;
                // A packet that is here may need an SA that was sent here before the packet was sent there.
                if got > 0 {
                    running &= self.obey(now);
                }
                self.path.look_ahead(&batch, &mut ahead);
                for (index, frame) in batch.drain(..).enumerate() {
                    self.path.expect(ahead.get(index + AHEAD));
                    self.path.handle(now, &mut self.engine, frame);
                }
            }
            let held_up = self.path.relay((self.clock)(), &mut self.engine);
            self.path.send_extra(&mut self.engine);
            self.path.keep();
            self.engine.flush();
            if now >= next_tick {
                self.path.datapath.tick(now);
                self.path.send_extra(&mut self.engine);
                self.engine.judge();
                next_tick = now + TICK;
            }
            self.path.report();
            if !(running && self.obey(now)) {
                return;
            }
            let rest = pace.rest_after(now, received);
            if received == 0 || rest {
                let sleep = if held_up {
                    BACK_OFF
                } else {
                    let due = self.path.datapath.poll_timeout();
                    let until = due.map_or(next_tick, |due| due.min(next_tick));
                    until.saturating_since((self.clock)())
                };
                if rest {
                    std::thread::sleep(sleep.min(REST));
                    continue;
                }
                match self.engine.wait(Some(self.wake.as_fd()), sleep) {
                    Ok(Woken { by_wake: false, .. }) => {}
                    Ok(Woken { by_wake: true, .. }) => {
                        // Clears the counter.
                        let _ = self.wake.read();
                    }
                    Err(error) => {
                        tracing::error!(%error, "worker cannot wait for packets");
                        return;
                    }
                }
            }
        }
    }

    /// Carries out what the control thread wants; false to stop.
    fn obey(&mut self, now: Instant) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Install(sa)) => self.path.install(now, &sa, None),
                Ok(Command::InstallStored(stored)) => {
                    self.path.install(now, &stored.sa, Some(&stored.start));
                }
                Ok(Command::Policies(policies)) => self.path.datapath.set_policies(policies),
                Ok(Command::Tap(tap)) => self.path.datapath.set_tap(tap),
                Ok(Command::Grant(key, to_peer, wanted)) => {
                    self.path.datapath.grant(&key, to_peer, &wanted);
                }
                Ok(Command::Remove(key)) => {
                    self.path.datapath.remove(&key);
                }
                Ok(Command::Rules(subscriber, rules)) => self.path.datapath.set_rules(subscriber, rules),
                Ok(Command::Flows(limit, answer)) => {
                    let flows = self.path.datapath.flows(now, limit);
                    let totals = self.path.datapath.relay_totals();
                    // An error says that nobody waits any more.
                    let _ = answer.send(Flows { flows, totals });
                }
                Ok(Command::Snapshot(answer)) => {
                    let sas = self.path.datapath.counters().collect();
                    let sockets = self
                        .engine
                        .ports()
                        .map(|(id, port)| (port.ifindex, self.engine.statistics(id)))
                        .collect();
                    // An error says that nobody waits any more.
                    let _ = answer.send(Snapshot { sas, sockets });
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }
}
