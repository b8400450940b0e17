use towpath_base::packet::PacketBuf;
use towpath_base::policy::PolicySelector;
use towpath_base::sa::{EspKeys, EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::{DropReason, Instant, SecretKey};
use towpath_ipsec::Used;
use towpath_ipsec::soft::SoftEsp;
use towpath_store::{Kek, RedbStore};

use super::*;
use crate::datapath::{Arrival, Datapath, Disposition, Notice, Tap, TapPoint};

fn store() -> RedbStore {
    RedbStore::in_memory(&Kek::new(SecretKey::new([7; 32]))).unwrap()
}

fn open(store: &RedbStore) -> Stored {
    Stored::open(Box::new(store.clone()), 1, |_, name| {
        (name == "alice").then_some(SubscriberHandle(3))
    })
    .unwrap()
}

fn keys(fill: u8) -> EspKeys {
    EspKeys::split(EspSuite::Aes128Gcm16, &[fill; 20]).unwrap()
}

fn sa(name: &str, spi: u32, keys: ManualKeys) -> ManualSa {
    ManualSa {
        id: 0,
        name: name.into(),
        operator: "default".into(),
        subscriber: "alice".into(),
        terminal: "10.0.0.1".parse().unwrap(),
        peer: "10.0.0.2".parse().unwrap(),
        spi_in: Spi(spi),
        spi_out: Spi(spi + 1),
        mode: Mode::Transport,
        esn: false,
        replay_window: 4096,
        encap: None,
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        lifetime: Lifetime::default(),
        protection: Protection::Esp {
            suite: EspSuite::Aes128Gcm16,
            keys,
        },
    }
}

fn segments(fill: u8) -> ManualKeys {
    ManualKeys::Segments {
        peer_in: keys(fill),
        peer_out: keys(fill + 1),
        segment_in: keys(fill + 2),
        segment_out: keys(fill + 3),
    }
}

fn shared(fill: u8) -> ManualKeys {
    ManualKeys::Shared {
        keys_in: keys(fill),
        keys_out: keys(fill + 1),
    }
}

#[test]
fn an_sa_survives_the_process_and_its_numbers_go_on_above() {
    let store = store();
    let first = open(&store)
        .add(sa("a", 0x1000, segments(1)), SubscriberHandle(3))
        .unwrap();
    assert_eq!(
        (first.start.to_peer.stored, first.start.to_peer.limit),
        (0, BLOCK)
    );
    for restart in 1..4 {
        let again = open(&store).installations().unwrap();
        let [again] = &again[..] else { panic!() };
        assert_eq!(again.sa, first.sa);
        for start in [again.start.to_peer, again.start.to_terminal] {
            assert_eq!(
                (start.stored, start.limit),
                (restart * BLOCK, (restart + 1) * BLOCK)
            );
        }
    }
}

#[test]
fn the_mark_belongs_to_the_key_and_not_to_the_sa() {
    let store = store();
    let mut stored = open(&store);
    stored
        .add(sa("a", 0x1000, segments(1)), SubscriberHandle(3))
        .unwrap();
    stored.remove("a").unwrap();
    // The same keys under another name and other SPIs.
    let again = stored
        .add(sa("b", 0x2000, segments(1)), SubscriberHandle(3))
        .unwrap();
    assert_eq!(again.start.to_peer.stored, BLOCK);
    // Also where only one sender's key comes back.
    stored.remove("b").unwrap();
    let moved = ManualKeys::Shared {
        keys_in: keys(50),
        keys_out: keys(2),
    };
    let moved = stored.add(sa("c", 0x3000, moved), SubscriberHandle(3)).unwrap();
    assert_eq!(moved.start.to_peer.stored, 2 * BLOCK);
    assert_eq!(moved.start.to_terminal.stored, 0);
}

#[test]
fn a_key_of_another_sa_a_taken_name_and_a_taken_spi_are_conflicts() {
    let store = store();
    let mut stored = open(&store);
    stored
        .add(sa("a", 0x1000, segments(1)), SubscriberHandle(3))
        .unwrap();
    for (bad, expected) in [
        (sa("a", 0x2000, segments(20)), "name: an SA `a` exists"),
        (sa("b", 0x2000, shared(4)), "keys: SA `a` uses one of them"),
        (sa("b", 0x1000, segments(20)), "spi: an SA with this SPI"),
    ] {
        let error = stored.add(bad, SubscriberHandle(3)).unwrap_err();
        assert!(
            matches!(error, StoredError::Conflict(_)) && error.to_string().starts_with(expected),
            "{error}"
        );
    }
    assert_eq!((stored.sas().count(), stored.sad().len()), (1, 2));
    assert_eq!(open(&store).sas().count(), 1);
}

#[test]
fn a_shared_counter_mode_key_gets_no_numbers_before_its_proof_and_none_after_a_breach() {
    let store = store();
    let mut stored = open(&store);
    let installed = stored
        .add(sa("a", 0x1000, shared(1)), SubscriberHandle(3))
        .unwrap();
    let nothing = SharedStart::default();
    assert_eq!(
        (installed.start.to_peer, installed.start.to_terminal),
        (nothing, nothing)
    );
    let key = key_of(stored.find("a").unwrap());
    let wanted = Wanted {
        limit: BLOCK,
        top: Some(5),
    };
    assert_eq!(stored.reserve(&key, true, wanted).unwrap(), Some(wanted));
    let start = open(&store).installations().unwrap()[0].start;
    assert_eq!((start.to_peer.stored, start.to_peer.limit), (BLOCK, 2 * BLOCK));
    assert_eq!((start.to_peer.top, start.to_terminal.top), (Some(5), None));
    // Another half than the one that was proven first.
    let other = Wanted {
        top: Some(6),
        ..wanted
    };
    assert_eq!(stored.reserve(&key, true, other).unwrap(), None);
    stored.degraded(&key, true).unwrap();
    assert_eq!(stored.reserve(&key, true, wanted).unwrap(), None);
    let start = open(&store).installations().unwrap()[0].start;
    assert!(start.to_peer.degraded && start.to_peer.stored == start.to_peer.limit);
}

#[test]
fn policies_are_stored_ordered_and_hold_the_sas_they_name() {
    let store = store();
    let mut stored = open(&store);
    let policy = |order, sas: Vec<u64>| Policy {
        id: 0,
        order,
        name: String::new(),
        selector: PolicySelector::default(),
        action: PolicyAction::Protect { sas, class: None },
    };
    assert!(matches!(
        stored.add_policy(policy(1, vec![9])),
        Err(StoredError::NotFound(_))
    ));
    stored
        .add(sa("a", 0x1000, ManualKeys::None), SubscriberHandle(3))
        .unwrap();
    let id = stored.find("a").unwrap().id;
    stored.add_policy(policy(5, vec![])).unwrap();
    let holder = stored.add_policy(policy(1, vec![id])).unwrap();
    assert!(matches!(stored.remove("a"), Err(StoredError::Conflict(_))));
    let orders: Vec<u32> = open(&store).spd().iter().map(|policy| policy.order).collect();
    assert_eq!(orders, [1, 5]);
    stored.remove_policy(holder.id).unwrap();
    assert!(stored.remove_policy(holder.id).is_err());
    stored.remove("a").unwrap();
    assert_eq!((open(&store).sas().count(), open(&store).spd().len()), (0, 1));
}

#[test]
fn a_worker_takes_what_the_store_gives() {
    let store = store();
    let mut stored = open(&store);
    let mut path = Datapath::new(SoftEsp, 8);
    for (name, spi, keys) in [
        ("a", 0x1000, segments(1)),
        ("b", 0x2000, shared(20)),
        ("c", 0x3000, ManualKeys::None),
    ] {
        let installation = stored.add(sa(name, spi, keys), SubscriberHandle(3)).unwrap();
        path.install_stored(Instant::from_secs(1), &installation.sa, &installation.start)
            .unwrap();
    }
    let stages: Vec<_> = path
        .counters()
        .map(|(_, _, counters)| counters.stages.is_some())
        .collect();
    assert_eq!(stages, [false, true, false]);
}

/// A packet of the terminal under the segment keys of [`segments`], in a frame with rooms.
struct Terminal {
    out: towpath_ipsec::OutboundSa<towpath_ipsec::soft::SoftTransform>,
    rng: towpath_base::testutil::SeededRng,
}

impl Terminal {
    fn of(sa: &ManualSa) -> Self {
        let Protection::Esp {
            suite,
            keys:
                ManualKeys::Segments {
                    segment_in,
                    segment_out,
                    ..
                },
        } = &sa.protection
        else {
            panic!()
        };
        let child = sa.child(*suite, segment_in, segment_out);
        // The limit under test is the gateway's.
        let child = towpath_base::sa::ChildSa {
            lifetime: Lifetime::default(),
            ..child
        };
        Self {
            out: towpath_ipsec::OutboundSa::new(&SoftEsp, NOW, &child).unwrap(),
            rng: towpath_base::testutil::SeededRng::new(1),
        }
    }

    /// Sends a UDP datagram to `port` through `path`.
    fn send(&mut self, path: &mut Datapath<SoftEsp>, port: u16) -> Disposition {
        self.sent(path, port).0
    }

    /// As [`Terminal::send`]; also what became of the packet.
    fn sent(&mut self, path: &mut Datapath<SoftEsp>, port: u16) -> (Disposition, Vec<u8>) {
        let sealed = self.seal(port);
        self.put(path, &sealed)
    }

    /// A UDP datagram to `port`, 68 bytes long before it is sealed.
    fn seal(&mut self, port: u16) -> Vec<u8> {
        let datagram = towpath_fabric::Datagram {
            source: "10.0.0.1:7000".parse().unwrap(),
            destination: std::net::SocketAddr::new("10.0.0.2".parse().unwrap(), port),
            payload: vec![1; 40],
        };
        let packet = crate::datagram::build(&datagram).unwrap();
        let mut buffer = [0; 1024];
        buffer[256..256 + packet.len()].copy_from_slice(&packet);
        let mut packet = PacketBuf::new(&mut buffer, 256, packet.len()).unwrap();
        self.out.seal(NOW, &mut packet, &mut self.rng).unwrap();
        packet.bytes().to_vec()
    }

    /// Shows `path` a packet of the terminal, perhaps not for the first time.
    fn put(&mut self, path: &mut Datapath<SoftEsp>, sealed: &[u8]) -> (Disposition, Vec<u8>) {
        let mut buffer = [0; 1024];
        buffer[256..256 + sealed.len()].copy_from_slice(sealed);
        let mut packet = PacketBuf::new(&mut buffer, 256, sealed.len()).unwrap();
        let arrival = Arrival {
            from_access: true,
            egress: None,
        };
        let outcome = path.process(NOW, arrival, &mut packet, &mut self.rng);
        (outcome, packet.bytes().to_vec())
    }
}

const NOW: Instant = Instant::from_secs(1);

#[test]
fn a_sender_without_reserved_numbers_drops_by_name_asks_and_goes_on_when_they_are_stored() {
    let store = store();
    let mut stored = open(&store);
    let installation = stored
        .add(sa("a", 0x1000, segments(1)), SubscriberHandle(3))
        .unwrap();
    let mut path = Datapath::new(SoftEsp, 8);
    let short = StoredStart {
        to_peer: SharedStart {
            limit: 2,
            ..SharedStart::default()
        },
        ..installation.start
    };
    path.install_stored(NOW, &installation.sa, &short).unwrap();
    let mut terminal = Terminal::of(stored.find("a").unwrap());
    let outcomes: Vec<_> = (0..3).map(|_| terminal.send(&mut path, 7001)).collect();
    let dropped = Disposition::Drop(DropReason::SequenceNotReserved);
    assert_eq!(outcomes, [Disposition::Forward, Disposition::Forward, dropped]);
    // Asked once, however many packets came.
    let notices: Vec<_> = path.drain_notices().collect();
    let [
        Notice::Reserve {
            key,
            to_peer: true,
            wanted,
        },
    ] = notices[..]
    else {
        panic!("{notices:?}")
    };
    let granted = stored.reserve(&key, true, wanted).unwrap().unwrap();
    path.grant(&key, true, &granted);
    assert_eq!(terminal.send(&mut path, 7001), Disposition::Forward);
    assert!(open(&store).installations().unwrap()[0].start.to_peer.stored >= granted.limit);
}

#[test]
fn a_policy_discards_by_port_inside_an_sa_of_class_full() {
    let store = store();
    let mut stored = open(&store);
    let installation = stored
        .add(sa("a", 0x1000, segments(1)), SubscriberHandle(3))
        .unwrap();
    let mut path = Datapath::new(SoftEsp, 8);
    path.install_stored(NOW, &installation.sa, &installation.start)
        .unwrap();
    let mut terminal = Terminal::of(stored.find("a").unwrap());
    for (order, ports, action) in [
        (1, "9000", PolicyAction::Bypass),
        (2, "8000-9999", PolicyAction::Discard),
    ] {
        let selector = PolicySelector {
            destination: Some("10.0.0.0/24".parse().unwrap()),
            protocol: Some(17),
            destination_ports: ports.parse().unwrap(),
            ..PolicySelector::default()
        };
        let policy = Policy {
            id: 0,
            order,
            name: String::new(),
            selector,
            action,
        };
        stored.add_policy(policy).unwrap();
    }
    path.set_policies(Box::new(stored.spd().clone()));
    let discarded = Disposition::Drop(DropReason::PolicyDiscard);
    for (port, expected) in [
        (7001, Disposition::Forward),
        (8000, discarded),
        (9000, Disposition::Forward),
    ] {
        assert_eq!(terminal.send(&mut path, port), expected, "{port}");
    }
}

#[test]
fn a_capture_sees_both_sides_of_the_gateway_and_the_packet_inside() {
    let store = store();
    let mut stored = open(&store);
    let installation = stored
        .add(sa("a", 0x1000, segments(1)), SubscriberHandle(3))
        .unwrap();
    let mut path = Datapath::new(SoftEsp, 8);
    path.install_stored(NOW, &installation.sa, &installation.start)
        .unwrap();
    let mut terminal = Terminal::of(stored.find("a").unwrap());
    let key = key_of(stored.find("a").unwrap());
    let mut lengths = Vec::new();
    for point in [TapPoint::Access, TapPoint::Core, TapPoint::Plain] {
        let (sender, packets) = std::sync::mpsc::sync_channel(1);
        path.set_tap(Some(Tap {
            key,
            point,
            sender,
            lost: 0,
        }));
        // The second finds no room, and is counted, not waited for.
        for _ in 0..2 {
            assert_eq!(terminal.send(&mut path, 7001), Disposition::Forward);
        }
        let first = packets.recv().unwrap();
        assert_eq!(terminal.send(&mut path, 7001), Disposition::Forward);
        let third = packets.recv().unwrap();
        assert_eq!((first.lost, third.lost, first.to_peer), (0, 1, true));
        assert!(packets.try_recv().is_err(), "one copy of each packet");
        lengths.push((first.packet.len(), first.packet[9]));
    }
    let [access, core, plain] = lengths[..] else {
        panic!()
    };
    assert_eq!((access, core.1, plain), (core, 50, (20 + 8 + 40, 17)));
}

#[test]
fn a_policy_steers_packets_to_the_first_sa_it_names_that_can_carry_them() {
    let store = store();
    let mut stored = open(&store);
    let mut path = Datapath::new(SoftEsp, 8);
    let mut given = Vec::new();
    // `narrow` admits no UDP, `none` has no keys here: neither can carry what came by `a`.
    let tcp_alone = TrafficSelector {
        protocol: 6,
        ..TrafficSelector::host("10.0.0.2".parse().unwrap())
    };
    for (name, spi, keys, remote_ts) in [
        ("a", 0x1000, segments(1), vec![]),
        ("narrow", 0x2000, segments(20), vec![tcp_alone]),
        ("none", 0x3000, ManualKeys::None, vec![]),
        ("b", 0x4000, segments(40), vec![]),
        ("c", 0x5000, segments(60), vec![]),
    ] {
        let sa = ManualSa {
            remote_ts,
            ..sa(name, spi, keys)
        };
        let installation = stored.add(sa, SubscriberHandle(3)).unwrap();
        path.install_stored(NOW, &installation.sa, &installation.start)
            .unwrap();
        given.push(key_of(stored.find(name).unwrap()));
    }
    let sas = ["narrow", "none", "b", "c"].map(|name| stored.find(name).unwrap().id);
    let policy = Policy {
        id: 0,
        order: 1,
        name: String::new(),
        selector: PolicySelector {
            destination_ports: "8000".parse().unwrap(),
            ..PolicySelector::default()
        },
        action: PolicyAction::Protect {
            sas: sas.to_vec(),
            class: None,
        },
    };
    stored.add_policy(policy).unwrap();
    path.set_policies(Box::new(stored.spd().clone()));
    let mut terminal = Terminal::of(stored.find("a").unwrap());
    let mut leaves_by = |path: &mut Datapath<SoftEsp>, port| {
        let (outcome, packet) = terminal.sent(path, port);
        match outcome {
            Disposition::Forward => Ok(towpath_ipsec::locate::esp(&packet).unwrap().spi),
            Disposition::Drop(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(leaves_by(&mut path, 7001), Ok(Spi(0x1001)));
    assert_eq!(leaves_by(&mut path, 8000), Ok(Spi(0x4001)));
    path.remove(&given[3]);
    assert_eq!(leaves_by(&mut path, 8000), Ok(Spi(0x5001)));
    path.remove(&given[4]);
    assert_eq!(leaves_by(&mut path, 8000), Err(DropReason::PolicyNoSa));
    assert_eq!(leaves_by(&mut path, 7001), Ok(Spi(0x1001)));
}

#[test]
fn a_successor_accepts_nothing_again_and_goes_on_counting_towards_the_limits() {
    let directory = tempfile::tempdir().unwrap();
    let windows = || Windows::open(&directory.path().join("windows")).unwrap();
    let store = store();
    let limited = ManualSa {
        lifetime: Lifetime {
            hard_bytes: 68 * 7,
            ..Lifetime::default()
        },
        ..sa("a", 0x1000, segments(1))
    };
    let mut terminal = Terminal::of(&limited);
    open(&store)
        .with_windows(windows())
        .add(limited, SubscriberHandle(3))
        .unwrap();
    let mut before: Vec<Vec<u8>> = Vec::new();
    // Each life ends without a word: what was kept packet by packet is all that is left.
    for life in 0..4 {
        let installation = open(&store)
            .with_windows(windows())
            .installations()
            .unwrap()
            .remove(0);
        let mut path = Datapath::new(SoftEsp, 8);
        path.install_stored(NOW, &installation.sa, &installation.start)
            .unwrap();
        for old in &before {
            let outcome = terminal.put(&mut path, old).0;
            assert_eq!(outcome, Disposition::Drop(DropReason::EspReplayed), "life {life}");
        }
        for packet in 0..2 {
            let sealed = terminal.seal(7001);
            let outcome = terminal.put(&mut path, &sealed).0;
            let fits = life * 2 + packet < 7;
            let expired = Disposition::Drop(DropReason::EspLifetimeExpired);
            assert_eq!(outcome, if fits { Disposition::Forward } else { expired });
            path.keep(|number, used| windows().keep(number, used).unwrap());
            before.extend(fits.then_some(sealed));
        }
    }
    // Removed and brought again it is another SA.
    let mut stored = open(&store).with_windows(windows());
    let again = stored.find("a").unwrap().clone();
    stored.remove("a").unwrap();
    let installation = stored.add(again, SubscriberHandle(3)).unwrap();
    assert_eq!(installation.start.used, Used::default());
}
