//! SAs and policies that people bring, captures, and keys for a protocol analyser.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use towpath_base::manual::{ManualSa, Protection};
use towpath_base::policy::Policy;
use towpath_base::sa::{Class, EspIntegrity, EspSuite, Lifetime, Mode, UdpEncap};
use towpath_base::selector::TrafficSelector;

/// Something about manual SAs. Answered by [`super::Reply::ManualSas`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ManualRequest {
    /// Add one; its number is given by the daemon.
    Add(Box<ManualSa>),
    /// Remove the one with this name.
    Remove {
        /// Its name.
        name: String,
    },
    /// All of them.
    List {
        /// With keys: needs `permissions.show_keys`.
        with_keys: bool,
    },
}

/// Something about policies. Answered by [`super::Reply::Policies`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PolicyRequest {
    /// Add one; its number is given by the daemon.
    Add(Box<Policy>),
    /// All of them in the order they are tried.
    List,
    /// One.
    Show {
        /// Its number.
        id: u32,
    },
    /// Remove one.
    Remove {
        /// Its number.
        id: u32,
    },
}

/// A pair of manual SAs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualSaInfo {
    /// Number; policies name it.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Operator.
    pub operator: String,
    /// Subscriber.
    pub subscriber: String,
    /// Terminal's address.
    pub terminal: IpAddr,
    /// Peer's address.
    pub peer: IpAddr,
    /// SPI of packets the terminal receives, eight hex digits.
    pub spi_in: String,
    /// SPI of packets the terminal sends, eight hex digits.
    pub spi_out: String,
    /// What the keys allow.
    pub class: Class,
    /// Whether both ends and the gateway hold the same keys.
    pub shared: bool,
    /// ESP's algorithms, if there is ESP.
    pub suite: Option<EspSuite>,
    /// AH's algorithm, if there is AH.
    pub ah: Option<EspIntegrity>,
    /// Transport or tunnel.
    pub mode: Mode,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Packets the replay windows cover.
    pub replay_window: u16,
    /// UDP encapsulation.
    pub encap: Option<UdpEncap>,
    /// Limits.
    pub lifetime: Lifetime,
    /// Terminal's side of the traffic; its address when empty.
    pub local_ts: Vec<TrafficSelector>,
    /// Peer's side of the traffic; its address when empty.
    pub remote_ts: Vec<TrafficSelector>,
    /// Keys, if they were asked for and may be shown.
    pub keys: Option<Protection>,
}

impl ManualSaInfo {
    /// What is shown of `sa`.
    pub fn of(sa: &ManualSa, with_keys: bool) -> Self {
        Self {
            id: sa.id,
            name: sa.name.clone(),
            operator: sa.operator.clone(),
            subscriber: sa.subscriber.clone(),
            terminal: sa.terminal,
            peer: sa.peer,
            spi_in: sa.spi_in.to_string(),
            spi_out: sa.spi_out.to_string(),
            class: sa.protection.class(),
            shared: sa.protection.is_shared(),
            suite: sa.protection.suite(),
            ah: sa.protection.ah().map(|form| form.integrity),
            mode: sa.mode,
            esn: sa.esn,
            replay_window: sa.replay_window,
            encap: sa.encap,
            lifetime: sa.lifetime,
            local_ts: sa.local_ts.clone(),
            remote_ts: sa.remote_ts.clone(),
            keys: with_keys.then(|| sa.protection.clone()),
        }
    }
}

/// Which side of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    /// Between terminal and gateway.
    Access,
    /// Between gateway and peer.
    Core,
}

/// Starts a capture; needs `permissions.capture`. Answered by [`super::Reply::Capturing`]; then
/// [`super::Request::CaptureRead`] fetches packets. A capture nobody reads for ten seconds ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// SPI of either direction.
    pub spi: u32,
    /// Plain packets instead of ESP.
    pub decrypted: bool,
    /// ESP of which side; without meaning for plain packets.
    pub segment: Segment,
}

/// One packet of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedPacket {
    /// Nanoseconds since 1970.
    pub unix_nanos: u64,
    /// Towards the peer.
    pub to_peer: bool,
    /// The IP packet.
    pub packet: Vec<u8>,
    /// Packets lost before this one because the reader was slow.
    pub lost: u64,
}

/// Keys of one direction on one segment, for a protocol analyser.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedKey {
    /// Source of the packets.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// SPI.
    pub spi: u32,
    /// Algorithms.
    pub suite: EspSuite,
    /// 64-bit sequence numbers.
    pub esn: bool,
    /// Cipher key with salt, hex digits.
    pub cipher: String,
    /// Integrity key, hex digits; empty for an AEAD and for class `inspect`.
    pub integrity: String,
}
