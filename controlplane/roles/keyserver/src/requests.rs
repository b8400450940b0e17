//! What terminals and peers ask for: sealed messages, credentials, the start of an exchange.

use std::time::Duration;

use towpath_base::credentials::Credentials;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::profile::PeerPolicy;
use towpath_base::sa::Class;
use towpath_base::{DropReason, Instant, Spi, SubscriberHandle};
use towpath_fabric::{Datagram, FromKeyserver, ToRegistry};
use towpath_ike::{IkeSaId, Initiate, InitiateError};
use towpath_keyx::message::{self, FromTerminal, ProxyRequest, RefuseReason};

use crate::credentials::Purpose;
use crate::operators::NOTHING;
use crate::pairs::{Lane, PairKey, Progress};
use crate::policy::engine_policy;
use crate::{Keyserver, Terms, Waiting};

impl<K: KeyGenerator, R: Rng + Clone> Keyserver<K, R> {
    /// A sealed message of a terminal: opened under its session, then acted on.
    pub(crate) fn handle_sealed(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        datagram: &Datagram,
    ) -> Result<(), DropReason> {
        let opened = self
            .sessions
            .open(now, subscriber, datagram.source.ip(), &datagram.payload);
        let opened = opened.inspect_err(|reason| self.hint(*reason, subscriber, datagram))?;
        if let Some(session) = opened.confirmed {
            self.to_registry
                .push_back(ToRegistry::SessionConfirmed { subscriber, session });
        }
        for lost in opened.lost {
            self.transfer_failed(now, subscriber, lost);
        }
        self.terminal_moved(now, subscriber, &opened.left);
        match opened.message {
            FromTerminal::ProxyRequest(request) => self.handle_request(now, subscriber, datagram, request),
            FromTerminal::TransferAck(ack) => {
                if let Some(transferred) = self.sessions.acknowledge(subscriber, &ack) {
                    self.transferred(now, subscriber, transferred);
                }
                Ok(())
            }
            FromTerminal::Hello => Ok(()),
        }
    }

    /// A terminal whose session was lost here (a restart) would ask in vain: tell it to register again. The
    /// gateway's limit on sealed messages bounds these, and the terminal bounds how often it follows.
    fn hint(&mut self, reason: DropReason, subscriber: SubscriberHandle, datagram: &Datagram) {
        if reason == DropReason::KeyxUnknownSession
            && let Ok(header) = message::peek(&datagram.payload)
        {
            let sealed = message::re_register(&header).to_vec();
            let terminal = datagram.source.ip();
            self.to_gateway.push_back(FromKeyserver::KeyToTerminal {
                subscriber,
                terminal,
                sealed,
            });
        }
    }

    /// K1 (a): the terminal wants an SA with a peer.
    fn handle_request(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        datagram: &Datagram,
        request: ProxyRequest,
    ) -> Result<(), DropReason> {
        let mut key = PairKey {
            local: request.terminal,
            remote: request.peer,
            lane: Lane::of(&request),
        };
        // The addresses are sealed: what the IP header says must agree, or somebody moved the message.
        if datagram.source.ip() != key.local || datagram.destination.ip() != key.remote {
            return Err(DropReason::KeyxWrongAddress);
        }
        if let Some(old) = request.replaces.filter(|_| key.lane.is_connection()) {
            // A connection's SA is found by its name: what asks for the next one is no packet.
            key = self.pairs.key_of(key, old).unwrap_or(key);
        }
        let limit = self.config.pairs_per_subscriber;
        let pair = self
            .pairs
            .entry(key, subscriber, limit)
            .ok_or(DropReason::KeyxRateLimited)?;
        pair.request_id = Some(request.request_id);
        if pair.progress.is_some() || pair.children.iter().any(|child| !child.acknowledged) {
            // The exchange or the key transfer is on its way; its own retransmissions bring it there.
            let accepted = self.sessions.accept(subscriber, key.local, request.request_id);
            self.to_gateway.extend(accepted.map(FromKeyserver::from));
            return Ok(());
        }
        if let Some(old) = request.replaces
            && let Some(child) = pair.children.iter().find(|child| child.spi_in == old)
        {
            let ike = child.ike;
            // If it ended in this moment, its deletion is on the way to the terminal, which will ask again.
            let _ = self.endpoint.rekey_child(now, ike, old);
            return Ok(());
        }
        if pair.not_before > now {
            self.refuse_request(now, key, RefuseReason::TryLater);
            return Ok(());
        }
        let operator = self.sessions.operator(subscriber);
        if !self.operators.allow(now, operator, self.config.operators) {
            pair.not_before = now + Duration::from_secs(1);
            self.refuse_request(now, key, RefuseReason::TryLater);
            return Err(DropReason::KeyxRateLimited);
        }
        // The terminal had the keys and asks again: it lost them. Keys are never handed out twice (a
        // terminal that starts over would start its counters over), so negotiate afresh.
        let lost: Vec<IkeSaId> = pair.children.iter().map(|child| child.ike).collect();
        pair.progress = Some(Progress::Credential);
        for ike in lost {
            // Already gone is as good.
            let _ = self.endpoint.delete_ike(now, ike);
        }
        self.event(
            Some(key),
            subscriber,
            "proxy_request",
            "terminal asks for an SA".into(),
        );
        self.ask_credential(now, subscriber, key, Waiting::Initiate(key));
        Ok(())
    }

