//! The daemon is killed: ordinary traffic does not notice, and after a restart the next exchange succeeds.

use std::time::{Duration, Instant};

use xtask::lab::{Family, Node, PeerKind};
use xtask::proof::stack_for_test;
use xtask::sh::Cmd;

use crate::{LIMIT, ping};

/// An address at the peer that no policy of terminal A protects: traffic with it is ordinary.
const ORDINARY: &str = "10.77.9.77";

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn a_killed_daemon_leaves_ordinary_traffic_alone_and_comes_back() {
    let mut stack = stack_for_test("restart", PeerKind::Kernel).expect("lab and towpath come up");
    let add = Cmd::new("ip").args(["addr", "add", &format!("{ORDINARY}/32"), "dev", "vec0"]);
    assert!(stack.lab.exec(Node::Peer, &add, LIMIT).is_ok_and(|out| out.ok()));
    assert!(ping(&stack.lab, Node::Ta, ORDINARY, 2), "ordinary traffic before");
    let peer = Node::Peer.addr(Family::V4).to_string();
    assert!(ping(&stack.lab, Node::Ta, &peer, 2), "protected traffic before");

    stack.kill_daemon();
    assert!(
        ping(&stack.lab, Node::Ta, ORDINARY, 10),
        "ordinary traffic while the daemon is down"
    );
    assert!(stack.cli(&["status"]).is_err(), "nobody answers");

    stack.start_daemon().expect("the daemon starts again");
    let subscribers = stack
        .cli(&["subscriber", "list"])
        .expect("the store is readable")
        .to_string();
    assert!(
        subscribers.contains("\"ta\"") && subscribers.contains("\"tb\""),
        "{subscribers}"
    );
    assert!(ping(&stack.lab, Node::Ta, ORDINARY, 2), "ordinary traffic after");

    // The peer forgets its side, as an operator would make it; the terminals register anew by themselves.
    stack.lab.peer().forget().expect("swanctl runs");
    let until = Instant::now() + Duration::from_secs(60);
    let again = loop {
        if ping(&stack.lab, Node::Ta, &peer, 1) {
            break true;
        }
        if Instant::now() > until {
            break false;
        }
    };
    assert!(
        again,
        "no exchange after the restart:\n{}\n{}",
        stack.tail("towpath", 30),
        stack.tail("terminal-ta", 30)
    );
    let sas = stack.lab.peer().list_sas().expect("the peer reports");
    assert!(
        sas.iter().any(|sa| sa.remote_id == Node::Ta.identity()),
        "{sas:?}"
    );
    stack.stop();
}
