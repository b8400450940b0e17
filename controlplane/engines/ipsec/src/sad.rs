//! The security association database (RFC 4301 §4.4.2): what is known of each SA, apart from its keys.
//!
//! One entry describes one direction, as the RFC has it. Keys, windows and counters of the packet path live in
//! [`crate::OutboundSa`] and [`crate::InboundSa`]; this table is what policies name and people look at.

use alloc::collections::BTreeMap;
use core::fmt;
use core::net::IpAddr;
use core::time::Duration;

use towpath_base::policy::IpsecProtocol;
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::{Instant, Spi};

/// Smallest and largest replay window (RFC 4303 §3.4.3 asks for 64 at least).
pub const WINDOWS: core::ops::RangeInclusive<u16> = 64..=4096;

/// A learned path MTU is forgotten after this long, so that a larger one is found (RFC 1191 §6.3).
pub const PATH_MTU_AGE: Duration = Duration::from_secs(600);

/// What happens when the sequence numbers are used up (RFC 4301 §4.4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// Nothing is sent any more.
    #[default]
    Stop,
    /// They start over; only where the receiver checks no replays and no IV depends on them.
    RollOver,
}

/// Where IVs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IvRule {
    /// The sequence counter (counter-mode ciphers, RFC 4106 §3.1).
    Counter,
    /// The sequence counter, in the half of the space that the other sender under this key never enters.
    CounterInHalf,
    /// Random (RFC 3602 §3).
    Random,
    /// None (NULL, RFC 2410).
    None,
}

/// What happens at the hard limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AtLimit {
    /// A replacement was asked for at the soft limit and takes over.
    #[default]
    Replace,
    /// The SA ends.
    Delete,
}

/// Path MTU in bytes, IP header included, and when it was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathMtu {
    /// Bytes.
    pub bytes: u16,
    /// When.
    pub learned: Instant,
}

/// AH of an SA: HMAC of this many key bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AhParameters {
    /// Bits of the hash: 256, 384 or 512 (RFC 4868).
    pub hmac_bits: u16,
    /// Limits of the key.
    pub lifetime: Lifetime,
}

/// ESP of an SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EspParameters {
    /// Cipher and integrity.
    pub suite: EspSuite,
    /// Where IVs come from.
    pub iv: IvRule,
    /// Limits of the keys.
    pub lifetime: Lifetime,
}

/// One direction of an SA (spec row T5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SadEntry {
    /// Number policies name it by.
    pub id: u64,
    /// SPI on the wire.
    pub spi: Spi,
    /// Destination of its packets.
    pub destination: IpAddr,
    /// Protocol.
    pub protocol: IpsecProtocol,
    /// Highest sequence number used or accepted.
    pub sequence: u64,
    /// When numbers run out.
    pub overflow: Overflow,
    /// Packets the replay window covers; 0 at a sender.
    pub window: u16,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// AH, if any.
    pub ah: Option<AhParameters>,
    /// ESP, if any.
    pub esp: Option<EspParameters>,
    /// Limits of the SA.
    pub lifetime: Lifetime,
    /// What happens at the hard one.
    pub at_limit: AtLimit,
    /// Mode.
    pub mode: Mode,
    /// Path MTU, if one was learned.
    pub path_mtu: Option<PathMtu>,
}

/// Why an entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SadError {
    /// The table is full.
    Full,
    /// The number, or SPI, destination and protocol are taken.
    Exists,
    /// SPIs below 256 are reserved (RFC 4303 §2.1).
    ReservedSpi,
    /// The replay window is not within [`WINDOWS`].
    Window,
    /// The parameters do not belong to the protocol.
    Protocol,
    /// Sequence numbers may not start over where an IV or a replay window depends on them.
    RollOver,
}

