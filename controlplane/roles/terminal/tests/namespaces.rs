//! The terminal on a real kernel, against the scripted network.
//!
//! ```text
//!   terminal's namespace                                network's namespace
//!   h0 10.99.0.1, 2001:db8:99::1 ───────── veth ─────── p0 10.99.0.2, 2001:db8:99::2 (the gateway's)
//!   tp0  TUN: plain packets of this host                peer0 TUN: plain packets of the peer
//!     default via the gateway                             198.51.100.1, 2001:db8:51::1 (the peer's)
//! ```
//!
//! An application's packet takes the way TUN → ESP → wire → ESP → TUN, and so does the answer. The namespaces
//! have no names and go with their threads.

mod network;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant as Clock};

use network::{Network, Output, PATIENCE, Script};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use towpath_base::sa::{EspSuite, Mode};
use towpath_base::{DropReason, Instant, SecretKey};
use towpath_kernel::{Inbound, RawIpSender, Tun, sysctl};
use towpath_terminal::{Status, TerminalConfig};

const TERMINAL: [&str; 2] = ["10.99.0.1", "2001:db8:99::1"];
const GATEWAY: [&str; 2] = ["10.99.0.2", "2001:db8:99::2"];
const PEER: [&str; 2] = ["198.51.100.1", "2001:db8:51::1"];
const KSUB: [u8; 32] = [0x5a; 32];
const HANDLE: u64 = 7;
const PORT: u16 = 7000;

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

fn configure(device: &str, [v4, v6]: [&str; 2]) {
    ip("link set lo up");
    for interface in ["all", device] {
        sysctl::set_if_present("ipv4", interface, "rp_filter", 0).unwrap();
        sysctl::set_if_present("ipv6", interface, "accept_dad", 0).unwrap();
    }
    ip(&format!("addr add {v4}/24 dev {device}"));
    ip(&format!("addr add {v6}/64 dev {device} nodad"));
    ip(&format!("link set {device} up"));
}

/// The network's namespace, with the script and an echoing peer at work in it.
struct Far {
    network: Arc<Mutex<Network>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Far {
    /// Called in the terminal's namespace; creates the other one and the wire between them.
    fn start(terms: Script) -> Self {
        ip("link add h0 type veth peer name p0");
        let network = Arc::new(Mutex::new(Network::new(SecretKey::new(KSUB), HANDLE, terms, 1)));
        let stop = Arc::new(AtomicBool::new(false));
        let (path, got_path) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let (shared, stopped) = (network.clone(), stop.clone());
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            path.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid()))
                .unwrap();
            wait.recv().unwrap();
            configure("p0", GATEWAY);
            let tun = Tun::create("peer0", 1390).unwrap();
            for (family, (peer, terminal)) in PEER.into_iter().zip(TERMINAL).enumerate() {
                let host = ["/32", "/128"][family];
                ip(&format!(
                    "addr add {peer}{host} dev peer0 {}",
                    ["", "nodad"][family]
                ));
                ip(&format!("route add {terminal}{host} dev peer0 src {peer}"));
            }
            let echo = PEER.map(|peer| {
                let listener = TcpListener::bind((peer.parse::<IpAddr>().unwrap(), PORT)).unwrap();
                thread::spawn(move || echo(&listener))
            });
            ready.send(()).unwrap();
            serve(&shared, &stopped, &tun);
            drop(echo);
        });
        ip(&format!("link set p0 netns {}", got_path.recv().unwrap()));
        go.send(()).unwrap();
        configure("h0", TERMINAL);
        for gateway in GATEWAY {
            ip(&format!("route add default via {gateway}"));
        }
        is_ready.recv().unwrap();
        Self {
            network,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || thread::panicking());
    }
}

/// Returns what one connection sends.
fn echo(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..len]).is_err() {
                    return;
                }
            }
        });
    }
}

