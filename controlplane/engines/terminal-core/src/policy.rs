//! The security policy database (RFC 4301 §4.4.1): in order, first match wins.

use core::net::IpAddr;

use towpath_base::selector::TrafficSelector;
use towpath_ipsec::Flow;

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Only under an SA, which is asked for when there is none.
    Protect {
        /// Who to have the SA with: a security gateway; `None` for the destination itself.
        peer: Option<IpAddr>,
    },
    /// In clear.
    Bypass,
    /// Dropped.
    Discard,
}

/// One entry of the SPD, written for outgoing packets; for incoming ones source and destination change places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The far side: addresses, protocol, ports.
    pub remote: TrafficSelector,
    /// First port of the near side; with `last_local_port` 0..=65535 means any.
    pub first_local_port: u16,
    /// Last port of the near side.
    pub last_local_port: u16,
    /// What happens.
    pub action: Action,
}

impl Policy {
    /// `action` for everything to and from `remote`.
    pub const fn new(remote: TrafficSelector, action: Action) -> Self {
        Self {
            remote,
            first_local_port: 0,
            last_local_port: u16::MAX,
            action,
        }
    }

    fn matches(
        &self,
        remote: IpAddr,
        protocol: u8,
        remote_port: Option<u16>,
        local_port: Option<u16>,
    ) -> bool {
        let ports = self.first_local_port..=self.last_local_port;
        self.remote.matches(remote, protocol, remote_port)
            && local_port.map_or(ports == (0..=u16::MAX), |port| ports.contains(&port))
    }
}

/// At most `N` policies.
#[derive(Debug, Clone)]
pub(crate) struct Spd<const N: usize> {
    entries: [Option<Policy>; N],
}

impl<const N: usize> Spd<N> {
    /// `None` if there are more than `N`.
    pub(crate) fn new(policies: &[Policy]) -> Option<Self> {
        let mut entries = [None; N];
        for (slot, policy) in entries.get_mut(..policies.len())?.iter_mut().zip(policies) {
            *slot = Some(*policy);
        }
        Some(Self { entries })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.entries.iter().flatten()
    }

    /// What the SPD says of an outgoing packet; what it does not know leaves in clear (K8).
    pub(crate) fn outgoing(&self, flow: &Flow) -> Action {
        self.iter()
            .find(|p| {
                p.matches(
                    flow.destination,
                    flow.protocol,
                    flow.destination_port,
                    flow.source_port,
                )
            })
            .map_or(Action::Bypass, |policy| policy.action)
    }

    /// What the SPD says of a packet that came in clear.
    pub(crate) fn incoming(&self, flow: &Flow) -> Action {
        self.iter()
            .find(|p| {
                p.matches(
                    flow.source,
                    flow.protocol,
                    flow.source_port,
                    flow.destination_port,
                )
            })
            .map_or(Action::Bypass, |policy| policy.action)
    }
}
