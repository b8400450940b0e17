//! Shares of an endpoint (spec row K16): one operator's peers do not use up what the others need.

use alloc::collections::BTreeMap;

use towpath_base::crypto::{KeyGenerator, Rng};

use super::Endpoint;
use crate::config::{Budget, BudgetId};

/// Shares that are limited, and what is used of each.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    limits: BTreeMap<BudgetId, Budget>,
    used: BTreeMap<BudgetId, usize>,
    half_open: BTreeMap<BudgetId, usize>,
}

impl Budgets {
    pub(super) fn count(&mut self, id: BudgetId, more: bool) {
        let used = self.used.entry(id).or_default();
        *used = if more { *used + 1 } else { used.saturating_sub(1) };
        if *used == 0 {
            self.used.remove(&id);
        }
    }

    /// Whether one more fits.
    pub(super) fn has_room(&self, id: BudgetId) -> bool {
        let used = self.used.get(&id).copied().unwrap_or(0);
        self.limits.get(&id).is_none_or(|limit| used < limit.ike_sas)
    }

    pub(super) fn count_half_open(&mut self, id: BudgetId, more: bool) {
        let count = self.half_open.entry(id).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.half_open.remove(&id);
        }
    }

    /// Whether one more half-open one fits.
    pub(super) fn has_half_open_room(&self, id: BudgetId) -> bool {
        let count = self.half_open.get(&id).copied().unwrap_or(0);
        self.limits.get(&id).is_none_or(|limit| count < limit.half_open)
    }
}

impl<K: KeyGenerator, R: Rng> Endpoint<K, R> {
    /// Limits a share; those never limited have the whole endpoint. See
    /// [`initiate_within`](Self::initiate_within) and [`provide_policy_within`](Self::provide_policy_within).
    pub fn limit(&mut self, id: BudgetId, budget: Budget) {
        self.budgets.limits.insert(id, budget);
    }

    /// IKE SAs that count against a share.
    pub fn used(&self, id: BudgetId) -> usize {
        self.budgets.used.get(&id).copied().unwrap_or(0)
    }
}
