//! Facts about a network interface, asked of the kernel by socket, so that the network namespace of the
//! calling thread counts and not the one whose sysfs is mounted.

use std::ffi::{c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Error;

/// An interface as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    /// Its name.
    pub name: String,
    /// Its index in this network namespace.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Receive queues in use.
    pub queues: u32,
}

/// Looks an interface up by name.
pub fn net_device(name: &str) -> Result<NetDevice, Error> {
    let failed = |reason: String| Error::Interface {
        name: name.escape_debug().to_string(),
        reason,
    };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
        return Err(failed("not a possible name".into()));
    }
    let ifindex = if_nametoindex(name).map_err(|_| failed("does not exist".into()))?;
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.to_string()))?;
    let query = Query { socket, name };
    Ok(NetDevice {
        name: name.to_owned(),
        ifindex,
        mac: query
            .mac()
            .map_err(|error| failed(format!("no MAC address: {error}")))?,
        mtu: query.mtu().map_err(|error| failed(format!("no MTU: {error}")))?,
        queues: query.queues(),
    })
}

struct Query<'a> {
    socket: OwnedFd,
    name: &'a str,
}

/// `struct ethtool_channels` of `linux/ethtool.h`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

impl Query<'_> {
    fn request(&self) -> libc::ifreq {
        // SAFETY: `ifreq` is plain data of the kernel's interface; all zero is a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as c_char;
        }
        request
    }

    fn ask(&self, what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        let descriptor: c_int = self.socket.as_raw_fd();
        // SAFETY: an open socket and a structure the kernel may write to while the call lasts.
        match unsafe { libc::ioctl(descriptor, what as _, std::ptr::from_mut(request)) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn mac(&self) -> io::Result<[u8; 6]> {
        let mut request = self.request();
        self.ask(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: the call succeeded, so the kernel filled this member of the union.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        Ok(std::array::from_fn(|index| data[index] as u8))
    }

    fn mtu(&self) -> io::Result<u32> {
        let mut request = self.request();
        self.ask(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: the call succeeded, so the kernel filled this member of the union.
        Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
    }

    /// Devices without channels have one queue.
    fn queues(&self) -> u32 {
        let mut channels = Channels {
            cmd: ETHTOOL_GCHANNELS,
            ..Channels::default()
        };
        let mut request = self.request();
        request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut channels).cast();
        match self.ask(libc::SIOCETHTOOL, &mut request) {
            Ok(()) => (channels.rx + channels.combined).max(1),
            Err(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_an_index_and_no_mac() {
        let device = net_device("lo").unwrap();
        assert_eq!((device.ifindex, device.mac, device.queues), (1, [0; 6], 1));
    }

    #[test]
    fn impossible_names_are_refused_with_their_name() {
        for name in ["", "no-such-interface-here", "nosuch0", "a/b"] {
            let error = net_device(name).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
