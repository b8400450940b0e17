//! What a peer that knows the keys, but not the rules, gets.

use ::core::net::SocketAddr;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::ids::{MessageId, Spi};
use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_common::DropReason;
use towpath_crypto::IkeCrypto;

use super::Endpoint;
use crate::choose::offer_esp;
use crate::command::{Command, FailReason};
use crate::config::{Config, Initiate, Policy};
use crate::protect::protect;
use crate::sa::State;
use crate::wire::{Delete, ExchangeType, Header, Notify, NotifyType, Payload, Protocol};

type Ends = [Endpoint<IkeCrypto, SeededRng>; 2];

const NOW: Instant = Instant::from_secs(1);

fn policy() -> Policy {
    Policy {
        local_id: IkeId::Fqdn("host.test".into()),
        remote_id: None,
        psk: Psk::new(b"swordfish".to_vec()),
        ike_proposals: vec!["aes256gcm16-prfsha256-x25519".parse().unwrap()],
        esp_suites: vec![EspSuite::Aes256Gcm16],
        esn: false,
        mode: Mode::Transport,
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        lifetime: Lifetime::default(),
        force_encap: false,
    }
}

fn ends() -> [SocketAddr; 2] {
    ["10.0.0.1:500", "10.0.0.2:500"].map(|text| text.parse().unwrap())
}

/// An initiator and a responder after `messages` messages.
fn after(messages: usize) -> Ends {
    let mut pair = [1, 2].map(|seed| Endpoint::new(Config::default(), IkeCrypto, SeededRng::new(seed)));
    let [local, remote] = ends().map(|end| end.ip());
    let wish = Initiate {
        tag: 1,
        local,
        remote,
        remote_port: None,
        policy: policy(),
    };
    pair[0].initiate(NOW, wish).unwrap();
    for count in 0..messages {
        let (from, to) = (count % 2, 1 - count % 2);
        let datagram = pair[from].poll_transmit().unwrap();
        let result = pair[to].handle_datagram(NOW, datagram.source, datagram.destination, &datagram.payload);
        result.unwrap();
        while let Some(command) = pair[to].poll_command() {
            if let Command::NeedPolicy { request, .. } = command {
                pair[to].provide_policy(NOW, request, Some(policy()));
            }
        }
    }
    pair
}

/// A message under the initiator's keys, whatever the rules say.
fn forge(pair: &Ends, exchange: ExchangeType, response: bool, id: u32, payloads: &[Payload<'_>]) -> Vec<u8> {
    let sa = pair[0].sas.values().next().unwrap();
    let header = Header {
        next_payload: 0,
        ..sa.header(exchange, response, MessageId(id))
    };
    let keys = &sa.keys.as_ref().unwrap().sk_i;
    protect(&IkeCrypto, keys, &[0xff; 8], header, payloads).unwrap()
}

fn deliver(pair: &mut Ends, message: &[u8]) -> Result<(), DropReason> {
    let [source, destination] = ends();
    pair[1].handle_datagram(NOW, source, destination, message)
}

fn child_request() -> Vec<Payload<'static>> {
    let [ours, theirs] = ends().map(|end| TrafficSelector::host(end.ip()));
    vec![
        Payload::Sa(offer_esp(&[EspSuite::Aes256Gcm16], false, Spi(0x1000))),
        Payload::Nonce(vec![7; 32].into()),
        Payload::TsI(vec![ours]),
        Payload::TsR(vec![theirs]),
    ]
}

fn commands(end: &mut Endpoint<IkeCrypto, SeededRng>) -> Vec<Command> {
    let mut commands = Vec::new();
    while let Some(command) = end.poll_command() {
        if !matches!(command, Command::Exchange { .. }) {
            commands.push(command);
        }
    }
    commands
}

#[test]
fn before_auth_no_exchange_but_ike_auth_is_looked_at() {
    let exchanges = [
        ExchangeType::CREATE_CHILD_SA,
        ExchangeType::INFORMATIONAL,
        ExchangeType::IKE_INTERMEDIATE,
        ExchangeType::IKE_SA_INIT,
        ExchangeType(240),
    ];
    for exchange in exchanges {
        for id in 0..3 {
            for response in [false, true] {
                let mut pair = after(2);
                while pair[1].poll_transmit().is_some() {}
                let message = forge(&pair, exchange, response, id, &child_request());
                assert!(
                    deliver(&mut pair, &message).is_err(),
                    "{exchange} {id} {response}"
                );
                assert!(commands(&mut pair[1]).is_empty());
                assert!(pair[1].poll_transmit().is_none());
                assert_eq!(pair[1].sas.values().next().unwrap().state, State::InitAnswered);
            }
        }
    }
}

