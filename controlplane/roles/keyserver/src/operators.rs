//! What each operator may use of a keyserver (spec row K16): places for IKE SAs, and exchanges per second.

use std::collections::HashMap;

use towpath_base::Instant;
use towpath_base::rate::{Bucket, Rate};
use towpath_ike::{Budget, BudgetId};

/// Limits of each operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperatorLimits {
    /// Places for IKE SAs.
    pub share: Budget,
    /// Exchanges begun per second, by its terminals or by peers with them; as many may begin at once. 0: no limit.
    pub exchanges_per_second: u32,
}

impl Default for OperatorLimits {
    fn default() -> Self {
        Self {
            share: Budget {
                ike_sas: usize::MAX,
                half_open: usize::MAX,
            },
            exchanges_per_second: 0,
        }
    }
}

/// The share without places: what is counted against it is not answered.
pub(crate) const NOTHING: BudgetId = BudgetId(u32::MAX);

/// The operators heard of, as many as the registry has.
#[derive(Debug, Default)]
pub(crate) struct Operators {
    numbers: HashMap<String, BudgetId>,
    /// What each has begun.
    begun: HashMap<BudgetId, Bucket>,
}

impl Operators {
    /// The number of an operator, and whether it is new.
    pub(crate) fn number(&mut self, name: &str) -> (BudgetId, bool) {
        if let Some(known) = self.numbers.get(name) {
            return (*known, false);
        }
        let next = u32::try_from(self.numbers.len() + 1).unwrap_or(NOTHING.0 - 1);
        self.numbers.insert(name.into(), BudgetId(next));
        (BudgetId(next), true)
    }

    /// Whether the operator may begin an exchange now; if so it is counted.
    pub(crate) fn allow(&mut self, now: Instant, operator: BudgetId, limits: OperatorLimits) -> bool {
        if limits.exchanges_per_second == 0 {
            return true;
        }
        let rate = Rate::per_second(limits.exchanges_per_second);
        self.begun.entry(operator).or_default().take(now, rate)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_operator_has_its_own_rate() {
        let mut operators = Operators::default();
        let (north, south) = (operators.number("north"), operators.number("south"));
        assert_eq!(operators.number("north"), (north.0, false));
        assert!(north.1 && south.1 && north.0 != south.0);
        let limits = OperatorLimits {
            exchanges_per_second: 10,
            ..OperatorLimits::default()
        };
        let start = Instant::from_secs(5);
        let mut begun = |now, operator| {
            (0..100)
                .filter(|_| operators.allow(now, operator, limits))
                .count()
        };
        assert_eq!(begun(start, north.0), 10);
        assert_eq!(begun(start + Duration::from_millis(350), north.0), 3);
        assert_eq!(begun(start + Duration::from_secs(60), north.0), 10);
        assert_eq!(begun(start, south.0), 10);
        let free = OperatorLimits::default();
        assert!((0..1000).all(|_| operators.allow(start, north.0, free)));
    }
}
