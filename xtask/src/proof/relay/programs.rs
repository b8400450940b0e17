//! Programs people use, through the relay: curl, ssh, scp, iperf3.
//!
//! The SSH server is dropbear: OpenSSH's package would start a server on the machine itself. It runs with a tmpfs in
//! the place of `/root`, where its throw-away keys are, seen by nobody else.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use super::{Place, background};
use crate::lab::{Family, Lab, Node, PeerKind};
use crate::proof::stack::Stack;
use crate::sh::Cmd;

/// Port of the web server.
const HTTP: u16 = 7080;
/// Port of the SSH server.
const SSH: u16 = 7022;
/// Bytes of the file that is fetched and copied.
const FILE: usize = 10 << 20;

/// A folder that the host and the peer both see, and its path at the peer.
fn shared(lab: &Lab) -> (PathBuf, String) {
    match lab.peer_kind() {
        PeerKind::Kernel => (lab.dir().join("guest-peer/www"), "/run/work/www".to_owned()),
        PeerKind::Libipsec => {
            let folder = lab.dir().join("www");
            let there = folder.display().to_string();
            (folder, there)
        }
    }
}

fn key(lab: &Lab) -> PathBuf {
    lab.dir().join("ssh-key")
}

/// Starts the servers at the peer.
pub(super) fn serve(stack: &mut Stack) -> Result<()> {
    let (folder, there) = shared(&stack.lab);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("file"), contents())?;
    background(
        &mut stack.lab,
        "httpd",
        &format!("exec busybox httpd -f -p [::]:{HTTP} -h {there}"),
    )?;
    background(&mut stack.lab, "iperf3", "exec iperf3 -s")?;
    // The guest's /dev is the bare folder below the host's, without terminals.
    let key = key(&stack.lab);
    let _ = fs::remove_file(&key);
    Cmd::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f"])
        .arg(&key)
        .run()
        .context("cannot make an SSH key: cargo xtask setup")?;
    let public = fs::read_to_string(key.with_extension("pub"))?;
    let inside = format!(
        "set -e; mount -t tmpfs -o mode=700 none /root; cd /root; mkdir -m 700 .ssh\n\
         echo {} >.ssh/authorized_keys; chmod 600 .ssh/authorized_keys\n\
         if [ ! -d /dev/pts ]; then\n\
           mount -t tmpfs none /dev; mkdir /dev/pts; ln -s pts/ptmx /dev/ptmx\n\
           mknod /dev/null c 1 3; mknod /dev/zero c 1 5; mknod /dev/urandom c 1 9; mknod /dev/tty c 5 0\n\
           chmod 666 /dev/null /dev/zero /dev/urandom /dev/tty; mount -t devpts -o ptmxmode=666 none /dev/pts\n\
         fi\n\
         dropbearkey -t ed25519 -f host-key >/dev/null\n\
         exec dropbear -F -E -s -r host-key -p {SSH} -P /root/pid\n",
        public.trim()
    );
    let script = folder.join("sshd.sh");
    fs::write(&script, inside)?;
    background(
        &mut stack.lab,
        "sshd",
        &format!("exec unshare -m bash {there}/sshd.sh"),
    )?;
    ready(stack)
}

/// Waits until all of them listen. `ss` says nothing in the guest, whose kernel has no socket diagnosis.
fn ready(stack: &Stack) -> Result<()> {
    let ports = [HTTP, SSH, 5201, super::DEAF];
    let script = format!(
        "for i in $(seq 300); do n=0; for p in {}; do \
         grep -qsE \":$(printf %04X $p) [0-9A-F:]+ 0A\" /proc/net/tcp /proc/net/tcp6 && n=$((n+1)); done; \
         [ $n = {} ] && exit 0; sleep 0.1; done; cat /proc/net/tcp /proc/net/tcp6 /run/*.log; exit 1",
        ports.map(|port| port.to_string()).join(" "),
        ports.len()
    );
    let cmd = match stack.lab.peer_kind() {
        PeerKind::Kernel => Cmd::new(script),
        PeerKind::Libipsec => Cmd::new("bash").args(["-c", &script]),
    };
    let out = stack.lab.exec(Node::Peer, &cmd, Duration::from_secs(60))?;
    if out.ok() {
        return Ok(());
    }
    bail!(
        "a server at the peer does not listen:\n{}\n{}",
        out.all(),
        stack.tail("sshd", 5)
    )
}

