//! The engine against an unmodified strongSwan, over real sockets.
//!
//! ```text
//!   namespace ike-a                         namespace ike-b
//!   our endpoint                            charon, ESP in user space (kernel-libipsec)
//!   192.0.2.1, 2001:db8::1 ── v0 ═══ v0 ── 192.0.2.2, 2001:db8::2
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant as Clock};

use nix::sched::{CloneFlags, setns};
use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode};
use towpath_base::{Instant, Spi};
use towpath_crypto::{IkeCrypto, SystemRng};
use towpath_ike::{Command, Config, Endpoint, Initiate, Policy};

use crate::world::{any_of, proposal};

const A: &str = "ike-a";
const B: &str = "ike-b";
const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

fn sh(line: &str) {
    let status = Process::new("sh").args(["-c", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

/// The namespaces and the daemon; gone when dropped.
struct Lab {
    dir: PathBuf,
    charon: Child,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.charon.kill();
        let _ = self.charon.wait();
        for name in [A, B] {
            let _ = Process::new("ip").args(["netns", "del", name]).status();
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl Lab {
    fn up() -> Self {
        let dir = std::env::temp_dir().join(format!("ike-charon-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        sh(&format!("ip netns add {A} && ip netns add {B}"));
        sh(&format!("ip -n {A} link add v0 type veth peer name v0 netns {B}"));
        for (name, index) in [(A, 0), (B, 1)] {
            let (v4, v6) = (V4[index], V6[index]);
            sh(&format!(
                "ip -n {name} link set lo up && ip -n {name} link set v0 up"
            ));
            sh(&format!(
                "ip -n {name} addr add {v4}/24 dev v0 && ip -n {name} addr add {v6}/64 dev v0 nodad"
            ));
        }
        // kernel-libipsec wants an address inside what it protects.
        sh(&format!(
            "ip -n {B} addr add 10.2.0.1/32 dev lo && ip -n {B} addr add fd02::1/128 dev lo"
        ));
        let base = dir.display();
        let configuration = format!(
            "charon-systemd {{
  load = random nonce openssl kdf hmac sha2 gcm aes curve25519 kernel-libipsec kernel-netlink socket-default vici
  install_virtual_ip = no
  plugins {{
    vici {{ socket = unix://{base}/vici }}
    kernel-libipsec {{ allow_peer_ts = yes }}
  }}
  filelog {{ l {{ path = {base}/log
    default = 1
    ike = 2
    enc = 1
    chd = 4
    flush_line = yes }} }}
  journal {{ default = -1 }}
}}
swanctl {{ load = random openssl }}
"
        );
        fs::write(dir.join("strongswan.conf"), configuration).unwrap();
        let output = fs::File::create(dir.join("out")).unwrap();
        let charon = Process::new("ip")
            .args(["netns", "exec", B, "/usr/sbin/charon-systemd"])
            .env("STRONGSWAN_CONF", dir.join("strongswan.conf"))
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lab = Self { dir, charon };
        for _ in 0..200 {
            if lab.dir.join("vici").exists() {
                return lab;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("charon did not start: {}", lab.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn swanctl(&self, arguments: &str) -> Process {
        let uri = format!("unix://{}/vici", self.dir.display());
        let mut process = Process::new("swanctl");
        process.args(arguments.split_whitespace()).args(["--uri", &uri]);
        process
            .env("STRONGSWAN_CONF", self.dir.join("strongswan.conf"))
            .stderr(Stdio::null());
        process
    }

    fn ask(&self, arguments: &str) -> String {
        String::from_utf8_lossy(&self.swanctl(arguments).output().unwrap().stdout).into_owned()
    }

    /// One connection, in place of all others.
    fn load(&self, case: &Case, addresses: [&str; 2]) {
        let Case { ike, esp, .. } = case;
        let [ours, theirs] = addresses;
        let [our_net, their_net] = case.nets();
        let text = format!(
            "connections {{ t {{ version = 2
  local_addrs = {theirs}
  remote_addrs = {ours}
  proposals = {ike}
  encap = yes
  mobike = no
  local {{ auth = psk
    id = b.test }}
  remote {{ auth = psk
    id = a.test }}
  children {{ c {{ local_ts = {their_net}
    remote_ts = {our_net}
    esp_proposals = {esp}
    mode = tunnel }} }} }} }}
secrets {{ ike-1 {{ secret = \"swordfish\" }} }}
"
        );
        let file = self.dir.join("swanctl.conf");
        fs::write(&file, text).unwrap();
        let answer = self.ask(&format!("--load-all --file {}", file.display()));
        assert!(answer.contains("loaded connection 't'"), "{answer}");
    }
}

/// Our side: an endpoint on real sockets.
struct Station {
    endpoint: Endpoint<IkeCrypto, SystemRng>,
    sockets: Vec<(SocketAddr, UdpSocket)>,
    start: Clock,
    policy: Policy,
    children: BTreeMap<Spi, ChildSa>,
    commands: Vec<Command>,
    trace: Vec<String>,
}

impl Station {
    fn new(policy: Policy) -> Self {
        let socket = |address: SocketAddr| {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_nonblocking(true).unwrap();
            (address, socket)
        };
        let addresses = [V4[0], V6[0]].map(|text| text.parse::<IpAddr>().unwrap());
        let ports = addresses
            .into_iter()
            .flat_map(|ip| [500, 4500].map(|port| SocketAddr::new(ip, port)));
        let config = Config {
            dpd_after: None,
            ..Config::default()
        };
        Self {
            endpoint: Endpoint::new(config, IkeCrypto, SystemRng),
            sockets: ports.map(socket).collect(),
            start: Clock::now(),
            policy,
            children: BTreeMap::new(),
            commands: Vec::new(),
            trace: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    fn turn(&mut self) {
        let mut buffer = [0; 4096];
        for index in 0..self.sockets.len() {
            let now = self.now();
            let (local, socket) = &self.sockets[index];
            while let Ok((len, source)) = socket.recv_from(&mut buffer) {
                // UDP encapsulation: IKE starts with four zeros, everything else is ESP or a keepalive.
                let message = match local.port() {
                    4500 => buffer[..len].strip_prefix(&[0, 0, 0, 0]),
                    _ => Some(&buffer[..len]),
                };
                if let Some(message) = message
                    && let Err(reason) = self.endpoint.handle_datagram(now, source, *local, message)
                {
                    self.trace.push(format!("dropped: {}", reason.name()));
                }
            }
        }
        self.endpoint.handle_timeout(self.now());
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(command) = self.endpoint.poll_command() {
            match &command {
                Command::NeedPolicy { request, .. } => {
                    let now = self.now();
                    self.endpoint
                        .provide_policy(now, *request, Some(self.policy.clone()));
                }
                Command::ChildEstablished { child, .. } => {
                    self.children.insert(child.spi_in, child.clone());
                }
                Command::ChildDeleted { spi_in, .. } => {
                    self.children.remove(spi_in);
                }
                Command::Exchange { sent, line, .. } => {
                    self.trace
                        .push(format!("{} {line}", if *sent { "-->" } else { "<--" }));
                    continue;
                }
                _ => {}
            }
            self.commands.push(command);
        }
        while let Some(datagram) = self.endpoint.poll_transmit() {
            let (_, socket) = self
                .sockets
                .iter()
                .find(|(local, _)| *local == datagram.source)
                .unwrap();
            let mut payload = datagram.payload;
            if datagram.source.port() == 4500 {
                payload.splice(0..0, [0; 4]);
            }
            socket.send_to(&payload, datagram.destination).unwrap();
        }
    }

    fn run_until(&mut self, lab: &Lab, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Clock::now() + Duration::from_secs(8);
        while !done(self) {
            if Clock::now() > deadline {
                panic!("{what}\n{:#?}\n{:#?}\n{}", self.trace, self.commands, lab.log());
            }
            self.turn();
            sleep(Duration::from_millis(2));
        }
        // Whatever follows at once.
        for _ in 0..25 {
            self.turn();
            sleep(Duration::from_millis(2));
        }
    }

    fn only_child(&self) -> ChildSa {
        assert_eq!(self.children.len(), 1, "{:#?}", self.trace);
        self.children.values().next().unwrap().clone()
    }
}

struct Case {
    ike: &'static str,
    esp: &'static str,
    suite: EspSuite,
    v6: bool,
    we_initiate: bool,
}

impl Case {
    fn nets(&self) -> [&'static str; 2] {
        if self.v6 {
            ["fd01::/64", "fd02::/64"]
        } else {
            ["10.1.0.0/24", "10.2.0.0/24"]
        }
    }

    fn policy(&self) -> Policy {
        let [ours, theirs] = self.nets();
        Policy {
            local_id: IkeId::Fqdn("a.test".into()),
            remote_id: Some(IkeId::Fqdn("b.test".into())),
            psk: Psk::new(b"swordfish".to_vec()),
            ike_proposals: vec![proposal(self.ike)],
            esp_suites: vec![self.suite],
            esn: true,
            mode: Mode::Tunnel,
            local_ts: vec![any_of(ours)],
            remote_ts: vec![any_of(theirs)],
            lifetime: Lifetime::default(),
            force_encap: false,
        }
    }
}

/// The first 16 bytes as charon's log dumps them.
fn dumped(key: &[u8]) -> String {
    key[..16]
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// charon derived the same keys.
fn assert_same_keys(lab: &Lab, child: &ChildSa) {
    let log = lab.log();
    for keys in [&child.keys_in, &child.keys_out] {
        assert!(log.contains(&dumped(keys.cipher.expose())), "keys differ\n{log}");
        if !keys.integrity.is_empty() {
            assert!(
                log.contains(&dumped(keys.integrity.expose())),
                "keys differ\n{log}"
            );
        }
    }
}

fn run(lab: &Lab, case: &Case, number: usize) {
    let addresses = if case.v6 { V6 } else { V4 };
    lab.load(case, addresses);
    let mut station = Station::new(case.policy());
    let [ours, theirs] = addresses.map(|text| text.parse::<IpAddr>().unwrap());
    if case.we_initiate {
        let wish = Initiate {
            tag: 1,
            local: ours,
            remote: theirs,
            remote_port: None,
            policy: case.policy(),
        };
        let now = station.now();
        station.endpoint.initiate(now, wish).unwrap();
    } else {
        drop(
            lab.swanctl("--initiate --child c --timeout 8")
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
    }
    station.run_until(lab, "established", |station| !station.children.is_empty());
    let list = lab.ask("--list-sas");
    for expected in [
        "ESTABLISHED",
        "INSTALLED",
        "'a.test'",
        &format!("@ {}", addresses[0]),
    ] {
        assert!(list.contains(expected), "{expected}: {list}");
    }
    let child = station.only_child();
    assert_eq!((child.suite, child.mode), (case.suite, Mode::Tunnel));
    assert!(child.encap.is_some());
    assert_same_keys(lab, &child);

    let replaced = |old: &ChildSa| {
        let old = old.spi_in;
        move |station: &Station| station.children.len() == 1 && !station.children.contains_key(&old)
    };
    // charon rekeys the CHILD SA, then we.
    drop(
        lab.swanctl("--rekey --child c")
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    station.run_until(lab, "child rekeyed by charon", replaced(&child));
    let child = station.only_child();
    assert_same_keys(lab, &child);
    let now = station.now();
    let ike = station.endpoint.list(now).next().unwrap().id;
    station.endpoint.rekey_child(now, ike, child.spi_in).unwrap();
    station.run_until(lab, "child rekeyed by us", replaced(&child));
    let child = station.only_child();
    assert_same_keys(lab, &child);

    // charon rekeys the IKE SA, then we; the CHILD SA moves along.
    let renamed = |count| {
        move |station: &Station| {
            let moved = station
                .commands
                .iter()
                .filter(|command| matches!(command, Command::IkeRekeyed { .. }));
            moved.count() == count
        }
    };
    drop(
        lab.swanctl("--rekey --ike t")
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    station.run_until(lab, "IKE SA rekeyed by charon", renamed(1));
    let now = station.now();
    let ike = ike_of(&station, now);
    station.endpoint.rekey_ike(now, ike).unwrap();
    station.run_until(lab, "IKE SA rekeyed by us", renamed(2));
    assert_eq!(station.only_child(), child);
    assert_eq!(lab.ask("--list-sas").matches("ESTABLISHED").count(), 1);

    // Deleted from either side.
    if number.is_multiple_of(2) {
        drop(
            lab.swanctl("--terminate --ike t")
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
    } else {
        let now = station.now();
        let ike = ike_of(&station, now);
        station.endpoint.delete_ike(now, ike).unwrap();
    }
    station.run_until(lab, "deleted", |station| station.children.is_empty());
    assert_eq!(lab.ask("--list-sas"), "");
}

fn ike_of(station: &Station, now: Instant) -> towpath_ike::IkeSaId {
    let mut list = station.endpoint.list(now);
    list.find(|sa| sa.state == towpath_ike::IkeState::Established)
        .unwrap()
        .id
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_agrees_in_both_roles_families_and_all_suites() {
    let lab = Lab::up();
    let namespace = fs::File::open(format!("/run/netns/{A}")).unwrap();
    setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
    let suites = [
        (
            "aes256gcm16-prfsha256-x25519",
            "aes256gcm16",
            EspSuite::Aes256Gcm16,
        ),
        ("aes128-sha256-ecp256", "aes128-sha256", EspSuite::Aes128CbcSha256),
        (
            "aes256-sha512-modp2048",
            "aes256-sha256",
            EspSuite::Aes256CbcSha256,
        ),
        (
            "aes128gcm16-prfsha384-ecp256",
            "aes128gcm16",
            EspSuite::Aes128Gcm16,
        ),
    ];
    let mut number = 0;
    for (ike, esp, suite) in suites {
        for v6 in [false, true] {
            for we_initiate in [true, false] {
                let case = Case {
                    ike,
                    esp,
                    suite,
                    v6,
                    we_initiate,
                };
                run(&lab, &case, number);
                println!("{ike} {esp} v6={v6} we_initiate={we_initiate}: agreed");
                number += 1;
            }
        }
    }
}
