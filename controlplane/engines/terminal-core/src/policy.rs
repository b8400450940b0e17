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

/// Whom an SA is with, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Towards {
    pub(crate) peer: IpAddr,
    /// Sensitivity level.
    pub(crate) level: u8,
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
    /// Sensitivity level of the packets it is about, and of their SAs (T21). `None`: whatever their level, under SAs of
    /// level 0.
    pub level: Option<u8>,
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
            level: None,
            action,
        }
    }

    fn matches(&self, far: &Far, level: u8) -> bool {
        let ports = self.first_local_port..=self.last_local_port;
        self.level.is_none_or(|wanted| wanted == level)
            && self.remote.matches(far.remote, far.protocol, far.remote_port)
            && far
                .local_port
                .map_or(ports == (0..=u16::MAX), |port| ports.contains(&port))
    }
}

/// A packet seen from the terminal, whichever way it goes.
struct Far {
    remote: IpAddr,
    protocol: u8,
    remote_port: Option<u16>,
    local_port: Option<u16>,
}

impl Far {
    const fn outgoing(flow: &Flow) -> Self {
        Self {
            remote: flow.destination,
            protocol: flow.protocol,
            remote_port: flow.destination_port,
            local_port: flow.source_port,
        }
    }

    const fn incoming(flow: &Flow) -> Self {
        Self {
            remote: flow.source,
            protocol: flow.protocol,
            remote_port: flow.source_port,
            local_port: flow.destination_port,
        }
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

    /// What the SPD says of an outgoing packet of `level`, and the level of its SA; what it does not know leaves in clear
    /// (K8).
    pub(crate) fn outgoing(&self, flow: &Flow, level: u8) -> (Action, u8) {
        self.decide(&Far::outgoing(flow), level)
    }

    /// What the SPD says of a packet that came in clear: it has no level.
    pub(crate) fn incoming(&self, flow: &Flow) -> Action {
        self.decide(&Far::incoming(flow), 0).0
    }

    /// Whether a packet may come by an SA of this kind (RFC 4301 §5.2, step 4).
    pub(crate) fn permits(&self, flow: &Flow, by: Towards) -> bool {
        match self.decide(&Far::incoming(flow), by.level) {
            (Action::Protect { peer }, level) => level == by.level && peer.unwrap_or(flow.source) == by.peer,
            (Action::Bypass | Action::Discard, _) => false,
        }
    }

    fn decide(&self, far: &Far, level: u8) -> (Action, u8) {
        let found = self.iter().find(|policy| policy.matches(far, level));
        found.map_or((Action::Bypass, 0), |policy| {
            (policy.action, policy.level.unwrap_or(0))
        })
    }
}
