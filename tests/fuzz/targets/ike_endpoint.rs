//! An IKE endpoint, its exchange just begun or established: datagrams of strangers, and messages of a peer that has the
//! keys and builds payload chains of its own (grammar-aware: exchange, number, types and lengths mostly right, and
//! payloads that make sense beside those that do not), as initiator and as responder.
#![no_main]

use std::net::IpAddr;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use towpath_base::crypto::{KeyGenerator, SkKeys, SkParts};
use towpath_base::selector::TrafficSelector;
use towpath_base::{Instant, Spi};
use towpath_crypto::IkeCrypto;
use towpath_fuzz::ike::{A, B, Pair, Start};
use towpath_ike::wire::{
    Delete, Notify, NotifyType, Payload as Wire, Proposal, Protocol, Transform, TransformType,
    encode_payloads,
};

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
    /// Added to the number that is awaited.
    off: i8,
    payloads: Vec<Payload>,
    /// Sealed as a fragment: number and total (RFC 7383).
    fragment: Option<(u8, u8)>,
}

#[derive(Debug, Arbitrary)]
enum Payload {
    /// One that a peer could send here.
    Fit { what: u8, seed: u8 },
    /// Such a one with a byte changed.
    Bent { what: u8, at: u16, to: u8 },
    Any {
        kind: u8,
        critical: bool,
        body: Vec<u8>,
        /// Added to the true length.
        lie: i8,
    },
}

/// A transform without attributes, and AES-GCM-16 with 256 bits.
fn transforms(ids: &[(u8, u16)]) -> Vec<Transform> {
    let mut all = vec![Transform {
        key_bits: Some(256),
        ..Transform::new(TransformType::ENCR, 20)
    }];
    all.extend(
        ids.iter()
            .map(|(kind, id)| Transform::new(TransformType(*kind), *id)),
    );
    all
}

fn proposal(protocol: Protocol, spi: Vec<u8>, ids: &[(u8, u16)]) -> Wire<'static> {
    Wire::Sa(vec![Proposal {
        number: 1,
        protocol,
        spi,
        transforms: transforms(ids),
    }])
}

/// What the sender knows.
struct Sender {
    child: Option<Spi>,
    /// What the last ADDITIONAL_KEY_EXCHANGE of the other end said.
    link: Vec<u8>,
    ends: [IpAddr; 2],
}

impl Sender {
    fn payload(&self, what: u8, seed: u8) -> Wire<'static> {
        let fill = |len: usize| vec![seed | 1; len];
        let ke = |group: u16, len: usize| Wire::Ke {
            group,
            data: fill(len).into(),
        };
        let spi = self
            .child
            .map_or(vec![seed; 4], |spi| spi.0.to_be_bytes().to_vec());
        let about = |kind| {
            let mut notify = Notify::new(kind, &[][..]);
            notify.protocol = Protocol::ESP.0;
            notify.spi = spi.clone().into();
            Wire::Notify(notify)
        };
        let new_spi = vec![1, 2, 3, seed];
        let host = |end: usize| vec![TrafficSelector::host(self.ends[end])];
        match what % 20 {
            0 => proposal(Protocol::ESP, new_spi, &[(5, 1)]),
            1 => proposal(Protocol::ESP, new_spi, &[(4, 31), (5, 1)]),
            2 => proposal(Protocol::ESP, new_spi, &[(4, 31), (5, 1), (6, 36)]),
            3 => proposal(Protocol::IKE, vec![seed | 1; 8], &[(2, 5), (4, 31)]),
            4 => proposal(Protocol::IKE, vec![seed | 1; 8], &[(2, 5), (4, 31), (6, 36)]),
            5 => Wire::Nonce(fill(32).into()),
            6 => ke(31, 32),
            7 => ke(36, 1088),
            // A coefficient of an encapsulation key is less than 3329: small bytes make one.
            8 => Wire::Ke {
                group: 36,
                data: vec![seed % 13; 1184].into(),
            },
            9 => Wire::TsI(host(usize::from(seed % 2))),
            10 => Wire::TsR(host(usize::from(seed % 2))),
            11 => about(NotifyType::REKEY_SA),
            12 => Wire::notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, self.link.clone()),
            13 => Wire::Delete(Delete {
                protocol: Protocol::ESP,
                spis: self.child.iter().map(|spi| spi.0).collect(),
            }),
            14 => Wire::Delete(Delete {
                protocol: Protocol::IKE,
                spis: Vec::new(),
            }),
            15 => Wire::notify(NotifyType::USE_TRANSPORT_MODE, &[][..]),
            16 => Wire::notify(NotifyType::UPDATE_SA_ADDRESSES, &[][..]),
            17 => Wire::notify(NotifyType::COOKIE2, fill(16)),
            18 => about(NotifyType::CHILD_SA_NOT_FOUND),
            _ => Wire::notify(NotifyType(u16::from(seed)), &[][..]),
        }
    }
}

