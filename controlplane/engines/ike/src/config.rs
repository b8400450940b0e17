//! What the owner of an [`Endpoint`](crate::Endpoint) decides.

use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::time::Duration;

use towpath_base::ids::IkeSpi;
use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;

use crate::auth::Auth;
use crate::proposal::IkeProposal;

/// Names one IKE SA of this endpoint: the SPI the endpoint chose for it, unique among all of them.
///
/// A rekeyed IKE SA gets a new one, see [`Command::IkeRekeyed`](crate::Command::IkeRekeyed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeSaId(pub IkeSpi);

impl fmt::Display for IkeSaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// When an unanswered request is sent again (RFC 7296 §2.1): `first`, doubled each time up to `longest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retransmit {
    /// Wait after the first transmission.
    pub first: Duration,
    /// Longest wait between two transmissions.
    pub longest: Duration,
    /// Transmissions in total, the first included, before the peer is given up.
    pub transmissions: u8,
}

impl Retransmit {
    /// Wait after transmission number `count` (from 1).
    pub fn wait(&self, count: u8) -> Duration {
        let factor = 1u32
            .checked_shl(u32::from(count.saturating_sub(1)))
            .unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// Whose share of an endpoint an IKE SA counts against: an operator's, where several use one keyserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BudgetId(pub u32);

/// A share of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Most IKE SAs, half-open ones included.
    pub ike_sas: usize,
    /// Most half-open IKE SAs as responder.
    pub half_open: usize,
}

/// Limits and intervals of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// UDP port of plain IKE.
    pub ike_port: u16,
    /// UDP port of UDP encapsulation: datagrams to and from it carry a non-ESP marker on the wire,
    /// never in this interface (RFC 7296 §2.23).
    pub nat_port: u16,
    /// Retransmission of requests.
    pub retransmit: Retransmit,
    /// Life of an IKE SA that does not get established.
    pub half_open_timeout: Duration,
    /// Most half-open IKE SAs as responder, in total.
    pub half_open_total: usize,
    /// Most half-open IKE SAs as responder, from one source address; from half of it on, a cookie is demanded.
    pub half_open_per_source: usize,
    /// From this many half-open IKE SAs on, initiators must return a cookie (RFC 7296 §2.6).
    pub cookie_threshold: usize,
    /// Most IKE SAs in total.
    pub ike_sas_total: usize,
    /// Silence after which the peer is asked whether it lives; `None` never asks.
    pub dpd_after: Option<Duration>,
    /// Age at which an IKE SA is rekeyed; `None` never.
    pub ike_rekey_after: Option<Duration>,
    /// Two IKE SAs of one pair of addresses that came up within this time count as simultaneous starts.
    pub simultaneous_within: Duration,
    /// How long our own IKE_AUTH waits when the peer started at the same time and has precedence.
    pub hold: Duration,
    /// Wait before the redundant one of two IKE SAs is deleted.
    pub redundant_after: Duration,
    /// How long an ended IKE SA still answers retransmissions of its last request.
    pub linger: Duration,
    /// How long an SA waits for [`child_ready`](crate::Endpoint::child_ready): our answer to the peer's IKE_AUTH or
    /// rekeying is held back, and our Delete of what a rekeying of ours replaced. Zero does not wait.
    pub ready_within: Duration,
    /// Longest IKE message that is sent whole to a peer that takes fragments (RFC 7383), bytes; 0 never splits.
    pub fragment_size: usize,
    /// Offer a fresh key exchange with each CHILD SA we rekey (perfect forward secrecy), and fall back to none for a
    /// peer that does not want one.
    pub pfs: bool,
    /// From this many half-open IKE SAs on, initiators are also set a puzzle (RFC 8019). Those that do not solve it are
    /// let in at [`unsolved_per_second`](Self::unsolved_per_second).
    pub puzzle_threshold: usize,
    /// Zero bits a puzzle asks for; an initiator computes about 4 · 2^this PRFs, we check four.
    pub puzzle_difficulty: u8,
    /// Hardest puzzle that is solved as initiator.
    pub puzzle_accept: u8,
    /// Initiators let in without a solution while puzzles are set.
    pub unsolved_per_second: u32,
    /// Most error messages without protection per second, about SPIs and versions we do not know.
    pub stray_answers_per_second: u32,
    /// Longest IKE_SA_INIT request; it is kept until the policy is known.
    pub init_len: usize,
    /// Offer and accept MOBIKE (RFC 4555). An owner that does so follows
    /// [`Command::AddressesChanged`](crate::Command::AddressesChanged) with its ESP.
    pub mobike: bool,
    /// Let [`danger_keys`](crate::Endpoint::danger_keys) give out the keys of IKE SAs.
    pub danger_export_keys: bool,
    /// Age at which an IKE SA of ours is authenticated anew, its successor established before it is deleted; `None`
    /// never. Up to a tenth earlier, at random.
    pub reauth_after: Option<Duration>,
    /// How long a rekeying of the peer's may pause before its additional key exchange (RFC 9370 §2.2.4 suggests 5 to 20
    /// seconds); then what was agreed on is forgotten.
    pub followup_within: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ike_port: 500,
            nat_port: 4500,
            retransmit: Retransmit {
                first: Duration::from_millis(500),
                longest: Duration::from_secs(16),
                transmissions: 7,
            },
            half_open_timeout: Duration::from_secs(30),
            half_open_total: 10_000,
            half_open_per_source: 16,
            cookie_threshold: 64,
            ike_sas_total: 1_000_000,
            dpd_after: Some(Duration::from_secs(60)),
            ike_rekey_after: Some(Duration::from_secs(4 * 3600)),
            simultaneous_within: Duration::from_secs(10),
            hold: Duration::from_secs(3),
            redundant_after: Duration::from_secs(2),
            linger: Duration::from_secs(10),
            ready_within: Duration::ZERO,
            pfs: true,
            // An IPv6 packet of 1280 bytes without its headers, UDP's, and the non-ESP marker.
            fragment_size: 1280 - 40 - 8 - 4,
            puzzle_threshold: 1024,
            puzzle_difficulty: 12,
            puzzle_accept: 16,
            unsolved_per_second: 50,
            stray_answers_per_second: 10,
            init_len: 4096,
            mobike: false,
            danger_export_keys: false,
            reauth_after: None,
            followup_within: Duration::from_secs(20),
        }
    }
}

