//! An application chooses intervention by connection (spec row T21): the mark of its socket is a sensitivity level, that has
//! SAs of its own, and these a class.
//!
//! ```text
//!   pump ─────────── SO_MARK 0 ──► SA of level 0, class full ──► gateway: opens, relays TCP ──► peer (strongSwan)
//!   pump --mark 5 ── SO_MARK 5 ──► SA of level 5, class none ──► gateway: has no key ─────────► peer
//! ```

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use xtask::lab::state::wait_for;
use xtask::lab::{Family, Lab, Node, PeerKind};
use xtask::proof::stack::{Stack, find, programs};
use xtask::proof::stack_in;
use xtask::sh::Cmd;

use crate::{LIMIT, ping};

const LEVEL: u64 = 5;
const BYTES: u64 = 200_000;

/// Every policy of terminal A with the peer has a twin of class `none` for packets of the level.
fn with_levels(terminal: Node, record: &mut Value) {
    if terminal != Node::Ta {
        return;
    }
    let peers = record["peers"].as_array_mut().expect("a list of peers");
    let chosen: Vec<Value> = peers
        .iter()
        .filter(|peer| peer["remote_id"] == Node::Peer.identity())
        .map(|peer| {
            let mut chosen = peer.clone();
            chosen["level"] = LEVEL.into();
            chosen["class"] = "none".into();
            chosen
        })
        .collect();
    assert_eq!(chosen.len(), 2, "one of each family");
    peers.extend(chosen);
}

/// SAs of terminal A at the gateway with this level: class, packets to the peer and to the terminal.
fn sas(stack: &Stack, family: Family, level: u64) -> Vec<(String, u64, u64)> {
    let sas = stack.sas().expect("the daemon lists SAs");
    let ours = sas.iter().filter(|sa| {
        sa["terminal"] == Node::Ta.addr(family).to_string() && sa["level"].as_u64() == Some(level)
    });
    let packets = |sa: &Value, way: &str| sa[way]["packets"].as_u64().unwrap_or(0);
    ours.map(|sa| {
        let class = sa["class"].as_str().unwrap_or_default().to_owned();
        (class, packets(sa, "to_peer"), packets(sa, "to_terminal"))
    })
    .collect()
}

fn story(stack: &Stack) -> String {
    format!(
        "daemon:\n{}\nterminal A:\n{}\nSAs: {:#?}",
        stack.tail("towpath", 40),
        stack.tail("terminal-ta", 30),
        stack.sas()
    )
}

fn transfer(stack: &Stack, xtask: &Path, verb: &str, to: &str, mark: Option<u64>) {
    let bytes = BYTES.to_string();
    let mut cmd = Cmd::new(xtask).args(["pump", verb, to, &bytes]);
    if let Some(mark) = mark {
        cmd = cmd.args(["--mark", &mark.to_string()]);
    }
    let out = stack.lab.exec(Node::Ta, &cmd, LIMIT * 2).expect("it ends");
    assert!(out.ok(), "{verb} {mark:?}: {}\n{}", out.all(), story(stack));
}

