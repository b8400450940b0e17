//! Credentials at hand: an exchange that follows another of the same terminal and peer does not wait for the registry
//! again. In memory only, for a minute, and not beyond the session under which they were asked for; keys zeroize when an
//! entry goes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use towpath_base::credentials::Credentials;
use towpath_base::profile::PeerPolicy;
use towpath_base::{Instant, SubscriberHandle};

/// Most entries of one subscriber.
const MOST_EACH: usize = 8;
/// Most entries of all subscribers.
const MOST: usize = 1024;

/// What a credential is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Purpose {
    /// The terminal's subscriber.
    pub(crate) subscriber: SubscriberHandle,
    /// Peer.
    pub(crate) peer: IpAddr,
    /// Sensitivity level.
    pub(crate) level: u8,
}

struct Entry {
    purpose: Purpose,
    until: Instant,
    record: PeerPolicy,
    credentials: Credentials,
}

/// What the registry answered lately.
pub(crate) struct AtHand {
    within: Duration,
    next: u64,
    /// By age, the oldest first.
    entries: BTreeMap<u64, Entry>,
    of: HashMap<SubscriberHandle, Vec<u64>>,
}

impl fmt::Debug for AtHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AtHand({} credentials)", self.entries.len())
    }
}

impl AtHand {
    /// Keeps each answer for the time `within`; none if it is zero.
    pub(crate) fn new(within: Duration) -> Self {
        Self {
            within,
            next: 0,
            entries: BTreeMap::new(),
            of: HashMap::new(),
        }
    }

    fn numbers(&self, subscriber: SubscriberHandle) -> &[u64] {
        self.of.get(&subscriber).map_or(&[], Vec::as_slice)
    }

    fn find(&self, purpose: Purpose) -> Option<u64> {
        let is_it = |number: &u64| {
            self.entries
                .get(number)
                .is_some_and(|entry| entry.purpose == purpose)
        };
        self.numbers(purpose.subscriber).iter().copied().find(is_it)
    }

    pub(crate) fn get(&self, now: Instant, purpose: Purpose) -> Option<(PeerPolicy, Credentials)> {
        let entry = self.entries.get(&self.find(purpose)?)?;
        (entry.until > now).then(|| (entry.record.clone(), entry.credentials.clone()))
    }

    /// Takes over an answer, in place of the oldest where there are too many.
    pub(crate) fn keep(
        &mut self,
        now: Instant,
        purpose: Purpose,
        (record, credentials): &(PeerPolicy, Credentials),
    ) {
        if self.within.is_zero() {
            return;
        }
        if let Some(older) = self.find(purpose) {
            self.drop_one(older);
        }
        let mine = self.numbers(purpose.subscriber);
        let oldest = match mine.first() {
            Some(oldest) if mine.len() >= MOST_EACH => Some(*oldest),
            _ if self.entries.len() >= MOST => self.entries.keys().next().copied(),
            _ => None,
        };
        if let Some(oldest) = oldest {
            self.drop_one(oldest);
        }
        let entry = Entry {
            purpose,
            until: now + self.within,
            record: record.clone(),
            credentials: credentials.clone(),
        };
        self.entries.insert(self.next, entry);
        self.of.entry(purpose.subscriber).or_default().push(self.next);
        self.next += 1;
    }

