//! What the command line asks.

use std::fmt;
use std::net::IpAddr;

use super::manual::{CaptureRequest, ManualRequest, PolicyRequest, Segment};
use serde::{Deserialize, Serialize};
use towpath_base::Spi;
use towpath_base::profile::{Condition, ServiceProfile, Subscriber, SubscriberSecrets};

use super::ike::IkeRequest;

/// A request to the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What runs here. Answered by [`super::Reply::Status`].
    Status,
    /// SAs served. Answered by [`super::Reply::SaList`].
    SaList(SaFilter),
    /// SAs one of whose SPIs is this one. Answered by [`super::Reply::SaList`].
    SaShow {
        /// Either direction.
        spi: Spi,
    },
    /// Relayed TCP connections. Answered by [`super::Reply::FlowList`].
    FlowList(super::flow::FlowFilter),
    /// Counters. Answered by [`super::Reply::Stats`].
    Stats,
    /// IKE SAs. Answered by [`super::Reply::IkeList`].
    IkeList,
    /// Something about one of them: for the keyserver.
    Ike(IkeRequest),
    /// Something about subscribers: for the registry.
    Subscriber(SubscriberRequest),
    /// Something about manual SAs.
    Manual(ManualRequest),
    /// Something about policies.
    Policy(PolicyRequest),
    /// Keys for a protocol analyser; needs `permissions.show_keys`. Answered by [`super::Reply::Keys`].
    ExportKeys {
        /// Which side's.
        segment: Segment,
        /// SPI of either direction; every SA when absent.
        spi: Option<u32>,
    },
    /// Packets of one SA. Answered by [`super::Reply::Capturing`].
    Capture(CaptureRequest),
    /// What a capture has. Answered by [`super::Reply::Packets`].
    CaptureRead {
        /// Number of the capture.
        id: u64,
    },
    /// Ends a capture. Answered by [`super::Reply::Done`].
    CaptureStop {
        /// Number of the capture.
        id: u64,
    },
    /// From now on write events. Answered by the server itself.
    Events,
    /// The last events, as many as are kept. Answered by the server itself, with [`super::Reply::Recent`].
    Recent,
}

/// Which SAs; everything absent matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaFilter {
    /// Of this operator.
    pub operator: Option<String>,
    /// Of the subscriber with this name.
    pub subscriber: Option<String>,
    /// With this terminal or peer.
    pub address: Option<IpAddr>,
}

/// A subscriber by name within its operator.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscriberName {
    /// Operator.
    pub operator: String,
    /// Name, unique within the operator.
    pub name: String,
}

impl fmt::Display for SubscriberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` of operator `{}`",
            self.name.escape_debug(),
            self.operator.escape_debug()
        )
    }
}

/// A subscriber with its secrets: what is added, imported and, when asked for, exported.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The subscriber; the handle is ignored on the way in, the registry numbers them.
    pub subscriber: Subscriber,
    /// Its secrets; absent in an export without them.
    pub secrets: Option<SubscriberSecrets>,
}

/// Where the next page starts: behind this subscriber.
pub type Cursor = SubscriberName;

/// Something about subscribers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SubscriberRequest {
    /// Add one. Answered by [`super::Reply::Subscriber`].
    Add(Box<Record>),
    /// Add many, all or none. Answered by [`super::Reply::Imported`].
    Import {
        /// The subscribers.
        records: Vec<Record>,
        /// Replace those that exist, keeping their handles; without it they are a conflict.
        replace: bool,
    },
    /// A page of subscribers in order of operator and name. Answered by [`super::Reply::Subscribers`].
    List {
        /// Of this operator; of all when absent.
        operator: Option<String>,
        /// Behind this one.
        after: Option<Cursor>,
        /// With secrets.
        with_secrets: bool,
    },
    /// One subscriber. Answered by [`super::Reply::Subscriber`].
    Show(SubscriberName),
    /// Remove one, its profile, its sessions and its SAs. Answered by [`super::Reply::Removed`].
    Remove(SubscriberName),
    /// Change a service profile. Answered by [`super::Reply::Subscriber`].
    Profile {
        /// Whose.
        name: SubscriberName,
        /// How.
        change: ProfileChange,
    },
}

/// The three lists of a service profile (K2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileList {
    /// Peer → terminal messages to divert.
    ToTerminal,
    /// Terminal → peer messages to divert.
    FromTerminal,
    /// Gateway-addressed messages to forward.
    ToGateway,
}

impl ProfileList {
    /// Every list.
    pub const ALL: [Self; 3] = [Self::ToTerminal, Self::FromTerminal, Self::ToGateway];

    /// Its name on the command line and in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ToTerminal => "to-terminal",
            Self::FromTerminal => "from-terminal",
            Self::ToGateway => "to-gateway",
        }
    }

    /// The list itself.
    pub const fn of(self, profile: &ServiceProfile) -> &Vec<Condition> {
        match self {
            Self::ToTerminal => &profile.to_terminal,
            Self::FromTerminal => &profile.from_terminal,
            Self::ToGateway => &profile.to_gateway,
        }
    }

    /// The list itself, to change it.
    pub const fn of_mut(self, profile: &mut ServiceProfile) -> &mut Vec<Condition> {
        match self {
            Self::ToTerminal => &mut profile.to_terminal,
            Self::FromTerminal => &mut profile.from_terminal,
            Self::ToGateway => &mut profile.to_gateway,
        }
    }
}

/// A change of a service profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ProfileChange {
    /// Add a condition.
    Add {
        /// To this list.
        list: ProfileList,
        /// The condition.
        condition: Condition,
    },
    /// Remove a condition.
    Remove {
        /// From this list.
        list: ProfileList,
        /// The condition, exactly.
        condition: Condition,
    },
}
