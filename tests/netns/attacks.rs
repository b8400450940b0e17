//! Frames sent again, altered or cut short on the access link: refused, counted, and without effect.

use std::time::{Duration, Instant};

use xtask::lab::{Family, Frame, Node, PeerKind, What};
use xtask::proof::judge::RESERVED_SPI;
use xtask::proof::stack::Stack;
use xtask::proof::stack_for_test;

use crate::ping;

/// Where the sealed datagram starts: Ethernet, IPv4 without options, UDP, IKE header.
const SEALED_AT: usize = 14 + 20 + 8 + 28;

/// Terminal A's messages to the network, from a capture of one whole exchange.
fn captured(stack: &Stack) -> Vec<Frame> {
    let capture = stack.lab.capture(Node::Ta, "eth0").expect("tcpdump starts");
    assert!(ping(
        &stack.lab,
        Node::Ta,
        &Node::Peer.addr(Family::V4).to_string(),
        2
    ));
    let frames = capture.stop().expect("the capture is readable");
    let from_terminal = |frame: &Frame| {
        frame.seen().is_some_and(|seen| {
            let to_network = What::Ike {
                spi_i: RESERVED_SPI,
                spi_r: RESERVED_SPI,
            };
            seen.src == Node::Ta.addr(Family::V4) && seen.what == to_network
        })
    };
    let messages: Vec<Frame> = frames.into_iter().filter(from_terminal).collect();
    assert!(!messages.is_empty(), "a request at least");
    messages
}

/// What refusals are counted as.
const REFUSALS: [&str; 6] = [
    "keyx_malformed",
    "keyx_unknown_subscriber",
    "keyx_unknown_session",
    "keyx_forged",
    "keyx_replayed",
    "keyx_rate_limited",
];

fn refused(stack: &Stack) -> u64 {
    REFUSALS
        .iter()
        .map(|name| stack.counter(name).expect("the daemon counts"))
        .sum()
}

/// The UDP checksum is optional over IPv4: 0 says there is none.
fn without_checksum(frame: &mut Frame) {
    frame.bytes[40] = 0;
    frame.bytes[41] = 0;
}

/// Cuts the UDP payload after `len` bytes, with lengths and the IP checksum to match.
fn cut(frame: &Frame, len: usize) -> Frame {
    let mut frame = frame.clone();
    frame.bytes.truncate(14 + 20 + 8 + len);
    let put = |bytes: &mut [u8], at: usize, value: usize| {
        bytes[at..at + 2].copy_from_slice(&u16::try_from(value).expect("a short packet").to_be_bytes());
    };
    put(&mut frame.bytes, 16, 20 + 8 + len);
    put(&mut frame.bytes, 38, 8 + len);
    put(&mut frame.bytes, 24, 0);
    let sum = frame.bytes[14..34]
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    put(
        &mut frame.bytes,
        24,
        usize::from(!u16::try_from((folded & 0xffff) + (folded >> 16)).expect("16 bits")),
    );
    without_checksum(&mut frame);
    frame
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn replayed_forged_and_truncated_messages_are_refused_and_counted() {
    let stack = stack_for_test("attacks", PeerKind::Libipsec).expect("lab and towpath come up");
    let messages = captured(&stack);
    let before = refused(&stack);
    let sas = stack.sas().expect("the daemon lists SAs").len();
    let established = stack.lab.peer().list_sas().expect("the peer reports").len();

    let mut attack = messages.clone();
    for message in &messages {
        for at in [SEALED_AT, SEALED_AT + 4, SEALED_AT + 20, message.bytes.len() - 1] {
            let mut forged = message.clone();
            forged.bytes[at] ^= 0x41;
            without_checksum(&mut forged);
            attack.push(forged);
        }
        let payload = message.bytes.len() - 42;
        attack.extend((28..payload).step_by(5).map(|len| cut(message, len)));
    }
    stack.lab.inject(Node::Ta, &attack).expect("tcpreplay runs");
    std::thread::sleep(Duration::from_millis(500));

    let counted = refused(&stack) - before;
    assert!(counted > 0, "nothing was counted");
    assert_eq!(
        stack.sas().expect("the daemon lists SAs").len(),
        sas,
        "no SA more or less"
    );
    assert_eq!(
        stack.lab.peer().list_sas().expect("the peer reports").len(),
        established
    );
    assert!(stack.dead().is_none(), "everything still runs");
    assert!(
        ping(&stack.lab, Node::Ta, &Node::Peer.addr(Family::V4).to_string(), 2),
        "the SA still works"
    );
    println!("{} frames sent, {counted} refusals counted", attack.len());
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_flood_from_one_terminal_does_not_delay_another() {
    let stack = stack_for_test("flood", PeerKind::Libipsec).expect("lab and towpath come up");
    let messages = captured(&stack);
    let flood: Vec<Frame> = messages.iter().cycle().take(6000).cloned().collect();
    let before = refused(&stack);
    let (took, answered) = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| stack.lab.inject(Node::Ta, &flood));
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        let answered = ping(&stack.lab, Node::Tb, &Node::Peer.addr(Family::V4).to_string(), 1);
        let took = began.elapsed();
        flooding
            .join()
            .expect("the flood does not panic")
            .expect("tcpreplay runs");
        (took, answered)
    });
    assert!(
        answered,
        "terminal B got no key while A flooded:\n{}",
        stack.tail("towpath", 20)
    );
    assert!(took < Duration::from_secs(2), "terminal B waited {took:?}");
    assert!(refused(&stack) > before, "the flood was counted");
    println!("terminal B: first packet to answer {took:?} under the flood");
    stack.stop();
}
