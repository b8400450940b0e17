//! The TCP relay's parameters and rules, from the configuration.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use towpath_base::profile::Subscriber;
use towpath_bpf::Dataplane;
use towpath_common::abi::Role as PortSide;
use towpath_gateway::relay::RelayConfig;
use towpath_tcp::Algorithm;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::rules::{Action, Class, Rule, Rules, Treatment};
use towpath_tcp::relay::split::Handshake;

use crate::config::relay::{self, Congestion, Ports, Relay};

/// Parameters of the relay behind these ports.
pub(super) fn config(relay: &Relay, dataplane: &Dataplane) -> RelayConfig {
    let mtu = |chosen: u32, side: PortSide| {
        let ports = dataplane.ports().iter().filter(|port| port.role == side);
        let smallest = ports.map(|port| port.device.mtu).min().unwrap_or(1500);
        let mtu = if chosen == 0 { smallest } else { chosen };
        u16::try_from(mtu).unwrap_or(u16::MAX)
    };
    let size = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let mut config = RelayConfig {
        terminal_mtu: mtu(relay.terminal_mtu, PortSide::Access),
        network_mtu: mtu(relay.network_mtu, PortSide::Core),
        rules: Arc::new(rules(relay, None)),
        ..RelayConfig::default()
    };
    let split = &mut config.split;
    split.terminal.connection.algorithm = algorithm(relay.terminal_congestion);
    split.network.connection.algorithm = algorithm(relay.network_congestion);
    split.terminal.connection.early_repeats = relay.early_repeats;
    split.handshake = handshake(relay.handshake);
    split.max_flows = size(relay.max_flows);
    split.max_flows_per_tag = size(relay.max_flows_per_pair);
    split.max_half_open = size(relay.max_half_open);
    split.max_half_open_per_tag = size(relay.max_half_open_per_pair);
    split.max_buffered = size(relay.memory_mib).saturating_mul(1 << 20);
    split.idle_timeout = Duration::from_secs(relay.idle_timeout_seconds.into());
    config
}

/// The rules of a subscriber that differ from everybody's; `None` if there are none.
pub(super) fn rules_of(relay: &Relay, subscriber: &Subscriber) -> Option<Arc<Rules>> {
    relay
        .rule
        .iter()
        .any(|rule| names(rule, subscriber))
        .then(|| Arc::new(rules(relay, Some(subscriber))))
}

/// Whether a rule treats a subscriber's TCP in the clear.
pub(super) fn wants_clear(relay: &Relay, own: Option<&Rules>) -> bool {
    match own {
        Some(own) => own.may_treat(Class::Clear),
        None => rules(relay, None).may_treat(Class::Clear),
    }
}

fn names(rule: &relay::Rule, subscriber: &Subscriber) -> bool {
    rule.profile.as_ref() == Some(&subscriber.name)
        && rule
            .operator
            .as_ref()
            .is_none_or(|operator| *operator == subscriber.operator)
}

/// The rules that name nobody, and those that name `subscriber`, in their order.
fn rules(relay: &Relay, subscriber: Option<&Subscriber>) -> Rules {
    let applies = |rule: &&relay::Rule| {
        rule.profile.is_none() || subscriber.is_some_and(|subscriber| names(rule, subscriber))
    };
    Rules {
        rules: relay.rule.iter().filter(applies).map(rule).collect(),
        default: Action::of(treatment(relay.default)),
    }
}

fn rule(rule: &relay::Rule) -> Rule {
    Rule {
        class: rule.class.map(|class| match class {
            relay::Class::Full => Class::Full,
            relay::Class::Inspect => Class::Inspect,
            relay::Class::Clear => Class::Clear,
        }),
        opener: rule.direction.map(|opener| match opener {
            relay::Opener::FromTerminal => Side::Terminal,
            relay::Opener::FromPeer => Side::Network,
        }),
        network: rule.peer,
        network_port: rule.peer_port.as_ref().map(range),
        terminal_port: rule.terminal_port.as_ref().map(range),
        action: Action {
            treatment: treatment(rule.action),
            terminal: rule.terminal_congestion.map(algorithm),
            network: rule.network_congestion.map(algorithm),
            handshake: rule.handshake.map(handshake),
        },
    }
}

fn range(ports: &Ports) -> RangeInclusive<u16> {
    // The configuration has been checked; a range that is none matches nothing.
    let (first, last) = ports.bounds().unwrap_or((1, 0));
    first..=last
}

const fn treatment(action: relay::Action) -> Treatment {
    match action {
        relay::Action::Split => Treatment::Split,
        relay::Action::Snoop => Treatment::Snoop,
        relay::Action::Pass => Treatment::Pass,
    }
}

const fn algorithm(congestion: Congestion) -> Algorithm {
    match congestion {
        Congestion::Cubic => Algorithm::Cubic,
        Congestion::Bbr => Algorithm::Bbr,
        Congestion::Radio => Algorithm::Radio,
    }
}

const fn handshake(handshake: relay::Handshake) -> Handshake {
    match handshake {
        relay::Handshake::Synchronous => Handshake::Synchronous,
        relay::Handshake::Early => Handshake::Early,
    }
}

#[cfg(test)]
mod tests {
    use towpath_tcp::relay::FlowKey;

    use super::*;
    use crate::config::{Config, Document};

    fn relay(text: &str) -> Relay {
        Document::from_text("t", text).read::<Config>().unwrap().relay
    }

    #[test]
    fn rules_are_everybodys_or_a_subscribers_own() {
        let relay = relay(
            "[relay]\ndefault = \"pass\"\n[[relay.rule]]\nprofile = \"alice\"\npeer_port = \"80-90\"\naction = \"split\"\n\
             terminal_congestion = \"bbr\"\n[[relay.rule]]\ndirection = \"from_peer\"\npeer = \"10.0.0.0/8\"\n\
             action = \"snoop\"\n",
        );
        let common = rules(&relay, None);
        assert_eq!(
            (common.rules.len(), common.default.treatment),
            (1, Treatment::Pass)
        );
        let key = FlowKey {
            terminal: ([1, 1, 1, 1].into(), 5000),
            network: ([10, 1, 1, 1].into(), 85),
        };
        let decide = |opener| common.decide(&key, opener, Class::Full).treatment;
        assert_eq!(
            (decide(Side::Terminal), decide(Side::Network)),
            (Treatment::Pass, Treatment::Snoop)
        );
        let own = rule(&relay.rule[0]);
        assert_eq!(
            (own.network_port, own.action.terminal),
            (Some(80..=90), Some(Algorithm::Bbr))
        );
    }
}
