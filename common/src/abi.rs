//! Layout of the BPF maps and of the metadata in front of a diverted packet.
//!
//! Everything is `repr(C)` without implicit padding. Integers are in host byte order unless a field says
//! otherwise; addresses stand in memory as on the wire. Changing any layout or meaning here means raising
//! [`ABI_VERSION`]: the loader refuses pinned maps and objects of another version.

use core::mem::size_of;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::byteorder::native_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::counter::{DivertKind, FibStatus};

/// Version of everything in this module.
pub const ABI_VERSION: u32 = 1;

/// ELF section of the BPF object that holds [`ABI_VERSION`], four bytes, little endian.
pub const ABI_SECTION: &str = "towpath_abi";

/// Default of [`Globals::reserved_spi`]: the value of both SPIs in a key-exchange proxy request.
pub const RESERVED_SPI_DEFAULT: u64 = 100;

/// Entries every profile map has room for.
pub const MAX_SUBSCRIBER_ENTRIES: u32 = 1 << 20;
/// Network ports (interfaces) one gateway can use.
pub const MAX_PORTS: u32 = 64;
/// Receive queues per port: port number × this is the port's [`PortInfo::xsk_base`].
pub const QUEUES_PER_PORT: u32 = 64;
/// Entries of the gateway's own condition list.
pub const MAX_GATEWAY_CONDITIONS: u32 = 1024;

/// Names of the maps, in the object and under the pin directory.
pub mod map {
    /// Array of one [`Globals`](super::Globals).
    pub const GLOBALS: &str = "GLOBALS";
    /// Hash: interface index (`u32`) → [`PortInfo`](super::PortInfo).
    pub const PORTS: &str = "PORTS";
    /// Hash: [`Key4`](super::Key4) → [`ProfileEntry`](super::ProfileEntry).
    pub const HOSTS4: &str = "HOSTS4";
    /// Hash: [`Address`](super::Address) → [`ProfileEntry`](super::ProfileEntry).
    pub const HOSTS6: &str = "HOSTS6";
    /// Longest-prefix trie over IPv4 → [`ProfileEntry`](super::ProfileEntry).
    pub const PREFIXES4: &str = "PREFIXES4";
    /// Longest-prefix trie over IPv6 → [`ProfileEntry`](super::ProfileEntry).
    pub const PREFIXES6: &str = "PREFIXES6";
    /// Hash: [`PairKey`](super::PairKey) → [`ProfileEntry`](super::ProfileEntry).
    pub const PAIRS: &str = "PAIRS";
    /// Hash: [`GatewayKey`](super::GatewayKey) → [`GatewayCondition`](super::GatewayCondition).
    pub const GATEWAY: &str = "GATEWAY";
    /// AF_XDP sockets by `xsk_base + queue`.
    pub const XSKS: &str = "XSKS";
    /// Devices a packet may be forwarded to, by interface index.
    pub const TX_PORTS: &str = "TX_PORTS";
    /// Per-CPU array of [`Count`](super::Count), indexed by [`crate::counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Every map, in the order the documentation lists them.
    pub const ALL: &[&str] = &[
        GLOBALS, PORTS, HOSTS4, HOSTS6, PREFIXES4, PREFIXES6, PAIRS, GATEWAY, XSKS, TX_PORTS, COUNTERS,
    ];
}

/// An IPv4 address as a key: four bytes in network order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Key4 {
    /// The address, bytes in network order.
    pub word: u32,
}

/// An IPv6 or IPv4-mapped (RFC 4291 §2.5.5.2) address: sixteen bytes in network order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Address {
    /// The address in 32-bit pieces, bytes in network order.
    pub words: [u32; 4],
}

impl Address {
    /// `0:0:0:0:0:ffff`, the third word of a mapped IPv4 address, bytes in network order.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// An IPv4 address, mapped.
    #[inline(always)]
    pub const fn mapped(word: u32) -> Self {
        Self {
            words: [0, 0, Self::MAPPED, word],
        }
    }

    /// True for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words;
        a == 0 && b == 0 && c == Self::MAPPED
    }

    /// The key of the IPv4 maps. Meaningful only when [`Address::is_v4`].
    #[inline(always)]
    pub const fn key4(&self) -> Key4 {
        let [_, _, _, word] = self.words;
        Key4 { word }
    }

    /// Sixteen bytes in network order.
    pub fn octets(&self) -> [u8; 16] {
        zerocopy::transmute!(self.words)
    }

    /// The address as the standard library knows it.
    pub fn ip(&self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from_octets(self.key4().word.to_ne_bytes()))
        } else {
            IpAddr::V6(Ipv6Addr::from_octets(self.octets()))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::mapped(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => Self {
                words: zerocopy::transmute!(v6.octets()),
            },
        }
    }
}

