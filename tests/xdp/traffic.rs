//! Real packets between namespaces: terminal — gateway — peer (see `topology`).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use towpath_afxdp::{Engine, Sockets};
use towpath_base::selector::Prefix;
use towpath_bpf::{CompiledProfile, Dataplane, Mode, attach_pass, counters};
use towpath_common::DropReason;
use towpath_common::abi::{DivertMeta, ProfileEntry};
use towpath_common::counter::{Counter, DivertKind, FibStatus};

use crate::topology::{Topology, load, object, open_sockets};

const TERMINAL: [&str; 2] = ["10.77.1.2", "fd77:1::2"];
const PEER: [&str; 2] = ["10.77.9.2", "fd77:9::2"];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn bind(topology: &Topology, role: &str, address: &str, port: u16) -> UdpSocket {
    topology.inside(role, || {
        let socket = UdpSocket::bind(SocketAddr::new(ip(address), port)).expect("bind");
        socket
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("timeout");
        socket
    })
}

/// Sends a datagram and waits for it on the other side; false if it does not arrive.
fn passes(from: &UdpSocket, to: &UdpSocket, payload: &[u8]) -> bool {
    from.send_to(payload, to.local_addr().expect("address"))
        .expect("send");
    let mut buffer = [0; 2048];
    matches!(to.recv_from(&mut buffer), Ok((len, source))
        if buffer[..len] == *payload && source == from.local_addr().expect("address"))
}

fn packets(topology: &Topology, counter: Counter) -> u64 {
    let all = counters(&topology.pin_dir()).expect("counters");
    all.iter()
        .find(|(other, _)| *other == counter)
        .expect("a counter")
        .1
        .packets
}

/// The namespaces' far ends have to receive through NAPI, or redirected frames are lost.
fn listen_to_xdp(topology: &Topology) {
    for (role, device) in [("t", "t0"), ("p", "p0")] {
        let dir = topology.pin_dir().join(role);
        topology.inside(role, || {
            attach_pass(&object(), device, &dir).unwrap_or_else(|error| panic!("{error}"))
        });
    }
}

fn start(topology: &Topology, mode: Mode) -> (Dataplane, Sockets) {
    topology.inside("gw", || {
        let mut dataplane = load(topology, mode);
        let sockets = open_sockets(&mut dataplane);
        (dataplane, sockets)
    })
}

fn profile() -> CompiledProfile {
    let entries = TERMINAL.map(|address| (Prefix::host(ip(address)), ProfileEntry::standard(7)));
    CompiledProfile {
        handle: 7,
        entries: entries.to_vec(),
        ..CompiledProfile::default()
    }
}

/// Ends the worker even if the test fails: a scope waits for its threads.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Forwards what is diverted by the metadata, as a worker that touches nothing else would.
fn forward(engine: &mut Engine, stop: &AtomicBool) -> Vec<DivertMeta> {
    let ports: Vec<_> = engine.ports().collect();
    let mut batch = Vec::with_capacity(64);
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        engine.wait(None, Duration::from_millis(20)).expect("wait");
        for (port, _) in &ports {
            engine.receive(*port, &mut batch);
            for mut frame in batch.drain(..) {
                let Some(meta) = frame.meta() else { continue };
                seen.push(meta);
                let Some(egress) = engine.port_on(meta.egress_ifindex.get()) else {
                    continue;
                };
                if meta.fib_status() != FibStatus::Resolved {
                    continue;
                }
                let bytes = frame.bytes_mut();
                bytes[..6].copy_from_slice(&meta.dmac);
                bytes[6..12].copy_from_slice(&meta.smac);
                engine.transmit(egress, frame).expect("room");
            }
        }
        engine.flush();
    }
    seen
}

