//! Snapshots from somebody else's gateway: restored or refused, never believed.
//!
//! Bytes of any kind, and genuine snapshots of connections in the middle of things with some bytes changed.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use towpath_base::Instant;
use towpath_fuzz::tcp::Pair;
use towpath_tcp::Endpoint;

#[derive(Debug, Arbitrary)]
struct Input {
    /// None: `bytes` are the snapshot.
    genuine: Option<Genuine>,
    bytes: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
struct Genuine {
    /// Rounds of a transfer before the snapshot; bits of `lost` say which segments got lost.
    rounds: u8,
    lost: u64,
    closing: bool,
    /// Where and what to change.
    patches: Vec<(u16, u8)>,
}

fn snapshot(genuine: &Genuine, now: Instant) -> Vec<u8> {
    let mut pair = Pair::new(now);
    for round in 0..genuine.rounds % 16 {
        pair.client.write(&[round; 4000]);
        pair.exchange(now, genuine.lost.rotate_right(u32::from(round) * 4));
    }
    if genuine.closing {
        pair.client.close(now);
        pair.exchange(now, genuine.lost);
    }
    let mut bytes = pair.client.snapshot(now);
    assert!(
        Endpoint::restore(now, &bytes).is_ok(),
        "a genuine snapshot is taken back"
    );
    for (at, value) in &genuine.patches {
        if let Some(byte) = bytes.get_mut(usize::from(*at)) {
            *byte ^= value;
        }
    }
    bytes
}

fuzz_target!(|input: Input| {
    let mut now = Instant::from_secs(100);
    let bytes = match &input.genuine {
        Some(genuine) => snapshot(genuine, now),
        None => input.bytes,
    };
    let Ok(mut endpoint) = Endpoint::restore(now, &bytes) else {
        return;
    };
    let mut out = [0; 70_000];
    for _ in 0..8 {
        for _ in 0..256 {
            if endpoint.poll_transmit(now, &mut out).is_none() {
                break;
            }
        }
        while endpoint.poll_command().is_some() {}
        endpoint.consume(now, endpoint.readable_len());
        now += Duration::from_secs(1);
        endpoint.handle_timeout(now);
    }
    let again = endpoint.snapshot(now);
    assert!(Endpoint::restore(now, &again).is_ok());
});
