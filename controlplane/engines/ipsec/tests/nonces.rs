//! The nonce recorder: every (key, nonce, packet) any sender ever seals is written down, and a nonce that comes
//! with a second packet is a find.
//!
//! ```text
//!   terminal ──► gateway ──► peer       the gateway is killed at random points and starts again
//!        ◄──          ◄──               from what is on its disk, whatever it had sent since
//! ```
#![allow(missing_docs)]

mod common;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use common::*;
use towpath_base::Instant;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, Forged, InvalidKey, Rng};
use towpath_base::sa::{ChildSa, EspKeys, EspSuite, Mode};
use towpath_base::testutil::SeededRng;
use towpath_ipsec::highwater::{BLOCK, Reserved};
use towpath_ipsec::shared::{Passed, SharedBridge, SharedStart, Stage};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{Bridge, InboundSa, OutboundSa};

const NOW: Instant = Instant::from_secs(1);

/// Key and nonce → header, ESN and plaintext: an AEAD's nonce is spent on all of them.
type Book = HashMap<(Vec<u8>, Vec<u8>), Vec<u8>>;

#[derive(Default)]
struct Records {
    book: Book,
    seals: u64,
    reuses: u64,
}

/// Makes transforms that write down what they seal.
#[derive(Clone, Default)]
struct Recorder(Rc<RefCell<Records>>);

struct Recorded {
    inner: SoftTransform,
    key: Vec<u8>,
    records: Rc<RefCell<Records>>,
}

impl EspProvider for Recorder {
    type Transform = Recorded;

    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<Recorded, InvalidKey> {
        Ok(Recorded {
            inner: SoftEsp.transform(suite, keys)?,
            key: keys.cipher.expose().to_vec(),
            records: Rc::clone(&self.0),
        })
    }
}

impl EspTransform for Recorded {
    fn suite(&self) -> EspSuite {
        self.inner.suite()
    }

    fn seal(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        let mut records = self.records.borrow_mut();
        records.seals += 1;
        if self.inner.suite().is_counter_mode() {
            let packet = [
                &parts.header[..],
                &parts.esn_high.unwrap_or(0).to_be_bytes()[..],
                &*parts.payload,
            ]
            .concat();
            let nonce = (self.key.clone(), parts.iv.to_vec());
            let known = records.book.entry(nonce).or_insert_with(|| packet.clone());
            let reused = *known != packet;
            records.reuses += u64::from(reused);
        }
        drop(records);
        self.inner.seal(parts)
    }

    fn open(&mut self, parts: EspParts<'_>) -> Result<(), Forged> {
        self.inner.open(parts)
    }
}

const SUITES: [EspSuite; 5] = [
    EspSuite::Aes128Gcm16,
    EspSuite::Aes256Ccm16,
    EspSuite::ChaCha20Poly1305,
    EspSuite::Aes128CtrSha256,
    EspSuite::Aes256CbcSha256,
];

/// What each sender's disk holds.
#[derive(Default, Clone, Copy)]
struct Disk(SharedStart);

impl Disk {
    /// A start reads the limit, reserves a block above it, and only then sends.
    fn start(&mut self, jump_ahead: bool) -> SharedStart {
        let stored = if jump_ahead { self.0.limit } else { 0 };
        self.0.limit = stored + BLOCK;
        SharedStart { stored, ..self.0 }
    }
}

fn is_new(random: &mut SeededRng, one_in: u64) -> bool {
    random.below(one_in) == 0
}

/// Segment keys from a file, class `full`: the gateway is killed again and again.
fn manual_full(seed: u64, recorder: &Recorder, jump_ahead: bool) -> u64 {
    let mut random = SeededRng::new(seed);
    let suite = SUITES[random.below(5) as usize];
    let peer_sa = child(
        suite,
        Mode::Transport,
        false,
        false,
        false,
        is_new(&mut random, 2),
    );
    let tag = seed as u8;
    let peer_sa = ChildSa {
        keys_in: keys(suite, tag ^ 0x11),
        keys_out: keys(suite, tag ^ 0x22),
        ..peer_sa
    };
    let (segment_in, segment_out) = (keys(suite, tag ^ 0x33), keys(suite, tag ^ 0x44));
    let terminal_sa = ChildSa {
        keys_in: segment_in.clone(),
        keys_out: segment_out.clone(),
        ..peer_sa.clone()
    };
    let mut terminal = OutboundSa::new(recorder, NOW, &terminal_sa).unwrap();
    let mut peer_in: InboundSa<_> = InboundSa::new(recorder, NOW, &peer_sa.mirrored()).unwrap();
    let mut disks = [Disk::default(); 2];
    let mut rng = TestRng(seed);
    let mut delivered = 0;
    for life in 0..4u64 {
        let mut bridge: Bridge<_> = Bridge::new(recorder, NOW, &peer_sa, &segment_in, &segment_out).unwrap();
        let [to_peer, to_terminal] = [0, 1].map(|side| {
            let start = disks[side].start(jump_ahead);
            Reserved::above(start.stored, start.limit)
        });
        bridge.start_reserved(to_peer, to_terminal);
        for n in 0..random.below(60) {
            let body = [life.to_be_bytes(), n.to_be_bytes(), seed.to_be_bytes()].concat();
            let mut packet = Packet::new(&udp(local(false), remote(false), &body));
            packet.with(|p| terminal.seal(NOW, p, &mut rng)).unwrap();
            if packet.with(|p| bridge.to_peer(NOW, p, &mut rng)).is_ok() {
                delivered += u64::from(packet.with(|p| peer_in.open(NOW, p)).is_ok());
            }
            for (side, limit) in bridge.wanted().into_iter().enumerate() {
                if let Some(limit) = limit.filter(|_| is_new(&mut random, 3)) {
                    disks[side].0.limit = limit;
                    if is_new(&mut random, 2) {
                        bridge.reserve(side == 0, limit);
                    }
                }
            }
        }
    }
    delivered
}

