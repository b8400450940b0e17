//! The adapter against a real kernel, in namespaces of its own.
//!
//! ```text
//!   here (namespace of the test's thread)            there (namespace of a second thread)
//!   h0 10.99.0.1/24, 2001:db8:99::1/64 ── veth ── p0 10.99.0.2/24, 2001:db8:99::2/64
//!   t0 TUN
//! ```
//!
//! The namespaces have no names and go with their threads.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use towpath_common::wire::{Ipv4, Ipv6, Udp, checksum, protocol};
use towpath_kernel::{Inbound, Netlink, RawIpSender, Route, SendError, Tun, sysctl};
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

const HERE: [&str; 2] = ["10.99.0.1", "2001:db8:99::1"];
const THERE: [&str; 2] = ["10.99.0.2", "2001:db8:99::2"];

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which runs what it is given.
struct There {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl There {
    fn new() -> (Self, String) {
        let (jobs, inbox): (Sender<Job>, Receiver<Job>) = channel();
        let (path, got_path) = channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            path.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid()))
                .unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        (
            Self {
                jobs: Some(jobs),
                thread: Some(thread),
            },
            got_path.recv().unwrap(),
        )
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, got) = channel();
        let job = Box::new(move || result.send(job()).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        got.recv().unwrap()
    }
}

impl Drop for There {
    fn drop(&mut self) {
        self.jobs.take();
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || thread::panicking());
    }
}