impl fmt::Display for SadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the SA table is full",
            Self::Exists => "an SA with this number, or this SPI, destination and protocol, exists",
            Self::ReservedSpi => "SPIs below 256 are reserved",
            Self::Window => "a replay window has 64 to 4096 packets",
            Self::Protocol => "the parameters are not those of the protocol",
            Self::RollOver => {
                "sequence numbers may not start over where IVs or a replay window depend on them"
            }
        })
    }
}

impl core::error::Error for SadError {}

type Wire = (Spi, IpAddr, u8);

/// The table; bounded.
#[derive(Debug, Clone)]
pub struct Sad {
    entries: BTreeMap<u64, SadEntry>,
    by_wire: BTreeMap<Wire, u64>,
    limit: usize,
}

impl Sad {
    /// No entries yet, at most `limit` ever.
    pub const fn new(limit: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_wire: BTreeMap::new(),
            limit,
        }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Why not; nothing was changed.
    pub fn insert(&mut self, entry: SadEntry) -> Result<(), SadError> {
        check(&entry)?;
        let wire = wire(&entry);
        if self.entries.contains_key(&entry.id) || self.by_wire.contains_key(&wire) {
            return Err(SadError::Exists);
        }
        if self.entries.len() >= self.limit {
            return Err(SadError::Full);
        }
        self.by_wire.insert(wire, entry.id);
        self.entries.insert(entry.id, entry);
        Ok(())
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: u64) -> Option<SadEntry> {
        let entry = self.entries.remove(&id)?;
        self.by_wire.remove(&wire(&entry));
        Some(entry)
    }

    /// The entry with this number.
    pub fn get(&self, id: u64) -> Option<&SadEntry> {
        self.entries.get(&id)
    }

    /// The entry of a packet on the wire (RFC 4301 §4.1).
    pub fn find(&self, spi: Spi, destination: IpAddr, protocol: IpsecProtocol) -> Option<&SadEntry> {
        self.get(*self.by_wire.get(&(spi, destination, protocol as u8))?)
    }

    /// Every entry in order of its number.
    pub fn iter(&self) -> impl Iterator<Item = &SadEntry> {
        self.entries.values()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The path of an SA carries at most `bytes` (ICMP "too big"). A larger value than the known one is a guess
    /// and is not taken.
    pub fn learn_path_mtu(&mut self, now: Instant, id: u64, bytes: u16) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.path_mtu.is_none_or(|known| bytes <= known.bytes)
        {
            entry.path_mtu = Some(PathMtu { bytes, learned: now });
        }
    }

    /// Forgets path MTUs that are too old to be believed; returns how many.
    pub fn age_path_mtus(&mut self, now: Instant) -> usize {
        let mut forgotten = 0;
        for entry in self.entries.values_mut() {
            if entry
                .path_mtu
                .is_some_and(|known| now.saturating_since(known.learned) >= PATH_MTU_AGE)
            {
                entry.path_mtu = None;
                forgotten += 1;
            }
        }
        forgotten
    }

    /// The packet path used or accepted numbers up to `sequence`.
    pub fn note_sequence(&mut self, id: u64, sequence: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.sequence = entry.sequence.max(sequence);
        }
    }
}

const fn wire(entry: &SadEntry) -> Wire {
    (entry.spi, entry.destination, entry.protocol as u8)
}

