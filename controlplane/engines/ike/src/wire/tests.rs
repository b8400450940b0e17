use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use towpath_base::ids::{IkeSpi, MessageId};
use towpath_base::profile::IkeId;
use towpath_base::selector::TrafficSelector;

use super::*;

fn header() -> Header {
    Header {
        spi_i: IkeSpi(0x0102_0304_0506_0708),
        spi_r: IkeSpi(0x1112_1314_1516_1718),
        next_payload: 0,
        exchange: ExchangeType::IKE_AUTH,
        from_initiator: true,
        response: false,
        message_id: MessageId(1),
    }
}

/// One payload of every kind.
fn every_payload() -> Vec<Payload<'static>> {
    vec![
        Payload::Sa(vec![
            Proposal {
                number: 1,
                protocol: Protocol::ESP,
                spi: vec![1, 2, 3, 4],
                transforms: vec![
                    Transform {
                        key_bits: Some(256),
                        ..Transform::new(TransformType::ENCR, 20)
                    },
                    Transform::new(TransformType::ESN, 0),
                ],
            },
            Proposal {
                number: 2,
                protocol: Protocol::ESP,
                spi: vec![1, 2, 3, 4],
                transforms: vec![Transform::new(TransformType::ESN, 1)],
            },
        ]),
        Payload::Ke {
            group: 31,
            data: vec![7; 32].into(),
        },
        Payload::IdI(Id::from(&IkeId::Fqdn("a.test".into()))),
        Payload::IdR(Id::from(&IkeId::Address("2001:db8::1".parse().unwrap()))),
        Payload::Cert {
            encoding: 4,
            data: vec![1].into(),
        },
        Payload::CertReq {
            encoding: 4,
            data: vec![].into(),
        },
        Payload::Auth {
            method: 2,
            data: vec![9; 32].into(),
        },
        Payload::Nonce(vec![5; 32].into()),
        Payload::Notify(Notify {
            protocol: 3,
            spi: vec![1, 2, 3, 4].into(),
            kind: NotifyType::REKEY_SA,
            data: vec![].into(),
        }),
        Payload::Delete(Delete {
            protocol: Protocol::ESP,
            spis: vec![0x1001, 0x1002],
        }),
        Payload::Delete(Delete {
            protocol: Protocol::IKE,
            spis: vec![],
        }),
        Payload::Vendor(vec![1, 2].into()),
        Payload::TsI(vec![TrafficSelector::host("192.0.2.1".parse().unwrap())]),
        Payload::TsR(vec![TrafficSelector::any_of("2001:db8::/32".parse().unwrap())]),
        Payload::Cp(Configuration {
            kind: 1,
            attributes: vec![(1, vec![].into()), (3, vec![8, 8, 8, 8].into())],
        }),
        Payload::Eap(Eap {
            code: 1,
            identifier: 7,
            data: vec![1].into(),
        }),
        Payload::Unknown {
            kind: 200,
            data: vec![1, 2, 3].into(),
        },
    ]
}

#[test]
fn every_payload_survives_the_wire() {
    let payloads = every_payload();
    let message = encode_message(header(), &payloads);
    let (parsed, body) = Header::parse(&message).unwrap();
    assert_eq!(parsed.spi_i, header().spi_i);
    assert_eq!(parsed.exchange, ExchangeType::IKE_AUTH);
    assert_eq!(parse_payloads(parsed.next_payload, body).unwrap(), payloads);
    assert_eq!(
        summary(&parsed, &payloads),
        "IKE_AUTH request 1 [ SA KE IDi IDr CERT CERTREQ AUTH No N(REKEY_SA) D D V TSi TSr CP EAP (200) ]"
    );
}

#[test]
fn no_truncation_parses() {
    for payload in every_payload() {
        let message = encode_message(header(), core::slice::from_ref(&payload));
        for len in 0..message.len() {
            assert!(Header::parse(&message[..len]).is_err());
            if let Some(body) = message.get(HEADER_LEN..len) {
                assert!(
                    parse_payloads(payload.kind().0, body).is_err(),
                    "{payload:?} cut to {len}"
                );
            }
        }
    }
}

#[test]
fn unknown_critical_payloads_are_refused_by_number() {
    // next payload none, critical bit, length 5, one byte
    assert_eq!(
        parse_payloads(200, &[0, 0x80, 0, 5, 1]),
        Err(ParseError::UnsupportedCritical(200))
    );
    assert!(parse_payloads(200, &[0, 0, 0, 5, 1]).is_ok());
}

#[test]
fn impossible_lengths_are_refused_everywhere() {
    // Every 16-bit field of every payload set to 0, 1 and 65535: refused or parsed, never a panic.
    for payload in every_payload() {
        let message = encode_message(header(), core::slice::from_ref(&payload));
        for at in HEADER_LEN..message.len() - 1 {
            for value in [0u16, 1, u16::MAX] {
                let mut bad = message.clone();
                bad[at..at + 2].copy_from_slice(&value.to_be_bytes());
                let _ = parse_payloads(payload.kind().0, &bad[HEADER_LEN..]);
            }
        }
        let mut bad = message.clone();
        for value in [0u16, 1, 3, u16::MAX] {
            bad[HEADER_LEN + 2..HEADER_LEN + 4].copy_from_slice(&value.to_be_bytes());
            assert!(parse_payloads(payload.kind().0, &bad[HEADER_LEN..]).is_err());
        }
    }
}

#[test]
fn chains_are_bounded() {
    let many = vec![Payload::Vendor(vec![].into()); MAX_PAYLOADS + 1];
    let message = encode_message(header(), &many);
    assert_eq!(
        parse_payloads(PayloadType::VENDOR.0, &message[HEADER_LEN..]),
        Err(ParseError::TooMany)
    );
}

#[test]
fn other_major_versions_are_refused() {
    let mut message = encode_message(header(), &[]);
    message[17] = 0x10;
    assert_eq!(Header::parse(&message), Err(ParseError::Version(1)));
    message[17] = 0x2f;
    assert!(Header::parse(&message).is_ok(), "minor versions are ignored");
}

#[test]
fn identities_of_wrong_size_are_none() {
    let id = Id {
        kind: 1,
        data: vec![1, 2, 3].into(),
    };
    assert_eq!(id.to_ike_id(), None);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(first in any::<u8>(), bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Header::parse(&bytes);
        let _ = parse_payloads(first, &bytes);
    }

    #[test]
    fn mutated_messages_never_panic_and_reencode(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut message = encode_message(header(), &every_payload());
        for (index, value) in changes {
            let at = index.index(message.len());
            message[at] = value;
        }
        if let Ok((parsed, body)) = Header::parse(&message)
            && let Ok(payloads) = parse_payloads(parsed.next_payload, body)
        {
            let again = encode_message(parsed, &payloads);
            let (reparsed, body) = Header::parse(&again).unwrap();
            prop_assert!(parse_payloads(reparsed.next_payload, body).is_ok());
        }
    }
}