#[test]
fn ike_auth_without_proof_is_refused() {
    let id = || Payload::IdI((&IkeId::Fqdn("host.test".into())).into());
    let auth = |method, data| Payload::Auth { method, data };
    let proofs = [
        vec![],
        vec![id()],
        vec![auth(2, vec![0; 32].into())],
        vec![id(), auth(2, vec![].into())],
        vec![id(), auth(2, vec![0; 32].into())],
        // Methods we do not have: RSA signature, digital signature.
        vec![id(), auth(1, vec![0; 256].into())],
        vec![id(), auth(14, vec![0; 64].into())],
    ];
    for proof in proofs {
        let mut pair = after(2);
        let payloads = [proof, child_request()].concat();
        let message = forge(&pair, ExchangeType::IKE_AUTH, false, 1, &payloads);
        let _ = deliver(&mut pair, &message);
        let commands = commands(&mut pair[1]);
        assert!(
            matches!(
                commands[..],
                [Command::Failed {
                    reason: FailReason::AuthenticationFailed,
                    ..
                }]
            ),
            "{commands:?}"
        );
        assert!(pair[1].sas.values().all(|sa| sa.is_closed()));
    }
}

#[test]
fn a_proof_sent_twice_is_not_two_proofs() {
    let mut pair = after(2);
    let id = Payload::IdI((&IkeId::Fqdn("host.test".into())).into());
    let message = forge(&pair, ExchangeType::IKE_AUTH, false, 1, &[id.clone(), id]);
    let _ = deliver(&mut pair, &message);
    assert!(
        commands(&mut pair[1])
            .iter()
            .all(|command| matches!(command, Command::Failed { .. }))
    );
}

#[test]
fn established_peers_get_error_notifies_and_nothing_breaks() {
    let notify = |protocol: u8, spi: &[u8]| {
        let mut notify = Notify::new(NotifyType::REKEY_SA, &[][..]);
        notify.protocol = protocol;
        notify.spi = spi.to_vec().into();
        [vec![Payload::Notify(notify)], child_request()].concat()
    };
    let unknown = Payload::Unknown {
        kind: 200,
        data: vec![].into(),
    };
    let requests = [
        (ExchangeType::CREATE_CHILD_SA, vec![]),
        (ExchangeType::CREATE_CHILD_SA, notify(3, &[9, 9, 9, 9])),
        (ExchangeType::CREATE_CHILD_SA, notify(1, &[9, 9, 9, 9])),
        (ExchangeType::CREATE_CHILD_SA, notify(3, &[1])),
        (ExchangeType::CREATE_CHILD_SA, child_request()[..2].to_vec()),
        (ExchangeType::CREATE_CHILD_SA, child_request()[1..].to_vec()),
        (ExchangeType::INFORMATIONAL, vec![unknown]),
        (
            ExchangeType::INFORMATIONAL,
            vec![Payload::Delete(Delete {
                protocol: Protocol::ESP,
                spis: vec![1, 2, 3],
            })],
        ),
        (ExchangeType(240), vec![]),
    ];
    let mut pair = after(4);
    commands(&mut pair[1]);
    for (id, (exchange, payloads)) in requests.into_iter().enumerate() {
        let message = forge(&pair, exchange, false, id as u32 + 2, &payloads);
        assert_eq!(deliver(&mut pair, &message), Ok(()));
        assert!(pair[1].poll_transmit().is_some(), "every request is answered");
        assert_eq!(commands(&mut pair[1]), []);
    }
    let sa = pair[1].sas.values().next().unwrap();
    assert_eq!((sa.state, sa.children.len()), (State::Established, 1));
}

#[test]
fn a_second_ike_auth_on_an_established_sa_is_dropped() {
    let mut pair = after(4);
    commands(&mut pair[1]);
    let message = forge(&pair, ExchangeType::IKE_AUTH, false, 2, &child_request());
    assert_eq!(deliver(&mut pair, &message), Err(DropReason::IkeUnexpected));
    assert!(commands(&mut pair[1]).is_empty());
}

#[test]
fn child_sas_of_one_ike_sa_are_limited() {
    let mut pair = after(4);
    for id in 2..60 {
        let message = forge(&pair, ExchangeType::CREATE_CHILD_SA, false, id, &child_request());
        deliver(&mut pair, &message).unwrap();
    }
    assert_eq!(pair[1].sas.values().next().unwrap().children.len(), 16);
}