fn ordinary_traffic_flows(topology: &Topology) {
    for (terminal, peer) in TERMINAL.into_iter().zip(PEER) {
        let terminal = bind(topology, "t", terminal, 7000);
        let peer = bind(topology, "p", peer, 7000);
        assert!(passes(&terminal, &peer, b"up"), "{terminal:?} to {peer:?}");
        assert!(passes(&peer, &terminal, b"down"), "{peer:?} to {terminal:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn ordinary_traffic_is_forwarded_inside_xdp_for_both_families() {
    let topology = Topology::new();
    let (dataplane, _sockets) = start(&topology, Mode::Native);
    listen_to_xdp(&topology);
    ordinary_traffic_flows(&topology);
    assert_eq!(packets(&topology, Counter::Forwarded), 4);
    drop(dataplane);
}

#[test]
#[ignore = "needs root"]
fn generic_mode_forwards_too() {
    let topology = Topology::new();
    let (_dataplane, _sockets) = start(&topology, Mode::Generic);
    ordinary_traffic_flows(&topology);
    assert_eq!(packets(&topology, Counter::Forwarded), 4);
}

#[test]
#[ignore = "needs root"]
fn diverted_packets_reach_user_space_and_come_back_out_and_ordinary_ones_survive_it() {
    let topology = Topology::new();
    let (mut dataplane, sockets) = start(&topology, Mode::Native);
    listen_to_xdp(&topology);
    dataplane.profiles().insert(&profile()).expect("insert");
    let stop = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let worker = scope.spawn(|| {
            let mut engine = sockets.start();
            let seen = forward(&mut engine, &stop);
            let account = engine.account();
            assert_eq!(account.held, 0, "{account:?}");
            seen
        });
        for (terminal, peer) in TERMINAL.into_iter().zip(PEER) {
            let terminal = bind(&topology, "t", terminal, 500);
            let peer = bind(&topology, "p", peer, 500);
            let mut request = [0; 28];
            (request[7], request[15]) = (100, 100);
            assert!(passes(&terminal, &peer, &request), "request");
            assert!(passes(&peer, &terminal, &[1; 64]), "IKE message");
        }
        ordinary_traffic_flows(&topology);
        drop(stopping);
        worker.join().expect("worker")
    });
    let kinds: Vec<_> = seen
        .iter()
        .map(|meta| (meta.divert_kind(), meta.handle.get()))
        .collect();
    let both = [
        (Some(DivertKind::IkeFromTerminal), 7),
        (Some(DivertKind::IkeToTerminal), 7),
    ];
    assert_eq!(kinds, [both, both].concat());
    assert_eq!(packets(&topology, Counter::Forwarded), 4);

    // The worker is gone, and its sockets with it: diverted packets are dropped and counted, ordinary flow.
    let terminal = bind(&topology, "t", TERMINAL[0], 500);
    let peer = bind(&topology, "p", PEER[0], 500);
    peer.send_to(&[1; 64], terminal.local_addr().expect("address"))
        .expect("send");
    ordinary_traffic_flows(&topology);
    assert_eq!(packets(&topology, Counter::Drop(DropReason::NoUserSpace)), 1);
    drop(dataplane);
    ordinary_traffic_flows(&topology);

    // The next daemon takes over with everything in place.
    let (mut dataplane, sockets) = start(&topology, Mode::Native);
    assert!(
        dataplane.ports().iter().all(|port| port.taken_over),
        "{:?}",
        dataplane.ports()
    );
    assert_eq!(dataplane.profiles().list().expect("list"), [profile()]);
    ordinary_traffic_flows(&topology);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let worker = scope.spawn(|| forward(&mut sockets.start(), &stop));
        assert!(
            passes(&peer, &terminal, &[2; 64]),
            "IKE message after the restart"
        );
        drop(stopping);
        worker.join().expect("worker");
    });
}

#[test]
#[ignore = "needs root"]
fn large_packets_and_bursts_come_through_user_space_whole() {
    let topology = Topology::new();
    let (mut dataplane, sockets) = start(&topology, Mode::Native);
    listen_to_xdp(&topology);
    dataplane.profiles().insert(&profile()).expect("insert");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let worker = scope.spawn(|| forward(&mut sockets.start(), &stop));
        let terminal = bind(&topology, "t", TERMINAL[0], 4500);
        let peer = bind(&topology, "p", PEER[0], 4500);
        for number in 0..200u16 {
            let mut payload = vec![0xa5; 1 + usize::from(number) * 6 + 8];
            payload[..2].copy_from_slice(&(number | 0x8000).to_be_bytes());
            assert!(passes(&terminal, &peer, &payload), "{number} up");
            assert!(passes(&peer, &terminal, &payload), "{number} down");
        }
        drop(stopping);
        assert_eq!(worker.join().expect("worker").len(), 400);
    });
}