/// Moves packets between the wire, the script and the peer's device.
fn serve(network: &Mutex<Network>, stop: &AtomicBool, tun: &Tun) {
    let started = Clock::now();
    let sender = RawIpSender::new(Some("p0")).unwrap();
    let inbound: Vec<Inbound> = PEER
        .into_iter()
        .flat_map(|peer| {
            let peer = peer.parse().unwrap();
            let esp = Inbound::esp(peer, "p0").unwrap();
            [
                esp,
                Inbound::udp(peer, 500, "p0").unwrap(),
                Inbound::udp(peer, 4500, "p0").unwrap(),
            ]
        })
        .collect();
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut fds: Vec<PollFd<'_>> = inbound
            .iter()
            .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN))
            .collect();
        fds.push(PollFd::new(tun.as_fd(), PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::from(10u8)).unwrap();
        let now = Instant::from_nanos(started.elapsed().as_nanos() as u64);
        let mut network = network.lock().unwrap();
        let mut out = network.poll(now);
        for socket in &inbound {
            while let Ok(len) = socket.recv(&mut buffer) {
                out.extend(network.handle_terminal(now, &buffer[..len]));
            }
        }
        while let Ok(len) = tun.recv(&mut buffer) {
            let plain = &buffer[..len];
            out.push(Output::ToTerminal(
                network.handle_peer(now, plain).unwrap_or_else(|| plain.to_vec()),
            ));
        }
        drop(network);
        for output in out {
            match output {
                Output::ToTerminal(packet) => sender.send(&packet).unwrap(),
                Output::ToPeer(packet) => tun.send(&packet).unwrap(),
            }
        }
    }
}

/// The terminal, at work on a thread of the terminal's namespace.
struct Near {
    shutdown: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// State, control socket, key log.
    folder: Option<tempfile::TempDir>,
}

