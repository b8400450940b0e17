//! Which keyserver serves which terminal (spec row K11).
//!
//! A terminal has one keyserver at a time: the one its session is with. At first that is the nearest that is up. When
//! it goes, the next takes its place and the terminal is asked to register anew, for sessions are never shared; SAs that
//! exist keep passing. When a nearer one is back, terminals return to it as soon as nothing of theirs is alive at the
//! farther one: live IKE SAs never move.
//!
//! Nothing here follows from what a terminal or a peer says unproven: a forged registration moves nobody.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_fabric::{FromKeyserver, NodeName};

use crate::datapath::SaKey;

/// A terminal that exchanged IKE messages this recently is not moved to a nearer keyserver.
const QUIET: Duration = Duration::from_secs(30);
/// How often terminals are looked through for some that can return to a nearer keyserver.
const SWEEP: Duration = Duration::from_secs(5);
/// SAs of a keyserver that is gone are removed this long after another one replaced them: packets are on their way.
const LINGER: Duration = Duration::from_secs(30);
/// Terminals asked to register per [`ASK_EVERY`]: a large gateway does not ask all of them in one moment.
const ASK_AT_ONCE: usize = 100;
/// See [`ASK_AT_ONCE`].
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A terminal that did not register is asked again after this: it follows one such hint in five seconds.
const ASK_AGAIN: Duration = Duration::from_secs(6);
/// How often it is asked before it counts as away; what it sends later is answered by a hint anyway.
const ASK_TIMES: u32 = 10;

/// Index into the list of keyservers, nearest first.
type Rank = usize;

#[derive(Debug, Default)]
struct Terminal {
    /// Where its session is, if it can have one.
    keyserver: Option<Rank>,
    /// SAs by the keyserver that made them.
    sas: HashSet<(Rank, IpAddr, IpAddr, Spi, Spi)>,
    /// Last IKE message, if there was one.
    active: Option<Instant>,
}

impl Terminal {
    fn idle(&self, now: Instant) -> bool {
        let quiet = |active: Instant| now.saturating_since(active) >= QUIET;
        self.sas.iter().all(|sa| Some(sa.0) != self.keyserver) && self.active.is_none_or(quiet)
    }
}

/// The keyservers of a gateway, and whom each serves.
#[derive(Debug)]
pub struct Keyservers {
    /// In order of distance.
    names: Vec<NodeName>,
    up: Vec<bool>,
    terminals: HashMap<SubscriberHandle, Terminal>,
    ask: VecDeque<SubscriberHandle>,
    /// Asked and not registered yet: when to ask again, and for which time.
    again: BTreeMap<(Instant, SubscriberHandle), u32>,
    ask_at: Instant,
    asked: usize,
    sweep_at: Option<Instant>,
    removals: BTreeMap<(Instant, u64), (Rank, SubscriberHandle, SaKey)>,
    next_removal: u64,
}

impl Keyservers {
    /// These keyservers, nearest first, none of them up yet.
    pub fn new(names: Vec<NodeName>) -> Self {
        Self {
            up: vec![false; names.len()],
            names,
            terminals: HashMap::new(),
            ask: VecDeque::new(),
            again: BTreeMap::new(),
            ask_at: Instant::ZERO,
            asked: 0,
            sweep_at: None,
            removals: BTreeMap::new(),
            next_removal: 0,
        }
    }

    /// Names, nearest first, and whether each is up.
    pub fn list(&self) -> impl Iterator<Item = (&NodeName, bool)> {
        self.names.iter().zip(self.up.iter().copied())
    }

    /// The keyserver that serves `subscriber`, where its messages and its registrations go. `None` while none is up.
    ///
    /// Of nobody it knows it keeps nothing: the subscriber may be made up.
    pub fn of(&self, subscriber: SubscriberHandle) -> Option<NodeName> {
        let rank = self.rank_of(subscriber).or_else(|| self.nearest())?;
        self.names.get(rank).cloned()
    }

    fn rank_of(&self, subscriber: SubscriberHandle) -> Option<Rank> {
        let present = self.terminals.get(&subscriber)?.keyserver;
        present.filter(|rank| self.is_up(*rank))
    }

    /// The subscriber is served here from now on.
    pub fn serve(&mut self, subscriber: SubscriberHandle) {
        let nearest = self.nearest();
        let terminal = self.terminals.entry(subscriber).or_default();
        terminal.keyserver = terminal.keyserver.or(nearest);
    }

