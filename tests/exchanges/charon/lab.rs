//! charon in a namespace, and our endpoint on real sockets in another.

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

pub(super) const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
pub(super) const V6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

pub(super) fn sh(line: &str) {
    let status = Process::new("sh").args(["-c", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

/// The namespaces and the daemon; gone when dropped.
pub(super) struct Lab {
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
    pub(super) fn up(tag: &str) -> Self {
        Self::up_with(tag, "")
    }

    /// With more lines of configuration.
    pub(super) fn up_with(tag: &str, extra: &str) -> Self {
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
  load = random nonce openssl kdf hmac sha1 sha2 gcm ccm ctr aes chapoly curve25519 pem pkcs1 pkcs8 pubkey x509 \
    constraints kernel-libipsec kernel-netlink socket-default vici
  {extra}
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
swanctl {{ load = random openssl curve25519 pem pkcs1 pkcs8 pubkey x509 }}
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

    /// A file of this lab.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Moves this thread to our end.
    pub(super) fn enter(&self) {
        let namespace = fs::File::open(format!("/run/netns/{}", self.names[0])).unwrap();
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub(super) fn swanctl(&self, arguments: &str) -> Process {
        let uri = format!("unix://{}/vici", self.dir.display());
        let mut process = Process::new("swanctl");
        process.args(arguments.split_whitespace()).args(["--uri", &uri]);
        process
            .env("STRONGSWAN_CONF", self.dir.join("strongswan.conf"))
            .env("SWANCTL_DIR", self.dir.join("swanctl"))
            .stderr(Stdio::null());
        process
    }

    /// Without waiting for the end of it.
    pub(super) fn start(&self, arguments: &str) {
        drop(self.swanctl(arguments).stdout(Stdio::null()).spawn().unwrap());
    }

    pub(super) fn ask(&self, arguments: &str) -> String {
        String::from_utf8_lossy(&self.swanctl(arguments).output().unwrap().stdout).into_owned()
    }

    /// One connection, in place of all others.
    pub(super) fn load(&self, case: &Case, secret: &str) {
        self.load_with(case, secret, "mobike = no");
    }

    /// Adds an address of one end, ours being 0.
    pub(super) fn add_address(&self, end: usize, address: &str) {
        let kind = if address.contains(':') { "/64 nodad" } else { "/24" };
        let (bits, nodad) = kind.split_once(' ').unwrap_or((kind, ""));
        sh(&format!(
            "ip -n {} addr add {address}{bits} dev v0 {nodad}",
            self.names[end]
        ));
    }

    /// Takes an address away; the others stay.
    pub(super) fn remove_address(&self, end: usize, address: &str) {
        let name = &self.names[end];
        let bits = if address.contains(':') { 64 } else { 24 };
        let keep = "echo 1 >/proc/sys/net/ipv4/conf/v0/promote_secondaries";
        sh(&format!(
            "ip netns exec {name} sh -c '{keep}' && ip -n {name} addr del {address}/{bits} dev v0"
        ));
    }

    /// As [`Self::load`], with lines of the connection's own.
    pub(super) fn load_with(&self, case: &Case, secret: &str, lines: &str) {
        let Case { ike, esp, .. } = case;
        let addresses = case.addresses();
        let [ours, theirs] = addresses;
        let [our_net, their_net] = case.nets();
        let local = if lines.contains("mobike = yes") {
            "%any"
        } else {
            theirs
        };
        let text = format!(
            "connections {{ t {{ version = 2
  local_addrs = {local}
  remote_addrs = {ours}
  proposals = {ike}
  encap = yes
  {lines}
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
pub(super) struct Station {
    pub(super) endpoint: Endpoint<IkeCrypto, SystemRng>,
    sockets: Vec<(SocketAddr, UdpSocket)>,
    start: Clock,
    policy: Policy,
    pub(super) children: BTreeMap<Spi, ChildSa>,
    pub(super) commands: Vec<Command>,
    pub(super) trace: Vec<String>,
}

impl Station {
    pub(super) fn new(policy: Policy) -> Self {
        Self::at(policy, &[V4[0], V6[0]], false)
    }

    /// With these addresses; `mobike` has SAs follow ends that move.
    pub(super) fn at(policy: Policy, addresses: &[&str], mobike: bool) -> Self {
        let socket = |address: SocketAddr| {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_nonblocking(true).unwrap();
            (address, socket)
        };
        let ports = addresses
            .iter()
            .map(|text| text.parse::<IpAddr>().unwrap())
            .flat_map(|ip| [500, 4500].map(|port| SocketAddr::new(ip, port)));
        let config = Config {
            dpd_after: None,
            mobike,
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

    pub(super) fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    pub(super) fn turn(&mut self) {
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

    pub(super) fn flush(&mut self) {
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

    pub(super) fn run_until(&mut self, lab: &Lab, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Clock::now() + Duration::from_secs(30);
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

    pub(super) fn only_child(&self) -> ChildSa {
        assert_eq!(self.children.len(), 1, "{:#?}", self.trace);
        self.children.values().next().unwrap().clone()
    }
}

pub(super) struct Case {
    pub(super) ike: &'static str,
    pub(super) esp: &'static str,
    pub(super) suite: EspSuite,
    pub(super) v6: bool,
    pub(super) we_initiate: bool,
}

impl Case {
    pub(super) fn addresses(&self) -> [&'static str; 2] {
        if self.v6 { V6 } else { V4 }
    }

    pub(super) fn wish(&self) -> Initiate {
        let [local, remote] = self.addresses().map(|text| text.parse().unwrap());
        Initiate {
            tag: 1,
            local,
            remote,
            remote_port: None,
            policy: self.policy(),
        }
    }

    pub(super) fn nets(&self) -> [&'static str; 2] {
        if self.v6 {
            ["fd01::/64", "fd02::/64"]
        } else {
            ["10.1.0.0/24", "10.2.0.0/24"]
        }
    }

    pub(super) fn policy(&self) -> Policy {
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
            auth: Default::default(),
        }
    }
}

/// The first 16 bytes as charon's log dumps them.
pub(super) fn dumped(key: &[u8]) -> String {
    key[..16]
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// charon derived the same keys.
pub(super) fn assert_same_keys(lab: &Lab, child: &ChildSa) {
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
