//! IKE with a real peer through terminal, gateway, keyserver and registry: peers that move, fall silent, prove
//! themselves by certificates, or sit behind a NAT.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};
use towpath_tests::pki::Kind;
use xtask::lab::state::wait_for;
use xtask::lab::{Conn, Family, Lab, Node, PeerKind, Suite};
use xtask::proof::stack::Stack;
use xtask::proof::stack_in;
use xtask::sh::Cmd;

use crate::certificates::{Credential, clear_peer, name};
use crate::{LIMIT, ping};

/// A silent peer is asked after 2 s; four transmissions, half a second before the second, twice as long each time, a
/// quarter more at most: it is gone 12 s after its last word.
const SILENCE: &str = "[keyserver]\ndpd_seconds = 2\nretransmit_initial_ms = 500\nretransmit_tries = 4\n";

/// Far more than any wait of the protocols here takes.
const PATIENCE: Duration = Duration::from_secs(90);

fn lab(name: &str) -> Lab {
    Lab::ephemeral(&xtask::root(), name, PeerKind::Libipsec).expect("the lab comes up")
}

fn conn(family: Family) -> Conn {
    Conn {
        inside: Some(Node::Peer.addr(family)),
        ..Conn::of_peer(PeerKind::Libipsec, Node::Ta, family, Suite::Gcm)
    }
}

fn at_peer(stack: &Stack, script: &str) {
    let cmd = Cmd::new("sh").args(["-c", script]);
    let out = stack.lab.exec(Node::Peer, &cmd, LIMIT).expect("sh runs");
    assert!(out.ok(), "{script}: {}", out.all());
}

/// Whether a packet gets through to the peer and back, from either end.
fn passes(stack: &Stack, family: Family) -> bool {
    let (terminal, peer) = (
        Node::Ta.addr(family).to_string(),
        Node::Peer.addr(family).to_string(),
    );
    ping(&stack.lab, Node::Ta, &peer, 1) && ping(&stack.lab, Node::Peer, &terminal, 1)
}

/// Waits for `done`; what was seen if it does not come.
fn until(stack: &Stack, what: &str, done: impl FnMut() -> bool) {
    assert!(
        wait_for(PATIENCE, done),
        "{what}\ndaemon:\n{}\nterminal:\n{}\npeer:\n{}",
        stack.tail("towpath", 60),
        stack.tail("terminal-ta", 20),
        stack.lab.peer().log()
    );
}

fn initiate(stack: &Stack, name: &str) {
    let out = stack.lab.peer().initiate(name, LIMIT).expect("swanctl runs");
    assert!(out.ok(), "{}\n{}", out.all(), stack.tail("towpath", 40));
}

/// The peer's address as the keyserver knows it, of every IKE SA.
fn remotes(stack: &Stack) -> String {
    stack
        .cli(&["ike", "list"])
        .expect("the daemon lists IKE SAs")
        .to_string()
}

fn count(stack: &Stack, words: &str) -> usize {
    stack.lab.peer().log().matches(words).count()
}

/// One boot, three things: a peer that asks whether we live is answered; one that moves is followed by
/// the IKE SA it had; one that is gone is noticed, and the next packet starts afresh when it is back.
#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_peer_is_answered_followed_and_missed() {
    let mut stack = stack_in(lab("ikepeer"), SILENCE, |_, _| ()).expect("towpath comes up");
    let mobile = |family| Conn {
        mobike: true,
        dpd_delay: 2,
        ..conn(family)
    };
    stack
        .lab
        .peer()
        .load_conns(&Family::ALL.map(mobile))
        .expect("the peer takes its connections");
    for family in Family::ALL {
        initiate(&stack, &mobile(family).name);
        until(&stack, "no traffic at first", || passes(&stack, family));
    }

    let answers = "parsed INFORMATIONAL response";
    let before = count(&stack, answers);
    until(&stack, "the peer's question is not answered", || {
        count(&stack, answers) >= before + 3
    });
    let starts = count(&stack, "IKE_SA_INIT request");

    // What its tunnels protect here is the address it leaves. In IPv4 charon holds on to one that is anywhere on its
    // machine: there it gets that back, on the loopback interface, once it has moved.
    at_peer(
        &stack,
        "ip -6 addr add fd77:9::3/64 dev eth0 nodad; ip -6 addr add fd77:9::2/128 dev lo nodad
         ip -6 addr del fd77:9::2/64 dev eth0; ip -6 route replace default via fd77:9::1 dev eth0",
    );
    until(&stack, "the keyserver does not follow", || {
        remotes(&stack).contains("fd77:9::3")
    });
    at_peer(
        &stack,
        "echo 1 >/proc/sys/net/ipv4/conf/eth0/promote_secondaries; ip addr add 10.77.9.3/24 dev eth0
         ip addr del 10.77.9.2/24 dev eth0; ip route replace default via 10.77.9.1 dev eth0",
    );
    until(&stack, "the keyserver does not follow", || {
        remotes(&stack).contains("10.77.9.3")
    });
    at_peer(&stack, "ip addr add 10.77.9.2/32 dev lo");
    for family in Family::ALL {
        until(&stack, "no traffic after the move", || passes(&stack, family));
    }
    assert_eq!(
        count(&stack, "IKE_SA_INIT request"),
        starts,
        "the IKE SAs are those there were:\n{}",
        stack.lab.peer().log()
    );
    // The SAs of the old addresses go: one of each family is left.
    until(&stack, "old SAs are left", || {
        stack.sas().is_ok_and(|sas| sas.len() == 2)
    });

    stack.lab.kill_peer().expect("charon ends");
    until(&stack, "a peer that is gone is not missed", || {
        stack.sas().is_ok_and(|sas| sas.is_empty())
    });
    let peer = stack.lab.start_peer().expect("charon starts again");
    peer.load_conns(&[mobile(Family::V4)])
        .expect("it takes its connection");
    let target = Node::Peer.addr(Family::V4).to_string();
    until(&stack, "no new exchange with a peer that came back", || {
        ping(&stack.lab, Node::Ta, &target, 1)
    });
    stack.stop();
}

