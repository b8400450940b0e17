//! What an endpoint tells its owner.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use towpath_base::crypto::SkKeys;
use towpath_base::crypto::Untrusted;
use towpath_base::ids::{IkeSpi, Spi};
use towpath_base::profile::IkeId;
use towpath_base::sa::{ChildSa, UdpEncap};

use crate::config::IkeSaId;
use crate::proposal::IkeSuite;

/// A datagram to put on the wire, source address the terminal's.
#[derive(Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The terminal's address; port 4500 (configurable) implies the non-ESP marker.
    pub source: SocketAddr,
    /// The peer's address.
    pub destination: SocketAddr,
    /// The IKE message, without non-ESP marker.
    pub payload: Vec<u8>,
}

impl fmt::Debug for Transmit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {} ({} bytes)",
            self.source,
            self.destination,
            self.payload.len()
        )
    }
}

/// Who sent the first message of an IKE SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// This endpoint.
    Initiator,
    /// The peer.
    Responder,
}

/// Why an exchange failed or an IKE SA ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailReason {
    /// No answer after the last retransmission.
    Timeout,
    /// No proposal that both sides accept.
    NoProposalChosen,
    /// The peer did not prove its identity (wrong pre-shared key or other identity).
    AuthenticationFailed,
    /// The peer's certificate or signature is not good enough.
    Untrusted(Untrusted),
    /// The peer refused our proof.
    AuthenticationRefused,
    /// No traffic both sides want protected.
    TsUnacceptable,
    /// The peer answered with an error notify of this number (RFC 7296 §3.10.1).
    Notify(u16),
    /// The peer broke the protocol.
    ProtocolError,
    /// The peer's public value was not valid.
    BadPublicValue,
    /// The owner has no policy for this pair of addresses.
    NoPolicy,
    /// The owner asked for it.
    Requested,
    /// The peer deleted it.
    DeletedByPeer,
    /// The same pair has another IKE SA, which stays.
    Redundant,
    /// The peer announced that it starts afresh (INITIAL_CONTACT).
    InitialContact,
    /// A newer IKE SA took over its CHILD SAs.
    Rekeyed,
    /// The lifetime ended.
    Expired,
    /// The share it counts against is used up.
    Budget,
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no answer from the peer",
            Self::NoProposalChosen => "no common proposal",
            Self::AuthenticationFailed => "the peer's authentication failed",
            Self::Untrusted(why) => return write!(f, "the peer's authentication failed: {why}"),
            Self::AuthenticationRefused => "the peer refused our authentication",
            Self::TsUnacceptable => "no common traffic selectors",
            Self::Notify(number) => return write!(f, "the peer answered with error notify {number}"),
            Self::ProtocolError => "the peer broke the protocol",
            Self::BadPublicValue => "the peer's public value is not valid",
            Self::NoPolicy => "no policy for this peer",
            Self::Requested => "requested",
            Self::DeletedByPeer => "deleted by the peer",
            Self::Redundant => "redundant with another IKE SA of the pair",
            Self::InitialContact => "the peer started afresh",
            Self::Rekeyed => "replaced by rekeying",
            Self::Expired => "lifetime ended",
            Self::Budget => "share of IKE SAs used up",
        })
    }
}

