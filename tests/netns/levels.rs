//! An application chooses intervention by connection (spec row T21): the mark of its socket is a sensitivity level, that has
//! SAs of its own, and these a class.
//!
//! ```text
//!   pump ─────────── SO_MARK 0 ──► SA of level 0, class full ──► gateway: opens, relays TCP ──► peer (strongSwan)
//!   pump --mark 5 ── SO_MARK 5 ──► SA of level 5, class none ──► gateway: has no key ─────────► peer
//! ```

use serde_json::Value;
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

fn transfer(stack: &Stack, verb: &str, to: &str, mark: Option<u64>) {
    let xtask = programs().expect("programs").join("xtask");
    let bytes = BYTES.to_string();
    let mut cmd = Cmd::new(xtask).args(["pump", verb, to, &bytes]);
    if let Some(mark) = mark {
        cmd = cmd.args(["--mark", &mark.to_string()]);
    }
    let out = stack.lab.exec(Node::Ta, &cmd, LIMIT * 2).expect("it ends");
    assert!(out.ok(), "{verb} {mark:?}: {}\n{}", out.all(), story(stack));
}

fn chosen_and_not(stack: &Stack, family: Family) {
    let peer = Node::Peer.addr(family).to_string();
    // The choice comes first: the SA for everything is not there yet.
    transfer(stack, "get", &peer, Some(LEVEL));
    transfer(stack, "get", &peer, None);
    transfer(stack, "put", &peer, Some(LEVEL));

    let [(class, to_peer, to_terminal)] = &sas(stack, family, 0)[..] else {
        panic!("one SA for everything\n{}", story(stack));
    };
    assert_eq!(class, "full");
    assert!(*to_peer > 50 && *to_terminal > 100, "{}", story(stack));
    let chosen = sas(stack, family, LEVEL);
    assert_eq!(chosen.len(), 2, "one for each connection\n{}", story(stack));
    // What the peer answers comes back by the same SA: of 1400 bytes a packet, and acknowledgements the other way.
    let (got, put) = (&chosen[0], &chosen[1]);
    let (got, put) = if got.2 > put.2 { (got, put) } else { (put, got) };
    assert!(got.2 > 100 && got.1 > 20, "{chosen:?}\n{}", story(stack));
    assert!(put.1 > 100 && put.2 > 20, "{chosen:?}\n{}", story(stack));
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
    for family in Family::ALL {
        chosen_and_not(&stack, family);
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
