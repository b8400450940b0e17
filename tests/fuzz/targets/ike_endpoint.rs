//! An IKE endpoint with live SAs: datagrams of strangers, and messages of a peer that has the keys and builds
//! payload chains of its own (grammar-aware: types and lengths mostly right, contents of any kind).
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, SkKeys, SkParts};
use towpath_crypto::IkeCrypto;
use towpath_fuzz::ike::{A, B, Pair};

#[derive(Debug, Arbitrary)]
enum Act {
    /// A datagram as it is, from the other address.
    Raw { to_a: bool, bytes: Vec<u8> },
    /// A genuine message: sealed under the keys of the newest IKE SA.
    Sealed { to_a: bool, message: Message },
    /// The last genuine datagrams, delivered now, perhaps twice.
    Exchange { copies: bool },
    /// One side begins something.
    Begin { at_a: bool, what: u8 },
    /// Time passes, in milliseconds.
    Wait(u16),
}

#[derive(Debug, Arbitrary)]
struct Message {
    exchange: u8,
    response: bool,
    message_id: u8,
    payloads: Vec<Payload>,
    /// Sealed as a fragment: number and total (RFC 7383).
    fragment: Option<(u8, u8)>,
}

#[derive(Debug, Arbitrary)]
struct Payload {
    kind: u8,
    critical: bool,
    body: Vec<u8>,
    /// Added to the true length.
    lie: i8,
}

const KINDS: [u8; 16] = [33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48];

/// IKE_SA_INIT to INFORMATIONAL, and what comes after (RFC 9242, RFC 9370).
fn exchange(number: u8) -> u8 {
    [34, 35, 36, 37, 43, 44][usize::from(number) % 6]
}

fn chain(payloads: &[Payload]) -> (u8, Vec<u8>) {
    let kind = |payload: &Payload| KINDS[usize::from(payload.kind) % KINDS.len()];
    let mut bytes = Vec::new();
    for (index, payload) in payloads.iter().enumerate() {
        bytes.push(payloads.get(index + 1).map_or(0, kind));
        bytes.push(if payload.critical { 0x80 } else { 0 });
        let len = (payload.body.len() as i64 + 4 + i64::from(payload.lie / 32)) as u16;
        bytes.extend(len.to_be_bytes());
        bytes.extend(&payload.body);
    }
    (payloads.first().map_or(0, kind), bytes)
}

fn seal(keys: &SkKeys, spis: [u64; 2], from_initiator: bool, message: &Message, iv: u64) -> Vec<u8> {
    let (first, mut text) = chain(&message.payloads);
    text.push(0);
    let mut bytes = Vec::new();
    bytes.extend(spis[0].to_be_bytes());
    bytes.extend(spis[1].to_be_bytes());
    let flags = if from_initiator { 0x08 } else { 0 } | if message.response { 0x20 } else { 0 };
    let kind = if message.fragment.is_some() { 53 } else { 46 };
    bytes.extend([kind, 0x20, exchange(message.exchange), flags]);
    bytes.extend(u32::from(message.message_id).to_be_bytes());
    let place: Vec<u8> = message
        .fragment
        .map(|(number, total)| [0, number, 0, total].to_vec())
        .unwrap_or_default();
    let len = 28 + 4 + place.len() + 8 + text.len() + 16;
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([first, 0]);
    bytes.extend(((len - 28) as u16).to_be_bytes());
    bytes.extend(&place);
    let (iv, mut icv) = (iv.to_be_bytes(), [0; 16]);
    let parts = SkParts {
        header: &bytes,
        iv: &iv,
        text: &mut text,
        icv: &mut icv,
    };
    IkeCrypto.seal(keys, parts).unwrap();
    bytes.extend(iv);
    bytes.extend(text);
    bytes.extend(icv);
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let mut pair = Pair::established();
    let mut now = Instant::from_secs(10);
    for round in 0..48u64 {
        let Ok(act) = Act::arbitrary(&mut input) else {
            break;
        };
        match act {
            Act::Raw { to_a, bytes } => pair.deliver(now, to_a, &bytes),
            Act::Sealed { to_a, message } => {
                let Some((keys, from_initiator)) = pair.keys_towards(now, to_a) else {
                    continue;
                };
                let side = if from_initiator {
                    &keys.initiator
                } else {
                    &keys.responder
                };
                let spis = [keys.spi_i.0, keys.spi_r.0];
                let datagram = seal(side, spis, from_initiator, &message, (1 << 60) + round);
                pair.deliver(now, to_a, &datagram);
            }
            Act::Exchange { copies } => pair.exchange(now, copies),
            Act::Begin { at_a, what } => pair.begin(now, at_a, what),
            Act::Wait(milliseconds) => {
                now += core::time::Duration::from_millis(u64::from(milliseconds) * 16);
                pair.wait(now);
            }
        }
        pair.check(now);
    }
    assert_ne!(A, B);
});
