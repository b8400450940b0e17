//! Two keyservers in processes of their own, a gateway that falls over from one to the other (spec rows K10, K11).
//!
//! ```text
//!                  ┌── ks1 (channel over IPv4, nearest)
//!   ta ─┐          │
//!       gw + registry
//!   tb ─┘          │
//!                  └── ks2 (channel over IPv6)
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::state::{Process, wait_for};
use xtask::lab::{Family, Lab, Node, PeerKind};
use xtask::proof::stack::{Stack, programs};
use xtask::proof::stack_in;
use xtask::sh::Cmd;

use crate::{LIMIT, ping};

/// A channel is dead after 2 s of silence, a terminal follows a hint every 5 s, its request is repeated within
/// seconds, a peer's after charon's 4 s: three times all of that, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node's name and where it listens.
const KS1: (&str, &str) = ("ks1", "127.0.0.1:4511");
const KS2: (&str, &str) = ("ks2", "[::1]:4512");
const REGISTRY: &str = "[::1]:4510";

fn nodes(lab: &Lab) -> PathBuf {
    lab.dir().join("nodes")
}

fn socket(lab: &Lab, name: &str) -> PathBuf {
    lab.net().socket(Node::Gw, name)
}

fn towpath(args: &[&str]) {
    let program = programs().expect("a test has a folder").join("towpath");
    let out = Cmd::new(program).args(args).run();
    assert!(out.is_ok(), "{args:?}: {out:?}");
}

fn channel(nodes: &Path, name: &str, more: &str) -> String {
    format!(
        "[channel]\nname = \"{name}\"\ncertificate = {:?}\nprivate_key = {:?}\nauthority = {:?}\n{more}\n",
        nodes.join(format!("{name}.pem")),
        nodes.join(format!("{name}.key")),
        nodes.join("authority.pem"),
    )
}

/// Certificates for everybody, and the keyservers' configurations.
fn prepare(lab: &Lab) {
    let nodes = nodes(lab);
    let _ = std::fs::remove_dir_all(&nodes);
    std::fs::create_dir_all(&nodes).expect("a folder");
    let directory = nodes.display().to_string();
    towpath(&["node", "authority", "--directory", &directory]);
    let certificate = |name: &str, roles: &str| {
        towpath(&[
            "node",
            "certificate",
            name,
            "--role",
            roles,
            "--directory",
            &directory,
        ]);
    };
    certificate("gw1", "gateway,registry");
    for (name, listen) in [KS1, KS2] {
        certificate(name, "keyserver");
        let more = format!(
            "listen = [{listen:?}]\nregistry = {{ name = \"gw1\", address = {REGISTRY:?} }}\n\n[admin]\nsocket = {:?}",
            socket(lab, name)
        );
        let text = format!("roles = [\"keyserver\"]\n\n{}", channel(&nodes, name, &more));
        std::fs::write(nodes.join(format!("{name}.toml")), text).expect("written");
    }
}

fn gateway(lab: &Lab) -> String {
    let keyservers: String = [KS1, KS2]
        .iter()
        .map(|(name, address)| format!("[[gateway.keyserver]]\nname = {name:?}\naddress = {address:?}\n\n"))
        .collect();
    let more = format!("listen = [{REGISTRY:?}]");
    format!(
        "roles = [\"gateway\", \"registry\"]\n{keyservers}{}",
        channel(&nodes(lab), "gw1", &more)
    )
}

fn start(lab: &mut Lab, name: &str) -> Process {
    let socket = socket(lab, name);
    let _ = std::fs::remove_file(&socket);
    let cmd = Cmd::new(programs().expect("a test has a folder").join("towpath"))
        .args(["run", "--config"])
        .arg(nodes(lab).join(format!("{name}.toml")));
    lab.spawn(Node::Gw, name, &cmd).expect("the keyserver starts")
}

/// What a keyserver says of its IKE SAs: terminal and peer of each that is established.
fn pairs(stack: &Stack, name: &str) -> Vec<(String, String)> {
    let Ok(Value::Array(sas)) = stack.cli_at(&socket(&stack.lab, name), &["ike", "list"]) else {
        return Vec::new();
    };
    let text = |sa: &Value, key: &str| sa.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let established = |sa: &&Value| text(sa, "state") == "established";
    sas.iter()
        .filter(established)
        .map(|sa| (text(sa, "local"), text(sa, "remote")))
        .collect()
}

fn has(stack: &Stack, name: &str, local: Node, remote: Node, family: Family) -> bool {
    let wanted = (local.addr(family).to_string(), remote.addr(family).to_string());
    pairs(stack, name).contains(&wanted)
}

fn complain(stack: &Stack, what: &str) -> String {
    format!(
        "{what}\ngateway:\n{}\nks1:\n{}\nks2:\n{}\nterminal A:\n{}",
        stack.tail("towpath", 40),
        stack.tail("ks1", 25),
        stack.tail("ks2", 25),
        stack.tail("terminal-ta", 25)
    )
}

