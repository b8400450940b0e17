//! The security association database: pairs of SAs, by selectors for what goes out, by SPI for what comes in.

use core::net::IpAddr;
use core::time::Duration;

use towpath_base::crypto::{EspProvider, EspTransform, InvalidKey};
use towpath_base::sa::{ChildSa, Class, EspSuite, Mode};
use towpath_base::{Instant, Spi};
use towpath_ipsec::{Flow, InboundSa, LifetimeEvent, OutboundSa};
use towpath_keyx::message::SaName;

use crate::policy::Towards;

/// Words of the replay window: 448 packets.
const WINDOW_WORDS: usize = 8;

/// One pair.
pub(crate) struct Pair<T> {
    pub(crate) name: SaName,
    /// The peer as the SPD knows it: one that moved is elsewhere since.
    pub(crate) towards: Towards,
    pub(crate) class: Class,
    pub(crate) suite: EspSuite,
    pub(crate) mode: Mode,
    pub(crate) encap: bool,
    pub(crate) outbound: OutboundSa<T>,
    pub(crate) inbound: InboundSa<T, WINDOW_WORDS>,
    /// Order of installation: the newest sends.
    age: u64,
    /// Replaced: receives until then, sends nothing.
    retire_at: Option<Instant>,
    /// Past its soft limit: asks for a replacement then, unless one has come.
    renew_at: Option<Instant>,
    /// Between soft and hard limit, for [`Pair::renew_at`].
    grace: Duration,
    /// What sends in its place until the peer is known to have it, at most until then.
    standby: Option<(Spi, Instant)>,
}

/// How long a pair that was replaced and is deleted still receives: packets on the way, nothing else.
const DELETED_LINGER: Duration = Duration::from_secs(5);
/// A peer that neither sends nor deletes for this long is taken to have a new SA all the same.
const STANDBY: Duration = Duration::from_secs(10);

impl<T> Pair<T> {
    pub(crate) const fn is_replaced(&self) -> bool {
        self.retire_at.is_some()
    }

    /// Receives for `linger` more, sends nothing.
    fn retire(&mut self, now: Instant, linger: Duration) {
        self.retire_at.get_or_insert(now + linger);
        self.renew_at = None;
    }

    pub(crate) const fn is_standby(&self) -> bool {
        self.standby.is_some()
    }
}

/// What a transfer says of an SA beside the SA.
pub(crate) struct Handed {
    pub(crate) class: Class,
    pub(crate) level: u8,
    pub(crate) replaces: Option<Spi>,
    pub(crate) standby: bool,
    /// The request it answers.
    pub(crate) answers: Option<u32>,
}

/// What became of a pair.
pub(crate) enum Due {
    /// Wants a replacement.
    Renew(SaName, Towards),
    /// Gone.
    Expired(SaName),
}

pub(crate) struct Sad<T, const N: usize> {
    pairs: [Option<Pair<T>>; N],
    installed: u64,
}

/// Why an SA was not installed.
pub(crate) enum NotInstalled {
    Full,
    Key,
}

impl From<InvalidKey> for NotInstalled {
    fn from(_: InvalidKey) -> Self {
        Self::Key
    }
}

