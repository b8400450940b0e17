//! One AF_XDP socket: a queue of a device with its four rings.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use libc::{SOL_SOCKET, SOL_XDP};

use crate::config::{BusyPoll, Config, Error, PortQueue};
use crate::mmap::Mapping;
use crate::ring::{Consumer, Descriptor, Offsets, Producer, Shared};
use crate::syscall;
use crate::umem::Area;

/// `SO_PREFER_BUSY_POLL` and `SO_BUSY_POLL_BUDGET` of `asm-generic/socket.h`.
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;
/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`: packets sent per call in copy mode.
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
/// The queue of a process that just died is free a moment later.
const BIND_TRIES: u32 = 40;

/// The four rings of a socket, from our side.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) receive: Consumer<Descriptor>,
    pub(crate) fill: Producer<u64>,
    pub(crate) transmit: Producer<Descriptor>,
    pub(crate) completion: Consumer<u64>,
}

/// How a socket gets the frame area.
pub(crate) enum UmemSource<'a> {
    /// It registers the area, and says whether frames may be used without a copy.
    Register { zero_copy: bool },
    /// It shares that of another socket, and is bound in the same manner.
    Share(BorrowedFd<'a>),
}

/// Opens a socket on a queue, with rings.
pub(crate) fn open(
    config: &Config,
    area: &Area,
    port: PortQueue,
    source: &UmemSource<'_>,
) -> Result<(OwnedFd, Rings), Error> {
    let failed = |what: &str| {
        let action = format!("{what} (interface {}, queue {})", port.ifindex, port.queue);
        move |error| Error::new(action, error)
    };
    let socket = syscall::socket().map_err(failed("open a socket"))?;
    let fd = socket.as_fd();
    if let UmemSource::Register { .. } = source {
        register(fd, area).map_err(failed("register the frame area"))?;
    }
    let sizes = [
        (libc::XDP_UMEM_FILL_RING, config.fill_ring),
        (libc::XDP_UMEM_COMPLETION_RING, config.completion_ring),
        (libc::XDP_RX_RING, config.receive_ring),
        (libc::XDP_TX_RING, config.transmit_ring),
    ];
    for (name, size) in sizes {
        syscall::set_option(fd, SOL_XDP, name, &size).map_err(failed("size a ring"))?;
    }
    let rings = map_rings(config, fd).map_err(failed("map the rings"))?;
    // Kernels before 6.17 send 32 packets per call whatever is asked.
    let _ = syscall::set_option(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &config.transmit_ring);
    if let Some(busy_poll) = config.busy_poll {
        set_busy_poll(fd, busy_poll).map_err(failed("switch busy polling on"))?;
    }
    bind(fd, port, source).map_err(failed("bind"))?;
    Ok((socket, rings))
}

fn register(fd: BorrowedFd<'_>, area: &Area) -> std::io::Result<()> {
    let register = libc::xdp_umem_reg {
        addr: area.start().as_ptr() as u64,
        len: area.len() as u64,
        chunk_size: area.frame_size(),
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    syscall::set_option(fd, SOL_XDP, libc::XDP_UMEM_REG, &register)
}

fn bind(fd: BorrowedFd<'_>, port: PortQueue, source: &UmemSource<'_>) -> std::io::Result<()> {
    let (flags, shared) = match source {
        UmemSource::Register { zero_copy: true } => (libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP, 0),
        UmemSource::Register { zero_copy: false } => (libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP, 0),
        // The manner is that of the socket shared with; naming it again is refused.
        UmemSource::Share(other) => (libc::XDP_SHARED_UMEM, other.as_raw_fd() as u32),
    };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: port.ifindex,
        sxdp_queue_id: port.queue,
        sxdp_shared_umem_fd: shared,
    };
    let mut tries = BIND_TRIES;
    loop {
        match syscall::bind(fd, &address) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries > 0 => {
                tries -= 1;
                sleep(Duration::from_millis(25));
            }
            result => return result,
        }
    }
}

fn set_busy_poll(fd: BorrowedFd<'_>, busy_poll: BusyPoll) -> std::io::Result<()> {
    syscall::set_option(fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &1i32)?;
    syscall::set_option(fd, SOL_SOCKET, libc::SO_BUSY_POLL, &busy_poll.microseconds)?;
    syscall::set_option(fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &busy_poll.budget)
}

fn map_rings(config: &Config, fd: BorrowedFd<'_>) -> std::io::Result<Rings> {
    let zero = libc::xdp_ring_offset {
        producer: 0,
        consumer: 0,
        desc: 0,
        flags: 0,
    };
    let mut offsets = libc::xdp_mmap_offsets {
        rx: zero,
        tx: zero,
        fr: zero,
        cr: zero,
    };
    syscall::get_option(fd, SOL_XDP, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    Ok(Rings {
        receive: Consumer::new(ring(
            fd,
            libc::XDP_PGOFF_RX_RING,
            &offsets.rx,
            config.receive_ring,
        )?),
        transmit: Producer::new(ring(
            fd,
            libc::XDP_PGOFF_TX_RING,
            &offsets.tx,
            config.transmit_ring,
        )?),
        fill: Producer::new(ring(
            fd,
            libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t,
            &offsets.fr,
            config.fill_ring,
        )?),
        completion: Consumer::new(ring(
            fd,
            libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
            &offsets.cr,
            config.completion_ring,
        )?),
    })
}

fn ring<T>(
    fd: BorrowedFd<'_>,
    place: libc::off_t,
    offsets: &libc::xdp_ring_offset,
    size: u32,
) -> std::io::Result<Shared<T>> {
    let offsets = Offsets {
        producer: offsets.producer,
        consumer: offsets.consumer,
        flags: offsets.flags,
        entries: offsets.desc,
    };
    let length = offsets.entries as usize + size as usize * size_of::<T>();
    let mapping = Mapping::of_socket(fd, place, length)?;
    Shared::kernel(mapping, offsets, size)
        .ok_or_else(|| std::io::Error::other("the kernel describes a ring outside its memory"))
}
