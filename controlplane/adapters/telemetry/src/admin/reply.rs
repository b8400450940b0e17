//! What the daemon answers. Field names are the `--json` output: append, never rename.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use towpath_base::policy::Policy;
use towpath_base::profile::Subscriber;
use towpath_base::sa::{Class, EspSuite, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_base::{Spi, SubscriberHandle};

use super::ike::IkeInfo;
use super::manual::{CapturedPacket, ExportedKey, ManualSaInfo};
use super::request::{Cursor, Record};

/// Everything a request can be answered with.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    #[serde(rename = "ok")]
    Ok(Reply),
    /// Refused or failed; nothing was changed.
    #[serde(rename = "error")]
    Error(AdminError),
}

impl From<Result<Reply, AdminError>> for Response {
    fn from(result: Result<Reply, AdminError>) -> Self {
        match result {
            Ok(reply) => Self::Ok(reply),
            Err(error) => Self::Error(error),
        }
    }
}

/// Answers, one per kind of request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`super::Request::Status`].
    Status(Status),
    /// To [`super::Request::SaList`] and [`super::Request::SaShow`].
    SaList(Vec<SaInfo>),
    /// To [`super::Request::FlowList`].
    FlowList(super::flow::FlowList),
    /// To [`super::Request::Stats`].
    Stats(Stats),
    /// To [`super::Request::IkeList`] and [`super::IkeRequest::Show`].
    IkeList(Vec<IkeInfo>),
    /// It is under way; events tell how it ends.
    IkeStarted,
    /// Lines of Wireshark's `ikev2_decryption_table`.
    IkeKeys(Vec<String>),
    /// To [`super::Request::Manual`].
    ManualSas(Vec<ManualSaInfo>),
    /// To [`super::Request::Policy`].
    Policies(Vec<Policy>),
    /// To [`super::Request::ExportKeys`].
    Keys(Vec<ExportedKey>),
    /// To [`super::Request::Capture`].
    Capturing {
        /// Number of the capture.
        id: u64,
    },
    /// To [`super::Request::CaptureRead`]: what came since the last look.
    Packets(Vec<CapturedPacket>),
    /// Done; there is nothing to tell.
    Done,
    /// To [`super::Request::Events`]: events follow.
    Events,
    /// To [`super::Request::Recent`], the oldest first.
    Recent(Vec<super::Event>),
    /// One subscriber, as it is now.
    Subscriber(Box<Attached>),
    /// A page of subscribers.
    Subscribers(SubscriberPage),
    /// Result of an import.
    Imported {
        /// New ones.
        added: u64,
        /// Replaced ones.
        replaced: u64,
    },
    /// A subscriber was removed.
    Removed {
        /// It had this handle.
        handle: SubscriberHandle,
    },
}

/// Whose fault an error is: it decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense; exit status 2.
    Invalid,
    /// What it names is not there; exit status 2.
    NotFound,
    /// What it would make is there already; exit status 2.
    Conflict,
    /// This daemon does not run the role that could answer; exit status 1.
    Unavailable,
    /// The daemon failed; exit status 1.
    Internal,
}

/// A refusal or a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminError {
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// One clear sentence: field, value, expectation.
    pub message: String,
}

impl AdminError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AdminError {}

/// What runs here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Process number.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// Roles it runs.
    pub roles: Vec<String>,
    /// Its ports.
    pub ports: Vec<PortStatus>,
    /// Packet worker threads.
    pub workers: u32,
    /// Subscribers in the store.
    pub subscribers: u64,
    /// Terminals registered now.
    pub registered: u64,
    /// Established IKE SAs.
    pub ike_sas: u64,
    /// IKE SAs not established yet.
    pub ike_half_open: u64,
    /// Pairs of ESP SAs.
    pub child_sas: u64,
}

/// A port of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// `access` or `core`.
    pub role: String,
    /// `native` or `generic`.
    pub xdp_mode: String,
    /// Receive queues bound.
    pub queues: u32,
    /// Whether frames are shared with the driver instead of copied.
    pub zero_copy: bool,
}

/// Packets and bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of the packets as they were received.
    pub bytes: u64,
}

