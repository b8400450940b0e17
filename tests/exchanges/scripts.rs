//! Exchanges message by message.

use towpath_base::sa::Mode;
use towpath_ike::{Command, Config, FailReason};

use crate::world::*;

fn assert_script(world: &World, script: &[&str]) {
    assert_eq!(world.trace, script, "{:#?}", world.trace);
}

#[test]
fn two_round_trips_make_an_ike_sa_and_a_child_sa() {
    let mut world = World::pair(1, policy(), policy());
    world.initiate(7, v4(1), v4(2)).unwrap();
    world.rest();
    assert_script(
        &world,
        &[
            "A --> IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) ]",
            "B --> IKE_SA_INIT response 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) N(CHDLESS_SUP) ]",
            "A --> IKE_AUTH request 1 [ IDi AUTH N(INIT_CONTACT) SA TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
            "B --> IKE_AUTH response 1 [ IDr AUTH SA TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
        ],
    );
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
    assert_eq!((a.mode, a.esn, a.encap), (Mode::Transport, true, None));
    assert!(matches!(
        world.ends[0].commands[..],
        [
            Command::IkeEstablished { .. },
            Command::ChildEstablished { tag: Some(7), .. }
        ]
    ));
    assert!(matches!(
        world.ends[1].commands[..],
        [
            Command::NeedPolicy { .. },
            Command::IkeEstablished { .. },
            Command::ChildEstablished { tag: None, .. }
        ]
    ));
}

#[test]
fn a_wrong_group_is_answered_with_the_right_one() {
    let mut a = policy();
    a.ike_proposals = vec![proposal("aes256gcm16-prfsha256-x25519-ecp256")];
    let mut b = policy();
    b.ike_proposals = vec![proposal("aes256gcm16-prfsha256-ecp256")];
    let mut world = World::pair(1, a, b);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    assert_script(
        &world,
        &[
            "A --> IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) ]",
            "B --> IKE_SA_INIT response 0 [ N(INVAL_KE) ]",
            "A --> IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) ]",
            "B --> IKE_SA_INIT response 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) N(CHDLESS_SUP) ]",
            "A --> IKE_AUTH request 1 [ IDi AUTH N(INIT_CONTACT) SA TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
            "B --> IKE_AUTH response 1 [ IDr AUTH SA TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
        ],
    );
    world.only_children();
    assert!(failures(&world.ends[1]).is_empty());
}

#[test]
fn under_load_the_initiator_must_return_a_cookie() {
    let config = Config {
        cookie_threshold: 0,
        ..quiet()
    };
    let mut world = World::pair_with(1, config, policy(), policy());
    world.initiate(1, v6(1), v6(2)).unwrap();
    world.rest();
    assert_script(
        &world,
        &[
            "A --> IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) ]",
            // B keeps nothing, and logs nothing: <-- N(COOKIE)
            "A --> IKE_SA_INIT request 0 [ N(COOKIE) SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) ]",
            "B --> IKE_SA_INIT response 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) N(CHDLESS_SUP) ]",
            "A --> IKE_AUTH request 1 [ IDi AUTH N(INIT_CONTACT) SA TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
            "B --> IKE_AUTH response 1 [ IDr AUTH SA TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
        ],
    );
    world.only_children();
}

#[test]
fn a_wrong_key_ends_the_attempt_on_both_sides() {
    let mut wrong = policy();
    wrong.psk = towpath_base::profile::Psk::new(b"catfish".to_vec());
    let mut world = World::pair(1, wrong, policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    assert_script(
        &world,
        &[
            "A --> IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) ]",
            "B --> IKE_SA_INIT response 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) N(CHDLESS_SUP) ]",
            "A --> IKE_AUTH request 1 [ IDi AUTH N(INIT_CONTACT) SA TSi TSr N(ESP_TFC_PAD_N) N(USE_TRANSP) ]",
            "B --> IKE_AUTH response 1 [ N(AUTH_FAILED) ]",
        ],
    );
    assert_eq!(
        failures(&world.ends[0]),
        [(Some(1), FailReason::AuthenticationRefused)]
    );
    assert_eq!(
        failures(&world.ends[1]),
        [(None, FailReason::AuthenticationFailed)]
    );
    assert!(
        world
            .ends
            .iter()
            .all(|end| end.children.is_empty() && end.endpoint.list(world.now).count() == 0)
    );
}

#[test]
fn an_initiator_that_does_not_believe_the_responder_says_so() {
    let mut a = policy();
    a.remote_id = Some(towpath_base::profile::IkeId::Fqdn("someone.else".into()));
    let mut b = policy();
    // It would take any IDr, and answers with its own.
    b.local_id = towpath_base::profile::IkeId::Fqdn("someone.else".into());
    let mut world = World::pair(1, a.clone(), b);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    world.only_children();

    let mut world = World::pair(1, a, policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    // B is not who A asks for (IDr), and refuses.
    assert_eq!(
        failures(&world.ends[0]),
        [(Some(1), FailReason::AuthenticationRefused)]
    );
    assert!(world.ends.iter().all(|end| end.children.is_empty()));
}

#[test]
fn without_policy_the_peer_is_refused() {
    let mut world = World::new(1);
    world.add(quiet(), Some(policy()), &[v4(1)]);
    world.add(quiet(), None, &[v4(2)]);
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    assert_script(
        &world,
        &[
            "A --> IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) ]",
            "B --> IKE_SA_INIT response 0 [ N(NO_PROP) ]",
        ],
    );
    assert_eq!(
        failures(&world.ends[0]),
        [(Some(1), FailReason::NoProposalChosen)]
    );
    assert_eq!(failures(&world.ends[1]), [(None, FailReason::NoPolicy)]);
}