    fn is_up(&self, rank: Rank) -> bool {
        self.up.get(rank).copied().unwrap_or(false)
    }

    fn nearest(&self) -> Option<Rank> {
        self.up.iter().position(|up| *up)
    }

    fn rank(&self, name: &NodeName) -> Option<Rank> {
        self.names.iter().position(|known| known == name)
    }

    /// A message of a terminal or of a peer to it goes to its keyserver: it is not idle.
    pub fn active(&mut self, now: Instant, subscriber: SubscriberHandle) {
        if let Some(terminal) = self.terminals.get_mut(&subscriber) {
            terminal.active = Some(now);
        }
    }

    /// The keyserver of this name is reached.
    pub fn went_up(&mut self, now: Instant, name: &NodeName) {
        let Some(rank) = self.rank(name) else { return };
        let alone = self.nearest().is_none();
        if let Some(up) = self.up.get_mut(rank) {
            *up = true;
        }
        if alone {
            // Whoever lost its keyserver while there was no other.
            self.reassign(|terminal| terminal.keyserver != Some(rank), rank);
        }
        self.sweep(now);
    }

    /// The keyserver of this name is gone: the next one takes over.
    pub fn went_down(&mut self, now: Instant, name: &NodeName) {
        let Some(rank) = self.rank(name) else { return };
        if let Some(up) = self.up.get_mut(rank) {
            *up = false;
        }
        if let Some(next) = self.nearest() {
            self.reassign(|terminal| terminal.keyserver == Some(rank), next);
        }
        self.sweep(now);
    }

    fn reassign(&mut self, whom: impl Fn(&Terminal) -> bool, to: Rank) {
        for (subscriber, terminal) in &mut self.terminals {
            if whom(terminal) {
                terminal.keyserver = Some(to);
                self.ask.push_back(*subscriber);
            }
        }
    }

    /// Terminals that are idle return to the nearest keyserver.
    fn sweep(&mut self, now: Instant) {
        let Some(nearest) = self.nearest() else {
            self.sweep_at = None;
            return;
        };
        let mut far = false;
        for (subscriber, terminal) in &mut self.terminals {
            if terminal.keyserver > Some(nearest) {
                if terminal.idle(now) {
                    terminal.keyserver = Some(nearest);
                    self.ask.push_back(*subscriber);
                } else {
                    far = true;
                }
            }
        }
        self.sweep_at = far.then(|| now + SWEEP);
    }

    /// The subscriber is not served here any more.
    pub fn forget(&mut self, subscriber: SubscriberHandle) {
        self.registered(subscriber);
        self.terminals.remove(&subscriber);
    }

    /// What `from` says, before it is carried out: SAs that come and go.
    pub fn observe(&mut self, now: Instant, from: &NodeName, message: &FromKeyserver) {
        let Some(rank) = self.rank(from) else { return };
        match message {
            FromKeyserver::Install(sa) => {
                let terminal = self.terminals.entry(sa.subscriber).or_default();
                terminal.active = Some(now);
                let pair = (sa.local, sa.remote);
                let replaced: Vec<_> = terminal
                    .sas
                    .iter()
                    .filter(|(owner, local, remote, ..)| *owner != rank && (*local, *remote) == pair)
                    .copied()
                    .collect();
                terminal
                    .sas
                    .insert((rank, sa.local, sa.remote, sa.spi_in, sa.spi_out));
                for (owner, local, remote, spi_in, spi_out) in replaced {
                    let key = SaKey {
                        local,
                        remote,
                        spi_in,
                        spi_out,
                    };
                    let at = (now + LINGER, self.next_removal);
                    self.next_removal += 1;
                    self.removals.insert(at, (owner, sa.subscriber, key));
                }
            }
            FromKeyserver::Remove {
                subscriber,
                local,
                remote,
                spi_in,
                spi_out,
            } => {
                if let Some(terminal) = self.terminals.get_mut(subscriber) {
                    terminal
                        .sas
                        .retain(|(_, l, r, i, o)| (l, r, i, o) != (local, remote, spi_in, spi_out));
                }
            }
            FromKeyserver::KeyToTerminal { .. }
            | FromKeyserver::IkeToPeer(_)
            | FromKeyserver::Refused(_)
            | FromKeyserver::Event(_) => {}
        }
    }

