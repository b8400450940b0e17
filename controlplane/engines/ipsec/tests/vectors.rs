//! Published packets.
#![allow(missing_docs)]

mod common;

use common::*;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, Rng};
use towpath_base::sa::{EspKeys, EspSuite, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::{Instant, Key, Spi};
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::{OutboundSa, locate};

/// draft-mcgrew-gcm-test-01, first ESP packet (AES-128, extended sequence number).
#[test]
fn gcm_packet_of_mcgrew() {
    let keys = EspKeys {
        cipher: Key::from_slice(&hex("4c80cdefbb5d10da906ac73c3613a634 2e443b68")).unwrap(),
        integrity: Key::EMPTY,
    };
    let plain = hex("45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
         00000000045f736970045f756470037369700963796265726369747902646b0000
         21000101020201");
    let sealed = hex("fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34
         cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce
         61bc17d768fd9732459018148f6cbe722fd04796562dfdb4");
    let mut transform = SoftEsp.transform(EspSuite::Aes128Gcm16, &keys).unwrap();
    let (mut payload, mut icv) = (plain.clone(), [0; 16]);
    let iv = hex("4956ed7e3b244cfe");
    // AAD 00004321 87654321 00000000: SPI, high half, low half.
    let mut header = [0; 8];
    header[..4].copy_from_slice(&hex("00004321"));
    let mut parts = |payload: &mut [u8], icv: &mut [u8], seal| {
        let parts = EspParts {
            header,
            esn_high: Some(0x8765_4321),
            iv: &iv,
            payload,
            icv,
        };
        if seal {
            transform.seal(parts)
        } else {
            transform.open(parts)
        }
    };
    parts(&mut payload, &mut icv, true).unwrap();
    assert_eq!([&payload[..], &icv[..]].concat(), sealed);
    parts(&mut payload, &mut icv, false).unwrap();
    assert_eq!(payload, plain);
}

struct FixedIv(Vec<u8>);

impl Rng for FixedIv {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0);
    }
}

/// RFC 3602 §4, case 5: a ping in transport mode. Its packet has no ICV, so lengths differ; the ciphertext does not.
#[test]
fn cbc_ping_of_rfc_3602() {
    let plain = hex("45000054 08f20000 4001f9fe c0a87b03 c0a87b64
         08000ebd a70a0000 8e9c083d b95b0700 08090a0b 0c0d0e0f 10111213 14151617
         18191a1b 1c1d1e1f 20212223 24252627 28292a2b 2c2d2e2f 30313233 34353637");
    let encrypted = hex(
        "f663c25d 325c18c6 a9453e19 4e120849 a4870b66 cc6b9965 330013b4 898dc856
         a4699e52 3a55db08 0b59ec3a 8e4b7e52 775b07d1 db34ed9c 538ab50c 551b874a
         a269add0 47ad2d59 13ac19b7 cfbad4a6",
    );
    let mut sa = child(
        EspSuite::Aes128CbcSha256,
        Mode::Transport,
        false,
        false,
        false,
        false,
    );
    sa.keys_out.cipher = Key::from_slice(&hex("90d382b4 10eeba7a d938c46c ec1a82bf")).unwrap();
    sa.spi_out = Spi(0x4321);
    sa.local_ts = Selectors::one(TrafficSelector::host("192.168.123.3".parse().unwrap()));
    sa.remote_ts = Selectors::one(TrafficSelector::host("192.168.123.100".parse().unwrap()));
    let mut sender = OutboundSa::new(&SoftEsp, Instant::ZERO, &sa).unwrap();
    let mut packet = Packet::new(&plain);
    let mut iv = FixedIv(hex("e96e8c08 ab465763 fd098d45 dd3ff893"));
    packet.with(|p| sender.seal(Instant::ZERO, p, &mut iv)).unwrap();
    let at = locate::esp(packet.bytes()).unwrap().esp_at;
    assert_eq!(packet.bytes()[at..at + 8], hex("00004321 00000001"));
    assert_eq!(packet.bytes()[at + 8..at + 24], iv.0);
    assert_eq!(packet.bytes()[at + 24..packet.len - 16], encrypted);
}

#[test]
fn wrong_key_lengths_are_refused() {
    let keys = EspKeys {
        cipher: Key::from_slice(&[0; 16]).unwrap(),
        integrity: Key::from_slice(&[0; 20]).unwrap(),
    };
    for suite in EspSuite::ALL {
        assert!(SoftEsp.transform(*suite, &keys).is_err());
    }
}