    /// A peer started an exchange; the engine wants to know how to answer.
    pub(crate) fn peer_started(&mut self, now: Instant, ike: IkeSaId, key: PairKey) {
        let limit = self.config.pairs_per_subscriber;
        let subscriber = self.owner_of(key.local);
        match subscriber.filter(|subscriber| self.pairs.entry(key, *subscriber, limit).is_some()) {
            Some(subscriber) => {
                let operator = self.sessions.operator(subscriber);
                if !self.operators.allow(now, operator, self.config.operators) {
                    // Not answered: the peer asks again.
                    self.endpoint.provide_policy_within(now, ike, None, NOTHING);
                    return;
                }
                self.event(
                    Some(key),
                    subscriber,
                    "peer_request",
                    "peer starts an exchange".into(),
                );
                self.ask_credential(now, subscriber, key, Waiting::Respond(key, ike));
            }
            None => self.endpoint.provide_policy(now, ike, None),
        }
    }

    pub(crate) fn ask_credential(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        key: PairKey,
        waiting: Waiting,
    ) {
        let purpose = Purpose {
            subscriber,
            peer: key.remote,
            level: key.lane.level,
        };
        if let Some(credential) = self.at_hand.get(now, purpose) {
            self.go_on(now, subscriber, waiting, Some(credential));
            return;
        }
        let request = self.next_request;
        self.next_request += 1;
        self.waiting
            .insert(request, (now + crate::ANSWER_WITHIN, waiting));
        self.to_registry.push_back(ToRegistry::Credential {
            request,
            subscriber,
            peer: key.remote,
            level: key.lane.level,
        });
    }

    /// The registry does not answer: it is gone, or its channel is.
    pub(crate) fn give_up_questions(&mut self, now: Instant) {
        while let Some(first) = self.waiting.first_entry().filter(|entry| entry.get().0 <= now) {
            match first.remove().1 {
                Waiting::Initiate(key) => {
                    if let Some(subscriber) = self.owner_of(key.local) {
                        let text = "the registry does not answer".into();
                        self.event(Some(key), subscriber, "exchange_failed", text);
                    }
                    self.failed(now, key);
                }
                Waiting::Respond(_, ike) => self.endpoint.provide_policy(now, ike, None),
            }
        }
    }

    /// The registry's answer to [`Self::ask_credential`].
    pub(crate) fn handle_credential(
        &mut self,
        now: Instant,
        request: u64,
        subscriber: SubscriberHandle,
        credential: Option<(PeerPolicy, Credentials)>,
    ) {
        let Some((_, waiting)) = self.waiting.remove(&request) else {
            return;
        };
        let (Waiting::Initiate(key) | Waiting::Respond(key, _)) = waiting;
        // Not for one who left meanwhile: nobody would tell what becomes of it.
        if let Some(credential) = credential
            .as_ref()
            .filter(|_| self.sessions.owns(subscriber, key.local))
        {
            let purpose = Purpose {
                subscriber,
                peer: key.remote,
                level: key.lane.level,
            };
            self.at_hand.keep(now, purpose, credential);
        }
        self.go_on(now, subscriber, waiting, credential);
    }

