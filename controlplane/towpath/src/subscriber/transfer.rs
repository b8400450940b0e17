//! `towpath subscriber import` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use towpath_telemetry::admin::{Reply, SubscriberRequest};
use zeroize::Zeroizing;

use super::document::{Defaults, SubscriberDocument};
use super::secret::PrivateFile;
use super::{all_subscribers, unexpected};
use crate::backend::Backend;
use crate::cli::Common;
use crate::config::{Config, ConfigError, Document};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Add subscribers from a file, all or none.
///
/// The file is TOML (`[[subscriber]]` tables) or JSON (one subscriber, an array of them, or
/// {"subscriber": [...]}) with the keys documented in controlplane/docs/configuration.md.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file; `-` for standard input
    file: PathBuf,
    /// Replace subscribers that exist; they keep their handles, and register anew
    #[arg(long)]
    replace: bool,
}

/// Write subscribers to a file that `import` reads.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Only of this operator
    #[arg(long)]
    operator: Option<String>,
    /// With subscriber keys and pre-shared keys; needs --output
    #[arg(long, requires = "output")]
    with_secrets: bool,
    /// Write to this new file, mode 0600, instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Format; JSON as well with --json
    #[arg(long, value_enum, default_value_t = Format::Toml)]
    format: Format,
}

/// Format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// `[[subscriber]]` tables
    Toml,
    /// {"subscriber": [...]}
    Json,
}

/// A file of subscribers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    subscriber: Vec<SubscriberDocument>,
}

/// What is proposed where a peer names nothing.
pub(super) fn defaults(common: &Common) -> Outcome<Defaults> {
    let keyserver = Config::load_or_default(&common.config)?.keyserver;
    Ok(Defaults {
        ike_proposals: keyserver.ike_proposals,
        esp_suites: keyserver.esp_suites,
    })
}

fn read(document: &Document) -> Result<Vec<SubscriberDocument>, ConfigError> {
    match document.text().trim_start().as_bytes().first() {
        Some(b'[') if !document.text().trim_start().starts_with("[[") => document.read_json(),
        // An array of JSON arrays is nothing we read, so two brackets are TOML.
        Some(b'{') => {
            let value: serde_json::Value = document.read_json()?;
            if value.get("subscriber").is_some() {
                Ok(document.read_json::<File>()?.subscriber)
            } else {
                Ok(vec![document.read_json()?])
            }
        }
        _ => Ok(document.read::<File>()?.subscriber),
    }
}

pub(super) fn import(common: &Common, args: &Import) -> Outcome {
    let defaults = defaults(common)?;
    let document = Document::open(&args.file)?;
    let subscribers = read(&document)?;
    if subscribers.is_empty() {
        return Err(Failure::usage(format!(
            "{}: no subscribers, expected `[[subscriber]]`",
            document.name()
        )));
    }
    let mut records = Vec::with_capacity(subscribers.len());
    for (index, subscriber) in subscribers.into_iter().enumerate() {
        let record = subscriber.into_record(&defaults);
        records
            .push(record.map_err(|(key, problem)| {
                document.invalid(&format!("subscriber[{index}].{key}"), problem)
            })?);
    }
    let request = SubscriberRequest::Import {
        records,
        replace: args.replace,
    };
    match Backend::open(common)?.request(request)? {
        Reply::Imported { added, replaced } if common.json => {
            output::json(&serde_json::json!({ "added": added, "replaced": replaced }))
        }
        Reply::Imported { added, replaced } => {
            output::print(&format!("{added} subscribers added, {replaced} replaced\n"))
        }
        reply => Err(unexpected(&reply)),
    }
}

pub(super) fn export(common: &Common, args: Export) -> Outcome {
    let mut file = args.output.as_deref().map(PrivateFile::create).transpose()?;
    let mut subscribers = Vec::new();
    let mut backend = Backend::open(common)?;
    all_subscribers(&mut backend, args.operator, args.with_secrets, |record, _| {
        subscribers.push(SubscriberDocument::from_record(record, None));
        Ok(())
    })?;
    let count = subscribers.len();
    let content = File {
        subscriber: subscribers,
    };
    let text = if common.json || args.format == Format::Json {
        serde_json::to_string_pretty(&content).map_err(Failure::runtime)? + "\n"
    } else {
        toml::to_string(&content).map_err(Failure::runtime)?
    };
    let text = Zeroizing::new(text);
    match file.take() {
        None => output::print(&text),
        Some(mut file) => {
            file.write(&text)?;
            file.keep()?;
            eprintln!("{count} subscribers written");
            Ok(())
        }
    }
}
