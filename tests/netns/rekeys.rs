//! Keys are replaced every second or two, by the peer, by us and by both at once, while a packet leaves every ten
//! milliseconds: none is lost. The long version is `cargo xtask run --rekeys 600`.

use std::time::Duration;

use xtask::lab::{Family, Node, PeerKind};
use xtask::proof::rekeys::{Stream, run};
use xtask::proof::stack_for_test;

fn nothing_is_lost(peer: PeerKind, streams: &[Stream]) {
    let stack = stack_for_test("rekeys", peer).expect("lab and towpath come up");
    for stream in streams {
        let report = run(&stack, *stream, Duration::from_secs(20)).expect("packets flow");
        println!("{report:?}");
        assert!(
            report.passed(),
            "{report:#?}\ndaemon:\n{}\nterminal:\n{}\n{}",
            stack.tail("towpath", 60),
            stack.tail("terminal-ta", 20),
            stack.cli(&["stats"]).expect("the daemon counts")
        );
        // Each kind of rekeying took place.
        assert!(
            report.children.iter().chain(&report.ikes).all(|count| *count > 0),
            "{report:?}"
        );
    }
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn long_no_packet_is_lost_across_rekeyings_with_a_linux_kernel() {
    let stream = |terminal, family| Stream { terminal, family };
    // Terminal A's policy is class full, terminal B's none.
    nothing_is_lost(
        PeerKind::Kernel,
        &[stream(Node::Ta, Family::V4), stream(Node::Tb, Family::V6)],
    );
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn no_packet_is_lost_across_rekeyings_with_user_space_esp() {
    let stream = |terminal, family| Stream { terminal, family };
    nothing_is_lost(PeerKind::Libipsec, &[stream(Node::Ta, Family::V6)]);
}
