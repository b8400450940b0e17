//! The engine against an unmodified strongSwan, over real sockets.
//!
//! ```text
//!   namespace ike-a                         namespace ike-b
//!   our endpoint                            charon, ESP in user space (kernel-libipsec)
//!   192.0.2.1, 2001:db8::1 ── v0 ═══ v0 ── 192.0.2.2, 2001:db8::2
//! ```

mod certificates;
mod lab;

use std::net::SocketAddr;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant as Clock};

use lab::{Case, Lab, Station, assert_same_keys};
use towpath_base::Instant;
use towpath_base::sa::{ChildSa, EspSuite, Mode};
use towpath_ike::{Command, FailReason};

/// Starts the exchange from one side.
fn start(lab: &Lab, case: &Case) -> Station {
    let mut station = Station::new(case.policy());
    if case.we_initiate {
        let now = station.now();
        station.endpoint.initiate(now, case.wish()).unwrap();
    } else {
        lab.start("--initiate --child c --timeout 8");
    }
    station
}

fn run(lab: &Lab, case: &Case, number: usize) {
    lab.load(case, "swordfish");
    let mut station = start(lab, case);
    station.run_until(lab, "established", |station| !station.children.is_empty());
    let list = lab.ask("--list-sas");
    for expected in [
        "ESTABLISHED",
        "INSTALLED",
        "'a.test'",
        &format!("@ {}", case.addresses()[0]),
    ] {
        assert!(list.contains(expected), "{expected}: {list}");
    }
    let child = station.only_child();
    assert_eq!((child.suite, child.mode), (case.suite, Mode::Tunnel));
    assert!(child.encap.is_some());
    assert_same_keys(lab, &child);

    let replaced = |old: &ChildSa| {
        let old = old.spi_in;
        move |station: &Station| station.children.len() == 1 && !station.children.contains_key(&old)
    };
    // charon rekeys the CHILD SA, then we.
    drop(
        lab.swanctl("--rekey --child c")
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    station.run_until(lab, "child rekeyed by charon", replaced(&child));
    let child = station.only_child();
    assert_same_keys(lab, &child);
    let now = station.now();
    let ike = station.endpoint.list(now).next().unwrap().id;
    station.endpoint.rekey_child(now, ike, child.spi_in).unwrap();
    station.run_until(lab, "child rekeyed by us", replaced(&child));
    let child = station.only_child();
    assert_same_keys(lab, &child);

    // charon rekeys the IKE SA, then we; the CHILD SA moves along.
    let renamed = |count| {
        move |station: &Station| {
            let moved = station
                .commands
                .iter()
                .filter(|command| matches!(command, Command::IkeRekeyed { .. }));
            moved.count() == count
        }
    };
    drop(
        lab.swanctl("--rekey --ike t")
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    station.run_until(lab, "IKE SA rekeyed by charon", renamed(1));
    let now = station.now();
    let ike = ike_of(&station, now);
    station.endpoint.rekey_ike(now, ike).unwrap();
    station.run_until(lab, "IKE SA rekeyed by us", renamed(2));
    assert_eq!(station.only_child(), child);
    assert_eq!(lab.ask("--list-sas").matches("ESTABLISHED").count(), 1);

    // Deleted from either side.
    if number.is_multiple_of(2) {
        drop(
            lab.swanctl("--terminate --ike t")
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
    } else {
        let now = station.now();
        let ike = ike_of(&station, now);
        station.endpoint.delete_ike(now, ike).unwrap();
    }
    station.run_until(lab, "deleted", |station| station.children.is_empty());
    assert_eq!(lab.ask("--list-sas"), "");
}

fn ike_of(station: &Station, now: Instant) -> towpath_ike::IkeSaId {
    let mut list = station.endpoint.list(now);
    list.find(|sa| sa.state == towpath_ike::IkeState::Established)
        .unwrap()
        .id
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_agrees_in_both_roles_families_and_all_suites() {
    let lab = Lab::up("all");
    lab.enter();
    let suites = [
        (
            "aes256gcm16-prfsha256-x25519",
            "aes256gcm16",
            EspSuite::Aes256Gcm16,
        ),
        ("aes128-sha256-ecp256", "aes128-sha256", EspSuite::Aes128CbcSha256),
        (
            "aes256-sha512-modp2048",
            "aes256-sha256",
            EspSuite::Aes256CbcSha256,
        ),
        (
            "aes128gcm16-prfsha384-ecp256",
            "aes128gcm16",
            EspSuite::Aes128Gcm16,
        ),
    ];
    let mut number = 0;
    for (ike, esp, suite) in suites {
        for v6 in [false, true] {
            for we_initiate in [true, false] {
                let case = Case {
                    ike,
                    esp,
                    suite,
                    v6,
                    we_initiate,
                };
                run(&lab, &case, number);
                println!("{ike} {esp} v6={v6} we_initiate={we_initiate}: agreed");
                number += 1;
            }
        }
    }
}

fn plain_case(we_initiate: bool) -> Case {
    Case {
        ike: "aes256gcm16-prfsha256-x25519",
        esp: "aes256gcm16",
        suite: EspSuite::Aes256Gcm16,
        v6: false,
        we_initiate,
    }
}

/// The exchange ends without SA on either side.
fn assert_fails(lab: &Lab, case: &Case, expected: FailReason) {
    let mut station = start(lab, case);
    let failed = |command: &Command| matches!(command, Command::Failed { reason, .. } if *reason == expected);
    station.run_until(lab, "failed", |station| station.commands.iter().any(failed));
    assert!(station.children.is_empty());
    assert_eq!(lab.ask("--list-sas"), "");
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_and_we_refuse_each_other_cleanly() {
    let lab = Lab::up("no");
    lab.enter();
    lab.load(&plain_case(true), "catfish");
    assert_fails(&lab, &plain_case(true), FailReason::AuthenticationRefused);
    assert_fails(&lab, &plain_case(false), FailReason::AuthenticationFailed);
    let other = Case {
        ike: "aes128-sha256-modp2048",
        ..plain_case(true)
    };
    lab.load(&other, "swordfish");
    assert_fails(&lab, &plain_case(true), FailReason::NoProposalChosen);
    assert_fails(&lab, &plain_case(false), FailReason::NoProposalChosen);
    let other = Case {
        esp: "aes128-sha256",
        ..plain_case(true)
    };
    lab.load(&other, "swordfish");
    assert_fails(&lab, &plain_case(true), FailReason::NoProposalChosen);
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_and_we_find_the_common_group() {
    let lab = Lab::up("ke");
    lab.enter();
    let both = "aes256gcm16-prfsha256-x25519-ecp256";
    let one = "aes256gcm16-prfsha256-ecp256";
    for (ours, theirs, we_initiate) in [(both, one, true), (one, both, false)] {
        let case = |ike| Case {
            ike,
            ..plain_case(we_initiate)
        };
        lab.load(&case(theirs), "swordfish");
        let mut station = start(&lab, &case(ours));
        station.run_until(&lab, "established", |station| !station.children.is_empty());
        assert_same_keys(&lab, &station.only_child());
        assert!(
            station.trace.iter().any(|line| line.contains("N(INVAL_KE)")),
            "{:?}",
            station.trace
        );
        let now = station.now();
        let ike = ike_of(&station, now);
        station.endpoint.delete_ike(now, ike).unwrap();
        station.run_until(&lab, "deleted", |station| {
            station.endpoint.list(station.now()).count() == 0
        });
    }
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn simultaneous_starts_with_charon_end_with_one_sa() {
    let lab = Lab::up("two");
    lab.enter();
    let case = plain_case(true);
    lab.load(&case, "swordfish");
    let mut crossed = 0;
    for delay in [0, 8, 16, 24, 32] {
        let mut station = Station::new(case.policy());
        lab.start("--initiate --child c --timeout 8");
        let begin = Clock::now();
        while begin.elapsed() < Duration::from_millis(delay) {
            station.turn();
        }
        let now = station.now();
        let _ = station.endpoint.initiate(now, case.wish());
        // Long enough for charon's retransmissions and our Delete.
        let begin = Clock::now();
        while begin.elapsed() < Duration::from_secs(6) {
            station.turn();
            sleep(Duration::from_millis(1));
        }
        let list = lab.ask("--list-sas");
        let count = |word: &str| list.matches(word).count();
        assert_eq!(
            (count("ESTABLISHED"), count("INSTALLED")),
            (1, 1),
            "{list}\n{:#?}",
            station.trace
        );
        let child = station.only_child();
        assert!(
            list.contains(&format!("{:08x}", child.spi_in.0)),
            "{list}\n{child:?}"
        );
        let answered = station.commands.iter().filter(|command| {
            matches!(
                command,
                Command::ChildEstablished { tag: Some(1), .. } | Command::Failed { tag: Some(1), .. }
            )
        });
        assert_eq!(answered.count(), 1, "{:#?}", station.commands);
        let inits = |arrow| {
            station
                .trace
                .iter()
                .any(|line| line.starts_with(&format!("{arrow} IKE_SA_INIT request")))
        };
        crossed += usize::from(inits("<--") && inits("-->"));
        let now = station.now();
        let ike = ike_of(&station, now);
        station.endpoint.delete_ike(now, ike).unwrap();
        station.run_until(&lab, "deleted", |station| station.children.is_empty());
        // An attempt of ours that yielded leaves charon a half-open IKE SA, which it forgets by itself.
        let list = lab.ask("--list-sas");
        assert!(
            !list.contains("ESTABLISHED") && !list.contains("INSTALLED"),
            "{list}"
        );
    }
    println!("{crossed} of 5 starts crossed");
    assert!(crossed > 0);
}

/// MOBIKE (RFC 4555). Who started the IKE SA moves, and the other follows with the CHILD SA there is; rekeyings work from
/// there.
///
/// ```text
/// --> INFORMATIONAL { N(UPD_SA_ADDR) N(NATD_S_IP) N(NATD_D_IP) N(COOKIE2) }   (from the new address)
/// <-- INFORMATIONAL { N(NATD_S_IP) N(NATD_D_IP) N(COOKIE2) }
/// ```
#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_follows_us_and_we_follow_charon() {
    let lab = Lab::up("mob");
    lab.enter();
    for (v6, we_initiate) in [(false, true), (false, false), (true, true), (true, false)] {
        let case = Case {
            v6,
            ..plain_case(we_initiate)
        };
        let [ours, theirs] = case.addresses();
        let [we_go_to, charon_goes_to] = if v6 {
            ["2001:db8::3", "2001:db8::4"]
        } else {
            ["192.0.2.3", "192.0.2.4"]
        };
        if we_initiate {
            lab.add_address(0, we_go_to);
        }
        lab.load_with(&case, "swordfish", "mobike = yes");
        let mut station = Station::at(case.policy(), &[ours, we_go_to], true);
        let now = station.now();
        if we_initiate {
            station.endpoint.initiate(now, case.wish()).unwrap();
        } else {
            lab.start("--initiate --child c --timeout 8");
        }
        station.run_until(&lab, "established", |station| !station.children.is_empty());
        let moved = |to: &'static str| {
            move |station: &Station| {
                let is = |command: &Command| match command {
                    Command::AddressesChanged { local, remote, .. } => {
                        [local, remote].iter().any(|end| end.ip().to_string() == to)
                    }
                    _ => false,
                };
                station.commands.iter().any(is)
            }
        };
        let now = station.now();
        let ike = ike_of(&station, now);
        if we_initiate {
            let ends = [we_go_to, theirs].map(|end| SocketAddr::new(end.parse().unwrap(), 4500));
            station
                .endpoint
                .readdress_ike(now, ike, ends[0], ends[1])
                .unwrap();
            station.run_until(&lab, "charon answers", |station| {
                let answer = |line: &String| line.starts_with("<-- INFORMATIONAL response");
                station.trace.iter().any(answer)
            });
            let list = lab.ask("--list-sas");
            assert!(list.contains(&format!("@ {we_go_to}[4500]")), "{list}");
        } else {
            lab.add_address(1, charon_goes_to);
            lab.remove_address(1, theirs);
            station.run_until(&lab, "charon moves", moved(charon_goes_to));
            let list = lab.ask("--list-sas");
            assert!(list.contains(&format!("@ {charon_goes_to}[4500]")), "{list}");
        }
        // charon's ESP in user space cannot move an SA: charon replaces it by itself, sooner or later.
        let child = station.only_child();
        assert_same_keys(&lab, &child);
        let now = station.now();
        station.endpoint.rekey_child(now, ike, child.spi_in).unwrap();
        station.run_until(&lab, "rekeyed", |station| {
            station.children.len() == 1 && !station.children.contains_key(&child.spi_in)
        });
        assert_same_keys(&lab, &station.only_child());
        let now = station.now();
        station.endpoint.delete_ike(now, ike).unwrap();
        station.run_until(&lab, "deleted", |station| station.children.is_empty());
        assert_eq!(lab.ask("--list-sas"), "");
    }
}
