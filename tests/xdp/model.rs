//! The classifier in user space over ordinary collections, and what the program can be seen to do.

use std::collections::HashMap;

use towpath_bpf::{Action, CompiledProfile, Dataplane, TestOutcome};
use towpath_common::abi::{
    Address, Count, DIVERT_TCP, GLOBAL_GATEWAY, GLOBAL_TCP, GatewayCondition, GatewayKey, Globals, PairKey,
    ProfileEntry,
};
use towpath_common::classify::Tables;
use towpath_common::counter::{Counter, DivertKind, FibStatus, PassReason};
use towpath_common::{DropReason, Verdict};

/// The profile maps as collections.
#[derive(Default)]
pub(crate) struct Model {
    entries: Vec<(towpath_base::selector::Prefix, ProfileEntry)>,
    pairs: HashMap<PairKey, ProfileEntry>,
    gateway: HashMap<GatewayKey, GatewayCondition>,
}

impl Model {
    pub(crate) fn new(profiles: &[CompiledProfile]) -> Self {
        let mut model = Self::default();
        for profile in profiles {
            model.entries.extend(&profile.entries);
            for (terminal, peer, entry) in &profile.pairs {
                let key = PairKey {
                    terminal: (*terminal).into(),
                    peer: (*peer).into(),
                };
                model.pairs.insert(key, *entry);
            }
            for (address, port) in &profile.gateway {
                let key = GatewayKey {
                    address: (*address).into(),
                    port: u32::from(*port),
                };
                model.gateway.insert(
                    key,
                    GatewayCondition {
                        handle: profile.handle,
                    },
                );
            }
        }
        model
    }

    pub(crate) fn globals(&self, reserved_spi: u64) -> Globals {
        let mut flags = if self.gateway.is_empty() {
            0
        } else {
            GLOBAL_GATEWAY
        };
        let entries = self.entries.iter().map(|(_, entry)| entry);
        if entries
            .chain(self.pairs.values())
            .any(|entry| entry.flags & DIVERT_TCP != 0)
        {
            flags |= GLOBAL_TCP;
        }
        Globals {
            reserved_spi,
            abi_version: towpath_common::abi::ABI_VERSION,
            flags,
        }
    }
}

impl Tables for Model {
    fn profile(&self, address: &Address) -> Option<&ProfileEntry> {
        let ip = address.ip();
        let matching = self.entries.iter().filter(|(prefix, _)| prefix.contains(ip));
        matching
            .max_by_key(|(prefix, _)| prefix.bits())
            .map(|(_, entry)| entry)
    }

    fn pair(&self, key: &PairKey) -> Option<&ProfileEntry> {
        self.pairs.get(key)
    }

    fn gateway(&self, key: &GatewayKey) -> Option<&GatewayCondition> {
        self.gateway.get(key)
    }
}

/// What the program did with one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) counter: Counter,
    pub(crate) handle: u64,
    pub(crate) from_terminal: bool,
    pub(crate) l3_offset: u16,
    pub(crate) fib: FibStatus,
    pub(crate) packet: Vec<u8>,
}

impl Observed {
    /// In the words of a fixture's expectation.
    pub(crate) fn text(&self) -> String {
        match self.counter {
            Counter::Divert(kind) => {
                let from = if self.from_terminal { "terminal" } else { "network" };
                let (handle, l3, fib) = (self.handle, self.l3_offset, self.fib.name());
                format!(
                    "divert {} handle={handle} from={from} l3={l3} fib={fib}",
                    kind.name()
                )
            }
            Counter::Forwarded => "forward".into(),
            Counter::Pass(reason) => format!("pass {}", reason.name()),
            Counter::Drop(reason) => format!("drop {}", reason.name()),
        }
    }

