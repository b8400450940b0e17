//! Runs one scenario and judges it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::judge::{self, Expectation, KeySearch};
use super::scenario::{Class, Scenario, Starter};
use super::stack::{Stack, find, programs};
use crate::lab::state::wait_for;
use crate::lab::{Capture, ChildSa, Conn, IkeSa, Lab, Node, PeerKind, Suite, net};
use crate::pump;
use crate::sh::Cmd;

/// Bytes of each bulk transfer: 10 MiB.
pub const BULK: u64 = 10 << 20;

/// How long an exchange may take, from the first packet to traffic.
const EXCHANGE: Duration = Duration::from_secs(15);

/// How long one bulk transfer may take.
const TRANSFER: Duration = Duration::from_secs(180);

/// The judgements, in the order of the table's columns.
pub const CHECKS: [&str; 8] = [
    "exchange",
    "peer's report",
    "ping",
    "10 MiB out",
    "10 MiB in",
    "peer side",
    "access side",
    "delete",
];

/// How a scenario went.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub scenario: Scenario,
    /// With what kind of peer.
    pub peer: PeerKind,
    /// Verdict of each of [`CHECKS`]; `None`: did not come to it.
    pub verdicts: Vec<Option<Result<String, String>>>,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// As JSON.
    pub fn row(&self) -> serde_json::Value {
        serde_json::json!({
            "peer": self.peer.name(),
            "scenario": self.scenario.title(),
            "passed": self.passed(),
            "seconds": self.took.as_secs_f64(),
            "complaints": self.complaints(),
        })
    }

    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.verdicts.iter().all(|v| matches!(v, Some(Ok(_))))
    }

    /// What went wrong, one line per check.
    pub fn complaints(&self) -> Vec<String> {
        let named = CHECKS.iter().zip(&self.verdicts);
        named
            .filter_map(|(name, v)| v.as_ref()?.as_ref().err().map(|e| format!("{name}: {e}")))
            .collect()
    }
}

/// Starts the transfer server at a node.
pub fn start_server(lab: &mut Lab, node: Node) -> Result<()> {
    let xtask = programs()?.join("xtask");
    if node != Node::Peer || lab.peer_kind() == PeerKind::Libipsec {
        let name = format!("pump-{}", node.name());
        lab.spawn(node, &name, &Cmd::new(&xtask).args(["pump", "serve"]))?;
        let log = lab.log_file(&name);
        let ready = || std::fs::read_to_string(&log).is_ok_and(|t| t.contains("ready"));
        return if wait_for(Duration::from_secs(5), ready) {
            Ok(())
        } else {
            bail!("no transfer server at {name}")
        };
    }
    let program = lab.lend(node, &xtask)?;
    let serve = format!(
        "setsid {} pump serve >/run/pump.log 2>&1 </dev/null &",
        program.display()
    );
    let script = format!(
        "{serve} for i in {{1..100}}; do grep -q ready /run/pump.log && exit 0; sleep .05; done; exit 1"
    );
    let out = lab.exec(node, &Cmd::new(script), Duration::from_secs(10))?;
    if out.ok() {
        Ok(())
    } else {
        bail!("no transfer server in the guest: {}", out.all())
    }
}

/// Runs a scenario to its end, whatever fails on the way.
pub fn run(stack: &Stack, scenario: Scenario, progress: &dyn Fn(&str)) -> Outcome {
    let started = Instant::now();
    let mut run = Run {
        stack,
        scenario,
        verdicts: vec![None; CHECKS.len()],
    };
    if let Err(error) = run.all(progress) {
        let next = run.verdicts.iter().position(Option::is_none).unwrap_or(0);
        if !run.verdicts.iter().any(|v| matches!(v, Some(Err(_)))) {
            run.verdicts[next] = Some(Err(format!("{error:#}")));
        }
    }
    Outcome {
        scenario,
        peer: stack.lab.peer_kind(),
        verdicts: run.verdicts,
        took: started.elapsed(),
    }
}

struct Run<'a> {
    stack: &'a Stack,
    scenario: Scenario,
    verdicts: Vec<Option<Result<String, String>>>,
}

