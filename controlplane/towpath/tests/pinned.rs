//! Without a daemon, the command line brings the maps of a data plane that is still attached up to date.
#![cfg(test)]

#[expect(dead_code, reason = "shared with the tests of the command line")]
mod bench;

use std::net::IpAddr;
use std::path::PathBuf;

use bench::Bench;
use towpath_bpf::{Dataplane, Options, ProfileMaps, find_object, unload};

/// Pinned maps, removed at the end.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        // The test has failed already if this does.
        let _ = unload(&self.0);
    }
}

/// Handle of the subscriber whose conditions hold at `address`.
fn owner(pins: &Pins, address: &str) -> Option<u64> {
    let address: IpAddr = address.parse().unwrap();
    let entry = ProfileMaps::open_pinned(&pins.0).unwrap().get(address).unwrap();
    entry.map(|entry| entry.handle)
}

#[test]
#[ignore = "needs root: pins BPF maps"]
fn fixed_attachments_reach_the_pinned_maps_without_a_daemon() {
    let pins = Pins(format!("/sys/fs/bpf/towpath-cli-{}", std::process::id()).into());
    let bench = Bench::new();
    let config = bench.read("towpath.toml");
    let own = bench.path("pins").display().to_string();
    bench.write(
        "towpath.toml",
        &config.replace(&own, &pins.0.display().to_string()),
    );
    bench.ok(&["init"]);
    bench.write("ksub", &"5a".repeat(32));
    let add = |name: &str, options: &[&str]| {
        let base = ["subscriber", "add", name, "--ksub-file", "ksub"];
        bench.ok(&[&base[..], options].concat());
    };
    add("before", &["--address", "10.9.0.1", "--fixed"]);

    let options = Options {
        pin_dir: pins.0.clone(),
        ..Options::default()
    };
    drop(Dataplane::load(&find_object(None).unwrap(), &options).unwrap());
    assert_eq!(
        owner(&pins, "10.9.0.1"),
        None,
        "the daemon writes what was there when it starts"
    );

    add(
        "net",
        &["--address", "10.1.0.0/16", "--address", "fd77::1", "--fixed"],
    );
    add("roaming", &["--address", "10.2.0.0/16"]);
    let handle = bench.json(&["subscriber", "show", "net"])["handle"].as_u64();
    assert_eq!(
        (owner(&pins, "10.1.2.3"), owner(&pins, "fd77::1")),
        (handle, handle)
    );
    assert_eq!((owner(&pins, "10.2.0.1"), owner(&pins, "fd77::2")), (None, None));

    bench.ok(&["profile", "add", "net", "--list", "to-terminal", "--port", "5500"]);
    let entry = |address: &str| {
        let maps = ProfileMaps::open_pinned(&pins.0).unwrap();
        maps.get(address.parse().unwrap()).unwrap().unwrap()
    };
    assert!(entry("10.1.2.3").to_terminal.contains(&5500));
    let status = bench.run(&["status"], "");
    assert!(
        status.status == 1 && status.err.contains("still attached"),
        "{}",
        status.err
    );
    let counters = bench.json(&["stats", "--all"]);
    assert!(counters["counters"].as_array().unwrap().len() > 30, "{counters}");

    bench.ok(&["subscriber", "export", "--with-secrets", "--output", "all.toml"]);
    let moved = bench.read("all.toml").replace("10.1.0.0/16", "10.3.0.0/16");
    bench.write("moved.toml", &moved);
    bench.ok(&["subscriber", "import", "--replace", "moved.toml"]);
    assert_eq!(
        (owner(&pins, "10.1.2.3"), owner(&pins, "10.3.2.3")),
        (None, handle)
    );
    assert!(owner(&pins, "10.9.0.1").is_some(), "replaced with the others");

    bench.ok(&["subscriber", "remove", "net"]);
    assert_eq!((owner(&pins, "10.3.2.3"), owner(&pins, "fd77::1")), (None, None));
    assert!(bench.ok(&["unload"]).contains("detached from 0 ports"));
    bench.refuses(&["unload"], "no data plane is pinned");
}
