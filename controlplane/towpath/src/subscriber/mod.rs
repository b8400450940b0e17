//! `towpath subscriber`.

mod add;
mod credential;
mod document;
mod secret;
mod transfer;

use clap::{Args, Subcommand};
use towpath_base::profile::Attachment;
use towpath_telemetry::admin::{Attached, Location, Record, Reply, SubscriberName, SubscriberRequest};

use crate::backend::Backend;
use crate::cli::Common;
use crate::failure::{Failure, Outcome};
use crate::output;
use document::SubscriberDocument;

pub(crate) use document::DEFAULT_OPERATOR;
pub(crate) use secret::unhex;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a subscriber
    Add(Box<add::Add>),
    /// List subscribers
    List {
        /// Only of this operator
        #[arg(long)]
        operator: Option<String>,
    },
    /// Everything about a subscriber, except its secrets
    Show(Who),
    /// Remove a subscriber, its profile, its registration and its SAs
    Remove(Who),
    /// Add subscribers from a TOML or JSON file, all or none
    Import(transfer::Import),
    /// Write subscribers to a file that `import` reads
    Export(transfer::Export),
}

/// A subscriber.
#[derive(Debug, Clone, Args)]
pub(crate) struct Who {
    /// Name of the subscriber
    #[arg(value_name = "NAME")]
    name: String,
    /// Its operator; may be left out where only one operator has a subscriber of this name
    #[arg(long, env = "TOWPATH_OPERATOR")]
    operator: Option<String>,
}

/// Checks an IKE proposal by its strongSwan name; the error says what was expected.
pub(crate) fn check_ike_proposal(text: &str) -> Result<(), String> {
    text.parse::<towpath_ike::IkeProposal>()
        .map(drop)
        .map_err(|error| format!("`{}`: {error}", text.escape_debug()))
}

/// Carries out `command`.
pub(crate) fn run(common: &Common, command: Command) -> Outcome {
    match command {
        Command::Add(args) => add::run(common, *args),
        Command::List { operator } => list(common, operator),
        Command::Show(who) => show(common, who),
        Command::Remove(who) => remove(common, who),
        Command::Import(args) => transfer::import(common, &args),
        Command::Export(args) => transfer::export(common, args),
    }
}

/// Calls `each` with every subscriber in order, a page at a time.
pub(crate) fn all_subscribers(
    backend: &mut Backend,
    operator: Option<String>,
    with_secrets: bool,
    mut each: impl FnMut(Record, Option<Location>) -> Outcome,
) -> Outcome {
    let mut after = None;
    loop {
        let request = SubscriberRequest::List {
            operator: operator.clone(),
            after: after.take(),
            with_secrets,
        };
        let page = match backend.request(request)? {
            Reply::Subscribers(page) => page,
            reply => return Err(unexpected(&reply)),
        };
        let locations = page.locations.into_iter().chain(std::iter::repeat(None));
        for (record, location) in page.records.into_iter().zip(locations) {
            each(record, location)?;
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

/// The operator and name meant.
pub(crate) fn resolve(backend: &mut Backend, who: Who) -> Outcome<SubscriberName> {
    let Who { name, operator } = who;
    if let Some(operator) = operator {
        return Ok(SubscriberName { operator, name });
    }
    let mut operators = Vec::new();
    all_subscribers(backend, None, false, |record, _| {
        if record.subscriber.name == name {
            operators.push(record.subscriber.operator);
        }
        Ok(())
    })?;
    match operators.as_slice() {
        [] => Err(Failure::usage(format!("no subscriber `{}`", name.escape_debug()))),
        [operator] => Ok(SubscriberName {
            operator: operator.clone(),
            name,
        }),
        several => Err(Failure::usage(format!(
            "several operators have a subscriber `{name}`: name one of {} with --operator",
            several.join(", ")
        ))),
    }
}

/// The subscriber meant.
pub(crate) fn find(backend: &mut Backend, who: Who) -> Outcome<Attached> {
    let name = resolve(backend, who)?;
    match backend.request(SubscriberRequest::Show(name))? {
        Reply::Subscriber(found) => Ok(*found),
        reply => Err(unexpected(&reply)),
    }
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::runtime(format!("unexpected answer: {reply:?}"))
}

fn list(common: &Common, operator: Option<String>) -> Outcome {
    let mut backend = Backend::open(common)?;
    let mut documents = Vec::new();
    all_subscribers(&mut backend, operator, false, |record, location| {
        documents.push(SubscriberDocument::from_record(record, location));
        Ok(())
    })?;
    if common.json {
        return output::json(&documents);
    }
    let headings = ["OPERATOR", "NAME", "HANDLE", "ADDRESSES", "ATTACHED", "PEERS"];
    let mut table = output::table(&headings);
    for document in &documents {
        table.add_row([
            document.operator.clone(),
            document.name.clone(),
            document.handle.map_or(String::new(), |handle| handle.to_string()),
            join(&document.addresses, ", "),
            attached(document),
            join(document.peers.iter().map(|peer| peer.peer), ", "),
        ]);
    }
    output::print(&output::render(&table))
}

fn attached(document: &SubscriberDocument) -> String {
    let registered = document.location.as_ref().map(|location| {
        let left = output::duration(location.expires_in_seconds);
        format!("{} for {left}", join(&location.addresses, ", "))
    });
    match (document.attachment, registered) {
        (Attachment::Fixed, None) => "fixed".into(),
        (Attachment::Fixed, Some(registered)) => format!("fixed; {registered}"),
        (Attachment::Registered, None) => "no".into(),
        (Attachment::Registered, Some(registered)) => registered,
    }
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(separator)
}

fn show(common: &Common, who: Who) -> Outcome {
    let Attached { subscriber, location } = find(&mut Backend::open(common)?, who)?;
    let record = Record {
        subscriber,
        secrets: None,
    };
    let document = SubscriberDocument::from_record(record, location);
    if common.json {
        return output::json(&document);
    }
    let id = &document.identification;
    let mut facts = vec![
        ("name", document.name.clone()),
        ("operator", document.operator.clone()),
        (
            "handle",
            document.handle.map_or(String::new(), |handle| handle.to_string()),
        ),
        ("addresses", join(&document.addresses, "\n")),
        ("attached", attached(&document)),
    ];
    for (name, value) in [
        ("nai", &id.nai),
        ("telephone", &id.telephone),
        ("aaa entry", &id.aaa_entry),
    ] {
        facts.extend(value.iter().map(|value| (name, value.clone())));
    }
    for peer in &document.peers {
        let local = peer.local_id.as_ref().map_or(String::new(), |id| id.to_text());
        let remote = peer
            .remote_id
            .as_ref()
            .map_or("any identity".into(), |id| id.to_text());
        facts.push((
            "peer",
            format!(
                "{}\n{local} with {remote}\n{} mode, class {}, {}{}\nike {}",
                peer.peer,
                peer.mode,
                peer.class,
                join(&peer.esp_suites, ", "),
                if peer.esn { ", ESN" } else { "" },
                peer.ike_proposals.join(", "),
            ),
        ));
    }
    output::print(&output::facts(&facts))
}

fn remove(common: &Common, who: Who) -> Outcome {
    let mut backend = Backend::open(common)?;
    let name = resolve(&mut backend, who)?;
    match backend.request(SubscriberRequest::Remove(name.clone()))? {
        Reply::Removed { handle } if common.json => output::json(&serde_json::json!({
            "removed": { "operator": name.operator, "name": name.name, "handle": handle }
        })),
        Reply::Removed { .. } => output::print(&format!("removed subscriber {name}\n")),
        reply => Err(unexpected(&reply)),
    }
}
