//! SAs that were replaced and deleted, which a gateway serves a moment longer: packets sealed under their keys are
//! still on their way.

use std::collections::VecDeque;

use towpath_base::{Instant, SubscriberHandle};
use towpath_fabric::FromKeyserver;

use crate::pairs::PairKey;

/// Most such SAs of one pair: a peer that rekeys without pause does not fill the gateway.
const PER_PAIR: usize = 4;

/// What waits to be removed, in order of time: all wait equally long.
#[derive(Debug, Default)]
pub(crate) struct Lingering(VecDeque<(Instant, PairKey, FromKeyserver)>);

impl Lingering {
    /// Has `remove` wait until `at`. Gives back the oldest of the pair where too many wait.
    pub(crate) fn push(&mut self, at: Instant, key: PairKey, remove: FromKeyserver) -> Option<FromKeyserver> {
        let of_pair = |entry: &&(Instant, PairKey, FromKeyserver)| entry.1 == key;
        let crowded = self.0.iter().filter(of_pair).count() >= PER_PAIR;
        let oldest = self.0.iter().position(|entry| entry.1 == key).filter(|_| crowded);
        let early = oldest
            .and_then(|at| self.0.remove(at))
            .map(|(_, _, remove)| remove);
        self.0.push_back((at, key, remove));
        early
    }

    /// The next that has waited long enough.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<FromKeyserver> {
        self.0
            .pop_front_if(|(at, _, _)| *at <= now)
            .map(|(_, _, remove)| remove)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.0.front().map(|(at, _, _)| *at)
    }

    /// Everything of a subscriber that left, at once.
    pub(crate) fn end(&mut self, left: SubscriberHandle) -> Vec<FromKeyserver> {
        let (ended, stay) = std::mem::take(&mut self.0).into_iter().partition(|(_, _, remove)| {
            matches!(remove, FromKeyserver::Remove { subscriber, .. } if *subscriber == left)
        });
        self.0 = stay;
        let ended: VecDeque<_> = ended;
        ended.into_iter().map(|(_, _, remove)| remove).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use towpath_base::Spi;

    use super::*;

    #[test]
    fn each_waits_its_time_and_a_crowded_pair_gives_up_its_oldest() {
        let key = PairKey::new(IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let remove = |number| FromKeyserver::Remove {
            subscriber: SubscriberHandle(1),
            local: key.local,
            remote: key.remote,
            spi_in: Spi(number),
            spi_out: Spi(number),
        };
        let mut lingering = Lingering::default();
        for number in 0..6 {
            let early = lingering.push(Instant::from_secs(number.into()), key, remove(number));
            let expected = number.checked_sub(4).map(remove);
            assert_eq!(early, expected);
        }
        assert_eq!(lingering.poll_timeout(), Some(Instant::from_secs(2)));
        assert_eq!(lingering.poll(Instant::from_secs(1)), None);
        assert_eq!(lingering.poll(Instant::from_secs(2)), Some(remove(2)));
        assert_eq!(lingering.end(SubscriberHandle(2)).len(), 0);
        assert_eq!(lingering.end(SubscriberHandle(1)).len(), 3);
        assert_eq!(lingering.poll_timeout(), None);
    }
}
