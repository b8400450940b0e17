//! Packet in, verdict and packet out.

use towpath_bpf::{CompiledProfile, Dataplane, Mode};
use towpath_common::Verdict;

use crate::fixture::{self, Fixture};
use crate::model::{Observed, observe};
use crate::topology::{Topology, load, open_sockets};

/// Loads the fixture's conditions, runs its packet, takes the conditions out again.
fn run(dataplane: &mut Dataplane, fixture: &Fixture) -> Observed {
    let ifindex = ifindex(dataplane, &fixture.port);
    with_profiles(dataplane, &fixture.profiles, |dataplane| {
        observe(dataplane, ifindex, &fixture.packet)
    })
}

pub(crate) fn ifindex(dataplane: &Dataplane, port: &str) -> u32 {
    let port = dataplane
        .ports()
        .iter()
        .find(|candidate| candidate.device.name == port);
    port.expect("a port of the topology").device.ifindex
}

pub(crate) fn with_profiles<R>(
    dataplane: &mut Dataplane,
    profiles: &[CompiledProfile],
    work: impl FnOnce(&mut Dataplane) -> R,
) -> R {
    for profile in profiles {
        dataplane
            .profiles()
            .insert(profile)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let result = work(dataplane);
    for profile in profiles {
        dataplane
            .profiles()
            .remove(profile)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(
        dataplane.profiles().list().expect("profiles"),
        [],
        "conditions were left behind"
    );
    result
}

#[test]
#[ignore = "needs root"]
fn every_fixture_gets_the_verdict_and_the_packet_it_expects() {
    let topology = Topology::new();
    topology.inside("gw", || {
        let mut dataplane = load(&topology, Mode::Native);
        let _sockets = open_sockets(&mut dataplane);
        let mut wrong = Vec::new();
        for fixture in fixture::all() {
            let observed = run(&mut dataplane, &fixture);
            if observed.text() != fixture.expect {
                wrong.push(format!(
                    "{}: expected {}, got {}",
                    fixture.name,
                    fixture.expect,
                    observed.text()
                ));
            }
            let out = fixture.out.as_ref().unwrap_or(&fixture.packet);
            if observed.packet != *out {
                wrong.push(format!(
                    "{}: packet out {:02x?}, expected {out:02x?}",
                    fixture.name, observed.packet
                ));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
#[ignore = "needs root"]
fn every_fixture_cut_at_every_length_agrees_with_user_space() {
    use towpath_common::classify_frame;

    use crate::agreement::port_info;
    use crate::model::Model;

    let topology = Topology::new();
    topology.inside("gw", || {
        let mut dataplane = load(&topology, Mode::Native);
        let _sockets = open_sockets(&mut dataplane);
        let mut dropped = 0;
        for fixture in fixture::all().iter().filter(|fixture| fixture.port != "bare") {
            let ifindex = ifindex(&dataplane, &fixture.port);
            let port = port_info(&dataplane, &fixture.port);
            let model = Model::new(&fixture.profiles);
            let globals = model.globals(towpath_common::abi::RESERVED_SPI_DEFAULT);
            with_profiles(&mut dataplane, &fixture.profiles, |dataplane| {
                // An Ethernet header is the least the kernel runs a program on.
                for len in 14..fixture.packet.len().min(160) {
                    let packet = &fixture.packet[..len];
                    let (verdict, _) = classify_frame(packet, &port, &globals, &model);
                    let observed = observe(dataplane, ifindex, packet);
                    assert!(
                        observed.agrees(&verdict),
                        "{} cut to {len}: {verdict:?} {observed:?}",
                        fixture.name
                    );
                    dropped += usize::from(matches!(verdict, Verdict::Drop(_)));
                }
            });
        }
        assert!(dropped > 1000, "only {dropped} cut packets were dropped");
    });
}
