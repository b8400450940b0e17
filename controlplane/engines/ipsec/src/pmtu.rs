//! The path MTU of an SA, and its age (RFC 4301 §8.2, RFC 8201).

use core::time::Duration;

use towpath_base::Instant;

/// Smallest path MTU believed over IPv4: what every host must take whole (RFC 791). Less is an attack or a link on
/// which ESP makes no sense; packets then go fragmented.
pub const MIN_IPV4: u16 = 576;

/// Smallest path MTU believed over IPv6 (RFC 8200 §5).
pub const MIN_IPV6: u16 = 1280;

/// What was learnt is forgotten after this long, and the path tried again (RFC 8201 §4: 10 minutes).
pub const DEFAULT_AGE: Duration = Duration::from_secs(600);

/// A configured limit and a learnt one, the smaller of which counts. Bytes, IP header included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathMtu {
    configured: Option<u16>,
    learnt: Option<(u16, Instant)>,
}

impl PathMtu {
    /// No limit.
    pub const NONE: Self = Self {
        configured: None,
        learnt: None,
    };

    /// A limit that does not age; `None` lifts it.
    pub const fn configure(&mut self, mtu: Option<u16>) {
        self.configured = mtu;
    }

    /// Takes over what a router said. It only ever lowers the limit; returns the new one, `None` if nothing changed.
    pub fn learn(&mut self, now: Instant, mtu: u16, v4: bool) -> Option<u16> {
        let mtu = mtu.max(if v4 { MIN_IPV4 } else { MIN_IPV6 });
        if self.at(now).is_some_and(|present| present <= mtu) {
            return None;
        }
        self.learnt = Some((mtu, now));
        Some(mtu)
    }

    /// The limit at `now`.
    #[inline]
    pub fn at(&self, now: Instant) -> Option<u16> {
        let learnt = match self.learnt {
            Some((mtu, when)) if now.saturating_since(when) < DEFAULT_AGE => Some(mtu),
            _ => None,
        };
        match (self.configured, learnt) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The learnt limit and how old it is.
    pub fn learnt(&self, now: Instant) -> Option<(u16, Duration)> {
        let (mtu, when) = self.learnt?;
        let age = now.saturating_since(when);
        (age < DEFAULT_AGE).then_some((mtu, age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learnt_only_lowers_and_ages() {
        let mut path = PathMtu::NONE;
        let at = Instant::from_secs;
        assert_eq!(path.at(at(1)), None);
        path.configure(Some(1500));
        assert_eq!(path.learn(at(1), 1600, true), None);
        assert_eq!(path.learn(at(1), 1400, true), Some(1400));
        assert_eq!(path.learn(at(2), 1450, true), None);
        assert_eq!((path.at(at(600)), path.at(at(601))), (Some(1400), Some(1500)));
        assert_eq!(path.learnt(at(100)), Some((1400, Duration::from_secs(99))));
        assert_eq!(path.learn(at(700), 68, true), Some(MIN_IPV4));
        assert_eq!(path.learn(at(2000), 68, false), Some(MIN_IPV6));
    }
}
