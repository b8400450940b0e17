//! The selectors of an SA, which few packets need: away from what every packet needs.

use towpath_base::sa::{ChildSa, Selectors};

use crate::locate::Flow;

/// Selectors of both ends, looked at from one of them. With an allocator all halves of an SA share one copy.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    #[cfg(feature = "tables")]
    both: alloc::sync::Arc<Both>,
    #[cfg(not(feature = "tables"))]
    both: Both,
    /// Packets go to the local end.
    inward: bool,
}

#[derive(Debug, Clone)]
struct Both {
    local: Selectors,
    remote: Selectors,
}

impl Ends {
    /// For packets that the local end of `sa` sends.
    pub(crate) fn outward(sa: &ChildSa) -> Self {
        let both = Both {
            local: sa.local_ts,
            remote: sa.remote_ts,
        };
        Self {
            #[cfg(feature = "tables")]
            both: alloc::sync::Arc::new(both),
            #[cfg(not(feature = "tables"))]
            both,
            inward: false,
        }
    }

    /// The same SA, for packets the other way.
    pub(crate) const fn reversed(mut self) -> Self {
        self.inward = !self.inward;
        self
    }

    /// Whether the SA admits the flow this way.
    pub(crate) fn admit(&self, flow: &Flow) -> bool {
        let Both { local, remote } = self.borrow();
        if self.inward {
            flow.matches(remote, local)
        } else {
            flow.matches(local, remote)
        }
    }

    #[cfg(feature = "tables")]
    fn borrow(&self) -> &Both {
        &self.both
    }

    #[cfg(not(feature = "tables"))]
    const fn borrow(&self) -> &Both {
        &self.both
    }
}
