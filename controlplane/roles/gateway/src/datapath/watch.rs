//! What else happens to a packet while it is open: policies decide about it, a capture takes a copy.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{SystemTime, UNIX_EPOCH};

use towpath_base::policy::{IpsecProtocol, Policy, PolicyAction};
use towpath_base::sa::Class;
use towpath_base::{DropReason, SubscriberHandle};
use towpath_ipsec::locate::Flow;
use towpath_ipsec::spd::{Query, Spd};
use towpath_tcp::relay::Side;

use super::SaKey;

/// What a capture takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapPoint {
    /// ESP between terminal and gateway.
    Access,
    /// ESP between gateway and peer.
    Core,
    /// The packet inside; class `full` under segment keys alone has it.
    Plain,
}

/// One packet of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tapped {
    /// Nanoseconds since 1970.
    pub unix_nanos: u64,
    /// Towards the peer.
    pub to_peer: bool,
    /// The IP packet.
    pub packet: Vec<u8>,
    /// Packets lost before this one: the reader was slow.
    pub lost: u64,
}

/// A capture of one SA. It never makes the packet path wait.
#[derive(Debug)]
pub struct Tap {
    /// Its SA.
    pub key: SaKey,
    /// Where.
    pub point: TapPoint,
    /// Where packets go; bounded.
    pub sender: SyncSender<Tapped>,
    /// Packets lost since the last one that was sent.
    pub lost: u64,
}

impl Tap {
    /// False when nobody reads any more.
    fn take(&mut self, to_peer: bool, packet: &[u8]) -> bool {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let tapped = Tapped {
            unix_nanos: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            to_peer,
            packet: packet.to_vec(),
            lost: self.lost,
        };
        match self.sender.try_send(tapped) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(_)) => self.lost += 1,
            Err(TrySendError::Disconnected(_)) => return false,
        }
        true
    }
}

/// What a packet's SA says of it that the packet does not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose {
    /// The subscriber's handle.
    user: Option<u32>,
    /// Sensitivity level.
    level: Option<u8>,
}

impl Whose {
    pub(super) fn of(subscriber: SubscriberHandle, level: Option<u8>) -> Self {
        let user = u32::try_from(subscriber.0).ok().filter(|user| *user != 0);
        Self { user, level }
    }

    /// What policies are asked. TOS, traffic class and flow label are the packet's; its flow was found when it was opened.
    fn query(self, protocol: IpsecProtocol, flow: &Flow, packet: &[u8]) -> Result<Query, DropReason> {
        Ok(Query {
            flow: *flow,
            user: self.user,
            level: self.level,
            ipsec: Some(protocol),
            ..Query::of_packet(packet)?
        })
    }
}

/// What policies say of a packet that is not to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The TCP relay may have it.
    pub(super) relay: bool,
    /// It may leave by certain SAs alone: [`Watch::named`].
    pub(super) steer: bool,
}

/// Policies and the capture of one worker; empty most of the time.
#[derive(Default)]
pub(super) struct Watch {
    policies: Option<Box<Spd>>,
    tap: Option<Tap>,
}

impl Watch {
    /// Replaces the policies; an empty table is none.
    pub(super) fn set_policies(&mut self, policies: Box<Spd>) {
        self.policies = Some(policies).filter(|policies| !policies.is_empty());
    }

    /// Begins a capture; a former one ends.
    pub(super) fn set_tap(&mut self, tap: Option<Tap>) {
        self.tap = tap;
    }

    /// Whether packets of this SA are looked at while they are open.
    pub(super) fn wants_plain(&self, key: &SaKey) -> bool {
        self.policies.is_some() || self.taps(key, TapPoint::Plain)
    }

    fn taps(&self, key: &SaKey, point: TapPoint) -> bool {
        self.tap
            .as_ref()
            .is_some_and(|tap| tap.point == point && tap.key == *key)
    }

    fn copy(&mut self, to_peer: bool, packet: &[u8]) {
        if !self.tap.as_mut().is_some_and(|tap| tap.take(to_peer, packet)) {
            self.tap = None;
        }
    }

    /// A packet as it came, or as it goes on.
    pub(super) fn sealed(&mut self, key: &SaKey, from: Side, arrived: bool, packet: &[u8]) {
        let to_peer = from == Side::Terminal;
        let point = if to_peer == arrived {
            TapPoint::Access
        } else {
            TapPoint::Core
        };
        if self.tap.is_some() && self.taps(key, point) {
            self.copy(to_peer, packet);
        }
    }

    /// The SAs a policy names for a packet with this `flow`, in the order they are to be tried; none: whichever admits it.
    pub(super) fn named(
        &mut self,
        whose: Whose,
        protocol: IpsecProtocol,
        flow: &Flow,
        packet: &[u8],
    ) -> Result<&[u64], DropReason> {
        let Some(policies) = &mut self.policies else {
            return Ok(&[]);
        };
        let query = whose.query(protocol, flow, packet)?;
        match policies.decide(&query).map(|Policy { action, .. }| action) {
            Some(PolicyAction::Protect { sas, .. }) => Ok(sas),
            None | Some(PolicyAction::Bypass | PolicyAction::Discard) => Ok(&[]),
        }
    }

    /// The packet inside.
    pub(super) fn plain(
        &mut self,
        key: &SaKey,
        whose: Whose,
        from: Side,
        protocol: IpsecProtocol,
        flow: &Flow,
        packet: &[u8],
    ) -> Result<Verdict, DropReason> {
        if self.taps(key, TapPoint::Plain) {
            self.copy(from == Side::Terminal, packet);
        }
        let verdict = |relay, steer| Ok(Verdict { relay, steer });
        let Some(policies) = &mut self.policies else {
            return verdict(true, false);
        };
        let query = whose.query(protocol, flow, packet)?;
        match policies.decide(&query).map(|Policy { action, .. }| action) {
            None => verdict(true, false),
            Some(PolicyAction::Discard) => Err(DropReason::PolicyDiscard),
            Some(PolicyAction::Bypass) => verdict(false, false),
            Some(PolicyAction::Protect { class, sas }) => verdict(
                !matches!(class, Some(Class::Inspect | Class::None)),
                !sas.is_empty(),
            ),
        }
    }
}