    /// A terminal to be asked to register anew.
    pub fn poll_ask(&mut self, now: Instant) -> Option<SubscriberHandle> {
        if self.ask_at <= now {
            self.ask_at = now + ASK_EVERY;
            self.asked = 0;
        }
        if self.asked >= ASK_AT_ONCE {
            return None;
        }
        let due = self.again.first_key_value().filter(|((at, _), _)| *at <= now);
        let due = due.map(|(key, times)| (*key, *times));
        let (subscriber, times) = match due {
            Some((key, times)) => {
                self.again.remove(&key);
                (key.1, times)
            }
            None => {
                let subscriber = self.ask.pop_front()?;
                self.registered(subscriber);
                (subscriber, 1)
            }
        };
        if times < ASK_TIMES {
            self.again.insert((now + ASK_AGAIN, subscriber), times + 1);
        }
        self.asked += 1;
        Some(subscriber)
    }

    /// The registry answered a registration of the subscriber: no need to ask it any more.
    pub fn registered(&mut self, subscriber: SubscriberHandle) {
        if !self.again.is_empty() {
            self.again.retain(|(_, asked), _| *asked != subscriber);
        }
    }

    /// An SA of a keyserver that is gone, replaced by another one's.
    pub fn poll_remove(&mut self, now: Instant) -> Option<SaKey> {
        loop {
            let due = self.removals.first_entry().filter(|entry| entry.key().0 <= now)?;
            let (owner, subscriber, key) = due.remove();
            // Back again: it removes the SA itself.
            if !self.is_up(owner) {
                if let Some(terminal) = self.terminals.get_mut(&subscriber) {
                    let same = (owner, key.local, key.remote, key.spi_in, key.spi_out);
                    terminal.sas.remove(&same);
                }
                return Some(key);
            }
        }
    }

    /// Lets terminals return that can.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
    }

    /// When something is next to be done.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let asking = (!self.ask.is_empty()).then_some(self.ask_at);
        let removal = self.removals.keys().next().map(|(at, _)| *at);
        let again = self.again.keys().next().map(|(at, _)| (*at).max(self.ask_at));
        [asking, again, removal, self.sweep_at]
            .into_iter()
            .flatten()
            .min()
    }
}

#[cfg(test)]
mod tests {
    use towpath_fabric::{GatewayKeys, GatewaySa};

    use super::*;

    const A: SubscriberHandle = SubscriberHandle(1);
    const B: SubscriberHandle = SubscriberHandle(2);

    fn name(text: &str) -> NodeName {
        NodeName(text.into())
    }

    fn two() -> Keyservers {
        Keyservers::new(vec![name("ks1"), name("ks2")])
    }

    fn at(second: u64) -> Instant {
        Instant::from_secs(second)
    }

    fn asked(keyservers: &mut Keyservers, now: Instant) -> Vec<SubscriberHandle> {
        let mut asked: Vec<_> = std::iter::from_fn(|| keyservers.poll_ask(now)).collect();
        asked.sort();
        asked
    }

    fn install(subscriber: SubscriberHandle, spi: u32) -> FromKeyserver {
        FromKeyserver::Install(Box::new(GatewaySa {
            level: Some(0),
            subscriber,
            keys: GatewayKeys::None,
            local: IpAddr::from([10, 0, 0, subscriber.0 as u8]),
            remote: IpAddr::from([10, 0, 9, 9]),
            spi_in: Spi(spi),
            spi_out: Spi(spi),
        }))
    }

    fn remove(subscriber: SubscriberHandle, spi: u32) -> FromKeyserver {
        FromKeyserver::Remove {
            subscriber,
            local: IpAddr::from([10, 0, 0, subscriber.0 as u8]),
            remote: IpAddr::from([10, 0, 9, 9]),
            spi_in: Spi(spi),
            spi_out: Spi(spi),
        }
    }

