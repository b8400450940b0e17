//! A real Linux kernel as an ordinary process: user-mode Linux behind an interface of a namespace.
//!
//! The guest's root is the host's `/`, read-only, so every program of the host runs in it. Commands go
//! through a mailbox of files in its work folder, one after the other (`scripts/uml-init.sh`).

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::net::{Net, Node};
use super::state::{Process, wait_for};
use crate::sh::{Cmd, Output};

/// Modules loaded at boot: what ESP and AH of both families need, so that no SA waits for them.
const MODULES: &str = "ipv6,xfrm_user,xfrm_algo,esp4,esp6,ah4,ah6,gcm,seqiv,ctr,cbc,ghash-generic,drbg,echainiv,authenc,sha256_generic";

/// One command at a time, whoever asks.
static MAILBOX: Mutex<()> = Mutex::new(());

/// A guest kernel.
#[derive(Clone, Debug)]
pub struct Guest {
    dir: PathBuf,
}

impl Guest {
    /// The guest whose work folder is `dir`.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its work folder on the host; `/run/work` inside.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts the kernel with `vec0` on `eth0` of the node's namespace; ready in about two seconds.
    pub fn start(&self, root: &Path, net: &Net, node: Node) -> Result<Process> {
        let _ = std::fs::remove_dir_all(&self.dir);
        std::fs::create_dir_all(self.dir.join("uml"))?;
        std::fs::write(self.dir.join("seq"), "0")?;
        let kernel = Cmd::new("/usr/bin/linux.uml")
            .args([
                "mem=192M",
                "root=none",
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                "quiet",
            ])
            .arg(format!("init={}", root.join("scripts/uml-init.sh").display()))
            .arg(format!("WORK={}", self.dir.display()))
            .arg(format!("MODS={MODULES}"))
            .arg(format!("uml_dir={}", self.dir.join("uml").display()))
            .args([
                "umid=u",
                "con=null",
                "con0=null,fd:1",
                "vec0:transport=raw,ifname=eth0",
            ]);
        let pid = net.inside(node, kernel).spawn(&self.dir.join("console"))?;
        let process = Process::note(&format!("guest kernel of {}", node.name()), pid);
        let ready = self.dir.join("ready");
        wait_for(Duration::from_secs(30), || ready.exists() || !process.alive());
        if !ready.exists() {
            let console = std::fs::read_to_string(self.dir.join("console")).unwrap_or_default();
            bail!("the guest kernel did not come up; its console:\n{console}");
        }
        self.configure(node).context("the guest kernel's network")?;
        Ok(process)
    }

    fn configure(&self, node: Node) -> Result<()> {
        use super::net::Family::{V4, V6};
        let script = format!(
            "set -e\nethtool -K vec0 tx off tso off gso off gro off\n\
             echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/vec0/accept_dad\n\
             echo 0 >/proc/sys/net/ipv6/conf/vec0/accept_ra\n\
             ip link set vec0 up\nip addr add {a4}/24 dev vec0\nip addr add {a6}/64 dev vec0 nodad\n\
             ip route add default via {g4}\nip route add default via {g6} dev vec0",
            a4 = node.addr(V4),
            a6 = node.addr(V6),
            g4 = node.gateway(V4),
            g6 = node.gateway(V6),
        );
        let out = self.exec(&script, Duration::from_secs(20))?;
        if out.ok() { Ok(()) } else { bail!("{}", out.all()) }
    }

    /// Runs a shell script inside; both streams arrive together in `stdout`.
    pub fn exec(&self, script: &str, limit: Duration) -> Result<Output> {
        let _turn = MAILBOX.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seq_file = self.dir.join("seq");
        let n: u64 = std::fs::read_to_string(&seq_file)
            .context("no guest here")?
            .trim()
            .parse()?;
        let n = n + 1;
        std::fs::write(&seq_file, n.to_string())?;
        std::fs::write(self.dir.join(format!("body.{n}")), script)?;
        let draft = self.dir.join("cmd.tmp");
        std::fs::write(
            &draft,
            format!(
                "exec timeout {} bash /run/work/body.{n}\n",
                limit.as_secs().max(1)
            ),
        )?;
        std::fs::rename(&draft, self.dir.join(format!("cmd.{n}")))?;
        let rc = self.dir.join(format!("rc.{n}"));
        if !wait_for(limit + Duration::from_secs(5), || rc.exists()) {
            bail!(
                "the guest kernel did not answer within {} s: {script}",
                limit.as_secs() + 5
            );
        }
        let read = |kind: &str| std::fs::read(self.dir.join(format!("{kind}.{n}"))).unwrap_or_default();
        let stdout = String::from_utf8_lossy(&read("out")).into_owned();
        let code = String::from_utf8_lossy(&read("rc")).trim().parse().ok();
        for kind in ["body", "cmd", "out", "rc"] {
            let _ = std::fs::remove_file(self.dir.join(format!("{kind}.{n}")));
        }
        Ok(Output {
            code,
            stdout,
            stderr: String::new(),
        })
    }

    /// Asks the kernel to power off; the caller ends the process if it does not.
    pub fn power_off(&self) {
        let Ok(seq) = std::fs::read_to_string(self.dir.join("seq")) else {
            return;
        };
        let Ok(n) = seq.trim().parse::<u64>() else { return };
        let _ = std::fs::write(self.dir.join("cmd.tmp"), "/bin/busybox poweroff -f\n");
        let _ = std::fs::rename(self.dir.join("cmd.tmp"), self.dir.join(format!("cmd.{}", n + 1)));
    }
}
