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
use towpath_ike::{Command, Config, Endpoint, FailReason, Initiate, Policy};

use crate::world::{any_of, proposal};

const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

fn sh(line: &str) {
    let status = Process::new("sh").args(["-c", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

/// The namespaces and the daemon; gone when dropped.
struct Lab {
    names: [String; 2],
    dir: PathBuf,
    charon: Child,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.charon.kill();
        let _ = self.charon.wait();
        for name in &self.names {
            let _ = Process::new("ip").args(["netns", "del", name]).status();
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl Lab {
    /// `tag` keeps labs apart that are up at the same time.
    fn up(tag: &str) -> Self {
        let names = ["a", "b"].map(|end| format!("ike-{tag}-{end}"));
        let [a, b] = &names;
        let dir = std::env::temp_dir().join(format!("ike-charon-{tag}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        sh(&format!("ip netns add {a} && ip netns add {b}"));
        sh(&format!("ip -n {a} link add v0 type veth peer name v0 netns {b}"));
        for (name, index) in [(a, 0), (b, 1)] {
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
            "ip -n {b} addr add 10.2.0.1/32 dev lo && ip -n {b} addr add fd02::1/128 dev lo"
        ));
        let base = dir.display();
        let configuration = format!(
            "charon-systemd {{
  load = random nonce openssl kdf hmac sha2 gcm aes curve25519 kernel-libipsec kernel-netlink socket-default vici
  install_virtual_ip = no
  retransmit_timeout = 1.0
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
            .args(["netns", "exec", b, "/usr/sbin/charon-systemd"])
            .env("STRONGSWAN_CONF", dir.join("strongswan.conf"))
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lab = Self { names, dir, charon };
        for _ in 0..200 {
            if lab.dir.join("vici").exists() {
                return lab;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("charon did not start: {}", lab.log());
    }

    /// Moves this thread to our end.
    fn enter(&self) {
        let namespace = fs::File::open(format!("/run/netns/{}", self.names[0])).unwrap();
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
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

    /// Without waiting for the end of it.
    fn start(&self, arguments: &str) {
        drop(self.swanctl(arguments).stdout(Stdio::null()).spawn().unwrap());
    }

    fn ask(&self, arguments: &str) -> String {
        String::from_utf8_lossy(&self.swanctl(arguments).output().unwrap().stdout).into_owned()
    }

    /// One connection, in place of all others.
    fn load(&self, case: &Case, secret: &str) {
        let Case { ike, esp, .. } = case;
        let addresses = case.addresses();
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
secrets {{ ike-1 {{ secret = \"{secret}\" }} }}
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
    fn addresses(&self) -> [&'static str; 2] {
        if self.v6 { V6 } else { V4 }
    }

    fn wish(&self) -> Initiate {
        let [local, remote] = self.addresses().map(|text| text.parse().unwrap());
        Initiate {
            tag: 1,
            local,
            remote,
            remote_port: None,
            policy: self.policy(),
        }
    }

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

/// Starts the exchange from one side.
fn start(lab: &Lab, case: &Case) -> Station {
    let mut station = Station::new(case.policy());
    if case.we_initiate {
        let now = station.now();
        station.endpoint.initiate(now, case.wish()).unwrap();
    } else {
        lab.start("--initiate --child c --timeout 8");
    }
    station
}

fn run(lab: &Lab, case: &Case, number: usize) {
    lab.load(case, "swordfish");
    let mut station = start(lab, case);
    station.run_until(lab, "established", |station| !station.children.is_empty());
    let list = lab.ask("--list-sas");
    for expected in [
        "ESTABLISHED",
        "INSTALLED",
        "'a.test'",
        &format!("@ {}", case.addresses()[0]),
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
    let lab = Lab::up("all");
    lab.enter();
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

fn plain_case(we_initiate: bool) -> Case {
    Case {
        ike: "aes256gcm16-prfsha256-x25519",
        esp: "aes256gcm16",
        suite: EspSuite::Aes256Gcm16,
        v6: false,
        we_initiate,
    }
}

/// The exchange ends without SA on either side.
fn assert_fails(lab: &Lab, case: &Case, expected: FailReason) {
    let mut station = start(lab, case);
    let failed = |command: &Command| matches!(command, Command::Failed { reason, .. } if *reason == expected);
    station.run_until(lab, "failed", |station| station.commands.iter().any(failed));
    assert!(station.children.is_empty());
    assert_eq!(lab.ask("--list-sas"), "");
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_and_we_refuse_each_other_cleanly() {
    let lab = Lab::up("no");
    lab.enter();
    lab.load(&plain_case(true), "catfish");
    assert_fails(&lab, &plain_case(true), FailReason::AuthenticationRefused);
    assert_fails(&lab, &plain_case(false), FailReason::AuthenticationFailed);
    let other = Case {
        ike: "aes128-sha256-modp2048",
        ..plain_case(true)
    };
    lab.load(&other, "swordfish");
    assert_fails(&lab, &plain_case(true), FailReason::NoProposalChosen);
    assert_fails(&lab, &plain_case(false), FailReason::NoProposalChosen);
    let other = Case {
        esp: "aes128-sha256",
        ..plain_case(true)
    };
    lab.load(&other, "swordfish");
    assert_fails(&lab, &plain_case(true), FailReason::NoProposalChosen);
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_and_we_find_the_common_group() {
    let lab = Lab::up("ke");
    lab.enter();
    let both = "aes256gcm16-prfsha256-x25519-ecp256";
    let one = "aes256gcm16-prfsha256-ecp256";
    for (ours, theirs, we_initiate) in [(both, one, true), (one, both, false)] {
        let case = |ike| Case {
            ike,
            ..plain_case(we_initiate)
        };
        lab.load(&case(theirs), "swordfish");
        let mut station = start(&lab, &case(ours));
        station.run_until(&lab, "established", |station| !station.children.is_empty());
        assert_same_keys(&lab, &station.only_child());
        assert!(
            station.trace.iter().any(|line| line.contains("N(INVAL_KE)")),
            "{:?}",
            station.trace
        );
        let now = station.now();
        let ike = ike_of(&station, now);
        station.endpoint.delete_ike(now, ike).unwrap();
        station.run_until(&lab, "deleted", |station| {
            station.endpoint.list(station.now()).count() == 0
        });
    }
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn simultaneous_starts_with_charon_end_with_one_sa() {
    let lab = Lab::up("two");
    lab.enter();
    let case = plain_case(true);
    lab.load(&case, "swordfish");
    let mut crossed = 0;
    for delay in [0, 4, 8, 12, 16, 20, 24, 28, 32, 40] {
        let mut station = Station::new(case.policy());
        lab.start("--initiate --child c --timeout 8");
        let begin = Clock::now();
        while begin.elapsed() < Duration::from_millis(delay) {
            station.turn();
        }
        let now = station.now();
        let _ = station.endpoint.initiate(now, case.wish());
        // Long enough for charon's retransmissions and our Delete.
        let begin = Clock::now();
        while begin.elapsed() < Duration::from_secs(6) {
            station.turn();
            sleep(Duration::from_millis(1));
        }
        let list = lab.ask("--list-sas");
        let count = |word: &str| list.matches(word).count();
        assert_eq!(
            (count("ESTABLISHED"), count("INSTALLED")),
            (1, 1),
            "{list}\n{:#?}",
            station.trace
        );
        let child = station.only_child();
        assert!(
            list.contains(&format!("{:08x}", child.spi_in.0)),
            "{list}\n{child:?}"
        );
        let answered = station.commands.iter().filter(|command| {
            matches!(
                command,
                Command::ChildEstablished { tag: Some(1), .. } | Command::Failed { tag: Some(1), .. }
            )
        });
        assert_eq!(answered.count(), 1, "{:#?}", station.commands);
        let inits = |arrow| {
            station
                .trace
                .iter()
                .any(|line| line.starts_with(&format!("{arrow} IKE_SA_INIT request")))
        };
        crossed += usize::from(inits("<--") && inits("-->"));
        let now = station.now();
        let ike = ike_of(&station, now);
        station.endpoint.delete_ike(now, ike).unwrap();
        station.run_until(&lab, "deleted", |station| station.children.is_empty());
        assert_eq!(lab.ask("--list-sas"), "");
    }
    println!("{crossed} of 10 starts crossed");
    assert!(crossed > 0);
}
