//! The lab: two terminals, a gateway and an unmodified IPsec peer on this machine.
//!
//! [`net`] draws it. The peer is strongSwan of one of two kinds ([`PeerKind`]). What a lab needs lies under
//! `.lab/INSTANCE`; the processes it started are recorded there with their start times, and only those
//! (and what runs inside its own namespaces) are ended by [`Lab::down`].
//!
//! strongSwan's user-space ESP (kernel-libipsec) has limits of its own, found out here: it only sends ESP in UDP,
//! and only in tunnel mode, so its connections force encapsulation and use tunnel mode with host selectors
//! (/32, /128). Since those selectors cover IKE's own packets, a mark keeps these out of the tunnel.

pub mod capture;
pub mod cli;
pub mod guest;
pub mod nat;
pub mod net;
pub mod state;
pub mod strongswan;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use self::capture::{Capture, Frame, Seen, What};
pub use self::net::{Family, Net, Node};
pub use self::strongswan::{Charon, ChildSa, Conn, IkeSa, Mode, Suite, psk};

use self::guest::Guest;
use self::state::{Process, State};
use self::strongswan::Place;
use crate::linkem::Links;
use crate::proof::stack::programs;
use crate::sh::{Cmd, Output, is_root};

/// Name of the link emulator's process.
const LINKEM: &str = "linkem";

/// What kind of peer a lab has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// charon over a real Linux kernel's XFRM, in user-mode Linux: raw ESP, transport mode
    #[default]
    Kernel,
    /// charon with ESP in user space, in a plain namespace: ESP in UDP, tunnel mode
    Libipsec,
}

impl PeerKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Libipsec => "libipsec",
        }
    }

    /// The mode its CHILD SAs use between hosts.
    pub fn mode(self) -> Mode {
        match self {
            Self::Kernel => Mode::Transport,
            Self::Libipsec => Mode::Tunnel,
        }
    }
}

/// How to bring a lab up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which lab: several can run side by side.
    pub instance: String,
    /// What kind of peer.
    pub peer: PeerKind,
    /// Whether terminal A's link is emulated: see [`Lab::set_link`].
    pub linkem: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instance: "default".to_owned(),
            peer: PeerKind::default(),
            linkem: false,
        }
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    root: PathBuf,
    dir: PathBuf,
    net: Net,
    state: State,
    ephemeral: bool,
}

impl Lab {
    fn folder(root: &Path, instance: &str) -> PathBuf {
        root.join(".lab").join(instance)
    }

    /// Brings the lab up, or finds it up already. A lab of another kind, or a broken one, is replaced.
    pub fn up(root: &Path, options: &Options) -> Result<Self> {
        if !is_root() {
            bail!("the lab makes network namespaces: run as root");
        }
        if let Some(lab) = Self::attach(root, &options.instance)?
            && lab.state.peer == options.peer
            && lab.state.linkem == options.linkem
            && lab.healthy()
        {
            return Ok(lab);
        }
        Self::down_instance(root, &options.instance)?;
        let dir = Self::folder(root, &options.instance);
        std::fs::create_dir_all(&dir)?;
        let net = Net::new(&options.instance)?;
        let state = State {
            peer: options.peer,
            linkem: options.linkem,
            ready: false,
            processes: vec![],
        };
        let mut lab = Self {
            root: root.to_owned(),
            dir,
            net,
            state,
            ephemeral: false,
        };
        lab.state.save(&lab.dir)?;
        if let Err(error) = lab.build() {
            let _ = lab.down();
            return Err(error.context("the lab did not come up"));
        }
        Ok(lab)
    }

    /// Brings up a lab that goes away when the value does: for tests. The instance's name gets the
    /// process id, so that tests do not meet.
    pub fn ephemeral(root: &Path, name: &str, peer: PeerKind) -> Result<Self> {
        Self::ephemeral_with(root, name, peer, false)
    }

