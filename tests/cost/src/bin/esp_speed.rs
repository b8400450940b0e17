//! How fast packets are opened and sealed, for `cargo xtask bench esp`. Prints one line of numbers per round.
//!
//! ```text
//! esp_speed raw BYTES ROUNDS     nanoseconds per packet: a gateway's bridge, and the bare cipher on the same bytes
//! esp_speed many SAS ROUNDS      nanoseconds per packet: over one SA, and over so many in random order
//! esp_speed suite NAME ROUNDS    nanoseconds per packet of 1400 bytes through a gateway's bridge
//! esp_speed memory SAS           resident bytes that one more SA costs a gateway, and bytes of the structure itself
//! ```
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Instant as Clock;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use towpath_afxdp::on_huge_pages;
use towpath_base::crypto::{EspTransform, Whereabouts};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::esp_keys as keys;
use towpath_base::{Instant, Spi};
use towpath_cost::{PEER, TERMINAL};
use towpath_crypto::esp::AwsLcTransform;
use towpath_crypto::{AwsLcEsp, SystemRng};
use towpath_ipsec::slots::Slots;
use towpath_ipsec::{Bridge, OutboundSa, locate};

type Gateway = Bridge<AwsLcTransform>;

/// Each packet has its own buffer of this size, as a frame of the packet path.
const FRAME: usize = 2048;
const HEADROOM: usize = 128;
/// Packets handled between two looks at the clock.
const BATCH: usize = 256;
/// Batches of one round.
const BATCHES: usize = 40;
const NOW: Instant = Instant::from_secs(1);

/// What the batches of one round took. The median counts: on a machine that does other things, too, a batch is now and
/// then interrupted, and that is not what is to be measured.
#[derive(Default)]
struct Spent(Vec<u128>);

impl Spent {
    fn add(&mut self, start: Clock) {
        self.0.push(start.elapsed().as_nanos());
    }

    fn per_packet(mut self) -> f64 {
        self.0.sort_unstable();
        self.0[self.0.len() / 2] as f64 / BATCH as f64
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().expect("a number");
    match arguments.as_slice() {
        ["raw", bytes, rounds] => raw(number(bytes), number(rounds)),
        ["many", sas, rounds] => many(number(sas), number(rounds)),
        ["suite", name, rounds] => suite(name.parse().expect("a suite"), number(rounds)),
        ["memory", sas] => memory(number(sas)),
        _ => panic!("raw BYTES ROUNDS | many SAS ROUNDS | suite NAME ROUNDS | memory SAS"),
    }
}

fn child(suite: EspSuite, spi: u32) -> ChildSa {
    ChildSa {
        local: TERMINAL,
        remote: PEER,
        suite,
        mode: Mode::Transport,
        esn: false,
        encap: None,
        spi_in: Spi(0x8000_0000 | spi),
        spi_out: Spi(spi),
        keys_in: keys(suite, 1),
        keys_out: keys(suite, 2),
        local_ts: Selectors::one(TrafficSelector::host(TERMINAL)),
        remote_ts: Selectors::one(TrafficSelector::host(PEER)),
        lifetime: Lifetime {
            soft_seconds: 3000,
            hard_seconds: 3600,
            soft_bytes: u64::MAX - 1,
            hard_bytes: u64::MAX,
        },
    }
}

/// One SA at the gateway, and the terminal that sends through it.
struct Line {
    gateway: Gateway,
    terminal: OutboundSa<AwsLcTransform>,
}

impl Line {
    fn new(suite: EspSuite, spi: u32) -> Self {
        let peer = child(suite, spi);
        let (segment_in, segment_out) = (keys(suite, 3), keys(suite, 4));
        let gateway =
            Bridge::new(&AwsLcEsp, NOW, &peer, &segment_in, &segment_out).expect("keys fit the suite");
        let terminal = ChildSa {
            keys_in: segment_in,
            keys_out: segment_out,
            ..peer
        };
        Self {
            gateway,
            terminal: OutboundSa::new(&AwsLcEsp, NOW, &terminal).expect("keys fit the suite"),
        }
    }

