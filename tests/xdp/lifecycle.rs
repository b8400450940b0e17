//! Pinned maps and links: takeover, refusal, release.

use towpath_base::selector::Prefix;
use towpath_bpf::{
    AttachedMode, CompiledProfile, Dataplane, Error, Mode, Options, PortSpec, ProfileMaps, Role, unload,
};
use towpath_common::abi::{CONSULT_PAIRS, ProfileEntry};

use crate::topology::{Topology, load, object};

fn options(topology: &Topology, ports: &[&str]) -> Options {
    let ports = ports
        .iter()
        .map(|name| PortSpec {
            name: (*name).into(),
            role: Role::Core,
        })
        .collect();
    Options {
        pin_dir: topology.pin_dir(),
        ports,
        ..Options::default()
    }
}

fn profile(handle: u64, prefixes: &[&str]) -> CompiledProfile {
    let prefix = |text: &&str| -> Prefix { text.parse().expect("a prefix") };
    let entries = prefixes
        .iter()
        .map(|text| (prefix(text), ProfileEntry::standard(handle)))
        .collect();
    CompiledProfile {
        handle,
        entries,
        ..CompiledProfile::default()
    }
}

#[test]
#[ignore = "needs root"]
fn a_second_load_takes_the_links_over_and_a_third_releases_a_port() {
    let topology = Topology::new();
    topology.inside("gw", || {
        let first = load(&topology, Mode::Auto);
        assert!(
            first
                .ports()
                .iter()
                .all(|port| !port.taken_over && port.mode == AttachedMode::Native)
        );
        let second = load(&topology, Mode::Auto);
        assert!(
            second.ports().iter().all(|port| port.taken_over),
            "{:?}",
            second.ports()
        );
        let places = |dataplane: &Dataplane| -> Vec<u32> {
            dataplane.ports().iter().map(|port| port.xsk_base).collect()
        };
        assert_eq!(places(&first), places(&second));
        let third = Dataplane::load(&object(), &options(&topology, &["core", "other"])).expect("load");
        let taken: Vec<bool> = third.ports().iter().map(|port| port.taken_over).collect();
        assert_eq!(taken, [true, false]);
        assert_eq!(unload(&topology.pin_dir()).expect("unload"), 2);
        assert!(matches!(unload(&topology.pin_dir()), Err(Error::NotPinned(_))));
    });
}

#[test]
#[ignore = "needs root"]
fn a_recreated_interface_is_attached_anew() {
    let topology = Topology::new();
    topology.inside("gw", || {
        drop(Dataplane::load(&object(), &options(&topology, &["bare"])).expect("load"));
        topology.ip("gw", "link del bare");
        topology.ip("gw", "link add bare type veth peer name barex");
        let again = Dataplane::load(&object(), &options(&topology, &["bare"])).expect("load again");
        assert!(!again.ports()[0].taken_over);
    });
}

#[test]
#[ignore = "needs root"]
fn another_mode_is_attached_when_it_is_asked_for() {
    let topology = Topology::new();
    topology.inside("gw", || {
        drop(load(&topology, Mode::Native));
        let generic = load(&topology, Mode::Generic);
        assert!(
            generic
                .ports()
                .iter()
                .all(|port| port.mode == AttachedMode::Generic && !port.taken_over)
        );
    });
}

#[test]
#[ignore = "needs root"]
fn a_missing_interface_changes_nothing() {
    let topology = Topology::new();
    topology.inside("gw", || {
        let error = Dataplane::load(&object(), &options(&topology, &["core", "nosuch0"])).err();
        assert_eq!(
            error.expect("an error").to_string(),
            "interface nosuch0: does not exist"
        );
        assert!(matches!(
            ProfileMaps::open_pinned(&topology.pin_dir()),
            Err(Error::NotPinned(_))
        ));
    });
}

#[test]
#[ignore = "needs root"]
fn conditions_are_written_without_a_daemon_and_found_by_prefix() {
    let topology = Topology::new();
    topology.inside("gw", || drop(load(&topology, Mode::Native)));
    let mut maps = ProfileMaps::open_pinned(&topology.pin_dir()).expect("open");
    let wide = profile(1, &["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]);
    let host = profile(2, &["10.1.0.1/32", "fd00::1/128"]);
    maps.insert(&wide).expect("insert");
    maps.insert(&host).expect("insert");
    assert_eq!(maps.list().expect("list"), [wide.clone(), host.clone()]);
    let owner = |maps: &ProfileMaps, address: &str| {
        maps.get(address.parse().expect("an address"))
            .expect("get")
            .map(|entry| entry.handle)
    };
    assert_eq!(owner(&maps, "10.1.0.1"), Some(2));
    assert_eq!(owner(&maps, "10.1.0.2"), Some(1));
    assert_eq!(owner(&maps, "fd00::2"), Some(1));
    assert_eq!(owner(&maps, "192.0.2.1"), None);

    // What another subscriber holds is neither overwritten nor removed, nested prefixes included.
    let error = maps
        .insert(&profile(3, &["192.0.2.0/24", "10.1.0.0/16"]))
        .expect_err("a conflict");
    assert_eq!(
        error.to_string(),
        "conditions for 10.1.0.0/16 belong to subscriber 1 already"
    );
    assert_eq!(
        owner(&maps, "192.0.2.1"),
        None,
        "a refused profile leaves nothing behind"
    );
    maps.insert(&profile(3, &["10.1.2.0/24"]))
        .expect("a longer prefix is another entry");
    maps.remove(&profile(2, &["10.1.0.0/16"])).expect("remove");
    assert_eq!(owner(&maps, "10.1.0.2"), Some(1));

    let moved = profile(1, &["10.0.0.0/8", "10.9.0.0/16"]);
    maps.replace(&wide, &moved).expect("replace");
    assert!(maps.remove_subscriber(3).expect("remove"));
    assert!(!maps.remove_subscriber(3).expect("remove"));
    assert_eq!(maps.list().expect("list"), [moved.clone(), host.clone()]);
    maps.remove(&moved).expect("remove");
    maps.remove(&host).expect("remove");
    assert_eq!(
        (maps.list().expect("list"), maps.globals().expect("globals").flags),
        (vec![], 0)
    );
}

#[test]
#[ignore = "needs root"]
fn pairs_and_gateway_conditions_are_listed_and_removed() {
    let topology = Topology::new();
    topology.inside("gw", || drop(load(&topology, Mode::Native)));
    let mut maps = ProfileMaps::open_pinned(&topology.pin_dir()).expect("open");
    let mut profile = profile(5, &["10.77.1.2/32"]);
    profile.entries[0].1.flags |= CONSULT_PAIRS;
    let address = |text: &str| text.parse().expect("an address");
    profile.pairs = vec![(
        address("10.77.1.2"),
        address("10.77.9.2"),
        ProfileEntry::standard(5),
    )];
    profile.gateway = vec![(address("10.77.1.1"), 500), (address("fd77:1::1"), 500)];
    maps.insert(&profile).expect("insert");
    assert_eq!(maps.list().expect("list"), [profile.clone()]);
    let mut other = profile.clone();
    other.handle = 6;
    other.entries.clear();
    let error = maps.insert(&other).expect_err("a conflict").to_string();
    assert_eq!(
        error,
        "conditions for 10.77.1.2 with 10.77.9.2 belong to subscriber 5 already"
    );
    maps.remove(&profile).expect("remove");
    assert_eq!(maps.list().expect("list"), []);
}