    #[test]
    fn the_next_takes_over_and_the_nearest_takes_back_who_is_idle() {
        let mut keyservers = two();
        keyservers.serve(A);
        keyservers.serve(B);
        assert_eq!(keyservers.of(A), None);
        keyservers.went_up(at(100), &name("ks2"));
        // They may have registered while there was none.
        assert_eq!(asked(&mut keyservers, at(100)), [A, B]);
        keyservers.registered(A);
        keyservers.registered(B);
        // Somebody made up leaves no trace.
        assert_eq!(keyservers.of(SubscriberHandle(99)), Some(name("ks2")));
        assert_eq!(keyservers.terminals.len(), 2);
        assert_eq!(keyservers.of(A), Some(name("ks2")));
        assert_eq!(keyservers.of(B), Some(name("ks2")));
        // B has an SA there, A has not: only A returns.
        keyservers.observe(at(101), &name("ks2"), &install(B, 7));
        keyservers.went_up(at(140), &name("ks1"));
        assert_eq!(asked(&mut keyservers, at(140)), [A]);
        // The hint was lost: once more, until it registers.
        assert_eq!(asked(&mut keyservers, at(146)), [A]);
        keyservers.registered(A);
        assert_eq!(keyservers.of(A), Some(name("ks1")));
        assert_eq!(keyservers.of(B), Some(name("ks2")));
        // Its SA ends, and a while later it returns too.
        keyservers.observe(at(150), &name("ks2"), &remove(B, 7));
        keyservers.active(at(150), B);
        while let Some(next) = keyservers.poll_timeout().filter(|next| *next < at(179)) {
            keyservers.handle_timeout(next);
        }
        assert_eq!(keyservers.of(B), Some(name("ks2")));
        keyservers.handle_timeout(at(185));
        assert_eq!(keyservers.of(B), Some(name("ks1")));
        assert_eq!(asked(&mut keyservers, at(185)), [B]);
        keyservers.registered(B);
        assert_eq!(keyservers.poll_timeout(), None);
        // The nearest dies: both move at once, whatever they have.
        keyservers.observe(at(186), &name("ks1"), &install(B, 8));
        keyservers.went_down(at(190), &name("ks1"));
        assert_eq!(asked(&mut keyservers, at(190)), [A, B]);
        assert_eq!(keyservers.of(B), Some(name("ks2")));
        // None is left, then the first to be back takes all.
        keyservers.went_down(at(191), &name("ks2"));
        assert_eq!((keyservers.of(A), keyservers.poll_ask(at(192))), (None, None));
        keyservers.went_up(at(193), &name("ks1"));
        assert_eq!(asked(&mut keyservers, at(193)), [A, B]);
        assert_eq!(keyservers.of(A), Some(name("ks1")));
    }

    #[test]
    fn sas_of_a_dead_keyserver_pass_until_another_replaced_them() {
        let mut keyservers = two();
        keyservers.went_up(at(1), &name("ks1"));
        keyservers.went_up(at(1), &name("ks2"));
        keyservers.serve(A);
        keyservers.observe(at(2), &name("ks1"), &install(A, 7));
        keyservers.went_down(at(3), &name("ks1"));
        assert_eq!(keyservers.poll_remove(at(9999)), None);
        keyservers.observe(at(10_000), &name("ks2"), &install(A, 8));
        assert_eq!(keyservers.poll_remove(at(10_029)), None);
        assert_eq!(
            keyservers.poll_remove(at(10_030)).map(|key| key.spi_in),
            Some(Spi(7))
        );
        assert_eq!(keyservers.poll_remove(at(99_999)), None);
        // A keyserver that is back looks after its own.
        keyservers.went_down(at(100_000), &name("ks2"));
        keyservers.went_up(at(100_000), &name("ks1"));
        keyservers.observe(at(100_001), &name("ks1"), &install(A, 9));
        keyservers.went_up(at(100_002), &name("ks2"));
        assert_eq!(keyservers.poll_remove(at(200_000)), None);
    }

    #[test]
    fn many_are_asked_a_few_at_a_time() {
        let mut keyservers = two();
        keyservers.went_up(at(1), &name("ks1"));
        for handle in 0..1000 {
            keyservers.serve(SubscriberHandle(handle));
        }
        keyservers.went_up(at(1), &name("ks2"));
        keyservers.went_down(at(2), &name("ks1"));
        assert_eq!(asked(&mut keyservers, at(2)).len(), ASK_AT_ONCE);
        assert_eq!(keyservers.poll_timeout(), Some(at(2) + ASK_EVERY));
        assert_eq!(asked(&mut keyservers, at(2) + ASK_EVERY).len(), ASK_AT_ONCE);
    }
}
