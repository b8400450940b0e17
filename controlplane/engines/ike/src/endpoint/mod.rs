//! Many IKE SAs behind one face.

mod admit;
mod budget;
#[cfg(test)]
mod childless;
mod collision;
mod cookie;
mod core;
#[cfg(test)]
mod defects;
#[cfg(test)]
mod followups;
mod operate;
mod stray;
#[cfg(test)]
mod tests;

use ::core::fmt;
use ::core::net::{IpAddr, SocketAddr};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::IkeSpi;
use towpath_base::rate::Bucket;
use towpath_common::DropReason;

use crate::command::{Command, FailReason, IkeSaInfo, IkeSaKeys, Role, Transmit};
use crate::config::{BudgetId, Config, IkeSaId, Initiate, Policy, Timer};
use crate::sa::{IkeSa, Path, Sa, State, fire, pump, receive};
use crate::tasks::{Task, forget, ike_init};
use crate::wire::{ExchangeType, Header};
use budget::Budgets;
use cookie::CookieJar;

pub(crate) use core::{Core, Effect, Ending};

/// Why a wish was not even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitiateError {
    /// [`Config::ike_sas_total`] reached.
    Limit,
    /// The policy has no proposal, no ESP suite, or the addresses are of two families.
    InvalidPolicy,
    /// The key generator lacks the first proposal's group.
    Unsupported,
    /// This attempt for the same pair of addresses is not decided yet; its outcome is that of this wish too.
    InProgress(IkeSaId),
}

impl fmt::Display for InitiateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "limit on IKE SAs reached",
            Self::InvalidPolicy => "policy without proposal or suite, or addresses of two families",
            Self::Unsupported => "Diffie-Hellman group not available",
            Self::InProgress(_) => "an exchange with this peer is under way",
        })
    }
}

impl ::core::error::Error for InitiateError {}

/// No SA has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownSa;

impl fmt::Display for UnknownSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such SA")
    }
}

impl ::core::error::Error for UnknownSa {}

/// IKEv2 in many terminals' names. See the [crate documentation](crate).
///
/// All tables are ordered: whoever chooses the keys cannot flood a hash, and a simulation repeats.
pub struct Endpoint<K: KeyGenerator, R: Rng> {
    core: Core<K, R>,
    sas: BTreeMap<IkeSaId, Sa<K>>,
    /// Responders by the initiator they answer: remote address, SPI, local address.
    by_initiator: BTreeMap<(IpAddr, IkeSpi, IpAddr), IkeSaId>,
    /// By local and remote address.
    pairs: BTreeMap<(IpAddr, IpAddr), Vec<IkeSaId>>,
    timers: BTreeSet<(Instant, Timer, IkeSaId)>,
    /// Half-open responders by source.
    half_open: BTreeMap<IpAddr, usize>,
    half_open_total: usize,
    cookies: CookieJar,
    /// Initiators let in although they did not solve their puzzle.
    unsolved: Bucket,
    /// Error messages about what belongs to no IKE SA.
    strays: Bucket,
    budgets: Budgets,
}

impl<K: KeyGenerator, R: Rng> fmt::Debug for Endpoint<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("ike_sas", &self.sas.len())
            .field("half_open", &self.half_open_total)
            .finish_non_exhaustive()
    }
}

impl<K: KeyGenerator, R: Rng> Endpoint<K, R> {
    /// An endpoint without SAs.
    pub fn new(config: Config, keygen: K, rng: R) -> Self {
        Self {
            unsolved: Bucket::default(),
            strays: Bucket::default(),
            budgets: Budgets::default(),
            core: Core::new(config, keygen, rng),
            sas: BTreeMap::new(),
            by_initiator: BTreeMap::new(),
            pairs: BTreeMap::new(),
            timers: BTreeSet::new(),
            half_open: BTreeMap::new(),
            half_open_total: 0,
            cookies: CookieJar::default(),
        }
    }

