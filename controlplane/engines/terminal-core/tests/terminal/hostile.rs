//! What is forged, altered or comes at a bad time.

use std::time::Duration;

use crate::common::*;
use towpath_base::sa::{EspSuite, Mode};
use towpath_base::testutil::SeededRng;
use towpath_base::{DropReason, Instant};
use towpath_keyx::{NetworkSession, SessionKeys};
use towpath_terminal_core::{Command, Disposition, Transmit};

#[test]
fn forged_replayed_and_foreign_messages_change_nothing_and_are_counted() {
    let mut world = World::new(3);
    world.settle();
    world.application(&udp(here(false), peer(false), b"x"));
    world.settle();
    let sas: Vec<_> = world.terminal.sas().collect();
    let from = "10.77.1.1".parse().unwrap();
    let keys = SessionKeys::derive(&ksub(), HANDLE, &[1; 32], &[2; 32]);
    let mut stranger = NetworkSession::new(HANDLE, &keys);
    let delete = towpath_keyx::ToTerminal::KeyTransfer(towpath_keyx::message::KeyTransfer {
        transfer_id: 77,
        request_id: None,
        operation: towpath_keyx::message::Operation::Delete(sas[0].name),
    });
    let mut forged = Vec::new();
    // Counters beyond those the terminal has seen, so that the seal and not the window refuses them.
    for _ in 0..20 {
        forged = stranger.seal(&delete).unwrap().as_bytes().to_vec();
    }
    world
        .terminal
        .handle_datagram(world.now, from, &towpath_keyx::frame::wrap(RESERVED, &forged));
    assert_eq!(world.terminal.drops(DropReason::KeyxForged), 1);
    let genuine = world
        .net
        .session
        .as_mut()
        .unwrap()
        .seal(&towpath_keyx::ToTerminal::ProxyReply(
            towpath_keyx::message::ProxyReply {
                request_id: 9,
                outcome: towpath_keyx::message::Outcome::Accepted,
            },
        ));
    let genuine = towpath_keyx::frame::wrap(RESERVED, genuine.unwrap().as_bytes());
    world.terminal.handle_datagram(world.now, from, &genuine);
    world.terminal.handle_datagram(world.now, from, &genuine);
    assert_eq!(world.terminal.drops(DropReason::KeyxReplayed), 1);
    for len in 0..genuine.len() {
        world.terminal.handle_datagram(world.now, from, &genuine[..len]);
    }
    let counted =
        [DropReason::KeyxMalformed, DropReason::IkeUnexpected].map(|reason| world.terminal.drops(reason));
    assert_eq!(counted.iter().sum::<u32>() as usize, genuine.len());
    assert_eq!(world.terminal.sas().collect::<Vec<_>>(), sas);
}

#[test]
fn every_deadline_passes_once_handled() {
    let mut world = World::new(3);
    world.net.answer = Answer::Silence;
    world.application(&udp(here(false), peer(false), b"x"));
    let mut last = Instant::ZERO;
    for _ in 0..200 {
        world.settle();
        let Some((at, timer)) = world.terminal.poll_timeout() else {
            break;
        };
        assert!(at >= last && at >= world.now, "{timer:?} stays");
        last = at;
        world.now = at;
        world.terminal.handle_timeout(at);
    }
    assert!(world.now > Instant::ZERO + Duration::from_secs(60));
    let mut buffer = [0; 2048];
    while let Some(command) = world.terminal.poll_command() {
        assert!(matches!(command, Command::Tell(_)));
    }
    if let Some(Transmit::Packet(_)) =
        world
            .terminal
            .poll_transmit(world.now, &mut buffer, &mut SeededRng::new(1))
    {
        panic!("no packet without an SA");
    }
}

#[test]
fn altered_packets_and_messages_never_panic_and_never_open() {
    for seed in 0..6 {
        let mut world = World::new(seed);
        world.net.suite = EspSuite::ALL[seed as usize % EspSuite::ALL.len()];
        world.net.mode = if seed % 2 == 0 {
            Mode::Transport
        } else {
            Mode::Tunnel
        };
        world.net.encap = seed % 3 == 0;
        world.settle();
        world.application(&udp(here(false), peer(false), b"x"));
        world.settle();
        let sealed = world.net.seal(&udp(peer(false), here(false), &[7; 100]));
        let message = towpath_keyx::ToTerminal::ProxyReply(towpath_keyx::message::ProxyReply {
            request_id: 1,
            outcome: towpath_keyx::message::Outcome::Accepted,
        });
        let message = world.net.session.as_mut().unwrap().seal(&message).unwrap();
        let message = towpath_keyx::frame::wrap(RESERVED, message.as_bytes());
        let plain = udp(here(false), peer(false), &[7; 100]);
        let mut rng = SeededRng::new(seed);
        for _ in 0..3000 {
            let mut bytes = match rng.below(3) {
                0 => sealed.clone(),
                1 => plain.clone(),
                _ => message.clone(),
            };
            let original = bytes.clone();
            for _ in 0..=rng.below(3) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= rng.below(256) as u8;
            }
            bytes.truncate(rng.below(2 * bytes.len() as u64) as usize);
            if bytes == original {
                continue;
            }
            world.terminal.handle_datagram(world.now, here(false), &bytes);
            Buffer::new(&bytes).with(|p| world.terminal.handle_plain(world.now, p, &mut rng));
            let mut buffer = Buffer::new(&bytes);
            if buffer.with(|p| world.terminal.handle_network(world.now, p)) == Disposition::Deliver {
                // Only what policy lets in unprotected, or what was altered outside ESP's protection.
                let flow = towpath_ipsec::Flow::of(buffer.packet()).unwrap();
                let genuine = flow.source == peer(false) && buffer.packet().ends_with(&[7; 100]);
                assert!(flow.source != peer(false) || genuine, "seed {seed}");
            }
            world.settle();
            world.run_for(1);
        }
        let malformed =
            world.terminal.drops(DropReason::KeyxMalformed) + world.terminal.drops(DropReason::KeyxForged);
        assert!(malformed > 0 && world.terminal.drops(DropReason::EspAuthFailed) > 0);
    }
}
