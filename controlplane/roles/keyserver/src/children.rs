//! What the IKE engine reports: CHILD SAs up and down, and the keys that follow them.

use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::sa::{ChildSa, Class, EspKeys};
use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_fabric::{FromKeyserver, GatewayKeys, GatewaySa, InspectKeys};
use towpath_ike::{Command, FailReason, IkeSaId, Role};
use towpath_keyx::message::{Operation, SaName, TransferResult};
use zeroize::Zeroizing;

use crate::pairs::{Child, PairKey};
use crate::sessions::Transferred;
use crate::{Keyserver, Waiting, policy};

impl<K: KeyGenerator, R: Rng + Clone> Keyserver<K, R> {
    pub(crate) fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::NeedPolicy {
                request,
                local,
                remote,
            } => {
                self.peer_started(now, request, PairKey::new(local, remote));
            }
            Command::ChildEstablished {
                ike,
                tag,
                role,
                child,
                remote_id,
                replaces,
            } => {
                if let Some(tag) = tag {
                    self.initiations.remove(&tag);
                }
                let by = if role == Role::Initiator { "we" } else { "the peer" };
                let what = if replaces.is_some() {
                    "rekeyed"
                } else {
                    "established"
                };
                let text = format!(
                    "{what} by {by}: {} {} spi_in {} spi_out {} peer {remote_id}{}",
                    child.suite,
                    child.mode,
                    child.spi_in,
                    child.spi_out,
                    if child.encap.is_some() {
                        " udp-encapsulated"
                    } else {
                        ""
                    },
                );
                self.child_established(now, ike, role, replaces, child, &text);
            }
            Command::ChildDeleted {
                local,
                remote,
                spi_in,
                spi_out,
                reason,
                ike,
            } => {
                let name = SaName {
                    local,
                    remote,
                    spi_in,
                    spi_out,
                };
                self.child_deleted(now, ike, name, reason);
            }
            Command::Failed {
                ike,
                tag,
                local,
                remote,
                reason,
            } => {
                let key = PairKey {
                    local,
                    remote,
                    lane: self.lane(ike),
                };
                self.waiting
                    .retain(|_, (_, waiting)| !matches!(waiting, Waiting::Respond(_, id) if *id == ike));
                self.terms.remove(&ike);
                if let Some(subscriber) = self.owner_of(local) {
                    // Should the credential be the cause, the next exchange is to have the newest.
                    self.at_hand.forget(subscriber);
                    self.event(Some(key), subscriber, "exchange_failed", reason.to_string());
                }
                if tag.is_some_and(|tag| self.initiations.remove(&tag).is_some()) {
                    self.failed(now, key);
                }
                self.pairs.release(now, key);
            }
            Command::IkeEstablished {
                local,
                remote,
                remote_id,
                suite,
                ..
            } => {
                let text = format!("{suite} peer {remote_id} {remote}");
                self.tell(PairKey::new(local.ip(), remote.ip()), "ike_established", text);
            }
            Command::IkeClosed {
                ike,
                local,
                remote,
                reason,
            } => {
                self.terms.remove(&ike);
                self.tell(PairKey::new(local, remote), "ike_closed", reason.to_string());
            }
            Command::IkeRekeyed { old, new } => self.ike_renamed(now, old, new),
            Command::IkeSucceeding { old, new } => {
                if let Some(terms) = self.terms.get(&old).copied() {
                    self.terms.insert(new, terms);
                }
            }
            Command::Exchange {
                local,
                remote,
                sent,
                line,
                ..
            } => {
                let arrow = if sent { "-->" } else { "<--" };
                self.tell(PairKey::new(local, remote), "ike", format!("{arrow} {line}"));
            }
            Command::AddressesChanged {
                ike,
                old,
                local,
                remote,
                children,
                ..
            } => self.moved(now, ike, old, (local, remote), &children),
            // The engine rekeys on its own.
            Command::ChildSoftExpired { .. } => {}
        }
    }

    pub(crate) fn tell(&mut self, key: PairKey, kind: &str, text: String) {
        if let Some(subscriber) = self.owner_of(key.local) {
            self.event(Some(key), subscriber, kind, text);
        }
    }

    /// K7 and the nonce rule: keys for the gateway first, so that it is ready when the terminal sends.
    fn child_established(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        role: Role,
        replaces: Option<Spi>,
        child: ChildSa,
        text: &str,
    ) {
        let lane = self.lane(ike);
        let key = PairKey {
            local: child.local,
            remote: child.remote,
            lane,
        };
        let limit = self.config.pairs_per_subscriber;
        let owner = self.owner_of(key.local);
        let Some((subscriber, pair)) =
            owner.and_then(|owner| Some((owner, self.pairs.entry(key, owner, limit)?)))
        else {
            // The terminal left while the peer was talking: nobody is there to use the SA.
            let _ = self.endpoint.delete_ike(now, ike);
            return;
        };
        pair.progress = None;
        pair.failures = 0;
        pair.not_before = now;
        let (spi_in, spi_out) = (child.spi_in, child.spi_out);
        let asked = self.terms.get(&ike).map_or(Class::None, |terms| terms.class);
        let class = policy::possible_class(asked, child.suite);
        let suite = child.suite;
        pair.children.push(Child::of(now, ike, class, &child));
        let request_id = pair.request_id.take();
        self.event(
            Some(key),
            subscriber,
            "child_established",
            match lane.level {
                0 => format!("{text}, class {class}"),
                level => format!("{text}, class {class}, level {level}"),
            },
        );
        if class != asked {
            let text =
                format!("class {asked} is not possible with {suite}, which has one key for both: {class}");
            self.event(Some(key), subscriber, "class_reduced", text);
        }

        let Some((keys, mut for_terminal)) = self.divide(class, child) else {
            let _ = self.endpoint.delete_child(now, ike, spi_in);
            return;
        };
        if lane.is_connection() {
            // The engine does not renew it by itself: the terminal knows whether it was used.
            for_terminal.lifetime.soft_seconds = self.config.connection.soft_seconds;
        }
        self.to_gateway
            .push_back(FromKeyserver::Install(Box::new(GatewaySa {
                subscriber,
                keys,
                local: key.local,
                remote: key.remote,
                spi_in,
                spi_out,
                level: Some(lane.level),
            })));
        let operation = Operation::Install {
            class,
            level: lane.level,
            replaces,
            // A peer that started the rekeying has the new SA when our answer has reached it, not before.
            standby: replaces.is_some() && role == Role::Responder,
            sa: for_terminal,
        };
        if !self.sessions.transfer(now, subscriber, request_id, operation) {
            let _ = self.endpoint.delete_child(now, ike, spi_in);
        }
    }

    /// Who gets which keys (`design.md`, nonce safety): under class `full` the terminal's segment has its
    /// own, drawn here; under class `none` the terminal gets the negotiated ones and the gateway none.
    fn divide(&mut self, class: Class, child: ChildSa) -> Option<(GatewayKeys, ChildSa)> {
        match class {
            Class::Full => {
                let segment_in = self.fresh_keys(&child)?;
                let segment_out = self.fresh_keys(&child)?;
                let for_terminal = ChildSa {
                    keys_in: segment_in.clone(),
                    keys_out: segment_out.clone(),
                    ..child.clone()
                };
                Some((
                    GatewayKeys::Full {
                        peer: child,
                        segment_in,
                        segment_out,
                    },
                    for_terminal,
                ))
            }
            // The cipher keys alone; never more than the class allows, less where a suite has no such keys.
            Class::Inspect => {
                let keys = InspectKeys::of(&child).map_or(GatewayKeys::None, GatewayKeys::Inspect);
                Some((keys, child))
            }
            Class::None => Some((GatewayKeys::None, child)),
        }
    }

    fn fresh_keys(&mut self, child: &ChildSa) -> Option<EspKeys> {
        let mut material = Zeroizing::new([0; 2 * towpath_base::key::MAX_KEY_LEN]);
        let material = material.get_mut(..child.suite.key_material_len())?;
        self.rng.fill(material);
        EspKeys::split(child.suite, material)
    }

    fn child_deleted(&mut self, now: Instant, ike: IkeSaId, name: SaName, reason: FailReason) {
        let ends = PairKey::new(name.local, name.remote);
        let Some(key) = self.pairs.key_of(ends, name.spi_in) else {
            return;
        };
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        let subscriber = pair.subscriber;
        let deleted = pair.children.iter().position(|child| child.spi_in == name.spi_in);
        let Some(child) = deleted.map(|at| pair.children.remove(at)) else {
            return;
        };
        // Gateway and terminal know it by the ends it was handed out with.
        let name = SaName {
            local: child.ends.0,
            remote: child.ends.1,
            ..name
        };
        if !pair.children.iter().any(|child| child.ike == ike) {
            // An IKE SA is there for its CHILD SAs; the next request starts afresh. It may be ending already.
            let _ = self.endpoint.delete_ike(now, ike);
        }
        let remove = FromKeyserver::Remove {
            subscriber,
            local: name.local,
            remote: name.remote,
            spi_in: name.spi_in,
            spi_out: name.spi_out,
        };
        if matches!(reason, FailReason::Rekeyed | FailReason::Redundant) {
            let early = self.lingering.push(now + self.config.linger, key, remove);
            self.to_gateway.extend(early);
        } else {
            self.to_gateway.push_back(remove);
        }
        // A terminal that has gone has no use for it, and its SAs with it.
        self.sessions
            .transfer(now, subscriber, None, Operation::Delete(name));
        let text = format!("spi_in {} spi_out {}: {reason}", name.spi_in, name.spi_out);
        self.event(Some(key), subscriber, "child_deleted", text);
        self.pairs.release(now, key);
    }

    /// The terminal answered a key transfer.
    pub(crate) fn transferred(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        transferred: Transferred,
    ) {
        if transferred.result != Some(TransferResult::Done) {
            self.transfer_failed(now, subscriber, transferred);
            return;
        }
        let key = PairKey::new(transferred.name.local, transferred.name.remote);
        if !transferred.installed {
            return;
        }
        if let Some(child) = self.pairs.child_mut(key, transferred.name.spi_in) {
            child.acknowledged = true;
            // It may have ended meanwhile.
            let _ = self.endpoint.child_ready(now, child.ike, child.spi_in);
        }
        let text = format!("spi_in {} acknowledged by the terminal", transferred.name.spi_in);
        self.event(Some(key), subscriber, "key_transferred", text);
    }

    /// The terminal does not have the keys, and will not be sent them again: the SA ends.
    pub(crate) fn transfer_failed(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        failed: Transferred,
    ) {
        if !failed.installed {
            return;
        }
        let key = PairKey::new(failed.name.local, failed.name.remote);
        let text = match failed.result {
            Some(TransferResult::NoRoom) => "the terminal has no room for another SA",
            Some(TransferResult::Unusable) => "the terminal cannot use the SA",
            Some(TransferResult::Done) | None => "the terminal does not answer",
        };
        self.event(Some(key), subscriber, "key_transfer_failed", text.into());
        if let Some(child) = self.pairs.child_mut(key, failed.name.spi_in).copied() {
            // The peer may still wait for our answer: that first, or the Delete has nothing to delete.
            let _ = self.endpoint.child_ready(now, child.ike, child.spi_in);
            let _ = self.endpoint.delete_child(now, child.ike, child.spi_in);
        }
    }

    pub(crate) fn give_up_transfers(&mut self, now: Instant) {
        while let Some((subscriber, failed)) = self.sessions.poll_given_up() {
            self.transfer_failed(now, subscriber, failed);
        }
    }

    fn ike_renamed(&mut self, now: Instant, old: IkeSaId, new: IkeSaId) {
        if let Some(info) = self.endpoint.get(now, new) {
            let key = PairKey::new(info.local.ip(), info.remote.ip());
            self.tell(key, "ike_rekeyed", format!("{}_i {}_r", info.spi_i, info.spi_r));
        }
        self.pairs.rename_ike(old, new);
        if let Some(terms) = self.terms.remove(&old) {
            self.terms.insert(new, terms);
        }
    }
}
