//! What becomes of one frame: to the control thread, through the SAs, and out of the port it leaves by.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use towpath_afxdp::{Engine, Frame};
use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_common::abi::DivertMeta;
use towpath_common::counter::DivertKind;
use towpath_fabric::GatewaySa;
use towpath_kernel::{RawIpSender, SendError};

use super::link::{add_ethernet, arrival, decrement_ttl, egress, l3};
use super::{AHEAD, Counters, FromWorker, RELAY_BURST};
use crate::datapath::{Datapath, Departure, Disposition, Expected, Extra, SaKey, StoredStart, Suites};
use crate::relay::Egress;
use crate::windows::Windows;

/// What happens to one frame.
pub(super) struct Path<P: Suites, R> {
    pub(super) datapath: Datapath<P>,
    pub(super) rng: R,
    pub(super) kernel: RawIpSender,
    pub(super) control: mpsc::Sender<FromWorker>,
    pub(super) counters: Arc<Counters>,
    pub(super) windows: Option<Windows>,
    /// Keeping failed, and was logged.
    pub(super) unkept: bool,
}

impl<P: Suites, R: Rng> Path<P, R> {
    pub(super) fn handle(&mut self, now: Instant, engine: &mut Engine, mut frame: Frame) {
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
            DivertKind::Tcp => self.clear(now, &meta, &mut frame),
            DivertKind::NattKeepalive | DivertKind::Fragment | DivertKind::TooBig | DivertKind::Wrapped => {
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

    /// Fragments, errors, keep-alives, and what is inside other packets.
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
                DivertKind::Wrapped => datapath.process_wrapped(now, arrival, from_terminal, packet, rng),
                _ => datapath.process_keep_alive(packet.bytes()),
            })
        })
    }

    /// Sends what did not come as it goes.
    pub(super) fn send_extra(&mut self, engine: &mut Engine) {
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
    pub(super) fn look_ahead(&mut self, batch: &[Frame], ahead: &mut Vec<Option<Expected>>) {
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

    pub(super) fn expect(&mut self, expected: Option<&Option<Expected>>) {
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

    /// Takes the link header off and shows the packet to the relay.
    fn clear(
        &mut self,
        now: Instant,
        meta: &DivertMeta,
        frame: &mut Frame,
    ) -> Result<Disposition, DropReason> {
        let Self { datapath, .. } = self;
        let subscriber = SubscriberHandle(meta.handle.get());
        frame.edit(|packet| {
            packet.strip_front(l3(meta)).ok_or(DropReason::Truncated)?;
            let (arrival, from_terminal) = (arrival(meta), meta.from_terminal());
            Ok(datapath.process_clear(now, arrival, subscriber, from_terminal, packet.bytes_mut()))
        })
    }

    /// Sends what the relay has to say; true if there was no room for all of it.
    pub(super) fn relay(&mut self, now: Instant, engine: &mut Engine) -> bool {
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

    fn through_kernel(&mut self, packet: &[u8]) {
        self.keep();
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

    /// Keeps what stored SAs have used up, before the packets that used it leave.
    pub(super) fn keep(&mut self) {
        let Self { windows, unkept, .. } = self;
        self.datapath.keep(|number, used| {
            let Some(windows) = windows else { return };
            if let Err(error) = windows.keep(number, used)
                && !std::mem::replace(unkept, true)
            {
                tracing::error!(%error, "replay windows are not kept: after a restart packets may be accepted twice");
            }
        });
    }

    pub(super) fn install(&mut self, now: Instant, sa: &GatewaySa, start: Option<&StoredStart>) {
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

    pub(super) fn report(&mut self) {
        for notice in self.datapath.drain_notices() {
            // A full queue loses hints; limits are looked at again by whoever negotiates.
            let _ = self.control.try_send(FromWorker::Notice(notice));
        }
    }
}