    /// As [`Lab::ephemeral`], with a link emulator if told so.
    pub fn ephemeral_with(root: &Path, name: &str, peer: PeerKind, linkem: bool) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("{name}-{}-{count}", std::process::id());
        let options = Options {
            instance,
            peer,
            linkem,
        };
        let mut lab = Self::up(root, &options)?;
        lab.ephemeral = true;
        Ok(lab)
    }

    /// The lab of this name if there is one, whole or not.
    pub fn attach(root: &Path, instance: &str) -> Result<Option<Self>> {
        let dir = Self::folder(root, instance);
        let net = Net::new(instance)?;
        Ok(State::load(&dir).map(|state| Self {
            root: root.to_owned(),
            dir,
            net,
            state,
            ephemeral: false,
        }))
    }

    /// Whether everything that was brought up is still there.
    pub fn healthy(&self) -> bool {
        self.state.ready && self.net.exists() && self.peer_processes().all(Process::alive)
    }

    fn peer_processes(&self) -> impl Iterator<Item = &Process> {
        let counts = |p: &&Process| p.name.contains("peer") || p.name == LINKEM;
        self.state.processes.iter().filter(counts)
    }

    fn build(&mut self) -> Result<()> {
        self.net
            .up(self.state.peer == PeerKind::Kernel, self.state.linkem)?;
        if self.state.linkem {
            self.set_link(&Links::default())?;
        }
        let place = match self.state.peer {
            PeerKind::Kernel => {
                let guest = self.guest(Node::Peer);
                let process = guest.start(&self.root, &self.net, Node::Peer)?;
                self.record(process)?;
                Place::Guest(guest)
            }
            PeerKind::Libipsec => Place::Namespace(self.net.clone(), Node::Peer),
        };
        let (peer, process) = Charon::start(place, self.charon_dir(Node::Peer, self.state.peer))?;
        process.into_iter().try_for_each(|p| self.record(p))?;
        peer.load_conns(&self.default_conns())?;
        self.state.ready = true;
        self.state.save(&self.dir)
    }

    /// The connections a peer has when nobody asked for others: both terminals, both families, all suites.
    pub fn default_conns(&self) -> Vec<Conn> {
        [Node::Ta, Node::Tb]
            .into_iter()
            .flat_map(|t| Family::ALL.map(|f| Conn::of_peer(self.state.peer, t, f, Suite::Any)))
            .collect()
    }

    fn guest(&self, node: Node) -> Guest {
        Guest::at(self.dir.join(format!("guest-{}", node.name())))
    }

    fn charon_dir(&self, node: Node, kind: PeerKind) -> PathBuf {
        match kind {
            // The guest sees its work folder at /run/work.
            PeerKind::Kernel => self.guest(node).dir().join("ss"),
            PeerKind::Libipsec => self.dir.join(format!("charon-{}", node.name())),
        }
    }

    /// Starts another charon, in a terminal's place: what a terminal with IKE of its own would do. Of kind
    /// `Kernel` it takes over the terminal's interface.
    pub fn stand_in(&mut self, node: Node, kind: PeerKind) -> Result<Charon> {
        let place = match kind {
            PeerKind::Kernel => {
                let flush = "ip addr flush dev eth0; echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";
                self.net.inside(node, Cmd::new("sh").args(["-c", flush])).run()?;
                let guest = self.guest(node);
                let process = guest.start(&self.root, &self.net, node)?;
                self.record(process)?;
                Place::Guest(guest)
            }
            PeerKind::Libipsec => Place::Namespace(self.net.clone(), node),
        };
        let (charon, process) = Charon::start(place, self.charon_dir(node, kind))?;
        process.into_iter().try_for_each(|p| self.record(p))?;
        Ok(charon)
    }

    /// Boots a guest kernel in a terminal's place, which takes over the terminal's interface and addresses.
    pub fn boot_guest(&mut self, node: Node) -> Result<Guest> {
        let flush = "ip addr flush dev eth0; echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";
        self.net.inside(node, Cmd::new("sh").args(["-c", flush])).run()?;
        let guest = self.guest(node);
        let process = guest.start(&self.root, &self.net, node)?;
        self.record(process)?;
        Ok(guest)
    }

    /// Makes the emulated link of terminal A what `links` says, from now on: `ab` is from the gateway to the terminal.
    /// What is on its way is lost. What the link before really did is then in `linkem.json` in the lab's folder.
    pub fn set_link(&mut self, links: &Links) -> Result<()> {
        links.configs()?;
        self.stop_link()?;
        let [a, b] = net::EMULATOR_PORTS;
        let cmd = Cmd::new(programs()?.join("xtask"))
            .args(["linkem", "--a", a, "--b", b, "--json"])
            .arg(self.dir.join("linkem.json"))
            .args(links.arguments());
        let log = self.log_file(LINKEM);
        let _ = std::fs::remove_file(&log);
        let pid = self.net.inside_emulator(cmd).spawn(&log)?;
        let process = Process::note(LINKEM, pid);
        self.record(process.clone())?;
        let ready = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"));
        if state::wait_for(Duration::from_secs(5), || ready() || !process.alive()) && ready() {
            return Ok(());
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("the link emulator did not start: {}", said.trim())
    }

    /// Ends terminal A's emulated link: nothing passes any more.
    pub fn stop_link(&mut self) -> Result<()> {
        if !self.state.linkem {
            bail!("this lab's links are not emulated: cargo xtask lab up --linkem");
        }
        for process in self.state.processes.iter().filter(|p| p.name == LINKEM) {
            process.end(Duration::from_secs(2));
        }
        self.state.processes.retain(|p| p.name != LINKEM);
        self.state.save(&self.dir)
    }

    /// Takes the peer behind a NAT that adds `base` to its ports; its charon starts anew there. See [`Net::put_behind_nat`].
    pub fn put_peer_behind_nat(&mut self, base: u16) -> Result<()> {
        self.kill_peer()?;
        self.net.put_behind_nat()?;
        self.start_peer()?;
        let file = self.dir.join("nat.base");
        std::fs::write(&file, base.to_string())?;
        for family in Family::ALL {
            let cmd = Cmd::new(programs()?.join("xtask"))
                .args(["nat", "--inside", &net::behind_nat(family).to_string()])
                .args(["--outside", &Node::Peer.addr(family).to_string()])
                .args(["--far", &Node::Ta.addr(family).to_string(), "--base"])
                .arg(&file);
            let name = nat_log(family);
            let pid = self.net.inside_nat(cmd).spawn(&self.log_file(name))?;
            self.record(Process::note(name, pid))?;
        }
        self.wait_mapped(base)
    }

    /// The NAT forgets its mapping: from now on it adds `base`.
    pub fn remap_nat(&self, base: u16) -> Result<()> {
        std::fs::write(self.dir.join("nat.base"), base.to_string())?;
        self.wait_mapped(base)
    }

    fn wait_mapped(&self, base: u16) -> Result<()> {
        let line = format!("mapped {base}");
        for family in Family::ALL {
            let said = || std::fs::read_to_string(self.log_file(nat_log(family))).unwrap_or_default();
            if !state::wait_for(Duration::from_secs(20), || {
                said().lines().any(|said| said == line)
            }) {
                bail!("the {family} NAT does not map: {}", said());
            }
        }
        Ok(())
    }

    /// Ends the peer's charon without a word to anybody. Not for a guest kernel.
    pub fn kill_peer(&mut self) -> Result<()> {
        let name = format!("charon of {}", Node::Peer.name());
        for process in self.state.processes.iter().filter(|p| p.name == name) {
            process.signal(nix::sys::signal::Signal::SIGKILL);
            state::wait_for(Duration::from_secs(10), || !process.alive());
        }
        self.state.processes.retain(|p| p.name != name);
        // Its successor is there when its socket is.
        let _ = std::fs::remove_file(self.net.socket(Node::Peer, "vici"));
        self.state.save(&self.dir)
    }

    /// Starts the peer's charon again, without connections. Not for a guest kernel.
    pub fn start_peer(&mut self) -> Result<Charon> {
        let place = Place::Namespace(self.net.clone(), Node::Peer);
        let (charon, process) = Charon::start(place, self.charon_dir(Node::Peer, PeerKind::Libipsec))?;
        process.into_iter().try_for_each(|p| self.record(p))?;
        Ok(charon)
    }

    fn record(&mut self, process: Process) -> Result<()> {
        self.state.processes.push(process);
        self.state.save(&self.dir)
    }

    /// The repository's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The lab's folder: logs, sockets, captures.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its namespaces.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// What kind of peer it has.
    pub fn peer_kind(&self) -> PeerKind {
        self.state.peer
    }

    /// The processes it started.
    pub fn processes(&self) -> &[Process] {
        &self.state.processes
    }

    /// The peer's charon.
    pub fn peer(&self) -> Charon {
        let place = match self.state.peer {
            PeerKind::Kernel => Place::Guest(self.guest(Node::Peer)),
            PeerKind::Libipsec => Place::Namespace(self.net.clone(), Node::Peer),
        };
        Charon::at(place, self.charon_dir(Node::Peer, self.state.peer))
    }

    /// Runs a command at a node and waits for it. In a guest kernel both streams arrive in `stdout`.
    pub fn exec(&self, node: Node, cmd: &Cmd, limit: Duration) -> Result<Output> {
        let guest = self.guest(node);
        if guest.dir().join("ready").exists() {
            return guest.exec(&cmd.shown(), limit);
        }
        self.net.inside(node, cmd.clone()).limit(limit).output()
    }

    /// Starts a command at a node in the background; [`Lab::down`] ends it. Its output goes to
    /// Makes a program of this build runnable at a node and says under which path: a guest kernel has a `/tmp` of
    /// its own, which would hide a build that lies there.
    pub fn lend(&self, node: Node, program: &Path) -> Result<PathBuf> {
        let guest = self.guest(node);
        if !guest.dir().join("ready").exists() {
            return Ok(program.to_owned());
        }
        let name = program.file_name().context("a program has a name")?;
        std::fs::copy(program, guest.dir().join(name))
            .with_context(|| format!("lend {} to the guest", program.display()))?;
        Ok(Path::new("/run/work").join(name))
    }

    /// `NAME.log` in the lab's folder. Not for a guest kernel.
    pub fn spawn(&mut self, node: Node, name: &str, cmd: &Cmd) -> Result<Process> {
        let pid = self.net.inside(node, cmd.clone()).spawn(&self.log_file(name))?;
        let process = Process::note(name, pid);
        self.record(process.clone())?;
        Ok(process)
    }

    /// Where the output of a spawned command is.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// Where this lab's gateway pins its BPF objects.
    pub fn pin_dir(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.net.namespace(Node::Gw))
    }

    /// Captures everything on an interface of a namespace (for a guest kernel: of the one it sits in).
    pub fn capture(&self, node: Node, interface: &str) -> Result<Capture> {
        Capture::start(&self.net, node, interface, &self.dir.join("captures"))
    }

    /// Sends frames as they are out of a node's `eth0`. Not for a guest kernel.
    pub fn inject(&self, node: Node, frames: &[Frame]) -> Result<()> {
        let file = self.dir.join("inject.pcap");
        capture::write(&file, frames)?;
        let cmd = Cmd::new("tcpreplay")
            .args(["-q", "--pps=2000", "-i", "eth0"])
            .arg(&file);
        self.net.inside(node, cmd).limit(Duration::from_secs(60)).run()
    }

    /// Ends what the lab started and removes its namespaces and files.
    pub fn down(&self) -> Result<()> {
        for node in Node::ALL {
            self.guest(node).power_off();
        }
        for process in self.state.processes.iter().rev() {
            let guest = process.name.starts_with("guest");
            let patience = Duration::from_millis(if guest { 2500 } else { 1500 });
            if guest && state::wait_for(patience, || !process.alive()) {
                continue;
            }
            process.end(patience);
        }
        for pid in self.net.processes() {
            Process::note("left over in a namespace", pid).end(Duration::from_millis(500));
        }
        for node in Node::ALL {
            for socket in ["vici", "admin", "terminal"] {
                let _ = std::fs::remove_file(self.net.socket(node, socket));
            }
        }
        let _ = std::fs::remove_dir_all(self.pin_dir());
        self.net.down()?;
        match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }

    /// Removes the lab of this name, also one whose state was lost; does nothing when there is none.
    pub fn down_instance(root: &Path, instance: &str) -> Result<()> {
        let state = State::load(&Self::folder(root, instance)).unwrap_or(State {
            peer: PeerKind::default(),
            linkem: false,
            ready: false,
            processes: vec![],
        });
        let net = Net::new(instance)?;
        Self {
            root: root.to_owned(),
            dir: Self::folder(root, instance),
            net,
            state,
            ephemeral: false,
        }
        .down()
    }
}

/// Name and log of the NAT of a family.
fn nat_log(family: Family) -> &'static str {
    match family {
        Family::V4 => "nat-v4",
        Family::V6 => "nat-v6",
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.ephemeral
            && let Err(error) = self.down()
        {
            eprintln!("lab: {error:#}");
        }
    }
}