/// Pings until it works; how long that took.
fn reaches(stack: &Stack, from: Node, to: Node, family: Family) -> Duration {
    let since = Instant::now();
    let to = to.addr(family).to_string();
    let cmd = Cmd::new("ping").args(["-c", "1", "-W", "1", "-q", &to]);
    let once = || stack.lab.exec(from, &cmd, LIMIT).is_ok_and(|out| out.ok());
    assert!(
        wait_for(PATIENCE, once),
        "{}",
        complain(stack, &format!("{from:?} does not reach {to}"))
    );
    since.elapsed()
}

fn ten_mebibytes(stack: &Stack, to: Node, family: Family) {
    let xtask = programs().expect("a test has a folder").join("xtask");
    let target = to.addr(family).to_string();
    for verb in ["put", "get"] {
        let pump = Cmd::new(&xtask).args(["pump", verb, &target, "10485760"]);
        let out = stack
            .lab
            .exec(Node::Ta, &pump, PATIENCE)
            .expect("the helper runs");
        assert!(
            out.ok(),
            "{}",
            complain(stack, &format!("{verb} {target}: {}", out.all()))
        );
        println!("{verb} {target}: {}", out.stdout.trim());
    }
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn two_keyservers_negotiate_with_each_other_and_one_takes_over_when_the_other_dies() {
    let mut lab = Lab::ephemeral(&xtask::root(), "keyservers", PeerKind::Libipsec).expect("the lab comes up");
    prepare(&lab);
    start(&mut lab, "ks2");
    let extra = gateway(&lab);
    let mut stack = stack_in(lab, &extra, |_, _| ()).expect("towpath comes up");

    // Only the farther keyserver is there: terminal B negotiates by it.
    let took = reaches(&stack, Node::Tb, Node::Peer, Family::V4);
    println!("first exchange, by ks2 after: {took:?}");
    assert!(
        has(&stack, "ks2", Node::Tb, Node::Peer, Family::V4),
        "{}",
        complain(&stack, "not by ks2")
    );

    // The nearest appears: A, which is idle, moves to it. B's live IKE SA stays, and so does B.
    let registrations = |stack: &Stack| stack.tail("terminal-ta", 500).matches("registered").count();
    let before = registrations(&stack);
    let nearest = start(&mut stack.lab, "ks1");
    let up = || {
        let log = stack.tail("towpath", 500);
        // Each keyserver has one with the gateway and one with the registry.
        log.matches("channel to the keyserver is up").count() >= 4
    };
    assert!(
        wait_for(PATIENCE, up),
        "{}",
        complain(&stack, "no channel to ks1")
    );
    assert!(
        wait_for(PATIENCE, || registrations(&stack) > before),
        "{}",
        complain(&stack, "A is not asked to register anew")
    );

    // K10: each end proxied by another keyserver.
    for family in Family::ALL {
        let took = reaches(&stack, Node::Ta, Node::Tb, family);
        println!("{family} between the keyservers after: {took:?}");
        assert!(
            has(&stack, "ks1", Node::Ta, Node::Tb, family) && has(&stack, "ks2", Node::Tb, Node::Ta, family),
            "{}",
            complain(&stack, "not one keyserver at each end")
        );
        ten_mebibytes(&stack, Node::Tb, family);
    }

    // K11: killed in the middle of an exchange. What is up keeps passing, what was under way is done by the other.
    let peer = Node::Peer.addr(Family::V6).to_string();
    let asks = Cmd::new("ping").args(["-c", "1", "-W", "1", "-q", &peer]);
    std::thread::scope(|scope| {
        let lab = &stack.lab;
        let asking = scope.spawn(move || lab.exec(Node::Ta, &asks, LIMIT));
        nearest.signal(nix::sys::signal::Signal::SIGKILL);
        let _ = asking.join();
    });
    let tb = Node::Tb.addr(Family::V4).to_string();
    assert!(
        ping(&stack.lab, Node::Ta, &tb, 5),
        "{}",
        complain(&stack, "SAs of the dead keyserver do not pass")
    );
    let took = reaches(&stack, Node::Ta, Node::Peer, Family::V6);
    println!("exchange restarted by ks2 after: {took:?}");
    assert!(
        has(&stack, "ks2", Node::Ta, Node::Peer, Family::V6),
        "{}",
        complain(&stack, "not by ks2")
    );

    // Started by the peer, to the keyserver that took over.
    let out = stack.lab.peer().initiate("ta-v4", LIMIT).expect("swanctl runs");
    assert!(out.ok(), "{}", complain(&stack, &out.all()));
    assert!(
        has(&stack, "ks2", Node::Ta, Node::Peer, Family::V4),
        "{}",
        complain(&stack, "not by ks2")
    );
    stack.stop();
}
