//! A TUN device: plain IP packets of this host in, decrypted ones out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::sysctl;

/// Packets the device queues towards us before the kernel drops: a burst of full windows.
const QUEUE_LEN: u32 = 1000;

/// A TUN device, gone when dropped.
///
/// Packets are whole IP packets, one per call, without packet information and without a virtio header: the
/// kernel has finished their checksums and never hands over a segment larger than the MTU.
pub struct Tun {
    device: SyncDevice,
    name: String,
    index: u32,
}

impl Tun {
    /// Creates device `name` (at most 15 bytes) with `mtu` bytes and sets it up, non-blocking, without
    /// addresses, not even a link-local one: traffic gets here by routes alone.
    ///
    /// Source validation is off on this device: a decrypted packet comes from wherever its sender is.
    /// An existing device of that name is an error.
    pub fn create(name: &str, mtu: u16) -> io::Result<Self> {
        if nix::net::if_::if_nametoindex(name).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("interface {name} exists"),
            ));
        }
        let device = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L3)
            .mtu(mtu)
            .enable(false)
            .with(|options| {
                options
                    .tx_queue_len(QUEUE_LEN)
                    .packet_information(false)
                    .offload(false);
            })
            .build_sync()?;
        // 1 is "none" (addrconf.h, IN6_ADDR_GEN_MODE_NONE). Absent where the kernel has no IPv6.
        sysctl::set_if_present("ipv6", name, "addr_gen_mode", 1)?;
        sysctl::set_if_present("ipv4", name, "rp_filter", 0)?;
        device.enabled(true)?;
        device.set_nonblocking(true)?;
        let index = device.if_index()?;
        Ok(Self {
            device,
            name: name.to_owned(),
            index,
        })
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Interface index.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Takes one packet out; [`io::ErrorKind::WouldBlock`] when there is none. Returns its length.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.device.recv(buffer)
    }

    /// Gives one whole IP packet to the kernel, as if received.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.device.send(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun")
            .field("name", &self.name)
            .field("index", &self.index)
            .finish()
    }
}
