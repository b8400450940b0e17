//! The lab by itself: two charons with a gateway between them that only forwards. Shows that the peer's
//! configurations, as the proxied exchanges use them, work between two ends that both speak IKE.
//!
//! ```text
//!   ta (charon standing in for the terminal) --- gw --- peer (charon)
//! ```
use std::time::Duration;

use crate::LIMIT;

use xtask::lab::{Charon, Conn, Family, Lab, Node, PeerKind, Suite, What};
use xtask::proof::{runner, stack::programs};
use xtask::sh::Cmd;

/// Brings up a lab with `peer` and a stand-in of the same kind, and connects them in every family and suite.
fn both_charons_agree(peer: PeerKind) {
    let mut lab = Lab::ephemeral(&xtask::root(), "lab", peer).expect("the lab comes up");
    runner::start_server(&mut lab, Node::Peer).expect("the transfer server starts");
    let stand_in = lab.stand_in(Node::Ta, peer).expect("a second charon starts");
    for family in Family::ALL {
        for suite in [Suite::Gcm, Suite::Cbc, Suite::Modp] {
            let conn = Conn::of_peer(peer, Node::Ta, family, suite);
            one_exchange(&lab, &stand_in, &conn, family);
        }
    }
}

fn one_exchange(lab: &Lab, stand_in: &Charon, conn: &Conn, family: Family) {
    let kind = lab.peer_kind();
    lab.peer()
        .load_conns(std::slice::from_ref(conn))
        .expect("the peer takes its connection");
    stand_in
        .load_conns(&[conn.mirrored(kind)])
        .expect("the stand-in takes its connection");
    let capture = lab.capture(Node::Peer, "eth0").expect("tcpdump starts");

    let out = lab.peer().initiate(&conn.name, LIMIT).expect("swanctl runs");
    assert!(
        out.ok(),
        "{family} {:?}: {}\n{}",
        conn.suite,
        out.all(),
        stand_in.log()
    );
    let sas = lab.peer().list_sas().expect("the peer reports");
    assert_eq!(sas.len(), 1, "{sas:?}");
    assert_eq!(sas[0].state, "ESTABLISHED");
    assert_eq!(sas[0].remote_id, Node::Ta.identity());
    let child = &sas[0].children[0];
    assert_eq!(child.mode, format!("{:?}", conn.mode).to_uppercase(), "{child:?}");
    assert_eq!(child.encap, kind == PeerKind::Libipsec);

    let target = Node::Peer.addr(family).to_string();
    let ping = Cmd::new("ping").args(["-c", "3", "-i", "0.2", "-W", "2", &target]);
    let out = lab.exec(Node::Ta, &ping, LIMIT).expect("ping runs");
    assert!(out.ok(), "{}", out.all());
    bulk(lab, &target);
    let frames = capture.stop().expect("the capture is readable");
    let seen: Vec<_> = frames.iter().filter_map(|f| f.seen()).collect();
    let esp = seen
        .iter()
        .filter(|s| matches!(s.what, What::Esp(_) | What::UdpEsp(_)))
        .count();
    let clear = seen.iter().filter(|s| s.what == What::Icmp).count();
    assert!(
        esp >= 6 && clear == 0,
        "{esp} ESP packets and {clear} in the clear, of {}",
        frames.len()
    );

    lab.peer().terminate(&conn.name, LIMIT).expect("swanctl runs");
    let gone = (0..20).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        stand_in.list_sas().is_ok_and(|s| s.is_empty())
    });
    assert!(gone, "the delete did not arrive");
}

/// One MiB each way, checked by a checksum computed at each end.
fn bulk(lab: &Lab, target: &str) {
    let xtask = programs().expect("a test has a folder").join("xtask");
    assert!(
        xtask.exists(),
        "cargo build -p xtask comes first: {}",
        xtask.display()
    );
    for verb in ["put", "get"] {
        let pump = Cmd::new(&xtask).args(["pump", verb, target, "1048576"]);
        let out = lab.exec(Node::Ta, &pump, LIMIT).expect("the helper runs");
        assert!(out.ok(), "{verb}: {}", out.all());
        println!("{verb} {target}: {}", out.stdout.trim());
    }
}

#[test]
#[ignore = "needs root: network namespaces and a guest kernel"]
fn long_two_kernels_agree_in_transport_mode_over_both_families() {
    both_charons_agree(PeerKind::Kernel);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn two_libipsec_charons_agree_in_tunnel_mode_over_both_families() {
    both_charons_agree(PeerKind::Libipsec);
}
