//! `towpath completions` and `towpath man`, made from the command line's own definition.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Prints the completion script of `shell`.
pub(crate) fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "towpath", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}

/// Prints the manual page, or writes one page per command into `directory`.
pub(crate) fn man(directory: Option<&Path>) -> Outcome {
    match directory {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(Failure::runtime)?;
            output::print(&String::from_utf8_lossy(&page))
        }
        Some(directory) => {
            let fail = |error: std::io::Error| Failure::usage(format!("{}: {error}", directory.display()));
            fs::create_dir_all(directory).map_err(fail)?;
            clap_mangen::generate_to(Cli::command(), directory).map_err(fail)
        }
    }
}
