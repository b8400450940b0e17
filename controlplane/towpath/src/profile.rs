//! `towpath profile`: the conditions of a subscriber's service profile (K2).

use clap::{Args, Subcommand, ValueEnum};
use towpath_base::profile::{Condition, ConditionAddress, Subscriber};
use towpath_base::selector::Prefix;
use towpath_telemetry::admin::{ProfileChange, ProfileList, Reply, SubscriberRequest};

use crate::backend::Backend;
use crate::cli::Common;
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::subscriber::{Who, all_subscribers, find, resolve};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a condition: divert what matches
    ///
    /// Example: a peer that speaks IKE on port 5500
    ///
    ///   towpath profile add alice --list to-terminal --port 5500 --peer 10.77.9.2
    #[command(verbatim_doc_comment)]
    Add(ConditionArgs),
    /// Remove a condition, given exactly as `profile show` lists it
    Remove(ConditionArgs),
    /// Show a subscriber's conditions
    Show(Who),
    /// Show every subscriber's conditions
    List {
        /// Only of this operator
        #[arg(long)]
        operator: Option<String>,
    },
}

/// A condition of a subscriber.
#[derive(Debug, Args)]
pub(crate) struct ConditionArgs {
    #[command(flatten)]
    who: Who,
    /// Direction of the messages
    #[arg(long, value_enum)]
    list: List,
    /// Terminal's side: `terminal` for wherever it is, or an address or prefix; in list `to-gateway` the
    /// gateway's address
    #[arg(long, default_value = "terminal", value_name = "PREFIX")]
    address: ConditionAddress,
    /// Only messages to or from this peer
    #[arg(long, value_name = "PREFIX")]
    peer: Option<Prefix>,
    /// UDP destination port
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// The lists of a profile.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum List {
    /// Peer → terminal messages to divert
    ToTerminal,
    /// Terminal → peer messages to divert
    FromTerminal,
    /// Messages to the gateway itself to forward
    ToGateway,
}

impl From<List> for ProfileList {
    fn from(list: List) -> Self {
        match list {
            List::ToTerminal => Self::ToTerminal,
            List::FromTerminal => Self::FromTerminal,
            List::ToGateway => Self::ToGateway,
        }
    }
}

/// Carries out `command`.
pub(crate) fn run(common: &Common, command: Command) -> Outcome {
    match command {
        Command::Add(args) => change(common, args, |list, condition| ProfileChange::Add {
            list,
            condition,
        }),
        Command::Remove(args) => change(common, args, |list, condition| ProfileChange::Remove {
            list,
            condition,
        }),
        Command::Show(who) => {
            let found = find(&mut Backend::open(common)?, who)?;
            show(common, &[found.subscriber], true)
        }
        Command::List { operator } => {
            let mut subscribers = Vec::new();
            all_subscribers(&mut Backend::open(common)?, operator, false, |record, _| {
                subscribers.push(record.subscriber);
                Ok(())
            })?;
            show(common, &subscribers, false)
        }
    }
}

fn change(
    common: &Common,
    args: ConditionArgs,
    change: impl FnOnce(ProfileList, Condition) -> ProfileChange,
) -> Outcome {
    let condition = Condition {
        address: args.address,
        peer: args.peer,
        port: args.port,
    };
    let mut backend = Backend::open(common)?;
    let request = SubscriberRequest::Profile {
        name: resolve(&mut backend, args.who)?,
        change: change(args.list.into(), condition),
    };
    match backend.request(request)? {
        Reply::Subscriber(changed) => show(common, &[changed.subscriber], true),
        reply => Err(Failure::runtime(format!("unexpected answer: {reply:?}"))),
    }
}

/// One profile of the JSON output.
#[derive(serde::Serialize)]
struct Shown<'a> {
    operator: &'a str,
    name: &'a str,
    #[serde(flatten)]
    profile: &'a towpath_base::profile::ServiceProfile,
}

fn show(common: &Common, subscribers: &[Subscriber], one: bool) -> Outcome {
    let shown: Vec<_> = subscribers
        .iter()
        .map(|subscriber| Shown {
            operator: &subscriber.operator,
            name: &subscriber.name,
            profile: &subscriber.profile,
        })
        .collect();
    if common.json {
        return match shown.first().filter(|_| one) {
            Some(shown) => output::json(shown),
            None => output::json(&shown),
        };
    }
    let mut table = output::table(&["OPERATOR", "SUBSCRIBER", "LIST", "ADDRESS", "PEER", "PORT"]);
    for subscriber in subscribers {
        for list in ProfileList::ALL {
            for condition in list.of(&subscriber.profile) {
                let peer = condition.peer.map_or("any".into(), |peer| peer.to_string());
                table.add_row([
                    subscriber.operator.clone(),
                    subscriber.name.clone(),
                    list.name().into(),
                    condition.address.to_string(),
                    peer,
                    condition.port.to_string(),
                ]);
            }
        }
    }
    output::print(&output::render(&table))
}