/// Runs `test` on a thread whose namespace is "here".
fn with_two_namespaces(test: impl FnOnce(&There) + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let (there, path) = There::new();
        ip("link set lo up");
        ip("link add h0 type veth peer name p0");
        ip(&format!("link set p0 netns {path}"));
        configure("h0", HERE);
        there.run(|| configure("p0", THERE));
        test(&there);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn configure(device: &str, [v4, v6]: [&str; 2]) {
    for interface in ["all", device] {
        sysctl::set_if_present("ipv4", interface, "rp_filter", 0).unwrap();
        // No neighbour solicitation leaves before the link-local address has passed this check.
        sysctl::set_if_present("ipv6", interface, "accept_dad", 0).unwrap();
    }
    ip(&format!("addr add {v4}/24 dev {device}"));
    ip(&format!("addr add {v6}/64 dev {device} nodad"));
    ip(&format!("link set {device} up"));
}

/// Calls `receive` until it has something, for at most two seconds.
fn wait<T>(mut receive: impl FnMut() -> std::io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match receive() {
            Ok(value) => return value,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(start.elapsed() < Duration::from_secs(2), "nothing arrived");
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn packet(source: IpAddr, destination: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4 {
                version_ihl: 0x45,
                tos: 0,
                total_length: U16::new(20 + payload.len() as u16),
                identification: U16::new(7),
                flags_fragment: U16::ZERO,
                ttl: 64,
                protocol: next,
                checksum: U16::ZERO,
                source: source.octets(),
                destination: destination.octets(),
            };
            [header.as_bytes(), payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6 {
                version_class_flow: U32::new(6 << 28),
                payload_length: U16::new(payload.len() as u16),
                next_header: next,
                hop_limit: 61,
                source: source.octets(),
                destination: destination.octets(),
            };
            [header.as_bytes(), payload].concat()
        }
        _ => panic!("families differ"),
    }
}

fn addresses(family: usize) -> (IpAddr, IpAddr) {
    (HERE[family].parse().unwrap(), THERE[family].parse().unwrap())
}

#[test]
#[ignore = "needs root: network namespaces"]
fn packets_with_foreign_sources_leave_by_the_kernels_routing() {
    with_two_namespaces(|there| {
        let sender = RawIpSender::new(None).unwrap();
        for (family, foreign) in ["192.0.2.77", "2001:db8:77::77"].into_iter().enumerate() {
            let (foreign, (_, to)) = (foreign.parse().unwrap(), addresses(family));
            let inbound = there.run(move || Inbound::udp(to, 500, "p0").unwrap());
            // A UDP checksum over the wrong pseudo-header would be dropped: IPv6 demands a right one.
            let mut udp = Udp {
                source: U16::new(500),
                destination: U16::new(500),
                length: U16::new(13),
                checksum: U16::ZERO,
            };
            udp.checksum = U16::new(udp_checksum(foreign, to, &[udp.as_bytes(), b"hello"].concat()));
            let sent = packet(foreign, to, protocol::UDP, &[udp.as_bytes(), b"hello"].concat());
            sender.send(&sent).unwrap();
            let mut buffer = [0; 2048];
            let len = wait(|| inbound.recv(&mut buffer));
            let seen = take_apart(&buffer[..len]);
            assert_eq!(
                (seen.source, seen.destination, seen.next),
                (foreign, to, protocol::UDP)
            );
            assert_eq!(&seen.payload[8..], b"hello");
            assert_eq!(&seen.payload[..4], [1, 0xf4, 1, 0xf4]);
        }
        let nowhere = packet(
            "10.99.0.1".parse().unwrap(),
            "203.0.113.1".parse().unwrap(),
            17,
            &[0; 8],
        );
        assert!(matches!(sender.send(&nowhere), Err(SendError::NoRoute)));
        let (here, to) = addresses(0);
        assert!(matches!(
            sender.send(&packet(here, to, 17, &[0; 1600])),
            Err(SendError::TooBig)
        ));
    });
}

fn udp_checksum(source: IpAddr, destination: IpAddr, segment: &[u8]) -> u16 {
    let mut pseudo = match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
        (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
        _ => panic!("families differ"),
    };
    pseudo.extend([0, protocol::UDP]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(segment);
    checksum(&pseudo)
}

/// An IP packet taken apart.
struct Seen<'a> {
    source: IpAddr,
    destination: IpAddr,
    next: u8,
    payload: &'a [u8],
}

fn take_apart(packet: &[u8]) -> Seen<'_> {
    if packet[0] >> 4 == 4 {
        let (header, _) = Ipv4::ref_from_prefix(packet).unwrap();
        assert_eq!(usize::from(header.total_length.get()), packet.len());
        assert_eq!(checksum(&packet[..header.header_len()]), 0);
        Seen {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            next: header.protocol,
            payload: &packet[header.header_len()..],
        }
    } else {
        let (header, payload) = Ipv6::ref_from_prefix(packet).unwrap();
        assert_eq!(usize::from(header.payload_length.get()), payload.len());
        Seen {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            next: header.next_header,
            payload,
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces"]
fn esp_is_shown_whole_and_the_kernel_does_not_answer_it() {
    with_two_namespaces(|there| {
        let sender = RawIpSender::new(None).unwrap();
        for family in 0..2 {
            let (here, to) = addresses(family);
            let inbound = there.run(move || Inbound::esp(to, "p0").unwrap());
            let esp = [0, 0, 0x10, 1, 0, 0, 0, 1, 9, 9, 9, 9];
            sender.send(&packet(here, to, protocol::ESP, &esp)).unwrap();
            let mut buffer = [0; 2048];
            let len = wait(|| inbound.recv(&mut buffer));
            let seen = take_apart(&buffer[..len]);
            assert_eq!(
                (seen.source, seen.destination, seen.next),
                (here, to, protocol::ESP)
            );
            assert_eq!(seen.payload, esp);
            if family == 1 {
                assert_eq!(buffer[7], 61, "hop limit");
            }
        }
        let snmp = there.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let icmp: Vec<&str> = snmp.lines().filter(|line| line.starts_with("Icmp:")).collect();
        let column = icmp[0]
            .split(' ')
            .position(|name| name == "OutDestUnreachs")
            .unwrap();
        assert_eq!(icmp[1].split(' ').nth(column), Some("0"));
    });
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn a_route_into_the_tun_does_not_catch_what_is_sent_on_the_interface() {
    with_two_namespaces(|there| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let tun = Tun::create("t0", 1390).unwrap();
        assert!(Tun::create("t0", 1390).is_err(), "the name is taken");
        let sender = RawIpSender::new(Some("h0")).unwrap();
        let netlink = runtime.block_on(async { Netlink::connect() }).unwrap();
        let link = runtime.block_on(netlink.link("h0")).unwrap();
        assert_eq!(link.mtu, 1500);
        assert!(
            runtime
                .block_on(netlink.link("none0"))
                .unwrap_err()
                .to_string()
                .contains("none0")
        );
        let found = runtime.block_on(netlink.global_addresses(link.index)).unwrap();
        assert_eq!(
            found.usable,
            HERE.map(|address| address.parse::<IpAddr>().unwrap())
        );

        for family in 0..2 {
            let (here, to) = addresses(family);
            let route = Route {
                destination: towpath_base::selector::Prefix::host(to),
                interface: tun.index(),
                source: here,
                table: towpath_kernel::MAIN_TABLE,
            };
            runtime.block_on(netlink.add_route(&route)).unwrap();
            assert!(
                runtime.block_on(netlink.add_route(&route)).is_err(),
                "never over another"
            );
            let far = there.run(move || UdpSocket::bind(SocketAddr::new(to, 7000)).unwrap());
            far.set_read_timeout(Some(Duration::from_secs(2))).unwrap();

            // An application's packet comes out of the device with the right source and checksum.
            let unspecified: IpAddr = if family == 0 { "0.0.0.0" } else { "::" }.parse().unwrap();
            let near = UdpSocket::bind(SocketAddr::new(unspecified, 0)).unwrap();
            near.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            near.send_to(b"out", SocketAddr::new(to, 7000)).unwrap();
            let mut buffer = [0; 2048];
            let len = wait(|| tun.recv(&mut buffer));
            let seen = take_apart(&buffer[..len]);
            assert_eq!((seen.source, seen.destination), (here, to));
            assert_eq!(udp_checksum(here, to, seen.payload), 0);

            // Sent on the interface it reaches the peer, though the route says the device.
            sender.send(&buffer[..len]).unwrap();
            let mut payload = [0; 64];
            let (len, from) = far.recv_from(&mut payload).unwrap();
            assert_eq!((&payload[..len], from.ip()), (&b"out"[..], here));

            // What is given to the device reaches the application.
            let mut udp = Udp {
                source: U16::new(7000),
                destination: U16::new(near.local_addr().unwrap().port()),
                length: U16::new(10),
                checksum: U16::ZERO,
            };
            udp.checksum = U16::new(udp_checksum(to, here, &[udp.as_bytes(), b"in"].concat()));
            let mut back = packet(to, here, protocol::UDP, &[udp.as_bytes(), b"in"].concat());
            if family == 0 {
                let sum = checksum(&back[..20]).to_be_bytes();
                back[10..12].copy_from_slice(&sum);
            }
            tun.send(&back).unwrap();
            let (len, from) = near.recv_from(&mut payload).unwrap();
            assert_eq!((&payload[..len], from), (&b"in"[..], SocketAddr::new(to, 7000)));

            runtime.block_on(netlink.remove_route(&route)).unwrap();
            assert!(runtime.block_on(netlink.remove_route(&route)).is_err());
        }
        let mut buffer = [0; 2048];
        let idle = tun.recv(&mut buffer).unwrap_err().kind();
        assert_eq!(
            idle,
            std::io::ErrorKind::WouldBlock,
            "the device speaks only when spoken to"
        );
        drop(tun);
        assert!(runtime.block_on(netlink.link("t0")).is_err());
    });
}
