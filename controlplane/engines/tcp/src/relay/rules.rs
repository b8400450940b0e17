//! Which connections are split, snooped or passed (T12). First match wins.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::{FlowKey, Side};

/// What is done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Two connections, relayed.
    Split,
    /// Forwarded end to end, lost segments repeated from a cache.
    Snoop,
    /// Forwarded untouched.
    Pass,
}

/// How far the gateway may go on an SA (T8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Not at all.
    None,
    /// It may look.
    Inspect,
    /// It may look and write.
    Full,
}

/// A rule; every condition that is set must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Who opened the connection.
    pub opener: Option<Side>,
    /// The peer's port.
    pub network_port: Option<RangeInclusive<u16>>,
    /// The terminal's port.
    pub terminal_port: Option<RangeInclusive<u16>>,
    /// What to do.
    pub treatment: Treatment,
}

/// The rules of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// In order.
    pub rules: Vec<Rule>,
    /// Where none matches.
    pub default: Treatment,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            default: Treatment::Split,
        }
    }
}

impl Rules {
    /// What to do with a connection on an SA of `class`: never more than the class permits.
    pub fn decide(&self, key: &FlowKey, opener: Side, class: Class) -> Treatment {
        let holds =
            |range: &Option<RangeInclusive<u16>>, port| range.as_ref().is_none_or(|r| r.contains(&port));
        let wanted = self
            .rules
            .iter()
            .find(|rule| {
                rule.opener.is_none_or(|side| side == opener)
                    && holds(&rule.network_port, key.network.1)
                    && holds(&rule.terminal_port, key.terminal.1)
            })
            .map_or(self.default, |rule| rule.treatment);
        match (wanted, class) {
            (_, Class::None) => Treatment::Pass,
            (Treatment::Split, Class::Inspect) => Treatment::Snoop,
            (wanted, _) => wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_match_decides_and_the_class_limits() {
        let key = FlowKey {
            terminal: ([10, 0, 0, 1].into(), 4000),
            network: ([1, 1, 1, 1].into(), 22),
        };
        let mut rules = Rules::default();
        rules.rules.push(Rule {
            opener: Some(Side::Terminal),
            network_port: Some(22..=22),
            terminal_port: None,
            treatment: Treatment::Pass,
        });
        assert_eq!(rules.decide(&key, Side::Terminal, Class::Full), Treatment::Pass);
        assert_eq!(rules.decide(&key, Side::Network, Class::Full), Treatment::Split);
        assert_eq!(
            rules.decide(&key, Side::Network, Class::Inspect),
            Treatment::Snoop
        );
        assert_eq!(rules.decide(&key, Side::Network, Class::None), Treatment::Pass);
    }
}
