//! Which connections are split, snooped or passed (T12). First match wins.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use towpath_base::selector::Prefix;

use super::split::Handshake;
use super::{FlowKey, Side};
use crate::config::Algorithm;

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
    /// There is no SA: TCP in the clear. Only rules that name this class treat it.
    Clear,
}

/// A rule; every condition that is set must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// How far the gateway may go.
    pub class: Option<Class>,
    /// Who opened the connection.
    pub opener: Option<Side>,
    /// The peer's address.
    pub network: Option<Prefix>,
    /// The peer's port.
    pub network_port: Option<RangeInclusive<u16>>,
    /// The terminal's port.
    pub terminal_port: Option<RangeInclusive<u16>>,
    /// What to do.
    pub action: Action,
}

/// What a rule chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// What is done with the connection.
    pub treatment: Treatment,
    /// Congestion control towards the terminal, for split connections; absent is the relay's.
    pub terminal: Option<Algorithm>,
    /// Congestion control towards the network, for split connections; absent is the relay's.
    pub network: Option<Algorithm>,
    /// How split connections are opened; absent is the relay's.
    pub handshake: Option<Handshake>,
}

impl Action {
    /// A treatment, everything else as the relay's configuration says.
    pub const fn of(treatment: Treatment) -> Self {
        Self {
            treatment,
            terminal: None,
            network: None,
            handshake: None,
        }
    }
}

/// The rules of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// In order.
    pub rules: Vec<Rule>,
    /// Where none matches.
    pub default: Action,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            default: Action::of(Treatment::Split),
        }
    }
}

impl Rules {
    /// What to do with a connection on an SA of `class`: never more than the class permits.
    pub fn decide(&self, key: &FlowKey, opener: Side, class: Class) -> Action {
        let holds =
            |range: &Option<RangeInclusive<u16>>, port| range.as_ref().is_none_or(|r| r.contains(&port));
        let wanted = self
            .rules
            .iter()
            .find(|rule| {
                rule.class.map_or(class != Class::Clear, |only| only == class)
                    && rule.opener.is_none_or(|side| side == opener)
                    && rule.network.is_none_or(|prefix| prefix.contains(key.network.0))
                    && holds(&rule.network_port, key.network.1)
                    && holds(&rule.terminal_port, key.terminal.1)
            })
            .map_or(self.default_of(class), |rule| rule.action);
        let treatment = match (wanted.treatment, class) {
            (_, Class::None) => Treatment::Pass,
            (Treatment::Split, Class::Inspect) => Treatment::Snoop,
            (wanted, _) => wanted,
        };
        Action { treatment, ..wanted }
    }

    const fn default_of(&self, class: Class) -> Action {
        match class {
            Class::Clear => Action::of(Treatment::Pass),
            Class::None | Class::Inspect | Class::Full => self.default,
        }
    }

    /// Whether any connection could ever be treated on an SA of `class`.
    pub fn may_treat(&self, class: Class) -> bool {
        let treats = |action: &Action| action.treatment != Treatment::Pass;
        let may = |rule: &Rule| class != Class::Clear || rule.class == Some(Class::Clear);
        let mut rules = self.rules.iter().filter(|rule| may(rule));
        class != Class::None && (treats(&self.default_of(class)) || rules.any(|rule| treats(&rule.action)))
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
        let any = Rule {
            class: None,
            opener: None,
            network: None,
            network_port: None,
            terminal_port: None,
            action: Action::of(Treatment::Pass),
        };
        let mut rules = Rules::default();
        rules.rules.push(Rule {
            opener: Some(Side::Terminal),
            network_port: Some(22..=22),
            ..any.clone()
        });
        let decide = |rules: &Rules, opener, class| rules.decide(&key, opener, class).treatment;
        assert_eq!(decide(&rules, Side::Terminal, Class::Full), Treatment::Pass);
        assert_eq!(decide(&rules, Side::Network, Class::Full), Treatment::Split);
        assert_eq!(decide(&rules, Side::Network, Class::Inspect), Treatment::Snoop);
        assert_eq!(decide(&rules, Side::Network, Class::None), Treatment::Pass);
        rules.rules = alloc::vec![
            Rule {
                network: "2.0.0.0/8".parse().ok(),
                ..any.clone()
            },
            Rule {
                class: Some(Class::Full),
                network: "1.0.0.0/8".parse().ok(),
                action: Action::of(Treatment::Snoop),
                ..any
            },
        ];
        assert_eq!(decide(&rules, Side::Network, Class::Full), Treatment::Snoop);
        assert!(rules.may_treat(Class::Full) && !rules.may_treat(Class::None));
        // What is in no SA is asked for by name, or left alone.
        assert_eq!(decide(&rules, Side::Network, Class::Clear), Treatment::Pass);
        assert!(!rules.may_treat(Class::Clear));
        rules.rules[1].class = Some(Class::Clear);
        assert_eq!(decide(&rules, Side::Network, Class::Clear), Treatment::Snoop);
        assert_eq!(decide(&rules, Side::Network, Class::Full), Treatment::Split);
        assert!(rules.may_treat(Class::Clear));
        rules.rules.clear();
        rules.default = Action::of(Treatment::Pass);
        assert!(!rules.may_treat(Class::Full));
    }
}
