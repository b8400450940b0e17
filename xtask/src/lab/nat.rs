//! A NAT for the lab, as a program: this kernel has none to configure everywhere. It translates what IKE needs, UDP
//! ports 500 and 4500 of one host behind it towards one host outside; one such program for each address family.
//!
//! ```text
//!   peer 192.168.77.2 ----- in0 | nat | out0 10.77.9.2:BASE+500, BASE+4500 ----- core0 gateway
//!        fd77:77::2             |     |      fd77:9::2 (the same ports)
//! ```
//!
//! Behind it sockets with the outside host's address receive (`ip rule` and a local route lead there what is meant
//! for it); outside it is ordinary sockets. Writing another BASE to its file makes it forget the mapping: what comes
//! to the old ports is lost, and what leaves comes from the new ones.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt::IpTransparent,
};

/// The ports of IKE and of UDP encapsulation.
const PORTS: [u16; 2] = [500, 4500];

/// Options of `cargo xtask nat`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The host behind it
    #[arg(long)]
    pub inside: IpAddr,
    /// Its own address outside
    #[arg(long)]
    pub outside: IpAddr,
    /// The host outside
    #[arg(long)]
    pub far: IpAddr,
    /// File with the number that is added to ports; read again when it changes
    #[arg(long)]
    pub base: PathBuf,
}

/// Translates until it is ended.
pub fn run(args: &Args) -> Result<()> {
    let inner = PORTS
        .iter()
        .map(|port| transparent(SocketAddr::new(args.far, *port)))
        .collect::<Result<Vec<_>>>()?;
    let mut base = read(args)?;
    let mut outer = mapped(args, base)?;
    let mut buffer = vec![0; 65_536];
    loop {
        let now = read(args).unwrap_or(base);
        if now != base {
            (base, outer) = (now, mapped(args, now)?);
        }
        let mut fds: Vec<PollFd<'_>> = inner
            .iter()
            .chain(&outer)
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::from(100_u8))?;
        for ((port, inner), outer) in PORTS.iter().zip(&inner).zip(&outer) {
            let (inside, far) = (
                SocketAddr::new(args.inside, *port),
                SocketAddr::new(args.far, *port),
            );
            carry(inner, inside, outer, far, &mut buffer);
            carry(outer, far, inner, inside, &mut buffer);
        }
    }
}

/// Everything that waits at `from` and comes from `source` leaves at `to` for `target`. What cannot be sent is lost,
/// as on any wire.
fn carry(from: &UdpSocket, source: SocketAddr, to: &UdpSocket, target: SocketAddr, buffer: &mut [u8]) {
    while let Ok((len, sender)) = from.recv_from(buffer) {
        if sender == source
            && let Some(payload) = buffer.get(..len)
        {
            let _ = to.send_to(payload, target);
        }
    }
}

fn read(args: &Args) -> Result<u16> {
    let text = std::fs::read_to_string(&args.base).with_context(|| args.base.display().to_string())?;
    text.trim().parse().context("the file holds no port number")
}

fn mapped(args: &Args, base: u16) -> Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for port in PORTS {
        let address = SocketAddr::new(args.outside, base + port);
        let socket = UdpSocket::bind(address).with_context(|| address.to_string())?;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
    }
    println!("mapped {base}");
    Ok(sockets)
}

/// A socket with another host's address.
fn transparent(address: SocketAddr) -> Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket: OwnedFd = socket(family, SockType::Datagram, flags, None)?;
    // The kernel knows one such mark of a socket, whatever its family.
    setsockopt(&socket, IpTransparent, &true).context("transparent sockets need root")?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).with_context(|| address.to_string())?;
    Ok(UdpSocket::from(socket))
}
