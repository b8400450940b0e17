//! What is shown, as data: one row per scenario.

use crate::lab::{Family, Node, PeerKind, Suite};

/// What a terminal's gateway may do with the SA, as the subscriber's policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The gateway opens one segment and seals the other.
    Full,
    /// The gateway has no key and forwards untouched.
    None,
}

impl Class {
    /// Its name in policies and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::None => "none",
        }
    }
}

/// Who starts the key exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Starter {
    /// The terminal's first packet.
    Terminal,
    /// The other end.
    Other,
}

/// One thing to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scenario {
    /// The terminal. In the lab terminal A's policy towards the peer says `full`, terminal B's `none`.
    pub terminal: Node,
    /// The other end: the peer, or another terminal (K10).
    pub other: Node,
    /// Address family.
    pub family: Family,
    /// Who starts.
    pub starter: Starter,
    /// What the peer proposes and accepts.
    pub suite: Suite,
    /// Intervention class.
    pub class: Class,
}

impl Scenario {
    /// The terminal whose policy towards the peer has this class.
    pub fn terminal_of(class: Class) -> Node {
        match class {
            Class::Full => Node::Ta,
            Class::None => Node::Tb,
        }
    }

    /// Short text for one line.
    pub fn title(&self) -> String {
        let other = if self.other == Node::Peer {
            "peer".to_owned()
        } else {
            "terminal B".to_owned()
        };
        let starter = if self.starter == Starter::Terminal {
            "terminal".to_owned()
        } else {
            other.clone()
        };
        format!(
            "{} {} started, {}, class {}, terminal {} with {other}",
            self.family,
            starter,
            self.suite.name(),
            self.class.name(),
            if self.terminal == Node::Ta { "A" } else { "B" },
        )
    }
}

/// All scenarios with a peer of this kind, in the order they run.
pub fn matrix(kind: PeerKind) -> Vec<Scenario> {
    let mut rows = Vec::new();
    for class in [Class::Full, Class::None] {
        for suite in [Suite::Gcm, Suite::Cbc] {
            for family in Family::ALL {
                for starter in [Starter::Terminal, Starter::Other] {
                    let terminal = Scenario::terminal_of(class);
                    rows.push(Scenario {
                        terminal,
                        other: Node::Peer,
                        family,
                        starter,
                        suite,
                        class,
                    });
                }
            }
        }
    }
    let first = Scenario {
        terminal: Node::Ta,
        other: Node::Peer,
        family: Family::V4,
        starter: Starter::Terminal,
        suite: Suite::Modp,
        class: Class::Full,
    };
    rows.push(first);
    if kind == PeerKind::Kernel {
        // Both ends are proxied: no peer takes part, so one kind of it is enough.
        for family in Family::ALL {
            rows.push(Scenario {
                other: Node::Tb,
                family,
                suite: Suite::Any,
                ..first
            });
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_combination_is_there_once() {
        let rows = matrix(PeerKind::Kernel);
        assert_eq!(rows.iter().collect::<HashSet<_>>().len(), rows.len());
        for family in Family::ALL {
            for starter in [Starter::Terminal, Starter::Other] {
                for suite in [Suite::Gcm, Suite::Cbc] {
                    for class in [Class::Full, Class::None] {
                        let same = |r: &&Scenario| {
                            (r.family, r.starter, r.suite, r.class) == (family, starter, suite, class)
                                && r.other == Node::Peer
                        };
                        assert_eq!(rows.iter().filter(same).count(), 1);
                    }
                }
            }
        }
        assert_eq!(rows.iter().filter(|r| r.other == Node::Tb).count(), 2);
        assert!(matrix(PeerKind::Libipsec).iter().all(|r| r.other == Node::Peer));
    }
}
