//! TCP through the split relay, between a terminal without IKE and an unmodified peer.
//!
//! ```text
//!   ta (agent) ══ segment keys ══ gw: open, relay, seal ══ peer's keys ══ peer (charon)
//! ```

use std::time::Duration;

use serde_json::Value;
use xtask::lab::{Family, Lab, Node, PeerKind};
use xtask::proof::stack::{Stack, programs};
use xtask::proof::{runner, stack_for_test, stack_for_test_with};
use xtask::sh::Cmd;

use crate::ping;

/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(180);

fn started(name: &str, peer: PeerKind, extra: &str) -> Stack {
    let mut stack = stack_for_test_with(name, peer, extra).expect("lab and towpath come up");
    for family in Family::ALL {
        let target = Node::Peer.addr(family).to_string();
        assert!(
            ping(&stack.lab, Node::Ta, &target, 1),
            "{}",
            stack.tail("towpath", 30)
        );
    }
    // The lab starts a server at the peer; terminals have none yet.
    if !has_server(&stack.lab, Node::Ta) {
        runner::start_server(&mut stack.lab, Node::Ta).expect("a server at the terminal");
    }
    stack
}

fn has_server(lab: &Lab, node: Node) -> bool {
    let listening = Cmd::line("ss -Hltn sport = :7007");
    lab.exec(node, &listening, Duration::from_secs(5))
        .is_ok_and(|out| !out.stdout.trim().is_empty())
}

/// Runs the transfer helper at `from` and returns what it said.
fn pump(stack: &Stack, from: Node, to: Node, family: Family, verb: &str, args: &[&str]) -> String {
    let program = programs().expect("a test has a folder").join("xtask");
    let program = stack
        .lab
        .lend(from, &program)
        .expect("the helper can be run there");
    let target = to.addr(family).to_string();
    let cmd = Cmd::new(program).args(["pump", verb, &target]).args(args);
    let out = stack.lab.exec(from, &cmd, TRANSFER).expect("the helper runs");
    assert!(
        out.ok(),
        "{verb} {} -> {} {family}: {}\n{}\n{}",
        from.name(),
        to.name(),
        out.all(),
        stack.tail("towpath", 30),
        stack.cli(&["stats"]).expect("the daemon counts")
    );
    println!(
        "{verb} {} -> {} {family}: {}",
        from.name(),
        to.name(),
        out.stdout.trim()
    );
    out.stdout
}

fn relayed(stack: &Stack) -> u64 {
    stack.counter("relay_in").expect("the daemon counts")
}

const MIB10: &str = "10485760";

