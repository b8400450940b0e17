//! Every exchange survives the loss of any one of its messages, and of any two; and every message of it coming twice.

use std::time::Duration;

use towpath_ike::{Config, IkeState};

use crate::world::*;

/// One kind of exchange.
struct Kind {
    name: &'static str,
    config: fn() -> Config,
    /// With ML-KEM-768 after every key exchange.
    hybrid: bool,
    /// Whether there is an SA before.
    established: bool,
    act: fn(&mut World),
    /// SAs that each end has afterwards.
    left: usize,
}

/// Rekeyings make a second key exchange.
fn fresh() -> Config {
    Config { pfs: true, ..quiet() }
}

fn mobile() -> Config {
    Config {
        mobike: true,
        ..quiet()
    }
}

fn wary() -> Config {
    Config {
        cookie_threshold: 0,
        ..quiet()
    }
}

fn watchful() -> Config {
    Config {
        dpd_after: Some(Duration::from_secs(60)),
        ..quiet()
    }
}

fn start(world: &mut World) {
    world.initiate(1, v4(1), v4(2)).unwrap();
}

fn at(world: &mut World, end: usize, ask: impl Fn(&mut End, towpath_base::Instant, towpath_ike::IkeSaId)) {
    let ike = ike_of(&world.ends[end], world.now);
    let now = world.now;
    ask(&mut world.ends[end], now, ike);
    world.collect(end);
}

fn rekey_child(world: &mut World, end: usize) {
    let spi_in = world.only_children()[end].spi_in;
    at(world, end, |end, now, ike| {
        end.endpoint.rekey_child(now, ike, spi_in).unwrap();
    });
}

fn rekey_ike(world: &mut World, end: usize) {
    at(world, end, |end, now, ike| {
        end.endpoint.rekey_ike(now, ike).unwrap()
    });
}

fn delete(world: &mut World, end: usize) {
    at(world, end, |end, now, ike| {
        end.endpoint.delete_ike(now, ike).unwrap()
    });
}

fn rekey_child_by_both(world: &mut World) {
    let spis = world.only_children().map(|child| child.spi_in);
    for (end, spi_in) in spis.into_iter().enumerate() {
        at(world, end, |end, now, ike| {
            end.endpoint.rekey_child(now, ike, spi_in).unwrap();
        });
    }
}

const KINDS: [Kind; 16] = [
    // --> IKE_SA_INIT { SA, KEi, Ni }, <-- { SA, KEr, Nr }
    // --> IKE_AUTH { IDi, AUTH, SA, TSi, TSr }, <-- { IDr, AUTH, SA, TSi, TSr }
    Kind {
        name: "set-up",
        config: quiet,
        hybrid: false,
        established: false,
        act: start,
        left: 1,
    },
    // --> IKE_SA_INIT { SA, KEi, Ni }, <-- { N(COOKIE) }, --> { N(COOKIE), SA, KEi, Ni }, and as above
    Kind {
        name: "set-up with a cookie",
        config: wary,
        hybrid: false,
        established: false,
        act: start,
        left: 1,
    },
    // --> CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }, <-- { SA, Nr, KEr, TSi, TSr }
    // --> INFORMATIONAL { D }, <-- { D }
    Kind {
        name: "CHILD SA rekeyed by A",
        config: quiet,
        hybrid: false,
        established: true,
        act: |world| rekey_child(world, 0),
        left: 1,
    },
    Kind {
        name: "CHILD SA rekeyed by B",
        config: quiet,
        hybrid: false,
        established: true,
        act: |world| rekey_child(world, 1),
        left: 1,
    },
    // --> CREATE_CHILD_SA { SA, Ni, KEi }, <-- { SA, Nr, KEr }
    // --> INFORMATIONAL { D }, <-- { }
    Kind {
        name: "IKE SA rekeyed by A",
        config: quiet,
        hybrid: false,
        established: true,
        act: |world| rekey_ike(world, 0),
        left: 1,
    },
    Kind {
        name: "IKE SA rekeyed by B",
        config: quiet,
        hybrid: false,
        established: true,
        act: |world| rekey_ike(world, 1),
        left: 1,
    },
    // Both of the above from both sides: RFC 7296 §2.25.
    Kind {
        name: "CHILD SA rekeyed by both",
        config: quiet,
        hybrid: false,
        established: true,
        act: rekey_child_by_both,
        left: 1,
    },
    Kind {
        name: "IKE SA rekeyed by both",
        config: quiet,
        hybrid: false,
        established: true,
        act: |world| {
            rekey_ike(world, 0);
            rekey_ike(world, 1);
        },
        left: 1,
    },
    // --> INFORMATIONAL { D }, <-- { }
    Kind {
        name: "deleted by B",
        config: quiet,
        hybrid: false,
        established: true,
        act: |world| delete(world, 1),
        left: 0,
    },
    // --> INFORMATIONAL { }, <-- { }
    Kind {
        name: "asked whether it lives",
        config: watchful,
        hybrid: false,
        established: true,
        act: |_| (),
        left: 1,
    },
    // --> INFORMATIONAL { N(UPDATE_SA_ADDRESSES), N(NATD), N(COOKIE2) }, <-- { N(NATD), N(COOKIE2) }
    // <-- INFORMATIONAL { N(COOKIE2) }, --> { N(COOKIE2) }
    Kind {
        name: "moved",
        config: mobile,
        hybrid: false,
        established: true,
        act: |world| {
            let [to, remote] = [v4(3), v4(2)].map(|ip| std::net::SocketAddr::new(ip, 4500));
            at(world, 0, |end, now, ike| {
                end.endpoint.readdress_ike(now, ike, to, remote).unwrap();
            });
        },
        left: 1,
    },
    // A set-up as above beside the old one, then INFORMATIONAL { D } on that.
    Kind {
        name: "authenticated anew",
        config: quiet,
        hybrid: false,
        established: true,
        act: |world| {
            at(world, 0, |end, now, ike| {
                end.endpoint.reauthenticate(now, ike).unwrap();
            });
        },
        left: 1,
    },
    // --> CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }, <-- { SA, Nr, KEr, TSi, TSr, N(ADD_KE) }
    // --> IKE_FOLLOWUP_KE { KEi(1), N(ADD_KE) }, <-- { KEr(1) }
    // --> INFORMATIONAL { D }, <-- { D }
    Kind {
        name: "CHILD SA rekeyed by A with ML-KEM",
        config: fresh,
        hybrid: true,
        established: true,
        act: |world| rekey_child(world, 0),
        left: 1,
    },
    // --> CREATE_CHILD_SA { SA, Ni, KEi }, <-- { SA, Nr, KEr, N(ADD_KE) }
    // --> IKE_FOLLOWUP_KE { KEi(1), N(ADD_KE) }, <-- { KEr(1) }
    // --> INFORMATIONAL { D }, <-- { }
    Kind {
        name: "IKE SA rekeyed by B with ML-KEM",
        config: fresh,
        hybrid: true,
        established: true,
        act: |world| rekey_ike(world, 1),
        left: 1,
    },
    // Both of the above from both sides: RFC 9370 §2.2.4.
    Kind {
        name: "CHILD SA rekeyed by both with ML-KEM",
        config: fresh,
        hybrid: true,
        established: true,
        act: rekey_child_by_both,
        left: 1,
    },
    Kind {
        name: "IKE SA rekeyed by both with ML-KEM",
        config: fresh,
        hybrid: true,
        established: true,
        act: |world| {
            rekey_ike(world, 0);
            rekey_ike(world, 1);
        },
        left: 1,
    },
];