impl<T: EspTransform, const N: usize> Sad<T, N> {
    pub(crate) fn new() -> Self {
        Self {
            pairs: core::array::from_fn(|_| None),
            installed: 0,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pair<T>> {
        self.pairs.iter().flatten()
    }

    pub(crate) fn contains(&self, name: &SaName) -> bool {
        self.iter().any(|pair| pair.name == *name)
    }

    /// Sensitivity level of a pair that is there.
    pub(crate) fn level(&self, name: &SaName) -> Option<u8> {
        self.iter()
            .find(|pair| pair.name == *name)
            .map(|pair| pair.towards.level)
    }

    /// The pair a packet goes out on: the newest whose selectors admit it.
    pub(crate) fn outgoing(&mut self, towards: Towards, flow: &Flow) -> Option<&mut Pair<T>> {
        self.pairs
            .iter_mut()
            .flatten()
            .filter(|pair| pair.towards == towards && !pair.is_replaced() && pair.outbound.admits(flow))
            .max_by_key(|pair| (!pair.is_standby(), pair.age))
    }

    pub(crate) fn admits(&self, towards: Towards, flow: &Flow) -> bool {
        self.iter()
            .any(|pair| pair.towards == towards && !pair.is_replaced() && pair.outbound.admits(flow))
    }

    /// The pair that receives under `spi`.
    pub(crate) fn incoming(&mut self, local: IpAddr, spi: Spi) -> Option<&mut Pair<T>> {
        self.pairs
            .iter_mut()
            .flatten()
            .find(|pair| pair.name.local == local && pair.name.spi_in == spi)
    }

    /// The pair that sends under `spi`.
    pub(crate) fn sender(&mut self, local: IpAddr, remote: IpAddr, spi: Spi) -> Option<&mut Pair<T>> {
        self.pairs.iter_mut().flatten().find(|pair| {
            let SaName { spi_out, .. } = pair.name;
            (pair.name.local, pair.name.remote, spi_out) == (local, remote, spi)
        })
    }

    /// Adds a pair. What it replaces receives for `linger` more, and goes on sending while the new one is on standby.
    pub(crate) fn install<P>(
        &mut self,
        provider: &P,
        now: Instant,
        what: &Handed,
        sa: &ChildSa,
        linger: Duration,
    ) -> Result<(), NotInstalled>
    where
        P: EspProvider<Transform = T>,
    {
        let Handed {
            class,
            level,
            replaces,
            standby,
            ..
        } = *what;
        // A replaced pair that only lingers makes room for a new one.
        let slot = match self.pairs.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                let lingering = self.pairs.iter().enumerate();
                let lingering = lingering.filter_map(|(at, pair)| Some((pair.as_ref()?.retire_at?, at)));
                lingering.min().ok_or(NotInstalled::Full)?.1
            }
        };
        let name = SaName::of(sa);
        let between = sa.lifetime.hard_seconds.saturating_sub(sa.lifetime.soft_seconds);
        // A successor serves the peer its predecessor served, wherever that is now.
        let predecessor = self
            .iter()
            .find(|old| replaces == Some(old.name.spi_in) && !old.is_replaced());
        let peer = predecessor.map_or(name.remote, |old| old.towards.peer);
        let towards = Towards { peer, level };
        let mut pair = Pair {
            name,
            towards,
            class,
            suite: sa.suite,
            mode: sa.mode,
            encap: sa.encap.is_some(),
            outbound: OutboundSa::new(provider, now, sa)?,
            inbound: InboundSa::new(provider, now, sa)?,
            age: self.installed + 1,
            retire_at: None,
            renew_at: None,
            grace: Duration::from_secs(u64::from(between / 2).clamp(1, 30)),
            standby: None,
        };
        for old in self.pairs.iter_mut().flatten() {
            if replaces == Some(old.name.spi_in) && old.towards == towards && !old.is_replaced() {
                old.renew_at = None;
                if standby {
                    pair.standby = Some((old.name.spi_in, now + STANDBY));
                } else {
                    old.retire(now, linger);
                }
            }
        }
        self.installed += 1;
        if let Some(slot) = self.pairs.get_mut(slot) {
            *slot = Some(pair);
        }
        Ok(())
    }

    /// The peer has this pair, which was on standby: it sends from now on, what it replaces only receives.
    pub(crate) fn promote(&mut self, now: Instant, name: &SaName, linger: Duration) {
        let waiting = self.pairs.iter_mut().flatten().find(|pair| pair.name == *name);
        let Some((towards, (old, _))) = waiting.and_then(|pair| Some((pair.towards, pair.standby.take()?)))
        else {
            return;
        };
        for pair in self.pairs.iter_mut().flatten() {
            if pair.name.spi_in == old && pair.towards == towards {
                pair.retire(now, linger);
            }
        }
    }

