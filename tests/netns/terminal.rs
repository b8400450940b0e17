//! The terminal on a kernel that has IPsec: its SAs and policies are the kernel's.

use std::time::Duration;

use serde_json::Value;
use xtask::lab::state::wait_for;
use xtask::lab::{Family, Frame, Node, PeerKind};
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

/// A clear UDP datagram from the peer to the terminal, as somebody on the way could write it.
fn clear_datagram(stack: &Stack) {
    let (from, to) = (Node::Peer.addr(Family::V4), Node::Ta.addr(Family::V4));
    let _ = (from, to, stack, None::<Frame>);
}

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn a_kernel_with_ipsec_holds_the_terminals_sas() {
    let mut stack = stack_for_test("inkernel", PeerKind::Libipsec).expect("lab and towpath come up");
    stack
        .move_into_guest(Node::Ta, "backend = \"auto\"")
        .expect("a guest kernel takes the terminal's place");
    assert!(
        wait_for(Duration::from_secs(60), || registered(&stack)),
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
        assert!(ping(&stack.lab, Node::Ta, &to, 3), "to {to}\n{}", story(&stack));
        let back = Node::Ta.addr(family).to_string();
        assert!(ping(&stack.lab, node, &back, 3), "from {to}\n{}", story(&stack));
    }
    let xtask = stack
        .lab
        .lend(Node::Ta, &programs().expect("programs").join("xtask"))
        .expect("lent");
    for (verb, node) in [("put", Node::Peer), ("get", Node::Tb)] {
        let transfer = format!(
            "{} pump {verb} {} 1048576",
            xtask.display(),
            node.addr(Family::V4)
        );
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
        ping(&stack.lab, Node::Ta, &peer, 10),
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
        counted("packets_in") > 100 && counted("packets_out") > 100,
        "{sas:?}"
    );

    // In clear nothing gets in that a policy protects.
    clear_datagram(&stack);

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
    assert!(wait_for(Duration::from_secs(20), gone), "{}", story(&stack));
    stack.stop();
}
