//! Ranges of addresses and ports as what the kernel has: prefixes and masks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_kernel::xfrm::{Direction, Selector};

/// The kernel's selectors for packets between `local` and `remote`: it knows prefixes and masks, not ranges.
pub(super) fn selectors(
    direction: Direction,
    local: &TrafficSelector,
    remote: &TrafficSelector,
) -> Vec<Selector> {
    let protocol = if local.protocol == 0 {
        remote.protocol
    } else {
        local.protocol
    };
    let (from, to) = match direction {
        Direction::Out => (local, remote),
        Direction::In => (remote, local),
    };
    let ports = |side: &TrafficSelector| -> Vec<(u16, u16)> {
        let blocks = blocks(side.first_port.into(), side.last_port.into(), 16);
        blocks
            .into_iter()
            .map(|(value, bits)| (value as u16, mask(bits)))
            .collect()
    };
    let mut all = Vec::new();
    for source in prefixes(from.first, from.last) {
        for destination in prefixes(to.first, to.last) {
            for &source_port in &ports(from) {
                for &destination_port in &ports(to) {
                    all.push(Selector {
                        source,
                        destination,
                        protocol,
                        source_port,
                        destination_port,
                    });
                }
            }
        }
    }
    all
}

const fn mask(bits: u8) -> u16 {
    match u16::MAX.checked_shl(16 - bits as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

fn prefixes(first: IpAddr, last: IpAddr) -> Vec<Prefix> {
    let (from, to, width) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits().into(), last.to_bits().into(), 32),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits(), last.to_bits(), 128),
        _ => return Vec::new(),
    };
    let address = |value: u128| match first {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(value as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(value)),
    };
    let blocks = blocks(from, to, width).into_iter();
    blocks
        .filter_map(|(value, bits)| Prefix::new(address(value), bits))
        .collect()
}

/// The fewest aligned blocks that are `first` to `last`: value and leading bits of `width`.
fn blocks(first: u128, last: u128, width: u8) -> Vec<(u128, u8)> {
    let mut all = Vec::new();
    let mut at = first;
    loop {
        // As large as the alignment of the start and the end permit.
        let mut free = at.trailing_zeros().min(width.into()) as u8;
        let end = |free: u8| at | 1u128.checked_shl(free.into()).map_or(u128::MAX, |size| size - 1);
        while end(free) > last {
            free -= 1;
        }
        all.push((at, width - free));
        let end = end(free);
        if end >= last {
            return all;
        }
        at = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_the_fewest_blocks() {
        assert_eq!(blocks(0, 65535, 16), [(0, 0)]);
        assert_eq!(blocks(80, 80, 16), [(80, 16)]);
        assert_eq!(blocks(80, 90, 16), [(80, 13), (88, 15), (90, 16)]);
        assert_eq!(blocks(1, 65535, 16).len(), 16);
        assert_eq!(blocks(0, u128::MAX, 128), [(0, 0)]);
        for (first, last) in [(3, 17), (0, 4095), (1000, 1001), (5, 5), (65535, 65535)] {
            let covered: Vec<u128> = blocks(first, last, 16)
                .into_iter()
                .flat_map(|(value, bits)| value..value + (1 << (16 - bits)))
                .collect();
            assert_eq!(covered, (first..=last).collect::<Vec<_>>());
        }
        let net: Vec<String> = prefixes("10.0.0.1".parse().unwrap(), "10.0.0.6".parse().unwrap())
            .iter()
            .map(Prefix::to_string)
            .collect();
        assert_eq!(net, ["10.0.0.1", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6"]);
    }

    #[test]
    fn port_masks_follow_the_bits() {
        assert_eq!((mask(0), mask(16), mask(13)), (0, u16::MAX, 0xfff8));
    }
}