/// Facts about the whole gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Globals {
    /// Value of both SPIs in a message a terminal addresses to the network.
    pub reserved_spi: u64,
    /// [`ABI_VERSION`] of the loader that created the maps.
    pub abi_version: u32,
    /// Bits `GLOBAL_*`.
    pub flags: u32,
}

/// [`Globals::flags`]: `PREFIXES4` has entries.
pub const GLOBAL_PREFIXES4: u32 = 1 << 0;
/// [`Globals::flags`]: `PREFIXES6` has entries.
pub const GLOBAL_PREFIXES6: u32 = 1 << 1;
/// [`Globals::flags`]: `GATEWAY` has entries.
pub const GLOBAL_GATEWAY: u32 = 1 << 2;
/// [`Globals::flags`]: some entry has [`DIVERT_TCP`].
pub const GLOBAL_TCP: u32 = 1 << 3;

/// Which side of the gateway a port faces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// Towards terminals.
    Access = 0,
    /// Towards peers.
    Core = 1,
}

impl Role {
    /// Reads [`PortInfo::role`]; anything unknown is a core port, which trusts less.
    #[inline(always)]
    pub const fn from_abi(value: u32) -> Self {
        if value == Role::Access as u32 {
            Role::Access
        } else {
            Role::Core
        }
    }
}

/// One network port of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PortInfo {
    /// A [`Role`].
    pub role: u32,
    /// Bits `PORT_*`.
    pub flags: u32,
    /// Index in `XSKS` of the port's queue 0.
    pub xsk_base: u32,
    /// Number of receive queues.
    pub queues: u32,
    /// MAC address of the port; frames for another one are left to the kernel. All zero: take any.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// [`PortInfo::flags`]: ordinary packets may leave through this port.
pub const PORT_TRANSMIT: u32 = 1 << 0;

/// The compiled IPsec application conditions of a subscriber for one address or prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ProfileEntry {
    /// The subscriber's handle, repeated in [`DivertMeta`].
    pub handle: u64,
    /// Bits `DIVERT_*` and [`CONSULT_PAIRS`].
    pub flags: u32,
    /// Bit *i*: port *i* of [`ProfileEntry::to_terminal`] uses the framing of RFC 3948.
    pub natt_to: u8,
    /// Bit *i*: port *i* of [`ProfileEntry::from_terminal`] uses the framing of RFC 3948.
    pub natt_from: u8,
    /// In a prefix map, the length of the prefix the entry stands for: a look-up finds the longest match, and
    /// only this tells whether it is exact. Zero elsewhere.
    pub prefix_bits: u16,
    /// UDP ports whose messages towards the terminal are diverted (condition list 1); 0 is unused.
    pub to_terminal: [u16; 4],
    /// UDP ports whose messages from the terminal are diverted (condition list 2); 0 is unused.
    pub from_terminal: [u16; 4],
}

/// [`ProfileEntry::flags`]: ESP of the terminal goes to user space.
pub const DIVERT_ESP: u32 = 1 << 0;
/// [`ProfileEntry::flags`]: AH of the terminal goes to user space.
pub const DIVERT_AH: u32 = 1 << 1;
/// [`ProfileEntry::flags`]: an entry of `PAIRS` for terminal and peer, if there is one, replaces this one.
pub const CONSULT_PAIRS: u32 = 1 << 2;
/// [`ProfileEntry::flags`]: the terminal's TCP in the clear goes to user space, for the relay.
pub const DIVERT_TCP: u32 = 1 << 3;

impl ProfileEntry {
    /// The usual conditions: IKE on 500, IKE and ESP on 4500 (RFC 3948), and plain ESP and AH.
    pub const fn standard(handle: u64) -> Self {
        Self {
            handle,
            flags: DIVERT_ESP | DIVERT_AH,
            natt_to: 0b10,
            natt_from: 0b10,
            prefix_bits: 0,
            to_terminal: [500, 4500, 0, 0],
            from_terminal: [500, 4500, 0, 0],
        }
    }
}