/// The peer starts behind a NAT, which later forgets its mapping; traffic in both directions all the while.
#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_peer_behind_a_nat_is_followed_to_other_ports() {
    let mut lab = lab("ikenat");
    lab.put_peer_behind_nat(20_000).expect("a NAT before the peer");
    let stack = stack_in(lab, SILENCE, |_, _| ()).expect("towpath comes up");
    let behind = |family| Conn {
        local: (
            xtask::lab::net::behind_nat(family),
            Node::Peer.identity().to_owned(),
        ),
        dpd_delay: 2,
        ..conn(family)
    };
    stack
        .lab
        .peer()
        .load_conns(&Family::ALL.map(behind))
        .expect("the peer takes its connections");
    let capture = stack.lab.capture(Node::Ta, "eth0").expect("tcpdump starts");
    for family in Family::ALL {
        initiate(&stack, &behind(family).name);
        until(&stack, "no traffic through the NAT", || passes(&stack, family));
    }
    let at = |port: &str| remotes(&stack).matches(port).count() == Family::ALL.len();
    assert!(at(":24500"), "{}", remotes(&stack));

    // charon asks every two seconds, which shows the keyserver where it is now.
    stack.lab.remap_nat(30_000).expect("the NAT forgets");
    until(&stack, "the keyserver does not follow", || at(":34500"));
    for family in Family::ALL {
        until(&stack, "no traffic after the mapping changed", || {
            passes(&stack, family)
        });
    }
    // Replaced SAs stay for packets on their way.
    until(&stack, "old SAs are left", || {
        stack.sas().is_ok_and(|sas| sas.len() == Family::ALL.len())
    });
    assert!(Family::ALL.iter().all(|family| passes(&stack, *family)));
    let frames = capture.stop().expect("the capture is readable");
    // ICMP echo, after Ethernet and IP headers. (That old ports are unreachable is said in the clear.)
    let echo = |bytes: &[u8]| match bytes.get(12..14) {
        Some([0x08, 0x00]) => bytes.get(23) == Some(&1) && matches!(bytes.get(34), Some(0 | 8)),
        Some([0x86, 0xdd]) => bytes.get(20) == Some(&58) && matches!(bytes.get(54), Some(128 | 129)),
        _ => false,
    };
    let clear = frames.iter().filter(|frame| echo(&frame.bytes)).count();
    assert_eq!(clear, 0, "pings in the clear");
    stack.stop();
}

/// ECDSA for IPv4; RSA and four authorities in between, more than any datagram takes, for IPv6.
static CREDENTIALS: LazyLock<[Credential; 2]> = LazyLock::new(|| {
    [(Kind::P256, 0), (Kind::Rsa, 4)].map(|(kind, depth)| {
        let (terminal, peer) = (name(Node::Ta.identity()), name(Node::Peer.identity()));
        Credential::new([kind; 2], depth, vec![terminal], vec![peer])
    })
});

fn credential_of(family: Family) -> &'static Credential {
    &CREDENTIALS[usize::from(family == Family::V6)]
}

/// Terminal A proves itself to the peer by certificates, and wants the same of it.
fn certify(terminal: Node, record: &mut Value) {
    if terminal != Node::Ta {
        return;
    }
    for policy in record["peers"].as_array_mut().expect("peers") {
        for family in Family::ALL {
            let peer = format!("{}/{}", Node::Peer.addr(family), family.host_bits());
            if policy["peer"] == json!(peer) {
                policy.as_object_mut().expect("a table").remove("psk");
                policy["credential"] = credential_of(family).of_subscriber(true, true);
            }
        }
    }
}

/// Each family with other certificates, started by the terminal and by the peer.
#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn both_prove_themselves_by_certificates() {
    let stack = stack_in(lab("ikecert"), "", certify).expect("towpath comes up");
    for family in Family::ALL {
        let peer = stack.lab.peer();
        clear_peer(peer.dir());
        credential_of(family).give_peer(peer.dir(), "own");
        let conn = conn(family).certified("own.pem");
        peer.load_conns(std::slice::from_ref(&conn))
            .expect("the peer takes its connection");
        let pieces = count(&stack, "EF(");
        let target = Node::Peer.addr(family).to_string();
        until(&stack, "no traffic when the terminal starts", || {
            ping(&stack.lab, Node::Ta, &target, 1)
        });
        peer.terminate(&conn.name, LIMIT).expect("swanctl runs");
        until(&stack, "the SA is left", || {
            stack.sas().is_ok_and(|sas| sas.is_empty())
        });
        initiate(&stack, &conn.name);
        until(&stack, "no traffic when the peer starts", || {
            passes(&stack, family)
        });
        let sas = peer.list_sas().expect("the peer reports");
        assert!(
            sas.iter().all(|sa| sa.remote_id == Node::Ta.identity()),
            "{sas:?}"
        );
        // The long chain comes and goes in pieces, in both exchanges.
        let pieces = count(&stack, "EF(") - pieces;
        assert_eq!(pieces > 0, family == Family::V6, "{pieces} pieces");
        peer.terminate(&conn.name, LIMIT).expect("swanctl runs");
        until(&stack, "the SA is left", || {
            stack.sas().is_ok_and(|sas| sas.is_empty())
        });
    }
    stack.stop();
}
