//! The security association database: pairs of SAs, by selectors for what goes out, by SPI for what comes in.

use core::net::IpAddr;
use core::time::Duration;

use towpath_base::crypto::{EspProvider, EspTransform, InvalidKey};
use towpath_base::sa::{ChildSa, Class, EspSuite, Mode};
use towpath_base::{Instant, Spi};
use towpath_ipsec::{Flow, InboundSa, LifetimeEvent, OutboundSa};
use towpath_keyx::message::SaName;

/// Words of the replay window: 448 packets.
const WINDOW_WORDS: usize = 8;

/// One pair.
pub(crate) struct Pair<T> {
    pub(crate) name: SaName,
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
}

impl<T> Pair<T> {
    pub(crate) const fn is_replaced(&self) -> bool {
        self.retire_at.is_some()
    }
}

/// What became of a pair.
pub(crate) enum Due {
    /// Wants a replacement.
    Renew(SaName),
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
    Key(InvalidKey),
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

    /// The pair a packet to `peer` goes out on: the newest whose selectors admit it.
    pub(crate) fn outgoing(&mut self, peer: IpAddr, flow: &Flow) -> Option<&mut Pair<T>> {
        self.pairs
            .iter_mut()
            .flatten()
            .filter(|pair| pair.name.remote == peer && !pair.is_replaced() && pair.outbound.admits(flow))
            .max_by_key(|pair| pair.age)
    }

    pub(crate) fn admits(&self, peer: IpAddr, flow: &Flow) -> bool {
        self.iter()
            .any(|pair| pair.name.remote == peer && !pair.is_replaced() && pair.outbound.admits(flow))
    }

    /// The pair that receives under `spi`.
    pub(crate) fn incoming(&mut self, local: IpAddr, spi: Spi) -> Option<&mut Pair<T>> {
        self.pairs
            .iter_mut()
            .flatten()
            .find(|pair| pair.name.local == local && pair.name.spi_in == spi)
    }

    /// Adds a pair. What it replaces receives for `linger` more.
    pub(crate) fn install<P>(
        &mut self,
        provider: &P,
        now: Instant,
        class: Class,
        sa: &ChildSa,
        replaces: Option<Spi>,
        linger: Duration,
    ) -> Result<(), NotInstalled>
    where
        P: EspProvider<Transform = T>,
    {
        let outbound = OutboundSa::new(provider, now, sa).map_err(NotInstalled::Key)?;
        let inbound = InboundSa::new(provider, now, sa).map_err(NotInstalled::Key)?;
        // A replaced pair that only lingers makes room for a new one.
        let slot = match self.pairs.iter().position(Option::is_none) {
            Some(free) => free,
            None => self
                .pairs
                .iter()
                .position(|pair| pair.as_ref().is_some_and(Pair::is_replaced))
                .ok_or(NotInstalled::Full)?,
        };
        let name = SaName::of(sa);
        for old in self.pairs.iter_mut().flatten() {
            if replaces == Some(old.name.spi_in) && old.name.remote == name.remote && !old.is_replaced() {
                old.retire_at = Some(now + linger);
                old.renew_at = None;
            }
        }
        self.installed += 1;
        let between = sa.lifetime.hard_seconds.saturating_sub(sa.lifetime.soft_seconds);
        if let Some(slot) = self.pairs.get_mut(slot) {
            *slot = Some(Pair {
                name,
                class,
                suite: sa.suite,
                mode: sa.mode,
                encap: sa.encap.is_some(),
                outbound,
                inbound,
                age: self.installed,
                retire_at: None,
                renew_at: None,
                grace: Duration::from_secs(u64::from(between / 2).clamp(1, 30)),
            });
        }
        Ok(())
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

    /// Limits reached by now; call until `None`.
    pub(crate) fn poll_due(&mut self, now: Instant) -> Option<Due> {
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
        Some(Due::Renew(wants.name))
    }

    /// Notes soft limits; returns the first pair at its hard one.
    fn take_expired(&mut self, now: Instant) -> Option<SaName> {
        for pair in self.pairs.iter_mut().flatten() {
            for meter in [pair.outbound.meter_mut(), pair.inbound.meter_mut()] {
                meter.tick(now);
                match meter.take_event() {
                    Some(LifetimeEvent::Hard) => return Some(pair.name),
                    Some(LifetimeEvent::Soft) if pair.renew_at.is_none() && pair.retire_at.is_none() => {
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
                [pair.retire_at, pair.renew_at]
                    .into_iter()
                    .chain(meters)
                    .flatten()
            })
            .min()
    }
}
