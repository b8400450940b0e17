//! An IKE SA without CHILD SA (RFC 6023), asked for by the peer.

use alloc::vec::Vec;

use towpath_crypto::IkeCrypto;

use super::defects::{chain, deliver, forge, installed, own, state};
use super::tests::{after, child_request, commands};
use crate::command::Command;
use crate::protect::unprotect;
use crate::sa::State;
use crate::wire::{ExchangeType, Header, NotifyType, Payload, parse_payloads};

/// ```text
/// --> IKE_SA_INIT { SA, KE, Ni }
/// <-- IKE_SA_INIT { SA, KE, Nr, N(CHILDLESS_IKEV2_SUPPORTED) }
/// --> IKE_AUTH { IDi, AUTH }
/// <-- IKE_AUTH { IDr, AUTH }
/// --> CREATE_CHILD_SA { SA, Ni, TSi, TSr }
/// <-- CREATE_CHILD_SA { SA, Nr, TSi, TSr }
/// ```
#[test]
fn a_peer_may_ask_for_an_ike_sa_alone_and_for_a_child_sa_later() {
    let mut pair = after(2);
    // The responder says that it can.
    let sa = pair[1].sas.values().next().unwrap();
    let init = sa.init.as_ref().unwrap();
    let (header, body) = Header::parse(&init.message_r).unwrap();
    let said = parse_payloads(header.next_payload, body).unwrap();
    let can = |payload: &Payload<'_>| matches!(payload, Payload::Notify(notify) if notify.kind == NotifyType::CHILDLESS_IKEV2_SUPPORTED);
    assert!(said.iter().any(can));
    // IKE_AUTH as our own initiator proves itself, without what is about a CHILD SA.
    let keys = pair[0].sas.values().next().unwrap().keys.clone().unwrap();
    let request = pair[0].poll_transmit().unwrap();
    let inside = unprotect(&IkeCrypto, &keys.sk_i, &request.payload).unwrap();
    let payloads = parse_payloads(inside.first, &inside.text).unwrap();
    let alone: Vec<_> = payloads
        .into_iter()
        .filter(|payload| matches!(payload, Payload::IdI(_) | Payload::Auth { .. }))
        .filter_map(own)
        .collect();
    assert_eq!(alone.len(), 2);
    commands(&mut pair[1]);
    let message = forge(&pair, 0, ExchangeType::IKE_AUTH, false, 1, chain(&alone));
    deliver(&mut pair, 1, &message).unwrap();
    let told = commands(&mut pair[1]);
    assert!(
        matches!(&told[..], [Command::IkeEstablished { .. }]),
        "nothing but that: {told:?}"
    );
    assert_eq!(state(&pair, 1), State::Established);
    let answer = pair[1].poll_transmit().unwrap();
    let inside = unprotect(&IkeCrypto, &keys.sk_r, &answer.payload).unwrap();
    let payloads = parse_payloads(inside.first, &inside.text).unwrap();
    let of_a_child =
        |payload: &Payload<'_>| matches!(payload, Payload::Sa(_) | Payload::TsI(_) | Payload::TsR(_));
    assert!(!payloads.iter().any(of_a_child), "{payloads:?}");
    // The first CHILD SA comes by CREATE_CHILD_SA.
    let message = forge(
        &pair,
        0,
        ExchangeType::CREATE_CHILD_SA,
        false,
        2,
        chain(&child_request()),
    );
    deliver(&mut pair, 1, &message).unwrap();
    assert_eq!(installed(&commands(&mut pair[1])), 1);
}