/// How an endpoint that is not ours chooses its IVs.
#[derive(Clone, Copy)]
enum Ivs {
    /// Sequence number under a constant mask (RFC 4106 §3.1; Linux `seqiv`, strongSwan).
    Counter(u64),
    /// Drawn anew each time.
    Random,
}

/// An endpoint, built by hand so that its IVs can be.
struct Endpoint<T> {
    transform: T,
    sa: ChildSa,
    sequence: u64,
    ivs: Ivs,
}

impl<T: EspTransform> Endpoint<T> {
    /// An IPv4 transport-mode packet.
    fn send(&mut self, body: &[u8], random: &mut SeededRng) -> Packet {
        self.sequence += 1;
        let suite = self.sa.suite;
        let mut packet = udp(self.sa.local, self.sa.remote, body);
        let mut payload = packet.split_off(20);
        let padding = (payload.len() + 2).next_multiple_of(suite.block_len()) - payload.len() - 2;
        payload.extend((1..=padding).map(|value| value as u8));
        payload.extend([padding as u8, 17]);
        let mut iv = vec![0; suite.iv_len()];
        match self.ivs {
            Ivs::Counter(mask) if suite.is_counter_mode() => {
                iv.copy_from_slice(&(self.sequence ^ mask).to_be_bytes());
            }
            _ => random.fill(&mut iv),
        }
        let mut icv = vec![0; suite.icv_len()];
        let mut header = [0; 8];
        header[..4].copy_from_slice(&self.sa.spi_out.0.to_be_bytes());
        header[4..].copy_from_slice(&(self.sequence as u32).to_be_bytes());
        let parts = EspParts {
            header,
            esn_high: None,
            iv: &iv,
            payload: &mut payload,
            icv: &mut icv,
        };
        self.transform.seal(parts).unwrap();
        packet.extend([&header[..], &iv, &payload, &icv].concat());
        let len = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&len);
        packet[9] = 50;
        packet[10..12].fill(0);
        let sum = towpath_common::wire::checksum(&packet[..20]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        Packet::new(&packet)
    }
}

#[derive(Default, Debug, PartialEq)]
struct Tally {
    resealed: u64,
    resealed_before_change: u64,
    untouched: u64,
    degraded: u64,
    delivered: u64,
}

/// One key per direction at terminal, gateway and peer. The endpoint may change its ways at `change`.
fn shared(seed: u64, recorder: &Recorder, ivs: Ivs, change: Option<Ivs>, suite: EspSuite) -> (Tally, Stage) {
    let mut random = SeededRng::new(seed);
    let tag = seed as u8;
    let sa = ChildSa {
        keys_in: keys(suite, tag ^ 0x55),
        keys_out: keys(suite, tag ^ 0x66),
        ..child(suite, Mode::Transport, false, false, false, false)
    };
    let mut endpoint = Endpoint {
        transform: recorder.transform(suite, &sa.keys_out).unwrap(),
        sa: sa.clone(),
        sequence: random.below(1000),
        ivs,
    };
    let mut receiver: InboundSa<_> = InboundSa::new(recorder, NOW, &sa.mirrored()).unwrap();
    let (mut disk, mut rng, mut tally) = (SharedStart::default(), TestRng(seed), Tally::default());
    let mut stage = Stage::Probation;
    for life in 0..4u64 {
        // A key whose pattern is known gets a block at once, as the control part does it.
        let stored = disk.limit;
        if disk.top.is_some() || !suite.is_counter_mode() {
            disk.limit = stored + BLOCK;
        }
        let start = SharedStart { stored, ..disk };
        let mut bridge: SharedBridge<_> =
            SharedBridge::new(recorder, NOW, &sa, &start, &SharedStart::default()).unwrap();
        if life == 2
            && let Some(change) = change
        {
            endpoint.ivs = change;
            tally.resealed_before_change = tally.resealed;
        }
        for n in 0..10 + random.below(40) {
            let body = [life.to_be_bytes(), n.to_be_bytes(), seed.to_be_bytes()].concat();
            let mut packet = endpoint.send(&body, &mut random);
            let before = packet.bytes().to_vec();
            match packet.with(|p| bridge.to_peer(NOW, p, &mut rng)).unwrap() {
                Passed::Resealed => tally.resealed += 1,
                passed => {
                    assert_eq!(
                        packet.bytes(),
                        before,
                        "what is not intervened in goes on bit for bit"
                    );
                    tally.untouched += 1;
                    if passed == Passed::Degraded {
                        tally.degraded += 1;
                        disk.degraded = true;
                    }
                }
            }
            tally.delivered += u64::from(packet.with(|p| receiver.open(NOW, p)).is_ok());
            if let Some(wanted) = bridge.wanted()[0].filter(|_| is_new(&mut random, 3)) {
                (disk.limit, disk.top) = (wanted.limit, wanted.top);
                // Killed between the disk and the packet path, or not.
                if is_new(&mut random, 8) {
                    break;
                }
                bridge.grant(true, &wanted);
            }
        }
        stage = bridge.stages()[0];
    }
    (tally, stage)
}

