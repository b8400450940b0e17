//! What a worker does with its sockets: receive, change, transmit, wait.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use crate::config::{Error, PortQueue};
use crate::lend::Lend;
use crate::ring::Descriptor;
use crate::sockets::{Opened, Sockets};
use crate::syscall;
use crate::umem::{Frame, HEADROOM, Umem};

/// Calls to make the kernel send before the rest is left for the next [`Engine::flush`].
const MAX_KICKS: u32 = 64;

/// A port of this engine: its place in the list the sockets were opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub usize);

/// What happened on a port. The first three are ours, the others the kernel's (`XDP_STATISTICS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Packets handed out.
    pub received: u64,
    /// Packets taken for transmission.
    pub transmitted: u64,
    /// Packets refused because the transmit ring was full.
    pub transmit_full: u64,
    /// Dropped by the kernel for another reason than those below.
    pub rx_dropped: u64,
    /// Dropped because the receive ring was full: the worker did not keep up.
    pub rx_ring_full: u64,
    /// Dropped because no frame was in the fill ring.
    pub rx_fill_empty: u64,
    /// Descriptors of the fill ring the kernel refused.
    pub rx_invalid: u64,
    /// Descriptors of the transmit ring the kernel refused.
    pub tx_invalid: u64,
}

/// Where the frames are. The sum of the parts is `total`, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Frames of the area.
    pub total: u32,
    /// On the free list.
    pub free: u32,
    /// Held as a [`Frame`].
    pub held: u32,
    /// Given to the kernel to receive into, and not handed out yet.
    pub receiving: u32,
    /// Given to the kernel to send, and not completed yet.
    pub transmitting: u32,
}

/// Why [`Engine::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// A port has packets, or the descriptor is readable; else the time was up.
    pub ready: bool,
    /// The descriptor is readable. Not looked at if packets were there without waiting.
    pub by_wake: bool,
}

#[derive(Debug)]
struct Port {
    opened: Opened,
    receiving: u32,
    transmitting: u32,
    unsent: bool,
    lend: Lend,
    statistics: Statistics,
}

/// The sockets of one worker at work. Stays on its thread.
#[derive(Debug)]
pub struct Engine {
    umem: Rc<Umem>,
    ports: Vec<Port>,
    waiting: Vec<libc::pollfd>,
    zero_copy: bool,
}

impl Engine {
    pub(crate) fn new(sockets: Sockets) -> Self {
        let umem = Umem::new(sockets.area, sockets.unused);
        let zero_copy = sockets.zero_copy;
        let ports: Vec<_> = sockets
            .ports
            .into_iter()
            .map(|opened| Port {
                receiving: opened.receiving,
                opened,
                transmitting: 0,
                unsent: false,
                lend: Lend::new(zero_copy),
                statistics: Statistics::default(),
            })
            .collect();
        let waiting = Vec::with_capacity(ports.len() + 1);
        for port in &ports {
            port.wake_receive();
        }
        Self {
            umem,
            ports,
            waiting,
            zero_copy,
        }
    }

