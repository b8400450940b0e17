//! The engine over in-memory rings: every frame is accounted for, whatever happens to it.

use std::collections::VecDeque;

use proptest::prelude::*;
use towpath_afxdp::{Config, Engine, Frame, MemoryPort, PortId, PortQueue, Sockets};
use towpath_common::abi::{ABI_VERSION, DivertMeta};

const PORTS: [PortQueue; 2] = [
    PortQueue { ifindex: 3, queue: 0 },
    PortQueue { ifindex: 4, queue: 0 },
];
const A: PortId = PortId(0);
const B: PortId = PortId(1);

fn small() -> Config {
    Config {
        frame_size: 2048,
        frames_per_port: 48,
        receive_ring: 16,
        fill_ring: 32,
        transmit_ring: 16,
        completion_ring: 32,
        ..Config::default()
    }
}

fn engine(config: &Config) -> (Engine, MemoryPort, MemoryPort) {
    let (sockets, mut ends) = Sockets::in_memory(config, &PORTS).unwrap();
    let b = ends.pop().unwrap();
    let a = ends.pop().unwrap();
    (sockets.start(), a, b)
}

fn meta(handle: u64) -> DivertMeta {
    DivertMeta {
        handle: handle.into(),
        abi: (ABI_VERSION as u16).into(),
        ..DivertMeta::default()
    }
}

fn assert_complete(engine: &Engine) {
    let account = engine.account();
    let sum = account.free + account.held + account.receiving + account.transmitting;
    assert_eq!(sum, account.total, "{account:?}");
}

#[test]
fn a_packet_arrives_with_its_metadata_and_room_on_both_sides() {
    let (mut engine, mut a, mut b) = engine(&small());
    assert!(a.inject(&meta(7), b"packet"));
    let mut batch = Vec::with_capacity(4);
    assert_eq!(engine.receive(A, &mut batch), 1);
    let mut frame = batch.pop().unwrap();
    assert_eq!(frame.bytes(), b"packet");
    assert_eq!(frame.meta(), Some(meta(7)));
    assert_eq!((frame.headroom(), frame.tailroom()), (256, 2048 - 256 - 6));
    frame.edit(|packet| {
        packet.grow_front(4).unwrap().copy_from_slice(b"head");
        packet.grow_back(4).unwrap().copy_from_slice(b"tail");
    });
    engine.transmit(B, frame).unwrap();
    assert_eq!(b.take(), None, "nothing leaves before the flush");
    engine.flush();
    assert_eq!(b.take().unwrap(), b"headpackettail");
    assert_complete(&engine);
}

#[test]
fn bounds_of_a_frame_hold() {
    let (mut engine, ..) = engine(&small());
    let mut frame = engine.allocate().unwrap();
    assert!(frame.is_empty() && frame.meta().is_none());
    assert!(!frame.set_range(2040, 9) && !frame.set_range(usize::MAX, 2));
    assert!(!frame.copy_from(&[0; 2048]));
    assert!(frame.copy_from(&[1; 2048 - 256]));
    assert_eq!((frame.len(), frame.tailroom()), (2048 - 256, 0));
}

#[test]
fn a_full_ring_gives_the_frame_back() {
    let (mut engine, _a, mut b) = engine(&small());
    for _ in 0..16 {
        let frame = engine.allocate().unwrap();
        engine.transmit(B, frame).unwrap();
    }
    let frame = engine.allocate().unwrap();
    let frame = engine.transmit(B, frame).unwrap_err();
    assert_eq!(engine.statistics(B).transmit_full, 1);
    engine.flush();
    assert!(b.take().is_some());
    engine.transmit(B, frame).unwrap();
    let frame = engine.allocate().unwrap();
    assert!(engine.transmit(PortId(9), frame).is_err());
    assert_complete(&engine);
}

#[test]
fn a_frame_of_another_engine_is_refused() {
    let (mut one, ..) = engine(&small());
    let (mut other, ..) = engine(&small());
    let frame = one.allocate().unwrap();
    assert!(other.transmit(A, frame).is_err());
    assert_complete(&one);
}

#[test]
fn two_million_packets_pass_and_no_frame_is_lost() {
    let (mut engine, mut a, mut b) = engine(&small());
    let mut batch: Vec<Frame> = Vec::with_capacity(16);
    let mut out = Vec::with_capacity(64);
    let (mut injected, mut arrived) = (0u64, 0u64);
    while arrived < 2_000_000 {
        while injected < 2_000_000 && a.inject(&meta(injected), &injected.to_be_bytes()) {
            injected += 1;
        }
        engine.receive(A, &mut batch);
        // Takes completions of B.
        engine.receive(B, &mut Vec::new());
        for frame in batch.drain(..) {
            engine.transmit(B, frame).unwrap();
        }
        engine.flush();
        while b.take_into(&mut out) {
            assert_eq!(out, arrived.to_be_bytes());
            arrived += 1;
        }
    }
    engine.receive(A, &mut batch);
    engine.receive(B, &mut batch);
    assert_complete(&engine);
    let account = engine.account();
    assert_eq!((account.held, account.transmitting), (0, 0));
    assert_eq!(engine.statistics(A).received, 2_000_000);
}

#[derive(Debug, Clone)]
enum Step {
    Inject(u8),
    Receive,
    Allocate,
    Transmit(bool),
    Drop,
    Flush,
    Complete(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..40u8).prop_map(Step::Inject),
        Just(Step::Receive),
        Just(Step::Allocate),
        any::<bool>().prop_map(Step::Transmit),
        Just(Step::Drop),
        Just(Step::Flush),
        (1..40u8).prop_map(Step::Complete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is done in whatever order, the account balances and no packet changes on its way.
    #[test]
    fn the_account_always_balances(steps in prop::collection::vec(step(), 1..200)) {
        let (mut engine, mut a, mut b) = engine(&small());
        let mut held = VecDeque::new();
        let mut number = 0u32;
        for step in steps {
            match step {
                Step::Inject(count) => for _ in 0..count {
                    number += 1;
                    a.inject(&meta(u64::from(number)), &number.to_be_bytes());
                },
                Step::Receive => {
                    let mut batch = Vec::with_capacity(8);
                    engine.receive(A, &mut batch);
                    for frame in &batch {
                        let handle = frame.meta().unwrap().handle.get();
                        prop_assert_eq!(frame.bytes(), &(handle as u32).to_be_bytes()[..]);
                    }
                    held.extend(batch);
                }
                Step::Allocate => held.extend(engine.allocate()),
                Step::Transmit(first) => {
                    let port = if first { A } else { B };
                    let refused = held.pop_front().and_then(|frame| engine.transmit(port, frame).err());
                    refused.into_iter().for_each(|frame| held.push_front(frame));
                }
                Step::Drop => drop(held.pop_back()),
                Step::Flush => engine.flush(),
                Step::Complete(count) => for _ in 0..count {
                    a.take();
                    b.take();
                },
            }
            assert_complete(&engine);
            prop_assert_eq!(engine.account().held as usize, held.len());
        }
    }
}
