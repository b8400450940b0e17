//! Foreign encapsulation through XDP and the gateway (T14).
//!
//! ```text
//!   ta: sealed by the test, inside a packet ──► gw: off, open, seal, on ──► peer: opened by the test
//!       ta ─► peer outside, as from agent to agent
//! ```

use std::net::IpAddr;

use towpath_common::wire::checksum;
use xtask::lab::{Family, Node, PeerKind};
use xtask::proof::stack_for_test_with;

use crate::manual::{Ends, segments};

/// The frame with an outer packet of `outer`'s family around its own: IP-in-IP, or GRE with checksum and key.
fn enclose(frame: &[u8], outer: Family, gre: bool) -> Vec<u8> {
    let (ethernet, inner) = frame.split_at(14);
    let v4 = inner[0] >> 4 == 4;
    let (protocol, mut body) = match (gre, v4) {
        (false, true) => (4, Vec::new()),
        (false, false) => (41, Vec::new()),
        (true, true) => (47, vec![0xa0, 0, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0, 42]),
        (true, false) => (47, vec![0xa0, 0, 0x86, 0xdd, 0, 0, 0, 0, 0, 0, 0, 42]),
    };
    body.extend_from_slice(inner);
    if gre {
        let sum = checksum(&body).to_be_bytes();
        body[4..6].copy_from_slice(&sum);
    }
    let mut out = ethernet[..12].to_vec();
    match (Node::Ta.addr(outer), Node::Peer.addr(outer)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let len = (body.len() as u16 + 20).to_be_bytes();
            let mut ip = vec![0x45, 0, len[0], len[1], 0, 9, 0, 0, 64, protocol, 0, 0];
            ip.extend(source.octets());
            ip.extend(destination.octets());
            let sum = checksum(&ip).to_be_bytes();
            ip[10..12].copy_from_slice(&sum);
            out.extend([0x08, 0x00]);
            out.extend(ip);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let len = (body.len() as u16).to_be_bytes();
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], protocol, 64]);
            out.extend(source.octets());
            out.extend(destination.octets());
        }
        _ => unreachable!("one family"),
    }
    out.extend(body);
    out
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn packets_inside_others_are_opened_and_sealed_inside_them() {
    let stack = stack_for_test_with("wrapped", PeerKind::Libipsec, "").expect("lab and towpath");
    let mut all = [
        segments(&stack, Family::V4, 0xa000_0030, 0x10),
        segments(&stack, Family::V6, 0xa000_0040, 0x60),
    ];
    for ends in &mut all {
        for outer in Family::ALL {
            for gre in [false, true] {
                let around = |frame: &[u8]| enclose(frame, outer, gre);
                let opened = Ends::send_inside(ends, &stack, 10, Some(&around));
                assert_eq!(
                    opened,
                    10,
                    "around: {outer}, GRE: {gre}\n{}",
                    stack.tail("towpath", 20)
                );
            }
        }
        ends.distinct();
    }
    stack.stop();
}