    /// The ports, in the order the sockets were opened.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, PortQueue)> {
        self.ports
            .iter()
            .enumerate()
            .map(|(index, port)| (PortId(index), port.opened.port))
    }

    /// The port on the interface; with several queues, the first.
    pub fn port_on(&self, ifindex: u32) -> Option<PortId> {
        self.ports
            .iter()
            .position(|port| port.opened.port.ifindex == ifindex)
            .map(PortId)
    }

    /// True if frames reach the devices without a copy.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Appends packets that arrived on a port to `batch`, as far as its capacity reaches, and returns how many.
    /// Also takes completed frames back and gives the kernel new ones.
    pub fn receive(&mut self, port: PortId, batch: &mut Vec<Frame>) -> usize {
        let Some(port) = self.ports.get_mut(port.0) else {
            return 0;
        };
        port.reap(&self.umem);
        let mut count = 0;
        while batch.len() < batch.capacity() {
            let Some(descriptor) = port.opened.rings.receive.take() else {
                break;
            };
            port.receiving = port.receiving.saturating_sub(1);
            if let Some((index, start)) = self.umem.area().locate(descriptor.address) {
                let len = descriptor.len.min(self.umem.area().frame_size() - start);
                batch.push(self.umem.frame(index, start, len, true));
                count += 1;
            }
        }
        if count > 0 {
            port.opened.rings.receive.release();
            port.statistics.received += count as u64;
        }
        port.refill(&self.umem);
        count
    }

    /// A free frame for a packet made here; it is empty and starts behind the usual headroom.
    pub fn allocate(&mut self) -> Option<Frame> {
        if self.umem.free() == 0 {
            for port in &mut self.ports {
                port.reap(&self.umem);
            }
        }
        self.umem
            .take()
            .map(|index| self.umem.frame(index, HEADROOM, 0, false))
    }

    /// Queues a packet for a port; [`Engine::flush`] sends it.
    ///
    /// # Errors
    /// Gives the frame back if there is no such port, the ring is full, or the frame is another engine's.
    pub fn transmit(&mut self, port: PortId, frame: Frame) -> Result<(), Frame> {
        let Some(port) = self
            .ports
            .get_mut(port.0)
            .filter(|_| frame.belongs_to(&self.umem))
        else {
            return Err(frame);
        };
        if port.opened.rings.transmit.free() == 0 {
            port.statistics.transmit_full += 1;
            return Err(frame);
        }
        let (address, len) = frame.into_descriptor();
        port.opened.rings.transmit.put(Descriptor {
            address,
            len,
            options: 0,
        });
        port.transmitting += 1;
        port.unsent = true;
        port.statistics.transmitted += 1;
        Ok(())
    }

    /// Whether every port can take `packets` more for transmission: ask before making a packet that cannot be
    /// made again.
    pub fn has_room(&mut self, packets: u32) -> bool {
        self.ports
            .iter_mut()
            .all(|port| port.opened.rings.transmit.free() >= packets)
    }

    /// Sends what was queued on all ports. What the kernel does not take now is tried again by the next call.
    pub fn flush(&mut self) {
        for port in self.ports.iter_mut().filter(|port| port.unsent) {
            port.flush();
        }
    }

    /// Waits until a port has packets, `wake` is readable, or the time is up.
    pub fn wait(&mut self, wake: Option<BorrowedFd<'_>>, timeout: Duration) -> Result<Woken, Error> {
        if self
            .ports
            .iter()
            .any(|port| !port.opened.rings.receive.is_empty())
        {
            return Ok(Woken {
                ready: true,
                by_wake: false,
            });
        }
        self.waiting.clear();
        let sockets = self.ports.iter().filter_map(|port| port.opened.socket.as_ref());
        let descriptors = sockets
            .map(|socket| socket.as_raw_fd())
            .chain(wake.map(|fd| fd.as_raw_fd()));
        for fd in descriptors {
            self.waiting.push(libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
        }
        let ready = syscall::poll(&mut self.waiting, timeout).map_err(|error| Error::new("wait", error))?;
        let last = self.waiting.last().filter(|_| ready && wake.is_some());
        Ok(Woken {
            ready,
            by_wake: last.is_some_and(|last| last.revents != 0),
        })
    }

    /// Looks whether the kernel has enough frames to receive into: to be called about once a second.
    pub fn judge(&mut self) {
        for port in &mut self.ports {
            let statistics = port.statistics();
            let dropped = statistics.rx_fill_empty + statistics.rx_ring_full;
            port.lend.judge(dropped, port.opened.rings.fill.size());
        }
    }

    /// What happened on a port since the start.
    pub fn statistics(&self, port: PortId) -> Statistics {
        self.ports.get(port.0).map(Port::statistics).unwrap_or_default()
    }

    /// Where the frames are now.
    pub fn account(&self) -> Account {
        Account {
            total: self.umem.area().frames(),
            free: self.umem.free(),
            held: self.umem.held(),
            receiving: self.ports.iter().map(|port| port.receiving).sum(),
            transmitting: self.ports.iter().map(|port| port.transmitting).sum(),
        }
    }
}

impl Port {
    /// Takes completed frames back.
    fn reap(&mut self, umem: &Umem) {
        let mut any = false;
        while let Some(address) = self.opened.rings.completion.take() {
            any = true;
            self.transmitting = self.transmitting.saturating_sub(1);
            if let Some((index, _)) = umem.area().locate(address) {
                umem.put(index);
            }
        }
        if any {
            self.opened.rings.completion.release();
        }
    }

    /// Gives the kernel frames to receive into.
    fn refill(&mut self, umem: &Umem) {
        let wanted = self.lend.frames().saturating_sub(self.receiving);
        let room = self.opened.rings.fill.free().min(wanted);
        let mut any = false;
        for _ in 0..room {
            let Some(index) = umem.take() else {
                break;
            };
            self.opened.rings.fill.put(umem.area().address(index, 0));
            self.receiving += 1;
            any = true;
        }
        if !any {
            return;
        }
        self.opened.rings.fill.publish();
        self.wake_receive();
    }

    fn wake_receive(&self) {
        if let Some(socket) = &self.opened.socket
            && self.opened.rings.fill.needs_wakeup()
        {
            // Anything that stops the kernel now stops it in `wait`, too, which reports it.
            let _ = syscall::kick_receive(socket.as_fd());
        }
    }

    fn flush(&mut self) {
        self.opened.rings.transmit.publish();
        let Some(socket) = &self.opened.socket else {
            self.unsent = false;
            return;
        };
        for _ in 0..MAX_KICKS {
            let before = self.opened.rings.transmit.pending();
            if before == 0 || !self.opened.rings.transmit.needs_wakeup() {
                self.unsent = false;
                return;
            }
            // Errors say that the device is busy or down: the packets stay queued.
            let _ = syscall::kick_transmit(socket.as_fd());
            if self.opened.rings.transmit.pending() == before {
                return;
            }
        }
    }

    fn statistics(&self) -> Statistics {
        let mut statistics = self.statistics;
        let Some(socket) = &self.opened.socket else {
            return statistics;
        };
        let mut kernel = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        if syscall::get_option(socket.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS, &mut kernel).is_ok() {
            statistics.rx_dropped = kernel.rx_dropped;
            statistics.rx_ring_full = kernel.rx_ring_full;
            statistics.rx_fill_empty = kernel.rx_fill_ring_empty_descs;
            statistics.rx_invalid = kernel.rx_invalid_descs;
            statistics.tx_invalid = kernel.tx_invalid_descs;
        }
        statistics
    }
}
