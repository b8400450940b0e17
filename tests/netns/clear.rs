//! TCP in the clear through the relay: split and helped along by Snoop where a rule asks for it, and untouched otherwise.
//!
//! ```text
//!   ta ──── TCP ──── gw: XDP diverts, relay ──── TCP ──── another address of the peer, in no SA
//! ```

use std::time::Duration;

use serde_json::Value;
use xtask::lab::{Family, Lab, Node, PeerKind};
use xtask::load::{Server, download};
use xtask::proof::stack::{Stack, find};
use xtask::proof::stack_for_test_with;
use xtask::sh::Cmd;

use crate::ping;

/// What the rules split, help along, and do not name.
const SPLIT: u16 = 7201;
const SNOOP: u16 = 7202;
const PASS: u16 = 7203;

const RULES: &str = r#"
[[relay.rule]]
class = "clear"
profile = "ta"
peer_port = 7201
action = "split"

[[relay.rule]]
class = "clear"
profile = "ta"
peer_port = 7202
action = "snoop"
"#;

const BYTES: u64 = 4 << 20;

/// An address of the peer's that nobody protects.
const fn open(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.77.9.50",
        Family::V6 => "fd77:9::50",
    }
}

fn add_open_addresses(lab: &Lab) {
    for (family, bits) in [(Family::V4, 24), (Family::V6, 64)] {
        let line = format!("ip addr add {}/{bits} dev eth0 nodad", open(family));
        let line = if family == Family::V4 {
            line.replace(" nodad", "")
        } else {
            line
        };
        let out = lab.exec(Node::Peer, &Cmd::line(&line), Duration::from_secs(5));
        assert!(out.is_ok_and(|out| out.ok()), "{line}");
    }
}

/// Bytes fetched whole; a download that stops short has lost some.
fn fetch(stack: &Stack, from: Node, family: Family, port: u16) {
    let address = open(family).parse().expect("an address");
    let namespace = stack.lab.net().namespace(from);
    let seen = download(&namespace, (address, port), BYTES, Duration::from_secs(60));
    let seen =
        seen.unwrap_or_else(|error| panic!("{family} port {port}: {error}\n{}", stack.tail("towpath", 20)));
    assert_eq!(seen.bytes(), BYTES, "{family} port {port}");
}

/// How the connections to `port` are treated.
fn treatments(stack: &Stack, port: u16) -> Vec<String> {
    let flows = stack.cli(&["flow", "list"]).expect("the daemon answers");
    let flows = find(&flows, "flows").and_then(Value::as_array).expect("a list");
    let to_port = flows.iter().filter(|flow| flow["network_port"] == port);
    to_port
        .map(|flow| flow["treatment"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn tcp_in_the_clear_is_relayed_where_a_rule_asks_and_goes_on_without_the_daemon() {
    let mut stack = stack_for_test_with("clear", PeerKind::Libipsec, RULES).expect("lab and towpath come up");
    add_open_addresses(&stack.lab);
    let peer = stack.lab.net().namespace(Node::Peer);
    let _servers = [SPLIT, SNOOP, PASS].map(|port| Server::start(&peer, port, "cubic").expect("a server"));
    for family in Family::ALL {
        let relayed = || stack.counter("relay_in").expect("the daemon counts");
        let before = relayed();
        fetch(&stack, Node::Ta, family, SPLIT);
        assert!(relayed() > before + 500, "it did not pass the relay");
        assert!(treatments(&stack, SPLIT).contains(&"split".into()));
        fetch(&stack, Node::Ta, family, SNOOP);
        assert!(treatments(&stack, SNOOP).contains(&"snoop".into()));
        let before = relayed();
        fetch(&stack, Node::Ta, family, PASS);
        // Another subscriber's, which no rule names.
        fetch(&stack, Node::Tb, family, SPLIT);
        assert_eq!(relayed(), before, "{family}: no rule asks for it");
        // The same two hosts' protected traffic is another matter.
        let protected = Node::Peer.addr(family).to_string();
        assert!(
            ping(&stack.lab, Node::Tb, &protected, 1),
            "{}",
            stack.tail("towpath", 20)
        );
    }
    assert_eq!(stack.counter("relay_malformed").expect("the daemon counts"), 0);
    // Ordinary traffic keeps flowing when the process is gone: nobody relays it then.
    stack.kill_daemon();
    for family in Family::ALL {
        fetch(&stack, Node::Ta, family, SPLIT);
    }
    stack.stop();
}