fn contents() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..FILE)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The address as it stands in URLs and scp's arguments.
fn host(place: &Place<'_>) -> String {
    match place.family {
        Family::V4 => place.peer().to_string(),
        Family::V6 => format!("[{}]", place.peer()),
    }
}

/// Ten megabytes, then twenty requests one after the other.
pub(super) fn curl(place: &Place<'_>) -> Result<String> {
    let url = format!("http://{}:{HTTP}", host(place));
    let got = place.sh(&format!(
        "set -o pipefail; curl -sSfg --max-time 120 {url}/file | sha256sum"
    ))?;
    let wanted = digest(&contents());
    if !got.starts_with(&wanted) {
        bail!("another file arrived: {}", got.trim());
    }
    let times = place.sh(&format!(
        "for i in $(seq 20); do curl -sSfg --max-time 30 -r 0-99 -o /dev/null -w '%{{size_download}} ' {url}/file \
         || exit 1; done"
    ))?;
    let answers = times.split_whitespace().count();
    if answers != 20 {
        bail!("{answers} of 20 requests were answered: {times}");
    }
    Ok("10 MiB, 20 requests".to_owned())
}

fn options(place: &Place<'_>) -> String {
    format!(
        "-F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o ConnectTimeout=30 -o LogLevel=ERROR \
         -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i {}",
        key(&place.stack.lab).display()
    )
}

/// A shell on a terminal, its commands typed one after the other.
pub(super) fn ssh(place: &Place<'_>) -> Result<String> {
    let said = place.sh(&format!(
        "(for i in 1 2 3; do echo 'echo answer=$((6*7*'$i'))'; sleep 0.3; done; echo tty; echo exit) \
         | ssh -tt -p {SSH} {} root@{}",
        options(place),
        place.peer()
    ))?;
    for wanted in ["answer=42", "answer=84", "answer=126", "/dev/pts/"] {
        if !said.contains(wanted) {
            bail!("no {wanted:?} in what the shell said:\n{said}");
        }
    }
    Ok("a shell, 3 commands".to_owned())
}

/// There and back.
pub(super) fn scp(place: &Place<'_>) -> Result<String> {
    let folder = place.stack.lab.dir().join("scp");
    fs::create_dir_all(&folder)?;
    let (there, back) = (folder.join("there"), folder.join("back"));
    fs::write(&there, contents())?;
    let _ = fs::remove_file(&back);
    let remote = format!("root@{}:/root/copy", host(place));
    let scp = format!("scp -O -q -P {SSH} {}", options(place));
    place.sh(&format!(
        "{scp} {} '{remote}' && {scp} '{remote}' {}",
        there.display(),
        back.display()
    ))?;
    if digest(&fs::read(&back)?) != digest(&contents()) {
        bail!("the copy that came back is another file");
    }
    Ok("ok".to_owned())
}

/// Five seconds, towards the peer or back.
pub(super) fn iperf3(place: &Place<'_>, reverse: bool) -> Result<String> {
    let reverse = if reverse { "-R" } else { "" };
    let said = place.sh(&format!("iperf3 -J -t 5 {reverse} -c {}", place.peer()))?;
    let report: serde_json::Value = serde_json::from_str(&said).context("iperf3's report")?;
    let rate = report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("no rate: {}", report["error"]))?;
    if rate < 1e6 {
        bail!("{:.3} Mb/s", rate / 1e6);
    }
    Ok(format!("{:.0} Mb/s", rate / 1e6))
}