    /// The network deleted a pair. One that has a successor receives for `linger` more, and its successor sends; false
    /// if it has none.
    pub(crate) fn retire(&mut self, now: Instant, name: &SaName, linger: Duration) -> bool {
        let towards = self
            .iter()
            .find(|pair| pair.name == *name)
            .map(|pair| pair.towards);
        let successor = self.iter().find(|pair| {
            Some(pair.towards) == towards && pair.standby.is_some_and(|(old, _)| old == name.spi_in)
        });
        if let Some(successor) = successor.map(|pair| pair.name) {
            self.promote(now, &successor, linger);
        }
        let soon = now + DELETED_LINGER.min(linger);
        let pair = self.pairs.iter_mut().flatten().find(|pair| pair.name == *name);
        let Some(at) = pair.and_then(|pair| pair.retire_at.as_mut()) else {
            return false;
        };
        *at = soon.min(*at);
        true
    }

    pub(crate) fn remove(&mut self, name: &SaName) -> bool {
        self.remove_if(|pair| pair.name == *name).is_some()
    }

    /// Removes one pair; call until `None` to remove all.
    pub(crate) fn pop(&mut self) -> Option<SaName> {
        self.remove_if(|_| true)
    }

    fn remove_if(&mut self, which: impl Fn(&Pair<T>) -> bool) -> Option<SaName> {
        let slot = self
            .pairs
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(&which))?;
        slot.take().map(|pair| pair.name)
    }

    fn overdue_standby(&self, now: Instant) -> Option<SaName> {
        let overdue = |pair: &&Pair<T>| pair.standby.is_some_and(|(_, until)| until <= now);
        self.iter().find(overdue).map(|pair| pair.name)
    }

    /// Limits reached by now; call until `None`.
    pub(crate) fn poll_due(&mut self, now: Instant, linger: Duration) -> Option<Due> {
        while let Some(name) = self.overdue_standby(now) {
            self.promote(now, &name, linger);
        }
        let gone = self.remove_if(|pair| pair.retire_at.is_some_and(|at| at <= now));
        if let Some(name) = gone {
            return Some(Due::Expired(name));
        }
        if let Some(name) = self.take_expired(now) {
            self.remove(&name);
            return Some(Due::Expired(name));
        }
        let wants = self
            .pairs
            .iter_mut()
            .flatten()
            .find(|pair| pair.renew_at.is_some_and(|at| at <= now))?;
        wants.renew_at = None;
        Some(Due::Renew(wants.name, wants.towards))
    }

    /// Notes soft limits; returns the first pair at its hard one.
    fn take_expired(&mut self, now: Instant) -> Option<SaName> {
        for pair in self.pairs.iter_mut().flatten() {
            // One connection's SA that nobody used ends with it.
            let used = pair.outbound.meter().packets() + pair.inbound.meter().packets() > 0;
            let wanted = used || pair.towards.level == 0;
            for meter in [pair.outbound.meter_mut(), pair.inbound.meter_mut()] {
                meter.tick(now);
                match meter.take_event() {
                    Some(LifetimeEvent::Hard) => return Some(pair.name),
                    Some(LifetimeEvent::Soft)
                        if wanted && pair.renew_at.is_none() && pair.retire_at.is_none() =>
                    {
                        // The gateway sees the same limit and usually acts first.
                        pair.renew_at = Some(now + pair.grace);
                    }
                    Some(LifetimeEvent::Soft) | None => {}
                }
            }
        }
        None
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.iter()
            .flat_map(|pair| {
                let meters = [
                    pair.outbound.meter().poll_timeout(),
                    pair.inbound.meter().poll_timeout(),
                ];
                [
                    pair.retire_at,
                    pair.renew_at,
                    pair.standby.map(|(_, until)| until),
                ]
                .into_iter()
                .chain(meters)
                .flatten()
            })
            .min()
    }
}
