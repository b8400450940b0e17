//! How SAs come about, and who gets which keys.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_base::SubscriberHandle;
use towpath_base::sa::{Class, EspSuite};
use towpath_fabric::{Datagram, FromKeyserver, FromRegistry, GatewayKeys, NodeName, ToKeyserver};

use crate::world::{A, B, World, address};

#[test]
fn one_request_gives_both_terminals_an_sa_and_each_segment_its_own_keys() {
    let mut world = World::new();
    world.ask(A, B, 1);
    let (a, b) = (world.sa_of(A), world.sa_of(B));
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    let [at_a, at_b] = world.gateway.as_slice() else {
        panic!("{:?}", world.gateway)
    };
    let mut keys = Vec::new();
    for sa in [at_a, at_b] {
        let GatewayKeys::Full {
            peer,
            segment_in,
            segment_out,
        } = &sa.keys
        else {
            panic!()
        };
        let terminal = if sa.subscriber == A { a } else { b };
        assert_eq!((&terminal.keys_in, &terminal.keys_out), (segment_in, segment_out));
        keys.extend([segment_in.clone(), segment_out.clone(), peer.keys_in.clone()]);
    }
    // Four segment keys and two negotiated ones, no two alike.
    for (index, key) in keys.iter().enumerate() {
        assert!(keys[..index].iter().all(|other| other != key));
    }
    assert_eq!(world.drops, []);
}

#[test]
fn class_inspect_hands_out_cipher_keys_alone_and_falls_to_none_for_an_aead() {
    for suite in [EspSuite::Aes256CbcSha256, EspSuite::Aes256Gcm16] {
        let mut world = World::new();
        world.class = Class::Inspect;
        world.esp_suites = vec![suite];
        world.ask(A, B, 1);
        // The terminals hold the negotiated keys: the gateway can change nothing.
        let (a, b) = (world.sa_of(A).clone(), world.sa_of(B).clone());
        assert_eq!(a.keys_out, b.keys_in);
        assert_eq!(world.gateway.len(), 2);
        for sa in &world.gateway {
            if suite.is_aead() {
                assert_eq!((&sa.keys, sa.class()), (&GatewayKeys::None, Class::None));
                continue;
            }
            let GatewayKeys::Inspect(keys) = &sa.keys else {
                panic!("{:?}", sa.keys)
            };
            let own = if sa.subscriber == A { &a } else { &b };
            assert_eq!(
                (&keys.cipher_in, &keys.cipher_out),
                (&own.keys_in.cipher, &own.keys_out.cipher)
            );
            let bytes = towpath_fabric::encode(sa);
            for integrity in [&own.keys_in.integrity, &own.keys_out.integrity] {
                assert!(
                    !bytes
                        .windows(integrity.len())
                        .any(|window| window == integrity.expose())
                );
            }
        }
    }
}

#[test]
fn class_none_hands_the_negotiated_keys_to_the_terminals_and_none_to_the_gateway() {
    let mut world = World::new();
    world.class = Class::None;
    world.ask(A, B, 1);
    assert_eq!(world.sa_of(A).keys_out, world.sa_of(B).keys_in);
    assert_eq!(world.gateway.len(), 2);
    assert!(world.gateway.iter().all(|sa| sa.keys == GatewayKeys::None));
}

#[test]
fn simultaneous_requests_end_with_one_sa_pair() {
    let mut world = World::new();
    let (from_a, from_b) = (world.request(A, B, 1), world.request(B, A, 1));
    for (from, to, sealed) in [(A, B, from_a), (B, A, from_b)] {
        let datagram = Datagram {
            source: SocketAddr::new(address(from), 500),
            destination: SocketAddr::new(address(to), 500),
            payload: sealed,
        };
        world.keyserver.handle_gateway(
            world.now,
            ToKeyserver::FromTerminal {
                subscriber: from,
                datagram,
            },
        );
    }
    world.run();
    world.pass(Duration::from_secs(30));
    let (a, b) = (world.sa_of(A), world.sa_of(B));
    assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
    assert_eq!(world.gateway.len(), 2);
}