fn world(kind: &Kind) -> World {
    let mut world = World::new(7);
    let policy = if kind.hybrid { hybrid() } else { policy() };
    world.add((kind.config)(), Some(policy.clone()), &[v4(1), v4(3)]);
    world.add((kind.config)(), Some(policy), &[v4(2)]);
    if kind.established {
        start(&mut world);
        world.run_for(Duration::from_secs(1));
        world.only_children();
    }
    world
}

/// Long enough for every retransmission, and for one question after a minute of silence.
fn carry_out(world: &mut World, kind: &Kind) {
    (kind.act)(world);
    world.run_for(Duration::from_secs(100));
}

fn judge(world: &World, kind: &Kind, what: &str) {
    let name = kind.name;
    for end in &world.ends {
        let ikes = end.endpoint.list(world.now);
        let ikes = ikes.filter(|info| info.state == IkeState::Established).count();
        let seen = (end.children.len(), ikes);
        assert_eq!(seen, (kind.left, kind.left), "{name}, {what}: {:#?}", world.trace);
        assert_eq!(failures(end), [], "{name}, {what}");
    }
    world.assert_mirrored();
}

#[test]
fn no_single_or_double_loss_leaves_half_an_exchange() {
    for kind in &KINDS {
        let mut fair = world(kind);
        let before = fair.sent.len();
        carry_out(&mut fair, kind);
        judge(&fair, kind, "in fair weather");
        let messages = fair.sent.len() - before;
        assert!(messages >= 2, "{}: {messages} messages", kind.name);
        // The second loss hits what is sent instead, or what follows.
        for first in 0..messages {
            for second in first..=messages {
                let mut world = world(kind);
                let mut number = 0;
                world.filter = Some(Box::new(move |_: &towpath_ike::Transmit| {
                    number += 1;
                    number - 1 != first && number - 1 != second
                }));
                carry_out(&mut world, kind);
                judge(&world, kind, &format!("{first} and {second} of {messages} lost"));
            }
        }
    }
}

#[test]
fn every_message_may_come_twice_and_late() {
    for kind in &KINDS {
        for jitter in [0, 30, 300] {
            let mut world = world(kind);
            world.weather = Weather {
                loss: 0,
                copies: 1000,
                jitter: Duration::from_millis(jitter),
            };
            carry_out(&mut world, kind);
            judge(&world, kind, &format!("doubled, up to {jitter} ms late"));
        }
    }
}
