//! Frames as the XDP program sees them: parser and classifier on bytes of any kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_common::abi::{
    Address, GLOBAL_GATEWAY, GatewayCondition, GatewayKey, Globals, PairKey, PortInfo, ProfileEntry, Role,
};
use towpath_common::classify::Tables;
use towpath_common::{Verdict, abi, classify_frame};

/// Half of all addresses are terminals, some pairs and some gateway addresses have conditions.
struct Halves;

const TERMINAL: ProfileEntry = ProfileEntry::standard(7);
const CONDITION: GatewayCondition = GatewayCondition { handle: 7 };

impl Tables for Halves {
    fn profile(&self, address: &Address) -> Option<&ProfileEntry> {
        last(address).is_multiple_of(2).then_some(&TERMINAL)
    }

    fn pair(&self, key: &PairKey) -> Option<&ProfileEntry> {
        last(&key.peer).is_multiple_of(3).then_some(&TERMINAL)
    }

    fn gateway(&self, key: &GatewayKey) -> Option<&GatewayCondition> {
        last(&key.address).is_multiple_of(5).then_some(&CONDITION)
    }
}

fn last(address: &Address) -> u8 {
    match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets()[3],
        std::net::IpAddr::V6(ip) => ip.octets()[15],
    }
}

fuzz_target!(|input: (bool, &[u8])| {
    let (access, frame) = input;
    let role = if access { Role::Access } else { Role::Core };
    let port = PortInfo {
        role: role as u32,
        flags: 0,
        xsk_base: 0,
        queues: 1,
        mac: [0; 6],
        reserved: [0; 2],
    };
    let globals = Globals {
        reserved_spi: 100,
        abi_version: abi::ABI_VERSION,
        flags: GLOBAL_GATEWAY,
    };
    let (verdict, headers) = classify_frame(frame, &port, &globals, &Halves);
    if let Some(headers) = headers {
        assert!(headers.l3_offset <= headers.l4_offset && headers.l4_offset <= headers.end);
        assert!(headers.end as usize <= frame.len());
    } else {
        assert!(
            matches!(verdict, Verdict::NotOurs(_) | Verdict::Drop(_)),
            "nothing is done with what has no headers"
        );
    }
});