fn check(entry: &SadEntry) -> Result<(), SadError> {
    if entry.spi.0 < 256 {
        return Err(SadError::ReservedSpi);
    }
    if entry.window != 0 && !WINDOWS.contains(&entry.window) {
        return Err(SadError::Window);
    }
    let belongs = match entry.protocol {
        IpsecProtocol::Esp => entry.esp.is_some() && entry.ah.is_none(),
        IpsecProtocol::Ah => entry.ah.is_some() && entry.esp.is_none(),
        IpsecProtocol::EspAh => entry.esp.is_some() && entry.ah.is_some(),
    };
    if !belongs {
        return Err(SadError::Protocol);
    }
    let counted = entry
        .esp
        .is_some_and(|esp| matches!(esp.iv, IvRule::Counter | IvRule::CounterInHalf));
    if entry.overflow == Overflow::RollOver && (counted || entry.window != 0) {
        return Err(SadError::RollOver);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64, spi: u32) -> SadEntry {
        SadEntry {
            id,
            spi: Spi(spi),
            destination: IpAddr::from([10, 0, 0, 1]),
            protocol: IpsecProtocol::Esp,
            sequence: 0,
            overflow: Overflow::Stop,
            window: 64,
            esn: true,
            ah: None,
            esp: Some(EspParameters {
                suite: EspSuite::Aes128Gcm16,
                iv: IvRule::Counter,
                lifetime: Lifetime::default(),
            }),
            lifetime: Lifetime::default(),
            at_limit: AtLimit::Replace,
            mode: Mode::Wildcard,
            path_mtu: None,
        }
    }

    #[test]
    fn an_entry_is_found_by_what_the_wire_shows_and_the_table_is_bounded() {
        let mut sad = Sad::new(2);
        sad.insert(entry(1, 0x1000)).unwrap();
        assert_eq!(sad.insert(entry(2, 0x1000)), Err(SadError::Exists));
        assert_eq!(sad.insert(entry(1, 0x2000)), Err(SadError::Exists));
        // The same SPI towards another destination, or as AH, is another SA.
        let elsewhere = SadEntry {
            destination: "2001:db8::1".parse().unwrap(),
            ..entry(2, 0x1000)
        };
        sad.insert(elsewhere).unwrap();
        assert_eq!(sad.insert(entry(3, 0x3000)), Err(SadError::Full));
        let found = sad.find(Spi(0x1000), elsewhere.destination, IpsecProtocol::Esp);
        assert_eq!(found.map(|entry| entry.id), Some(2));
        assert_eq!(
            sad.find(Spi(0x1000), elsewhere.destination, IpsecProtocol::Ah),
            None
        );
        assert!(sad.remove(1).is_some());
        assert!(
            sad.find(Spi(0x1000), entry(1, 1).destination, IpsecProtocol::Esp)
                .is_none()
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut sad = Sad::new(8);
        for (refused, why) in [
            (entry(1, 255), SadError::ReservedSpi),
            (
                SadEntry {
                    window: 63,
                    ..entry(1, 256)
                },
                SadError::Window,
            ),
            (
                SadEntry {
                    window: 4097,
                    ..entry(1, 256)
                },
                SadError::Window,
            ),
            (
                SadEntry {
                    esp: None,
                    ..entry(1, 256)
                },
                SadError::Protocol,
            ),
            (
                SadEntry {
                    protocol: IpsecProtocol::EspAh,
                    ..entry(1, 256)
                },
                SadError::Protocol,
            ),
            (
                SadEntry {
                    overflow: Overflow::RollOver,
                    window: 0,
                    ..entry(1, 256)
                },
                SadError::RollOver,
            ),
        ] {
            assert_eq!(sad.insert(refused), Err(why));
        }
        assert!(sad.is_empty());
    }

    #[test]
    fn a_path_mtu_shrinks_at_once_and_is_forgotten_when_old() {
        let mut sad = Sad::new(1);
        sad.insert(entry(1, 0x1000)).unwrap();
        sad.learn_path_mtu(Instant::from_secs(1), 1, 1400);
        sad.learn_path_mtu(Instant::from_secs(2), 1, 1450);
        assert_eq!(sad.get(1).unwrap().path_mtu.unwrap().bytes, 1400);
        sad.learn_path_mtu(Instant::from_secs(3), 1, 1300);
        assert_eq!(sad.age_path_mtus(Instant::from_secs(602)), 0);
        assert_eq!(sad.age_path_mtus(Instant::from_secs(603)), 1);
        assert_eq!(sad.get(1).unwrap().path_mtu, None);
    }
}
