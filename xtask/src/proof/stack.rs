//! Towpath itself in the lab: the daemon at the gateway, an agent at each terminal, two subscribers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::judge::{RESERVED_SPI, keys_of_log};
use super::nonces;
use super::scenario::Class;
use crate::lab::state::{Process, wait_for};
use crate::lab::{Family, Lab, Mode, Node, psk};
use crate::sh::{Cmd, last_lines};

/// How long a command of ours may take.
const LIMIT: Duration = Duration::from_secs(15);

/// Control socket of an agent in a guest kernel.
const GUEST_SOCKET: &str = "/run/agent.sock";

/// The folder of this build's programs.
pub fn programs() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("a program has a folder")?;
    // A test runs from `deps`, beside which the programs are.
    let dir = if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    };
    Ok(dir.to_owned())
}

/// A running Towpath.
#[derive(Debug)]
pub struct Stack {
    /// The lab it runs in.
    pub lab: Lab,
    dir: PathBuf,
    towpath: PathBuf,
    xdp_object: PathBuf,
    daemon: Option<Process>,
    agents: Vec<Process>,
    secrets: Vec<Vec<u8>>,
    /// More of the gateway's configuration.
    extra: String,
    /// Changes a subscriber's record before it is added.
    edit: fn(Node, &mut Value),
}

impl Stack {
    /// Starts everything in `lab`; both terminals are registered when this returns.
    pub fn start(lab: Lab, xdp_object: &Path) -> Result<Self> {
        Self::start_with(lab, xdp_object, "")
    }

    /// As [`Stack::start`], with `extra` at the end of the gateway's configuration.
    pub fn start_with(lab: Lab, xdp_object: &Path, extra: &str) -> Result<Self> {
        Self::start_edited(lab, xdp_object, extra, |_, _| ())
    }

    /// As [`Stack::start_with`], with subscribers changed by `edit`.
    pub fn start_edited(
        lab: Lab,
        xdp_object: &Path,
        extra: &str,
        edit: fn(Node, &mut Value),
    ) -> Result<Self> {
        let dir = lab.dir().join("towpath");
        let _ = fs::remove_dir_all(&dir);
        let _ = fs::remove_dir_all(lab.pin_dir());
        fs::create_dir_all(&dir)?;
        let mut stack = Self {
            lab,
            dir,
            towpath: programs()?.join("towpath"),
            xdp_object: xdp_object.to_owned(),
            daemon: None,
            agents: vec![],
            secrets: vec![],
            extra: extra.to_owned(),
            edit,
        };
        stack.write_private("store.key", &hex(&random()?))?;
        stack.write_private("gw.toml", &stack.gateway_config())?;
        stack.start_daemon()?;
        for terminal in [Node::Ta, Node::Tb] {
            stack.provision(terminal)?;
            stack.start_agent(terminal)?;
        }
        stack.wait_registered()?;
        Ok(stack)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn write_private(&self, file: &str, text: &str) -> Result<()> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path(file);
        let _ = fs::remove_file(&path);
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        out.write_all(text.as_bytes())
            .with_context(|| path.display().to_string())
    }

    fn gateway_config(&self) -> String {
        let ports: String = [(Node::Ta, "access"), (Node::Tb, "access"), (Node::Peer, "core")]
            .map(|(node, role)| {
                format!(
                    "[[gateway.port]]\nname = \"{}\"\nrole = \"{role}\"\n\n",
                    node.gateway_port()
                )
            })
            .concat();
        // Roles are named before any table.
        let (roles, extra) = match self.extra.split_once('\n') {
            Some((roles, extra)) if roles.starts_with("roles = ") => (roles, extra),
            _ => (
                "roles = [\"gateway\", \"keyserver\", \"registry\"]",
                self.extra.as_str(),
            ),
        };
        format!(
            "{roles}\n\n[gateway]\npin_dir = {pins:?}\n\
             bpf_object = {object:?}\nreserved_spi = {RESERVED_SPI}\n\n{ports}[store]\npath = {store:?}\n\
             kek_file = {kek:?}\n\n[admin]\nsocket = {socket:?}\n\n[debug]\nkey_log = {keys:?}\n{nonces}{extra}",
            pins = self.lab.pin_dir(),
            object = self.xdp_object,
            store = self.path("towpath.redb"),
            kek = self.path("store.key"),
            socket = self.socket(),
            keys = self.path("gw.keys"),
            nonces = if nonces::are_recorded() {
                format!("nonce_log = {:?}\n", self.path("gw.nonces"))
            } else {
                String::new()
            },
        )
    }

