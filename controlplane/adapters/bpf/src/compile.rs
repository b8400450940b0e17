//! From a service profile (spec row K2) to entries of the classifier's maps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use towpath_base::SubscriberHandle;
use towpath_base::profile::{Condition, ConditionAddress, ServiceProfile};
use towpath_base::selector::Prefix;
use towpath_common::abi::{CONSULT_PAIRS, DIVERT_AH, DIVERT_ESP, DIVERT_TCP, ProfileEntry};
use towpath_common::wire::PORT_IKE_NATT;

/// A subscriber's conditions as the classifier understands them. Equal profiles compile to equal values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CompiledProfile {
    /// The subscriber.
    pub handle: u64,
    /// Conditions per address or prefix of the terminal.
    pub entries: Vec<(Prefix, ProfileEntry)>,
    /// Conditions per terminal and peer; these replace the terminal's own for that peer.
    pub pairs: Vec<(IpAddr, IpAddr, ProfileEntry)>,
    /// Gateway addresses and UDP ports whose messages are diverted.
    pub gateway: Vec<(IpAddr, u16)>,
}

impl CompiledProfile {
    /// With the terminal's TCP in the clear diverted as well, for the relay.
    #[must_use]
    pub fn with_clear_tcp(mut self) -> Self {
        let entries = self.entries.iter_mut().map(|(_, entry)| entry);
        for entry in entries.chain(self.pairs.iter_mut().map(|(_, _, entry)| entry)) {
            entry.flags |= DIVERT_TCP;
        }
        self
    }

    /// Whether TCP in the clear is diverted.
    pub(crate) fn has_clear_tcp(&self) -> bool {
        self.entries
            .iter()
            .any(|(_, entry)| entry.flags & DIVERT_TCP != 0)
    }
}

/// Why a profile has no compiled form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More ports than an entry holds.
    #[error("more than {limit} different ports for {address} in one direction", limit = MAX_PORTS)]
    TooManyPorts {
        /// The address or prefix.
        address: Prefix,
    },
    /// A condition restricted to a peer needs one terminal address and one peer address.
    #[error("a condition for peer {peer} needs single addresses on both sides, but names {address}")]
    PairOfPrefixes {
        /// The terminal's side.
        address: Prefix,
        /// The peer's side.
        peer: Prefix,
    },
    /// A condition of list 3 has to name one gateway address.
    #[error("a gateway condition has to name one gateway address, not {0}")]
    GatewayAddress(ConditionAddress),
    /// Port 0 means nothing.
    #[error("port 0 in a condition for {0}")]
    NoPort(ConditionAddress),
}

const MAX_PORTS: usize = 4;

#[derive(Clone, Copy)]
enum Direction {
    ToTerminal,
    FromTerminal,
}

/// Ports of both directions, and whether an entry exists at all.
#[derive(Default, Clone)]
struct Ports {
    to: Vec<u16>,
    from: Vec<u16>,
}

impl Ports {
    fn add(&mut self, direction: Direction, port: u16) {
        let list = match direction {
            Direction::ToTerminal => &mut self.to,
            Direction::FromTerminal => &mut self.from,
        };
        if !list.contains(&port) {
            list.push(port);
        }
    }

    /// `None` if a direction has too many.
    fn entry(&self, handle: u64, flags: u32) -> Option<ProfileEntry> {
        let (to_terminal, natt_to) = slots(&self.to)?;
        let (from_terminal, natt_from) = slots(&self.from)?;
        Some(ProfileEntry {
            handle,
            flags,
            natt_to,
            natt_from,
            prefix_bits: 0,
            to_terminal,
            from_terminal,
        })
    }
}

fn slots(ports: &[u16]) -> Option<([u16; MAX_PORTS], u8)> {
    if ports.len() > MAX_PORTS {
        return None;
    }
    let mut slots = [0; MAX_PORTS];
    let mut natt = 0;
    for (index, port) in ports.iter().enumerate() {
        slots[index] = *port;
        // The framing of RFC 3948 is a property of its port; every other port carries bare IKE.
        natt |= u8::from(*port == PORT_IKE_NATT) << index;
    }
    Some((slots, natt))
}

