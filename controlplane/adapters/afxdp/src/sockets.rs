//! All sockets of a worker, opened together with one frame area.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::config::{Config, Copying, Error, PortQueue};
use crate::engine::Engine;
use crate::lend;
use crate::memory::{self, MemoryPort};
use crate::socket::{self, Rings, UmemSource};
use crate::umem::Area;

/// Opened sockets that no worker uses yet. They may cross to the worker's thread; [`Sockets::start`] is called
/// there.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) area: Area,
    pub(crate) ports: Vec<Opened>,
    /// The first frame that no ring holds.
    pub(crate) unused: u32,
    pub(crate) zero_copy: bool,
    notes: Vec<String>,
}

/// One socket; without a descriptor it is one of memory.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) port: PortQueue,
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) rings: Rings,
    /// Frames given to the kernel to receive into.
    pub(crate) receiving: u32,
}

impl Sockets {
    /// Opens a socket for every queue. The interfaces are those of the calling thread's network namespace, and
    /// zero-copy wants the XDP program attached before.
    pub fn open(config: &Config, ports: &[PortQueue]) -> Result<Self, Error> {
        config.check()?;
        match config.copying {
            Copying::Always => Self::open_with(config, ports, false),
            Copying::Never => Self::open_with(config, ports, true),
            Copying::Auto => match Self::open_with(config, ports, true) {
                // A process that may not, or an interface that is not there, fares no better with copying.
                Err(error) if !matches!(error.errno(), Some(libc::EPERM | libc::ENODEV)) => {
                    let mut sockets = Self::open_with(config, ports, false)?;
                    sockets
                        .notes
                        .push(format!("zero-copy is not possible, packets are copied ({error})"));
                    Ok(sockets)
                }
                result => result,
            },
        }
    }

    fn open_with(config: &Config, ports: &[PortQueue], zero_copy: bool) -> Result<Self, Error> {
        let area = area(config, ports.len())?;
        let mut opened: Vec<Opened> = Vec::with_capacity(ports.len());
        for port in ports {
            let source = match opened.first().and_then(|first| first.socket.as_ref()) {
                Some(first) => UmemSource::Share(first.as_fd()),
                None => UmemSource::Register { zero_copy },
            };
            let (socket, rings) = socket::open(config, &area, *port, &source)?;
            opened.push(Opened {
                port: *port,
                socket: Some(socket),
                rings,
                receiving: 0,
            });
        }
        Ok(Self::filled(area, opened, zero_copy))
    }

    /// Sockets without a kernel, and the other ends of their rings: for tests. The numbers of `ports` are names.
    pub fn in_memory(config: &Config, ports: &[PortQueue]) -> Result<(Self, Vec<MemoryPort>), Error> {
        config.check()?;
        let area = area(config, ports.len())?;
        let (opened, ends) = ports
            .iter()
            .map(|port| {
                let (rings, end) = memory::port(config, &area);
                let opened = Opened {
                    port: *port,
                    socket: None,
                    rings,
                    receiving: 0,
                };
                (opened, end)
            })
            .unzip();
        Ok((Self::filled(area, opened, true), ends))
    }

    /// Fills the fill rings: a packet may arrive as soon as the XDP program knows the sockets, before the worker
    /// runs.
    fn filled(area: Area, mut ports: Vec<Opened>, zero_copy: bool) -> Self {
        let mut unused = 0;
        let lent = lend::at_first(zero_copy);
        for port in &mut ports {
            while unused < area.frames()
                && port.receiving < lent
                && port.rings.fill.put(area.address(unused, 0))
            {
                unused += 1;
                port.receiving += 1;
            }
            port.rings.fill.publish();
        }
        Self {
            area,
            ports,
            unused,
            zero_copy,
            notes: Vec::new(),
        }
    }

    /// Every port with its socket, in the order of opening: for the XDP program's socket map.
    pub fn descriptors(&self) -> impl Iterator<Item = (PortQueue, BorrowedFd<'_>)> {
        self.ports
            .iter()
            .filter_map(|opened| Some((opened.port, opened.socket.as_ref()?.as_fd())))
    }

    /// True if frames reach the devices without a copy.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// What the operator should know: why packets are copied.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Puts the sockets to work on the calling thread.
    pub fn start(self) -> Engine {
        Engine::new(self)
    }
}

fn area(config: &Config, ports: usize) -> Result<Area, Error> {
    let frames = u32::try_from(ports)
        .ok()
        .and_then(|ports| ports.checked_mul(config.frames_per_port));
    let frames = frames.filter(|frames| *frames > 0);
    let frames = frames.ok_or_else(|| Error::config(format!("{ports} ports are not possible")))?;
    Area::new(config.frame_size, frames).map_err(|error| Error::new("map the frame area", error))
}
