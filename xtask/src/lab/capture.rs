//! Captures: tcpdump in a namespace, and its file read back.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etherparse::{EtherType, NetSlice, SlicedPacket, TransportSlice};
use nix::sys::signal::Signal;

use super::net::{Net, Node};
use super::state::{Process, wait_for};
use crate::sh::Cmd;

/// A running capture of one interface.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture everything on `eth0` of a node; running when this returns.
    pub fn start(net: &Net, node: Node, interface: &str, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let file = dir.join(format!("{}-{interface}.pcap", node.name()));
        let log = file.with_extension("log");
        let _ = std::fs::remove_file(&file);
        File::create(&log)?;
        let cmd = Cmd::new("tcpdump")
            .args([
                "-i",
                interface,
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-B",
                "8192",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        let pid = net.inside(node, cmd).spawn(&log)?;
        let process = Process::note("tcpdump", pid);
        let listening = || std::fs::read_to_string(&log).is_ok_and(|t| t.contains("listening on"));
        if !wait_for(Duration::from_secs(5), || listening() || !process.alive()) || !process.alive() {
            bail!(
                "tcpdump did not start: {}",
                std::fs::read_to_string(&log).unwrap_or_default()
            );
        }
        Ok(Self { process, file })
    }

    /// Where the packets go.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture and reads it.
    pub fn stop(self) -> Result<Vec<Frame>> {
        // What is still in the kernel's ring arrives within tcpdump's read timeout.
        std::thread::sleep(Duration::from_millis(300));
        self.process.signal(Signal::SIGINT);
        wait_for(Duration::from_secs(3), || !self.process.alive());
        read(&self.file)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.process.end(Duration::from_millis(300));
    }
}

/// A captured Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Time since the epoch.
    pub at: Duration,
    /// The frame from its destination address on.
    pub bytes: Vec<u8>,
}

/// What a frame is, as far as the judgements need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// IP source address.
    pub src: IpAddr,
    /// IP destination address.
    pub dst: IpAddr,
    /// What the IP packet carries.
    pub what: What,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An IKE message (RFC 7296 §3.1) or keyx in its clothes.
    Ike {
        /// Initiator SPI.
        spi_i: u64,
        /// Responder SPI.
        spi_r: u64,
    },
    /// Protocol 50, with its SPI.
    Esp(u32),
    /// ESP in UDP (RFC 3948), with its SPI.
    UdpEsp(u32),
    /// ICMPv6 neighbour discovery or multicast listener housekeeping.
    Neighbour,
    /// ICMP echo and other ICMP.
    Icmp,
    /// TCP in the clear.
    Tcp,
    /// Anything else.
    Other,
}

impl Frame {
    /// Reads the frame's IP packet; `None` for ARP and what is not IP.
    pub fn seen(&self) -> Option<Seen> {
        let packet = SlicedPacket::from_ethernet(&self.bytes).ok()?;
        let (src, dst, payload) = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => (
                IpAddr::V4(ip.header().source_addr()),
                IpAddr::V4(ip.header().destination_addr()),
                ip.payload(),
            ),
            NetSlice::Ipv6(ip) => (
                IpAddr::V6(ip.header().source_addr()),
                IpAddr::V6(ip.header().destination_addr()),
                ip.payload(),
            ),
            _ => return None,
        };
        let what = match &packet.transport {
            Some(TransportSlice::Udp(udp)) => {
                udp_what(udp.source_port(), udp.destination_port(), udp.payload())
            }
            Some(TransportSlice::Tcp(_)) => What::Tcp,
            Some(TransportSlice::Icmpv4(_)) => What::Icmp,
            Some(TransportSlice::Icmpv6(icmp)) => match icmp.type_u8() {
                130..=137 | 143 => What::Neighbour,
                _ => What::Icmp,
            },
            None if payload.ip_number.0 == 50 => What::Esp(word(payload.payload, 0) as u32),
            None => What::Other,
        };
        Some(Seen { src, dst, what })
    }

    /// The ESP packet in the frame, its own header first, with or without UDP around it.
    pub fn esp(&self) -> Option<&[u8]> {
        let packet = SlicedPacket::from_ethernet(&self.bytes).ok()?;
        let ip = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => ip.payload(),
            NetSlice::Ipv6(ip) => ip.payload(),
            _ => return None,
        };
        match &packet.transport {
            Some(TransportSlice::Udp(udp)) => {
                let what = udp_what(udp.source_port(), udp.destination_port(), udp.payload());
                matches!(what, What::UdpEsp(_)).then(|| udp.payload())
            }
            None if ip.ip_number.0 == 50 => Some(ip.payload),
            _ => None,
        }
    }

    /// Whether the frame is neither IPv4 nor IPv6 (ARP, for one).
    pub fn is_ip(&self) -> bool {
        let kind = self.bytes.get(12..14).map(|b| u16::from_be_bytes([b[0], b[1]]));
        kind == Some(EtherType::IPV4.0) || kind == Some(EtherType::IPV6.0)
    }
}

