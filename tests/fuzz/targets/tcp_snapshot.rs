//! Snapshots from somebody else's gateway: restored or refused, never believed.
//!
//! Bytes of any kind, and genuine snapshots of connections in the middle of things, of endpoints and of Snoop, with
//! some bytes changed.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use towpath_base::Instant;
use towpath_fuzz::tcp::{self, Pair};
use towpath_tcp::Endpoint;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::snoop::{Original, ReplayPosition, SnoopConfig, SnoopRelay};

#[derive(Debug, Arbitrary)]
struct Input {
    /// None: `bytes` are the snapshot.
    genuine: Option<Genuine>,
    bytes: Vec<u8>,
    /// Instead: what Snoop knows of a connection.
    snooped: Option<Snooped>,
}

/// Segments towards the terminal, then acknowledgments, then a snapshot with some bytes changed.
#[derive(Debug, Arbitrary)]
struct Snooped {
    /// Tens of bytes from the last one's beginning, bytes of data.
    segments: Vec<(i8, u8)>,
    /// Tens of bytes, and a SACK block behind them.
    acknowledgments: Vec<(u8, Option<(u8, u8)>)>,
    sealed: bool,
    patches: Vec<(u16, u8)>,
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
    patch(&mut bytes, &genuine.patches);
    bytes
}

fn patch(bytes: &mut [u8], patches: &[(u16, u8)]) {
    for (at, value) in patches {
        if let Some(byte) = bytes.get_mut(usize::from(*at)) {
            *byte ^= value;
        }
    }
}

fn snoop(relay: &mut SnoopRelay, now: Instant, from: Side, packet: &[u8], sequence: Option<u64>) {
    let replay = sequence.map(|sequence| ReplayPosition {
        sa: 1,
        sequence,
        window: 64,
    });
    let original = Original {
        bytes: packet,
        replay,
    };
    relay.handle_input(now, from, packet, original);
}

fn of_snoop(input: &Snooped, mut now: Instant) {
    let mut relay = SnoopRelay::new(SnoopConfig::default());
    let mut seq = 1000_u32;
    for (number, (step, len)) in (1..).zip(input.segments.iter().take(64)) {
        seq = seq.wrapping_add_signed(i32::from(*step) * 10);
        let packet = tcp::data(seq, usize::from(*len));
        snoop(
            &mut relay,
            now,
            Side::Network,
            &packet,
            input.sealed.then_some(number),
        );
        now += Duration::from_millis(1);
    }
    let acknowledge = |relay: &mut SnoopRelay, now: &mut Instant| {
        for (ack, sack) in input.acknowledgments.iter().take(64) {
            let ack = 1000 + u32::from(*ack) * 10;
            let sack = sack.map(|(left, len)| (ack + u32::from(left) * 10, u32::from(len)));
            let packet = tcp::acknowledgment(ack, sack);
            snoop(relay, *now, Side::Terminal, &packet, None);
            while relay.poll_transmit(*now).is_some() {}
            *now += Duration::from_millis(3);
        }
    };
    acknowledge(&mut relay, &mut now);
    let Some(key) = relay.flows().next().copied() else {
        return;
    };
    let mut bytes = relay.snapshot(now, &key).expect("a connection that is listed");
    let restore = |bytes: &[u8]| {
        let mut other = SnoopRelay::new(SnoopConfig::default());
        let key = other.restore(now, bytes, Some)?;
        Ok::<_, towpath_tcp::RestoreError>((other, key))
    };
    let (whole, _) = restore(&bytes).expect("a genuine snapshot is taken back");
    assert_eq!(whole.snapshot(now, &key).as_ref(), Some(&bytes));
    assert_eq!(whole.view(&key), relay.view(&key));
    patch(&mut bytes, &input.patches);
    let Ok((mut other, key)) = restore(&bytes) else {
        return;
    };
    acknowledge(&mut other, &mut now);
    for _ in 0..32 {
        while other.poll_transmit(now).is_some() {}
        let Some((at, _)) = other.poll_timeout() else {
            break;
        };
        now = now.max(at);
        other.handle_timeout(now);
    }
    assert!(other.snapshot(now, &key).is_none_or(|again| {
        SnoopRelay::new(SnoopConfig::default())
            .restore(now, &again, Some)
            .is_ok()
    }));
}

fuzz_target!(|input: Input| {
    let mut now = Instant::from_secs(100);
    if let Some(snooped) = &input.snooped {
        return of_snoop(snooped, now);
    }
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
    assert_eq!(Endpoint::restore(now, &again).err(), None);
});