/// Key of a condition restricted to a terminal and a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PairKey {
    /// The terminal's address.
    pub terminal: Address,
    /// The peer's address.
    pub peer: Address,
}

/// Key of a condition for a message addressed to the gateway itself (condition list 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GatewayKey {
    /// The gateway's address.
    pub address: Address,
    /// UDP destination port, zero-extended so that the key has no padding.
    pub port: u32,
}

/// What a gateway condition says; its handle is zero where no subscriber owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GatewayCondition {
    /// Handle of the subscriber whose list holds the condition.
    pub handle: u64,
}

/// One counter on one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, link header included.
    pub bytes: u64,
}

/// Facts about a diverted packet, in the 32 bytes directly in front of it.
///
/// The packet itself is as it was received: TTL, MAC addresses and tags are untouched. The addresses and the
/// egress are valid only when [`DivertMeta::fib_status`] is [`FibStatus::Resolved`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DivertMeta {
    /// Handle of the subscriber concerned; 0 for a request from an address without profile.
    pub handle: U64,
    /// [`ABI_VERSION`], low half.
    pub abi: U16,
    /// Bits `META_*`.
    pub flags: U16,
    /// Interface the kernel would send the packet to.
    pub egress_ifindex: U32,
    /// MAC address of the next hop.
    pub dmac: [u8; 6],
    /// MAC address of the egress interface.
    pub smac: [u8; 6],
    /// Bytes from the start of the frame to the IP header: 14, 18 or 22.
    pub l3_offset: U16,
    /// A [`DivertKind`].
    pub kind: u8,
    /// A [`FibStatus`].
    pub fib: u8,
}

/// [`DivertMeta::flags`]: the terminal of [`DivertMeta::handle`] sent the packet (otherwise it is for it).
pub const META_FROM_TERMINAL: u16 = 1 << 0;
/// [`DivertMeta::flags`]: the port the packet came in through faces terminals.
pub const META_ACCESS_PORT: u16 = 1 << 1;

impl DivertMeta {
    /// Bytes of the metadata.
    pub const LEN: usize = size_of::<Self>();

    /// Why the packet was diverted; `None` if the bytes were not written by a program of this version.
    pub fn divert_kind(&self) -> Option<DivertKind> {
        if u32::from(self.abi.get()) != ABI_VERSION & 0xffff {
            return None;
        }
        DivertKind::ALL.get(usize::from(self.kind)).copied()
    }

    /// What the kernel's routing said.
    pub fn fib_status(&self) -> FibStatus {
        FibStatus::ALL
            .get(usize::from(self.fib))
            .copied()
            .unwrap_or(FibStatus::Unknown)
    }

    /// True if the terminal sent the packet.
    pub fn from_terminal(&self) -> bool {
        self.flags.get() & META_FROM_TERMINAL != 0
    }
}

// The layout is shared with a program compiled by another compiler: assert it.
const _: () = {
    assert!(size_of::<Key4>() == 4);
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<Globals>() == 16);
    assert!(size_of::<PortInfo>() == 24);
    assert!(size_of::<ProfileEntry>() == 32);
    assert!(size_of::<PairKey>() == 32);
    assert!(size_of::<GatewayKey>() == 20);
    assert!(size_of::<GatewayCondition>() == 8);
    assert!(size_of::<Count>() == 16);
    assert!(size_of::<DivertMeta>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_network_order_in_memory() {
        let v4 = Address::from(IpAddr::V4(Ipv4Addr::new(10, 77, 1, 2)));
        assert_eq!(
            v4.octets(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 1, 2]
        );
        assert_eq!(v4.key4().as_bytes(), [10, 77, 1, 2]);
        assert!(v4.is_v4());
        let ip = IpAddr::V6("fd77:1::2".parse().unwrap());
        assert_eq!(Address::from(ip).ip(), ip);
        assert!(!Address::from(ip).is_v4());
    }

    #[test]
    fn metadata_of_another_version_has_no_kind() {
        let mut meta = DivertMeta {
            abi: U16::new(ABI_VERSION as u16),
            ..DivertMeta::default()
        };
        assert!(meta.divert_kind().is_some());
        meta.abi.set(ABI_VERSION as u16 + 1);
        assert_eq!(meta.divert_kind(), None);
        meta.abi.set(ABI_VERSION as u16);
        meta.kind = 200;
        assert_eq!(meta.divert_kind(), None);
    }
}