#[test]
fn no_nonce_is_used_twice_by_a_gateway_that_is_killed_at_random_points() {
    let recorder = Recorder::default();
    let mut delivered = 0;
    for seed in 0..2000 {
        // Keys repeat after 256 seeds: each world gets a book of its own.
        recorder.0.borrow_mut().book.clear();
        delivered += manual_full(seed, &recorder, true);
    }
    let records = recorder.0.borrow();
    assert_eq!(records.reuses, 0, "of {} packets sealed", records.seals);
    assert!(
        records.seals > 200_000 && delivered > 100_000,
        "{} sealed, {delivered} delivered",
        records.seals
    );
}

#[test]
fn without_the_jump_ahead_the_recorder_finds_reuse() {
    let recorder = Recorder::default();
    for seed in 0..50 {
        recorder.0.borrow_mut().book.clear();
        manual_full(seed, &recorder, false);
    }
    assert!(recorder.0.borrow().reuses > 100, "{}", recorder.0.borrow().reuses);
}

#[test]
fn the_gateway_intervenes_where_the_endpoint_counts_and_no_nonce_meets_its_twin() {
    let recorder = Recorder::default();
    for seed in 0..1000 {
        recorder.0.borrow_mut().book.clear();
        let mask = SeededRng::new(seed).next_u64() & [0, u64::MAX, 1 << 63][seed as usize % 3];
        let suite = SUITES[seed as usize % 5];
        let (tally, stage) = shared(seed, &recorder, Ivs::Counter(mask), None, suite);
        assert_eq!(stage, Stage::Intervening, "seed {seed}");
        assert!(
            tally.resealed > 0 && tally.degraded == 0,
            "seed {seed}: {tally:?}"
        );
        // A restart costs nothing: numbers jump ahead, and what was proven is known again.
        assert!(tally.delivered >= tally.resealed, "seed {seed}: {tally:?}");
    }
    assert_eq!(recorder.0.borrow().reuses, 0, "of {}", recorder.0.borrow().seals);
}

#[test]
fn random_ivs_are_left_alone_and_a_change_of_pattern_ends_the_intervention() {
    let recorder = Recorder::default();
    for seed in 0..1000 {
        recorder.0.borrow_mut().book.clear();
        let suite = SUITES[seed as usize % 4];
        let (tally, stage) = shared(seed, &recorder, Ivs::Random, None, suite);
        assert_eq!((tally.resealed, stage), (0, Stage::Degraded), "seed {seed}");
        // Another world with the same keys and the same dice.
        recorder.0.borrow_mut().book.clear();
        let change = if seed % 2 == 0 {
            Ivs::Random
        } else {
            Ivs::Counter(0xdead_beef_0000_0000)
        };
        let (tally, stage) = shared(seed, &recorder, Ivs::Counter(0), Some(change), suite);
        if tally.resealed_before_change > 0 || seed % 2 == 0 {
            assert_eq!((tally.degraded, stage), (1, Stage::Degraded), "seed {seed}");
        } else {
            // Killed each time before it sent anything: the new pattern is as good as the old one.
            assert_eq!((tally.degraded, stage), (0, Stage::Intervening), "seed {seed}");
        }
    }
    assert_eq!(recorder.0.borrow().reuses, 0, "of {}", recorder.0.borrow().seals);
}

/// The rule itself, taken away: a gateway that keeps to the endpoint's half repeats its nonces.
#[test]
fn two_senders_in_one_half_are_found() {
    let recorder = Recorder::default();
    let suite = EspSuite::Aes128Gcm16;
    let sa = child(suite, Mode::Transport, false, false, false, false);
    let (mut one, mut other) = (
        OutboundSa::new(&recorder, NOW, &sa).unwrap(),
        OutboundSa::new(&recorder, NOW, &sa).unwrap(),
    );
    let mut rng = TestRng(1);
    for n in 0..10u8 {
        for (sender, body) in [(&mut one, [n; 8]), (&mut other, [!n; 8])] {
            let mut packet = Packet::new(&udp(local(false), remote(false), &body));
            packet.with(|p| sender.seal(NOW, p, &mut rng)).unwrap();
        }
    }
    assert_eq!(recorder.0.borrow().reuses, 10);
}