    /// Takes a datagram for a terminal: `destination` is the terminal's address, `payload` the IKE message
    /// without non-ESP marker (which a destination port of [`Config::nat_port`] implies).
    ///
    /// # Errors
    /// Why the message was dropped; the reason is to be counted.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let path = Path { source, destination };
        let header = match Header::parse(payload) {
            Ok((header, _)) => header,
            Err(error) => return Err(self.unreadable(now, path, payload, error)),
        };
        let local_spi = if header.from_initiator {
            header.spi_r
        } else {
            header.spi_i
        };
        if header.exchange == ExchangeType::IKE_SA_INIT && header.from_initiator {
            if header.response || header.spi_r.0 != 0 || header.message_id.0 != 0 || header.spi_i.0 == 0 {
                return Err(DropReason::IkeMalformed);
            }
            return self.admit(now, path, &header, payload);
        }
        let id = IkeSaId(local_spi);
        let Some(sa) = self.sas.get_mut(&id) else {
            return Err(self.unknown(now, path, &header));
        };
        let from_initiator = sa.role == Role::Responder;
        let peer_spi = if header.from_initiator {
            header.spi_i
        } else {
            header.spi_r
        };
        // In IKE_SA_INIT the responder's SPI is yet to be learnt.
        let spi_fits = peer_spi == sa.peer_spi() || sa.state == State::InitSent;
        let at_home = sa.local.ip() == destination.ip() && sa.remote.ip() == source.ip();
        let path_fits = at_home || sa.mobike.is_some() && sa.state == State::Established;
        if header.from_initiator != from_initiator || !spi_fits || !path_fits {
            return Err(DropReason::IkeUnknownSpi);
        }
        if let Some((old, Some(spi_in))) = sa.succeeds
            && self.sas.get(&old).is_none_or(|old| old.child(spi_in).is_none())
            && let Some(sa) = self.sas.get_mut(&id)
        {
            // What it was to replace is gone meanwhile.
            sa.succeeds = Some((old, None));
        }
        let sa = self.sas.get_mut(&id).ok_or(DropReason::IkeUnknownSpi)?;
        let result = receive(sa, &mut self.core, now, path, &header, payload);
        self.after(now, id);
        result
    }

    /// Starts an IKE SA with one CHILD SA.
    ///
    /// # Errors
    /// The wish was not tried; nothing is reported about it later.
    pub fn initiate(&mut self, now: Instant, wish: Initiate) -> Result<IkeSaId, InitiateError> {
        self.initiate_within(now, wish, BudgetId::default())
    }

    /// As [`Self::initiate`], beside what there is between the two addresses: an IKE SA of another `lane` is not redundant
    /// with it, and an exchange of another one does not stand in its way. Lane 0 is everything else, what peers start
    /// included. Counted against a share.
    ///
    /// # Errors
    /// The wish was not tried; nothing is reported about it later.
    pub fn initiate_beside(
        &mut self,
        now: Instant,
        wish: Initiate,
        lane: u64,
        budget: BudgetId,
    ) -> Result<IkeSaId, InitiateError> {
        self.start(now, wish, budget, lane)
    }

    /// As [`Self::initiate`], counted against a share.
    ///
    /// # Errors
    /// The wish was not tried; nothing is reported about it later.
    pub fn initiate_within(
        &mut self,
        now: Instant,
        wish: Initiate,
        budget: BudgetId,
    ) -> Result<IkeSaId, InitiateError> {
        self.start(now, wish, budget, 0)
    }

    fn start(
        &mut self,
        now: Instant,
        wish: Initiate,
        budget: BudgetId,
        lane: u64,
    ) -> Result<IkeSaId, InitiateError> {
        let Initiate {
            tag,
            local,
            remote,
            remote_port,
            policy,
        } = wish;
        let group = policy
            .ike_proposals
            .first()
            .and_then(|proposal| proposal.groups.first().copied());
        let group = group.filter(|_| !policy.esp_suites.is_empty() && local.is_ipv4() == remote.is_ipv4());
        let group = group.ok_or(InitiateError::InvalidPolicy)?;
        let pair = self.pair(local, remote);
        let under_way = |id: &IkeSaId| {
            let sa = self.sas.get(id);
            // Also what says INITIAL_CONTACT: should it arrive later, the peer would end the SA beside it.
            let stands_in_the_way = |sa: &&Sa<K>| sa.lane == lane || sa.first_contact;
            sa.filter(stands_in_the_way)
                .is_some_and(|sa| matches!(sa.state, State::InitSent | State::AuthSent))
        };
        if let Some(id) = pair.iter().copied().find(under_way) {
            return Err(InitiateError::InProgress(id));
        }
        if self.sas.len() >= self.core.config.ike_sas_total || !self.budgets.has_room(budget) {
            return Err(InitiateError::Limit);
        }
        let init = ike_init::prepare(&mut self.core, group).map_err(|_| InitiateError::Unsupported)?;
        let id = IkeSaId(self.core.new_ike_spi());
        let ike_port = self.core.config.ike_port;
        let ours = SocketAddr::new(local, ike_port);
        let theirs = SocketAddr::new(remote, remote_port.unwrap_or(ike_port));
        let mut sa = IkeSa::new(id, Role::Initiator, State::InitSent, ours, theirs, IkeSpi(0), now);
        sa.first_contact = pair.is_empty();
        sa.lane = lane;
        sa.budget = budget;
        sa.tag = Some(tag);
        sa.policy = Some(Box::new(policy));
        sa.ni.clone_from(&init.ni);
        sa.init = Some(init);
        sa.enqueue(Task::IkeInit);
        pump(&mut sa, &mut self.core, now);
        self.insert(now, sa);
        Ok(id)
    }

    /// Answers [`Command::NeedPolicy`]. `None` refuses the peer. Unknown or outdated requests are ignored.
    pub fn provide_policy(&mut self, now: Instant, request: IkeSaId, policy: Option<Policy>) {
        self.provide_policy_within(now, request, policy, BudgetId::default());
    }

    /// As [`Self::provide_policy`], counted against a share; where that is used up the peer is not answered.
    pub fn provide_policy_within(
        &mut self,
        now: Instant,
        request: IkeSaId,
        policy: Option<Policy>,
        budget: BudgetId,
    ) {
        let waiting = |sa: &&mut Sa<K>| sa.state == State::WaitPolicy;
        let Some(sa) = self.sas.get_mut(&request).filter(waiting) else {
            return;
        };
        sa.policy = policy.map(Box::new);
        let before = ::core::mem::replace(&mut sa.budget, budget);
        let half_open = sa.half_open;
        let budgets = &mut self.budgets;
        budgets.count(before, false);
        if half_open {
            budgets.count_half_open(before, false);
        }
        let room = budgets.has_room(budget) && budgets.has_half_open_room(budget);
        budgets.count(budget, true);
        if half_open {
            budgets.count_half_open(budget, true);
        }
        if !room {
            self.core.commands.push_back(Command::Failed {
                ike: request,
                tag: None,
                local: sa.local.ip(),
                remote: sa.remote.ip(),
                reason: FailReason::Budget,
            });
            self.remove(request);
            return;
        }
        if let Err(reason) = ike_init::respond(sa, &mut self.core, now) {
            let wrong_group = reason == FailReason::Notify(crate::wire::NotifyType::INVALID_KE_PAYLOAD.0);
            // The initiator comes again with the right group: no failure yet.
            if !wrong_group {
                self.core.commands.push_back(Command::Failed {
                    ike: request,
                    tag: None,
                    local: sa.local.ip(),
                    remote: sa.remote.ip(),
                    reason,
                });
            }
            self.remove(request);
            return;
        }
        self.after(now, request);
    }

    /// Lets every due timer act.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, timer, id)) = self.timers.first().copied()
            && at <= now
        {
            if timer == Timer::Linger {
                self.remove(id);
                continue;
            }
            match self.sas.get_mut(&id) {
                Some(sa) => fire(sa, &mut self.core, now, timer),
                None => {
                    self.timers.pop_first();
                }
            }
            self.after(now, id);
        }
    }

    /// The next deadline and what it is for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.timers.first().map(|(at, timer, _)| (*at, *timer))
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.core.transmits.pop_front()
    }

    /// The next thing to do or to know.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.core.commands.pop_front()
    }

    /// The IKE SAs, in order of their names.
    pub fn list(&self, now: Instant) -> impl Iterator<Item = IkeSaInfo> + '_ {
        self.sas.values().filter_map(move |sa| sa.info(now))
    }

    /// One IKE SA.
    pub fn get(&self, now: Instant, ike: IkeSaId) -> Option<IkeSaInfo> {
        self.sas.get(&ike)?.info(now)
    }

    /// Keys of an IKE SA: whoever has them reads and forges it. For Wireshark, where an operator explicitly permits
    /// it ([`Config::danger_export_keys`]); `None` otherwise.
    pub fn danger_keys(&self, ike: IkeSaId) -> Option<IkeSaKeys> {
        let sa = self
            .sas
            .get(&ike)
            .filter(|_| self.core.config.danger_export_keys)?;
        let keys = sa.keys.as_ref()?;
        Some(IkeSaKeys {
            spi_i: sa.spi_i,
            spi_r: sa.spi_r,
            initiator: keys.sk_i.clone(),
            responder: keys.sk_r.clone(),
        })
    }

    fn established(&mut self, ike: IkeSaId) -> Result<&mut Sa<K>, UnknownSa> {
        self.sas
            .get_mut(&ike)
            .filter(|sa| sa.state == State::Established)
            .ok_or(UnknownSa)
    }

    fn pump_and_after(&mut self, now: Instant, id: IkeSaId) {
        if let Some(sa) = self.sas.get_mut(&id) {
            pump(sa, &mut self.core, now);
        }
        self.after(now, id);
    }

    /// Takes a new SA into every table.
    fn insert(&mut self, _now: Instant, sa: Sa<K>) {
        let id = sa.id;
        self.pairs
            .entry((sa.local.ip(), sa.remote.ip()))
            .or_default()
            .push(id);
        if sa.role == Role::Responder {
            self.by_initiator
                .insert((sa.remote.ip(), sa.spi_i, sa.local.ip()), id);
        }
        self.budgets.count(sa.budget, true);
        self.sas.insert(id, sa);
        self.reschedule(id);
    }

    /// Takes an SA out of every table.
    fn remove(&mut self, id: IkeSaId) {
        let Some(mut sa) = self.sas.remove(&id) else {
            return;
        };
        for task in sa
            .outstanding
            .take()
            .map(|out| out.task)
            .into_iter()
            .chain(sa.queue.drain(..))
        {
            task.abandon(&mut self.core, sa.local.ip());
        }
        forget(&mut sa, &mut self.core, |_| true);
        self.budgets.count(sa.budget, false);
        if let Some((at, timer)) = sa.scheduled.take() {
            self.timers.remove(&(at, timer, id));
        }
        if sa.half_open {
            self.count_half_open(sa.remote.ip(), sa.budget, false);
        }
        let pair = (sa.local.ip(), sa.remote.ip());
        if let Some(ids) = self.pairs.get_mut(&pair) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.pairs.remove(&pair);
            }
        }
        let initiator = (sa.remote.ip(), sa.spi_i, sa.local.ip());
        if self.by_initiator.get(&initiator) == Some(&id) {
            self.by_initiator.remove(&initiator);
        }
        self.core.release_ike_spi(id.0);
    }

    fn count_half_open(&mut self, source: IpAddr, budget: BudgetId, more: bool) {
        self.budgets.count_half_open(budget, more);
        let count = self.half_open.entry(source).or_default();
        if more {
            *count += 1;
            self.half_open_total += 1;
        } else {
            *count = count.saturating_sub(1);
            self.half_open_total = self.half_open_total.saturating_sub(1);
        }
        if *count == 0 {
            self.half_open.remove(&source);
        }
    }

    /// Brings the timer table and the half-open count up to date.
    fn reschedule(&mut self, id: IkeSaId) {
        let Some(sa) = self.sas.get_mut(&id) else { return };
        let deadline = sa.deadline(&self.core.config);
        if deadline != sa.scheduled {
            if let Some((at, timer)) = sa.scheduled.take() {
                self.timers.remove(&(at, timer, id));
            }
            if let Some((at, timer)) = deadline {
                self.timers.insert((at, timer, id));
            }
            sa.scheduled = deadline;
        }
        let (half_open, source, budget) = (sa.is_unproven(), sa.remote.ip(), sa.budget);
        if half_open != sa.half_open {
            sa.half_open = half_open;
            self.count_half_open(source, budget, half_open);
        }
    }

    /// After anything happened to an SA: what it asks of the others, and its timers.
    fn after(&mut self, now: Instant, id: IkeSaId) {
        for effect in ::core::mem::take(&mut self.core.effects) {
            match effect {
                Effect::InitialContact => self.initial_contact(now, id),
                Effect::Established => self.settle(now, id),
                Effect::Spawn(sa) => {
                    let spawned = sa.id;
                    self.insert(now, *sa);
                    if let Some(sa) = self.sas.get_mut(&spawned) {
                        pump(sa, &mut self.core, now);
                    }
                    self.reschedule(spawned);
                }
                Effect::Readdressed { local, remote } => self.readdress(id, (local, remote)),
                Effect::Reauthenticate => {
                    // One that is ending has no need of it.
                    let _ = self.reauthenticate(now, id);
                }
                Effect::Move { heir, ending } => self.move_children(now, id, heir, ending),
            }
        }
        self.reschedule(id);
    }

    /// Moves an SA in the tables that know it by its ends, which were `old`.
    fn readdress(&mut self, id: IkeSaId, old: (IpAddr, IpAddr)) {
        let Some(sa) = self.sas.get(&id) else { return };
        let new = (sa.local.ip(), sa.remote.ip());
        let (role, spi_i) = (sa.role, sa.spi_i);
        if let Some(ids) = self.pairs.get_mut(&old) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.pairs.remove(&old);
            }
        }
        self.pairs.entry(new).or_default().push(id);
        if role == Role::Responder {
            self.by_initiator.remove(&(old.1, spi_i, old.0));
            self.by_initiator.insert((new.1, spi_i, new.0), id);
        }
    }

    /// The CHILD SAs of `from` and what is queued there go on in `heir`.
    fn move_children(&mut self, now: Instant, from: IkeSaId, heir: IkeSaId, ending: Ending) {
        let Some(old) = self.sas.get_mut(&from) else {
            return;
        };
        old.moving = false;
        let children = ::core::mem::take(&mut old.children);
        let queue = ::core::mem::take(&mut old.queue);
        let redundant_at = old.redundant_at.take();
        if let Some(new) = self.sas.get_mut(&heir) {
            new.children.extend(children);
            // A rekeying that waited has just happened.
            let queue = queue
                .into_iter()
                .filter(|task| !matches!(task, Task::IkeRekey(_)));
            new.queue.extend(queue);
            new.redundant_at = redundant_at;
            (new.silent, new.expire_at) = (false, None);
            let renamed = Command::IkeRekeyed { old: from, new: heir };
            self.core.commands.push_back(renamed);
        } else if let Some(old) = self.sas.get_mut(&from) {
            // The heir ended in the meantime: its CHILD SAs end with the old one.
            old.children = children;
        }
        let Some(old) = self.sas.get_mut(&from) else {
            return;
        };
        match ending {
            Ending::Delete => old.enqueue(Task::DeleteIke {
                reason: FailReason::Rekeyed,
            }),
            Ending::AwaitDelete => {
                old.announce_end(&mut self.core, FailReason::Rekeyed);
                old.state = State::Deleting;
                old.expire_at = Some(now + Ending::DELETE_WITHIN);
            }
            Ending::End => old.end(&mut self.core, now, FailReason::Rekeyed),
        }
        for id in [from, heir] {
            if let Some(sa) = self.sas.get_mut(&id) {
                pump(sa, &mut self.core, now);
            }
            self.reschedule(id);
        }
    }
}
