//! Floods of IKE messages leave the process as large as it was. In a program of their own, one after the other: the
//! measure is the resident memory of the whole process.

#[path = "../exchanges/world.rs"]
#[allow(dead_code, reason = "shared with the exchanges, which use all of it")]
mod world;

use std::fs;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use towpath_base::Instant;
use towpath_base::profile::Psk;
use towpath_base::testutil::SeededRng;
use towpath_crypto::IkeCrypto;
use towpath_ike::{BudgetId, Config, Endpoint, Initiate, Transmit};

use crate::world::*;

const NOW: Instant = Instant::from_secs(1);
/// KiB a process may grow without anybody having leaked: an allocator's arenas.
const SLACK: i64 = 2048;

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resident memory of this process in KiB.
fn resident() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn endpoint(seed: u64, config: Config) -> Endpoint<IkeCrypto, SeededRng> {
    Endpoint::new(config, IkeCrypto, SeededRng::new(seed))
}

fn first_request(seed: u64) -> Transmit {
    let mut initiator = endpoint(seed, quiet());
    initiator
        .initiate(
            NOW,
            Initiate {
                tag: 1,
                local: v4(1),
                remote: v4(2),
                remote_port: None,
                policy: policy(),
            },
        )
        .unwrap();
    initiator.poll_transmit().unwrap()
}

/// Takes what an endpoint has to say, and says no to whoever asks.
fn drain(endpoint: &mut Endpoint<IkeCrypto, SeededRng>) -> Vec<Transmit> {
    while let Some(command) = endpoint.poll_command() {
        drop(command);
    }
    std::iter::from_fn(|| endpoint.poll_transmit()).collect()
}

#[test]
fn a_hundred_thousand_spoofed_requests_cost_no_memory_and_lock_nobody_out() {
    let _turn = alone();
    let mut world = World::pair(1, policy(), policy());
    let template = first_request(77);
    let mut rng = SeededRng::new(5);
    let mut spoofed = || {
        let mut request = template.clone();
        request.source = SocketAddr::new((rng.next_u64() as u32 | 1 << 24).to_be_bytes().into(), 500);
        request.payload[..8].copy_from_slice(&rng.next_u64().to_be_bytes());
        request
    };
    let mut flood = |world: &mut World, count: u32| {
        for _ in 0..count {
            let Transmit {
                source,
                destination,
                payload,
            } = spoofed();
            let endpoint = &mut world.ends[1].endpoint;
            // Dropped or answered with a cookie: nothing else is to be had.
            let _ = endpoint.handle_datagram(world.now, source, destination, &payload);
            drain(endpoint);
        }
    };
    flood(&mut world, 5_000);
    let before = resident();
    flood(&mut world, 95_000);
    let grown = resident() - before;
    assert!(grown < SLACK, "{grown} KiB");
    let half_open = world.ends[1].endpoint.list(world.now).count();
    assert!(half_open <= Config::default().cookie_threshold, "{half_open}");
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.run_for(Duration::from_secs(5));
    let [a, b] = world.only_children();
    assert_mirror(&a, &b);
}

#[test]
fn a_million_malformed_messages_cost_no_memory() {
    let _turn = alone();
    let mut world = World::pair(1, policy(), policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    let recorded = world.sent.clone();
    let before_children = world.only_children();
    let mut rng = SeededRng::new(9);
    let mut flood = |world: &mut World, count: u32| {
        for _ in 0..count {
            let mut message = recorded[rng.below(recorded.len() as u64) as usize].clone();
            let at = rng.below(message.payload.len() as u64) as usize;
            match rng.below(4) {
                0 => message.payload.truncate(at),
                1 => message.payload[at] ^= 1 << rng.below(8),
                2 => message.payload.extend_from_slice(&[0xaa; 7]),
                _ => message.payload[..].rotate_left(at),
            }
            let end = usize::from(message.destination.ip() == v4(2));
            let endpoint = &mut world.ends[end].endpoint;
            let _ =
                endpoint.handle_datagram(world.now, message.source, message.destination, &message.payload);
            drain(endpoint);
        }
    };
    flood(&mut world, 20_000);
    let before = resident();
    flood(&mut world, 980_000);
    let grown = resident() - before;
    assert!(grown < SLACK, "{grown} KiB");
    assert_eq!(world.only_children(), before_children, "nothing was changed");
}

#[test]
fn ten_thousand_failed_authentications_leave_nothing_behind() {
    let _turn = alone();
    let mut wrong = policy();
    wrong.psk = Psk::new(b"guess".to_vec());
    let mut world = World::pair(1, wrong, policy());
    let attempt = |world: &mut World, tag| {
        world.initiate(tag, v4(1), v4(2)).unwrap();
        // Failed ones count against the source for their time.
        world.run_for(Duration::from_secs(40));
        for end in &mut world.ends {
            end.commands.clear();
            end.drops.clear();
        }
        world.trace.clear();
        world.sent.clear();
    };
    for tag in 0..200 {
        attempt(&mut world, tag);
    }
    let before = resident();
    for tag in 200..10_000 {
        attempt(&mut world, tag);
    }
    let grown = resident() - before;
    assert!(grown < SLACK, "{grown} KiB");
    for end in &world.ends {
        assert_eq!(end.endpoint.list(world.now).count(), 0);
        assert_eq!(end.endpoint.poll_timeout(), None, "no timer is left");
        assert_eq!(end.endpoint.used(BudgetId::default()), 0);
    }
    // And nobody is locked out.
    world.ends[0].policy = Some(policy());
    world.initiate(1, v4(1), v4(2)).unwrap();
    world.rest();
    world.only_children();
}
