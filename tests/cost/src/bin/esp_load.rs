//! Load for `cargo xtask bench esp`; run inside the sender's namespace. Prints packets sent and seconds.
//!
//! ```text
//!   esp_load esp IFACE SMAC DMAC SOURCE DESTINATION SPI FIRST COUNT BYTES [SUITE FILL]
//!       ESP packets around plain UDP packets of BYTES bytes, sealed beforehand with the numbers from FIRST on, as
//!       frames on IFACE; without SUITE their contents mean nothing (class `none`)
//!   esp_load udp DESTINATION BYTES SECONDS
//!       UDP packets, IP packets of BYTES bytes, as fast as the kernel takes them
//! ```
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant as Clock};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, bind, send, socket};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspKeys, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::{Instant, Spi};
use towpath_crypto::esp::AwsLcTransform;
use towpath_crypto::{AwsLcEsp, SystemRng};
use towpath_ipsec::OutboundSa;

const NOW: Instant = Instant::from_secs(1);
const HEADROOM: usize = 128;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (sent, spent) = match arguments.as_slice() {
        ["esp", rest @ ..] => esp(rest),
        ["udp", destination, bytes, seconds] => udp(destination, number(bytes), number(seconds)),
        _ => panic!("esp … | udp DESTINATION BYTES SECONDS"),
    };
    println!("{sent} {:.6}", spent.as_secs_f64());
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("a MAC address"))
        .collect();
    bytes.try_into().expect("six bytes")
}

/// Keys anybody can make: 0, 1, 2, … with `fill` on top. The same as the benchmark gives the gateway.
fn keys(suite: EspSuite, fill: u8) -> EspKeys {
    let material: Vec<u8> = (0..suite.key_material_len()).map(|i| fill ^ i as u8).collect();
    EspKeys::split(suite, &material).expect("the suite's own length")
}

fn sender(
    source: IpAddr,
    destination: IpAddr,
    spi: u32,
    suite: EspSuite,
    fill: u8,
) -> OutboundSa<AwsLcTransform> {
    let sa = ChildSa {
        local: source,
        remote: destination,
        suite,
        mode: Mode::Transport,
        esn: false,
        encap: None,
        spi_in: Spi(spi),
        spi_out: Spi(spi),
        keys_in: keys(suite, fill),
        keys_out: keys(suite, fill),
        local_ts: Selectors::one(TrafficSelector::host(source)),
        remote_ts: Selectors::one(TrafficSelector::host(destination)),
        lifetime: Lifetime::default(),
    };
    OutboundSa::new(&AwsLcEsp, NOW, &sa).expect("keys fit the suite")
}

fn plain(source: Ipv4Addr, destination: Ipv4Addr, len: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; len];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet[20..28].copy_from_slice(&[0x10, 0, 0x20, 0, 0, 0, 0, 0]);
    packet[24..26].copy_from_slice(&(len as u16 - 20).to_be_bytes());
    packet
}

fn esp(arguments: &[&str]) -> (u64, Duration) {
    let [
        iface,
        smac,
        dmac,
        source,
        destination,
        spi,
        first,
        count,
        bytes,
        suite @ ..,
    ] = arguments
    else {
        panic!("esp IFACE SMAC DMAC SOURCE DESTINATION SPI FIRST COUNT BYTES [SUITE FILL]");
    };
    let address = |text: &str| text.parse::<Ipv4Addr>().expect("an IPv4 address");
    let (source, destination) = (address(source), address(destination));
    let spi = u32::from_str_radix(spi, 16).expect("a hexadecimal SPI");
    let mut sealer = match suite {
        [suite, fill] => {
            let suite = suite.parse().expect("a suite");
            let mut sealer = sender(source.into(), destination.into(), spi, suite, number(fill) as u8);
            sealer.skip_to(number(first) - 1);
            Some(sealer)
        }
        _ => None,
    };
    let ethernet = [&mac(dmac)[..], &mac(smac), &[8, 0]].concat();
    let plain = plain(source, destination, number(bytes) as usize);
    let frames: Vec<Vec<u8>> = (0..number(count))
        .map(|n| {
            let mut buffer = [0; 4096];
            buffer[HEADROOM..HEADROOM + plain.len()].copy_from_slice(&plain);
            let mut packet = PacketBuf::new(&mut buffer, HEADROOM, plain.len()).expect("it fits");
            match &mut sealer {
                Some(sealer) => drop(
                    sealer
                        .seal(NOW, &mut packet, &mut SystemRng)
                        .expect("it is sealed"),
                ),
                None => unread(&mut packet, spi, number(first) + n),
            }
            [&ethernet, packet.bytes()].concat()
        })
        .collect();
    let socket = bound_to(iface);
    let start = Clock::now();
    let mut sent = 0;
    for frame in &frames {
        match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) => sent += 1,
            // The far end's queue is full: that packet is lost, as on a wire.
            Err(Errno::ENOBUFS) => {}
            Err(error) => panic!("{iface}: {error}"),
        }
    }
    (sent, start.elapsed())
}

/// A packet of the length AES-GCM would give it, in which nobody looks behind the ESP header.
fn unread(packet: &mut PacketBuf<'_>, spi: u32, sequence: u64) {
    packet.open_gap(20, 16).expect("room in front");
    packet.grow_back(18).expect("room behind").fill(0x5a);
    let len = packet.len() as u16;
    let bytes = packet.bytes_mut();
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    bytes[9] = 50;
    bytes[10..12].fill(0);
    let sum = towpath_common::wire::checksum(&bytes[..20]).to_be_bytes();
    bytes[10..12].copy_from_slice(&sum);
    bytes[20..24].copy_from_slice(&spi.to_be_bytes());
    bytes[24..28].copy_from_slice(&(sequence as u32).to_be_bytes());
}

fn bound_to(iface: &str) -> OwnedFd {
    let link: LinkAddr = getifaddrs()
        .expect("interfaces can be listed")
        .filter(|it| it.interface_name == iface)
        .find_map(|it| it.address?.as_link_addr().copied())
        .unwrap_or_else(|| panic!("no interface {iface}"));
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)
        .expect("a packet socket (root)");
    bind(socket.as_raw_fd(), &link).expect("the interface is up");
    socket
}

fn udp(destination: &str, bytes: u64, seconds: u64) -> (u64, Duration) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect((destination, 9)).expect("a route");
    let body = vec![0x5a; bytes as usize - 28];
    let (start, patience) = (Clock::now(), Duration::from_secs(seconds));
    let mut sent = 0;
    while start.elapsed() < patience {
        // Port unreachable, no room: whatever it says about an earlier packet, the next one is sent.
        sent += u64::from(socket.send(&body).is_ok());
    }
    (sent, start.elapsed())
}
