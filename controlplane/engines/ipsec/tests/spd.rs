//! The policy table against the plainest one there is: a list, read from the top.

use std::net::IpAddr;

use proptest::prelude::*;
use towpath_base::policy::{AddressRange, IpsecProtocol, Policy, PolicyAction, PolicySelector, PortRange};
use towpath_ipsec::Flow;
use towpath_ipsec::spd::{Query, Spd, SpdError, matches};

/// Few values, so that entries overlap and packets hit them.
fn address(v4: bool) -> impl Strategy<Value = IpAddr> {
    (0u8..4, 0u8..8).prop_map(move |(net, host)| {
        if v4 {
            IpAddr::from([10, 0, net, host])
        } else {
            IpAddr::from([0x2001, 0xdb8, 0, net.into(), 0, 0, 0, host.into()])
        }
    })
}

fn range(v4: bool) -> impl Strategy<Value = Option<AddressRange>> {
    let prefix = (address(v4), 0u8..12).prop_map(move |(address, host)| {
        let longest = if v4 { 32 } else { 128 };
        towpath_base::selector::Prefix::new(address, longest - host).map(AddressRange::from)
    });
    let pair = (address(v4), address(v4)).prop_map(|(a, b)| AddressRange::new(a.min(b), a.max(b)));
    prop_oneof![2 => Just(None), 4 => prefix, 1 => pair]
}

fn ports() -> impl Strategy<Value = PortRange> {
    prop_oneof![
        3 => Just(PortRange::ANY),
        1 => (0u16..4, 0u16..4).prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap()),
    ]
}

fn rare<T: Clone + std::fmt::Debug>(values: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(0.15, values)
}

fn protocol() -> impl Strategy<Value = IpsecProtocol> {
    prop::sample::select(IpsecProtocol::ALL.to_vec())
}

fn selector() -> impl Strategy<Value = PolicySelector> {
    any::<bool>().prop_flat_map(|v4| {
        (
            (range(v4), range(v4), ports(), ports()),
            (
                rare(0u32..3),
                rare(0u8..3),
                rare(prop::sample::select(vec![6u8, 17])),
                rare(protocol()),
            ),
            (rare(0u8..3), rare(0u32..3)),
        )
            .prop_map(
                move |((source, destination, source_ports, destination_ports), rest, marks)| {
                    let (user, level, protocol, ipsec) = rest;
                    PolicySelector {
                        source,
                        destination,
                        user,
                        level,
                        protocol,
                        ipsec,
                        source_ports,
                        destination_ports,
                        tos: marks.0.filter(|_| v4),
                        traffic_class: marks.0.filter(|_| !v4),
                        flow_label: marks.1.filter(|_| !v4),
                    }
                },
            )
    })
}

fn query() -> impl Strategy<Value = Query> {
    any::<bool>().prop_flat_map(|v4| {
        let port = || prop::option::of(0u16..4);
        (
            (
                address(v4),
                address(v4),
                prop::sample::select(vec![6u8, 17]),
                port(),
                port(),
            ),
            (
                prop::option::of(0u32..3),
                prop::option::of(0u8..3),
                prop::option::of(protocol()),
            ),
            (0u8..3, 0u32..3),
        )
            .prop_map(
                move |((source, destination, protocol, source_port, destination_port), who, marks)| Query {
                    flow: Flow {
                        source,
                        destination,
                        protocol,
                        source_port,
                        destination_port,
                    },
                    user: who.0,
                    level: who.1,
                    ipsec: who.2,
                    tos: marks.0,
                    flow_label: if v4 { 0 } else { marks.1 },
                },
            )
    })
}

fn action() -> impl Strategy<Value = PolicyAction> {
    prop_oneof![
        Just(PolicyAction::Bypass),
        Just(PolicyAction::Discard),
        Just(PolicyAction::Protect {
            sas: vec![1, 2],
            class: None
        }),
    ]
}

/// The list.
fn naive<'a>(list: &'a [Policy], query: &Query) -> Option<&'a Policy> {
    list.iter()
        .filter(|policy| matches(&policy.selector, query))
        .min_by_key(|policy| (policy.order, policy.id))
}