    fn drop_one(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else {
            return;
        };
        let subscriber = entry.purpose.subscriber;
        if let Some(numbers) = self.of.get_mut(&subscriber) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.of.remove(&subscriber);
            }
        }
    }

    /// The subscriber's may have changed.
    pub(crate) fn forget(&mut self, subscriber: SubscriberHandle) {
        for number in self.of.remove(&subscriber).unwrap_or_default() {
            self.entries.remove(&number);
        }
    }

    /// Anybody's may have changed.
    pub(crate) fn forget_all(&mut self) {
        self.entries.clear();
        self.of.clear();
    }

    /// Lets go of what is too old.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((number, _)) = self
            .entries
            .first_key_value()
            .filter(|(_, entry)| entry.until <= now)
        {
            let number = *number;
            self.drop_one(number);
        }
    }

    /// When [`Self::handle_timeout`] is next wanted.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.entries.values().next().map(|entry| entry.until)
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::profile::{IkeId, Psk};
    use towpath_base::sa::{Class, Lifetime, Mode};
    use towpath_base::selector::Prefix;

    use super::*;

    const NOW: Instant = Instant::from_secs(100);
    const WITHIN: Duration = Duration::from_secs(60);

    fn purpose(subscriber: u64, peer: u8) -> Purpose {
        Purpose {
            subscriber: SubscriberHandle(subscriber),
            peer: [10, 0, 0, peer].into(),
            level: 0,
        }
    }

    fn answer(psk: &str) -> (PeerPolicy, Credentials) {
        let record = PeerPolicy {
            peer: Prefix::host([10, 0, 0, 1].into()),
            local_id: IkeId::Fqdn("a.example".into()),
            remote_id: None,
            ike_proposals: Vec::new(),
            esp_suites: Vec::new(),
            esn: false,
            mode: Mode::Transport,
            class: Class::Full,
            local_ts: Vec::new(),
            remote_ts: Vec::new(),
            lifetime: Lifetime::default(),
            level: 0,
        };
        (record, Credentials::psk(Psk::new(psk.into())))
    }

    #[test]
    fn an_answer_serves_its_purpose_for_its_time() {
        let mut at_hand = AtHand::new(WITHIN);
        at_hand.keep(NOW, purpose(1, 1), &answer("one"));
        assert_eq!(at_hand.get(NOW, purpose(1, 1)), Some(answer("one")));
        let other_level = Purpose {
            level: 1,
            ..purpose(1, 1)
        };
        for other in [purpose(2, 1), purpose(1, 2), other_level] {
            assert_eq!(at_hand.get(NOW, other), None);
        }
        at_hand.keep(NOW + WITHIN / 2, purpose(1, 1), &answer("two"));
        assert_eq!(at_hand.get(NOW + WITHIN, purpose(1, 1)), Some(answer("two")));
        assert_eq!(at_hand.get(NOW + WITHIN * 3 / 2, purpose(1, 1)), None);
        assert_eq!(at_hand.poll_timeout(), Some(NOW + WITHIN * 3 / 2));
        at_hand.handle_timeout(NOW + WITHIN * 3 / 2);
        assert_eq!(at_hand.poll_timeout(), None);
        assert!(at_hand.of.is_empty());
        let mut off = AtHand::new(Duration::ZERO);
        off.keep(NOW, purpose(1, 1), &answer("one"));
        assert_eq!(off.get(NOW, purpose(1, 1)), None);
    }

    #[test]
    fn the_oldest_gives_way_its_own_subscribers_first() {
        let mut at_hand = AtHand::new(WITHIN);
        at_hand.keep(NOW, purpose(0, 0), &answer("first"));
        for peer in 0..20 {
            at_hand.keep(NOW, purpose(1, peer), &answer("many"));
        }
        assert_eq!(at_hand.entries.len(), 1 + MOST_EACH);
        assert!(at_hand.get(NOW, purpose(0, 0)).is_some());
        for subscriber in 2..5000 {
            at_hand.keep(NOW, purpose(subscriber, 0), &answer("all"));
        }
        assert_eq!(at_hand.entries.len(), MOST);
        assert_eq!(at_hand.of.len(), MOST);
        assert!(at_hand.get(NOW, purpose(0, 0)).is_none());
        assert!(at_hand.get(NOW, purpose(4999, 0)).is_some());
        at_hand.forget(SubscriberHandle(4999));
        assert!(at_hand.get(NOW, purpose(4999, 0)).is_none());
        at_hand.forget_all();
        assert!(at_hand.entries.is_empty() && at_hand.of.is_empty());
    }
}
