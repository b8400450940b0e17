//! Who proves what: certificates, shared keys, one of each, post-quantum keys.

use towpath_base::credentials::Ppk;
use towpath_base::crypto::Untrusted;
use towpath_base::profile::{IkeId, Psk};
use towpath_ike::{Auth, Command, FailReason, Policy};

use crate::pki::{Kind, certified, leaf, root, signer, trusting};
use crate::world::*;

/// The exchange of `a` with `b`; no CHILD SA may be left if it fails.
fn outcome(a: Policy, b: Policy) -> (World, bool) {
    let mut world = World::pair(1, a, b);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let up = world.ends.iter().all(|end| end.children.len() == 1);
    if up {
        let [a, b] = world.only_children();
        assert_mirror(&a, &b);
    } else {
        for end in &world.ends {
            assert!(end.children.is_empty(), "{:#?}", world.trace);
            assert_eq!(end.endpoint.list(world.now).count(), 0, "{:#?}", world.trace);
        }
    }
    (world, up)
}

fn reasons(world: &World) -> [Vec<FailReason>; 2] {
    [0, 1].map(|end| {
        failures(&world.ends[end])
            .into_iter()
            .map(|(_, reason)| reason)
            .collect()
    })
}

/// ```text
/// <-- SA, KE, Nr, N(HASH_ALG), CERTREQ
/// --> SK { IDi, CERT, CERTREQ, AUTH, … }
/// <-- SK { IDr, CERT, AUTH, … }
/// ```
#[test]
fn every_pair_of_keys_proves_itself_in_both_families() {
    let ca = root(Kind::P256);
    for a in Kind::ALL {
        for b in Kind::ALL {
            for (local, remote) in [(v4(1), v4(2)), (v6(1), v6(2))] {
                let mut world = World::pair(1, certified(&ca, a), certified(&ca, b));
                world.initiate(1, local, remote).unwrap();
                world.rest();
                let [one, two] = world.only_children();
                assert_mirror(&one, &two);
                let proven = world.ends.iter().flat_map(|end| &end.commands).filter(|command| {
                    let name = IkeId::Fqdn("host.test".into());
                    matches!(command, Command::IkeEstablished { remote_id, .. } if *remote_id == name)
                });
                assert_eq!(proven.count(), 2);
            }
        }
    }
    let (world, _) = outcome(certified(&ca, Kind::P256), certified(&ca, Kind::Ed25519));
    for (line, parts) in world.trace.iter().zip([
        &["N(HASH_ALG)"][..],
        &["N(HASH_ALG)", "CERTREQ"],
        &["IDi CERT CERTREQ AUTH"],
        &["IDr CERT AUTH"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
}

#[test]
fn one_side_may_prove_itself_by_certificate_and_the_other_by_key() {
    let ca = root(Kind::P384);
    let mut server = policy();
    server.auth = signer(&leaf(&ca, "host.test", Kind::P256));
    let mut client = policy();
    client.auth = trusting(Auth::default(), &ca);
    assert!(outcome(client.clone(), server.clone()).1);
    assert!(outcome(server, client).1);
}

#[test]
fn distinguished_names_are_identities_whatever_the_kind_of_their_strings() {
    let ca = root(Kind::P256);
    let name = IkeId::from_text("O=Towpath, CN=host.test");
    let mut b = certified(&ca, Kind::P256);
    b.local_id = name.clone();
    let mut a = certified(&ca, Kind::P256);
    a.remote_id = Some(IkeId::from_text("O=towpath, CN=HOST.test"));
    let (world, up) = outcome(a, b);
    assert!(up, "{:#?}", world.trace);
}

#[test]
fn who_cannot_prove_itself_gets_the_same_answer_whatever_is_wrong() {
    let (ca, other) = (root(Kind::P256), root(Kind::P256));
    let good = || certified(&ca, Kind::P256);
    let untrusted = |why| FailReason::Untrusted(why);
    let stranger = Policy {
        auth: trusting(signer(&leaf(&other, "host.test", Kind::P256)), &ca),
        ..good()
    };
    let impostor = Policy {
        auth: trusting(signer(&leaf(&ca, "other.test", Kind::P256)), &ca),
        ..good()
    };
    let by_key = Policy {
        auth: trusting(Auth::default(), &ca),
        ..policy()
    };
    for (bad, why) in [
        (stranger, untrusted(Untrusted::UnknownIssuer)),
        (impostor, untrusted(Untrusted::WrongIdentity)),
        // A shared key where a certificate is wanted.
        (by_key, untrusted(Untrusted::NoCertificate)),
    ] {
        let (world, up) = outcome(bad.clone(), good());
        assert!(!up);
        assert_eq!(
            reasons(&world),
            [vec![FailReason::AuthenticationRefused], vec![why]]
        );
        assert_eq!(
            world.trace.last().unwrap(),
            "B --> IKE_AUTH response 1 [ N(AUTH_FAILED) ]"
        );
        // And as responder: the initiator says why nothing, and the responder forgets.
        let (world, up) = outcome(good(), bad);
        assert!(!up);
        assert_eq!(reasons(&world)[0], [why]);
        let says = "A --> INFORMATIONAL request 2 [ N(AUTH_FAILED) ]";
        assert!(world.trace.iter().any(|line| line == says), "{:#?}", world.trace);
    }
    // Somebody else than the policy wants, with a good certificate.
    let mut picky = good();
    picky.remote_id = Some(IkeId::Fqdn("other.test".into()));
    let (world, up) = outcome(good(), picky);
    assert!(!up);
    assert_eq!(reasons(&world)[1], [FailReason::AuthenticationFailed]);
}

#[test]
fn missing_secrets_prove_nothing() {
    let empty = Policy {
        psk: Psk::new(Vec::new()),
        ..policy()
    };
    let ca = root(Kind::P256);
    let blind = Policy {
        auth: signer(&leaf(&ca, "host.test", Kind::P256)),
        psk: Psk::new(Vec::new()),
        ..policy()
    };
    for (a, b) in [
        (empty.clone(), empty.clone()),
        (policy(), empty.clone()),
        (empty.clone(), policy()),
        (blind.clone(), blind.clone()),
        (certified(&ca, Kind::P256), blind.clone()),
        (blind, empty),
    ] {
        let (world, up) = outcome(a, b);
        assert!(!up, "{:#?}", world.trace);
    }
}

fn with_ppk(id: &str, secret: u8, required: bool) -> Policy {
    Policy {
        auth: Auth {
            ppk: Some(Ppk {
                id: id.into(),
                secret: Psk::new(vec![secret; 32]),
                required,
            }),
            ..Auth::default()
        },
        ..policy()
    }
}

/// ```text
/// --> SK { IDi, AUTH, N(PPK_IDENTITY), N(NO_PPK_AUTH), … }
/// <-- SK { IDr, AUTH, N(PPK_IDENTITY), … }
/// ```
#[test]
fn a_post_quantum_key_is_used_where_both_have_it_and_demanded_where_it_is_required() {
    // id, secret, required, of A and B: established with it (Some(true)), without (Some(false)), or not.
    let none = policy();
    for (a, b, expected) in [
        (with_ppk("p", 1, true), with_ppk("p", 1, true), Some(true)),
        (with_ppk("p", 1, false), with_ppk("p", 1, true), Some(true)),
        (with_ppk("p", 1, false), with_ppk("p", 1, false), Some(true)),
        (with_ppk("p", 1, false), none.clone(), Some(false)),
        (none.clone(), with_ppk("p", 1, false), Some(false)),
        (with_ppk("p", 1, false), with_ppk("q", 1, false), Some(false)),
        (with_ppk("p", 1, true), none.clone(), None),
        (none.clone(), with_ppk("p", 1, true), None),
        (with_ppk("p", 1, true), with_ppk("q", 1, false), None),
        (with_ppk("p", 1, false), with_ppk("q", 1, true), None),
        (with_ppk("p", 1, false), with_ppk("p", 2, false), None),
    ] {
        let (world, up) = outcome(a, b);
        let answer = world.trace.iter().find(|line| line.starts_with("B --> IKE_AUTH"));
        let used = answer.is_some_and(|line| line.contains("N(PPK_ID)"));
        assert_eq!(up.then_some(used), expected, "{:#?}", world.trace);
    }
}

#[test]
fn a_post_quantum_key_goes_with_certificates_as_well() {
    let ca = root(Kind::P256);
    let mut both = certified(&ca, Kind::Rsa);
    both.auth.ppk = with_ppk("p", 1, true).auth.ppk;
    let (world, up) = outcome(both.clone(), both);
    assert!(up, "{:#?}", world.trace);
}
