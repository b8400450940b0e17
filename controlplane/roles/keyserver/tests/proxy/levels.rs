//! Connections of another sensitivity level (spec row T21).

use std::time::Duration;

use towpath_base::Spi;
use towpath_base::sa::Class;
use towpath_keyserver::Config;
use towpath_keyx::message::{FromTerminal, ProxyRequest, RefuseReason};

use crate::world::{A, B, World};

/// A request for a connection of the terminal's port 40000 + `port`, at a level where every one has its own SA.
fn ask_for_connection(world: &mut World, request_id: u32, port: u16, replaces: Option<Spi>) {
    let request = ProxyRequest {
        request_id,
        terminal: world.at(A),
        peer: world.at(B),
        protocol: if replaces.is_some() { 0 } else { 6 },
        terminal_port: if replaces.is_some() { 0 } else { 40000 + port },
        peer_port: if replaces.is_some() { 0 } else { 443 },
        replaces,
        level: 5,
    };
    let sealed = world.seal(A, &FromTerminal::ProxyRequest(request));
    world.deliver(A, B, sealed);
}

#[test]
fn a_connection_of_another_level_has_an_sa_of_its_own_beside_the_one_for_everything() {
    let mut world = World::new();
    world.ask(A, B, 1);
    ask_for_connection(&mut world, 2, 1, None);
    ask_for_connection(&mut world, 3, 2, None);
    // Asked again while it is there: it was lost, and the others stay.
    ask_for_connection(&mut world, 4, 2, None);
    // Longer than it takes to find one of two IKE SAs redundant.
    world.pass(Duration::from_secs(60));
    let sas = &world.terminals[&A].installed;
    let ports: Vec<_> = sas
        .iter()
        .map(|sa| {
            let (local, remote) = (sa.local_ts.iter().next(), sa.remote_ts.iter().next());
            let (local, remote) = (local.unwrap(), remote.unwrap());
            (
                (local.protocol, local.first_port, local.last_port),
                (remote.first_port, remote.last_port),
            )
        })
        .collect();
    assert_eq!(
        ports,
        [
            ((0, 0, 65535), (0, 65535)),
            ((6, 40001, 40001), (443, 443)),
            ((6, 40002, 40002), (443, 443)),
        ]
    );
    let (wide, narrow) = (sas[0].clone(), sas[1].clone());
    let at_gateway = |spi_in| {
        let found = world
            .gateway
            .iter()
            .find(|sa| sa.subscriber == A && sa.spi_in == spi_in);
        found.map(|sa| (sa.level, sa.class())).unwrap()
    };
    assert_eq!(at_gateway(wide.spi_in), (Some(0), Class::Full));
    assert_eq!(at_gateway(narrow.spi_in), (Some(5), Class::None));
    assert!(world.terminals[&A].refused.is_empty());
    assert_eq!(world.drops, []);

    // One that is used is replaced when the terminal says so, one that is not ends; the rest goes on.
    let limits = Config::default().connection;
    assert_eq!(narrow.lifetime.soft_seconds, limits.soft_seconds);
    world.pass(Duration::from_secs(u64::from(limits.soft_seconds) - 60));
    ask_for_connection(&mut world, 5, 1, Some(narrow.spi_in));
    world.pass(Duration::from_secs(
        u64::from(limits.hard_seconds - limits.soft_seconds) + 60,
    ));
    let sas = &world.terminals[&A].installed;
    let left: Vec<_> = sas
        .iter()
        .filter_map(|sa| Some(sa.local_ts.iter().next()?.first_port))
        .collect();
    assert_eq!(left, [0, 40001]);
    assert_ne!(sas[1].spi_in, narrow.spi_in);
}

#[test]
fn a_request_of_another_level_that_names_no_connection_is_refused() {
    let mut world = World::new();
    ask_for_connection(&mut world, 1, 1, Some(Spi(77)));
    assert_eq!(world.terminals[&A].refused, [RefuseReason::NoPolicy]);
    assert!(world.gateway.is_empty());
}