    /// Policy and credential are there, or refused.
    fn go_on(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        waiting: Waiting,
        credential: Option<(PeerPolicy, Credentials)>,
    ) {
        let (Waiting::Initiate(key) | Waiting::Respond(key, _)) = waiting;
        let class = credential
            .as_ref()
            .map_or(Class::None, |(record, _)| record.class);
        let policy = credential
            .map(|(record, credentials)| engine_policy(&record, credentials, key, self.config.connection));
        if let Some(Err(error)) = &policy {
            self.event(Some(key), subscriber, "policy_unusable", error.to_string());
        }
        let policy = policy.and_then(Result::ok);
        match (waiting, policy) {
            (Waiting::Respond(_, ike), policy) => {
                if policy.is_some() {
                    let lane = key.lane;
                    self.terms.insert(ike, Terms { class, lane });
                }
                let operator = self.sessions.operator(subscriber);
                self.endpoint.provide_policy_within(now, ike, policy, operator);
            }
            (Waiting::Initiate(_), Some(policy)) => self.start(now, subscriber, key, class, policy),
            (Waiting::Initiate(_), None) => {
                if let Some(pair) = self.pairs.get_mut(key) {
                    pair.progress = None;
                }
                self.event(
                    Some(key),
                    subscriber,
                    "exchange_refused",
                    "no policy for this peer".into(),
                );
                self.refuse_request(now, key, RefuseReason::NoPolicy);
                self.pairs.release(now, key);
            }
        }
    }

    fn start(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        key: PairKey,
        class: Class,
        policy: towpath_ike::Policy,
    ) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let wish = Initiate {
            tag,
            local: key.local,
            remote: key.remote,
            remote_port: None,
            policy,
        };
        let operator = self.sessions.operator(subscriber);
        match self
            .endpoint
            .initiate_beside(now, wish, key.lane.number(), operator)
        {
            Ok(ike) => {
                let lane = key.lane;
                self.terms.insert(ike, Terms { class, lane });
                self.initiations.insert(tag, key);
                if let Some(pair) = self.pairs.get_mut(key) {
                    pair.progress = Some(Progress::Negotiating);
                }
            }
            // The peer was faster: its exchange brings the SA, or fails and leaves the way free.
            Err(InitiateError::InProgress(_)) => {
                if let Some(pair) = self.pairs.get_mut(key) {
                    pair.progress = None;
                }
            }
            Err(error) => {
                self.event(Some(key), subscriber, "exchange_failed", error.to_string());
                self.failed(now, key);
            }
        }
    }

    /// An exchange came to nothing: back off, and tell the terminal.
    pub(crate) fn failed(&mut self, now: Instant, key: PairKey) {
        let (first, longest) = (self.config.retry_after, self.config.retry_after_max);
        if let Some(pair) = self.pairs.get_mut(key) {
            pair.progress = None;
            pair.not_before = now + first.saturating_mul(1 << pair.failures.min(16)).min(longest);
            pair.failures = pair.failures.saturating_add(1);
        }
        self.refuse_request(now, key, RefuseReason::ExchangeFailed);
    }

    fn refuse_request(&mut self, now: Instant, key: PairKey, reason: RefuseReason) {
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        let Some(request_id) = pair.request_id.take() else {
            return;
        };
        let wait = pair.not_before.saturating_since(now).as_secs() + 1;
        let retry_after = if pair.not_before > now {
            wait.try_into().unwrap_or(u16::MAX)
        } else {
            0
        };
        let reply = self
            .sessions
            .refuse(pair.subscriber, key.local, request_id, reason, retry_after);
        self.to_gateway.extend(reply.map(FromKeyserver::from));
    }

    /// A gateway saw an SA reach a limit: replace it, or end it.
    pub(crate) fn handle_expiring(
        &mut self,
        now: Instant,
        subscriber: SubscriberHandle,
        spi_in: Spi,
        hard: bool,
    ) {
        let found = self.pairs.of(subscriber).find_map(|(_, pair)| {
            pair.children
                .iter()
                .find(|child| child.spi_in == spi_in)
                .map(|child| child.ike)
        });
        let Some(ike) = found else {
            return;
        };
        // The SA may have ended in the meantime; then there is nothing left to do.
        let _ = if hard {
            self.endpoint.delete_child(now, ike, spi_in)
        } else {
            self.endpoint.rekey_child(now, ike, spi_in)
        };
    }
}