/// Compiles the profile of a subscriber whose terminal has these addresses. ESP and AH of every address a
/// condition names are diverted too: where IKE is proxied, IPsec follows.
pub fn compile(
    handle: SubscriberHandle,
    profile: &ServiceProfile,
    addresses: &[IpAddr],
) -> Result<CompiledProfile, CompileError> {
    let handle = handle.0;
    let mut hosts: BTreeMap<Prefix, Ports> = BTreeMap::new();
    let mut pairs: BTreeMap<(IpAddr, IpAddr), Ports> = BTreeMap::new();
    let lists = [
        (Direction::ToTerminal, &profile.to_terminal),
        (Direction::FromTerminal, &profile.from_terminal),
    ];
    for (direction, conditions) in lists {
        for condition in conditions {
            for address in terminal_side(condition, addresses)? {
                let Some(peer) = condition.peer else {
                    hosts.entry(address).or_default().add(direction, condition.port);
                    continue;
                };
                if !address.is_host() || !peer.is_host() {
                    return Err(CompileError::PairOfPrefixes { address, peer });
                }
                if address.address().is_ipv4() == peer.address().is_ipv4() {
                    let key = (address.address(), peer.address());
                    pairs.entry(key).or_default().add(direction, condition.port);
                }
            }
        }
    }
    link(handle, hosts, pairs, gateway_side(profile)?)
}

/// Adds the terminal's general conditions to those of its pairs, and makes the general entry point to them.
fn link(
    handle: u64,
    mut hosts: BTreeMap<Prefix, Ports>,
    mut pairs: BTreeMap<(IpAddr, IpAddr), Ports>,
    gateway: Vec<(IpAddr, u16)>,
) -> Result<CompiledProfile, CompileError> {
    let ipsec = DIVERT_ESP | DIVERT_AH;
    let mut compiled = CompiledProfile {
        handle,
        gateway,
        ..CompiledProfile::default()
    };
    let with_pairs: Vec<Prefix> = pairs
        .keys()
        .map(|(terminal, _)| Prefix::host(*terminal))
        .collect();
    for ((terminal, peer), ports) in &mut pairs {
        let address = Prefix::host(*terminal);
        if let Some(general) = hosts.get(&address) {
            general
                .to
                .iter()
                .for_each(|port| ports.add(Direction::ToTerminal, *port));
            general
                .from
                .iter()
                .for_each(|port| ports.add(Direction::FromTerminal, *port));
        }
        let entry = ports
            .entry(handle, ipsec)
            .ok_or(CompileError::TooManyPorts { address })?;
        compiled.pairs.push((*terminal, *peer, entry));
    }
    for address in &with_pairs {
        // Without a general condition other peers are none of the gateway's business.
        hosts.entry(*address).or_default();
    }
    for (address, ports) in hosts {
        let mut flags = if ports.to.is_empty() && ports.from.is_empty() {
            0
        } else {
            ipsec
        };
        if with_pairs.contains(&address) {
            flags |= CONSULT_PAIRS;
        }
        let entry = ports
            .entry(handle, flags)
            .ok_or(CompileError::TooManyPorts { address })?;
        compiled.entries.push((address, entry));
    }
    Ok(compiled)
}

fn terminal_side(condition: &Condition, addresses: &[IpAddr]) -> Result<Vec<Prefix>, CompileError> {
    if condition.port == 0 {
        return Err(CompileError::NoPort(condition.address));
    }
    Ok(match condition.address {
        ConditionAddress::Terminal => addresses.iter().map(|address| Prefix::host(*address)).collect(),
        ConditionAddress::Prefix(prefix) => vec![prefix],
    })
}