    fn send(&mut self, frame: &mut [u8], len: usize) -> Place {
        send(&mut self.terminal, frame, len)
    }
}

/// Seals a plain UDP packet of `len` bytes into `frame`; returns where the ESP packet is.
fn send(terminal: &mut OutboundSa<AwsLcTransform>, frame: &mut [u8], len: usize) -> Place {
    plain_packet(&mut frame[HEADROOM..HEADROOM + len]);
    let mut packet = PacketBuf::new(frame, HEADROOM, len).expect("it fits");
    terminal
        .seal(NOW, &mut packet, &mut SystemRng)
        .expect("the terminal can send");
    Place {
        start: packet.start(),
        len: packet.len(),
    }
}

#[derive(Clone, Copy, Default)]
struct Place {
    start: usize,
    len: usize,
}

fn plain_packet(packet: &mut [u8]) {
    let len = packet.len() as u16;
    packet.fill(0x5a);
    let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) = (TERMINAL, PEER) else {
        unreachable!("both are IPv4")
    };
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..28].copy_from_slice(&[0x10, 0, 0x20, 0, 0, 0, 0, 0]);
    packet[24..26].copy_from_slice(&(len - 20).to_be_bytes());
}

/// One packet through the gateway.
fn forward(gateway: &mut Gateway, frame: &mut [u8], place: Place) {
    let mut packet = PacketBuf::new(frame, place.start, place.len).expect("it fits");
    let result = gateway.to_peer(NOW, &mut packet, &mut SystemRng);
    assert!(black_box(result).is_ok());
}

/// Nanoseconds per packet of the gateway's bridge, one SA.
fn bridged(line: &mut Line, frames: &mut [u8], len: usize) -> f64 {
    let mut spent = Spent::default();
    let mut places = [Place::default(); BATCH];
    for _ in 0..BATCHES {
        for (frame, place) in frames.chunks_mut(FRAME).zip(&mut places) {
            *place = line.send(frame, len);
        }
        let start = Clock::now();
        for (frame, place) in frames.chunks_mut(FRAME).zip(places) {
            forward(&mut line.gateway, frame, place);
        }
        spent.add(start);
    }
    spent.per_packet()
}

/// Nanoseconds per packet of nothing but the cipher: open with one key, seal with another, the same bytes in place.
fn bare(line: &mut Line, from: &LessSafeKey, to: &LessSafeKey, frames: &mut [u8], len: usize) -> f64 {
    let mut spent = Spent::default();
    let mut parts = [(0, 0); BATCH];
    let mut sequence = 0u64;
    for _ in 0..BATCHES {
        for (frame, part) in frames.chunks_mut(FRAME).zip(&mut parts) {
            let place = line.send(frame, len);
            let at = locate::esp(&frame[place.start..place.start + place.len]).expect("ESP");
            *part = (place.start + at.esp_at, place.start + at.end);
        }
        let start = Clock::now();
        for (frame, (esp, end)) in frames.chunks_mut(FRAME).zip(parts) {
            let (header, rest) = frame[esp..end].split_at_mut(8);
            let (iv, rest) = rest.split_at_mut(8);
            let (payload, icv) = rest.split_at_mut(rest.len() - 16);
            let mut nonce = [4; 12];
            nonce[4..].copy_from_slice(iv);
            let nonce = Nonce::assume_unique_for_key(nonce);
            from.open_in_place_separate_tag(nonce, Aad::from(&*header), icv, payload)
                .expect("sealed with this key");
            sequence += 1;
            let mut nonce = [2; 12];
            nonce[4..].copy_from_slice(&sequence.to_be_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = to
                .seal_in_place_separate_tag(nonce, Aad::from(&*header), payload)
                .expect("within bounds");
            icv.copy_from_slice(tag.as_ref());
        }
        spent.add(start);
    }
    black_box(frames);
    spent.per_packet()
}

fn raw(len: usize, rounds: usize) {
    let key = |seed| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[seed; 32]).expect("a key"));
    let (from, to) = (key(4), key(2));
    let mut frames = vec![0; FRAME * BATCH];
    for round in 0..rounds + 1 {
        let mut line = Line::new(EspSuite::Aes256Gcm16, 0x2002);
        // Whoever comes first changes from round to round; the first round only warms up.
        let (ours, other) = if round % 2 == 0 {
            let ours = bridged(&mut line, &mut frames, len);
            (ours, bare(&mut line, &from, &to, &mut frames, len))
        } else {
            let other = bare(&mut line, &from, &to, &mut frames, len);
            (bridged(&mut line, &mut frames, len), other)
        };
        if round > 0 {
            println!("{ours:.1} {other:.1}");
        }
    }
}

