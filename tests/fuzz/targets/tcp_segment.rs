//! A TCP endpoint and a stranger who sees everything: segments of any kind, in any state.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use towpath_base::Instant;
use towpath_tcp::packet::TcpPacket;
use towpath_tcp::{Config, Ecn, Endpoint, Segment, SeqNum};

#[derive(Debug, Arbitrary)]
enum Act<'a> {
    /// A TCP segment, header first.
    Segment(&'a [u8]),
    /// A segment whose numbers are close to what the endpoint expects.
    Near {
        flags: u8,
        seq: i8,
        ack: i8,
        window: u16,
        payload: &'a [u8],
    },
    Write(&'a [u8]),
    Consume(u16),
    Close,
    Abort,
    Wait(u16),
}

const INITIAL: u32 = 1000;

fuzz_target!(|bytes: &[u8]| {
    let _ = TcpPacket::parse(bytes);
    let mut input = Unstructured::new(bytes);
    let mut now = Instant::from_secs(1);
    let mut endpoint = if input.arbitrary().unwrap_or(false) {
        Endpoint::connect(now, Config::default(), SeqNum(INITIAL))
    } else {
        Endpoint::listen(now, Config::default(), SeqNum(INITIAL))
    };
    let (mut sent, mut heard) = (INITIAL, 0u32);
    let mut out = [0; 2048];
    for _ in 0..64 {
        let Ok(act) = Act::arbitrary(&mut input) else {
            break;
        };
        match act {
            Act::Segment(bytes) => {
                if let Ok(segment) = Segment::parse(bytes) {
                    heard = segment.header.seq.0;
                    let _ = endpoint.handle_input(now, &segment, Ecn::NotEct);
                }
            }
            Act::Near {
                flags,
                seq,
                ack,
                window,
                payload,
            } => {
                let seq = heard.wrapping_add_signed(i32::from(seq) * 100);
                let ack = sent.wrapping_add_signed(i32::from(ack) * 100);
                let mut bytes = vec![0x1f, 0x90, 0x04, 0xd2];
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                bytes.extend([0x50, flags]);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(payload);
                if let Ok(segment) = Segment::parse(&bytes) {
                    let _ = endpoint.handle_input(now, &segment, Ecn::Ce);
                    heard = seq.wrapping_add(payload.len() as u32);
                }
            }
            Act::Write(bytes) => {
                assert!(endpoint.write(bytes) <= bytes.len());
            }
            Act::Consume(count) => endpoint.consume(now, usize::from(count).min(endpoint.readable_len())),
            Act::Close => endpoint.close(now),
            Act::Abort => endpoint.abort(),
            Act::Wait(milliseconds) => {
                now += Duration::from_millis(u64::from(milliseconds));
                endpoint.handle_timeout(now);
            }
        }
        for _ in 0..256 {
            let Some(outgoing) = endpoint.poll_transmit(now, &mut out) else {
                break;
            };
            let len = towpath_fuzz::tcp::segment_len(&outgoing);
            let segment = Segment::parse(&out[..len]).expect("what we send is a segment");
            sent = segment.header.seq.0;
        }
        while endpoint.poll_command().is_some() {}
        assert!(endpoint.readable_len() <= 64 << 20);
    }
    let snapshot = endpoint.snapshot(now);
    assert!(
        Endpoint::restore(now, &snapshot).is_ok(),
        "a snapshot of any state is taken back"
    );
});
