//! What can happen to a packet in the XDP program: one table each for name, text and counter index.
//!
//! The counters of the `COUNTERS` map are laid out as
//!
//! ```text
//! DIVERT_BASE  + DivertKind    packets redirected to an AF_XDP socket
//! FORWARDED                    packets forwarded inside XDP
//! PASS_BASE    + PassReason    packets left to the kernel
//! DROP_BASE    + DropReason    packets dropped
//! ```

use crate::DropReason;

macro_rules! outcomes {
    ($(#[$head:meta])* $type:ident { $($variant:ident = $name:literal, $text:literal;)+ }) => {
        $(#[$head])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $type {
            $(#[doc = $text] $variant,)+
        }

        impl $type {
            /// Every value, by discriminant.
            pub const ALL: &'static [$type] = &[$($type::$variant,)+];

            /// Stable machine name (`snake_case`).
            pub const fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)+ }
            }

            /// One line for people.
            pub const fn text(self) -> &'static str {
                match self { $($type::$variant => $text,)+ }
            }
        }
    };
}

outcomes! {
    /// Why a packet goes to user space. The discriminant is part of the ABI: append, never reorder.
    DivertKind {
        IkeFromTerminal = "ike_from_terminal", "message of a terminal for the network (both SPIs reserved)";
        IkeToTerminal = "ike_to_terminal", "IKE message for a served terminal";
        Esp = "esp", "ESP of a served terminal";
        Ah = "ah", "AH of a served terminal";
        NattEsp = "natt_esp", "UDP-encapsulated ESP of a served terminal";
        NattIke = "natt_ike", "IKE message with non-ESP marker for a served terminal";
        NattKeepalive = "natt_keepalive", "NAT keepalive of a served terminal or its peer";
        ToGateway = "to_gateway", "message addressed to the gateway that a condition names";
        Fragment = "fragment", "fragment that may be IPsec, or IKE, of a served terminal";
        TooBig = "too_big", "ICMP: a packet of a served terminal or its peer was too big";
        Wrapped = "wrapped", "IP-in-IP or GRE around IPsec or IKE of a served terminal";
        Tcp = "tcp", "TCP in the clear of a terminal whose connections are relayed";
    }
}

outcomes! {
    /// Why a packet is left to the kernel. The discriminant is part of the ABI: append, never reorder.
    PassReason {
        NotIp = "not_ip", "neither IPv4 nor IPv6";
        UnknownPort = "unknown_port", "came in through an interface that is not a port of the gateway";
        OtherHost = "other_host", "link-layer address is not the port's";
        NotUnicast = "not_unicast", "multicast, broadcast, link-local or loopback address";
        Fragment = "fragment", "IP fragment";
        Options = "options", "IPv4 options or IPv6 hop-by-hop options";
        Tagged = "tagged", "ordinary packet with a VLAN tag";
        TtlExpiring = "ttl_expiring", "TTL or hop limit 1: the kernel answers with ICMP";
        NotForwarded = "not_forwarded", "for the gateway itself, or the kernel has no route to forward it on";
        NoNeighbour = "no_neighbour", "link-layer address of the next hop not resolved yet";
        TooBig = "too_big", "larger than the egress MTU: the kernel fragments it or answers with ICMP";
        EgressNotPort = "egress_not_port", "the route leads to an interface that is not a port of the gateway";
        Mismatch = "mismatch", "maps were made by another version of the program";
        NoRelay = "no_relay", "TCP for the relay while no process is there to relay it";
    }
}

outcomes! {
    /// What the kernel's routing said about a diverted packet. Part of the ABI: append, never reorder.
    FibStatus {
        Unknown = "unknown", "not looked up";
        Resolved = "resolved", "egress, source and destination MAC are known and the egress is a port";
        NoNeighbour = "no_neighbour", "route known, link-layer address of the next hop not";
        NotForwarded = "not_forwarded", "for the gateway itself, or no route";
        TooBig = "too_big", "larger than the egress MTU";
        EgressNotPort = "egress_not_port", "egress is known but not a port of the gateway";
    }
}

/// First counter of the diverted packets.
pub const DIVERT_BASE: u32 = 0;
/// Counter of packets forwarded inside XDP.
pub const FORWARDED: u32 = 16;
/// First counter of the packets left to the kernel.
pub const PASS_BASE: u32 = 32;
/// First counter of the dropped packets.
pub const DROP_BASE: u32 = 64;
/// Counters of the map: room for drop reasons that are added later, so that the map keeps its size.
pub const COUNTERS: u32 = 256;

const _: () = {
    assert!(DivertKind::ALL.len() <= FORWARDED as usize);
    assert!(PASS_BASE as usize + PassReason::ALL.len() <= DROP_BASE as usize);
    assert!(DROP_BASE as usize + DropReason::COUNT <= COUNTERS as usize);
};

/// One counter of the XDP program, named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counter {
    /// Diverted to user space.
    Divert(DivertKind),
    /// Forwarded inside XDP.
    Forwarded,
    /// Left to the kernel.
    Pass(PassReason),
    /// Dropped.
    Drop(DropReason),
}

impl Counter {
    /// Place in the `COUNTERS` map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        match self {
            Counter::Divert(kind) => DIVERT_BASE + kind as u32,
            Counter::Forwarded => FORWARDED,
            Counter::Pass(reason) => PASS_BASE + reason as u32,
            Counter::Drop(reason) => DROP_BASE + reason as u32,
        }
    }

    /// Every counter, in the order of the map.
    pub fn all() -> impl Iterator<Item = Counter> {
        let divert = DivertKind::ALL.iter().map(|kind| Counter::Divert(*kind));
        let pass = PassReason::ALL.iter().map(|reason| Counter::Pass(*reason));
        let drop = DropReason::ALL.iter().map(|reason| Counter::Drop(*reason));
        divert
            .chain(core::iter::once(Counter::Forwarded))
            .chain(pass)
            .chain(drop)
    }

    /// `divert`, `forward`, `pass` or `drop`.
    pub const fn verdict(self) -> &'static str {
        match self {
            Counter::Divert(_) => "divert",
            Counter::Forwarded => "forward",
            Counter::Pass(_) => "pass",
            Counter::Drop(_) => "drop",
        }
    }

    /// Machine name within its verdict.
    pub const fn name(self) -> &'static str {
        match self {
            Counter::Divert(kind) => kind.name(),
            Counter::Forwarded => "forwarded",
            Counter::Pass(reason) => reason.name(),
            Counter::Drop(reason) => reason.name(),
        }
    }

    /// One line for people.
    pub const fn text(self) -> &'static str {
        match self {
            Counter::Divert(kind) => kind.text(),
            Counter::Forwarded => "ordinary packet forwarded inside XDP",
            Counter::Pass(reason) => reason.text(),
            Counter::Drop(reason) => reason.text(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_do_not_overlap() {
        let mut previous = None;
        for counter in Counter::all() {
            assert!(previous < Some(counter.index()), "{counter:?}");
            assert!(counter.index() < COUNTERS);
            previous = Some(counter.index());
        }
    }
}