    /// Whether the program did what the verdict of user space allows. An ordinary packet may still turn out
    /// not to be forwardable; the routing says so.
    pub(crate) fn agrees(&self, verdict: &Verdict) -> bool {
        match (*verdict, self.counter) {
            (
                Verdict::Divert {
                    kind,
                    handle,
                    from_terminal,
                },
                Counter::Divert(counted),
            ) => (kind, handle, from_terminal) == (counted, self.handle, self.from_terminal),
            (Verdict::Ordinary, Counter::Forwarded) => true,
            // The relay gets what could be forwarded, and while it is there.
            (
                Verdict::Divert {
                    kind: DivertKind::Tcp,
                    ..
                },
                Counter::Pass(reason),
            ) => matches!(
                reason,
                PassReason::NotForwarded
                    | PassReason::TooBig
                    | PassReason::EgressNotPort
                    | PassReason::NoRelay
            ),
            (Verdict::Ordinary, Counter::Pass(reason)) => matches!(
                reason,
                PassReason::NotForwarded
                    | PassReason::NoNeighbour
                    | PassReason::TooBig
                    | PassReason::EgressNotPort
            ),
            (Verdict::NotOurs(reason), Counter::Pass(counted)) => reason == counted,
            (Verdict::Drop(reason), Counter::Drop(counted)) => reason == counted,
            _ => false,
        }
    }
}

/// Runs the program on a packet; exactly one counter must move, by one packet of that many bytes. The program
/// keeps no state, so a run that coincided with a packet of the kernel's own (neighbour discovery) is repeated.
pub(crate) fn observe(dataplane: &Dataplane, ifindex: u32, packet: &[u8]) -> Observed {
    let once = Count {
        packets: 1,
        bytes: packet.len() as u64,
    };
    let mut moved = Vec::new();
    for _ in 0..5 {
        let before = dataplane.counters().expect("counters");
        let outcome = dataplane
            .test_run(ifindex, packet, 1)
            .unwrap_or_else(|error| panic!("{error}"));
        let after = dataplane.counters().expect("counters");
        moved = iter_moved(&before, &after);
        if let [(counter, count)] = moved[..]
            && count == once
        {
            return observed(counter, outcome);
        }
    }
    panic!("counters moved: {moved:?}");
}

fn observed(counter: Counter, outcome: TestOutcome) -> Observed {
    let expected = match counter {
        Counter::Divert(_) | Counter::Forwarded => Action::Redirect,
        Counter::Pass(_) => Action::Pass,
        Counter::Drop(_) => Action::Drop,
    };
    assert_eq!(outcome.action, expected, "{counter:?}");
    let meta = outcome.meta.unwrap_or_default();
    if let Counter::Divert(kind) = counter {
        assert_eq!(meta.divert_kind(), Some(kind), "metadata");
    }
    Observed {
        counter,
        handle: meta.handle.get(),
        from_terminal: meta.from_terminal(),
        l3_offset: meta.l3_offset.get(),
        fib: meta.fib_status(),
        packet: outcome.packet,
    }
}

fn iter_moved(before: &[(Counter, Count)], after: &[(Counter, Count)]) -> Vec<(Counter, Count)> {
    let pairs = before.iter().zip(after);
    let changed = pairs.filter(|((_, old), (_, new))| old != new);
    changed
        .map(|((counter, old), (_, new))| {
            let count = Count {
                packets: new.packets - old.packets,
                bytes: new.bytes - old.bytes,
            };
            (*counter, count)
        })
        .collect()
}

#[test]
fn a_disagreement_is_seen() {
    let observed = Observed {
        counter: Counter::Divert(DivertKind::Esp),
        handle: 7,
        from_terminal: false,
        l3_offset: 14,
        fib: FibStatus::Resolved,
        packet: Vec::new(),
    };
    let verdict = |handle| Verdict::Divert {
        kind: DivertKind::Esp,
        handle,
        from_terminal: false,
    };
    assert!(observed.agrees(&verdict(7)) && !observed.agrees(&verdict(8)));
    assert!(!observed.agrees(&Verdict::Ordinary) && !observed.agrees(&Verdict::Drop(DropReason::Truncated)));
}