/// A pair of ESP SAs between a terminal and a peer, without keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaInfo {
    /// Subscriber's name.
    pub subscriber: String,
    /// Its operator.
    pub operator: String,
    /// Its handle.
    pub handle: SubscriberHandle,
    /// Terminal's address.
    pub terminal: IpAddr,
    /// Peer's address.
    pub peer: IpAddr,
    /// SPI of packets the terminal receives; eight hex digits.
    #[serde(with = "hex_spi")]
    pub spi_in: Spi,
    /// SPI of packets the terminal sends; eight hex digits.
    #[serde(with = "hex_spi")]
    pub spi_out: Spi,
    /// What the gateway may do.
    pub class: Class,
    /// Sensitivity level of its packets; absent where it has none (keyed by hand).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// Algorithms; absent where this role does not know them (class `none` at a gateway of its own).
    pub suite: Option<EspSuite>,
    /// Transport or tunnel.
    pub mode: Option<Mode>,
    /// 64-bit sequence numbers.
    pub esn: Option<bool>,
    /// UDP encapsulation (RFC 3948).
    pub udp_encap: bool,
    /// Whether the terminal acknowledged the key transfer.
    pub transferred: bool,
    /// Seconds since it was established.
    pub age_seconds: u64,
    /// Traffic towards the terminal.
    pub to_terminal: Traffic,
    /// Traffic towards the peer.
    pub to_peer: Traffic,
    /// Terminal's side of the traffic.
    pub local_ts: Vec<TrafficSelector>,
    /// Peer's side of the traffic.
    pub remote_ts: Vec<TrafficSelector>,
    /// Name of a manual SA.
    #[serde(default)]
    pub manual: Option<String>,
    /// Packets that went on as they came although the class is `full`: shared keys without proof.
    #[serde(default)]
    pub untouched: u64,
    /// What the gateway does with shared keys, or why it does less than the class.
    #[serde(default)]
    pub note: Option<String>,
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// What it belongs to: `divert`, `forward`, `pass`, `drop` (the XDP program's), `gateway`, `worker`, `keyserver`,
    /// `registry`.
    pub group: String,
    /// Stable name, `snake_case`.
    pub name: String,
    /// For people.
    pub text: String,
    /// Packets or events.
    pub packets: u64,
    /// Bytes; 0 where bytes are not counted.
    pub bytes: u64,
}

impl Counter {
    /// A counter of the XDP program.
    pub fn of_dataplane(counter: towpath_common::counter::Counter, packets: u64, bytes: u64) -> Self {
        Self {
            group: counter.verdict().into(),
            name: counter.name().into(),
            text: counter.text().into(),
            packets,
            bytes,
        }
    }

    /// Packets dropped for `reason` in user space.
    pub fn of_drops(group: &str, reason: towpath_common::DropReason, packets: u64) -> Self {
        Self {
            group: group.into(),
            name: reason.name().into(),
            text: reason.text().into(),
            packets,
            bytes: 0,
        }
    }
}

/// All counters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Those that are not zero, and every verdict.
    pub counters: Vec<Counter>,
}

/// Where a terminal is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Addresses it registered with.
    pub addresses: Vec<IpAddr>,
    /// Seconds until the registration ends.
    pub expires_in_seconds: u64,
}

/// A subscriber and where it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The subscriber.
    pub subscriber: Subscriber,
    /// Its registration, if any.
    pub location: Option<Location>,
}

/// A page of subscribers.
#[derive(Debug, Serialize, Deserialize)]
pub struct SubscriberPage {
    /// At most [`super::MAX_PAGE`], with secrets only if they were asked for.
    pub records: Vec<Record>,
    /// Their registrations, in the same order.
    pub locations: Vec<Option<Location>>,
    /// Where to go on; absent at the end.
    pub next: Option<Cursor>,
}

mod hex_spi {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use towpath_base::Spi;

    pub(super) fn serialize<S: Serializer>(spi: &Spi, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(spi)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spi, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 16)
            .map(Spi)
            .map_err(|_| D::Error::custom("expected eight hex digits"))
    }
}