#[test]
fn the_class_is_the_policys_whoever_starts_and_however_late_the_answer() {
    let mut world = World::new();
    world.ask(A, B, 1);
    // B was the responder: nobody had asked for its pair before.
    let classes: Vec<Class> = world
        .keyserver
        .child_sas()
        .map(|(_, _, child)| child.class)
        .collect();
    assert_eq!(classes, [Class::Full, Class::Full]);
    world.pass(Duration::from_secs(5));
    assert!(world.gateway.iter().all(|sa| sa.class() == Class::Full));
}

#[test]
fn an_operator_starts_an_exchange_only_for_a_terminal_that_is_here() {
    let mut world = World::new();
    let stranger = IpAddr::from([10, 0, 0, 99]);
    let refused = world.keyserver.ike_initiate(world.now, stranger, address(B));
    assert_eq!(refused, Err(towpath_keyserver::StartError::NotHere));
    world
        .keyserver
        .ike_initiate(world.now, address(A), address(B))
        .unwrap();
    let again = world.keyserver.ike_initiate(world.now, address(A), address(B));
    assert_eq!(again, Err(towpath_keyserver::StartError::InProgress));
    world.run();
    assert_eq!(world.terminals[&A].installed.len(), 1);
    let again = world.keyserver.ike_initiate(world.now, address(A), address(B));
    assert_eq!(again, Err(towpath_keyserver::StartError::Established));
}

/// The initiator sends when it has the answer: the answer waits until the other end's terminal has the keys, but not
/// for ever.
#[test]
fn no_packet_overtakes_the_keys_of_a_first_set_up() {
    let mut world = World::new();
    world.terminals.get_mut(&B).unwrap().acknowledges = false;
    world.ask(A, B, 1);
    assert!(world.terminals[&A].installed.is_empty(), "B has not acknowledged");
    world.pass(Duration::from_secs(4));
    world.sa_of(A);
    // The usual case needs no timer.
    let mut world = World::new();
    world.ask(A, B, 1);
    world.sa_of(A);
    world.sa_of(B);
}

/// Each message goes to the gateway its terminal registered through, whoever brought the question.
#[test]
fn messages_go_to_the_gateway_of_the_terminal() {
    let mut world = World::new();
    let elsewhere = NodeName("gw2".into());
    let request = world.request(A, B, 1);
    let message = ToKeyserver::FromTerminal {
        subscriber: A,
        datagram: Datagram {
            source: SocketAddr::new(address(A), 500),
            destination: SocketAddr::new(address(B), 500),
            payload: request,
        },
    };
    world.keyserver.handle_gateway_of(world.now, &elsewhere, message);
    let (gateway, event) = world.keyserver.poll_gateway_of().unwrap();
    assert!(matches!(event, FromKeyserver::Event(_)));
    assert_eq!(gateway, Some(NodeName::default()));
    // Of a terminal that is not here only the asking gateway is known.
    let stranger = ToKeyserver::FromTerminal {
        subscriber: SubscriberHandle(77),
        datagram: Datagram {
            source: SocketAddr::new(address(A), 500),
            destination: SocketAddr::new(address(B), 500),
            payload: vec![1; 64],
        },
    };
    world.keyserver.handle_gateway_of(world.now, &elsewhere, stranger);
    let of_stranger = std::iter::from_fn(|| world.keyserver.poll_gateway_of())
        .find(|(_, message)| matches!(message, FromKeyserver::Refused(_)));
    assert_eq!(of_stranger.unwrap().0, Some(elsewhere));
    // Whoever is registered no more has no session here when the registry is reached again.
    let registered = FromRegistry::Registered { subscribers: vec![B] };
    world.keyserver.handle_registry(world.now, registered);
    assert!(world.keyserver.addresses_of(&format!("terminal-{A}")).is_empty());
    assert!(!world.keyserver.addresses_of(&format!("terminal-{B}")).is_empty());
}
