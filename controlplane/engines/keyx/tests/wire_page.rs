//! The vectors of `controlplane/docs/keyx-wire.md` are what the code does.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use towpath_base::key::SecretKey;
use towpath_base::sa::{ChildSa, Class, EspKeys, EspSuite, Lifetime, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;
use towpath_base::{Spi, SubscriberHandle};
use towpath_keyx::message::{
    self, FromTerminal, KeyTransfer, Operation, Outcome, ProxyReply, ProxyRequest, RefuseReason, SaName,
    ToTerminal, TransferAck, TransferResult, peek,
};
use towpath_keyx::registration::{Addresses, Attempt, Terms, deregister, open_registration};
use towpath_keyx::{NetworkSession, RegistrationKeys, ReservedSpi, SessionKeys, TerminalSession, frame};

const PAGE: &str = include_str!("../../../docs/keyx-wire.md");
const HANDLE: SubscriberHandle = SubscriberHandle(0x0102_0304_0506_0708);

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn counted(first: u8) -> [u8; 32] {
    std::array::from_fn(|i| first + i as u8)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn sa() -> ChildSa {
    let suite = EspSuite::Aes128Gcm16;
    let keys = |first: u8| EspKeys::split(suite, &counted(first)[..20]).unwrap();
    ChildSa {
        local: address("10.77.1.2"),
        remote: address("10.77.9.2"),
        suite,
        mode: Mode::Transport,
        esn: true,
        encap: Some(UdpEncap {
            local_port: 4500,
            remote_port: 4501,
        }),
        spi_in: Spi(0xc1c2_c3c4),
        spi_out: Spi(0xd1d2_d3d4),
        keys_in: keys(0x80),
        keys_out: keys(0xa0),
        local_ts: Selectors::one(TrafficSelector::host(address("10.77.1.2"))),
        remote_ts: Selectors::one(TrafficSelector {
            protocol: 6,
            first_port: 80,
            last_port: 443,
            ..TrafficSelector::host(address("10.77.9.2"))
        }),
        lifetime: Lifetime {
            soft_seconds: 3000,
            hard_seconds: 3600,
            soft_bytes: 1 << 30,
            hard_bytes: 1 << 31,
        },
    }
}

/// Every vector, in the order of the page.
fn computed() -> Vec<(&'static str, String)> {
    let ksub = SecretKey::new(counted(0x00));
    let (nonce_t, nonce_n) = (counted(0x20), counted(0x40));
    let here = Addresses::of([address("10.77.1.2"), address("fd77:1::2")]);
    let registration_keys = RegistrationKeys::derive(&ksub, HANDLE);
    let register = Attempt::new(nonce_t)
        .register(&registration_keys, 65, &here)
        .unwrap();
    let terms = Terms {
        lifetime_seconds: 3600,
        keepalive_seconds: 60,
        epoch: 7,
    };
    let opened = open_registration(&ksub, address("10.77.1.2"), register.as_bytes()).unwrap();
    let answer = opened.answer(&ksub, &nonce_n, &terms).unwrap();
    let keys = SessionKeys::derive(&ksub, HANDLE, &nonce_t, &nonce_n);
    assert_eq!(answer.keys, keys);
    let mut terminal = TerminalSession::new(HANDLE, &keys);
    let mut network = NetworkSession::new(HANDLE, &keys);
    let hello = terminal.seal(&FromTerminal::Hello).unwrap();
    let request = terminal
        .seal(&FromTerminal::ProxyRequest(ProxyRequest {
            request_id: 1,
            terminal: address("10.77.1.2"),
            peer: address("10.77.9.2"),
            protocol: 6,
            terminal_port: 40000,
            peer_port: 443,
            replaces: None,
            level: 0,
        }))
        .unwrap();
    let mut down = |message: &ToTerminal| network.seal(message).unwrap();
    let transfer = down(&ToTerminal::KeyTransfer(KeyTransfer {
        transfer_id: 1,
        request_id: Some(1),
        operation: Operation::Install {
            class: Class::Full,
            level: 0,
            replaces: None,
            standby: false,
            sa: sa(),
        },
    }));
    let delete = down(&ToTerminal::KeyTransfer(KeyTransfer {
        transfer_id: 2,
        request_id: None,
        operation: Operation::Delete(SaName::of(&sa())),
    }));
    let refusal = down(&ToTerminal::ProxyReply(ProxyReply {
        request_id: 2,
        outcome: Outcome::Refused {
            reason: RefuseReason::NoPolicy,
            retry_after: 300,
        },
    }));
    let ack = TransferAck {
        transfer_id: 1,
        result: TransferResult::Done,
    };
    let ack = terminal.seal(&FromTerminal::TransferAck(ack)).unwrap();
    let hint = message::re_register(&peek(request.as_bytes()).unwrap());
    let leave = deregister(&registration_keys, 66, &nonce_t, &here).unwrap();
    vec![
        ("ksub", hex(ksub.expose())),
        ("nonce_t", hex(nonce_t)),
        ("nonce_n", hex(nonce_n)),
        ("register", hex(&register)),
        (
            "register_framed",
            hex(frame::wrap(ReservedSpi(100), register.as_bytes())),
        ),
        ("register_ack", hex(&answer.datagram)),
        ("session_t2n", hex(keys.t2n.expose())),
        ("session_n2t", hex(keys.n2t.expose())),
        ("hello", hex(&hello)),
        ("proxy_request", hex(&request)),
        ("key_transfer_install", hex(&transfer)),
        ("key_transfer_delete", hex(&delete)),
        ("proxy_reply_refused", hex(&refusal)),
        ("transfer_ack", hex(&ack)),
        ("re_register", hex(hint)),
        ("deregister", hex(&leave)),
    ]
}

/// `name = hex`, continued on lines that begin with a space, inside fences marked `vectors`.
fn written() -> BTreeMap<String, String> {
    let mut vectors = BTreeMap::new();
    let mut last = None;
    let fences = PAGE
        .split("```vectors\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"));
    for line in fences.flat_map(|(block, _)| block.lines()) {
        match line.split_once(" = ") {
            Some((name, value)) => {
                vectors.insert(name.trim().to_owned(), value.trim().to_owned());
                last = Some(name.trim().to_owned());
            }
            None => {
                let name = last.as_ref().expect("a continuation continues something");
                vectors.get_mut(name).unwrap().push_str(line.trim());
            }
        }
    }
    vectors
}

#[test]
fn the_page_shows_what_the_code_does() {
    let written = written();
    let computed = computed();
    for (name, value) in &computed {
        assert_eq!(written.get(*name), Some(value), "{name}");
    }
    assert_eq!(
        written.len(),
        computed.len(),
        "the page has vectors nobody computes"
    );
}

#[test]
#[ignore = "prints the vectors for the page"]
fn print() {
    for (name, value) in computed() {
        let mut lines = value
            .as_bytes()
            .chunks(96)
            .map(|chunk| std::str::from_utf8(chunk).unwrap());
        println!("{name} = {}", lines.next().unwrap_or_default());
        lines.for_each(|line| println!("    {line}"));
    }
}
