//! The main job with both kinds of peer: each family, starter, suite and class at least once. All combinations are
//! shown by `cargo xtask run --once`.

use std::time::Duration;

use xtask::lab::{Family, IkeSa, Node, PeerKind, Suite};
use xtask::proof::scenario::{Class, Scenario, Starter};
use xtask::proof::{runner, stack_for_test};

use crate::ping;

fn scenario(class: Class, family: Family, starter: Starter, suite: Suite) -> Scenario {
    Scenario {
        terminal: Scenario::terminal_of(class),
        other: Node::Peer,
        family,
        starter,
        suite,
        class,
    }
}

fn all_pass(peer: PeerKind, rows: &[Scenario]) {
    let stack = stack_for_test("proxied", peer).expect("lab and towpath come up");
    for row in rows {
        let outcome = runner::run(&stack, *row, &|_| ());
        assert!(
            outcome.passed(),
            "{}: {:#?}\ndaemon:\n{}\nterminal A:\n{}",
            row.title(),
            outcome.complaints(),
            stack.tail("towpath", 40),
            stack.tail("terminal-ta", 20)
        );
    }
    stack.stop();
}

fn four() -> [Scenario; 4] {
    use Family::{V4, V6};
    [
        scenario(Class::Full, V4, Starter::Terminal, Suite::Gcm),
        scenario(Class::Full, V6, Starter::Other, Suite::Cbc),
        scenario(Class::None, V4, Starter::Other, Suite::Cbc),
        scenario(Class::None, V6, Starter::Terminal, Suite::Gcm),
    ]
}

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn a_terminal_without_ike_talks_with_a_linux_kernel() {
    all_pass(PeerKind::Kernel, &four());
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_terminal_without_ike_talks_with_user_space_esp_in_udp() {
    all_pass(PeerKind::Libipsec, &four());
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn two_terminals_without_ike_talk_with_each_other() {
    let first = scenario(Class::Full, Family::V4, Starter::Terminal, Suite::Any);
    let rows = Family::ALL.map(|family| Scenario {
        other: Node::Tb,
        family,
        ..first
    });
    all_pass(PeerKind::Libipsec, &rows);
}

/// The peer replaces first the ESP SA, then the IKE SA; the terminal gets the new keys and nothing is lost.
#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_peer_that_rekeys_is_followed() {
    let stack = stack_for_test("rekey", PeerKind::Libipsec).expect("lab and towpath come up");
    let peer = Node::Peer.addr(Family::V4).to_string();
    assert!(
        ping(&stack.lab, Node::Ta, &peer, 2),
        "{}\n{}\n{}",
        stack.tail("towpath", 30),
        stack.tail("terminal-ta", 20),
        stack.cli(&["stats"]).expect("the daemon counts")
    );
    let child = || {
        let sas = stack.lab.peer().list_sas().expect("the peer reports");
        let installed = |sa: &IkeSa| sa.children.iter().find(|c| c.state == "INSTALLED").cloned();
        sas.iter()
            .filter(|sa| sa.state == "ESTABLISHED")
            .find_map(installed)
            .expect("an SA is installed")
    };
    let first = child();
    for (kind, what) in [("--child", "ESP"), ("--ike", "IKE")] {
        stack.lab.peer().rekey(kind, "ta-v4").expect("the peer rekeys");
        std::thread::sleep(Duration::from_millis(500));
        assert!(
            ping(&stack.lab, Node::Ta, &peer, 5),
            "after rekeying the {what} SA:\n{}",
            stack.tail("towpath", 30)
        );
        assert!(ping(
            &stack.lab,
            Node::Peer,
            &Node::Ta.addr(Family::V4).to_string(),
            5
        ));
    }
    assert_ne!(child().spi_in, first.spi_in, "the ESP SA is a new one");
    let ours = stack.sas().expect("the daemon lists SAs");
    assert_eq!(ours.len(), 1, "the old ones are gone: {ours:?}");
    stack.stop();
}