impl Near {
    fn start(policies: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), policies)
    }

    fn start_in(folder: tempfile::TempDir, policies: &str) -> Self {
        let hex: String = KSUB.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "handle = {HANDLE}\nksub = \"{hex}\"\ninterface = \"h0\"\ntun = \"tp0\"\nstate_file = \"{0}/state\"\n\
             control_socket = \"{0}/control\"\ndebug_key_log = \"{0}/keys\"\n{policies}",
            folder.path().display()
        );
        let config: TerminalConfig = toml::from_str(&text).unwrap();
        config.validate().unwrap();
        let (shutdown, stop) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let stop = async {
                let _ = stop.await;
            };
            runtime.block_on(towpath_terminal::run(config, stop)).unwrap();
        });
        let near = Self {
            shutdown: Some(shutdown),
            thread: Some(thread),
            folder: Some(folder),
        };
        near.wait_for(|status| status.registered);
        near
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.as_ref().unwrap().path().join(name)
    }

    fn wait_for(&self, reached: impl Fn(&Status) -> bool) -> Status {
        let start = Clock::now();
        loop {
            let status = towpath_terminal::query(&self.file("control"));
            if let Some(status) = status.as_ref().ok().filter(|status| reached(status)) {
                return status.clone();
            }
            assert!(start.elapsed() < PATIENCE, "{status:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the terminal; its files stay as long as what this returns.
    fn stop(mut self) -> tempfile::TempDir {
        let control = self.file("control");
        self.shutdown.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
        assert!(!control.exists());
        self.folder.take().unwrap()
    }
}

/// Runs `test` on a thread in a namespace of its own: the terminal's. One at a time: the key log is the process's.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn protect_both() -> String {
    PEER.map(|peer| format!("[[policy]]\npeer = \"{peer}\"\naction = \"protect\"\n"))
        .concat()
}

/// `len` bytes out and back over one TCP connection.
fn transfer(peer: &str, len: usize) {
    let address = SocketAddr::new(peer.parse().unwrap(), PORT);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let data: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
    let (mut writer, sent) = (stream.try_clone().unwrap(), data.clone());
    let writing = thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut back = vec![0; len];
    stream.read_exact(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == data, "the bytes that came back are others");
}

fn ping(peer: &str) {
    let output = Command::new("ping")
        .args(["-c", "3", "-i", "0.05", "-W", "5", peer])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

fn traffic_is_protected(terms: Script) {
    in_namespace(move || {
        let far = Far::start(terms);
        let near = Near::start(&protect_both());
        for peer in PEER {
            ping(peer);
            transfer(peer, 1 << 20);
            let (opened, sealed) = far.network.lock().unwrap().carried(peer.parse().unwrap());
            assert!(
                opened > 700 && sealed > 700,
                "{peer}: {opened} packets out, {sealed} in"
            );
        }
        let status = near.wait_for(|status| status.sas.len() == 2);
        for sa in &status.sas {
            assert_eq!(
                (sa.mode.as_str(), sa.udp_encapsulated),
                (terms.mode.name(), terms.encap)
            );
            assert!(
                sa.packets_in > 700 && sa.packets_out > 700 && sa.sending,
                "{sa:?}"
            );
        }
        let network = far.network.lock().unwrap();
        assert!(network.refused.is_empty(), "{:?}", network.refused);
        let log = std::fs::read_to_string(near.file("keys")).unwrap();
        for key in &network.keys {
            let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(log.contains(&hex), "the key log lacks a key");
        }
        drop(network);
        near.stop();
        let links = Command::new("ip").args(["link", "show", "tp0"]).output().unwrap();
        assert!(!links.status.success(), "the device is gone");
    });
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn transport_mode_raw_esp() {
    traffic_is_protected(Script::default());
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn transport_mode_udp_encapsulated() {
    let suite = EspSuite::Aes128CbcSha256;
    traffic_is_protected(Script {
        encap: true,
        suite,
        ..Script::default()
    });
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn tunnel_mode_raw_esp() {
    let suite = EspSuite::Aes256CbcSha256;
    traffic_is_protected(Script {
        mode: Mode::Tunnel,
        suite,
        ..Script::default()
    });
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn tunnel_mode_udp_encapsulated() {
    traffic_is_protected(Script {
        mode: Mode::Tunnel,
        encap: true,
        ..Script::default()
    });
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn policies_decide_what_is_protected() {
    in_namespace(|| {
        let far = Far::start(Script::default());
        // TCP in clear, the rest protected; on IPv6 everything is thrown away.
        let near = Near::start(&format!(
            "[[policy]]\npeer = \"{0}\"\nprotocol = \"tcp\"\naction = \"bypass\"\n\
             [[policy]]\npeer = \"{0}\"\naction = \"protect\"\n\
             [[policy]]\npeer = \"{1}\"\naction = \"discard\"\n",
            PEER[0], PEER[1]
        ));
        let carried = || far.network.lock().unwrap().carried(PEER[0].parse().unwrap());
        transfer(PEER[0], 1 << 16);
        assert_eq!(carried(), (0, 0));
        ping(PEER[0]);
        assert!(carried().0 >= 3);
        let address = SocketAddr::new(PEER[1].parse().unwrap(), PORT);
        assert!(TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_err());
        let status = near.wait_for(|status| status.counters.contains_key("drop.policy_discard"));
        assert!(status.counters["drop.policy_discard"] > 0);
        near.stop();
    });
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn a_terminal_that_starts_again_gets_new_sas() {
    in_namespace(|| {
        let far = Far::start(Script::default());
        let near = Near::start(&protect_both());
        ping(PEER[0]);
        let first = near.wait_for(|status| status.sas.len() == 1);
        let near = Near::start_in(near.stop(), &protect_both());
        ping(PEER[0]);
        let second = near.wait_for(|status| status.sas.len() == 1);
        assert_ne!(first.sas[0].spi_in, second.sas[0].spi_in);
        let network = far.network.lock().unwrap();
        assert_eq!(network.registrations, 2);
        assert!(!network.refused.contains_key(&DropReason::KeyxReplayed));
        drop(network);
        near.stop();
    });
}

#[test]
#[ignore = "needs root: network namespaces, TUN"]
fn a_network_that_lost_its_state_is_found_again() {
    in_namespace(|| {
        let far = Far::start(Script::default());
        let near = Near::start(&protect_both());
        ping(PEER[0]);
        far.network.lock().unwrap().restart();
        // The next request meets no session, and the hint to register again follows.
        let start = Clock::now();
        while far.network.lock().unwrap().registrations < 2 {
            assert!(start.elapsed() < PATIENCE);
            let _ = Command::new("ping")
                .args(["-c", "1", "-W", "1", PEER[1]])
                .output();
        }
        ping(PEER[1]);
        near.stop();
    });
}