const KINDS: [u8; 16] = [33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48];

/// IKE_SA_INIT to INFORMATIONAL, and what comes after (RFC 9242, RFC 9370).
fn exchange(number: u8) -> u8 {
    [34, 35, 36, 37, 43, 44][usize::from(number) % 6]
}

fn chain(payloads: &[Payload], sender: &Sender) -> (u8, Vec<u8>) {
    // Type, critical bit, body, and what is added to its length.
    type Part = (u8, bool, Vec<u8>, i8);
    let part = |payload: &Payload| -> Part {
        let fit = |what: u8, seed: u8| {
            let wire = sender.payload(what, seed);
            let mut bytes = Vec::new();
            encode_payloads(std::slice::from_ref(&wire), &mut bytes);
            (wire.kind().0, bytes.split_off(4))
        };
        match payload {
            Payload::Fit { what, seed } => {
                let (kind, body) = fit(*what, *seed);
                (kind, false, body, 0)
            }
            Payload::Bent { what, at, to } => {
                let (kind, mut body) = fit(*what, *to);
                if !body.is_empty() {
                    let at = usize::from(*at) % body.len();
                    body[at] = *to;
                }
                (kind, false, body, 0)
            }
            Payload::Any {
                kind,
                critical,
                body,
                lie,
            } => {
                let kind = KINDS[usize::from(*kind) % KINDS.len()];
                (kind, *critical, body.clone(), *lie)
            }
        }
    };
    let parts: Vec<Part> = payloads.iter().map(part).collect();
    let mut bytes = Vec::new();
    for (index, (_, critical, body, lie)) in parts.iter().enumerate() {
        bytes.push(parts.get(index + 1).map_or(0, |next| next.0));
        bytes.push(if *critical { 0x80 } else { 0 });
        let len = (body.len() as i64 + 4 + i64::from(lie / 32)) as u16;
        bytes.extend(len.to_be_bytes());
        bytes.extend(body);
    }
    (parts.first().map_or(0, |first| first.0), bytes)
}

fn seal(
    keys: &SkKeys,
    spis: [u64; 2],
    from_initiator: bool,
    message: &Message,
    (first, mut text): (u8, Vec<u8>),
    (id, iv): (u32, u64),
) -> Vec<u8> {
    text.push(0);
    let mut bytes = Vec::new();
    bytes.extend(spis[0].to_be_bytes());
    bytes.extend(spis[1].to_be_bytes());
    let flags = if from_initiator { 0x08 } else { 0 } | if message.response { 0x20 } else { 0 };
    let kind = if message.fragment.is_some() { 53 } else { 46 };
    bytes.extend([kind, 0x20, exchange(message.exchange), flags]);
    bytes.extend(id.to_be_bytes());
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
    let Ok(start) = u8::arbitrary(&mut input) else {
        return;
    };
    let mut pair = Pair::new(Start {
        hybrid: start & 1 != 0,
        rounds: if start & 2 != 0 { 4 } else { (start >> 2) % 4 },
    });
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
                let awaited = pair.awaited(&keys, from_initiator, message.response);
                let id = awaited.wrapping_add_signed(i32::from(message.off / 32));
                let sender = Sender {
                    child: pair.child_of_sender(to_a),
                    link: pair.link(to_a),
                    ends: if to_a { [B, A] } else { [A, B] },
                };
                let text = chain(&message.payloads, &sender);
                let datagram = seal(
                    side,
                    spis,
                    from_initiator,
                    &message,
                    text,
                    (id, (1 << 60) + round),
                );
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
