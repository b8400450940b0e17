//! What a peer that knows the keys, but not the rules, gets.

use ::core::net::SocketAddr;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator};
use towpath_base::ids::{MessageId, Spi};
use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_common::DropReason;
use towpath_crypto::IkeCrypto;

use super::Endpoint;
use crate::choose::{offer_esp, offer_ike};
use crate::command::{Command, FailReason};
use crate::config::{Config, Initiate, Policy};
use crate::protect::{Inside, protect};
use crate::sa::State;
use crate::wire::{Delete, ExchangeType, Header, Notify, NotifyType, Payload, Protocol, encode_payloads};

pub(super) type Ends = [Endpoint<IkeCrypto, SeededRng>; 2];

pub(super) const NOW: Instant = Instant::from_secs(1);

pub(super) fn policy() -> Policy {
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
        auth: Default::default(),
    }
}

pub(super) fn ends() -> [SocketAddr; 2] {
    ["10.0.0.1:500", "10.0.0.2:500"].map(|text| text.parse().unwrap())
}

/// An initiator and a responder after `messages` messages.
pub(super) fn after(messages: usize) -> Ends {
    after_with(Config::default(), policy, messages)
}

/// The same under another policy at both ends.
pub(super) fn after_with(config: Config, policy: fn() -> Policy, messages: usize) -> Ends {
    let mut pair = [1, 2].map(|seed| Endpoint::new(config.clone(), IkeCrypto, SeededRng::new(seed)));
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
    let mut text = Vec::new();
    encode_payloads(payloads, &mut text);
    let inside = Inside {
        first: payloads.first().map_or(0, |payload| payload.kind().0),
        text,
        place: None,
    };
    protect(&IkeCrypto, keys, &[0xff; 8], header, &inside).unwrap()
}

fn deliver(pair: &mut Ends, message: &[u8]) -> Result<(), DropReason> {
    let [source, destination] = ends();
    pair[1].handle_datagram(NOW, source, destination, message)
}

pub(super) fn child_request() -> Vec<Payload<'static>> {
    let [ours, theirs] = ends().map(|end| TrafficSelector::host(end.ip()));
    vec![
        Payload::Sa(offer_esp(&[EspSuite::Aes256Gcm16], false, Spi(0x1000))),
        Payload::Nonce(vec![7; 32].into()),
        Payload::TsI(vec![ours]),
        Payload::TsR(vec![theirs]),
    ]
}

pub(super) fn commands(end: &mut Endpoint<IkeCrypto, SeededRng>) -> Vec<Command> {
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

// -- RFC 7296 §2.25: what a request gets that crosses one of ours ------------------------------------------

/// SPI under which the initiator receives on the second CHILD SA, from [`child_request`].
const SECOND: Spi = Spi(0x1000);

/// What the responder has on its way when the initiator's request arrives. About the second CHILD SA, so that
/// there is another.
#[derive(Debug, Clone, Copy, PartialEq)]
enum UnderWay {
    Nothing,
    RekeyChild,
    DeleteChild,
    RekeyIke,
    DeleteIke,
}

/// What arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Arrives {
    CreateChild,
    RekeyChild(Spi),
    DeleteChild(Spi),
    RekeyIke,
    DeleteIke,
}

fn rekey_request(spi: Spi) -> Vec<Payload<'static>> {
    let mut notify = Notify::new(NotifyType::REKEY_SA, &[][..]);
    notify.protocol = Protocol::ESP.0;
    notify.spi = spi.0.to_be_bytes().to_vec().into();
    let mut request = child_request();
    if let Payload::Sa(proposals) = &mut request[0] {
        proposals[0].spi = vec![0, 0, 0x20, 0];
    }
    [vec![Payload::Notify(notify)], request].concat()
}

fn ike_rekey_request() -> Vec<Payload<'static>> {
    let group = DhGroup::X25519;
    let (_, public) = IkeCrypto.initiate(group, &mut SeededRng::new(5)).unwrap();
    vec![
        Payload::Sa(offer_ike(&policy().ike_proposals, &[9; 8], true)),
        Payload::Nonce(vec![7; 32].into()),
        Payload::Ke {
            group: group.number(),
            data: public.into(),
        },
    ]
}

impl Arrives {
    fn message(self, pair: &Ends, id: u32) -> Vec<u8> {
        let delete = |protocol, spis| vec![Payload::Delete(Delete { protocol, spis })];
        let (exchange, payloads) = match self {
            Self::CreateChild => {
                let mut request = child_request();
                if let Payload::Sa(proposals) = &mut request[0] {
                    proposals[0].spi = vec![0, 0, 0x30, 0];
                }
                (ExchangeType::CREATE_CHILD_SA, request)
            }
            Self::RekeyChild(spi) => (ExchangeType::CREATE_CHILD_SA, rekey_request(spi)),
            Self::RekeyIke => (ExchangeType::CREATE_CHILD_SA, ike_rekey_request()),
            Self::DeleteChild(spi) => (ExchangeType::INFORMATIONAL, delete(Protocol::ESP, vec![spi.0])),
            Self::DeleteIke => (ExchangeType::INFORMATIONAL, delete(Protocol::IKE, vec![])),
        };
        forge(pair, exchange, false, id, &payloads)
    }
}

