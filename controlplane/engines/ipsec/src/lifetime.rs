//! Limits of an SA in time and bytes (RFC 4301 §4.4.2.1): at the soft one a replacement is wanted, at the
//! hard one the SA is gone.

use core::time::Duration;

use towpath_base::sa::Lifetime;
use towpath_base::{DropReason, Instant};

/// A limit was reached. Each is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LifetimeEvent {
    /// A replacement is wanted.
    Soft,
    /// The SA carries no packet any more.
    Hard,
}

/// Packets and bytes of one direction, held against its limits.
#[derive(Debug, Clone)]
pub struct Meter {
    soft: Limit,
    hard: Limit,
    packets: u64,
    bytes: u64,
    told: Option<LifetimeEvent>,
    pending: Option<LifetimeEvent>,
}

/// One limit, as the packet path compares it.
#[derive(Debug, Clone, Copy)]
struct Limit {
    at: Instant,
    bytes: u64,
}

impl Limit {
    const NEVER: Instant = Instant::from_nanos(u64::MAX);

    /// Zero is no limit.
    const fn new(created: Instant, seconds: u32, bytes: u64) -> Self {
        let after = created
            .as_nanos()
            .saturating_add(Instant::from_secs(seconds as u64).as_nanos());
        Self {
            at: if seconds == 0 {
                Self::NEVER
            } else {
                Instant::from_nanos(after)
            },
            bytes: if bytes == 0 { u64::MAX } else { bytes },
        }
    }

    #[inline]
    fn reached(&self, now: Instant, bytes: u64) -> bool {
        now >= self.at || bytes >= self.bytes
    }

    fn timeout(&self) -> Option<Instant> {
        (self.at != Self::NEVER).then_some(self.at)
    }
}

impl Meter {
    /// Starts to count at `now`.
    pub const fn new(limits: Lifetime, now: Instant) -> Self {
        Self {
            soft: Limit::new(now, limits.soft_seconds, limits.soft_bytes),
            hard: Limit::new(now, limits.hard_seconds, limits.hard_bytes),
            packets: 0,
            bytes: 0,
            told: None,
            pending: None,
        }
    }

    /// Goes on where a former owner of the same SA was: `age` old already, with so much carried.
    pub fn resume(&mut self, age: Duration, packets: u64, bytes: u64) {
        for limit in [&mut self.soft, &mut self.hard] {
            if limit.at != Limit::NEVER {
                let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
                limit.at = Instant::from_nanos(limit.at.as_nanos().saturating_sub(age));
            }
        }
        self.packets = packets;
        self.bytes = bytes;
    }

    /// Packets carried.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Bytes carried: whole plain IP packets.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether another packet may be carried.
    ///
    /// # Errors
    /// [`DropReason::EspLifetimeExpired`] at the hard limit.
    #[inline]
    pub fn check(&mut self, now: Instant) -> Result<(), DropReason> {
        if self.hard.reached(now, self.bytes) {
            self.tell(LifetimeEvent::Hard);
            return Err(DropReason::EspLifetimeExpired);
        }
        Ok(())
    }

    /// Counts a packet of `bytes` bytes.
    #[inline]
    pub fn count(&mut self, now: Instant, bytes: usize) {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.soft.reached(now, self.bytes) {
            self.tell(LifetimeEvent::Soft);
        }
    }

    /// Notices limits in time without a packet.
    pub fn tick(&mut self, now: Instant) {
        if self.check(now).is_ok() && self.soft.reached(now, self.bytes) {
            self.tell(LifetimeEvent::Soft);
        }
    }

    /// A replacement is wanted for another reason: the sequence numbers run out.
    pub(crate) fn want_replacement(&mut self) {
        self.tell(LifetimeEvent::Soft);
    }

    /// The limit reached since the last call, if any.
    pub const fn take_event(&mut self) -> Option<LifetimeEvent> {
        self.pending.take()
    }

    /// When [`Meter::tick`] will next have something to tell.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.told {
            None => self.soft.timeout().or(self.hard.timeout()),
            Some(LifetimeEvent::Soft) => self.hard.timeout(),
            Some(LifetimeEvent::Hard) => None,
        }
    }

    fn tell(&mut self, event: LifetimeEvent) {
        if self.told < Some(event) {
            self.told = Some(event);
            self.pending = Some(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Lifetime = Lifetime {
        soft_seconds: 10,
        hard_seconds: 20,
        soft_bytes: 1000,
        hard_bytes: 2000,
    };

    #[test]
    fn each_limit_is_told_once() {
        let mut meter = Meter::new(LIMITS, Instant::ZERO);
        assert_eq!(meter.poll_timeout(), Some(Instant::from_secs(10)));
        meter.count(Instant::from_secs(1), 999);
        assert_eq!(meter.take_event(), None);
        meter.count(Instant::from_secs(1), 1);
        assert_eq!(meter.take_event(), Some(LifetimeEvent::Soft));
        meter.count(Instant::from_secs(11), 999);
        assert_eq!(meter.take_event(), None);
        assert_eq!(meter.poll_timeout(), Some(Instant::from_secs(20)));
        assert_eq!(meter.check(Instant::from_secs(12)), Ok(()));
        meter.count(Instant::from_secs(12), 1);
        assert_eq!(
            meter.check(Instant::from_secs(12)),
            Err(DropReason::EspLifetimeExpired)
        );
        assert_eq!(meter.take_event(), Some(LifetimeEvent::Hard));
        assert_eq!(
            meter.check(Instant::from_secs(13)),
            Err(DropReason::EspLifetimeExpired)
        );
        assert_eq!(meter.take_event(), None);
        assert_eq!(meter.poll_timeout(), None);
    }

    #[test]
    fn limits_go_on_from_what_was_used_before() {
        let mut meter = Meter::new(LIMITS, Instant::from_secs(100));
        meter.resume(Duration::from_secs(4), 3, 1999);
        assert_eq!(meter.poll_timeout(), Some(Instant::from_secs(106)));
        assert_eq!(meter.check(Instant::from_secs(100)), Ok(()));
        meter.count(Instant::from_secs(100), 1);
        assert_eq!((meter.packets(), meter.bytes()), (4, 2000));
        assert_eq!(
            meter.check(Instant::from_secs(100)),
            Err(DropReason::EspLifetimeExpired)
        );
        // Older than the process's clock is: over at once. Without a limit in time age means nothing.
        let mut old = Meter::new(LIMITS, Instant::from_secs(1));
        old.resume(Duration::from_secs(1000), 0, 0);
        assert!(old.check(Instant::from_secs(1)).is_err());
        let mut endless = Meter::new(Lifetime::default(), Instant::from_secs(1));
        endless.resume(Duration::from_secs(u64::from(u32::MAX)), 0, 0);
        assert_eq!(endless.check(Instant::from_secs(1)), Ok(()));
    }

    #[test]
    fn time_alone_ends_an_idle_sa() {
        let mut meter = Meter::new(LIMITS, Instant::from_secs(100));
        meter.tick(Instant::from_secs(109));
        assert_eq!(meter.take_event(), None);
        meter.tick(Instant::from_secs(110));
        assert_eq!(meter.take_event(), Some(LifetimeEvent::Soft));
        meter.tick(Instant::from_secs(120));
        assert_eq!(meter.take_event(), Some(LifetimeEvent::Hard));
    }
}
