//! What the daemon of a lab wrote down of every packet it sealed, across SIGKILLs at points drawn at random.
//!
//! ```text
//!   ta: sealed by the test ──► gw (towpath: open, log, seal) ──► peer
//!                                  SIGKILL in mid-flow, restart
//! ```
//!
//! Every other test of this folder is judged, too: `Stack::stop` reads the log of its daemon.

use std::time::{Duration, Instant};

use towpath_base::sa::EspSuite;
use towpath_base::testutil::SeededRng;
use xtask::lab::{Family, Node, PeerKind};
use xtask::proof::nonces::{self, Nonces};
use xtask::proof::stack_for_test_with;

use crate::manual::{Ends, add, child, keys};

/// Packets sent in one life of the daemon.
const FLIGHT: u32 = 12;
/// Lives of the daemon.
const LIVES: u32 = 3;
/// Until the first packet of a life is sealed. A restart takes a second or two here; nothing depends on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The log after a manual SA was used by a daemon that is killed again and again.
fn after_kills(name: &str, debug: &str) -> Nonces {
    let mut stack = stack_for_test_with(name, PeerKind::Libipsec, debug).expect("lab and towpath");
    let suite = EspSuite::Aes256Gcm16;
    let [peer_in, peer_out, segment_in, segment_out] = [0, 1, 2, 3].map(|n| keys(suite, 0x50 + n));
    let peer = child(Family::V4, suite, 0xa000_0040, peer_in.clone(), peer_out.clone());
    let terminal = child(
        Family::V4,
        suite,
        0xa000_0040,
        segment_in.clone(),
        segment_out.clone(),
    );
    let given = [
        ("peer_in", &peer_in),
        ("peer_out", &peer_out),
        ("segment_in", &segment_in),
        ("segment_out", &segment_out),
    ];
    add(&stack, "recorded", &peer, &given);
    let mut ends = Ends::new(&stack, Family::V4, &terminal, &peer);
    let mut random = SeededRng::new(0x006e_6f6e_6365);
    for life in 0..LIVES {
        let sealed = || stack.nonces().expect("the log is readable").seals;
        let (before, until) = (sealed(), Instant::now() + PATIENCE);
        while sealed() == before {
            assert!(
                Instant::now() < until,
                "life {life}: nothing sealed:\n{}",
                stack.tail("towpath", 20)
            );
            let frames = ends.frames(1 + random.below(u64::from(FLIGHT)) as u32);
            stack.lab.inject(Node::Ta, &frames).expect("tcpreplay runs");
        }
        // Killed with packets on the way, wherever they are.
        let frames = ends.frames(FLIGHT);
        stack.lab.inject(Node::Ta, &frames).expect("tcpreplay runs");
        stack.kill_daemon();
        stack.start_daemon().expect("the daemon starts again");
    }
    let found = stack.nonces().expect("the log is readable");
    stack.stop();
    found
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_daemon_killed_again_and_again_never_seals_two_packets_with_one_nonce() {
    if !nonces::are_recorded() {
        println!("a release build writes no log");
        return;
    }
    let found = after_kills("nonces", "");
    println!("{found:?}");
    assert!(found.seals >= LIVES as usize, "{found:?}");
    assert_eq!(found.reused, 0, "{found:?}");
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn without_the_jump_over_stored_numbers_the_log_shows_nonces_used_twice() {
    if !nonces::are_recorded() {
        println!("a release build writes no log");
        return;
    }
    let found = after_kills("nonces2", "danger_start_over = true\n");
    println!("{found:?}");
    assert!(found.reused > 0, "{found:?}");
}