/// What the owner of an endpoint is to do, or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "rare, and moved once")]
pub enum Command {
    /// A peer wants to talk to `local`: answer with [`provide_policy`](crate::Endpoint::provide_policy).
    /// The peer is not authenticated yet. Without an answer the request is forgotten after
    /// [`half_open_timeout`](crate::Config::half_open_timeout).
    NeedPolicy {
        /// The IKE SA in question.
        request: IkeSaId,
        /// The terminal's address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
    },
    /// Both sides proved who they are.
    IkeEstablished {
        /// The IKE SA.
        ike: IkeSaId,
        /// Who started.
        role: Role,
        /// The terminal's end; the port is the one IKE uses from now on.
        local: SocketAddr,
        /// The peer's end.
        remote: SocketAddr,
        /// Identity the peer proved.
        remote_id: IkeId,
        /// Algorithms of the IKE SA.
        suite: IkeSuite,
    },
    /// The IKE SA goes on under another name; its CHILD SAs moved along. [`Command::IkeClosed`] of the old name
    /// follows, reason [`FailReason::Rekeyed`].
    IkeRekeyed {
        /// The IKE SA that ends.
        old: IkeSaId,
        /// The one that goes on.
        new: IkeSaId,
    },
    /// An attempt to authenticate anew was started: once established, `new` takes over from `old`, under the same
    /// policy.
    IkeSucceeding {
        /// The IKE SA there is.
        old: IkeSaId,
        /// The attempt.
        new: IkeSaId,
    },
    /// A peer, or we, went to another address or port (MOBIKE, or a NAT that forgot its mapping): the CHILD SAs' outer
    /// addresses are others now, their keys stay.
    AddressesChanged {
        /// The IKE SA.
        ike: IkeSaId,
        /// The terminal's end and the peer's as they were.
        old: (SocketAddr, SocketAddr),
        /// The terminal's end.
        local: SocketAddr,
        /// The peer's end.
        remote: SocketAddr,
        /// UDP encapsulation of ESP from now on.
        encap: Option<UdpEncap>,
        /// The CHILD SAs concerned, by `spi_in`.
        children: Vec<Spi>,
    },
    /// A pair of ESP SAs is to be installed.
    ChildEstablished {
        /// The IKE SA it belongs to.
        ike: IkeSaId,
        /// Number of the [`Initiate`](crate::Initiate) it answers.
        tag: Option<u64>,
        /// Who asked for it.
        role: Role,
        /// The SAs, seen from the terminal.
        child: ChildSa,
        /// Identity the peer proved.
        remote_id: IkeId,
        /// SPI (`spi_in`) of the CHILD SA it replaces; that one's [`Command::ChildDeleted`] follows.
        replaces: Option<Spi>,
    },
    /// A CHILD SA reached its soft limit in time; it is being rekeyed.
    ChildSoftExpired {
        /// The IKE SA it belongs to.
        ike: IkeSaId,
        /// SPI of packets the terminal receives.
        spi_in: Spi,
    },
    /// A pair of ESP SAs is to be removed.
    ChildDeleted {
        /// The IKE SA it belonged to.
        ike: IkeSaId,
        /// The terminal's address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
        /// SPI of packets the terminal received.
        spi_in: Spi,
        /// SPI of packets the terminal sent.
        spi_out: Spi,
        /// Why.
        reason: FailReason,
    },
    /// An IKE SA that was established ended; [`Command::ChildDeleted`] came before for each of its CHILD SAs.
    IkeClosed {
        /// The IKE SA.
        ike: IkeSaId,
        /// The terminal's address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
        /// Why.
        reason: FailReason,
    },
    /// What was wished for did not come about, or a peer's attempt failed after its policy was given.
    Failed {
        /// The IKE SA.
        ike: IkeSaId,
        /// Number of the [`Initiate`](crate::Initiate); `None` for an attempt of the peer.
        tag: Option<u64>,
        /// The terminal's address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
        /// Why.
        reason: FailReason,
    },
    /// One message, for the live view.
    Exchange {
        /// The IKE SA.
        ike: IkeSaId,
        /// The terminal's address.
        local: IpAddr,
        /// The peer's address.
        remote: IpAddr,
        /// True for a message of ours.
        sent: bool,
        /// `IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) ]`
        line: String,
    },
}

impl Command {
    /// The IKE SA it is about; the older one of two.
    pub const fn ike(&self) -> IkeSaId {
        match self {
            Self::NeedPolicy { request: ike, .. }
            | Self::IkeEstablished { ike, .. }
            | Self::IkeRekeyed { old: ike, .. }
            | Self::IkeSucceeding { old: ike, .. }
            | Self::AddressesChanged { ike, .. }
            | Self::ChildEstablished { ike, .. }
            | Self::ChildSoftExpired { ike, .. }
            | Self::ChildDeleted { ike, .. }
            | Self::IkeClosed { ike, .. }
            | Self::Failed { ike, .. }
            | Self::Exchange { ike, .. } => *ike,
        }
    }
}

/// How far an IKE SA is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IkeState {
    /// Waiting for the owner's policy, the IKE_SA_INIT response, or the peer's IKE_AUTH.
    Connecting,
    /// Waiting for the IKE_AUTH response.
    Authenticating,
    /// Both sides authenticated.
    Established,
    /// A Delete is on its way.
    Deleting,
}

impl fmt::Display for IkeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "CONNECTING",
            Self::Authenticating => "AUTHENTICATING",
            Self::Established => "ESTABLISHED",
            Self::Deleting => "DELETING",
        })
    }
}

/// One IKE SA, for people. No key material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeSaInfo {
    /// The IKE SA.
    pub id: IkeSaId,
    /// Who started.
    pub role: Role,
    /// How far it is.
    pub state: IkeState,
    /// The terminal's end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// SPI of the initiator.
    pub spi_i: IkeSpi,
    /// SPI of the responder; zero while unknown.
    pub spi_r: IkeSpi,
    /// Identity shown as the terminal.
    pub local_id: Option<IkeId>,
    /// Identity the peer proved.
    pub remote_id: Option<IkeId>,
    /// Algorithms, once chosen.
    pub suite: Option<IkeSuite>,
    /// Seconds since it was established.
    pub age_seconds: Option<u64>,
    /// CHILD SAs: SPI in, SPI out.
    pub children: Vec<(Spi, Spi)>,
    /// Seconds until it is rekeyed.
    pub rekey_in_seconds: Option<u64>,
}

/// Keys of one IKE SA, for a debugger of one's own traffic. See [`danger_keys`](crate::Endpoint::danger_keys).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeSaKeys {
    /// SPI of the initiator.
    pub spi_i: IkeSpi,
    /// SPI of the responder.
    pub spi_r: IkeSpi,
    /// What the initiator sends under: SK_ei and SK_ai.
    pub initiator: SkKeys,
    /// What the responder sends under: SK_er and SK_ar.
    pub responder: SkKeys,
}