    fn socket(&self) -> PathBuf {
        self.lab.net().socket(Node::Gw, "admin")
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&mut self) -> Result<()> {
        let _ = fs::remove_file(self.socket());
        let cmd = Cmd::new(&self.towpath)
            .args(["run", "--config"])
            .arg(self.path("gw.toml"));
        let process = self.lab.spawn(Node::Gw, "towpath", &cmd)?;
        self.daemon = Some(process.clone());
        let answers = || self.cli(&["status"]).is_ok() || !process.alive();
        if !wait_for(Duration::from_secs(20), answers) || !process.alive() {
            bail!("the daemon did not start; its log:\n{}", self.tail("towpath", 30));
        }
        Ok(())
    }

    /// Kills the daemon without warning.
    pub fn kill_daemon(&mut self) {
        if let Some(process) = self.daemon.take() {
            process.signal(nix::sys::signal::Signal::SIGKILL);
            wait_for(Duration::from_secs(3), || !process.alive());
        }
    }

    /// The processes that must stay alive.
    pub fn dead(&self) -> Option<&Process> {
        self.daemon.iter().chain(&self.agents).find(|p| !p.alive())
    }

    /// Runs a command of the command line against the daemon and reads its JSON.
    pub fn cli(&self, args: &[&str]) -> Result<Value> {
        let cmd = Cmd::new(&self.towpath)
            .args(args)
            .args(["--json", "--config"])
            .arg(self.path("gw.toml"));
        let out = self.lab.exec(Node::Gw, &cmd, LIMIT)?;
        if !out.ok() {
            bail!(
                "towpath {} ended with status {:?}: {}",
                args.join(" "),
                out.code,
                out.all()
            );
        }
        serde_json::from_str(&out.stdout)
            .with_context(|| format!("towpath {}: {}", args.join(" "), out.stdout))
    }