fn udp_what(src: u16, dst: u16, payload: &[u8]) -> What {
    let ike = |p: &[u8]| What::Ike {
        spi_i: word64(p, 0),
        spi_r: word64(p, 8),
    };
    if (src == 500 || dst == 500) && payload.len() >= 28 {
        return ike(payload);
    }
    if src == 4500 || dst == 4500 {
        return match payload {
            [0, 0, 0, 0, rest @ ..] if rest.len() >= 28 => ike(rest),
            [_, _, _, _, ..] => What::UdpEsp(word(payload, 0) as u32),
            _ => What::Other,
        };
    }
    What::Other
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| b.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    word(bytes, at) << 32 | word(bytes, at + 4)
}

/// Reads a pcap file (classic format, this machine's byte order, Ethernet).
pub fn read(file: &Path) -> Result<Vec<Frame>> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    parse(&bytes).with_context(|| format!("{} is not the pcap that was expected", file.display()))
}

fn parse(bytes: &[u8]) -> Result<Vec<Frame>> {
    let field = |at: usize| {
        bytes
            .get(at..at + 4)
            .map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
    };
    let unit = match field(0) {
        Some(0xa1b2_c3d4) => 1000,
        Some(0xa1b2_3c4d) => 1,
        other => bail!("magic number {other:?}"),
    };
    let mut frames = Vec::new();
    let mut at = 24;
    while let (Some(s), Some(f), Some(len)) = (field(at), field(at + 4), field(at + 8)) {
        let start = at + 16;
        let end = start + len as usize;
        // The last record may be torn: the writer was interrupted.
        let Some(frame) = bytes.get(start..end) else { break };
        frames.push(Frame {
            at: Duration::new(s.into(), f * unit),
            bytes: frame.to_vec(),
        });
        at = end;
    }
    Ok(frames)
}

/// Writes frames as a pcap file.
pub fn write(file: &Path, frames: &[Frame]) -> Result<()> {
    let mut out = Vec::new();
    // Version 2.4, no zone, snap length, link type Ethernet.
    out.extend(0xa1b2_c3d4_u32.to_ne_bytes());
    out.extend(2_u16.to_ne_bytes());
    out.extend(4_u16.to_ne_bytes());
    [0_u32, 0, 65535, 1]
        .iter()
        .for_each(|word| out.extend(word.to_ne_bytes()));
    for frame in frames {
        let len = u32::try_from(frame.bytes.len())?;
        let seconds = u32::try_from(frame.at.as_secs()).unwrap_or(u32::MAX);
        let words = [seconds, frame.at.subsec_micros(), len, len];
        words.iter().for_each(|word| out.extend(word.to_ne_bytes()));
        out.extend(&frame.bytes);
    }
    std::fs::write(file, out).with_context(|| file.display().to_string())
}

/// Whether any frame contains these bytes.
pub fn contains(frames: &[Frame], needle: &[u8]) -> bool {
    !needle.is_empty()
        && frames
            .iter()
            .any(|f| f.bytes.windows(needle.len()).any(|w| w == needle))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(build: impl FnOnce(&mut Vec<u8>)) -> Frame {
        let mut bytes = Vec::new();
        build(&mut bytes);
        Frame {
            at: Duration::ZERO,
            bytes,
        }
    }

    #[test]
    fn ike_and_keyx_are_recognised_by_their_header() {
        let mut payload = vec![0_u8; 40];
        payload[7] = 0x64;
        payload[15] = 0x64;
        let frame = frame(|out| {
            etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([10, 77, 1, 2], [10, 77, 9, 2], 64)
                .udp(500, 500)
                .write(out, &payload)
                .expect("a vector takes everything");
        });
        let seen = frame.seen().expect("it is IP");
        assert_eq!(seen.src, Node::Ta.addr(super::super::net::Family::V4));
        assert_eq!(
            seen.what,
            What::Ike {
                spi_i: 0x64,
                spi_r: 0x64
            }
        );
    }

    #[test]
    fn port_4500_tells_ike_from_esp_by_the_marker() {
        assert_eq!(
            udp_what(4500, 4500, &[0xc1, 2, 3, 4, 0, 0, 0, 1]),
            What::UdpEsp(0xc102_0304)
        );
        assert!(matches!(udp_what(4500, 4500, &[0; 40]), What::Ike { .. }));
        assert_eq!(udp_what(4500, 4500, &[0xff]), What::Other);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let frames = vec![
            Frame {
                at: Duration::new(7, 5000),
                bytes: vec![1, 2, 3]
            };
            2
        ];
        let file = std::env::temp_dir().join(format!("towpath-capture-{}.pcap", std::process::id()));
        write(&file, &frames).expect("the folder for temporary files is writable");
        let back = read(&file);
        let _ = std::fs::remove_file(&file);
        assert_eq!(back.expect("it was just written"), frames);
    }

    #[test]
    fn a_torn_last_record_is_left_out() {
        let mut pcap = vec![0_u8; 24];
        pcap[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_ne_bytes());
        for part in [[1_u32, 2, 3, 3], [1, 2, 100, 100]] {
            part.iter().for_each(|w| pcap.extend(w.to_ne_bytes()));
            pcap.extend([1, 2, 3]);
        }
        let frames = parse(&pcap).expect("the header is right");
        assert_eq!(frames.len(), 1);
        assert!(contains(&frames, &[2, 3]) && !contains(&frames, &[3, 2]));
    }
}