/// How to speak to one peer in one subscriber's name: the same for both roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Identity shown as the terminal (IDi as initiator, IDr as responder).
    pub local_id: IkeId,
    /// Identity the peer must prove; any that knows the key when absent.
    pub remote_id: Option<IkeId>,
    /// Pre-shared key, for whichever side has no certificate in [`auth`](Self::auth). Nobody proves anything by an
    /// empty one.
    pub psk: Psk,
    /// IKE proposals in order of preference; not empty.
    pub ike_proposals: Vec<IkeProposal>,
    /// ESP suites in order of preference; not empty.
    pub esp_suites: Vec<EspSuite>,
    /// Whether to ask for 64-bit sequence numbers (both kinds are offered, this one first).
    pub esn: bool,
    /// Mode asked for as initiator and accepted as responder. A transport-mode initiator whose peer does not
    /// agree gets tunnel mode (RFC 7296 §1.3.1) and reports it.
    pub mode: Mode,
    /// Terminal's side of the traffic; the local address when empty.
    pub local_ts: Vec<TrafficSelector>,
    /// Peer's side of the traffic; the remote address when empty.
    pub remote_ts: Vec<TrafficSelector>,
    /// Limits of CHILD SAs; copied into [`ChildSa`](towpath_base::sa::ChildSa).
    pub lifetime: Lifetime,
    /// Pretend a NAT, so that both sides encapsulate ESP in UDP.
    pub force_encap: bool,
    /// Certificates, and a post-quantum pre-shared key.
    pub auth: Auth,
}

/// A wish for an SA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initiate {
    /// The caller's number; comes back in [`Command::ChildEstablished`](crate::Command::ChildEstablished) or
    /// [`Command::Failed`](crate::Command::Failed), exactly once.
    pub tag: u64,
    /// The terminal's address.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// Peer's UDP port, if not [`Config::ike_port`].
    pub remote_port: Option<u16>,
    /// How to negotiate.
    pub policy: Policy,
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// An unanswered request is sent again.
    Retransmit,
    /// A half-open IKE SA is given up.
    HalfOpen,
    /// A silent peer is asked whether it lives.
    Dpd,
    /// A CHILD SA reached its soft limit.
    ChildSoft,
    /// A CHILD SA reached its hard limit.
    ChildHard,
    /// The IKE SA is old enough to be rekeyed.
    IkeRekey,
    /// One of two IKE SAs of the same pair is to go.
    Redundant,
    /// Of two simultaneous starts, the one that waited for the other goes on.
    Hold,
    /// A rekeyed IKE SA that the peer did not delete is given up.
    Expire,
    /// An ended IKE SA is forgotten.
    Linger,
    /// The owner did not say in time that it is ready with a rekeyed CHILD SA: go on all the same.
    Ready,
    /// The IKE SA is to be authenticated anew.
    Reauthenticate,
    /// A rekeying that the peer did not go on with is forgotten.
    FollowUp,
}

impl Timer {
    /// Every timer.
    pub const ALL: &'static [Self] = &[
        Self::Retransmit,
        Self::HalfOpen,
        Self::Dpd,
        Self::ChildSoft,
        Self::ChildHard,
        Self::IkeRekey,
        Self::Redundant,
        Self::Hold,
        Self::Expire,
        Self::Linger,
        Self::Ready,
        Self::Reauthenticate,
        Self::FollowUp,
    ];
}
