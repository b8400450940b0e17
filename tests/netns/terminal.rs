//! The terminal on a kernel that has IPsec: its SAs and policies are the kernel's.

use std::time::Duration;

use serde_json::Value;
use xtask::lab::state::wait_for;
use xtask::lab::{Family, Node, PeerKind};
use xtask::proof::stack::{Stack, find, programs};
use xtask::proof::stack_for_test;
use xtask::sh::Cmd;

use crate::{LIMIT, ping};

/// Runs a shell script at a node.
fn sh(stack: &Stack, node: Node, script: &str) -> String {
    let out = stack
        .lab
        .exec(node, &Cmd::new(script), LIMIT)
        .expect("the node answers");
    out.all()
}

fn registered(stack: &Stack) -> bool {
    let status = stack.guest_status(Node::Ta);
    status.is_ok_and(|status| find(&status, "registered") == Some(&Value::Bool(true)))
}

/// Everything there is to say when something went wrong.
fn story(stack: &Stack) -> String {
    format!(
        "agent:\n{}\nkernel:\n{}\ndaemon:\n{}",
        sh(stack, Node::Ta, "tail -n 40 /run/work/agent.log"),
        sh(
            stack,
            Node::Ta,
            "ip xfrm state; ip xfrm policy; grep -v '\\s0$' /proc/net/xfrm_stat"
        ),
        stack.tail("towpath", 40),
    )
}

/// Packets in clear from the peer's address, past the peer's own policies: its tunnel is on another device.
fn clear_packets(stack: &Stack, to: Node) {
    let to = to.addr(Family::V4).to_string();
    let cmd = Cmd::new("ping").args(["-c", "5", "-i", "0.2", "-W", "1", "-q", "-I", "eth0", &to]);
    let out = stack.lab.exec(Node::Peer, &cmd, LIMIT).expect("ping ends");
    assert!(
        out.stdout.contains("5 packets transmitted, 0 received"),
        "{}",
        out.all()
    );
}

/// A counter of the guest kernel's IPsec.
fn kernel_count(stack: &Stack, name: &str) -> u64 {
    let line = sh(stack, Node::Ta, &format!("grep -w {name} /proc/net/xfrm_stat"));
    let count = line
        .split_whitespace()
        .nth(1)
        .and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("{name}: {line}"))
}

/// What the user-space agent of terminal B counted under `name`.
fn counted_by_tb(stack: &Stack, name: &str) -> u64 {
    let socket = stack.lab.net().socket(Node::Tb, "terminal");
    let towpath = programs().expect("programs").join("towpath");
    let cmd = Cmd::new(towpath)
        .args(["terminal", "status", "--json", "--socket"])
        .arg(socket);
    let out = stack.lab.exec(Node::Tb, &cmd, LIMIT).expect("the agent answers");
    let status: Value = serde_json::from_str(&out.stdout).unwrap_or_else(|_| panic!("{}", out.all()));
    find(&status, name).and_then(Value::as_u64).unwrap_or(0)
}

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn a_kernel_with_ipsec_holds_the_terminals_sas() {
    let mut stack = stack_for_test("inkernel", PeerKind::Libipsec).expect("lab and towpath come up");
    stack
        .move_into_guest(Node::Ta, "backend = \"auto\"")
        .expect("a guest kernel takes the terminal's place");
    assert!(
        wait_for(Duration::from_secs(120), || registered(&stack)),
        "{}",
        story(&stack)
    );
    let status = stack.guest_status(Node::Ta).expect("the agent answers");
    assert_eq!(
        find(&status, "backend").and_then(Value::as_str),
        Some("kernel"),
        "{status}\n{}",
        story(&stack)
    );

    // In UDP and tunnel mode with the peer, as it is and in transport mode with the other terminal: from the first
    // packet on, which the kernel holds until its SA is there.
    for (node, family) in [
        (Node::Peer, Family::V4),
        (Node::Peer, Family::V6),
        (Node::Tb, Family::V4),
    ] {
        let to = node.addr(family).to_string();
        assert!(ping(&stack.lab, Node::Ta, &to, 2), "to {to}\n{}", story(&stack));
        let back = Node::Ta.addr(family).to_string();
        assert!(ping(&stack.lab, node, &back, 1), "from {to}\n{}", story(&stack));
    }
    let xtask = stack
        .lab
        .lend(Node::Ta, &programs().expect("programs").join("xtask"))
        .expect("lent");
    for (verb, node) in [("put", Node::Peer), ("get", Node::Tb)] {
        let transfer = format!("{} pump {verb} {} 262144", xtask.display(), node.addr(Family::V4));
        let out = stack
            .lab
            .exec(Node::Ta, &Cmd::new(transfer), LIMIT * 2)
            .expect("it ends");
        assert!(out.ok(), "{verb}: {}\n{}", out.all(), story(&stack));
    }

    // The figures are the kernel's, and a peer that replaces its keys is followed.
    stack
        .lab
        .peer()
        .rekey("--child", "ta-v4")
        .expect("the peer rekeys");
    let peer = Node::Peer.addr(Family::V4).to_string();
    assert!(
        ping(&stack.lab, Node::Ta, &peer, 5),
        "after rekeying\n{}",
        story(&stack)
    );
    let status = stack.guest_status(Node::Ta).expect("the agent answers");
    let sas = find(&status, "sas")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let counted = |key: &str| sas.iter().filter_map(|sa| sa.get(key)?.as_u64()).sum::<u64>();
    assert!(
        counted("packets_in") > 50 && counted("packets_out") > 50,
        "{sas:?}"
    );

    // In clear nothing gets in that a policy protects, by either way.
    let before = kernel_count(&stack, "XfrmInTmplMismatch");
    clear_packets(&stack, Node::Ta);
    assert!(
        kernel_count(&stack, "XfrmInTmplMismatch") > before,
        "{}",
        story(&stack)
    );
    clear_packets(&stack, Node::Tb);
    let dropped = counted_by_tb(&stack, "drop.clear_inbound");
    assert!(dropped > 0, "{dropped}\n{}", stack.tail("terminal-tb", 20));

    // An agent that leaves takes its tables along.
    sh(&stack, Node::Ta, "kill $(cat /run/agent.pid)");
    let gone = || {
        let left = sh(
            &stack,
            Node::Ta,
            "ip xfrm state; ip xfrm policy; cat /proc/sys/net/core/xfrm_larval_drop",
        );
        left.trim() == "1"
    };
    assert!(wait_for(Duration::from_secs(60), gone), "{}", story(&stack));
    stack.stop();
}
