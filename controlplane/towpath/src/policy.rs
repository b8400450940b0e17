//! `towpath policy`: the gateway's security policy database.

use clap::{Args, Subcommand, ValueEnum};
use towpath_base::policy::{AddressRange, IpsecProtocol, Policy, PolicyAction, PolicySelector, PortRange};
use towpath_base::sa::Class;
use towpath_telemetry::admin::{PolicyRequest, Reply, Request};

use crate::backend::daemon;
use crate::cli::Common;
use crate::failure::Outcome;
use crate::output;

/// `towpath policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add an entry; the lowest order that matches a packet decides
    ///
    /// Selectors left out match everything. A packet is looked at when its SA is opened here (class full); without a
    /// matching entry its SA alone decides.
    Add(Box<Add>),
    /// List the entries in the order they are tried
    List,
    /// One entry
    Show {
        /// Its number
        id: u32,
    },
    /// Remove an entry
    Remove {
        /// Its number
        id: u32,
    },
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum What {
    /// It passes
    Bypass,
    /// It is dropped and counted
    Discard,
    /// It is protected, by the SAs named or whichever admits it
    Protect,
}

/// `towpath policy add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// What becomes of matching packets
    action: What,
    /// For people
    #[arg(long, default_value = "")]
    name: String,
    /// Place in the order: lower ones are tried first
    #[arg(long, default_value_t = 1000)]
    order: u32,
    /// Source addresses: ADDRESS, ADDRESS/LENGTH or FIRST-LAST
    #[arg(long, value_name = "RANGE")]
    from: Option<AddressRange>,
    /// Destination addresses
    #[arg(long, value_name = "RANGE")]
    to: Option<AddressRange>,
    /// Transport protocol by number: 6 is TCP, 17 UDP
    #[arg(long, value_name = "NUMBER")]
    protocol: Option<u8>,
    /// Source ports: PORT or FIRST-LAST
    #[arg(long, value_name = "RANGE", default_value = "any")]
    source_port: PortRange,
    /// Destination ports
    #[arg(long, value_name = "RANGE", default_value = "any")]
    destination_port: PortRange,
    /// User number
    #[arg(long, value_name = "NUMBER")]
    user: Option<u32>,
    /// Sensitivity level
    #[arg(long, value_name = "NUMBER")]
    level: Option<u8>,
    /// IPsec protocol: esp, ah or esp+ah
    #[arg(long, value_parser = ipsec)]
    ipsec: Option<IpsecProtocol>,
    /// IPv4 TOS byte
    #[arg(long, value_name = "NUMBER")]
    tos: Option<u8>,
    /// IPv6 traffic class
    #[arg(long, value_name = "NUMBER")]
    traffic_class: Option<u8>,
    /// IPv6 flow label
    #[arg(long, value_name = "NUMBER")]
    flow_label: Option<u32>,
    /// Number of a manual SA to use (`towpath sa list --manual`); only with protect
    #[arg(long, value_name = "NUMBER")]
    sa: Vec<u64>,
    /// What the gateway may do with these packets, at most what the SA's keys allow; only with protect
    #[arg(long, value_parser = class)]
    class: Option<Class>,
}

fn ipsec(text: &str) -> Result<IpsecProtocol, String> {
    text.parse().map_err(|_| "expected esp, ah or esp+ah".into())
}

fn class(text: &str) -> Result<Class, String> {
    text.parse().map_err(|_| "expected full, inspect or none".into())
}

/// Runs `towpath policy`.
pub(crate) fn run(common: &Common, command: Command) -> Outcome {
    let (request, one) = match command {
        Command::Add(args) => (PolicyRequest::Add(Box::new(policy(*args)?)), true),
        Command::List => (PolicyRequest::List, false),
        Command::Show { id } => (PolicyRequest::Show { id }, true),
        Command::Remove { id } => (PolicyRequest::Remove { id }, true),
    };
    let policies = match daemon(common)?.request(&Request::Policy(request))? {
        Reply::Policies(policies) => policies,
        reply => return Err(crate::show::unexpected(&reply)),
    };
    if common.json {
        return output::json(&policies);
    }
    if one {
        let shown: Vec<String> = policies.iter().map(details).collect();
        return output::print(&shown.join("\n"));
    }
    let mut table = output::table(&["NUMBER", "ORDER", "NAME", "ACTION", "CLASS", "SAS", "PACKETS"]);
    for policy in &policies {
        let (class, sas) = protection(policy);
        table.add_row([
            policy.id.to_string(),
            policy.order.to_string(),
            policy.name.clone(),
            policy.action.name().to_owned(),
            class,
            sas,
            policy.selector.to_string(),
        ]);
    }
    output::print(&output::render(&table))
}

fn policy(args: Add) -> Outcome<Policy> {
    let action = match args.action {
        What::Protect => PolicyAction::Protect {
            sas: args.sas_checked()?,
            class: args.class,
        },
        other if !args.sa.is_empty() || args.class.is_some() => {
            let name = if matches!(other, What::Bypass) {
                "bypass"
            } else {
                "discard"
            };
            return Err(crate::failure::Failure::usage(format!(
                "--sa and --class belong to protect, not to {name}"
            )));
        }
        What::Bypass => PolicyAction::Bypass,
        What::Discard => PolicyAction::Discard,
    };
    Ok(Policy {
        id: 0,
        order: args.order,
        name: args.name,
        selector: PolicySelector {
            source: args.from,
            destination: args.to,
            user: args.user,
            level: args.level,
            protocol: args.protocol,
            ipsec: args.ipsec,
            source_ports: args.source_port,
            destination_ports: args.destination_port,
            tos: args.tos,
            traffic_class: args.traffic_class,
            flow_label: args.flow_label,
        },
        action,
    })
}

impl Add {
    fn sas_checked(&self) -> Outcome<Vec<u64>> {
        let mut seen = std::collections::BTreeSet::new();
        match self.sa.iter().find(|id| !seen.insert(**id)) {
            Some(twice) => Err(crate::failure::Failure::usage(format!(
                "--sa: {twice} is named twice"
            ))),
            None => Ok(self.sa.clone()),
        }
    }
}

fn protection(policy: &Policy) -> (String, String) {
    match &policy.action {
        PolicyAction::Protect { sas, class } => {
            let sas: Vec<String> = sas.iter().map(ToString::to_string).collect();
            (
                class.map_or("-".into(), |class| class.to_string()),
                sas.join(", "),
            )
        }
        PolicyAction::Bypass | PolicyAction::Discard => ("-".into(), String::new()),
    }
}

fn details(policy: &Policy) -> String {
    let (class, sas) = protection(policy);
    output::facts(&[
        ("policy", format!("{} {}", policy.id, policy.name)),
        ("order", policy.order.to_string()),
        ("packets", policy.selector.to_string()),
        ("action", policy.action.name().to_owned()),
        ("class", class),
        ("sas", if sas.is_empty() { "any".into() } else { sas }),
    ])
}
