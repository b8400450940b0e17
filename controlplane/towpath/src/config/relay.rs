//! `[relay]`: which TCP connections inside SAs are relayed, and how (T1, T3, T12).

use serde::{Deserialize, Serialize};
use towpath_base::selector::Prefix;

use super::{ConfigError, Document};

/// `[relay]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Relay {
    /// What happens to connections no rule matches.
    pub(crate) default: Action,
    /// Congestion control towards terminals.
    pub(crate) terminal_congestion: Congestion,
    /// Congestion control towards peers.
    pub(crate) network_congestion: Congestion,
    /// Towards terminals, spend what a small receive window leaves of a lossy link on sending its data twice.
    pub(crate) early_repeats: bool,
    /// How split connections are opened.
    pub(crate) handshake: Handshake,
    /// Largest IP packet on the access side, bytes; 0: the smallest MTU of the access ports.
    pub(crate) terminal_mtu: u32,
    /// Largest IP packet on the core side, bytes; 0: the smallest MTU of the core ports.
    pub(crate) network_mtu: u32,
    /// Most connections.
    pub(crate) max_flows: u32,
    /// Most connections of one terminal with one peer.
    pub(crate) max_flows_per_pair: u32,
    /// Most connections not open yet.
    pub(crate) max_half_open: u32,
    /// Most connections of one terminal with one peer that are not open yet; a further one pushes out their oldest.
    pub(crate) max_half_open_per_pair: u32,
    /// Most MiB in all buffers.
    pub(crate) memory_mib: u32,
    /// A connection silent for this many seconds is reset.
    pub(crate) idle_timeout_seconds: u32,
    /// Rules; the first match decides.
    pub(crate) rule: Vec<Rule>,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            default: Action::Split,
            terminal_congestion: Congestion::Radio,
            network_congestion: Congestion::Cubic,
            early_repeats: true,
            handshake: Handshake::Synchronous,
            terminal_mtu: 0,
            network_mtu: 0,
            max_flows: 65_536,
            max_flows_per_pair: 16_384,
            max_half_open: 4_096,
            max_half_open_per_pair: 256,
            memory_mib: 1_024,
            idle_timeout_seconds: 14_400,
            rule: Vec::new(),
        }
    }
}

/// `[[relay.rule]]`; every condition that is there must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Name of the subscriber.
    pub(crate) profile: Option<String>,
    /// Its operator.
    pub(crate) operator: Option<String>,
    /// Class of the SA.
    pub(crate) class: Option<Class>,
    /// Who opened the connection.
    pub(crate) direction: Option<Opener>,
    /// The peer's address.
    pub(crate) peer: Option<Prefix>,
    /// The peer's port.
    pub(crate) peer_port: Option<Ports>,
    /// The terminal's port.
    pub(crate) terminal_port: Option<Ports>,
    /// What happens.
    pub(crate) action: Action,
    /// Instead of `relay.terminal_congestion`.
    pub(crate) terminal_congestion: Option<Congestion>,
    /// Instead of `relay.network_congestion`.
    pub(crate) network_congestion: Option<Congestion>,
    /// Instead of `relay.handshake`.
    pub(crate) handshake: Option<Handshake>,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// Two connections, relayed.
    Split,
    /// One connection; lost segments repeated from a cache.
    Snoop,
    /// Untouched.
    Pass,
}

/// Which connections by class of their SA, or by having none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    /// The gateway may look and write.
    Full,
    /// It may look.
    Inspect,
    /// No SA: TCP in the clear.
    Clear,
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Opener {
    /// The terminal.
    FromTerminal,
    /// The peer.
    FromPeer,
}

/// Congestion control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Congestion {
    /// RFC 9438.
    Cubic,
    /// draft-ietf-ccwg-bbr.
    Bbr,
    /// For links that lose without being full.
    Radio,
}

/// How a connection is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Handshake {
    /// The far side first.
    Synchronous,
    /// The opener is answered at once.
    Early,
}

/// A port or a range of ports: `443`, `"8000-8080"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Ports {
    /// One.
    One(u16),
    /// From the first to the last.
    Range(String),
}

impl Ports {
    /// First and last port; `None` if the text is not a range.
    pub(crate) fn bounds(&self) -> Option<(u16, u16)> {
        match self {
            Self::One(port) => Some((*port, *port)),
            Self::Range(text) => {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                (first <= last).then_some((first, last))
            }
        }
    }
}

/// Checks what the types do not.
pub(super) fn check(relay: &Relay, document: &Document) -> Result<(), ConfigError> {
    for (key, mtu) in [
        ("relay.terminal_mtu", relay.terminal_mtu),
        ("relay.network_mtu", relay.network_mtu),
    ] {
        if mtu != 0 && !(576..=9_000).contains(&mtu) {
            return Err(document.invalid(key, format!("is {mtu}, expected 0 or 576 to 9000")));
        }
    }
    for (index, rule) in relay.rule.iter().enumerate() {
        for (name, ports) in [
            ("peer_port", &rule.peer_port),
            ("terminal_port", &rule.terminal_port),
        ] {
            if let Some(ports @ Ports::Range(text)) = ports
                && ports.bounds().is_none()
            {
                return Err(document.invalid(
                    &format!("relay.rule[{index}].{name}"),
                    format!(
                        "`{}`: expected a port or a range like \"8000-8080\"",
                        text.escape_debug()
                    ),
                ));
            }
        }
        if rule.operator.is_some() && rule.profile.is_none() {
            return Err(document.invalid(
                &format!("relay.rule[{index}].operator"),
                "names an operator without a profile, expected `profile` beside it",
            ));
        }
        if rule.class == Some(Class::Inspect) && rule.action == Action::Split {
            return Err(document.invalid(
                &format!("relay.rule[{index}].action"),
                "is `split`, expected `snoop` or `pass`: class `inspect` may look, not write",
            ));
        }
    }
    Ok(())
}