proptest! {
    #[test]
    fn the_table_decides_as_the_list_does_through_additions_and_removals(
        entries in prop::collection::vec((selector(), action(), 0u32..6), 1..60),
        queries in prop::collection::vec(query(), 1..60),
        removed in prop::collection::vec(0usize..60, 0..20),
        cached in prop_oneof![Just(0usize), Just(1), Just(64)],
    ) {
        let (mut spd, mut list) = (Spd::new(1000, cached, 7), Vec::new());
        for ((selector, action, order), id) in entries.into_iter().zip(1..) {
            let policy = Policy { id, order, name: String::new(), selector, action };
            spd.insert(policy.clone()).unwrap();
            list.push(policy);
        }
        for round in 0..2 {
            for query in &queries {
                prop_assert_eq!(spd.lookup(query), naive(&list, query));
                prop_assert_eq!(spd.decide(query), naive(&list, query));
                // From the cache.
                prop_assert_eq!(spd.decide(query), naive(&list, query));
            }
            if round == 0 {
                for index in &removed {
                    if let Some(policy) = list.get(*index).cloned() {
                        prop_assert_eq!(spd.remove(policy.id), Some(policy.clone()));
                        list.retain(|other| other.id != policy.id);
                    }
                }
            }
        }
        prop_assert_eq!(spd.len(), list.len());
    }
}

fn policy(id: u32, selector: PolicySelector) -> Policy {
    Policy {
        id,
        order: 10,
        name: String::new(),
        selector,
        action: PolicyAction::Bypass,
    }
}

#[test]
fn the_table_is_bounded_and_refuses_what_can_match_nothing() {
    let mut spd = Spd::new(1, 4, 0);
    let mixed = PolicySelector {
        source: Some("10.0.0.0/8".parse().unwrap()),
        destination: Some("2001:db8::/32".parse().unwrap()),
        ..PolicySelector::default()
    };
    assert_eq!(spd.insert(policy(1, mixed)), Err(SpdError::Families));
    let tos_on_v6 = PolicySelector {
        source: Some("2001:db8::/32".parse().unwrap()),
        tos: Some(0),
        ..PolicySelector::default()
    };
    assert_eq!(spd.insert(policy(1, tos_on_v6)), Err(SpdError::Families));
    let label = PolicySelector {
        flow_label: Some(1 << 20),
        ..PolicySelector::default()
    };
    assert_eq!(spd.insert(policy(1, label)), Err(SpdError::FlowLabel));
    spd.insert(policy(1, PolicySelector::default())).unwrap();
    assert_eq!(
        spd.insert(policy(1, PolicySelector::default())),
        Err(SpdError::Exists)
    );
    assert_eq!(
        spd.insert(policy(2, PolicySelector::default())),
        Err(SpdError::Full)
    );
}

#[test]
fn a_packet_shows_its_tos_or_its_traffic_class_and_flow_label() {
    let mut v4 = [0u8; 20];
    (v4[0], v4[1], v4[3], v4[9]) = (0x45, 0xb8, 20, 59);
    let query = Query::of_packet(&v4).unwrap();
    assert_eq!((query.tos, query.flow_label), (0xb8, 0));
    let mut v6 = [0u8; 40];
    v6[..8].copy_from_slice(&[0x6b, 0x8a, 0xbc, 0xde, 0, 0, 59, 64]);
    let query = Query::of_packet(&v6).unwrap();
    assert_eq!((query.tos, query.flow_label), (0xb8, 0xabcde));
}

/// In look-ups and comparisons, which a busy machine does not change: one of each, however many entries there are.
#[test]
fn a_hundred_thousand_hosts_take_no_more_comparisons_than_ten() {
    let host = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
    for count in [10, 1000, 100_000] {
        let mut spd = Spd::new(1 << 20, 1024, 3);
        for id in 0..count {
            let selector = PolicySelector {
                source: Some(towpath_base::selector::Prefix::host(host(id)).into()),
                ..PolicySelector::default()
            };
            spd.insert(policy(id, selector)).unwrap();
        }
        for n in 0..1000u32 {
            let flow = Flow {
                source: host(n.wrapping_mul(2_654_435_761) % count),
                destination: host(1),
                protocol: 6,
                source_port: Some(1),
                destination_port: Some(2),
            };
            let query = Query::of(flow);
            assert!(spd.lookup(&query).is_some());
            assert_eq!(spd.effort(&query), 2, "{count} entries");
        }
    }
}
