//! SYNs that nobody follows up, and a server that does not answer them: what fills a relay with half-open connections.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, listen, sendto,
    setsockopt, socket, sockopt,
};

/// First source port of a flood.
const FIRST_PORT: u32 = 1024;
/// SYNs sent at a time; a pause follows, so that they pass instead of overflowing the first queue.
const BURST: u32 = 64;

/// Listens with room for one connection and never accepts it: further SYNs are dropped without a word.
pub(super) fn deaf(port: u16) -> Result<()> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(
        fd.as_raw_fd(),
        &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
    )?;
    listen(&fd, Backlog::new(0)?)?;
    println!("ready");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Sends the SYNs.
pub(super) fn run(addr: Ipv4Addr, port: u16, count: u32) -> Result<()> {
    let source = own_address(addr)?;
    let fd = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::Tcp,
    )?;
    let target = SockaddrIn::from(SocketAddrV4::new(addr, 0));
    let started = Instant::now();
    for number in 0..count {
        let from = (FIRST_PORT + number % (65_536 - FIRST_PORT)) as u16;
        let segment = syn((source, from), (addr, port), number.wrapping_mul(0x9e37_79b9));
        loop {
            match sendto(fd.as_raw_fd(), &segment, &target, MsgFlags::empty()) {
                Ok(_) => break,
                Err(Errno::ENOBUFS | Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => bail!("SYN {number}: {error}"),
            }
        }
        if number % BURST == BURST - 1 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    println!("{count} SYNs in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// The address packets to `addr` leave with.
fn own_address(addr: Ipv4Addr) -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((addr, 9))?;
    match socket.local_addr()? {
        SocketAddr::V4(local) => Ok(*local.ip()),
        SocketAddr::V6(local) => bail!("{local} is not IPv4"),
    }
}

/// A SYN with an MSS option, checksum included.
fn syn(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), sequence: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&from.1.to_be_bytes());
    bytes[2..4].copy_from_slice(&to.1.to_be_bytes());
    bytes[4..8].copy_from_slice(&sequence.to_be_bytes());
    // Data offset 6 words, SYN, a window.
    bytes[12..16].copy_from_slice(&[6 << 4, 2, 0xff, 0xff]);
    bytes[20..24].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    let mut pseudo = [0; 12];
    pseudo[..4].copy_from_slice(&from.0.octets());
    pseudo[4..8].copy_from_slice(&to.0.octets());
    pseudo[8..].copy_from_slice(&[0, 6, 0, 24]);
    let sum: u32 = pseudo
        .as_chunks::<2>()
        .0
        .iter()
        .chain(bytes.as_chunks::<2>().0)
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !(((folded & 0xffff) + (folded >> 16)) as u16);
    bytes[16..18].copy_from_slice(&check.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_has_a_right_checksum() {
        let (a, b) = (Ipv4Addr::new(10, 77, 1, 2), Ipv4Addr::new(10, 77, 9, 2));
        let segment = syn((a, 2000), (b, 7007), 5);
        let mut packet = vec![0x45, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(a.octets());
        packet.extend(b.octets());
        packet.extend(segment);
        let parsed = etherparse::SlicedPacket::from_ip(&packet).expect("an IP packet");
        let Some(etherparse::TransportSlice::Tcp(tcp)) = parsed.transport else {
            panic!("no TCP");
        };
        assert!(tcp.syn() && !tcp.ack());
        assert_eq!(
            tcp.calc_checksum_ipv4(a.octets(), b.octets()).ok(),
            Some(tcp.checksum())
        );
    }
}