    /// A log's last lines.
    pub fn tail(&self, name: &str, lines: usize) -> String {
        let text = fs::read(self.lab.log_file(name)).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&text), lines)
    }

    /// Adds a subscriber and writes its terminal's configuration.
    fn provision(&mut self, terminal: Node) -> Result<()> {
        let ksub = random()?;
        let mut record = self.record(terminal, &ksub);
        (self.edit)(terminal, &mut record);
        // What the terminal protects beside the peers of every lab; not part of the record.
        let more = record.as_object_mut().and_then(|record| record.remove("protect"));
        let more: Vec<String> = more.map_or(Ok(Vec::new()), serde_json::from_value)?;
        let file = format!("{}.subscriber.json", terminal.name());
        self.write_private(&file, &serde_json::to_string_pretty(&record)?)?;
        let file = self.path(&file).display().to_string();
        self.cli(&["subscriber", "import", &file])
            .context("cannot add the subscriber")?;
        let shown = self.cli(&["subscriber", "show", terminal.name()])?;
        let handle = find(&shown, "handle").with_context(|| format!("no handle in {shown}"))?;
        let handle = handle
            .as_u64()
            .with_context(|| format!("handle {handle} is no number"))?;
        self.write_private(
            &format!("{}.toml", terminal.name()),
            &self.terminal_config(terminal, handle, &ksub, &more, &levels_of(&record)),
        )?;
        self.secrets.push(ksub);
        self.secrets.push(psk(terminal).into_bytes());
        Ok(())
    }

    fn record(&self, terminal: Node, ksub: &[u8]) -> Value {
        let other = if terminal == Node::Ta { Node::Tb } else { Node::Ta };
        let class = if terminal == crate::proof::scenario::Scenario::terminal_of(Class::Full) {
            "full"
        } else {
            "none"
        };
        let mode = if self.lab.peer_kind().mode() == Mode::Transport {
            "transport"
        } else {
            "tunnel"
        };
        let policy = |peer: Node, family: Family, class: &str, mode: &str| {
            json!({
                "peer": format!("{}/{}", peer.addr(family), family.host_bits()),
                "local_id": terminal.identity(),
                "remote_id": peer.identity(),
                "ike_proposals":
                    ["aes256gcm16-prfsha256-x25519", "aes256-sha256-ecp256", "aes128-sha256-modp2048"],
                "esp_suites": ["aes256gcm16", "aes256-sha256", "aes128gcm16"],
                "mode": mode,
                "class": class,
                "psk": if peer == Node::Peer { psk(terminal) } else { psk(Node::Ta) },
            })
        };
        let peers: Vec<Value> = Family::ALL
            .iter()
            .flat_map(|f| {
                [
                    policy(Node::Peer, *f, class, mode),
                    policy(other, *f, "full", "transport"),
                ]
            })
            .collect();
        let addresses: Vec<String> = Family::ALL
            .iter()
            .map(|f| format!("{}/{}", terminal.addr(*f), f.host_bits()))
            .collect();
        json!({
            "name": terminal.name(),
            "identification": { "nai": terminal.identity() },
            "addresses": addresses,
            "ksub": hex(ksub),
            "peers": peers,
        })
    }

    fn terminal_config(
        &self,
        terminal: Node,
        handle: u64,
        ksub: &[u8],
        more: &[String],
        levels: &[(u64, String)],
    ) -> String {
        let name = terminal.name();
        let other = if terminal == Node::Ta { Node::Tb } else { Node::Ta };
        // An application's choice goes before what is for everything.
        let chosen = levels.iter().map(|(level, peer)| {
            format!("\n[[policy]]\npeer = \"{peer}\"\naction = \"protect\"\nlevel = {level}\n")
        });
        let numbers: BTreeSet<u64> = levels.iter().map(|(level, _)| *level).collect();
        let numbers = numbers
            .iter()
            .map(|level| format!("\n[[level]]\nlevel = {level}\n"));
        let chosen: String = chosen.chain(numbers).collect();
        let policies: String = [Node::Peer, other]
            .iter()
            .flat_map(|peer| Family::ALL.map(|f| format!("{}/{}", peer.addr(f), f.host_bits())))
            .chain(more.iter().cloned())
            .map(|peer| format!("\n[[policy]]\npeer = \"{peer}\"\naction = \"protect\"\n"))
            .collect();
        let addresses = Family::ALL
            .map(|f| format!("{:?}", terminal.addr(f).to_string()))
            .join(", ");
        format!(
            "name = \"{name}\"\nhandle = {handle}\nksub = \"{}\"\ninterface = \"eth0\"\naddresses = [{addresses}]\n\
             reserved_spi = {RESERVED_SPI}\nstate_file = {:?}\ncontrol_socket = {:?}\ndebug_key_log = {:?}\n{chosen}{policies}",
            hex(ksub),
            self.path(&format!("{name}.state")),
            self.lab.net().socket(terminal, "terminal"),
            self.path(&format!("{name}.keys")),
        )
    }

    fn start_agent(&mut self, terminal: Node) -> Result<()> {
        let config = self.path(&format!("{}.toml", terminal.name()));
        let cmd = Cmd::new(&self.towpath).args(["terminal", "--config"]).arg(config);
        let process = self
            .lab
            .spawn(terminal, &format!("terminal-{}", terminal.name()), &cmd)?;
        self.agents.push(process);
        Ok(())
    }

    /// Ends a terminal's agent and starts it anew, with its state, in a guest kernel that takes the terminal's place;
    /// `extra` goes in front of its configuration. What it says is then in `agent.log` in the guest's `/run/work`.
    pub fn move_into_guest(&mut self, terminal: Node, extra: &str) -> Result<()> {
        let name = terminal.name();
        let process_name = format!("terminal-{name}");
        for agent in self.agents.iter().filter(|agent| agent.name == process_name) {
            agent.end(Duration::from_secs(5));
        }
        self.agents.retain(|agent| agent.name != process_name);
        let guest = self.lab.boot_guest(terminal)?;
        let program = self.lab.lend(terminal, &self.towpath)?;
        fs::copy(
            self.path(&format!("{name}.state")),
            guest.dir().join("terminal.state"),
        )?;
        let ours = fs::read_to_string(self.path(&format!("{name}.toml")))?;
        // Files of the host are not the guest's, and its interface has another name.
        let kept = ours.lines().filter(|line| {
            !["state_file", "control_socket", "debug_key_log", "interface"]
                .iter()
                .any(|key| line.starts_with(key))
        });
        let theirs = format!(
            "interface = \"vec0\"\nstate_file = \"/run/work/terminal.state\"\ncontrol_socket = {GUEST_SOCKET:?}\n{extra}\n{}\n",
            kept.collect::<Vec<_>>().join("\n")
        );
        fs::write(guest.dir().join("terminal.toml"), theirs)?;
        let start = format!(
            "setsid {} terminal --config /run/work/terminal.toml >/run/work/agent.log 2>&1 </dev/null & echo $! >/run/agent.pid",
            program.display()
        );
        self.lab.exec(terminal, &Cmd::new(start), LIMIT)?;
        Ok(())
    }

    /// What the agent of [`Stack::move_into_guest`] says of itself.
    pub fn guest_status(&self, terminal: Node) -> Result<Value> {
        let ask = format!("/run/work/towpath terminal status --json --socket {GUEST_SOCKET}");
        let out = self.lab.exec(terminal, &Cmd::new(ask), LIMIT)?;
        serde_json::from_str(&out.stdout).with_context(|| out.all())
    }

    /// Waits until both terminals are registered.
    pub fn wait_registered(&self) -> Result<()> {
        let registered = || {
            self.cli(&["status"])
                .ok()
                .and_then(|s| find(&s, "registered")?.as_u64())
                == Some(2)
        };
        if wait_for(Duration::from_secs(15), || registered() || self.dead().is_some())
            && self.dead().is_none()
        {
            return Ok(());
        }
        bail!(
            "the terminals did not register.\ndaemon:\n{}\nterminal A:\n{}\nterminal B:\n{}",
            self.tail("towpath", 20),
            self.tail("terminal-ta", 20),
            self.tail("terminal-tb", 20)
        )
    }

    /// Runs a command of the command line against another of our processes at the gateway, whose admin socket this
    /// is, and reads its JSON.
    pub fn cli_at(&self, socket: &Path, args: &[&str]) -> Result<Value> {
        let cmd = Cmd::new(&self.towpath)
            .args(args)
            .args(["--json", "--admin"])
            .arg(socket);
        let out = self.lab.exec(Node::Gw, &cmd, LIMIT)?;
        if !out.ok() {
            bail!("towpath {}: {}", args.join(" "), out.all());
        }
        serde_json::from_str(&out.stdout)
            .with_context(|| format!("towpath {}: {}", args.join(" "), out.stdout))
    }

    /// A command that follows the daemon's events, one line each.
    pub fn events(&self) -> Cmd {
        let cmd = Cmd::new(&self.towpath)
            .args(["events", "--config"])
            .arg(self.path("gw.toml"));
        self.lab.net().inside(Node::Gw, cmd)
    }

    /// The ESP SAs the daemon serves.
    pub fn sas(&self) -> Result<Vec<Value>> {
        match self.cli(&["sa", "list"])? {
            Value::Array(sas) => Ok(sas),
            Value::Object(map) => Ok(map
                .into_iter()
                .find_map(|(_, v)| v.as_array().cloned())
                .unwrap_or_default()),
            other => bail!("towpath sa list: {other}"),
        }
    }

    /// The daemon's counter of this name, summed over its groups.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let stats = self.cli(&["stats"])?;
        let counters = find(&stats, "counters")
            .and_then(Value::as_array)
            .context("no counters")?;
        let named = counters
            .iter()
            .filter(|c| c.get("name").and_then(Value::as_str) == Some(name));
        Ok(named.filter_map(|c| c.get("packets")?.as_u64()).sum())
    }

    /// Resident memory of the daemon, KiB.
    pub fn daemon_memory(&self) -> Result<u64> {
        let pid = self.daemon.as_ref().context("no daemon")?.pid;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .context("no VmRSS")
    }

    /// Every key known: what daemon and terminals logged, subscriber keys, pre-shared keys.
    pub fn known_keys(&self) -> Vec<Vec<u8>> {
        let mut keys = self.secrets.clone();
        for file in ["gw.keys", "ta.keys", "tb.keys"] {
            keys.extend(keys_of_log(
                &fs::read_to_string(self.path(file)).unwrap_or_default(),
            ));
        }
        keys
    }

    /// What the daemon, in all its lives, wrote down of the packets it sealed.
    pub fn nonces(&self) -> Result<nonces::Nonces> {
        nonces::read(&self.path("gw.nonces"))
    }

    /// Ends Towpath and hands the lab back, with what the daemon, in all its lives, sealed.
    pub fn end(self) -> Result<(Lab, nonces::Nonces)> {
        for process in self.agents.iter().chain(&self.daemon) {
            process.end(Duration::from_secs(3));
        }
        let found = self.nonces();
        let _ = fs::remove_dir_all(self.lab.pin_dir());
        let _ = fs::remove_file(self.socket());
        Ok((self.lab, found?))
    }

    /// As [`Stack::end`], for tests.
    ///
    /// # Panics
    /// The daemon used a nonce for two packets, and was not told to; or what it wrote down cannot be read.
    pub fn stop(self) -> Lab {
        let told = self.extra.contains("danger_start_over");
        let (lab, found) = self.end().expect("the log of nonces is readable");
        assert!(
            told || found.reused == 0,
            "a nonce was used for two packets: {found}"
        );
        lab
    }
}

/// The value of the first key of this name, at any depth.
pub fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(items) => items.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

fn random() -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = vec![0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Peers of a record that are for a sensitivity level other than 0.
fn levels_of(record: &Value) -> Vec<(u64, String)> {
    let peers = record.get("peers").and_then(Value::as_array);
    let leveled = peers.into_iter().flatten().filter_map(|peer| {
        let level = peer.get("level")?.as_u64().filter(|level| *level != 0)?;
        Some((level, peer.get("peer")?.as_str()?.to_owned()))
    });
    leveled.collect()
}
