//! What the RFCs print, through both ESP providers.
#![allow(missing_docs)]

use towpath_base::Key;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform, IcvProvider, IcvTransform};
use towpath_base::sa::{EspIntegrity, EspKeys, EspSuite};
use towpath_crypto::AwsLcEsp;
use towpath_ipsec::soft::SoftEsp;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap() as u8)
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

struct Vector {
    suite: EspSuite,
    /// Cipher key and salt.
    cipher: &'static str,
    header: [u8; 8],
    esn_high: Option<u32>,
    iv: &'static str,
    plain: &'static str,
    sealed: &'static str,
    /// `None`: the RFC shows the ciphertext alone, under an integrity key of our choice.
    icv: Option<&'static str>,
}

fn check<P: EspProvider>(provider: &P, vector: &Vector) {
    let integrity = vec![0x0b; vector.suite.integrity_key_len()];
    let keys = EspKeys {
        cipher: Key::from_slice(&hex(vector.cipher)).unwrap(),
        integrity: Key::from_slice(&integrity).unwrap(),
    };
    let mut transform = provider.transform(vector.suite, &keys).unwrap();
    let iv = hex(vector.iv);
    let mut payload = hex(vector.plain);
    let mut icv = vec![0; vector.suite.icv_len()];
    for seal in [true, false] {
        let parts = EspParts {
            header: vector.header,
            esn_high: vector.esn_high,
            iv: &iv,
            payload: &mut payload,
            icv: &mut icv,
        };
        if seal {
            transform.seal(parts).unwrap();
            assert_eq!(payload, hex(vector.sealed), "{}", vector.suite);
            if let Some(expected) = vector.icv {
                assert_eq!(icv, hex(expected), "{}", vector.suite);
            }
        } else {
            transform.open(parts).unwrap();
            assert_eq!(payload, hex(vector.plain), "{}", vector.suite);
        }
    }
}

fn both(vector: &Vector) {
    check(&AwsLcEsp, vector);
    check(&SoftEsp, vector);
}

/// Appendix A: a whole tunnel-mode packet.
#[test]
fn rfc_7634_packet() {
    both(&Vector {
        suite: EspSuite::ChaCha20Poly1305,
        cipher: "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f a0a1a2a3",
        header: [1, 2, 3, 4, 0, 0, 0, 5],
        esn_high: None,
        iv: "1011121314151617",
        plain: "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
            0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
            2425262728292a2b2c2d2e2f303132333435363701020204",
        sealed: "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6
            14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3
            cbec163fac469b502773f6fb94e664da9165b82829f641e0",
        icv: Some("76aaa8266b7fb0f7b11b369907e1ad43"),
    });
}

/// §6, test vectors 1, 3 and 7.
#[test]
fn rfc_3686_ciphertexts() {
    let vector = |suite, cipher, iv, plain, sealed| Vector {
        suite,
        cipher,
        header: [0; 8],
        esn_high: None,
        iv,
        plain,
        sealed,
        icv: None,
    };
    let message = "53696e676c6520626c6f636b206d7367";
    for suite in [
        EspSuite::Aes128CtrSha256,
        EspSuite::Aes128CtrSha384,
        EspSuite::Aes128CtrSha512,
    ] {
        both(&vector(
            suite,
            "ae6852f8121067cc4bf7a5765577f39e 00000030",
            "0000000000000000",
            message,
            "e4095d4fb7a7b3792d6175a3261311b8",
        ));
    }
    both(&vector(
        EspSuite::Aes128CtrSha256,
        "7691be035e5020a8ac6e618529f9a0dc 00e0017b",
        "27777f3f4a1786f0",
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
        "c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f",
    ));
    both(&vector(
        EspSuite::Aes256CtrSha256,
        "776beff2851db06f4c8a0542c8696f6c6a81af1eec96b4d37fc1d689e6c1c104 00000060",
        "db5672c97aa8f0b2",
        message,
        "145ad01dbf824ec7560863dc71e3e0c0",
    ));
}

/// §4, case 4: 64 bytes under AES-128.
#[test]
fn rfc_3602_ciphertext() {
    both(&Vector {
        suite: EspSuite::Aes128CbcSha256,
        cipher: "56e47a38c5598974bc46903dba290349",
        header: [0; 8],
        esn_high: None,
        iv: "8ce82eefbea0da3c44699ed7db51b7d9",
        plain: "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf
            c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf",
        sealed: "c30e32ffedc0774e6aff6af0869f71aa0f3af07a9a31a9c684db207eb0ef8e4e
            35907aa632c3ffdf868bb7b29d3d46ad83ce9f9a102ee99d49a53e87f4c3da55",
        icv: None,
    });
}