/// `acks`: the terminal answers what it receives with more packets than this.
fn chosen_and_not(stack: &Stack, xtask: &Path, family: Family, acks: u64) {
    let peer = Node::Peer.addr(family).to_string();
    // The choice comes first: the SA for everything is not there yet.
    transfer(stack, xtask, "get", &peer, Some(LEVEL));
    transfer(stack, xtask, "get", &peer, None);
    transfer(stack, xtask, "put", &peer, Some(LEVEL));

    let [(class, to_peer, to_terminal)] = &sas(stack, family, 0)[..] else {
        panic!("one SA for everything\n{}", story(stack));
    };
    assert_eq!(class, "full");
    assert!(*to_peer > acks && *to_terminal > 100, "{}", story(stack));
    let mut chosen = sas(stack, family, LEVEL);
    // A kernel looks for a route before the connection has a port, and asks for an SA of port 0, too: nothing comes back by it.
    chosen.retain(|(_, _, to_terminal)| *to_terminal > 0);
    assert_eq!(chosen.len(), 2, "one for each connection\n{}", story(stack));
    // What the peer answers comes back by the same SA: of 1400 bytes a packet, and acknowledgements the other way.
    let (got, put) = (&chosen[0], &chosen[1]);
    let (got, put) = if got.2 > put.2 { (got, put) } else { (put, got) };
    assert!(got.2 > 100 && got.1 > acks, "{chosen:?}\n{}", story(stack));
    assert!(put.1 > 100 && put.2 > acks, "{chosen:?}\n{}", story(stack));
    assert!(chosen.iter().all(|(class, ..)| class == "none"), "{chosen:?}");

    // The peer knows each by its ports, beside the one for everything.
    let sas = stack.lab.peer().list_sas().expect("the peer reports");
    let with_a = sas.iter().filter(|sa| sa.state == "ESTABLISHED");
    let children = with_a.map(|sa| sa.children.len()).sum::<usize>();
    assert!(children >= 3, "{sas:#?}");
    let text = stack.lab.peer().list_sas_text().expect("the peer reports");
    let ports = format!("/{}[tcp/7007]", family.host_bits());
    assert!(text.matches(&ports).count() >= 2, "{text}");
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn an_application_chooses_by_its_sockets_mark_whether_the_gateway_may_intervene() {
    let lab = Lab::ephemeral(&xtask::root(), "levels", PeerKind::Libipsec).expect("lab comes up");
    let stack = stack_in(lab, "", with_levels).expect("towpath comes up");
    let xtask = programs().expect("programs").join("xtask");
    for family in Family::ALL {
        chosen_and_not(&stack, &xtask, family, 20);
    }
    // Not TCP alone.
    let peer = Node::Peer.addr(Family::V4).to_string();
    let marked = Cmd::new("ping").args(["-m", "5", "-c", "3", "-i", "0.2", "-W", "5", "-q", &peer]);
    let out = stack.lab.exec(Node::Ta, &marked, LIMIT).expect("ping ends");
    assert!(
        out.stdout.contains(" 0% packet loss"),
        "{}\n{}",
        out.all(),
        story(&stack)
    );
    let chosen = sas(&stack, Family::V4, LEVEL);
    assert!(chosen.iter().any(|sa| (sa.1, sa.2) == (3, 3)), "{chosen:?}");
    assert!(ping(&stack.lab, Node::Ta, &peer, 3), "{}", story(&stack));

    // The gateway relayed the connections nobody chose for, and no other.
    let stats = stack.cli(&["stats"]).expect("the daemon counts");
    let relayed = find(&stats, "counters")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let relayed = relayed.filter(|counter| counter["group"] == "relay" && counter["name"] == "split_opened");
    let relayed: u64 = relayed.filter_map(|counter| counter["packets"].as_u64()).sum();
    assert_eq!(relayed, 2, "{stats:#}");
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn long_the_mark_chooses_among_the_kernels_own_policies_too() {
    let lab = Lab::ephemeral(&xtask::root(), "levelsk", PeerKind::Libipsec).expect("lab comes up");
    let mut stack = stack_in(lab, "", with_levels).expect("towpath comes up");
    stack
        .move_into_guest(Node::Ta, "backend = \"kernel\"")
        .expect("a guest kernel takes the terminal's place");
    let registered = || {
        let status = stack.guest_status(Node::Ta).ok();
        status.is_some_and(|status| find(&status, "registered").and_then(Value::as_bool) == Some(true))
    };
    assert!(
        wait_for(Duration::from_secs(120), registered),
        "{}",
        guest_story(&stack)
    );
    let program = programs().expect("programs").join("xtask");
    let xtask = stack.lab.lend(Node::Ta, &program).expect("lent");
    for family in Family::ALL {
        // Segments that arrive together are one to this kernel, and have one acknowledgment.
        chosen_and_not(&stack, &xtask, family, 4);
    }
    let tables = guest_story(&stack);
    assert!(tables.contains("mark 0x5/"), "{tables}");
    stack.stop();
}

/// The agent's log and the tables of the guest's kernel.
fn guest_story(stack: &Stack) -> String {
    let look = Cmd::new("cat /run/work/agent.log; ip -s xfrm state; ip xfrm policy");
    let out = stack.lab.exec(Node::Ta, &look, LIMIT);
    format!(
        "{}\n{}",
        out.map(|out| out.all()).unwrap_or_default(),
        story(stack)
    )
}