fn gateway_side(profile: &ServiceProfile) -> Result<Vec<(IpAddr, u16)>, CompileError> {
    let mut gateway = Vec::new();
    for condition in &profile.to_gateway {
        match condition.address {
            _ if condition.port == 0 => return Err(CompileError::NoPort(condition.address)),
            ConditionAddress::Prefix(prefix) if prefix.is_host() => {
                gateway.push((prefix.address(), condition.port));
            }
            address => return Err(CompileError::GatewayAddress(address)),
        }
    }
    gateway.sort_unstable();
    gateway.dedup();
    Ok(gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 1, 2));
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 9, 2));

    fn condition(port: u16, peer: Option<IpAddr>) -> Condition {
        Condition {
            address: ConditionAddress::Terminal,
            peer: peer.map(Prefix::host),
            port,
        }
    }

    #[test]
    fn the_standard_profile_is_the_standard_entry_for_every_address() {
        let addresses = [TERMINAL, "fd77:1::2".parse().unwrap()];
        let compiled = compile(SubscriberHandle(7), &ServiceProfile::standard(), &addresses).unwrap();
        assert_eq!(
            compiled.entries,
            addresses.map(|ip| (Prefix::host(ip), ProfileEntry::standard(7)))
        );
        assert!(compiled.pairs.is_empty() && compiled.gateway.is_empty());
    }

    #[test]
    fn a_pair_adds_its_port_to_the_general_ones() {
        let mut profile = ServiceProfile::standard();
        profile.to_terminal.push(condition(5500, Some(PEER)));
        let compiled = compile(SubscriberHandle(7), &profile, &[TERMINAL]).unwrap();
        assert_eq!(
            compiled.entries[0].1.flags,
            DIVERT_ESP | DIVERT_AH | CONSULT_PAIRS
        );
        let (terminal, peer, entry) = compiled.pairs[0];
        assert_eq!(
            (terminal, peer, entry.to_terminal),
            (TERMINAL, PEER, [5500, 500, 4500, 0])
        );
        assert_eq!(entry.natt_to, 0b100);
    }

    #[test]
    fn tcp_in_the_clear_is_diverted_where_it_is_asked_for() {
        let mut profile = ServiceProfile::standard();
        profile.to_terminal.push(condition(5500, Some(PEER)));
        let plain = compile(SubscriberHandle(7), &profile, &[TERMINAL]).unwrap();
        assert!(!plain.has_clear_tcp());
        let relayed = plain.clone().with_clear_tcp();
        assert!(relayed.has_clear_tcp());
        let flags = |compiled: &CompiledProfile| (compiled.entries[0].1.flags, compiled.pairs[0].2.flags);
        let (before, after) = (flags(&plain), flags(&relayed));
        assert_eq!(after, (before.0 | DIVERT_TCP, before.1 | DIVERT_TCP));
    }

    #[test]
    fn a_pair_alone_leaves_other_peers_untouched() {
        let profile = ServiceProfile {
            to_terminal: vec![condition(500, Some(PEER))],
            ..Default::default()
        };
        let compiled = compile(SubscriberHandle(7), &profile, &[TERMINAL]).unwrap();
        let entry = compiled.entries[0].1;
        assert_eq!((entry.flags, entry.to_terminal), (CONSULT_PAIRS, [0; 4]));
    }

    #[test]
    fn what_the_maps_cannot_hold_is_refused_by_name() {
        let many = ServiceProfile {
            to_terminal: (1..=5).map(|port| condition(port, None)).collect(),
            ..Default::default()
        };
        let error = compile(SubscriberHandle(7), &many, &[TERMINAL]).unwrap_err();
        assert_eq!(
            error,
            CompileError::TooManyPorts {
                address: Prefix::host(TERMINAL)
            }
        );
        let none = ServiceProfile {
            to_gateway: vec![condition(500, None)],
            ..Default::default()
        };
        let error = compile(SubscriberHandle(7), &none, &[TERMINAL]).unwrap_err();
        assert_eq!(error, CompileError::GatewayAddress(ConditionAddress::Terminal));
    }
}