/// draft-mcgrew-gcm-test-01, first ESP packet (AES-128, extended sequence number), for RFC 4106.
#[test]
fn rfc_4106_packet() {
    both(&Vector {
        suite: EspSuite::Aes128Gcm16,
        cipher: "4c80cdefbb5d10da906ac73c3613a634 2e443b68",
        header: [0, 0, 0x43, 0x21, 0, 0, 0, 0],
        esn_high: Some(0x8765_4321),
        iv: "4956ed7e3b244cfe",
        plain: "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
            00000000045f736970045f756470037369700963796265726369747902646b0000
            21000101020201",
        sealed: "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34
            cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce
            61bc17d768fd9732",
        icv: Some("459018148f6cbe722fd04796562dfdb4"),
    });
}

/// RFC 4309 prints no packet; these are scapy's 2.5: an implementation that shares nothing with either of ours.
#[test]
fn rfc_4309_packets_of_another_implementation() {
    for (suite, cipher, esn_high, sealed, icv) in [
        (
            EspSuite::Aes128Ccm16,
            "000102030405060708090a0b0c0d0e0f a0a1a2",
            None,
            "c10a69f5e0deeffd85aca94fa3cd875c1328fe1e5d1f7a108c2cbad52998b732814c62cd",
            "2d32694ee79ad870fd28e2e81fc53552",
        ),
        (
            EspSuite::Aes128Ccm16,
            "000102030405060708090a0b0c0d0e0f a0a1a2",
            Some(5),
            "c10a69f5e0deeffd85aca94fa3cd875c1328fe1e5d1f7a108c2cbad52998b732814c62cd",
            "02b8fd3a216b0ff822f314b6aaf1cb53",
        ),
        (
            EspSuite::Aes256Ccm16,
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f a0a1a2",
            None,
            "1f5c8b3bcb00fe3b1c37a68528c42aab1a3feb6c4045ff356023975b1e2a9aba82e9b0bb",
            "95a161eab77fd60e0d561c483062bb7d",
        ),
        (
            EspSuite::Aes256Ccm16,
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f a0a1a2",
            Some(5),
            "1f5c8b3bcb00fe3b1c37a68528c42aab1a3feb6c4045ff356023975b1e2a9aba82e9b0bb",
            "e88c03ed41366f1fdef0c976e83c6f35",
        ),
    ] {
        both(&Vector {
            suite,
            cipher,
            header: [0, 0, 0x20, 0x02, 0, 0, 0, 9],
            esn_high,
            iv: "1011121314151617",
            plain: "0fa013880022e54d73636170792073656e6473207468697320756e6465722043434d 0011",
            sealed,
            icv: Some(icv),
        });
    }
}

fn authenticate<P: IcvProvider>(provider: &P) {
    use EspIntegrity::{HmacSha256, HmacSha384, HmacSha512};
    for (integrity, hi_there, jefe) in [
        (
            HmacSha256,
            "198a607eb44bfbc69903a0f1cf2bbdc5",
            "167f928588c5cc2eef8e3093caa0e87c",
        ),
        (
            HmacSha384,
            "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee973",
            "2c7353974f1842fd66d53c452ca42122b28c0b594cfb184d",
        ),
        (
            HmacSha512,
            "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8",
            "cb370917ae8a7ce28cfd1d8f4705d6141c173b2a9362c15df235dfb251b15454",
        ),
    ] {
        let len = integrity.key_len();
        let jefe_key: Vec<u8> = b"Jefe".iter().copied().cycle().take(len).collect();
        for (key, message, expected) in [
            (vec![0x0b; len], &b"Hi There"[..], hi_there),
            (jefe_key, b"what do ya want for nothing?", jefe),
        ] {
            let mut icv = provider.icv(integrity, &Key::from_slice(&key).unwrap()).unwrap();
            let mut made = vec![0; integrity.icv_len()];
            let (head, tail) = message.split_at(5);
            icv.sign(&[head, tail], &mut made).unwrap();
            assert_eq!(made, hex(expected), "{integrity}");
            icv.verify(&[message], &made).unwrap();
            made[0] ^= 1;
            assert!(icv.verify(&[message], &made).is_err());
            assert!(icv.verify(&[message], &made[1..]).is_err());
        }
    }
}

/// §2.7.2, the cases AUTH256-1 and -2 and their like: keys of the algorithm's length, unlike RFC 4231's.
#[test]
fn rfc_4868_authenticators() {
    authenticate(&AwsLcEsp);
    authenticate(&SoftEsp);
}
