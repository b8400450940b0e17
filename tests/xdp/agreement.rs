//! One classifier source, two compilers: the program and user space give the same verdict on anything.

use std::net::IpAddr;

use towpath_base::selector::Prefix;
use towpath_bpf::{CompiledProfile, Dataplane, Mode};
use towpath_common::abi::{CONSULT_PAIRS, PORT_TRANSMIT, PortInfo, ProfileEntry, RESERVED_SPI_DEFAULT};
use towpath_common::{Verdict, classify_frame};

use crate::fixture;
use crate::fixtures::{ifindex, with_profiles};
use crate::model::{Model, observe};
use crate::topology::{Topology, load, open_sockets};

/// Packets of the long test.
const ROUNDS: u32 = 20_000;

pub(crate) fn port_info(dataplane: &Dataplane, name: &str) -> PortInfo {
    let port = dataplane
        .ports()
        .iter()
        .find(|port| port.device.name == name)
        .expect("a port");
    PortInfo {
        role: port.role as u32,
        flags: PORT_TRANSMIT,
        xsk_base: port.xsk_base,
        queues: port.device.queues,
        mac: port.device.mac,
        reserved: [0; 2],
    }
}

/// A small generator (xorshift): the same packets on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Conditions that make every part of the classifier reachable at once.
fn profiles() -> Vec<CompiledProfile> {
    let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let prefix = |text: &str| -> Prefix { text.parse().expect("a prefix") };
    let standard = ProfileEntry::standard;
    let paired = ProfileEntry {
        flags: CONSULT_PAIRS,
        ..standard(7)
    };
    vec![
        CompiledProfile {
            handle: 7,
            entries: vec![
                (Prefix::host(address("10.77.1.2")), paired),
                (Prefix::host(address("fd77:1::2")), standard(7)),
            ],
            pairs: vec![(address("10.77.1.2"), address("10.77.9.2"), standard(7))],
            gateway: vec![(address("10.77.1.1"), 4501)],
        },
        CompiledProfile {
            handle: 8,
            entries: vec![
                (prefix("10.77.0.0/16"), standard(8)),
                (prefix("fd77::/16"), standard(8)),
            ],
            ..CompiledProfile::default()
        },
    ]
}

/// Changes a few bytes, most of them in the headers, or the length.
fn mutate(random: &mut Random, packet: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let reach = packet.len().min(if random.below(4) == 0 { 256 } else { 70 });
        let at = random.below(reach);
        packet[at] = match random.below(4) {
            0 => random.next() as u8,
            1 => packet[at] ^ 1 << random.below(8),
            // Values that mean something: protocols, versions, lengths, port halves.
            2 => [
                0, 1, 4, 6, 8, 17, 43, 44, 50, 51, 60, 0x45, 0x4f, 0x60, 0x81, 0xff,
            ][random.below(16)],
            _ => packet[random.below(reach)],
        };
    }
    match random.below(8) {
        0 => packet.truncate(14 + random.below(packet.len() - 13)),
        1 => packet.extend(std::iter::repeat_n(0, random.below(40))),
        _ => {}
    }
}

#[test]
#[ignore = "needs root"]
fn thousands_of_mutated_packets_get_the_same_verdict_from_both() {
    let topology = Topology::new();
    topology.inside("gw", || {
        let mut dataplane = load(&topology, Mode::Native);
        let _sockets = open_sockets(&mut dataplane);
        let profiles = profiles();
        let model = Model::new(&profiles);
        let globals = model.globals(RESERVED_SPI_DEFAULT);
        let ports = ["access", "core"].map(|name| (ifindex(&dataplane, name), port_info(&dataplane, name)));
        let templates: Vec<Vec<u8>> = fixture::all()
            .into_iter()
            .map(|fixture| fixture.packet)
            .filter(|it| it.len() < 400)
            .collect();
        with_profiles(&mut dataplane, &profiles, |dataplane| {
            let mut random = Random(0x7065_7468_746f_7721);
            let mut seen = [0u32; 4];
            for round in 0..ROUNDS {
                let mut packet = templates[random.below(templates.len())].clone();
                mutate(&mut random, &mut packet);
                let (ifindex, mut port) = ports[random.below(2)];
                // Every station is ours half the time: otherwise most packets would end at their MAC address.
                if random.below(2) == 0 {
                    packet[..6].copy_from_slice(&port.mac);
                }
                port.reserved = [0; 2];
                let (verdict, _) = classify_frame(packet.as_slice(), &port, &globals, &model);
                let observed = observe(dataplane, ifindex, &packet);
                assert!(
                    observed.agrees(&verdict),
                    "round {round}: {verdict:?} but {observed:?} for {packet:02x?}"
                );
                seen[match verdict {
                    Verdict::Divert { .. } => 0,
                    Verdict::Ordinary => 1,
                    Verdict::NotOurs(_) => 2,
                    Verdict::Drop(_) => 3,
                }] += 1;
            }
            assert!(
                seen.iter().all(|count| *count > ROUNDS / 50),
                "one-sided: {seen:?}"
            );
        });
    });
}
