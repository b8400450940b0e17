//! Messages byte for byte as `ip xfrm` of iproute2 sends them (seen by strace, on a little-endian machine).

use towpath_base::key::Key;

use super::*;

/// Pieces of hex digits; `z(n)` in between are zero bytes, `f(n)` bytes of ones.
fn bytes(pieces: &[Piece]) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Hex(digits) => all.extend(
                (0..digits.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()),
            ),
            Piece::Zeros(count) => all.resize(all.len() + count, 0),
            Piece::Ones(count) => all.resize(all.len() + count, 0xff),
            Piece::Name(name) => {
                all.extend(name.bytes());
                all.resize(all.len() + 64 - name.len(), 0);
            }
        }
    }
    all
}

enum Piece {
    Hex(&'static str),
    Zeros(usize),
    Ones(usize),
    Name(&'static str),
}
use Piece::{Hex, Name, Ones, Zeros};

fn key(bytes: &[u8]) -> Key {
    let mut key = Key::EMPTY;
    key.set(bytes).unwrap();
    key
}

fn ending(len: usize, last: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[len - 1] = last;
    bytes
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

#[test]
#[cfg(target_endian = "little")]
fn a_gcm_state_is_what_iproute2_sends() {
    // ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x1234 reqid 7 mode transport replay-window 64 flag esn
    //   aead "rfc4106(gcm(aes))" 0x00…01 128
    let keys = EspKeys {
        cipher: key(&ending(36, 1)),
        integrity: Key::EMPTY,
    };
    let state = State {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        spi: Spi(0x1234),
        suite: EspSuite::Aes256Gcm16,
        keys: &keys,
        mode: Mode::Transport,
        esn: true,
        encap: None,
        reqid: 7,
        replay_window: 64,
        lifetime: Lifetime::default(),
        tfc_pad: 0,
        selector: None,
    };
    let mut message = Message::new();
    message.state(&state).unwrap();
    let expected = bytes(&[
        Zeros(56),
        Hex("0a000002"),
        Zeros(12),
        Hex("00001234"),
        Hex("32000000"),
        Hex("0a000001"),
        Zeros(12),
        Ones(32),
        Zeros(32 + 32 + 12 + 4),
        Hex("07000000"),
        Hex("0200000080"),
        Zeros(7),
        Hex("70001200"),
        Name("rfc4106(gcm(aes))"),
        Hex("2001000080000000"),
        Zeros(35),
        Hex("01"),
        Hex("1c001700"),
        Hex("02000000"),
        Zeros(16),
        Hex("40000000"),
    ]);
    assert_eq!(expected.len(), 380 - HEADER_LEN);
    assert_eq!(*message.into_bytes(), expected);
}

#[test]
#[cfg(target_endian = "little")]
fn a_cbc_state_in_udp_with_limits_is_what_iproute2_sends() {
    // … src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x1235 reqid 8 mode tunnel replay-window 128
    //   limit byte-soft 1000 limit byte-hard 2000 limit time-hard 60 enc "cbc(aes)" 0x0…02
    //   auth-trunc "hmac(sha256)" 0x0…03 128 encap espinudp 4500 4501 0.0.0.0
    let keys = EspKeys {
        cipher: key(&ending(16, 2)),
        integrity: key(&ending(32, 3)),
    };
    let state = State {
        source: "2001:db8::1".parse().unwrap(),
        destination: "2001:db8::2".parse().unwrap(),
        spi: Spi(0x1235),
        suite: EspSuite::Aes128CbcSha256,
        keys: &keys,
        mode: Mode::Tunnel,
        esn: false,
        encap: Some((4500, 4501)),
        reqid: 8,
        replay_window: 128,
        lifetime: Lifetime {
            soft_seconds: 50,
            hard_seconds: 60,
            soft_bytes: 1000,
            hard_bytes: 2000,
        },
        tfc_pad: 0,
        selector: None,
    };
    let mut message = Message::new();
    message.state(&state).unwrap();
    let expected = bytes(&[
        Zeros(56),
        Hex("20010db8000000000000000000000002"),
        Hex("0000123532000000"),
        Hex("20010db8000000000000000000000001"),
        Hex("e803000000000000d007000000000000"),
        Ones(16),
        Zeros(8),
        Hex("3c00000000000000"),
        Zeros(16 + 32 + 12 + 4),
        Hex("080000000a000100"),
        Zeros(8),
        Hex("58000200"),
        Name("cbc(aes)"),
        Hex("80000000"),
        Zeros(15),
        Hex("02"),
        Hex("6c001400"),
        Name("hmac(sha256)"),
        Hex("0001000080000000"),
        Zeros(31),
        Hex("03"),
        Hex("1c0004000200119411950000"),
        Zeros(16),
        Hex("1c00170004000000"),
        Zeros(16),
        Hex("80000000"),
    ]);
    assert_eq!(expected.len(), 492 - HEADER_LEN);
    assert_eq!(*message.into_bytes(), expected);
}

#[test]
#[cfg(target_endian = "little")]
fn a_policy_and_its_deletion_are_what_iproute2_sends() {
    // ip xfrm policy update src 10.0.0.1 dst 10.1.0.0/16 proto tcp dport 80 dir out mark 0x51 mask 0xff priority 1000
    //   tmpl src 10.0.0.1 dst 10.9.9.9 proto esp reqid 7 mode tunnel
    let selector = Selector {
        source: prefix("10.0.0.1"),
        destination: prefix("10.1.0.0/16"),
        protocol: 6,
        source_port: (0, 0),
        destination_port: (80, 0xffff),
    };
    let rule = PolicyRule {
        direction: Direction::Out,
        selector,
        mark: Some((0x51, 0xff)),
        priority: 1000,
        action: Action::Protect(Template {
            mode: Mode::Tunnel,
            outer: Some(("10.0.0.1".parse().unwrap(), "10.9.9.9".parse().unwrap())),
            reqid: 7,
        }),
    };
    let encoded_selector = || {
        bytes(&[
            Hex("0a010000"),
            Zeros(12),
            Hex("0a000001"),
            Zeros(12),
            Hex("0050ffff00000000"),
            Hex("0200102006"),
            Zeros(11),
        ])
    };
    let mark = Hex("0c00150051000000ff000000");
    let mut message = Message::new();
    message.policy(&rule);
    let mut expected = encoded_selector();
    expected.extend(bytes(&[
        Ones(32),
        Zeros(32 + 32),
        Hex("e803000000000000"),
        Hex("0100000000000000"),
        Hex("44000500"),
        Hex("0a090909"),
        Zeros(12),
        Hex("0000000032000000"),
        Hex("02000000"),
        Hex("0a000001"),
        Zeros(12),
        Hex("0700000001000000"),
        Ones(12),
        Hex("0c00150051000000ff000000"),
    ]));
    assert_eq!(expected.len(), 264 - HEADER_LEN);
    assert_eq!(*message.into_bytes(), expected);

    let mut message = Message::new();
    message.policy_id(&PolicyRule {
        direction: Direction::In,
        ..rule
    });
    let mut expected = encoded_selector();
    expected.extend(bytes(&[Zeros(8), mark]));
    assert_eq!(expected.len(), 92 - HEADER_LEN);
    assert_eq!(*message.into_bytes(), expected);
}

#[test]
#[cfg(target_endian = "little")]
fn what_the_kernel_asks_for_is_read() {
    // `struct xfrm_user_acquire` and the attribute with the policy's templates.
    let mut acquire = bytes(&[
        Hex("0a090909"),
        Zeros(12),
        Hex("0000000032000000"),
        Hex("0a000001"),
        Zeros(12),
        // Selector of the packet: destination, source, ports with masks, family, lengths, protocol.
        Hex("0a090909"),
        Zeros(12),
        Hex("0a000001"),
        Zeros(12),
        Hex("0050ffff9c40ffff"),
        Hex("0200202006"),
        Zeros(11),
        // Policy, algorithms, sequence number.
        Zeros(168 + 16),
        Hex("44000500"),
        Zeros(24),
        Hex("02000000"),
        Zeros(16),
        Hex("0700000000000000"),
        Ones(12),
    ]);
    let expected = Event::Acquire {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.9.9.9".parse().unwrap(),
        protocol: 6,
        source_port: 0x9c40,
        destination_port: 80,
        reqid: 7,
    };
    assert_eq!(event(encode::ACQUIRE, View(&acquire)), Some(expected));
    while !acquire.is_empty() {
        acquire.pop();
        assert_ne!(event(encode::ACQUIRE, View(&acquire)), Some(expected));
    }
    assert_eq!(event(encode::EXPIRE, View(&[])), None);
}

#[test]
#[ignore = "needs root: netlink"]
fn where_the_kernel_lacks_esp_it_says_so() {
    let xfrm = Xfrm::open().unwrap();
    // Whatever the answer: nothing is left behind.
    let _ = xfrm.supports(EspSuite::Aes256Gcm16);
    let probe = StateId {
        destination: "127.255.255.254".parse().unwrap(),
        spi: Spi(0xff),
    };
    assert!(xfrm.state_use(&probe).is_err());
    assert!(xfrm.sweep(|_| false, |_| false).is_ok_and(|swept| swept == 0));
}