impl Run<'_> {
    fn all(&mut self, progress: &dyn Fn(&str)) -> Result<()> {
        let lab = &self.stack.lab;
        let with_peer = self.scenario.other == Node::Peer;
        if with_peer {
            lab.peer().load_conns(&[self.conn()])?;
        }
        let far = lab.capture(self.scenario.other, "eth0")?;
        let near = lab.capture(self.scenario.terminal, "eth0")?;
        progress("exchange");
        self.check(0, Self::exchange)?;
        self.check(1, Self::report)?;
        progress("ping");
        self.check(2, Self::ping)?;
        progress("10 MiB out");
        let _ = self.check(3, |r| r.bulk("put"));
        progress("10 MiB in");
        let _ = self.check(4, |r| r.bulk("get"));
        progress("captures");
        self.captures(far, near)?;
        progress("delete");
        let _ = self.check(7, Self::delete);
        Ok(())
    }

    fn check(&mut self, index: usize, work: impl FnOnce(&Self) -> Result<String>) -> Result<()> {
        let verdict = work(self).map_err(|e| format!("{e:#}"));
        let failed = verdict.is_err();
        self.verdicts[index] = Some(verdict);
        if failed {
            bail!("{} failed", CHECKS[index])
        } else {
            Ok(())
        }
    }

    fn conn(&self) -> Conn {
        let s = &self.scenario;
        Conn::of_peer(self.stack.lab.peer_kind(), s.terminal, s.family, s.suite)
    }

    fn ping_once(&self, from: Node, to: Node, count: u32) -> Result<String> {
        let target = to.addr(self.scenario.family).to_string();
        let count = count.to_string();
        let cmd = Cmd::new("ping").args(["-c", &count, "-i", "0.2", "-W", "5", "-q", &target]);
        let out = self.stack.lab.exec(from, &cmd, EXCHANGE)?;
        let loss = out
            .stdout
            .lines()
            .find(|l| l.contains("packet loss"))
            .unwrap_or("no answer")
            .to_owned();
        if out.ok() && loss.contains(" 0% packet loss") {
            Ok(loss)
        } else {
            bail!("{} to {}: {loss}", from.name(), to.name())
        }
    }

    /// The first packet, or the peer's command, starts the exchange.
    fn exchange(&self) -> Result<String> {
        let s = &self.scenario;
        let began = Instant::now();
        match (s.starter, s.other) {
            (Starter::Other, Node::Peer) => {
                let out = self.stack.lab.peer().initiate(&self.conn().name, EXCHANGE)?;
                if !out.ok() {
                    bail!("the peer could not establish it: {}", out.all());
                }
            }
            (starter, other) => {
                let (from, to) = if starter == Starter::Terminal {
                    (s.terminal, other)
                } else {
                    (other, s.terminal)
                };
                // The first packet waits for its SA and must not be lost.
                self.ping_once(from, to, 1)?;
            }
        }
        Ok(format!("{} ms", began.elapsed().as_millis()))
    }

    /// What the other end says about it; between two terminals, what the daemon says.
    fn report(&self) -> Result<String> {
        let s = &self.scenario;
        let ours = || self.our_sas(s.terminal).unwrap_or_default();
        wait_for(Duration::from_secs(3), || !ours().is_empty());
        let ours = ours();
        let Some(sa) = ours.first() else {
            bail!("towpath sa list knows no SA of the terminal")
        };
        let class = find(sa, "class").and_then(|v| v.as_str()).unwrap_or_default();
        if class != s.class.name() {
            bail!(
                "towpath sa list: class is {class:?}, expected {:?}",
                s.class.name()
            );
        }
        if s.other != Node::Peer {
            if self.our_sas(s.other)?.is_empty() {
                bail!("towpath sa list knows no SA of the other terminal");
            }
            return Ok("both ends transferred".to_owned());
        }
        let sas = self.stack.lab.peer().list_sas()?;
        let established: Vec<&IkeSa> = sas.iter().filter(|sa| sa.state == "ESTABLISHED").collect();
        let [sa] = established[..] else {
            bail!(
                "the peer reports {} established IKE SAs: {sas:?}",
                established.len()
            )
        };
        let [child] = &sa.children[..] else {
            bail!("the peer reports {} CHILD SAs", sa.children.len())
        };
        self.compare(sa, child)
    }

    fn compare(&self, sa: &IkeSa, child: &ChildSa) -> Result<String> {
        let s = &self.scenario;
        let kind = self.stack.lab.peer_kind();
        let encr = match s.suite {
            Suite::Gcm => "AES_GCM_16-256",
            Suite::Cbc => "AES_CBC-256",
            Suite::Modp | Suite::Any => "AES_GCM_16-128",
        };
        let expected = [
            (
                "remote address",
                s.terminal.addr(s.family).to_string(),
                sa.remote_host.clone(),
            ),
            (
                "remote identity",
                s.terminal.identity().to_owned(),
                sa.remote_id.clone(),
            ),
            (
                "initiator is the peer",
                (s.starter == Starter::Other).to_string(),
                sa.initiator.to_string(),
            ),
            ("child state", "INSTALLED".to_owned(), child.state.clone()),
            (
                "mode",
                format!("{:?}", kind.mode()).to_uppercase(),
                child.mode.clone(),
            ),
            (
                "UDP encapsulation",
                (kind == PeerKind::Libipsec).to_string(),
                child.encap.to_string(),
            ),
            ("ESP cipher", encr.to_owned(), child.encr.clone()),
        ];
        for (what, wanted, got) in expected {
            if wanted != got {
                bail!("the peer reports {what} {got:?}, expected {wanted:?}");
            }
        }
        Ok(format!(
            "ESTABLISHED {} {} {}",
            sa.remote_id, child.mode, child.encr
        ))
    }

    fn our_sas(&self, terminal: Node) -> Result<Vec<serde_json::Value>> {
        let address = terminal.addr(self.scenario.family).to_string();
        let is_ours =
            |sa: &serde_json::Value| find(sa, "terminal").and_then(|v| v.as_str()) == Some(&address);
        Ok(self.stack.sas()?.into_iter().filter(is_ours).collect())
    }

    fn ping(&self) -> Result<String> {
        self.ping_once(self.scenario.terminal, self.scenario.other, 3)?;
        self.ping_once(self.scenario.other, self.scenario.terminal, 3)?;
        Ok("3 + 3".to_owned())
    }

    fn bulk(&self, verb: &str) -> Result<String> {
        let target = self.scenario.other.addr(self.scenario.family).to_string();
        let xtask = programs()?.join("xtask");
        let cmd = Cmd::new(xtask).args(["pump", verb, &target, &BULK.to_string()]);
        let out = self.stack.lab.exec(self.scenario.terminal, &cmd, TRANSFER)?;
        if !out.ok() {
            bail!("{} (port {})", out.all().trim(), pump::PORT);
        }
        Ok(out
            .stdout
            .trim()
            .rsplit(", ")
            .next()
            .unwrap_or_default()
            .to_owned())
    }

    fn captures(&mut self, far: Capture, near: Capture) -> Result<()> {
        let (far, near) = (far.stop()?, near.stop()?);
        let s = self.scenario;
        let gateway = net::gateway_addresses();
        let expect = Expectation {
            terminal: s.terminal.addr(s.family),
            other: s.other.addr(s.family),
            gateway: &gateway,
            requested: s.starter == Starter::Terminal,
            encap: s.other == Node::Peer && self.stack.lab.peer_kind() == PeerKind::Libipsec,
        };
        let mut known = self.stack.known_keys();
        let peers = self.peers_keys()?;
        // The logs would be worthless if they left keys out: the peer's own list of its keys says.
        if let Some(missing) = peers.iter().find(|key| !known.contains(key)) {
            bail!(
                "a key of {} bytes that the peer uses is in no key log",
                missing.len()
            );
        }
        known.extend(peers);
        let keys = KeySearch::new(known);
        let clean = |frames: &[crate::lab::Frame], text: String| match keys.find(frames) {
            Some(found) => Err(found),
            None if s.class == Class::Full && keys.len() < 6 => {
                Err(format!("only {} keys to search for", keys.len()))
            }
            None => judge::ivs(frames).map(|_| format!("{text}, none of {} keys, no IV twice", keys.len())),
        };
        let other_side = if s.other == Node::Peer {
            judge::peer_side(&far, &expect)
        } else {
            let mirrored = Expectation {
                terminal: expect.other,
                other: expect.terminal,
                requested: false,
                ..expect
            };
            judge::access_side(&far, &mirrored)
        };
        self.verdicts[5] = Some(other_side.and_then(|text| clean(&far, text)));
        self.verdicts[6] = Some(judge::access_side(&near, &expect).and_then(|text| clean(&near, text)));
        Ok(())
    }

    /// The ESP keys the peer's kernel holds now; only a guest kernel shows them.
    fn peers_keys(&self) -> Result<Vec<Vec<u8>>> {
        if self.scenario.other != Node::Peer || self.stack.lab.peer_kind() != PeerKind::Kernel {
            return Ok(vec![]);
        }
        let states = self
            .stack
            .lab
            .exec(Node::Peer, &Cmd::line("ip xfrm state"), Duration::from_secs(10))?;
        let keys = judge::keys_of_log(&states.stdout.replace("0x", " "));
        if keys.is_empty() {
            bail!("the peer's kernel shows no key: {}", states.all())
        } else {
            Ok(keys)
        }
    }

    /// The peer deletes the IKE SA; keyserver, gateway and terminal forget it.
    fn delete(&self) -> Result<String> {
        let s = &self.scenario;
        if s.other != Node::Peer {
            return Ok("left to expire".to_owned());
        }
        let out = self
            .stack
            .lab
            .peer()
            .terminate(&self.conn().name, Duration::from_secs(5))?;
        if !out.ok() {
            bail!("the peer's delete was not answered: {}", out.all());
        }
        if !wait_for(Duration::from_secs(3), || {
            self.our_sas(s.terminal).is_ok_and(|sas| sas.is_empty())
        }) {
            bail!("the daemon still lists the SA after the peer deleted it");
        }
        // The terminal's copy is withdrawn by a sealed message of its own.
        std::thread::sleep(Duration::from_millis(200));
        Ok("both ends".to_owned())
    }
}
