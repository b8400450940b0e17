//! `towpath`: starts the roles, and is their command line.
//!
//! | module | commands |
//! |---|---|
//! | [`run`] | `run`: the daemon's loop |
//! | [`terminal`] | `terminal` |
//! | [`subscriber`], [`profile`] | `subscriber`, `profile`, with or without a running daemon |
//! | [`show`] | `status`, `sa`, `flow`, `ike`, `stats`, `events` |
//! | [`node`] | `node`: certificates for roles on several machines |
//! | [`setup`], [`docs`] | `init`, `config`, `unload`, `completions`, `man` |
//!
//! [`cli`] is the command line as clap reads it, [`config`] the configuration file, [`failure`] what becomes
//! of errors.
#![forbid(unsafe_code)]

mod backend;
mod capture;
mod cli;
mod config;
mod docs;
mod failure;
mod node;
mod output;
mod policy;
mod profile;
mod run;
mod sa;
mod setup;
mod show;
mod subscriber;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use failure::Outcome;

fn main() -> ExitCode {
    // clap ends the process itself: status 2 for what it cannot read, 0 for help.
    let Cli { common, command } = Cli::parse();
    match dispatch(&common, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(common: &cli::Common, command: Command) -> Outcome {
    match command {
        Command::Run => {
            let config = config::Config::load(&common.config)?;
            // Before anything is attached to an interface.
            if config.runs(config::Role::Gateway) || config.runs(config::Role::Registry) {
                setup::check_store(&config)?;
            }
            Ok(run::run(config)?)
        }
        Command::Terminal(args) => terminal::run(common, args),
        Command::Init(args) => setup::init(common, &args),
        Command::Node(command) => node::run(common, &command),
        Command::Subscriber(command) => subscriber::run(common, command),
        Command::Profile(command) => profile::run(common, command),
        Command::Status => show::status(common),
        Command::Sa(command) => show::sa(common, command),
        Command::Policy(command) => policy::run(common, command),
        Command::Capture(args) => capture::run(common, &args),
        Command::Flow(command) => show::flow(common, command),
        Command::Ike(command) => show::ike(common, command),
        Command::Stats(args) => show::stats(common, &args),
        Command::Events(args) => show::events(common, &args),
        Command::Config(command) => setup::config(common, &command),
        Command::Unload(args) => setup::unload(common, args),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { directory } => docs::man(directory.as_deref()),
    }
}