fn suite(suite: EspSuite, rounds: usize) {
    let mut frames = vec![0; FRAME * BATCH];
    let mut line = Line::new(suite, 0x2002);
    for round in 0..rounds + 1 {
        let ours = bridged(&mut line, &mut frames, 1400);
        if round > 0 {
            println!("{ours:.1}");
        }
    }
}

/// Packets whose SAs are asked for ahead, as the gateway's worker does.
const AHEAD: usize = 2;
/// Packets the worker takes at a time.
const RECEIVED: usize = 64;

/// The tables of a gateway's datapath: addresses and SPI lead to a slot.
struct Table {
    slots: Slots<(IpAddr, IpAddr, Spi), foldhash::quality::RandomState>,
    gateways: Vec<Gateway>,
    /// The half of an SA to ask for between opening and sealing.
    later: Option<Whereabouts>,
}

impl Table {
    fn find(&self, packet: &[u8]) -> usize {
        let at = locate::esp(packet).expect("ESP");
        let slot = self.slots.guess(&(at.source, at.destination, at.spi));
        slot.expect("it was inserted")
    }

    fn expect(&mut self, slot: usize) {
        let before = self.later.replace(self.gateways[slot].expect(true));
        before.into_iter().for_each(AwsLcTransform::fetch);
    }

    /// One batch, handled as the worker handles it: find all, then work, and ask for the ones to come.
    fn handle(&mut self, frames: &mut [u8], places: &[Place], ahead: &mut Vec<usize>) {
        ahead.clear();
        for (frame, place) in frames.chunks(FRAME).zip(places) {
            ahead.push(self.find(&frame[place.start..place.start + place.len]));
        }
        for slot in &*ahead {
            self.gateways[*slot].announce(true);
            AwsLcTransform::prefetch(self.slots.key(*slot).expect("it was inserted"));
        }
        for slot in ahead.iter().take(AHEAD) {
            self.expect(*slot);
        }
        for (index, (frame, place)) in frames.chunks_mut(FRAME).zip(places).enumerate() {
            if let Some(slot) = ahead.get(index + AHEAD) {
                self.expect(*slot);
            }
            let at = locate::esp(&frame[place.start..place.start + place.len]).expect("ESP");
            let slot = self.slots.get(&(at.source, at.destination, at.spi));
            let slot = slot.expect("it was inserted");
            let mut packet = PacketBuf::new(frame, place.start, place.len).expect("it fits");
            self.gateways[slot].meanwhile(self.later.take());
            let result = self.gateways[slot].pass(true, NOW, &mut packet, &at, &mut SystemRng);
            assert!(black_box(result).is_ok());
        }
    }
}

/// Bytes of the frame area: large pages and some more, for it begins anywhere.
const AREA: usize = 8 << 20;

/// The far ends of many SAs. Their keys are all the same, so one cipher seals for all of them: a gateway does not hold the
/// state of those that send to it, and its memory is not to be pushed out by theirs. Numbers are each SA's own.
struct Terminals {
    key: LessSafeKey,
    salt: [u8; 4],
    sequences: Vec<u32>,
}

impl Terminals {
    const SUITE: EspSuite = EspSuite::Aes256Gcm16;

