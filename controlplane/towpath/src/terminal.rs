//! `towpath terminal`.

use towpath_terminal::TerminalConfig;

use crate::cli::{Common, Terminal, TerminalCommand};
use crate::config::Document;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Runs, checks or shows a terminal.
pub(crate) fn run(common: &Common, args: Terminal) -> Outcome {
    match args.command {
        None => Err(Failure::runtime("not built yet")),
        Some(TerminalCommand::Check) => {
            load(common)?;
            output::print(&format!("{}: valid\n", common.config.display()))
        }
        Some(TerminalCommand::Status { socket: _ }) => Err(Failure::runtime("not built yet")),
    }
}

fn load(common: &Common) -> Outcome<TerminalConfig> {
    let document = Document::open(&common.config)?;
    let config: TerminalConfig = document.read()?;
    config.validate().map_err(|error| {
        document.invalid(
            &error.field,
            format!("is {}, expected {}", error.value, error.expected),
        )
    })?;
    Ok(config)
}