/// Payloads of the last response the responder sent.
fn last_response(end: &mut Endpoint<IkeCrypto, SeededRng>) -> String {
    let mut last = String::new();
    while let Some(command) = end.poll_command() {
        if let Command::Exchange { sent: true, line, .. } = command
            && let Some((head, payloads)) = line.split_once('[')
            && head.contains("response")
        {
            last = alloc::format!("[{payloads}");
        }
    }
    last
}

#[test]
fn crossing_requests_get_what_rfc_7296_2_25_says() {
    use Arrives as A;
    use UnderWay as U;
    let child = "[ SA No TSi TSr N(ESP_TFC_PAD_N) ]";
    let cases = [
        // §2.25.1, CHILD SAs
        (U::DeleteChild, A::RekeyChild(SECOND), "[ N(TEMP_FAIL) ]"),
        (U::RekeyChild, A::RekeyChild(SECOND), child),
        (U::Nothing, A::RekeyChild(Spi(0x4711)), "[ N(NO_CHILD_SA) ]"),
        (U::DeleteChild, A::DeleteChild(SECOND), "[ ]"),
        (U::RekeyChild, A::DeleteChild(SECOND), "[ D ]"),
        (U::Nothing, A::DeleteChild(Spi(0x4711)), "[ ]"),
        (U::Nothing, A::DeleteChild(SECOND), "[ D ]"),
        (U::RekeyChild, A::CreateChild, child),
        // §2.25.2, the IKE SA
        (U::RekeyChild, A::RekeyIke, "[ N(TEMP_FAIL) ]"),
        (U::DeleteChild, A::RekeyIke, "[ N(TEMP_FAIL) ]"),
        (U::RekeyIke, A::RekeyIke, "[ SA No KE ]"),
        (U::DeleteIke, A::RekeyIke, "[ N(TEMP_FAIL) ]"),
        (U::RekeyIke, A::DeleteIke, "[ ]"),
        (U::DeleteIke, A::DeleteIke, "[ ]"),
        (U::RekeyIke, A::CreateChild, "[ N(TEMP_FAIL) ]"),
        (U::RekeyIke, A::RekeyChild(SECOND), "[ N(TEMP_FAIL) ]"),
        (U::RekeyIke, A::DeleteChild(SECOND), "[ D ]"),
        (U::DeleteIke, A::CreateChild, "[ N(TEMP_FAIL) ]"),
    ];
    for (under_way, arrives, expected) in cases {
        let mut pair = after(4);
        let message = forge(&pair, ExchangeType::CREATE_CHILD_SA, false, 2, &child_request());
        deliver(&mut pair, &message).unwrap();
        let sa = pair[1].sas.values().next().unwrap();
        let ike = sa.id;
        let second = sa
            .children
            .iter()
            .find(|child| child.spi_out == SECOND)
            .unwrap()
            .spi_in;
        match under_way {
            U::Nothing => {}
            U::RekeyChild => pair[1].rekey_child(NOW, ike, second).unwrap(),
            U::DeleteChild => pair[1].delete_child(NOW, ike, second).unwrap(),
            U::RekeyIke => pair[1].rekey_ike(NOW, ike).unwrap(),
            U::DeleteIke => pair[1].delete_ike(NOW, ike).unwrap(),
        }
        commands(&mut pair[1]);
        let message = arrives.message(&pair, 3);
        assert_eq!(deliver(&mut pair, &message), Ok(()), "{under_way:?} {arrives:?}");
        let answer = last_response(&mut pair[1]);
        assert_eq!(answer, expected, "{under_way:?} {arrives:?}");
    }
}

#[test]
fn a_deleted_ike_sa_forgets_its_own_rekeying() {
    let mut pair = after(4);
    let ike = pair[1].sas.values().next().unwrap().id;
    pair[1].rekey_ike(NOW, ike).unwrap();
    let message = Arrives::DeleteIke.message(&pair, 2);
    deliver(&mut pair, &message).unwrap();
    assert!(pair[1].sas.values().all(|sa| sa.is_closed()));
    let last = commands(&mut pair[1]).pop();
    let gone = FailReason::DeletedByPeer;
    assert!(matches!(last, Some(Command::IkeClosed { reason, .. }) if reason == gone));
}

#[test]
fn an_ike_sa_deleted_after_the_peers_own_rekeying_lives_on_in_that_one() {
    // Our rekeying is lost; the peer, who never saw it, rekeys and deletes the old one.
    let mut pair = after(4);
    let ike = pair[1].sas.values().next().unwrap().id;
    pair[1].rekey_ike(NOW, ike).unwrap();
    for (id, request) in [(2, Arrives::RekeyIke), (3, Arrives::DeleteIke)] {
        let message = request.message(&pair, id);
        deliver(&mut pair, &message).unwrap();
    }
    let live: Vec<_> = pair[1].sas.values().filter(|sa| !sa.is_closed()).collect();
    assert_eq!(live.len(), 1);
    assert_eq!((live[0].state, live[0].children.len()), (State::Established, 1));
    assert_ne!(live[0].id, ike);
    let commands = commands(&mut pair[1]);
    let renamed = commands
        .iter()
        .any(|command| matches!(command, Command::IkeRekeyed { old, .. } if *old == ike));
    let lost = |command: &Command| matches!(command, Command::ChildDeleted { .. });
    assert!(renamed && !commands.iter().any(lost), "{commands:?}");
}