    fn new(sas: usize) -> Self {
        let keys = keys(Self::SUITE, 4);
        let parts = keys.parts(Self::SUITE).expect("the suite's own length");
        Self {
            key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, parts.cipher).expect("a key")),
            salt: parts.salt.try_into().expect("four bytes"),
            sequences: vec![0; sas],
        }
    }

    const fn spi(slot: usize) -> u32 {
        0x2002 + slot as u32
    }

    /// Seals a plain UDP packet of `len` bytes in transport mode (RFC 4303, RFC 4106).
    fn send(&mut self, slot: usize, frame: &mut [u8], len: usize) -> Place {
        const IP: usize = 20;
        self.sequences[slot] += 1;
        let sequence = self.sequences[slot];
        let padding = (4 - (len - IP + 2) % 4) % 4;
        let end = len + 8 + 8 + padding + 2;
        let packet = &mut frame[HEADROOM..HEADROOM + end + 16];
        plain_packet(&mut packet[16..16 + len]);
        packet.copy_within(16..16 + IP, 0);
        packet[2..4].copy_from_slice(&((end + 16) as u16).to_be_bytes());
        packet[9] = 50;
        packet[IP..IP + 4].copy_from_slice(&Self::spi(slot).to_be_bytes());
        packet[IP + 4..IP + 8].copy_from_slice(&sequence.to_be_bytes());
        let iv = u64::from(sequence).to_be_bytes();
        packet[IP + 8..IP + 16].copy_from_slice(&iv);
        for (at, byte) in packet[len + 16..end - 2].iter_mut().enumerate() {
            *byte = at as u8 + 1;
        }
        packet[end - 2..end].copy_from_slice(&[padding as u8, 17]);
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&iv);
        let (header, rest) = packet.split_at_mut(IP + 16);
        let (text, tag) = rest.split_at_mut(end - IP - 16);
        let made = self.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&header[IP..IP + 8]),
            text,
        );
        tag.copy_from_slice(made.expect("within bounds").as_ref());
        Place {
            start: HEADROOM,
            len: end + 16,
        }
    }
}

/// Both arms look their SA up by addresses and SPI, as the gateway does, and touch as many frames.
fn many(sas: usize, rounds: usize) {
    let mut table = Table {
        slots: Slots::default(),
        gateways: Vec::with_capacity(sas),
        later: None,
    };
    // As the gateway's own table. An error says that there are no large pages.
    let _ = on_huge_pages(&table.gateways);
    let mut terminals = Terminals::new(sas);
    for slot in 0..sas {
        let spi = Terminals::spi(slot);
        let Line { gateway, .. } = Line::new(Terminals::SUITE, spi);
        table.slots.insert((TERMINAL, PEER, Spi(spi)), slot);
        table.gateways.push(gateway);
    }
    let mut frames = Vec::with_capacity(AREA);
    let _ = on_huge_pages(&frames);
    frames.resize(AREA, 0);
    // The middle of it is on large pages for certain.
    let frames = &mut frames[AREA / 2..][..FRAME * BATCH];
    let mut ahead = Vec::with_capacity(RECEIVED);
    let mut random = 1u64;
    let mut one_pass = |spread: usize| {
        let mut spent = Spent::default();
        let mut places = [Place::default(); BATCH];
        for _ in 0..BATCHES {
            for (frame, place) in frames.chunks_mut(FRAME).zip(&mut places) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let slot = (random >> 33) as usize % spread;
                *place = terminals.send(slot, frame, 1400);
            }
            let start = Clock::now();
            for (frames, places) in frames.chunks_mut(FRAME * RECEIVED).zip(places.chunks(RECEIVED)) {
                table.handle(frames, places, &mut ahead);
            }
            spent.add(start);
        }
        spent.per_packet()
    };
    for round in 0..rounds + 1 {
        let (one, all) = if round % 2 == 0 {
            let one = one_pass(1);
            (one, one_pass(sas))
        } else {
            let all = one_pass(sas);
            (one_pass(1), all)
        };
        if round > 0 {
            println!("{one:.1} {all:.1}");
        }
    }
}

fn memory(sas: usize) {
    let make = |n: usize| {
        let suite = EspSuite::Aes256Gcm16;
        let peer = child(suite, n as u32);
        Gateway::new(&AwsLcEsp, NOW, &peer, &keys(suite, 3), &keys(suite, 4)).expect("keys fit the suite")
    };
    let mut all = Vec::with_capacity(sas);
    all.push(make(0));
    let before = resident();
    all.extend((1..sas).map(make));
    let after = resident();
    println!(
        "{} {}",
        (after - before) / (sas - 1),
        size_of_val(black_box(&all[0]))
    );
}

/// Resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("Linux");
    let kib: usize = line
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("a number");
    kib * 1024
}