fn everything_passes(name: &str, peer: PeerKind) {
    let stack = started(name, peer, "");
    for family in Family::ALL {
        for (from, to) in [(Node::Ta, Node::Peer), (Node::Peer, Node::Ta)] {
            let before = relayed(&stack);
            pump(&stack, from, to, family, "put", &[MIB10]);
            pump(&stack, from, to, family, "get", &[MIB10]);
            assert!(relayed(&stack) > before + 10_000, "it did not pass the relay");
            pump(&stack, from, to, family, "half", &["300000"]);
            pump(&stack, from, to, family, "stall", &["12000000"]);
            pump(&stack, from, to, family, "reset", &["100000"]);
        }
        pump(
            &stack,
            Node::Ta,
            Node::Peer,
            family,
            "mixed",
            &["200000", "--count", "120", "--at-once", "40"],
        );
    }
    // Nothing was dropped by the relay for want of memory, an SA or a sound header.
    for counter in [
        "relay_malformed",
        "relay_no_sa",
        "esp_replayed",
        "esp_auth_failed",
    ] {
        assert_eq!(stack.counter(counter).expect("the daemon counts"), 0, "{counter}");
    }
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn tcp_is_split_between_a_terminal_and_a_linux_kernel() {
    everything_passes("relay-kernel", PeerKind::Kernel);
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn tcp_is_split_between_a_terminal_and_user_space_esp_in_udp() {
    everything_passes("relay-libipsec", PeerKind::Libipsec);
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_closed_port_refuses_and_a_rule_lets_pass() {
    let rule = "[[relay.rule]]\npeer_port = 7007\ndirection = \"from_terminal\"\naction = \"pass\"\n";
    let stack = started("relay-rule", PeerKind::Libipsec, rule);
    let before = relayed(&stack);
    pump(&stack, Node::Ta, Node::Peer, Family::V4, "put", &["1000000"]);
    assert_eq!(relayed(&stack), before, "the rule says pass");
    let peer = Node::Peer.addr(Family::V4).to_string();
    // Nobody listens there: the far side's refusal comes through, at once.
    let script = format!("exec 3<>/dev/tcp/{peer}/9");
    let refused = Cmd::new("bash").args(["-c", &script]);
    let out = stack
        .lab
        .exec(Node::Ta, &refused, Duration::from_secs(10))
        .expect("bash runs");
    assert!(!out.ok() && out.all().contains("refused"), "{}", out.all());
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn flows_are_shown_while_they_last() {
    let stack = started("relay-flows", PeerKind::Libipsec, "");
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| pump(&stack, Node::Ta, Node::Peer, Family::V4, "stall", &["12000000"]));
        std::thread::sleep(Duration::from_millis(1200));
        let shown = stack.cli(&["flow", "list"]).expect("the daemon lists flows");
        let flows = shown["flows"].as_array().cloned().unwrap_or_default();
        let flow = flows
            .iter()
            .find(|flow| flow["network_port"] == 7007)
            .unwrap_or_else(|| panic!("no flow to port 7007: {shown}"));
        assert_eq!(flow["subscriber"], Value::from("ta"));
        assert_eq!(flow["opener"], Value::from("terminal"));
        assert_eq!(flow["terminal_side"]["congestion"], Value::from("radio"));
        assert!(
            flow["network_side"]["rtt_us"].as_u64().is_some_and(|rtt| rtt > 0),
            "{flow}"
        );
        // The peer does not read: its side's window is closed and data waits here.
        assert!(
            flow["network_side"]["queued"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0),
            "{flow}"
        );
        busy.join().expect("the transfer ends well");
    });
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_rekeyed_sa_carries_the_connection_on() {
    let stack = started("relay-rekey", PeerKind::Libipsec, "");
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| pump(&stack, Node::Ta, Node::Peer, Family::V4, "stall", &["20000000"]));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            stack
                .lab
                .peer()
                .rekey("--child", "ta-v4")
                .expect("the peer rekeys");
        }
        busy.join().expect("the transfer ends well");
    });
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn two_terminals_are_relayed_with_radio_on_both_sides() {
    let mut stack = stack_for_test("relay-radios", PeerKind::Libipsec).expect("lab and towpath come up");
    if !has_server(&stack.lab, Node::Tb) {
        runner::start_server(&mut stack.lab, Node::Tb).expect("a server at the terminal");
    }
    for family in Family::ALL {
        let target = Node::Tb.addr(family).to_string();
        // The first packet may come before the other terminal has its keys.
        let reached = (0..3).any(|_| ping(&stack.lab, Node::Ta, &target, 1));
        assert!(reached, "{}", stack.tail("towpath", 30));
        let before = relayed(&stack);
        pump(&stack, Node::Ta, Node::Tb, family, "put", &[MIB10]);
        pump(&stack, Node::Ta, Node::Tb, family, "get", &[MIB10]);
        pump(
            &stack,
            Node::Ta,
            Node::Tb,
            family,
            "mixed",
            &["200000", "--count", "60", "--at-once", "20"],
        );
        assert!(relayed(&stack) > before + 10_000);
    }
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn snoop_forwards_end_to_end() {
    let rule = "[relay]\ndefault = \"snoop\"\n";
    let stack = started("relay-snoop", PeerKind::Libipsec, rule);
    for family in Family::ALL {
        pump(&stack, Node::Ta, Node::Peer, family, "put", &[MIB10]);
        pump(&stack, Node::Ta, Node::Peer, family, "get", &[MIB10]);
        pump(&stack, Node::Peer, Node::Ta, family, "put", &[MIB10]);
        pump(&stack, Node::Ta, Node::Peer, family, "half", &["300000"]);
        pump(&stack, Node::Ta, Node::Peer, family, "reset", &["100000"]);
    }
    let counter = |name| stack.counter(name).expect("the daemon counts");
    assert_eq!(counter("split_opened"), 0, "nothing is split");
    assert!(counter("snoop_remembered") > 20_000);
    stack.stop();
}

/// The connections of a killed daemon do not hang: once there is an SA again both ends are reset, and new ones work.
#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn connections_of_a_killed_daemon_end_cleanly() {
    let mut stack = started("relay-killed", PeerKind::Libipsec, "");
    let program = programs().expect("a test has a folder").join("xtask");
    let peer = Node::Peer.addr(Family::V4).to_string();
    // Some seconds of reading slowly: the connection is busy when the daemon dies.
    let slow = Cmd::new(&program).args(["pump", "stall", &peer, "400000000"]);
    let process = stack
        .lab
        .spawn(Node::Ta, "slow", &slow)
        .expect("a transfer starts");
    std::thread::sleep(Duration::from_secs(3));
    stack.kill_daemon();
    let killed = std::time::Instant::now();
    // Its worker lets go of the store only when the kernel has taken its sockets apart.
    std::thread::sleep(Duration::from_secs(1));
    stack.start_daemon().expect("the daemon starts again");
    stack.lab.peer().forget().expect("swanctl runs");
    let again = (0..60).any(|_| ping(&stack.lab, Node::Ta, &peer, 1));
    assert!(again, "no SA after the restart:\n{}", stack.tail("towpath", 30));
    pump(&stack, Node::Ta, Node::Peer, Family::V4, "put", &[MIB10]);
    // The sender's timeout doubles: its next packet, which is what gets both ends reset, comes at the latest after as
    // long again as there was no way for it.
    let limit = killed.elapsed() + Duration::from_secs(20);
    let ended = xtask::lab::state::wait_for(limit, || !process.alive());
    let said = stack.tail("slow", 5);
    println!("the connection of the killed daemon: {said}");
    assert!(
        ended,
        "it hangs: {said}\n{}",
        stack.cli(&["stats"]).expect("stats")
    );
    stack.stop();
}

/// Ten minutes; the same as `cargo xtask run --relay`.
fn everything_tcp_keeps(name: &str, peer: PeerKind) {
    let root = xtask::root();
    let lab = Lab::ephemeral(&root, name, peer).expect("the lab comes up");
    let object = xtask::ebpf::object_path(&root);
    let mut stack = Stack::start(lab, &object).expect("towpath comes up");
    let outcomes = xtask::proof::relay::all(&mut stack, "").expect("the servers start");
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.verdict.is_err())
        .collect();
    assert!(failed.is_empty(), "{failed:#?}\n{}", stack.tail("towpath", 30));
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn long_what_tcp_keeps_with_user_space_esp() {
    everything_tcp_keeps("relay-all-l", PeerKind::Libipsec);
}
