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

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{mpsc, oneshot};
use towpath_afxdp::{Engine, Frame, PortId, Sockets, Statistics};
use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_common::abi::DivertMeta;
use towpath_common::counter::{DivertKind, FibStatus};
use towpath_common::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6, checksum_update16};
use towpath_fabric::GatewaySa;
use towpath_ipsec::shared::Wanted;
use towpath_ipsec::spd::Spd;
use towpath_kernel::{RawIpSender, SendError};
use towpath_tcp::relay::rules::Rules;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

pub use counters::Counters;

use crate::datapath::{
    Arrival, Datapath, Departure, Disposition, Expected, Extra, Notice, SaCounters, SaKey, StoredStart,
    Suites, Tap,
};
use crate::relay::{Egress, FlowView, RelayTotals};
use crate::stored::Installation;

/// Packets taken from one port at a time.
const BATCH: usize = 64;
/// Packets whose SAs are asked for ahead of the one that is worked on: what memory takes while a few packets are sealed.
const AHEAD: usize = 4;
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
            } = parts;
            let engine = sockets.start();
            let ports = engine.ports().map(|(id, _)| id).collect();
            let path = Path {
                datapath,
                rng,
                kernel,
                control,
                counters: shared_counters,
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
            self.engine.flush();
            if now >= next_tick {
                self.path.datapath.tick(now);
                self.path.send_extra(&mut self.engine);
                next_tick = now + TICK;
            }
            self.path.report();
            if !(running && self.obey(now)) {
                return;
            }
            if received == 0 {
                let sleep = if held_up {
                    BACK_OFF
                } else {
                    let due = self.path.datapath.poll_timeout();
                    let until = due.map_or(next_tick, |due| due.min(next_tick));
                    until.saturating_since((self.clock)())
                };
                if let Err(error) = self.engine.wait(Some(self.wake.as_fd()), sleep) {
                    tracing::error!(%error, "worker cannot wait for packets");
                    return;
                }
                // Clears the counter; nothing to read means a port woke us.
                let _ = self.wake.read();
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

/// What happens to one frame.
struct Path<P: Suites, R> {
    datapath: Datapath<P>,
    rng: R,
    kernel: RawIpSender,
    control: mpsc::Sender<FromWorker>,
    counters: Arc<Counters>,
}

impl<P: Suites, R: Rng> Path<P, R> {
    fn handle(&mut self, now: Instant, engine: &mut Engine, mut frame: Frame) {
        let Some((meta, kind)) = frame.meta().and_then(|meta| Some((meta, meta.divert_kind()?))) else {
            self.counters.dropped(DropReason::NotServed);
            return;
        };
        let outcome = match kind {
            DivertKind::IkeFromTerminal
            | DivertKind::IkeToTerminal
            | DivertKind::NattIke
            | DivertKind::ToGateway => {
                if let Err(reason) = self.to_control(&meta, &frame) {
                    self.counters.dropped(reason);
                }
                return;
            }
            DivertKind::Esp | DivertKind::NattEsp | DivertKind::Ah => self.protect(now, &meta, &mut frame),
            DivertKind::NattKeepalive | DivertKind::Fragment | DivertKind::TooBig => {
                self.beside(now, &meta, kind, &mut frame)
            }
        };
        match outcome {
            Ok(Disposition::Forward) => self.forward(engine, &meta, frame),
            Ok(Disposition::Taken) => {
                self.counters.relay_in.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Disposition::Queued) => {}
            Ok(Disposition::Drop(reason)) => self.counters.dropped(reason),
            Err(reason) => self.counters.dropped(reason),
        }
        self.send_extra(engine);
    }

    /// Fragments, errors and keep-alives.
    fn beside(
        &mut self,
        now: Instant,
        meta: &DivertMeta,
        kind: DivertKind,
        frame: &mut Frame,
    ) -> Result<Disposition, DropReason> {
        let Self { datapath, rng, .. } = self;
        let (arrival, flags) = (arrival(meta), meta.flags.get());
        let from_terminal = flags & towpath_common::abi::META_FROM_TERMINAL != 0;
        frame.edit(|packet| {
            packet.strip_front(l3(meta)).ok_or(DropReason::Truncated)?;
            Ok(match kind {
                DivertKind::Fragment => {
                    datapath.process_fragment(now, arrival, from_terminal, packet.bytes(), rng)
                }
                DivertKind::TooBig => datapath.process_too_big(now, packet.bytes_mut()),
                _ => datapath.process_keep_alive(packet.bytes()),
            })
        })
    }

    /// Sends what did not come as it goes.
    fn send_extra(&mut self, engine: &mut Engine) {
        while let Some(extra) = self.datapath.poll_extra() {
            match extra {
                Extra::Control(packet) => {
                    let subscriber = None;
                    let message = FromWorker::Packet { subscriber, packet };
                    match self.control.try_send(message) {
                        Ok(()) => {
                            self.counters.to_control.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(_) => self.counters.dropped(DropReason::ControlQueueFull),
                    }
                }
                Extra::Send { packet, egress } => {
                    let frame = engine.has_room(1).then(|| engine.allocate()).flatten();
                    let filled = frame.and_then(|mut frame| {
                        let fill = |room: &mut PacketBuf<'_>| {
                            room.grow_back(packet.len())?.copy_from_slice(&packet);
                            Some(())
                        };
                        frame.edit(fill).map(|()| frame)
                    });
                    match filled {
                        Some(frame) => self.send(engine, egress, frame),
                        None => self.through_kernel(&packet),
                    }
                }
            }
        }
        for _ in 0..self.datapath.take_timeouts() {
            self.counters.dropped(DropReason::ReassemblyTimeout);
        }
    }

    /// Finds the SAs a batch will need, and asks for the first ones.
    fn look_ahead(&self, batch: &[Frame], ahead: &mut Vec<Option<Expected>>) {
        ahead.clear();
        // A packet that comes alone has nothing to be worked on meanwhile.
        if batch.len() > 1 {
            ahead.extend(batch.iter().map(|frame| self.find(frame)));
        }
        for expected in ahead.iter().flatten() {
            self.datapath.announce(*expected);
        }
        for expected in ahead.iter().take(AHEAD) {
            self.expect(Some(expected));
        }
    }

    fn find(&self, frame: &Frame) -> Option<Expected> {
        let meta = frame.meta()?;
        let esp = matches!(meta.divert_kind()?, DivertKind::Esp | DivertKind::NattEsp);
        let from_access = meta.flags.get() & towpath_common::abi::META_ACCESS_PORT != 0;
        let packet = frame.bytes().get(l3(&meta)..).filter(|_| esp)?;
        self.datapath.find(from_access, packet)
    }

    fn expect(&self, expected: Option<&Option<Expected>>) {
        if let Some(Some(expected)) = expected {
            self.datapath.expect(*expected);
        }
    }

    /// Copies a control message out.
    fn to_control(&self, meta: &DivertMeta, frame: &Frame) -> Result<(), DropReason> {
        let packet = frame
            .bytes()
            .get(l3(meta)..)
            .ok_or(DropReason::Truncated)?
            .to_vec();
        let handle = meta.handle.get();
        let subscriber = (handle != 0).then_some(SubscriberHandle(handle));
        self.control
            .try_send(FromWorker::Packet { subscriber, packet })
            .map_err(|_| DropReason::ControlQueueFull)?;
        self.counters.to_control.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the link header off and passes the packet through the SAs.
    fn protect(
        &mut self,
        now: Instant,
        meta: &DivertMeta,
        frame: &mut Frame,
    ) -> Result<Disposition, DropReason> {
        let Self { datapath, rng, .. } = self;
        let arrival = arrival(meta);
        frame.edit(|packet| {
            packet.strip_front(l3(meta)).ok_or(DropReason::Truncated)?;
            Ok(datapath.process(now, arrival, packet, rng))
        })
    }

    /// Sends what the relay has to say; true if there was no room for all of it.
    fn relay(&mut self, now: Instant, engine: &mut Engine) -> bool {
        self.datapath.handle_timeout(now);
        for _ in 0..RELAY_BURST {
            // A segment the relay made cannot be put back: first the room, then the segment.
            if !engine.has_room(1) {
                return true;
            }
            let Some(mut frame) = engine.allocate() else {
                return true;
            };
            let Self { datapath, rng, .. } = self;
            match frame.edit(|packet| datapath.relay_transmit(now, packet, rng)) {
                None => return false,
                Some(Ok(Departure { egress })) => {
                    self.counters.relay_out.fetch_add(1, Ordering::Relaxed);
                    self.send(engine, egress, frame);
                }
                Some(Err(reason)) => self.counters.dropped(reason),
            }
        }
        true
    }

    /// `frame` starts at the IP header, and came from elsewhere.
    fn forward(&mut self, engine: &mut Engine, meta: &DivertMeta, mut frame: Frame) {
        match decrement_ttl(frame.bytes_mut()) {
            Ok(()) => self.send(engine, egress(meta), frame),
            Err(reason) => self.counters.dropped(reason),
        }
    }

    /// `frame` starts at the IP header.
    fn send(&mut self, engine: &mut Engine, egress: Option<Egress>, mut frame: Frame) {
        let known = egress.and_then(|egress| Some((egress, engine.port_on(egress.ifindex)?)));
        let Some((egress, port)) = known else {
            self.through_kernel(frame.bytes());
            return;
        };
        if frame.edit(|packet| add_ethernet(&egress, packet)).is_none() {
            self.counters.dropped(DropReason::NoHeadroom);
            return;
        }
        match engine.transmit(port, frame) {
            Ok(()) => {
                self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => self.counters.dropped(DropReason::TransmitQueueFull),
        }
    }

    fn through_kernel(&self, packet: &[u8]) {
        match self
            .kernel
            .send(packet)
            .or_else(|error| self.in_pieces(packet, error))
        {
            Ok(()) => {
                self.counters.through_kernel.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.counters.dropped(match error {
                SendError::TooBig => DropReason::TooBig,
                SendError::WouldBlock => DropReason::TransmitQueueFull,
                SendError::Malformed | SendError::NoRoute | SendError::Io(_) => DropReason::NoRoute,
            }),
        }
    }

    /// A packet larger than the next link takes that may be cut: in pieces every path takes (the kernel cuts none that
    /// brings its own header). One that may not be cut never comes here: the classifier leaves it to the kernel.
    fn in_pieces(&self, packet: &[u8], error: SendError) -> Result<(), SendError> {
        let mtus: &[u16] = match error {
            SendError::TooBig => &[1280, 576],
            _ => &[],
        };
        let mut last = error;
        for mtu in mtus {
            let Ok(mut fragments) = towpath_ipsec::fragment::fragments(packet, *mtu, 0) else {
                continue;
            };
            let mut buffer = [0; 1280];
            let mut sent = Ok(());
            while let Some(len) = fragments.write_next(&mut buffer).filter(|_| sent.is_ok()) {
                sent = self.kernel.send(buffer.get(..len).unwrap_or_default());
            }
            match sent {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn install(&mut self, now: Instant, sa: &GatewaySa, start: Option<&StoredStart>) {
        let outcome = match start {
            None => self.datapath.install(now, sa),
            Some(start) => self.datapath.install_stored(now, sa, start),
        };
        if let Err(error) = outcome {
            tracing::error!(?error, terminal = %sa.local, peer = %sa.remote, "SA not installed");
            let key = SaKey {
                local: sa.local,
                remote: sa.remote,
                spi_in: sa.spi_in,
                spi_out: sa.spi_out,
            };
            let _ = self.control.try_send(FromWorker::InstallFailed(key));
        }
    }

    fn report(&mut self) {
        for notice in self.datapath.drain_notices() {
            // A full queue loses hints; limits are looked at again by whoever negotiates.
            let _ = self.control.try_send(FromWorker::Notice(notice));
        }
    }
}

fn l3(meta: &DivertMeta) -> usize {
    usize::from(meta.l3_offset.get())
}

fn arrival(meta: &DivertMeta) -> Arrival {
    Arrival {
        from_access: meta.flags.get() & towpath_common::abi::META_ACCESS_PORT != 0,
        egress: egress(meta),
    }
}

/// Where routing sends a packet, if that is known.
fn egress(meta: &DivertMeta) -> Option<Egress> {
    (meta.fib_status() == FibStatus::Resolved).then(|| Egress {
        ifindex: meta.egress_ifindex.get(),
        dmac: meta.dmac,
        smac: meta.smac,
    })
}

/// One hop further (RFC 1812 §5.3.1, RFC 8200 §3). A packet that ends here is dropped: the kernel, which
/// would answer with ICMP, was not asked because the packet was ours to open.
pub(crate) fn decrement_ttl(packet: &mut [u8]) -> Result<(), DropReason> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let (header, _) = Ipv4::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
            if header.ttl <= 1 {
                return Err(DropReason::TtlExpired);
            }
            let old = u16::from_be_bytes([header.ttl, header.protocol]);
            header.ttl -= 1;
            let new = u16::from_be_bytes([header.ttl, header.protocol]);
            header
                .checksum
                .set(checksum_update16(header.checksum.get(), old, new));
            Ok(())
        }
        Some(6) => {
            let (header, _) = Ipv6::mut_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
            if header.hop_limit <= 1 {
                return Err(DropReason::TtlExpired);
            }
            header.hop_limit -= 1;
            Ok(())
        }
        _ => Err(DropReason::BadIpHeader),
    }
}

fn add_ethernet(egress: &Egress, packet: &mut PacketBuf<'_>) -> Option<()> {
    let ethertype = match packet.bytes().first()? >> 4 {
        4 => ETHERTYPE_IPV4,
        _ => ETHERTYPE_IPV6,
    };
    let header = Ethernet {
        destination: egress.dmac,
        source: egress.smac,
        ethertype: U16::new(ethertype),
    };
    packet
        .grow_front(size_of::<Ethernet>())?
        .copy_from_slice(header.as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_common::wire::checksum;

    #[test]
    fn a_hop_is_counted_and_the_checksum_stays_right() {
        let mut packet = [0u8; 20];
        packet[0] = 0x45;
        packet[8] = 2;
        packet[9] = 50;
        let sum = checksum(&packet).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        decrement_ttl(&mut packet).unwrap();
        assert_eq!((packet[8], checksum(&packet)), (1, 0));
        assert_eq!(decrement_ttl(&mut packet), Err(DropReason::TtlExpired));
        let mut packet = [0u8; 40];
        packet[0] = 0x60;
        packet[7] = 64;
        decrement_ttl(&mut packet).unwrap();
        assert_eq!(packet[7], 63);
        assert_eq!(decrement_ttl(&mut packet[..39]), Err(DropReason::Truncated));
        assert_eq!(decrement_ttl(&mut []), Err(DropReason::BadIpHeader));
    }
}
